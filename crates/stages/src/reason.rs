//! `reason`: sampled reasoning traces and what each predicts (METHOD sections 11 and 12).

use crate::{
    Columns, InputReader, OutputWriter, Stage, StageContext, StageError, adapter,
    columns::{Table, TableBuilder},
    language::{self, Language, Prompt, Request, RowResults, Trace, probability},
    meter::Meter,
    predictions::same_rows,
};
use rallrec_core::{params::ReasonParams, rng::row_rng};
use rallrec_recsys::{prompt::reasoning_prompt, trace::parse_prediction};

/// Tokens computed together when the traces are read again for their logits: bounds memory, not results.
const RESCORE_TOKENS: usize = 4096;

impl Stage for ReasonParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let model = adapter::model(context, inputs)?;
        let batch = inputs.table("prompts", Columns::Only(&["sample", "prompt"]))?;
        let table = Table::new("prompts", &batch);
        let sample = table.i64("sample")?;
        let asked = asked(self, &table, inputs)?;
        let texts = asked.iter().map(|prompt| Ok(language::chat(&model, "", prompt)?.followed_by(&self.think_open)));
        let prompts = language::encode_all(&model, texts, self.max_prompt_tokens as usize);
        let mut meter = Meter::new(context);
        let traces = sample_traces(self, context, &model, &prompts, sample, &mut meter)?;
        traces.record(context, output)?;
        let p_logit = rescore(self, &model, &prompts, &traces.values, &mut meter)?;
        model.account(&meter, output);
        let finished = traces.values.iter().flatten().flatten().filter(|trace| trace.finished);
        output.metric("traces_finished", finished.count() as f64);
        let out = TableBuilder::default()
            .i64("sample", "Position among all samples.", sample.to_vec())
            .text("prompt", "What was asked, with the hint, before the chat template.", asked)
            .text_lists("text", "The traces, without what opens the thinking.", each(&traces, |t| t.text.clone()))
            .i32_lists("tokens", "Tokens of each trace.", each(&traces, |t| t.tokens as i32))
            .f32_lists("seconds", "Seconds from each trace's first to last token.", each(&traces, |t| t.seconds))
            .f32_lists(
                "log_probability",
                "Mean natural log-probability of each trace's tokens in the model's own distribution.",
                each(&traces, |t| t.log_probability),
            )
            .f32_lists(
                "p_parse",
                "1 yes, 0 no, 0.5 neither, read from each trace's text.",
                each(&traces, |t| parse_prediction(&t.text, &self.think_close, &self.yes, &self.no)),
            )
            .f32_lists(
                "p_logit",
                "Softmax over yes and no after each trace; NaN if it left no room in the context, or a server did not tell.",
                p_logit,
            )
            .text_opt("error", "Why the row failed.", traces.errors);
        output.write("traces", out.finish()?)
    }
}

/// A value of every trace of every row; none for rows that failed.
fn each<T>(traces: &RowResults<Vec<Trace>>, value: impl Fn(&Trace) -> T) -> Vec<Vec<T>> {
    traces.values.iter().map(|row| row.iter().flatten().map(&value).collect()).collect()
}

/// The prompts with the hints of the tuned model's predictions.
fn asked(params: &ReasonParams, prompts: &Table<'_>, inputs: &dyn InputReader) -> Result<Vec<String>, StageError> {
    let predictions = if inputs.has("predictions") {
        let batch = inputs.table("predictions", Columns::Only(&["sample", "p"]))?;
        let table = Table::new("predictions", &batch);
        same_rows("sample", ("prompts", prompts.i64("sample")?), ("predictions", table.i64("sample")?))?;
        table.f32_opt("p")?
    } else {
        vec![None; prompts.rows()]
    };
    let texts = prompts.text("prompt")?.into_iter().zip(predictions);
    Ok(texts.map(|(text, p)| reasoning_prompt(text, params.hint, p.map(f64::from))).collect())
}

/// The traces of every prompt.
fn sample_traces(
    params: &ReasonParams,
    context: &StageContext<'_>,
    model: &Language,
    prompts: &[Result<Prompt, String>],
    sample: &[i64],
    meter: &mut Meter<'_>,
) -> Result<RowResults<Vec<Trace>>, StageError> {
    let sampling = language::sampling!(params, model);
    let good: Vec<u64> = prompts.iter().zip(sample).filter(|(p, _)| p.is_ok()).map(|(_, s)| *s as u64).collect();
    RowResults::of(prompts.to_vec(), |prompts| {
        let request = |(prompt, row): (Prompt, u64)| Request {
            prompt,
            samples: (0..u64::from(params.samples)).map(|n| row_rng(context.seed, "reason", row, n)).collect(),
        };
        let requests = prompts.into_iter().zip(good).map(request).collect();
        let slots = language::slots(params.batch_size, params.kv_bytes);
        // Where what closes the thinking is a control token, the text must show it: the answer begins there.
        model.generate(requests, &sampling, slots, Some(&params.think_close), &mut meter.watch(sample.len()))
    })
}

/// The probability of yes after every trace: prompt, trace, closed thinking, then the answer position.
fn rescore(
    params: &ReasonParams,
    model: &Language,
    prompts: &[Result<Prompt, String>],
    traces: &[Option<Vec<Trace>>],
    meter: &mut Meter<'_>,
) -> Result<Vec<Vec<f32>>, StageError> {
    let answers = [model.answer(&params.yes)?, model.answer(&params.no)?];
    let close = params.think_close.as_str();
    let mut closed = Vec::new();
    for (prompt, traces) in prompts.iter().zip(traces) {
        let (Ok(prompt), Some(traces)) = (prompt, traces) else { continue };
        for trace in traces {
            let thought = trace.text.rsplit_once(close).map_or(trace.text.as_str(), |(before, _)| before);
            closed.push(model.followed_by(prompt, &format!("{thought}{close}\n\n"))?);
        }
    }
    let mut scored = model.score(closed, &answers, RESCORE_TOKENS, &mut meter.watch_quietly())?.rows.into_iter();
    let mut next = || match scored.next() {
        Some(Ok(logits)) => probability(logits[0], logits[1]),
        // A trace that fills the context, or after which a server does not tell both answers.
        Some(Err(_)) | None => f32::NAN,
    };
    Ok(traces.iter().map(|row| row.iter().flatten().map(|_| next()).collect()).collect())
}
