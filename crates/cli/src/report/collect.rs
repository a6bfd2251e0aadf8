//! What a run's report is made of, read from its plan and the store. Nothing is computed here but counts.

use super::{
    MetricRow, metrics,
    paper::{PaperSet, TABLES},
};
use crate::{
    failure::Failure,
    predictions::{Predictions, RunTables, column},
};
use arrow_array::{Array, Float32Array, Int8Array, Int32Array, Int64Array, ListArray, RecordBatch};
use rallrec_core::{
    kind::StageKind,
    models::PinnedModel,
    params::{DatasetFormat, MergeParams, StageParams, TracePrediction},
    plan::PlannedStage,
};
use rallrec_store::Store;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// All that a report says of a run.
pub(super) struct RunFacts {
    /// Its identifier.
    pub(super) id: String,
    /// Name of its pipeline.
    pub(super) pipeline: String,
    /// Its data, when it has one set.
    pub(super) data: Option<DataFacts>,
    /// What it evaluated.
    pub(super) metrics: Vec<MetricRow>,
    /// Predictions of the systems in the paper's tables, by the stage's name.
    pub(super) predictions: BTreeMap<String, Predictions>,
    /// Its stages, in the order of the plan.
    pub(super) stages: Vec<StageFacts>,
    /// Responses of its reasoning stage.
    pub(super) responses: Option<Responses>,
}

/// A data set, as the run read it.
#[derive(Clone, Serialize)]
pub(super) struct DataFacts {
    /// What the pipeline asked for.
    pub(super) source: String,
    /// SHA-256 of the raw files.
    pub(super) digest: String,
    /// Which of the paper's sets it is.
    pub(super) paper: Option<PaperSet>,
    /// Users, items, samples.
    pub(super) counts: Option<[u64; 3]>,
}

/// A stage and what its tasks took.
#[derive(Clone, Serialize)]
pub(super) struct StageFacts {
    pub(super) name: String,
    pub(super) kind: StageKind,
    /// Version of the kind's code.
    pub(super) version: u32,
    pub(super) key: String,
    /// Its model: source, precision, digest.
    pub(super) model: Option<String>,
    /// Tasks; how many of them are there, and how many of these another run had computed.
    pub(super) tasks: usize,
    pub(super) done: usize,
    pub(super) reused: usize,
    /// Seconds that the tasks took that this run computed.
    pub(super) seconds: f64,
    /// Seconds that the reused ones took when they were computed.
    pub(super) saved_seconds: f64,
    /// Of `seconds`, those of tasks that held memory of an accelerator.
    pub(super) gpu_seconds: f64,
    /// Programs that made them.
    pub(super) producers: BTreeSet<String>,
}

/// Sampled responses, one row a sample.
#[derive(Default)]
pub(super) struct Responses {
    /// The stage.
    pub(super) stage: String,
    /// 1 like, 0 not.
    pub(super) label: Vec<i8>,
    /// Tokens of each response.
    pub(super) tokens: Vec<Vec<i32>>,
    /// Seconds that each took.
    pub(super) seconds: Vec<Vec<f32>>,
    /// What each predicts.
    pub(super) p: Vec<Vec<f32>>,
}

/// Reads a run.
///
/// # Errors
/// [`Failure::Invalid`] when there is no such run; else when the store cannot be reached or a table is damaged.
pub(super) async fn run(store: &Store, word: &str) -> Result<RunFacts, Failure> {
    let run = RunTables::open(store, word).await?;
    let metrics = metrics(store, &run.plan).await?;
    let evaluated: BTreeSet<&str> = metrics.iter().map(|row| row.system.as_str()).collect();
    let known: BTreeSet<&str> = TABLES.iter().flat_map(|table| table.rows).map(|row| row.stage).collect();
    let mut predictions = BTreeMap::new();
    for stage in run.systems() {
        let name = stage.name.to_string();
        if evaluated.contains(name.as_str()) && known.contains(name.as_str()) {
            predictions.insert(name, run.system(stage).await?.predictions);
        }
    }
    let mut stages = Vec::new();
    for stage in &run.plan.stages {
        stages.push(stage_facts(&run, stage).await?);
    }
    Ok(RunFacts {
        id: run.run.to_string(),
        pipeline: run.plan.pipeline.clone(),
        data: data(store, &run).await?,
        predictions,
        responses: responses(&run).await?,
        stages,
        metrics,
    })
}

async fn stage_facts(run: &RunTables<'_>, stage: &PlannedStage) -> Result<StageFacts, Failure> {
    let mut facts = StageFacts {
        name: stage.name.to_string(),
        kind: stage.kind,
        version: stage.kind.info().version,
        key: stage.stage_key.to_string(),
        model: stage.model.as_ref().map(model),
        tasks: 0,
        done: 0,
        reused: 0,
        seconds: 0.0,
        saved_seconds: 0.0,
        gpu_seconds: 0.0,
        producers: BTreeSet::new(),
    };
    // A stage whose rows are not known yet has no tasks yet.
    let Ok((manifests, tasks)) = run.manifests(stage).await else { return Ok(facts) };
    (facts.tasks, facts.done) = (tasks, manifests.len());
    for manifest in manifests {
        facts.producers.insert(manifest.producer.clone());
        if manifest.run == run.run {
            facts.seconds += manifest.seconds;
            let held = manifest.metrics.get("gpu_held_mb").is_some_and(|held| *held > 0.0);
            facts.gpu_seconds += if held { manifest.seconds } else { 0.0 };
        } else {
            facts.reused += 1;
            facts.saved_seconds += manifest.seconds;
        }
    }
    Ok(facts)
}

fn model(model: &PinnedModel) -> String {
    match model {
        PinnedModel::Local { files, precision } => {
            let digest: String = files.digest.chars().take(12).collect();
            let precision = serde_json::to_value(precision).ok();
            let precision = precision.as_ref().and_then(|p| p.as_str()).unwrap_or("auto");
            format!("{} ({precision}, SHA-256 {digest}…)", files.source)
        }
        PinnedModel::Remote { remote, .. } => format!("{} {} behind a server", remote.model, remote.revision),
    }
}

async fn data(store: &Store, run: &RunTables<'_>) -> Result<Option<DataFacts>, Failure> {
    let sets: Vec<&PlannedStage> = run.plan.stages.iter().filter(|s| s.kind == StageKind::Dataset).collect();
    let [stage] = sets.as_slice() else { return Ok(None) };
    let manifest = store.manifest(&stage.stage_key).await?;
    let rows = |name: &str| Some(manifest.as_ref()?.tables.get(name)?.rows);
    let samples = ["train", "valid", "test"].into_iter().map(rows).sum::<Option<u64>>();
    let counts = rows("users").zip(rows("items")).zip(samples).map(|((users, items), samples)| [users, items, samples]);
    let pinned = stage.data.as_ref();
    let format = match stage.params() {
        Ok(StageParams::Dataset(params)) => Some(params.format),
        _ => None,
    };
    let source = pinned.map(|data| data.source.clone()).unwrap_or_default();
    let paper = match format {
        Some(DatasetFormat::BookCrossing) => Some(PaperSet::BookCrossing),
        Some(DatasetFormat::Amazon) => Some(PaperSet::Amazon),
        Some(DatasetFormat::MovieLens1m) => Some(PaperSet::MovieLens),
        Some(DatasetFormat::Auto) if source == "movielens-1m" => Some(PaperSet::MovieLens),
        _ => None,
    };
    Ok(Some(DataFacts { source, digest: pinned.map(|data| data.digest.clone()).unwrap_or_default(), paper, counts }))
}

/// Responses of `reasoning-traces`, or else of the first reasoning stage that is done.
async fn responses(run: &RunTables<'_>) -> Result<Option<Responses>, Failure> {
    let mut stages: Vec<&PlannedStage> = run.plan.stages.iter().filter(|s| s.kind == StageKind::Reason).collect();
    stages.sort_by_key(|stage| stage.name.0 != "reasoning-traces");
    for stage in stages {
        let Some(prompts) = stage.drive().and_then(|need| run.plan.stages.get(need.stage as usize)) else { continue };
        let (Ok(traces), Ok(prompts)) = (run.table(stage, "traces").await, run.table(prompts, "prompts").await) else {
            continue;
        };
        let found = read_responses(stage, &traces, &prompts, prediction(run, stage));
        let mut found = found.map_err(|e| anyhow::anyhow!("stage {} of run {}: {e}", stage.name, run.run))?;
        found.stage = stage.name.to_string();
        return Ok(Some(found));
    }
    Ok(None)
}

/// Which of a trace's predictions the stages count that merge them.
fn prediction(run: &RunTables<'_>, stage: &PlannedStage) -> TracePrediction {
    let merges = run.plan.stages.iter().filter(|s| s.kind == StageKind::Merge);
    let reads = |merge: &&PlannedStage| {
        let from = merge.needs.iter().filter_map(|need| run.plan.stages.get(need.stage as usize));
        from.into_iter().any(|from| from.name == stage.name)
    };
    match merges.filter(reads).map(PlannedStage::params).next() {
        Some(Ok(StageParams::Merge(params))) => params.prediction,
        _ => MergeParams::default().prediction,
    }
}

fn read_responses(
    stage: &PlannedStage,
    traces: &[RecordBatch],
    prompts: &[RecordBatch],
    prediction: TracePrediction,
) -> Result<Responses, String> {
    let mut labels = BTreeMap::new();
    for batch in prompts {
        let (sample, label) = (column::<Int64Array>(batch, "sample")?, column::<Int8Array>(batch, "label")?);
        labels.extend(sample.values().iter().copied().zip(label.values().iter().copied()));
    }
    let mut found = Responses { stage: stage.name.to_string(), ..Responses::default() };
    let p = if prediction == TracePrediction::Parse { "p_parse" } else { "p_logit" };
    for batch in traces {
        let samples = column::<Int64Array>(batch, "sample")?;
        for sample in samples.values() {
            found.label.push(*labels.get(sample).ok_or_else(|| format!("sample {sample} has no prompt"))?);
        }
        found.tokens.extend(lists(batch, "tokens", |values: &Int32Array| values.values().to_vec())?);
        found.seconds.extend(lists(batch, "seconds", |values: &Float32Array| values.values().to_vec())?);
        found.p.extend(lists(batch, p, |values: &Float32Array| values.values().to_vec())?);
    }
    Ok(found)
}

fn lists<A: Array + 'static, T>(
    batch: &RecordBatch,
    name: &str,
    read: fn(&A) -> Vec<T>,
) -> Result<Vec<Vec<T>>, String> {
    let lists = column::<ListArray>(batch, name)?;
    (0..batch.num_rows())
        .map(|row| {
            let values = lists.value(row);
            let values = values.as_any().downcast_ref::<A>();
            values.map(read).ok_or_else(|| format!("its column `{name}` holds other lists than docs/artifacts.md says"))
        })
        .collect()
}
