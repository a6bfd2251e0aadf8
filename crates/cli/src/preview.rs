//! What a plan would reuse: counts the committed artifacts of every stage, without running anything.
//!
//! Shard counts that depend on data are known only once the driving table is committed; until then they are left
//! open, never guessed.

use crate::failure::Failure;
use futures::{StreamExt, TryStreamExt, stream};
use rallrec_core::{
    ids::RowRange,
    plan::{Plan, PlannedStage},
};
use rallrec_store::Store;
use serde::Serialize;
use std::collections::BTreeMap;

/// Manifests looked for at once: hides the latency of an object store.
const LOOKS_AT_ONCE: usize = 32;

/// How much of a stage is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StagePreview {
    /// The stage.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// Hash of what decides its rows.
    pub row_key: String,
    /// Rows that it makes; `None` until its input is there, and for stages that are one task and not done.
    pub rows: Option<u64>,
    /// Its tasks; `None` until its input is there.
    pub tasks: Option<u64>,
    /// Those of them whose artifacts are committed.
    pub reused: u64,
}

impl StagePreview {
    /// Whether nothing is left to run.
    pub fn is_complete(&self) -> bool {
        self.tasks == Some(self.reused)
    }
}

/// Looks at every stage, in the plan's order.
///
/// # Errors
/// When the store cannot be reached, or the plan was not written by this version.
pub async fn preview(store: &Store, plan: &Plan) -> Result<Vec<StagePreview>, Failure> {
    let mut tables: Vec<BTreeMap<String, u64>> = Vec::new();
    let mut found = Vec::new();
    for stage in &plan.stages {
        let (preview, rows) = match stage.drive() {
            None => one_task(store, stage).await?,
            Some(need) => {
                let rows = tables.get(need.stage as usize).and_then(|t| t.get(&need.table)).copied();
                sharded(store, stage, rows).await?
            }
        };
        found.push(preview);
        tables.push(rows);
    }
    Ok(found)
}

async fn one_task(store: &Store, stage: &PlannedStage) -> Result<(StagePreview, BTreeMap<String, u64>), Failure> {
    let manifest = store.manifest(&stage.stage_key).await?;
    let tables: BTreeMap<String, u64> = manifest.map(|m| m.summary().rows).unwrap_or_default();
    let rows = (!tables.is_empty()).then(|| tables.values().sum());
    Ok((describe(stage, rows, Some(1), u64::from(!tables.is_empty())), tables))
}

/// Output row i of a sharded stage belongs to row i of its driving table, so its row count is known as soon as that is.
async fn sharded(
    store: &Store,
    stage: &PlannedStage,
    rows: Option<u64>,
) -> Result<(StagePreview, BTreeMap<String, u64>), Failure> {
    let Some(rows) = rows else { return Ok((describe(stage, None, None, 0), BTreeMap::new())) };
    let params = stage.params().map_err(|e| anyhow::anyhow!("stage {}: {e}", stage.name))?;
    let rows = params.row_limit().map_or(rows, |limit| limit.min(rows));
    let shards: Vec<RowRange> = stage.shards(rows);
    let reused = stream::iter(shards.iter().map(|range| {
        let key = stage.task_key(Some(*range));
        async move { store.manifest(&key).await.map(|m| u64::from(m.is_some())) }
    }))
    .buffer_unordered(LOOKS_AT_ONCE)
    .try_fold(0, |sum, n| async move { Ok(sum + n) })
    .await?;
    let tables = stage.kind.info().outputs.iter().map(|(name, _)| ((*name).to_owned(), rows)).collect();
    Ok((describe(stage, Some(rows), Some(shards.len() as u64), reused), tables))
}

fn describe(stage: &PlannedStage, rows: Option<u64>, tasks: Option<u64>, reused: u64) -> StagePreview {
    StagePreview {
        stage: stage.name.to_string(),
        kind: stage.kind.to_string(),
        row_key: stage.row_key.to_string(),
        rows,
        tasks,
        reused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Int32Array, RecordBatch};
    use rallrec_core::{
        ids::{Attempt, RunId, TaskId, TimeMs},
        plan::Pins,
        spec::compile,
        task::TaskOffer,
    };
    use rallrec_store::{ArtifactWriter, Producer};
    use std::sync::Arc;

    const PIPELINE: &str = "
rallrec: 1
name: p
models: {llm: {source: smollm2-135m-instruct}}
data: {ratings: {source: movielens-100k}}
stages:
  dataset: {kind: dataset, data: ratings}
  describe: {kind: describe, needs: {items: dataset}, model: llm, shards: {rows: 100}}
  embed: {kind: embed, needs: {items: dataset, descriptions: describe}, model: llm, shards: {rows: 200}}
";

    fn plan() -> Plan {
        let pipeline = compile("p.yaml", PIPELINE, &[]).unwrap();
        let pin = |name: &str| [(name.to_owned(), "00".to_owned())].into();
        Plan::new(&pipeline, &Pins { models: pin("llm"), data: pin("ratings"), ..Pins::default() }).unwrap()
    }

    async fn commit(store: &Store, stage: &PlannedStage, range: Option<RowRange>, table: &str, rows: usize) {
        let offer = TaskOffer {
            run: RunId("r".into()),
            task: TaskId { stage: 0, shard: 0 },
            attempt: Attempt(1),
            key: stage.task_key(range),
            stage: stage.name.clone(),
            kind: stage.kind,
            params: stage.params.clone(),
            seed: 0,
            model: None,
            data: None,
            max_bad_rows: 0,
            rows: range,
            inputs: vec![],
            fields: stage.fields.clone(),
        };
        let mut writer =
            ArtifactWriter::new(store.clone(), Producer { offer, program: "test".into(), writer: "w".into() });
        let column: arrow_array::ArrayRef = Arc::new(Int32Array::from(vec![0; rows]));
        writer.write(table, &RecordBatch::try_from_iter([("item", column)]).unwrap()).await.unwrap();
        writer.commit(0.0, TimeMs(0)).await.unwrap();
    }

    #[tokio::test]
    async fn shards_are_counted_once_their_input_is_there() {
        let (store, plan) = (Store::memory(), plan());
        let counts = async || {
            let found = preview(&store, &plan).await.unwrap();
            found.into_iter().map(|p| (p.tasks, p.reused)).collect::<Vec<_>>()
        };
        assert_eq!(counts().await, [(Some(1), 0), (None, 0), (None, 0)]);
        commit(&store, &plan.stages[0], None, "items", 250).await;
        assert_eq!(counts().await, [(Some(1), 1), (Some(3), 0), (Some(2), 0)]);
        commit(&store, &plan.stages[1], Some(RowRange { start: 200, end: 250 }), "descriptions", 50).await;
        assert_eq!(counts().await, [(Some(1), 1), (Some(3), 1), (Some(2), 0)]);
    }
}
