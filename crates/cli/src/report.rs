//! `report`: the metrics of a run, read back from its artifacts; and with `--out` all that there is to tell of some runs.

mod collect;
mod figures;
mod page;
mod paper;
mod tables;
mod text;
mod whole;

use crate::{
    args::{ReportArgs, ReportFormat},
    console::Console,
    failure::Failure,
    history, run_names,
};
use arrow_array::{Array, Float64Array, Int64Array, RecordBatch, StringArray};
use rallrec_core::{
    ids::RunId,
    kind::StageKind,
    plan::{Plan, PlannedStage},
};
use rallrec_store::Store;
use serde::Serialize;

/// One metric of one system.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetricRow {
    /// The stage that evaluated it.
    pub stage: String,
    /// The stage that predicted.
    pub system: String,
    /// `auc`, `logloss` or `accuracy`.
    pub metric: String,
    /// Its value; `None` where it is not defined.
    pub value: Option<f64>,
    /// Lower end of its interval.
    pub low: Option<f64>,
    /// Upper end of its interval.
    pub high: Option<f64>,
    /// Samples.
    pub samples: i64,
    /// Samples without a prediction.
    pub missing: i64,
}

/// Writes or prints the report that a command line asks for.
///
/// # Errors
/// [`Failure::Invalid`] when a run is unknown or has not got so far, or when arguments do not go together.
pub async fn report(store: &Store, args: &ReportArgs, console: &Console) -> Result<(), Failure> {
    match (&args.out, args.runs.as_slice()) {
        (Some(out), runs) => whole::write(store, runs, &args.sweep, out, console).await,
        (None, [run]) if args.sweep.is_empty() => show(store, run, args.format, console).await,
        (None, _) => {
            Err(Failure::Invalid("several runs and --sweep need --out FOLDER, where the report is written".to_owned()))
        }
    }
}

/// Prints the report of a run.
async fn show(store: &Store, run: &str, format: ReportFormat, console: &Console) -> Result<(), Failure> {
    let run = run_names::resolve(&store.runs().await?, run)?;
    let plan = history::plan(store, &run).await?;
    let text = match format {
        ReportFormat::Md => markdown(store, &plan).await?,
        ReportFormat::Json => {
            let metrics = metrics(store, &plan).await?;
            if metrics.is_empty() {
                None
            } else {
                Some(serde_json::to_string_pretty(&metrics).map_err(anyhow::Error::from)?)
            }
        }
    };
    console.print(&text.ok_or_else(|| nothing_yet(&run, &plan, format))?);
    Ok(())
}

fn nothing_yet(run: &RunId, plan: &Plan, format: ReportFormat) -> Failure {
    let kind = if format == ReportFormat::Md { StageKind::Report } else { StageKind::Evaluate };
    if plan.stages.iter().any(|s| s.kind == kind) {
        Failure::Invalid(format!("run {run} has not finished its `{kind}` stage; run its pipeline again to resume it"))
    } else {
        Failure::Invalid(format!("pipeline `{}` of run {run} has no `{kind}` stage; add one", plan.pipeline))
    }
}

/// The committed reports of a plan, one after the other; `None` when there are none.
///
/// # Errors
/// When the store cannot be reached or a table is not what it should be.
pub async fn markdown(store: &Store, plan: &Plan) -> Result<Option<String>, Failure> {
    let mut reports = Vec::new();
    for stage in plan.stages.iter().filter(|s| s.kind == StageKind::Report) {
        let mut lines = Vec::new();
        for batch in table(store, stage, "report").await? {
            let text = column::<StringArray>(&batch, stage, "text")?;
            lines.extend((0..batch.num_rows()).map(|i| text.value(i).to_owned()));
        }
        if !lines.is_empty() {
            reports.push(lines.join("\n"));
        }
    }
    Ok((!reports.is_empty()).then(|| reports.join("\n\n")))
}

/// The committed metrics of a plan.
///
/// # Errors
/// As [`markdown`].
pub async fn metrics(store: &Store, plan: &Plan) -> Result<Vec<MetricRow>, Failure> {
    let mut rows = Vec::new();
    for stage in plan.stages.iter().filter(|s| s.kind == StageKind::Evaluate) {
        rows.extend(metrics_of(store, stage).await?);
    }
    Ok(rows)
}

/// The committed metrics of one `evaluate` stage; none when it has not got so far.
///
/// # Errors
/// As [`markdown`].
pub async fn metrics_of(store: &Store, stage: &PlannedStage) -> Result<Vec<MetricRow>, Failure> {
    let mut rows = Vec::new();
    for batch in table(store, stage, "metrics").await? {
        let (system, metric) =
            (column::<StringArray>(&batch, stage, "system")?, column::<StringArray>(&batch, stage, "metric")?);
        let number = |name| column::<Float64Array>(&batch, stage, name);
        let (value, low, high) = (number("value")?, number("low")?, number("high")?);
        let (samples, missing) =
            (column::<Int64Array>(&batch, stage, "samples")?, column::<Int64Array>(&batch, stage, "missing")?);
        let at = |array: &Float64Array, i| array.is_valid(i).then(|| array.value(i));
        rows.extend((0..batch.num_rows()).map(|i| MetricRow {
            stage: stage.name.to_string(),
            system: system.value(i).to_owned(),
            metric: metric.value(i).to_owned(),
            value: at(value, i),
            low: at(low, i),
            high: at(high, i),
            samples: samples.value(i),
            missing: missing.value(i),
        }));
    }
    Ok(rows)
}

/// Batches of a committed table of a one-task stage; none when it is not committed.
async fn table(store: &Store, stage: &PlannedStage, name: &str) -> Result<Vec<RecordBatch>, Failure> {
    let Some(manifest) = store.manifest(&stage.stage_key).await? else { return Ok(Vec::new()) };
    let table =
        manifest.tables.get(name).ok_or_else(|| anyhow::anyhow!("artifact {} has no table `{name}`", manifest.key))?;
    Ok(store.read_table(table, None).await?.1)
}

fn column<'a, A: 'static>(batch: &'a RecordBatch, stage: &PlannedStage, name: &str) -> Result<&'a A, Failure> {
    let column = batch.column_by_name(name).and_then(|c| c.as_any().downcast_ref::<A>());
    column.ok_or_else(|| {
        Failure::Other(anyhow::anyhow!("stage {}: column `{name}` is not as docs/artifacts.md says", stage.name))
    })
}
