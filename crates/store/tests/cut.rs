//! Some rows of some columns of a table are the same cut of the whole table, whatever way they are read.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use arrow_array::{
    ArrayRef, FixedSizeListArray, Float32Array, Int32Array, Int64Array, RecordBatch, StringArray,
    builder::{ListBuilder, StringBuilder},
};
use arrow_schema::{DataType, Field};
use arrow_select::concat::concat_batches;
use proptest::{prelude::*, sample::subsequence, test_runner::TestRunner};
use rallrec_core::{
    ids::{Attempt, RowRange, RunId, StageName, TaskId, TimeMs},
    key::KeyFields,
    kind::StageKind,
    task::TaskOffer,
};
use rallrec_store::{ArtifactWriter, Piece, Producer, Store, TableManifest};
use std::{collections::HashMap, sync::Arc};

const NAMES: [&str; 6] = ["row", "texts", "p", "vector", "text", "few"];

/// A number that follows from a row, and that no encoding makes smaller.
fn scatter(row: i64) -> i64 {
    row.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64).rotate_left(29).wrapping_mul(31)
}

/// Columns of many kinds: nested, with gaps, of text, of few values.
fn table(rows: i64) -> RecordBatch {
    let number = || (0..rows).map(scatter);
    let mut texts = ListBuilder::new(StringBuilder::new());
    for n in number() {
        texts.append_value((0..n.rem_euclid(3)).map(|part| Some(format!("{:x}", scatter(n + part)))));
    }
    let floats: Float32Array = (0..2 * rows).map(|n| scatter(n) as f32).collect();
    let item = Arc::new(Field::new_list_field(DataType::Float32, false));
    let columns: [ArrayRef; 6] = [
        Arc::new(Int64Array::from_iter_values(number())),
        Arc::new(texts.finish()),
        Arc::new(number().map(|n| (n % 7 != 0).then_some(n as f32)).collect::<Float32Array>()),
        Arc::new(FixedSizeListArray::new(item, 2, Arc::new(floats), None)),
        Arc::new(number().map(|n| Some(format!("{n:x} and {n}"))).collect::<StringArray>()),
        Arc::new(Int32Array::from_iter_values(number().map(|n| n.rem_euclid(5) as i32))),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(NAMES.into_iter().zip(columns).map(|(n, c)| (n, c, true)));
    let batch = batch.unwrap();
    let metadata = HashMap::from([("unit".to_owned(), "stars".to_owned())]);
    let schema = batch.schema().as_ref().clone().with_metadata(metadata);
    batch.with_schema(Arc::new(schema)).unwrap()
}

fn offer() -> TaskOffer {
    TaskOffer {
        run: RunId("r1".into()),
        task: TaskId { stage: 0, shard: 0 },
        attempt: Attempt(1),
        key: KeyFields::default().key(),
        stage: StageName("reason".into()),
        kind: StageKind::Reason,
        params: serde_json::json!({}),
        seed: 1,
        model: None,
        data: None,
        max_bad_rows: 0,
        rows: None,
        inputs: vec![],
        fields: KeyFields::default(),
    }
}

async fn commit(store: &Store, batch: &RecordBatch) -> TableManifest {
    let producer = Producer { offer: offer(), program: "test".into(), writer: "w".into() };
    let mut out = ArtifactWriter::new(store.clone(), producer);
    out.write("t", batch).await.unwrap();
    out.commit(0.0, TimeMs(0)).await.unwrap().manifest.tables["t"].clone()
}

/// The manifest that a program wrote which knew of no columns.
fn without_columns(table: &TableManifest) -> TableManifest {
    let mut table = table.clone();
    for piece in table.parts.iter_mut().flat_map(|part| &mut part.pieces) {
        piece.columns.clear();
    }
    table
}

/// The manifest of a program that knew of no row groups either.
fn without_pieces(table: &TableManifest) -> TableManifest {
    let mut table = table.clone();
    for part in &mut table.parts {
        part.pieces.clear();
    }
    table
}

fn holds(runtime: &tokio::runtime::Runtime, rows: i64, cases: u32) -> TableManifest {
    let store = Store::memory();
    let made = table(rows);
    let written = runtime.block_on(commit(&store, &made));
    let (schema, batches) = runtime.block_on(store.read_table(&without_pieces(&written), None)).unwrap();
    let all = concat_batches(&schema, &batches).unwrap();
    assert!(all.columns() == made.columns() && schema.metadata()["unit"] == "stars");
    let manifests = [written.clone(), without_columns(&written), without_pieces(&written)];
    let range = (0..=rows as u64, 0..=rows as u64).prop_map(|(a, b)| RowRange { start: a.min(b), end: a.max(b) });
    let near =
        (0..=rows as u64, 0..200u64).prop_map(move |(start, n)| RowRange { start, end: (start + n).min(rows as u64) });
    let rows = prop_oneof![range.prop_map(Some), near.prop_map(Some), Just(None)];
    let columns = subsequence((0..NAMES.len()).collect::<Vec<_>>(), 0..=NAMES.len());
    let mut runner = TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() });
    let held = runner.run(&(rows, columns, 0..manifests.len()), |(rows, columns, which)| {
        let names: Vec<&str> = columns.iter().rev().map(|&n| NAMES[n]).chain(["no such column"]).collect();
        let read = store.read_columns(&manifests[which], rows, Some(&names));
        let (schema, batches) = runtime.block_on(read).unwrap();
        let found = concat_batches(&schema, &batches).unwrap();
        let (start, end) = rows.map_or((0, all.num_rows() as u64), |rows| (rows.start, rows.end));
        let cut = all.slice(start as usize, (end - start) as usize).project(&columns).unwrap();
        prop_assert_eq!(found, cut);
        Ok(())
    });
    held.unwrap_or_else(|e| panic!("{e}\n{runner}"));
    written
}

#[test]
fn a_cut_is_what_a_whole_read_has_there() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let pieces = |table: &TableManifest| table.parts.iter().map(|part| part.pieces.len()).collect::<Vec<_>>();
    // In the manifest itself, in one small part, in one of one row group, in several.
    for (rows, cases) in [(0, 20), (3, 50), (3000, 100), (40_000, 100)] {
        let written = holds(&runtime, rows, cases);
        assert_eq!(pieces(&written), [if rows == 40_000 { 2 } else { 0 }], "{rows} rows");
    }
    let written = holds(&runtime, 1_300_000, 30);
    assert!(written.parts.len() >= 2 && written.parts[0].pieces.len() > 5, "{:?}", pieces(&written));
    for part in &written.parts {
        let (footer, groups) = part.pieces.split_last().unwrap();
        assert!(footer.columns.is_empty());
        assert_eq!(part.pieces.iter().map(|piece| piece.bytes).sum::<u64>(), part.bytes);
        let whole = |piece: &Piece| piece.columns.iter().map(|chunk| chunk.bytes).sum::<u64>() == piece.bytes;
        assert!(groups.iter().all(|piece| piece.columns.len() == NAMES.len() && whole(piece)));
    }
}
