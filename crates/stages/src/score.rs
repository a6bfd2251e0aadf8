//! `score`: the probability of yes at the answer position, one forward pass a prompt (METHOD section 10).

use crate::{
    InputReader, OutputWriter, Stage, StageContext, StageError, adapter,
    columns::Table,
    language::{self, Meter, RowResults, probability},
    predictions::SampleColumns,
};
use rallrec_core::params::ScoreParams;

impl Stage for ScoreParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let model = adapter::model(context, inputs)?;
        let answers = [language::answer_token(&model, &self.yes)?, language::answer_token(&model, &self.no)?];
        let batch = inputs.table("prompts")?;
        let table = Table::new("prompts", &batch);
        let prompts = language::answer_prompts(&model, &table, &self.system, self.max_prompt_tokens)?;
        let tokens: Vec<i32> = prompts.iter().map(|p| p.as_ref().map_or(0, |t| t.len() as i32)).collect();
        let total = prompts.len();
        let mut meter = Meter::new(context);
        let scored = RowResults::of(prompts, |prompts| {
            model.score(&prompts, &answers, self.batch_tokens as usize, &mut meter.watch(total))
        })?;
        scored.record(context, output)?;
        meter.record(output);
        let logit = |answer: usize| scored.values.iter().map(|v| v.as_ref().map(|l| l[answer])).collect::<Vec<_>>();
        let p = scored.values.iter().map(|v| v.as_ref().map(|l| probability(l[0], l[1]))).collect();
        let out = SampleColumns::read(&table)?
            .begin()
            .f32_opt("p", "Probability of a like; missing for a bad row.", p)
            .f32_opt("logit_yes", "Logit of the answer yes.", logit(0))
            .f32_opt("logit_no", "Logit of the answer no.", logit(1))
            .i32("prompt_tokens", "Tokens of the prompt.", tokens)
            .text_opt("error", "Why the row failed.", scored.errors);
        output.write("predictions", out.finish()?)
    }
}
