//! `evaluate`: AUC, log loss and accuracy of every system, with bootstrap intervals.

use crate::{
    Columns, InputReader, OutputWriter, Stage, StageContext, StageError,
    columns::{Table, TableBuilder},
};
use rallrec_core::{params::EvaluateParams, task::Progress};
use rallrec_recsys::metrics::{self, Metric};

impl Stage for EvaluateParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let systems = inputs.tables("predictions", Columns::Only(&["label", "p"]))?;
        let mut rows = MetricRows::default();
        for (done, (name, batch)) in (1..).zip(&systems) {
            context.cancel.check()?;
            let table = Table::new(name, batch);
            let found = metrics::evaluate(table.i8("label")?, &table.f32_opt("p")?, self, context.seed)
                .map_err(|e| StageError::Invalid(format!("input {name}: {e}")))?;
            for (metric, value) in found.named() {
                rows.push(name, metric, value, found.samples, found.missing);
            }
            context.progress.report(Progress { done, total: systems.len() as u64, ..Progress::default() });
        }
        output.write("metrics", rows.table()?)
    }
}

#[derive(Default)]
struct MetricRows {
    system: Vec<String>,
    metric: Vec<String>,
    value: Vec<Option<f64>>,
    low: Vec<Option<f64>>,
    high: Vec<Option<f64>>,
    samples: Vec<i64>,
    missing: Vec<i64>,
}

impl MetricRows {
    fn push(&mut self, system: &str, metric: &str, value: Metric, samples: u64, missing: u64) {
        self.system.push(system.to_owned());
        self.metric.push(metric.to_owned());
        self.value.push(value.value);
        self.low.push(value.low);
        self.high.push(value.high);
        self.samples.push(samples as i64);
        self.missing.push(missing as i64);
    }

    fn table(self) -> Result<arrow_array::RecordBatch, StageError> {
        TableBuilder::default()
            .text("system", "Name of the stage that predicted.", self.system)
            .text("metric", "auc, logloss (nats) or accuracy.", self.metric)
            .f64_opt("value", "Missing where the metric is not defined.", self.value)
            .f64_opt("low", "Lower bound of the bootstrap interval.", self.low)
            .f64_opt("high", "Upper bound of the bootstrap interval.", self.high)
            .i64("samples", "Samples, with those missing.", self.samples)
            .i64("missing", "Samples without a prediction.", self.missing)
            .finish()
    }
}
