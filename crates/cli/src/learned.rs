//! What a plan's stages are thought to need, by what earlier runs in a store measured. Bounded: it looks at the latest runs
//! and at a few tasks of each stage, however large the store is.

use crate::{failure::Failure, history::PLAN_FILE};
use rallrec_core::{
    ids::{RowRange, RunId, StageName},
    key::Key,
    plan::{Measured, Plan, PlannedStage},
};
use rallrec_store::{Manifest, Store};
use std::collections::BTreeMap;

/// Latest runs that are looked at.
const RUNS: usize = 16;

/// Tasks of a stage that are looked at, from its first to its last.
const TASKS: usize = 4;

/// Manifests that are read for one plan.
const MANIFESTS: usize = 64;

/// Puts what was measured into a plan. A store that cannot tell only leaves the estimates as they were.
pub async fn learn(store: &Store, plan: &mut Plan, model_bytes: &BTreeMap<String, u64>) {
    match measured(store, plan).await {
        Ok(measured) => plan.learn(model_bytes, &measured),
        Err(error) => tracing::warn!(%error, "what earlier tasks took of memory cannot be read"),
    }
}

/// What the latest tasks of the same kind and model took, of every stage of which somebody measured it.
///
/// # Errors
/// When the store cannot be reached.
async fn measured(store: &Store, plan: &Plan) -> Result<BTreeMap<StageName, Measured>, Failure> {
    let mut open: Vec<&PlannedStage> = plan.stages.iter().filter(|stage| stage.takes_as_much_as(stage)).collect();
    let mut found = BTreeMap::new();
    if open.is_empty() {
        return Ok(found);
    }
    let mut reader = Reader::new(store, MANIFESTS);
    for run in store.runs().await?.into_iter().rev().take(RUNS) {
        let Some(earlier) = reader.plan(&run).await? else { continue };
        let mut still = Vec::new();
        for stage in open {
            match reader.stage(&run, &earlier, stage).await? {
                Some(measured) => drop(found.insert(stage.name.clone(), measured)),
                None => still.push(stage),
            }
        }
        open = still;
    }
    Ok(found)
}

/// Reads plans and some manifests of a store.
pub(crate) struct Reader<'s> {
    store: &'s Store,
    /// Manifests that may still be read.
    left: usize,
}

impl<'s> Reader<'s> {
    /// A reader that reads so many manifests at most.
    pub(crate) fn new(store: &'s Store, manifests: usize) -> Self {
        Self { store, left: manifests }
    }

    /// The plan of a run; `None` when it has none that this version reads.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub(crate) async fn plan(&self, run: &RunId) -> Result<Option<Plan>, Failure> {
        let bytes = self.store.run_file(run, PLAN_FILE).await?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// What tasks of a run took that are like the stage's.
    async fn stage(&mut self, run: &RunId, earlier: &Plan, like: &PlannedStage) -> Result<Option<Measured>, Failure> {
        let mut found: Option<Measured> = None;
        for stage in earlier.stages.iter().filter(|stage| like.takes_as_much_as(stage)) {
            for key in self.tasks(earlier, stage).await? {
                let Some(manifest) = self.manifest(&key).await? else { continue };
                let Some(measured) = Measured::of(run.clone(), &manifest.metrics) else { continue };
                found = Some(match found {
                    Some(found) => found.max(measured),
                    None => measured,
                });
            }
        }
        Ok(found)
    }

    /// Keys of some tasks of a stage; none where it is not known how many there are.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub(crate) async fn tasks(&mut self, plan: &Plan, stage: &PlannedStage) -> Result<Vec<Key>, Failure> {
        if stage.drive().is_none() {
            return Ok(vec![stage.task_key(None)]);
        }
        let Some(rows) = self.rows(plan, stage).await? else { return Ok(Vec::new()) };
        let shards = stage.shards(rows);
        let some = spread(shards.len()).filter_map(|at| shards.get(at));
        Ok(some.map(|rows: &RowRange| stage.task_key(Some(*rows))).collect())
    }

    /// Rows of a stage that is cut into rows: of the one task that all its rows come from, within every limit between.
    async fn rows(&mut self, plan: &Plan, stage: &PlannedStage) -> Result<Option<u64>, Failure> {
        let (mut at, mut limit) = (stage, u64::MAX);
        while let Some(need) = at.drive() {
            let own = at.params().ok().and_then(|params| params.row_limit());
            limit = own.map_or(limit, |own| own.min(limit));
            let Some(from) = plan.stages.get(need.stage as usize) else { return Ok(None) };
            if from.drive().is_none() {
                let manifest = self.manifest(&from.task_key(None)).await?;
                return Ok(manifest.and_then(|m| m.tables.get(&need.table).map(|table| table.rows.min(limit))));
            }
            at = from;
        }
        Ok(None)
    }

    /// A manifest, while some may still be read.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub(crate) async fn manifest(&mut self, key: &Key) -> Result<Option<Manifest>, Failure> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        Ok(self.store.manifest(key).await?)
    }
}

/// Some of so many, from the first to the last.
fn spread(count: usize) -> impl Iterator<Item = usize> {
    let some = count.min(TASKS);
    (0..some).map(move |n| if some > 1 { n * (count - 1) / (some - 1) } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int32Array, RecordBatch};
    use rallrec_core::{
        ids::{Attempt, TaskId, TimeMs},
        lane::{Lane, Room},
        plan::{GPU_HELD, HOST_PEAK, Pins},
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
  describe: {kind: describe, needs: {items: dataset}, model: llm, shards: {rows: 100}, seed: SEED}
  embed: {kind: embed, needs: {items: dataset, descriptions: describe}, model: llm, shards: {rows: 200}}
";

    fn pins() -> Pins {
        Pins {
            models: [("llm".to_owned(), "11".to_owned())].into(),
            data: [("ratings".to_owned(), "00".to_owned())].into(),
            model_bytes: [("llm".to_owned(), 100 << 20)].into(),
        }
    }

    fn plan(seed: u64) -> Plan {
        let pipeline = compile("p.yaml", &PIPELINE.replace("SEED", &seed.to_string()), &[]).unwrap();
        Plan::new(&pipeline, &pins()).unwrap()
    }

    async fn commit(store: &Store, stage: &PlannedStage, rows: Option<RowRange>, count: i32, took: &[(&str, f64)]) {
        let offer = TaskOffer {
            run: RunId("r".into()),
            task: TaskId { stage: 0, shard: 0 },
            attempt: Attempt(1),
            key: stage.task_key(rows),
            stage: stage.name.clone(),
            kind: stage.kind,
            params: serde_json::json!({}),
            seed: 1,
            model: None,
            data: None,
            max_bad_rows: 0,
            rows,
            inputs: vec![],
            fields: stage.fields.clone(),
        };
        let producer = Producer { offer, program: "test".into(), writer: "w".into() };
        let mut out = ArtifactWriter::new(store.clone(), producer);
        let column: ArrayRef = Arc::new(Int32Array::from_iter_values(0..count));
        let table = stage.kind.info().outputs[0].0;
        out.write(table, &RecordBatch::try_from_iter([("item", column)]).unwrap()).await.unwrap();
        took.iter().for_each(|(name, mb)| out.metric(name, *mb));
        out.commit(1.0, TimeMs(0)).await.unwrap();
    }

    /// A run of 450 items whose tasks of `describe` took more and more.
    async fn ran(store: &Store, run: &str, seed: u64, most: f64) {
        let plan = plan(seed);
        let json = serde_json::to_vec(&plan).unwrap();
        store.create_run_file(&RunId(run.into()), PLAN_FILE, json).await.unwrap();
        commit(store, &plan.stages[0], None, 450, &[]).await;
        for (n, rows) in plan.stages[1].shards(450).into_iter().enumerate() {
            let took = most - 1000.0 * (4 - n) as f64;
            let rows_there = rows.len() as i32;
            commit(store, &plan.stages[1], Some(rows), rows_there, &[(HOST_PEAK, took), (GPU_HELD, 2.0 * took)]).await;
        }
    }

    #[tokio::test]
    async fn the_latest_run_that_measured_tells() {
        let store = Store::memory();
        let mut first = plan(1);
        learn(&store, &mut first, &pins().model_bytes).await;
        assert_eq!(first, plan(1), "nothing to learn from");

        ran(&store, "r1", 1, 40_000.0).await;
        ran(&store, "r2", 2, 16_000.0).await;
        let later = serde_json::to_vec(&plan(3)).unwrap();
        store.create_run_file(&RunId("r3".into()), PLAN_FILE, later).await.unwrap();
        let mut next = plan(4);
        learn(&store, &mut next, &pins().model_bytes).await;
        let describe = &next.stages[1].resources;
        assert_eq!((describe.host_estimate_mb, describe.gpu_estimate_mb), (Some(18_000), Some(36_000)));
        assert_eq!(describe.gpu_measured_in, Some(RunId("r2".into())));
        assert_eq!(Lane::of(&next.stages[1]).wanted, Room { host_gib: 18, gpu_gib: 36 });
        assert_eq!(next.stages[2], plan(4).stages[2], "of embed nothing was measured");
    }

    #[tokio::test]
    async fn a_large_store_is_not_read_whole() {
        let store = Store::memory();
        ran(&store, "r00", 1, 16_000.0).await;
        for n in 1..=RUNS {
            let json = serde_json::to_vec(&plan(9)).unwrap();
            store.create_run_file(&RunId(format!("r{n:02}")), PLAN_FILE, json).await.unwrap();
        }
        assert!(measured(&store, &plan(4)).await.unwrap().is_empty());
        assert_eq!(spread(0).count(), 0);
        assert_eq!(
            [spread(1).collect::<Vec<_>>(), spread(3).collect(), spread(1000).collect()],
            [vec![0], vec![0, 1, 2], vec![0, 333, 666, 999]]
        );
    }
}
