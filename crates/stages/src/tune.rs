//! `tune`: a low-rank adapter of the language model, trained on prompts and their labels (METHOD section 9).
//!
//! Prompts are made exactly as `score` makes them. Saves its state from time to time: an attempt that is cut off loses
//! seconds, and the next one ends with the same bytes.

use crate::{
    Columns, InputReader, Model, OutputWriter, Stage, StageContext, StageError,
    adapter::write_adapter,
    columns::{Table, TableBuilder},
    language::{self, Language, Prompt, probability},
};
use arrow_array::RecordBatch;
use rallrec_core::{
    params::{AdapterTarget, TuneParams},
    task::Progress,
};
use rallrec_llm::{
    AdapterSettings, LanguageModel, LlmError, StepRecord, Target, TuneHooks, TuneProgress, TuneSample, TuneSettings,
    Tuned,
};
use rallrec_recsys::metrics;
use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

/// Where a prompt's table goes in the number that its dropout follows from: samples have smaller numbers.
const TABLE_SHIFT: u32 = 48;

impl Stage for TuneParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let Language::Local(model) = language::model(context)? else {
            return Err(StageError::Invalid("a model behind a server cannot be tuned; name one with `source:`".into()));
        };
        let answers = [language::answer_token(&model, &self.yes)?, language::answer_token(&model, &self.no)?];
        let samples = learned(self, &model, answers, inputs, output)?;
        let valid = match inputs.has("valid") {
            true => Some(validation(self, &model, &inputs.table("valid", Columns::Only(&["label", "prompt"]))?)?),
            false => None,
        };
        if let Some(valid) = &valid {
            valid.check()?;
        }
        let left_out = valid.as_ref().map(|valid| valid.left_out);
        let settings = settings(self, context.seed, samples.len());
        let mut hooks = Hooks {
            context,
            params: self,
            answers,
            valid,
            every: Duration::from_secs(u64::from(self.checkpoint_seconds)),
            saved_at: Instant::now(),
            failed: None,
        };
        let base = context.model.as_ref().and_then(|model| match model {
            Model::Local(source) => Some(source.digest.as_str()),
            Model::Remote(_) => None,
        });
        let tuned = train(&model, &samples, &settings, base, &mut hooks)?;
        output.metric("samples", samples.len() as f64);
        if let Some(left_out) = left_out {
            output.metric("valid_left_out", left_out as f64);
        }
        output.metric("tokens", samples.iter().map(|sample| sample.tokens.len() as f64).sum());
        record(&tuned, output);
        write_adapter(&tuned.adapter, output)?;
        output.write("steps", steps(&tuned.history)?)
    }
}

/// The prompts that can be learned from; the others are bad rows, by their position among all prompts.
fn learned(
    params: &TuneParams,
    model: &Arc<LanguageModel>,
    [yes, no]: [u32; 2],
    inputs: &dyn InputReader,
    output: &mut dyn OutputWriter,
) -> Result<Vec<TuneSample>, StageError> {
    let mut samples = Vec::new();
    let mut row = 0;
    let tables = inputs.tables("prompts", Columns::Only(&["sample", "label", "prompt"]))?;
    for (number, (name, batch)) in tables.iter().enumerate() {
        let table = Table::new(name, batch);
        let (ids, labels) = (table.i64("sample")?, table.i8("label")?);
        for ((tokens, id), label) in encoded(params, model, &table)?.into_iter().zip(ids).zip(labels) {
            let answer = if *label == 1 { yes } else { no };
            let id = ((number as u64) << TABLE_SHIFT) | id.cast_unsigned();
            match tokens {
                Ok(tokens) => samples.push(TuneSample { id, tokens, answer }),
                Err(reason) => output.bad_row(row, &reason)?,
            }
            row += 1;
        }
    }
    if samples.is_empty() {
        let what = "there is no prompt to tune on; feed prompts of the training samples (dataset.train)";
        return Err(StageError::Invalid(what.into()));
    }
    Ok(samples)
}

/// The validation prompts with their labels; what cannot be read is left out, and counted.
fn validation(params: &TuneParams, model: &Arc<LanguageModel>, batch: &RecordBatch) -> Result<Validation, StageError> {
    let table = Table::new("valid", batch);
    let mut valid = Validation { prompts: Vec::new(), labels: Vec::new(), left_out: 0 };
    for (row, (tokens, label)) in encoded(params, model, &table)?.into_iter().zip(table.i8("label")?).enumerate() {
        match tokens {
            Ok(tokens) => {
                valid.prompts.push(tokens);
                valid.labels.push(*label);
            }
            Err(reason) => {
                tracing::warn!(row, reason, "a validation prompt is left out");
                valid.left_out += 1;
            }
        }
    }
    Ok(valid)
}

/// The prompts' tokens; one that is longer than the pipeline or the model allows is an error of its row.
fn encoded(
    params: &TuneParams,
    model: &Arc<LanguageModel>,
    table: &Table<'_>,
) -> Result<Vec<Result<Vec<u32>, String>>, StageError> {
    let context = model.config().context;
    let model = Language::Local(model.clone());
    let prompts = language::answer_prompts(&model, table, &params.system, params.max_prompt_tokens)?;
    let tokens = |prompt: Prompt| match prompt.into_tokens() {
        tokens if tokens.len() <= context => Ok(tokens),
        tokens => Err(format!(
            "the prompt has {} tokens, and the model's context is {context}; shorten the history (with.k of retrieve)",
            tokens.len()
        )),
    };
    Ok(prompts.into_iter().map(|prompt| prompt.and_then(tokens)).collect())
}

fn settings(params: &TuneParams, seed: u64, samples: usize) -> TuneSettings {
    let batch_size = params.batch_size as usize;
    let steps_an_epoch = samples.div_ceil(batch_size) as u64;
    let steps = steps_an_epoch * u64::from(params.epochs);
    TuneSettings {
        adapter: AdapterSettings {
            rank: params.rank as usize,
            alpha: params.alpha,
            dropout: params.dropout,
            targets: params.targets.iter().map(|&target| module(target)).collect(),
        },
        learning_rate: params.learning_rate,
        warmup_steps: (params.warmup * steps as f64).round() as u64,
        weight_decay: params.weight_decay,
        clip: params.clip,
        epochs: u64::from(params.epochs),
        batch_size,
        eval_steps: if params.eval_steps == 0 { steps_an_epoch } else { u64::from(params.eval_steps) },
        patience: u64::from(params.patience),
        seed,
        micro_tokens: params.batch_tokens as usize,
        memory_bytes: params.keep_mb as usize * (1 << 20),
    }
}

fn module(target: AdapterTarget) -> Target {
    match target {
        AdapterTarget::Query => Target::Query,
        AdapterTarget::Key => Target::Key,
        AdapterTarget::Value => Target::Value,
        AdapterTarget::Output => Target::Output,
        AdapterTarget::Gate => Target::Gate,
        AdapterTarget::Up => Target::Up,
        AdapterTarget::Down => Target::Down,
    }
}

/// Goes on from what an earlier attempt saved, or begins.
fn train(
    model: &LanguageModel,
    samples: &[TuneSample],
    settings: &TuneSettings,
    base: Option<&str>,
    hooks: &mut Hooks<'_>,
) -> Result<Tuned, StageError> {
    let saved = hooks.context.checkpoints.latest()?;
    let mut tuned = model.tune(samples, settings, base, saved.as_deref(), hooks);
    if let (Some(_), Err(LlmError::State(error))) = (&saved, &tuned) {
        tracing::warn!(error, "a checkpoint cannot be used; the training begins again");
        tuned = model.tune(samples, settings, base, None, hooks);
    }
    match (tuned, hooks.failed.take()) {
        (_, Some(failed)) => Err(failed),
        (tuned, None) => Ok(tuned?),
    }
}

struct Validation {
    prompts: Vec<Vec<u32>>,
    labels: Vec<i8>,
    left_out: usize,
}

impl Validation {
    /// Refuses prompts that have no AUC: better than to learn it after the first steps.
    fn check(&self) -> Result<(), StageError> {
        let likes = self.labels.iter().filter(|&&label| label == 1).count();
        if likes > 0 && likes < self.labels.len() {
            return Ok(());
        }
        Err(StageError::Invalid(format!(
            "input valid: {likes} of its {} prompts that can be read are of likes, and an AUC needs both likes and others; give more prompts (with.limit of retrieve), or leave `valid` out",
            self.labels.len()
        )))
    }
}

/// What the training asks and tells.
struct Hooks<'a> {
    context: &'a StageContext<'a>,
    params: &'a TuneParams,
    answers: [u32; 2],
    valid: Option<Validation>,
    every: Duration,
    saved_at: Instant,
    /// Why a validation failed; the training is then stopped.
    failed: Option<StageError>,
}

impl Hooks<'_> {
    fn go_on(&self) -> ControlFlow<()> {
        if self.context.cancel.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn auc(&self, tuned: &LanguageModel, valid: &Validation) -> Result<Option<f64>, StageError> {
        let tokens = self.params.batch_tokens as usize;
        let scored = tuned.score(&valid.prompts, &self.answers, tokens, &mut |_| self.go_on())?;
        let p = scored.into_iter().map(|logits| logits.map(|l| probability(l[0], l[1])));
        let p = p.collect::<Result<Vec<f32>, _>>()?;
        metrics::auc(&valid.labels, &p).map_err(|e| StageError::Invalid(format!("input valid: {e}")))
    }
}

impl TuneHooks for Hooks<'_> {
    fn progress(&mut self, at: TuneProgress) -> ControlFlow<()> {
        let progress = Progress { done: at.samples, total: at.of, tokens: at.tokens, loss: at.loss };
        self.context.progress.report(progress);
        self.go_on()
    }

    fn validate(&mut self, tuned: &LanguageModel) -> ControlFlow<(), Option<f64>> {
        let Some(valid) = &self.valid else { return ControlFlow::Continue(None) };
        match self.auc(tuned, valid) {
            Ok(auc) => ControlFlow::Continue(auc),
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn wants_state(&mut self) -> bool {
        self.saved_at.elapsed() >= self.every
    }

    fn save(&mut self, state: Vec<u8>) -> ControlFlow<()> {
        // A training that cannot be saved can still be finished.
        if let Err(error) = self.context.checkpoints.save(state) {
            tracing::warn!(%error, "cannot save a checkpoint");
        }
        self.saved_at = Instant::now();
        ControlFlow::Continue(())
    }
}

/// Leaves what became of the training in the manifest.
fn record(tuned: &Tuned, output: &mut dyn OutputWriter) {
    output.metric("steps", tuned.history.len() as f64);
    output.metric("best_step", tuned.step as f64);
    if let (Some(first), Some(last)) = (tuned.history.first(), tuned.history.last()) {
        output.metric("loss_first", first.loss);
        output.metric("loss_last", last.loss);
    }
    if let Some(auc) = tuned.history.iter().find(|r| r.step == tuned.step).and_then(|r| r.validation) {
        output.metric("valid_auc", auc);
    }
}

fn steps(history: &[StepRecord]) -> Result<RecordBatch, StageError> {
    let some = |value: fn(&StepRecord) -> f64| history.iter().map(|record| Some(value(record))).collect();
    TableBuilder::default()
        .i64("step", "Number, from 1.", history.iter().map(|record| record.step.cast_signed()).collect())
        .i64(
            "epoch",
            "Pass over the prompts, from 0.",
            history.iter().map(|record| record.epoch.cast_signed()).collect(),
        )
        .f64_opt("loss", "Mean cross entropy of the step's answers, before the step.", some(|r| r.loss))
        .f64_opt("learning_rate", "Of the step.", some(|r| r.learning_rate))
        .f64_opt("gradient_norm", "Before clipping.", some(|r| r.gradient_norm))
        .f64_opt(
            "valid_auc",
            "AUC on the validation prompts after the step, where it was measured.",
            history.iter().map(|r| r.validation).collect(),
        )
        .finish()
}
