//! `merge`: consistency-based merging of tuned and reasoning predictions (eq. 10).

use crate::{
    Columns, InputReader, OutputWriter, Stage, StageContext, StageError,
    columns::Table,
    predictions::{SampleColumns, same_rows},
};
use rallrec_core::{
    params::{MergeParams, TracePrediction},
    task::Progress,
};
use rallrec_recsys::merge::{Merged, merge};

impl Stage for MergeParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let tuned = inputs.tables("predictions", Columns::Only(&SampleColumns::and("p")))?;
        let (first, batch) =
            tuned.first().ok_or_else(|| StageError::Invalid("merge needs at least one table of predictions".into()))?;
        let samples = SampleColumns::read(&Table::new(first, batch))?;
        let mut adapters = Vec::new();
        for (name, batch) in &tuned {
            let table = Table::new(name, batch);
            same_rows("sample", (first, &samples.sample), (name, table.i64("sample")?))?;
            adapters.push(table.f32_opt("p")?);
        }
        let column = match self.prediction {
            TracePrediction::Parse => "p_parse",
            TracePrediction::Logit => "p_logit",
        };
        let batch = inputs.table("traces", Columns::Only(&["sample", column]))?;
        let traces = Table::new("traces", &batch);
        same_rows("sample", (first, &samples.sample), ("traces", traces.i64("sample")?))?;
        let traces = traces.f32_lists(column)?;
        let merged: Vec<Merged> = (0..samples.sample.len())
            .map(|row| {
                let tuned: Vec<_> = adapters.iter().map(|p| p[row]).collect();
                let reason: Vec<_> = traces[row].iter().copied().map(Some).collect();
                merge(&tuned, &reason, self)
            })
            .collect();
        let column = |value: fn(&Merged) -> Option<f64>| merged.iter().map(|m| value(m).map(|v| v as f32)).collect();
        let rows = samples.sample.len() as u64;
        let table = samples
            .begin()
            .f32_opt("p", "Merged probability of a like; missing for a bad row.", column(|m| m.p))
            .f32_opt("p_tuned", "Mean over the tuned adapters.", column(|m| m.p_tuned))
            .f32_opt("p_reason", "Mean over the reasoning traces.", column(|m| m.p_reason))
            .f32_opt("var_tuned", "Variance over the tuned adapters.", column(|m| m.var_tuned))
            .f32_opt("var_reason", "Variance over the reasoning traces.", column(|m| m.var_reason));
        context.progress.report(Progress { done: rows, total: rows, ..Progress::default() });
        output.write("predictions", table.finish()?)
    }
}
