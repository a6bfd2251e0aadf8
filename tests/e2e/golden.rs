//! A golden summary of what every kind of stage makes of the tiny pipeline, beside the kind's code version.
//!
//! When a summary changes, the stage's output has changed: raise its `version` in `crates/core/src/kind.rs`, then accept
//! the snapshot. Summaries are coarse (three digits of weighted root mean squares, two where a language model sampled) so that processors
//! which round differently agree.

use crate::support::Home;
use arrow_array::{
    Array, BinaryArray, FixedSizeListArray, Float32Array, Float64Array, Int8Array, Int32Array, Int64Array, ListArray,
};
use rallrec_core::kind::StageKind;
use rallrec_store::{Manifest, Store};
use std::{collections::BTreeMap, fmt::Write as _, path::Path};

#[tokio::test]
async fn outputs_change_only_with_their_versions() {
    let home = Home::new();
    home.run(&["tests/pipelines/tiny.yaml"]);
    let store = Store::local(&home.path().join("store")).await.unwrap();
    let mut stages: BTreeMap<StageKind, Vec<Manifest>> = BTreeMap::new();
    for path in manifests(&home.path().join("store/artifacts")) {
        let manifest: Manifest = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        stages.entry(manifest.kind).or_default().push(manifest);
    }
    let mut text = String::new();
    for (kind, mut shards) in stages {
        // By name, not by key: a key changes more often than what it names.
        shards.sort_by_key(|m| (m.stage.0.clone(), m.rows));
        writeln!(text, "{kind} version {}", kind.info().version).unwrap();
        for (name, _) in kind.info().outputs {
            let mut columns: Vec<(String, Summary)> = Vec::new();
            for shard in &shards {
                let (schema, batches) = store.read_table(&shard.tables[*name], None).await.unwrap();
                for (i, field) in schema.fields().iter().enumerate() {
                    if columns.len() == i {
                        columns.push((field.name().clone(), Summary::default()));
                    }
                    batches.iter().for_each(|b| columns[i].1.add(b.column(i).as_ref()));
                }
            }
            let sampled = matches!(kind, StageKind::Describe | StageKind::Reason);
            for (column, summary) in columns.iter().filter(|(c, _)| c != "seconds") {
                writeln!(text, "  {name}.{column}: {}", summary.show(if sampled { 2 } else { 3 })).unwrap();
            }
        }
    }
    insta::assert_snapshot!(text);
}

/// Rows, values and root mean square of a column, lists flattened; of text and bytes the length.
#[derive(Default)]
struct Summary {
    rows: usize,
    values: usize,
    sum_of_squares: f64,
}

impl Summary {
    fn add(&mut self, array: &dyn Array) {
        self.rows += array.len();
        self.add_values(array);
    }

    fn add_values(&mut self, array: &dyn Array) {
        let any = array.as_any();
        macro_rules! numbers {
            ($($kind:ty),*) => {$(
                if let Some(found) = any.downcast_ref::<$kind>() {
                    return found.iter().flatten().for_each(|v| self.push(v as f64));
                }
            )*};
        }
        numbers!(Int8Array, Int32Array, Int64Array, Float32Array, Float64Array);
        if let Some(text) = any.downcast_ref::<arrow_array::StringArray>() {
            return text.iter().flatten().for_each(|t| self.push(t.len() as f64));
        }
        if let Some(bytes) = any.downcast_ref::<BinaryArray>() {
            return bytes.iter().flatten().for_each(|b| self.push(b.len() as f64));
        }
        if let Some(lists) = any.downcast_ref::<ListArray>() {
            return lists.iter().flatten().for_each(|l| self.add_values(l.as_ref()));
        }
        let vectors = any.downcast_ref::<FixedSizeListArray>().expect("a type that artifacts use");
        self.add_values(vectors.values().as_ref());
    }

    fn push(&mut self, value: f64) {
        // The position counts, so that a change of order shows.
        let weight = 1.0 + (self.values % 97) as f64 / 97.0;
        self.values += 1;
        self.sum_of_squares += value * value * weight;
    }

    fn show(&self, digits: usize) -> String {
        let count = self.values.max(1) as f64;
        let round = |value: f64| format!("{value:.*e}", digits - 1);
        let values = if digits < 3 { String::new() } else { format!(", {} values", self.values) };
        format!("{} rows{values}, root mean square {}", self.rows, round((self.sum_of_squares / count).sqrt()))
    }
}

fn manifests(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut manifests(&path));
        } else if path.file_name().is_some_and(|n| n == "manifest.json") {
            found.push(path);
        }
    }
    found.sort();
    found
}
