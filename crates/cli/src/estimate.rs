//! What is left of a plan, in rows, tokens, time and bytes, by what tasks like its own took in earlier runs. It only tells:
//! nothing is decided by it.
//!
//! A stage is like another when it has the same kind and model, prompts with as many entries, and, where it writes texts,
//! the same longest text. Of kinds that are one task also all parameters must be the same, as nobody can tell how their time grows. What no run in
//! the store has done stays unknown; how many tokens can be written at most is known from the parameters alone.

use crate::{console, failure::Failure, learned::Reader, preview::StagePreview};
use rallrec_core::{
    ids::{RowRange, RunId},
    kind::StageKind,
    models::PinnedModel,
    params::StageParams,
    plan::{Plan, PlannedStage},
};
use rallrec_store::{Manifest, Store};
use serde::Serialize;

/// Latest runs that are looked at.
const RUNS: usize = 16;
/// Manifests that are read for one plan.
const MANIFESTS: usize = 256;

/// What is left of a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Work {
    /// Rows still to be made: at most so many, where their table is not there yet. `None` where nothing tells.
    pub rows: Option<u64>,
    /// Tokens that can be written at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_written: Option<u64>,
    /// What tasks like these took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expected>,
}

/// What is expected by an earlier run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Expected {
    /// Seconds of one slot.
    pub seconds: f64,
    /// Those of them that hold an accelerator.
    pub gpu_seconds: f64,
    /// Tokens of prompts.
    pub tokens_read: f64,
    /// Tokens of answers.
    pub tokens_written: f64,
    /// Bytes in the store.
    pub bytes: f64,
    /// The run that it was seen in.
    pub run: RunId,
}

/// What is left of each stage, in the plan's order.
///
/// # Errors
/// When the store cannot be reached.
pub async fn estimate(store: &Store, plan: &Plan, previews: &[StagePreview]) -> Result<Vec<Work>, Failure> {
    let mut work: Vec<Work> = Vec::new();
    for (at, (stage, preview)) in plan.stages.iter().zip(previews).enumerate() {
        let rows = stage.drive().and_then(|_| preview.rows.or_else(|| most_rows(plan, at)));
        let left = match (preview.tasks, rows) {
            (Some(tasks), Some(rows)) if tasks > 0 => Some(rows - rows.min(rows * preview.reused / tasks)),
            (_, rows) => rows,
        };
        work.push(Work {
            rows: left,
            most_written: left.and_then(|rows| Some(rows.saturating_mul(most_written(stage)?))),
            expected: None,
        });
    }
    let mut open: Vec<usize> = (0..previews.len()).filter(|&at| !previews[at].is_complete()).collect();
    let mut reader = Reader::new(store, MANIFESTS);
    for run in store.runs().await?.into_iter().rev().take(RUNS) {
        if open.is_empty() {
            break;
        }
        let Some(earlier) = reader.plan(&run).await? else { continue };
        let mut still = Vec::new();
        for at in open {
            match seen(&mut reader, &run, &earlier, (plan, &plan.stages[at])).await? {
                Some(seen) => work[at].expected = seen.of(&plan.stages[at], work[at].rows, run.clone()),
                None => still.push(at),
            }
        }
        open = still;
    }
    Ok(work)
}

/// Rows of a stage at most, when the table that drives it is not there: by limits and counts between it and its data set.
fn most_rows(plan: &Plan, at: usize) -> Option<u64> {
    let (mut stage, mut most) = (plan.stages.get(at)?, None::<u64>);
    loop {
        let own = match stage.params().ok()? {
            StageParams::Sample(params) => Some(u64::from(params.count)),
            params => params.row_limit(),
        };
        most = match (most, own) {
            (Some(most), Some(own)) => Some(most.min(own)),
            (most, own) => most.or(own),
        };
        match stage.drive() {
            Some(need) => stage = plan.stages.get(need.stage as usize)?,
            None => return most,
        }
    }
}

/// Tokens that a row can have written at most.
fn most_written(stage: &PlannedStage) -> Option<u64> {
    match stage.params().ok()? {
        StageParams::Describe(params) => Some(u64::from(params.max_new_tokens)),
        StageParams::Reason(params) => Some(u64::from(params.samples) * u64::from(params.max_new_tokens)),
        _ => None,
    }
}

/// Traces a row, by which its time grows.
fn traces(stage: &PlannedStage) -> f64 {
    match stage.params() {
        Ok(StageParams::Reason(params)) => f64::from(params.samples),
        _ => 1.0,
    }
}

fn is_like(stage: &PlannedStage, other: &PlannedStage) -> bool {
    let same_model = match (&stage.model, &other.model) {
        (Some(PinnedModel::Local { files: a, precision: p }), Some(PinnedModel::Local { files: b, precision: q })) => {
            a.digest == b.digest && p == q
        }
        (a, b) => a == b,
    };
    let same_length = match (stage.params(), other.params()) {
        (Ok(StageParams::Describe(a)), Ok(StageParams::Describe(b))) => a.max_new_tokens == b.max_new_tokens,
        (Ok(StageParams::Reason(a)), Ok(StageParams::Reason(b))) => a.max_new_tokens == b.max_new_tokens,
        _ => true,
    };
    let one_task = stage.drive().is_none();
    stage.kind == other.kind && same_model && same_length && (!one_task || stage.params == other.params)
}

/// What the length of a stage's prompts depends on: entries of history, and the text round them.
fn prompts_of(plan: &Plan, stage: &PlannedStage) -> Option<(u32, String)> {
    let from = plan.stages.get(stage.drive()?.stage as usize)?;
    match from.params().ok()? {
        StageParams::Retrieve(params) => Some((params.k, params.template)),
        _ => None,
    }
}

/// What some tasks took.
#[derive(Default)]
struct Seen {
    rows: f64,
    traces: f64,
    seconds: f64,
    gpu_seconds: f64,
    tokens_read: f64,
    tokens_written: f64,
    bytes: f64,
}

impl Seen {
    fn add(&mut self, manifest: &Manifest) {
        let metric = |name: &str| manifest.metrics.get(name).copied().unwrap_or(0.0);
        self.rows += manifest.rows.map_or(1.0, |rows: RowRange| (rows.end - rows.start) as f64);
        self.seconds += manifest.seconds;
        self.gpu_seconds += if metric("gpu_held_mb") > 0.0 { manifest.seconds } else { 0.0 };
        self.tokens_read +=
            metric("tokens_read") + if manifest.kind == StageKind::Tune { metric("tokens") } else { 0.0 };
        self.tokens_written += metric("tokens_written");
        self.bytes +=
            manifest.tables.values().flat_map(|table| &table.parts).map(|part| part.bytes as f64).sum::<f64>();
    }

    /// The same for what is left of a stage; `None` where it is not known how much that is.
    fn of(&self, stage: &PlannedStage, rows: Option<u64>, run: RunId) -> Option<Expected> {
        let factor = match stage.drive() {
            None => 1.0,
            Some(_) => rows? as f64 / self.rows.max(1.0) * traces(stage) / self.traces,
        };
        Some(Expected {
            seconds: self.seconds * factor,
            gpu_seconds: self.gpu_seconds * factor,
            tokens_read: self.tokens_read * factor,
            tokens_written: self.tokens_written * factor,
            bytes: self.bytes * factor,
            run,
        })
    }
}

/// What some tasks of a run took that are like the stage's.
async fn seen(
    reader: &mut Reader<'_>,
    run: &RunId,
    earlier: &Plan,
    (plan, like): (&Plan, &PlannedStage),
) -> Result<Option<Seen>, Failure> {
    let like_it = |stage: &&PlannedStage| is_like(like, stage) && prompts_of(plan, like) == prompts_of(earlier, stage);
    for stage in earlier.stages.iter().filter(like_it) {
        let mut seen = Seen { traces: traces(stage), ..Seen::default() };
        for key in reader.tasks(earlier, stage).await? {
            // What that run took from an earlier one tells as much.
            if let Some(manifest) = reader.manifest(&key).await? {
                seen.add(&manifest);
            }
        }
        if seen.rows > 0.0 {
            tracing::debug!(%run, stage = %like.name, "an estimate was found");
            return Ok(Some(seen));
        }
    }
    Ok(None)
}

/// The estimates as lines of a table; none where nothing is left that they tell of.
pub fn lines(plan: &Plan, previews: &[StagePreview], work: &[Work]) -> Vec<String> {
    let heads =
        ["left to run", "rows", "tokens read", "written", "at most", "slot time", "GPU-hours", "storage", "as in run"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let mut total = Expected {
        seconds: 0.0,
        gpu_seconds: 0.0,
        tokens_read: 0.0,
        tokens_written: 0.0,
        bytes: 0.0,
        run: RunId(String::new()),
    };
    let mut unknown = 0;
    for ((stage, preview), work) in plan.stages.iter().zip(previews).zip(work) {
        if preview.is_complete() {
            continue;
        }
        let dash = || "-".to_owned();
        let mut row = vec![stage.name.to_string(), work.rows.map_or_else(dash, console::thousands)];
        let most = work.most_written.map_or_else(dash, console::thousands);
        match &work.expected {
            Some(found) => {
                row.extend(cells(found, most));
                row.push(found.run.to_string());
                total.seconds += found.seconds;
                total.gpu_seconds += found.gpu_seconds;
                total.tokens_read += found.tokens_read;
                total.tokens_written += found.tokens_written;
                total.bytes += found.bytes;
            }
            None => {
                unknown += 1;
                row.extend([dash(), dash(), most, dash(), dash(), dash(), dash()]);
            }
        }
        rows.push(row);
    }
    let known = rows.len() - 1 - unknown;
    if known == 0 && work.iter().all(|work| work.most_written.is_none()) {
        return Vec::new();
    }
    if known > 0 {
        let name = if unknown == 0 { "all".to_owned() } else { format!("all but {unknown}") };
        let mut row = vec![name, String::new()];
        row.extend(cells(&total, String::new()));
        row.push(String::new());
        rows.push(row);
    }
    console::columns(&rows)
}

fn cells(found: &Expected, most: String) -> [String; 6] {
    let tokens = |n: f64| if n > 0.0 { console::thousands(n.round() as u64) } else { "-".to_owned() };
    [
        tokens(found.tokens_read),
        tokens(found.tokens_written),
        most,
        crate::clock::duration(found.seconds),
        format!("{:.2}", found.gpu_seconds / 3600.0),
        console::bytes(found.bytes.round() as u64),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preview::preview;
    use rallrec_core::{
        ids::{Attempt, TimeMs},
        plan::Pins,
        spec::compile,
    };

    const PIPELINE: &str = "
rallrec: 1
name: p
params: {samples: 2, longest: 100, k: 5, count: 40}
models: {m: {source: smollm2-135m-instruct}}
data: {r: {source: movielens-100k}}
stages:
  dataset: {kind: dataset, data: r}
  sample: {kind: sample, needs: {samples: dataset.test}, with: {count: \"${count}\"}}
  retrieve:
    kind: retrieve
    needs: {samples: sample, items: dataset.items, users: dataset.users, interactions: dataset.interactions}
    with: {variant: simple, k: \"${k}\"}
  reason:
    kind: reason
    needs: {prompts: retrieve}
    model: m
    with: {hint: none, samples: \"${samples}\", max_new_tokens: \"${longest}\"}
";

    fn plan(set: &[(&str, &str)]) -> Plan {
        let set: Vec<(String, String)> = set.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let pipeline = compile("p.yaml", PIPELINE, &set).expect("compiles");
        let digest = |name: &str| (name.to_owned(), "0".repeat(64));
        let pins = Pins { models: [digest("m")].into(), data: [digest("r")].into(), ..Pins::default() };
        Plan::new(&pipeline, &pins).expect("pinned")
    }

    fn manifest(stage: &PlannedStage, rows: u64) -> Manifest {
        serde_json::from_value(serde_json::json!({
            "version": 1, "key": "k", "kind": stage.kind, "stage": stage.name, "rows": {"start": 0, "end": rows}, "run": "r1",
            "attempt": Attempt(1), "producer": "test", "committed_at_ms": TimeMs(0), "seconds": 20.0, "fields": {}, "tables": {},
            "metrics": {"tokens_read": 1000.0, "tokens_written": 300.0}, "bad_rows": []
        }))
        .expect("a manifest")
    }

    #[tokio::test]
    async fn what_nobody_did_is_known_by_its_limits_alone() {
        let plan = plan(&[]);
        let store = Store::memory();
        let work = estimate(&store, &plan, &preview(&store, &plan).await.unwrap()).await.unwrap();
        assert_eq!(work[2], Work { rows: Some(40), ..Work::default() });
        assert_eq!(work[3], Work { rows: Some(40), most_written: Some(40 * 2 * 100), expected: None });
    }

    #[test]
    fn work_grows_with_rows_and_traces_of_what_is_alike() {
        let (old, new) = (plan(&[]), plan(&[("samples", "6"), ("count", "80")]));
        let (before, now) = (&old.stages[3], &new.stages[3]);
        assert!(is_like(now, before) && prompts_of(&new, now) == prompts_of(&old, before));
        let mut seen = Seen { traces: traces(before), ..Seen::default() };
        seen.add(&manifest(before, 10));
        let found = seen.of(now, Some(80), RunId("r1".into())).expect("rows are known");
        assert_eq!((found.seconds, found.tokens_read, found.tokens_written), (480.0, 24_000.0, 7_200.0));
        assert_eq!(found.gpu_seconds, 0.0);
        assert!(seen.of(now, None, RunId("r1".into())).is_none());

        let longer = plan(&[("longest", "200")]);
        assert!(!is_like(&longer.stages[3], before), "how long texts become by themselves is not known");
        let more = plan(&[("k", "30")]);
        assert_ne!(prompts_of(&more, &more.stages[3]), prompts_of(&old, before));
        assert!(!is_like(&more.stages[1], &new.stages[1]), "one task with other parameters");
    }
}
