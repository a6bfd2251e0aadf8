//! What the systems of a run predicted, read from its plan and the store, whichever store that is; and which samples two
//! of them share.

use crate::{failure::Failure, history, run_names};
use arrow_array::{Array, Float32Array, Int8Array, Int32Array, Int64Array, RecordBatch};
use rallrec_core::{
    ids::RunId,
    key::Key,
    kind::{StageKind, TableKind},
    plan::{Plan, PlannedStage},
};
use rallrec_store::{Manifest, Store, TableManifest};
use std::collections::BTreeMap;

/// A system's predictions, one row a sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Predictions {
    /// Position among all samples of the data set.
    pub(crate) sample: Vec<i64>,
    /// Row position in `users`.
    pub(crate) user: Vec<i32>,
    /// Row position in `items`.
    pub(crate) item: Vec<i32>,
    /// 1 like, 0 not.
    pub(crate) label: Vec<i8>,
    /// Probability of a like; `None` where the row failed.
    pub(crate) p: Vec<Option<f32>>,
}

/// A system: a stage that predicts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct System {
    /// Key of its predictions as a whole.
    pub(crate) key: Key,
    /// Digest of the data set that its samples are of.
    pub(crate) data: String,
    /// What it predicted.
    pub(crate) predictions: Predictions,
}

impl Predictions {
    /// Adds the rows of a table of predictions.
    ///
    /// # Errors
    /// A sentence when it lacks a column.
    pub(crate) fn add(&mut self, batch: &RecordBatch) -> Result<(), String> {
        self.sample.extend_from_slice(column::<Int64Array>(batch, "sample")?.values());
        self.user.extend_from_slice(column::<Int32Array>(batch, "user")?.values());
        self.item.extend_from_slice(column::<Int32Array>(batch, "item")?.values());
        self.label.extend_from_slice(column::<Int8Array>(batch, "label")?.values());
        self.p.extend(column::<Float32Array>(batch, "p")?);
        Ok(())
    }

    fn of(&self, row: usize) -> (i32, i32, i8) {
        (self.user[row], self.item[row], self.label[row])
    }
}

/// A column of a known type.
///
/// # Errors
/// A sentence when it is not there, of another type, or, but for `p`, has nulls.
pub(crate) fn column<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A, String> {
    let found = batch.column_by_name(name).and_then(|c| c.as_any().downcast_ref::<A>());
    let found = found.filter(|c| name == "p" || c.null_count() == 0);
    found.ok_or_else(|| format!("its column `{name}` is not there, or not as docs/artifacts.md says"))
}

/// A run, to read its tables.
pub(crate) struct RunTables<'a> {
    store: &'a Store,
    /// The run.
    pub(crate) run: RunId,
    /// Its plan.
    pub(crate) plan: Plan,
}

impl<'a> RunTables<'a> {
    /// The run that a word means.
    ///
    /// # Errors
    /// [`Failure::Invalid`] when there is none, or several.
    pub(crate) async fn open(store: &'a Store, word: &str) -> Result<Self, Failure> {
        let run = run_names::resolve(&store.runs().await?, word)?;
        let plan = history::plan(store, &run).await?;
        Ok(Self { store, run, plan })
    }

    /// The stages that predict, in the order of the plan.
    pub(crate) fn systems(&self) -> Vec<&PlannedStage> {
        let predicts = |s: &&PlannedStage| predictions(s).is_some();
        self.plan.stages.iter().filter(predicts).collect()
    }

    /// What a system predicted.
    ///
    /// # Errors
    /// [`Failure::Invalid`] when its stage has not finished.
    pub(crate) async fn system(&self, stage: &PlannedStage) -> Result<System, Failure> {
        let mut read = Predictions::default();
        for batch in self.table(stage, predictions(stage).unwrap_or_default()).await? {
            read.add(&batch).map_err(|e| anyhow::anyhow!("stage {} of run {}: {e}", stage.name, self.run))?;
        }
        let data = self.dataset(stage)?.data.as_ref().map(|d| d.digest.clone()).unwrap_or_default();
        Ok(System { key: stage.stage_key.clone(), data, predictions: read })
    }

    /// The data set that a stage's samples come from.
    ///
    /// # Errors
    /// [`Failure::Invalid`] when there is none, or more than one.
    pub(crate) fn dataset(&self, stage: &PlannedStage) -> Result<&PlannedStage, Failure> {
        let mut reached = vec![false; self.plan.stages.len()];
        let mut open: Vec<usize> = stage.needs.iter().map(|n| n.stage as usize).collect();
        while let Some(at) = open.pop() {
            if !std::mem::replace(&mut reached[at], true) {
                open.extend(self.plan.stages[at].needs.iter().map(|n| n.stage as usize));
            }
        }
        let found = self.plan.stages.iter().zip(&reached);
        let found: Vec<_> = found.filter(|(s, here)| **here && s.kind == StageKind::Dataset).map(|(s, _)| s).collect();
        match found.as_slice() {
            [one] => Ok(one),
            several => Err(Failure::Invalid(format!(
                "stage `{}` of run {} reads {} data sets; only predictions for the samples of one can be compared",
                stage.name,
                self.run,
                several.len()
            ))),
        }
    }

    /// All rows of a stage's table, in order.
    ///
    /// # Errors
    /// [`Failure::Invalid`] when it is not there, else when the store cannot be reached.
    pub(crate) async fn table(&self, stage: &PlannedStage, name: &str) -> Result<Vec<RecordBatch>, Failure> {
        let mut batches = Vec::new();
        for key in self.keys(stage).await? {
            batches.append(&mut self.store.read_table(&self.manifest(stage, &key, name).await?, None).await?.1);
        }
        Ok(batches)
    }

    /// The manifests of a stage's tasks that are there, in order, and how many tasks it has.
    ///
    /// # Errors
    /// As [`Self::table`], of the stages that tell how many rows it has.
    pub(crate) async fn manifests(&self, stage: &PlannedStage) -> Result<(Vec<Manifest>, usize), Failure> {
        let keys = self.keys(stage).await?;
        let mut found = Vec::new();
        for key in &keys {
            found.extend(self.store.manifest(key).await?);
        }
        Ok((found, keys.len()))
    }

    /// Keys of a stage's tasks.
    async fn keys(&self, stage: &PlannedStage) -> Result<Vec<Key>, Failure> {
        Ok(match stage.drive() {
            None => vec![stage.task_key(None)],
            Some(_) => stage.shards(self.rows(stage).await?).iter().map(|range| stage.task_key(Some(*range))).collect(),
        })
    }

    /// Rows of a row-wise stage: those of the table that drives it, and of the one that drives that, up to its own limit.
    async fn rows(&self, stage: &PlannedStage) -> Result<u64, Failure> {
        let (mut at, mut limit) = (stage, u64::MAX);
        while let Some(need) = at.drive() {
            let params =
                at.params().map_err(|e| Failure::Invalid(format!("run {}: stage {}: {e}", self.run, at.name)))?;
            limit = limit.min(params.row_limit().unwrap_or(u64::MAX));
            let below = self.plan.stages.get(need.stage as usize);
            let below =
                below.ok_or_else(|| anyhow::anyhow!("run {}: its plan names stage {}", self.run, need.stage))?;
            if below.drive().is_none() {
                let manifest = self.manifest(below, &below.task_key(None), &need.table).await?;
                return Ok(manifest.rows.min(limit));
            }
            at = below;
        }
        Ok(0)
    }

    async fn manifest(&self, stage: &PlannedStage, key: &Key, table: &str) -> Result<TableManifest, Failure> {
        let manifest = self.store.manifest(key).await?.ok_or_else(|| {
            Failure::Invalid(format!(
                "run {} has not finished its stage `{}`, or gc has removed what it made; run its pipeline again",
                self.run, stage.name
            ))
        })?;
        let found = manifest.tables.get(table).cloned();
        Ok(found.ok_or_else(|| anyhow::anyhow!("artifact {} has no table `{table}`", manifest.key))?)
    }
}

/// Name of a stage's table of predictions, if it makes one.
fn predictions(stage: &PlannedStage) -> Option<&'static str> {
    stage.kind.info().outputs.iter().find(|(_, kind)| *kind == TableKind::Predictions).map(|(name, _)| *name)
}

/// Which rows two tables of predictions share, and what stands in the way.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shared {
    /// Rows of the old and of the new table, of the same sample, in the order of the new one.
    pub(crate) rows: Vec<(usize, usize)>,
    /// Samples that only the old one has.
    pub(crate) only_old: usize,
    /// Samples that only the new one has.
    pub(crate) only_new: usize,
    /// Samples of one number, but of another user, item or label.
    pub(crate) other: usize,
    /// The first sample that is not shared.
    pub(crate) first: Option<i64>,
}

/// Pairs samples by their number, and only where user, item and label agree.
///
/// # Errors
/// A sentence when a sample stands in one table twice.
pub(crate) fn shared(old: &Predictions, new: &Predictions) -> Result<Shared, String> {
    let mut places = BTreeMap::new();
    for (row, sample) in old.sample.iter().enumerate() {
        if places.insert(*sample, row).is_some() {
            return Err(format!("sample {sample} stands in the baseline twice"));
        }
    }
    let mut shared = Shared::default();
    let mut seen = std::collections::BTreeSet::new();
    for (row, sample) in new.sample.iter().enumerate() {
        if !seen.insert(*sample) {
            return Err(format!("sample {sample} stands in the run twice"));
        }
        match places.remove(sample) {
            Some(old_row) if old.of(old_row) == new.of(row) => shared.rows.push((old_row, row)),
            found => {
                if found.is_some() {
                    shared.other += 1
                } else {
                    shared.only_new += 1
                }
                shared.first.get_or_insert(*sample);
            }
        }
    }
    shared.only_old = places.len();
    shared.first = shared.first.or_else(|| places.keys().next().copied());
    Ok(shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(i64, i32, i8)]) -> Predictions {
        Predictions {
            sample: rows.iter().map(|r| r.0).collect(),
            user: rows.iter().map(|r| r.1).collect(),
            item: vec![0; rows.len()],
            label: rows.iter().map(|r| r.2).collect(),
            p: vec![Some(0.5); rows.len()],
        }
    }

    #[test]
    fn samples_are_paired_by_number_and_identity() {
        let old = table(&[(3, 1, 0), (5, 1, 1), (9, 2, 1), (10, 2, 0)]);
        let new = table(&[(5, 1, 1), (3, 1, 0), (11, 2, 1), (9, 2, 0)]);
        let found = shared(&old, &new).unwrap();
        assert_eq!(found, Shared { rows: vec![(1, 0), (0, 1)], only_old: 1, only_new: 1, other: 1, first: Some(11) });
        assert!(shared(&old, &table(&[(3, 1, 0), (3, 1, 0)])).unwrap_err().contains("sample 3"));
        assert_eq!(shared(&old, &old).unwrap().rows.len(), 4);
    }
}
