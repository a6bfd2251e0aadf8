//! `report`: the metrics as Markdown.

use crate::{
    Columns, InputReader, OutputWriter, Stage, StageContext, StageError,
    columns::{Table, TableBuilder},
};
use arrow_array::RecordBatch;
use rallrec_core::{params::ReportParams, task::Progress};
use rallrec_recsys::{
    metrics::{Metric, SystemMetrics},
    report::report_lines,
};

impl Stage for ReportParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let mut systems = Vec::new();
        for (name, batch) in inputs.tables("metrics", Columns::All)? {
            systems.append(&mut read_metrics(&name, &batch)?);
        }
        let lines = report_lines(&self.title, &systems);
        let count = lines.len();
        let table = TableBuilder::default().i32("line", "Position.", (0..count as i32).collect()).text(
            "text",
            "A line of Markdown.",
            lines,
        );
        context.progress.report(Progress { done: count as u64, total: count as u64, ..Progress::default() });
        output.write("report", table.finish()?)
    }
}

/// The systems of a metrics table, in its order.
fn read_metrics(name: &str, batch: &RecordBatch) -> Result<Vec<(String, SystemMetrics)>, StageError> {
    let table = Table::new(name, batch);
    let (system, metric) = (table.text("system")?, table.text("metric")?);
    let (value, low, high) = (table.f64_opt("value")?, table.f64_opt("low")?, table.f64_opt("high")?);
    let (samples, missing) = (table.i64("samples")?, table.i64("missing")?);
    let mut systems: Vec<(String, SystemMetrics)> = Vec::new();
    for row in 0..table.rows() {
        if systems.last().is_none_or(|(last, _)| last != system[row]) {
            let empty = SystemMetrics {
                auc: Metric::default(),
                log_loss: Metric::default(),
                accuracy: Metric::default(),
                samples: samples[row] as u64,
                missing: missing[row] as u64,
            };
            systems.push((system[row].to_owned(), empty));
        }
        let Some((_, found)) = systems.last_mut() else { continue };
        let read = Metric { value: value[row], low: low[row], high: high[row] };
        match metric[row] {
            "auc" => found.auc = read,
            "logloss" => found.log_loss = read,
            "accuracy" => found.accuracy = read,
            other => {
                return Err(StageError::Invalid(format!(
                    "input {name}, row {row}: unknown metric {other:?}; known are auc, logloss, accuracy"
                )));
            }
        }
    }
    Ok(systems)
}
