//! `score`: the probability of yes at the answer position, one forward pass a prompt (METHOD section 10).

use crate::{
    Columns, InputReader, OutputWriter, Stage, StageContext, StageError, adapter,
    columns::Table,
    language::{self, RowResults, probability},
    meter::Meter,
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
        let answers = [model.answer(&self.yes)?, model.answer(&self.no)?];
        let batch = inputs.table("prompts", Columns::Only(&SampleColumns::and("prompt")))?;
        let table = Table::new("prompts", &batch);
        let prompts = language::answer_prompts(&model, &table, &self.system, self.max_prompt_tokens)?;
        let total = prompts.len();
        let mut meter = Meter::new(context);
        let scored = RowResults::of(prompts, |prompts| {
            model.score(prompts, &answers, self.batch_tokens as usize, &mut meter.watch(total))
        })?;
        scored.record(context, output)?;
        let tokens: Vec<i32> = scored.prompt_tokens.iter().map(|t| *t as i32).collect();
        model.account(&meter, output);
        let logit = |answer: usize| scored.values.iter().map(|v| v.as_ref().map(|l| l[answer])).collect::<Vec<_>>();
        let p = scored.values.iter().map(|v| v.as_ref().map(|l| probability(l[0], l[1]))).collect();
        let out = SampleColumns::read(&table)?
            .begin()
            .f32_opt("p", "Probability of a like; missing for a bad row.", p)
            .f32_opt("logit_yes", "Logit of the answer yes; of a model behind a server its log-probability.", logit(0))
            .f32_opt("logit_no", "Logit of the answer no, likewise.", logit(1))
            .i32("prompt_tokens", "Tokens of the prompt.", tokens)
            .text_opt("error", "Why the row failed.", scored.errors);
        output.write("predictions", out.finish()?)
    }
}
