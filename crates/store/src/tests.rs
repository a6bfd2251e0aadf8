//! The commit protocol and the journal, on a real folder and in memory.

use super::*;
use crate::faulty::Faulty;
use arrow_array::{ArrayRef, Int32Array, RecordBatch};
use rallrec_core::{
    ids::{Attempt, RowRange, StageName, TaskId, TimeMs},
    key::KeyFields,
    kind::StageKind,
    task::TaskOffer,
};
use std::sync::Arc;

fn offer(attempt: u32) -> TaskOffer {
    TaskOffer {
        run: RunId("r1".into()),
        task: TaskId { stage: 0, shard: 3 },
        attempt: Attempt(attempt),
        key: KeyFields::default().key(),
        stage: StageName("embed".into()),
        kind: StageKind::Embed,
        params: serde_json::json!({}),
        seed: 1,
        model: None,
        data: None,
        max_bad_rows: 0,
        rows: Some(RowRange { start: 0, end: 3 }),
        inputs: vec![],
        fields: KeyFields::default(),
    }
}

fn writer(store: &Store, attempt: u32) -> ArtifactWriter {
    ArtifactWriter::new(store.clone(), Producer { offer: offer(attempt), program: "test".into(), writer: "w".into() })
}

fn batch(values: &[i32]) -> RecordBatch {
    let column = Arc::new(Int32Array::from(values.to_vec())) as ArrayRef;
    let batch = RecordBatch::try_from_iter([("x", column)]).unwrap();
    let metadata = std::collections::HashMap::from([("unit".to_owned(), "stars".to_owned())]);
    let schema = batch.schema().as_ref().clone().with_metadata(metadata);
    batch.with_schema(Arc::new(schema)).unwrap()
}

/// More than a manifest holds, and different for each `salt`.
fn large(salt: i32) -> Vec<i32> {
    (0..1000).map(|i: i32| i.wrapping_mul(-1_640_531_535).wrapping_add(salt)).collect()
}

fn column(batches: &[RecordBatch]) -> Vec<i32> {
    let values = |b: &RecordBatch| b.column(0).as_any().downcast_ref::<Int32Array>().unwrap().values().to_vec();
    batches.iter().flat_map(values).collect()
}

async fn stores() -> (tempfile::TempDir, [Store; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let local = Store::local(folder.path()).await.unwrap();
    (folder, [local, Store::memory()])
}

#[tokio::test]
async fn the_first_commit_wins_and_the_late_one_leaves_nothing() {
    let (folder, stores) = stores().await;
    for store in stores {
        let (mut slow, mut fast) = (writer(&store, 1), writer(&store, 2));
        slow.write("t", &batch(&large(1))).await.unwrap();
        fast.write("t", &batch(&large(7))).await.unwrap();
        assert!(store.manifest(&offer(1).key).await.unwrap().is_none(), "nothing is visible before the commit");
        assert!(fast.commit(1.5, TimeMs(5)).await.unwrap().first);
        let late = slow.commit(9.0, TimeMs(6)).await.unwrap();
        assert!(!late.first);
        assert_eq!(late.manifest.attempt, Attempt(2));
        let manifest = store.manifest(&offer(1).key).await.unwrap().unwrap();
        let (_, batches) = store.read_table(&manifest.tables["t"], None).await.unwrap();
        assert_eq!(column(&batches), large(7));
        assert_eq!(manifest.summary().rows["t"], 1000);
    }
    let files = walk(folder.path());
    assert_eq!(files.len(), 2, "one part and one manifest: {files:?}");
}

#[tokio::test]
async fn one_attempt_delivered_twice_does_not_harm_what_is_committed() {
    let (_folder, stores) = stores().await;
    for store in stores {
        let named = |name: &str| Producer { offer: offer(1), program: "test".into(), writer: name.into() };
        let mut slow = ArtifactWriter::new(store.clone(), named("a"));
        let mut fast = ArtifactWriter::new(store.clone(), named("b"));
        slow.write("t", &batch(&[1])).await.unwrap();
        fast.write("t", &batch(&[2])).await.unwrap();
        assert!(fast.commit(0.0, TimeMs(0)).await.unwrap().first);
        let late = slow.commit(0.0, TimeMs(0)).await.unwrap();
        assert!(!late.first);
        let (_, batches) = store.read_table(&late.manifest.tables["t"], None).await.unwrap();
        assert_eq!(column(&batches), [2]);
    }
}

#[tokio::test]
async fn rows_are_read_by_range_and_empty_tables_keep_their_schema() {
    let store = Store::memory();
    let mut out = writer(&store, 1);
    out.write("t", &batch(&[0, 1, 2])).await.unwrap();
    out.write("t", &batch(&[3, 4])).await.unwrap();
    out.write("none", &batch(&[])).await.unwrap();
    let manifest = out.commit(0.0, TimeMs(0)).await.unwrap().manifest;
    let read = |start, end| store.read_table(&manifest.tables["t"], Some(RowRange { start, end }));
    assert_eq!(column(&read(1, 4).await.unwrap().1), [1, 2, 3]);
    assert_eq!(column(&read(4, 9).await.unwrap().1), [4]);
    assert_eq!(column(&read(2, 2).await.unwrap().1), [] as [i32; 0]);
    let (schema, batches) = store.read_table(&manifest.tables["none"], None).await.unwrap();
    assert_eq!(schema.metadata()["unit"], "stars", "the schema's metadata survives");
    assert_eq!((schema.fields().len(), column(&batches).len()), (1, 0));
}

#[tokio::test]
async fn a_damaged_part_is_named_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::local(folder.path()).await.unwrap();
    let mut out = writer(&store, 1);
    out.write("t", &batch(&large(1))).await.unwrap();
    let manifest = out.commit(0.0, TimeMs(0)).await.unwrap().manifest;
    let path = folder.path().join(&manifest.tables["t"].parts[0].path);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let refused = store.read_table(&manifest.tables["t"], None).await.unwrap_err().to_string();
    assert!(refused.contains("t-00000.parquet is damaged: its checksum"), "{refused}");
}

#[tokio::test]
async fn a_small_table_is_in_its_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::local(folder.path()).await.unwrap();
    let mut out = writer(&store, 1);
    out.write("t", &batch(&[1, 2, 3])).await.unwrap();
    out.write("large", &batch(&large(1))).await.unwrap();
    out.commit(0.0, TimeMs(0)).await.unwrap();
    let files = walk(folder.path());
    assert_eq!(files.len(), 2, "the large table's part and the manifest: {files:?}");
    let manifest = store.manifest(&offer(1).key).await.unwrap().unwrap();
    let (schema, batches) = store.read_table(&manifest.tables["t"], None).await.unwrap();
    assert_eq!((column(&batches), &schema.metadata()["unit"]), (vec![1, 2, 3], &"stars".to_owned()));
    let mut damaged = manifest.tables["t"].clone();
    let content = damaged.parts[0].content.as_mut().unwrap();
    *content = content.slice(1..);
    let refused = store.read_table(&damaged, None).await.unwrap_err().to_string();
    assert!(refused.contains("its checksum"), "{refused}");
}

#[tokio::test]
async fn a_second_writer_fences_off_the_first() {
    let (_folder, stores) = stores().await;
    for store in stores {
        let run = RunId("r".into());
        let mut first = Records::of_run(store.clone(), &run, "a");
        first.append(b"one").await.unwrap();
        let mut second = Records::of_run(store.clone(), &run, "b");
        assert_eq!(second.replay().await.unwrap(), [b"one".to_vec()]);
        second.append(b"two").await.unwrap();
        assert!(matches!(first.append(b"late").await, Err(StoreError::Conflict { .. })));
        let mut reader = Records::of_run(store.clone(), &run, "c");
        assert_eq!(reader.replay().await.unwrap(), [b"one".to_vec(), b"two".to_vec()]);
        assert_eq!(store.runs().await.unwrap(), [run]);
    }
}

#[tokio::test]
async fn a_store_is_tried_and_left_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let location = Location::Folder(folder.path().to_owned());
    Store::open(&location, &BucketSettings::default(), "p1").await.unwrap();
    assert_eq!(walk(folder.path()).len(), 0);
}

#[tokio::test]
async fn a_file_system_without_hard_links_is_refused() {
    let location = Location::Folder("/mnt/card".into());
    for (number, wanted) in [(1, "has no hard links"), (95, "has no hard links"), (13, "make it writable")] {
        let store =
            Store::over(Arc::new(Faulty::new(|_| None, move |_| Some(std::io::Error::from_raw_os_error(number)))));
        let refused = store.check(&location, "", "p1").await.unwrap_err().to_string();
        assert!(refused.starts_with("/mnt/card cannot be the store: ") && refused.contains(wanted), "{refused}");
    }
}

#[tokio::test]
async fn nobody_continues_what_a_later_term_has_written() {
    let (_folder, stores) = stores().await;
    for store in stores {
        let run = RunId("r".into());
        let records = |writer: &str| Records::of_run(store.clone(), &run, writer);
        records("a").in_term(3).append(b"one").await.unwrap();
        let mut second = records("b").in_term(12);
        assert_eq!(second.replay().await.unwrap(), [b"one".to_vec()]);
        second.append(b"two").await.unwrap();
        // Slow to take the run over, it reads what is there only now.
        assert!(matches!(records("a").in_term(3).replay().await, Err(StoreError::Conflict { .. })));
        for mut reader in [records("b").in_term(12), records("c").in_term(13), records("reader")] {
            assert_eq!(reader.replay().await.unwrap(), [b"one".to_vec(), b"two".to_vec()]);
        }
        assert_eq!(records("watcher").follow().await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn a_snapshot_stands_for_the_records_before_it() {
    let (_folder, stores) = stores().await;
    for store in stores {
        let run = RunId("r".into());
        let records = |writer: &str| Records::of_run(store.clone(), &run, writer);
        assert_eq!(records("reader").snapshot().await.unwrap(), None);
        let mut first = records("a").in_term(3);
        first.append(b"one").await.unwrap();
        first.keep_snapshot(b"of one").await.unwrap();
        first.append(b"two").await.unwrap();
        let kept = first.keep_snapshot(b"of two");
        first.append(b"three").await.unwrap();
        kept.await.unwrap();
        let mut second = records("b").in_term(12);
        assert_eq!(second.snapshot().await.unwrap(), Some((2, b"of two".to_vec())));
        assert_eq!(second.replay_from(2).await.unwrap(), [b"three".to_vec()]);
        second.append(b"four").await.unwrap();
        second.keep_snapshot(b"of four").await.unwrap();
        // What a later term wrote is all behind its snapshot: nobody of an earlier one may go on from there.
        assert!(matches!(records("a").in_term(3).snapshot().await, Err(StoreError::Conflict { .. })));
        assert_eq!(records("reader").replay_from(4).await.unwrap(), Vec::<Vec<u8>>::new());
        let mut third = records("c").in_term(12);
        assert_eq!(third.snapshot().await.unwrap().unwrap().0, 4);
        third.replay_from(4).await.unwrap();
        assert_eq!(third.position(), 4);
    }
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.append(&mut walk(&path)) } else { found.push(path) }
    }
    found
}
