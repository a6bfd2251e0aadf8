//! Trains a low-rank adapter on frozen weights: cross entropy of one answer token a sample (METHOD section 9).
//!
//! A training is a pure function of the model, the samples, the settings and the validation: its state can be saved
//! after any part of a step and continued elsewhere, and ends with the same bytes. On the CPU neither the samples
//! computed together nor the memory for what is kept change a bit of it. Deliberately absent: tokens and prompts
//! (the caller's), the validation's metric (the caller's), clocks, files, other losses.
//!
//! ```text
//! mod        steps, schedule, validation, early stop      state      what is saved
//!  `- gradient    samples to loss and gradients           optimizer  gradients to a step
//!      |- block   one block, forward and backward         draw       random numbers
//!      |   |- attention, rows   what lies between its products
//!      `---`- lora    a product with its adapter
//! ```

mod attention;
mod block;
pub(crate) mod draw;
mod gradient;
mod lora;
mod optimizer;
pub(crate) mod rows;
mod state;

use crate::{Adapter, AdapterSettings, LanguageModel, LlmError, prefill::check_prompt};
use gradient::Gradient;
use lora::Draws;
use optimizer::{clip, linear_schedule};
use rallrec_core::rng::row_rng;
use serde::{Deserialize, Serialize};
use state::{Best, State};
use std::ops::ControlFlow;

/// One sample to learn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TuneSample {
    /// Identity, which its dropout follows from. Two samples of a training must not share one.
    pub id: u64,
    /// The prompt; its last token is where the answer is asked for.
    pub tokens: Vec<u32>,
    /// The token that should follow.
    pub answer: u32,
}

/// How an adapter is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct TuneSettings {
    /// Size of the adapter.
    pub adapter: AdapterSettings,
    /// Peak of the linear schedule.
    pub learning_rate: f64,
    /// Steps in which the learning rate rises from 0.
    pub warmup_steps: u64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this Euclidean norm; 0 for no limit.
    pub clip: f64,
    /// Passes over the samples.
    pub epochs: u64,
    /// Samples a step.
    pub batch_size: usize,
    /// Steps between two validations; 0 for one at the end.
    pub eval_steps: u64,
    /// Validations without a better one before training stops; 0 for no early stop.
    pub patience: u64,
    /// Seed of the first A, the order of the samples, and dropout.
    pub seed: u64,
    /// Tokens computed together; bounds memory, not results.
    pub micro_tokens: usize,
    /// Bytes that blocks may keep for the way back; the others are computed twice.
    pub memory_bytes: usize,
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number, from 1.
    pub step: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Mean loss of the step's samples, before the step.
    pub loss: f64,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// What the validation after it gave.
    pub validation: Option<f64>,
}

/// How far a training is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuneProgress {
    /// Samples done, each as often as it was seen.
    pub samples: u64,
    /// Samples to do.
    pub of: u64,
    /// Tokens computed by this call.
    pub tokens: u64,
    /// Loss of the last whole step.
    pub loss: Option<f64>,
}

/// What a training asks and tells while it runs. [`ControlFlow::Break`] ends it with [`LlmError::Cancelled`].
pub trait TuneHooks {
    /// Hears how far it is, after every few samples.
    fn progress(&mut self, at: TuneProgress) -> ControlFlow<()>;

    /// Measures the model with the adapter as it is; larger is better. `None` when there is nothing to measure with; a
    /// score that is not finite counts as none.
    fn validate(&mut self, tuned: &LanguageModel) -> ControlFlow<(), Option<f64>>;

    /// Whether the state should be saved now. Asked after every few samples.
    fn wants_state(&mut self) -> bool;

    /// Takes the state, which [`LanguageModel::tune`] continues from.
    fn save(&mut self, state: Vec<u8>) -> ControlFlow<()>;
}

/// A finished training.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuned {
    /// The adapter of the best validation, or of the end where there was none.
    pub adapter: Adapter,
    /// Every step.
    pub history: Vec<StepRecord>,
    /// The step after which the adapter was as it is.
    pub step: u64,
}

impl LanguageModel {
    /// Trains an adapter from the beginning, or from a saved state of the same training. `base` is the digest of this
    /// model, which the adapter names.
    ///
    /// # Errors
    /// [`LlmError::Argument`] for settings or samples that make no sense, [`LlmError::Prompt`] for a sample that the
    /// model cannot read, [`LlmError::State`] for a state of another training, [`LlmError::Diverged`],
    /// [`LlmError::Cancelled`].
    pub fn tune(
        &self,
        samples: &[TuneSample],
        settings: &TuneSettings,
        base: Option<&str>,
        saved: Option<&[u8]>,
        hooks: &mut dyn TuneHooks,
    ) -> Result<Tuned, LlmError> {
        let initial = Adapter::new(self.config(), settings.adapter.clone(), settings.seed, base)?;
        self.tune_from(initial, samples, settings, saved, hooks)
    }

    /// As [`Self::tune`], from a given adapter, whose rank, alpha, dropout and targets count instead of the settings'.
    ///
    /// # Errors
    /// As [`Self::tune`]; [`LlmError::Adapter`] for an adapter of another model.
    pub fn tune_from(
        &self,
        initial: Adapter,
        samples: &[TuneSample],
        settings: &TuneSettings,
        saved: Option<&[u8]>,
        hooks: &mut dyn TuneHooks,
    ) -> Result<Tuned, LlmError> {
        initial.check(self.config())?;
        initial.settings().check()?;
        settings.check()?;
        self.check_samples(samples)?;
        let state = match saved {
            Some(bytes) => State::decode(bytes, &initial)?,
            None => State::new(&initial),
        };
        let steps_an_epoch = samples.len().div_ceil(settings.batch_size) as u64;
        let training = Training {
            model: self,
            samples,
            settings,
            steps_an_epoch,
            steps: settings.epochs.saturating_mul(steps_an_epoch),
            shape: initial,
            state,
            tokens: 0,
        };
        training.check_state()?;
        training.run(hooks)
    }

    /// Loss of each sample and the gradient of their mean, as the first step of a training without dropout sees them,
    /// whatever the adapter's own dropout: for comparison with other implementations. The gradients are in the order of
    /// [`Adapter::values`].
    ///
    /// # Errors
    /// [`LlmError::Argument`] without samples, [`LlmError::Prompt`] for a sample that the model cannot read,
    /// [`LlmError::Adapter`] for an adapter of another model.
    pub fn adapter_gradients(
        &self,
        adapter: &Adapter,
        samples: &[TuneSample],
        memory_bytes: usize,
    ) -> Result<(Vec<f64>, Vec<f32>), LlmError> {
        adapter.check(self.config())?;
        self.check_samples(samples)?;
        let adapter = adapter.without_dropout();
        let mut gradients = vec![0.0; adapter.values().len()];
        let gradient = Gradient {
            decoder: &self.decoder,
            adapter: &adapter,
            draws: Draws { seed: 0, epoch: 0 },
            memory_bytes,
            weight: 1.0 / samples.len() as f64,
        };
        let losses = gradient.add(&samples.iter().collect::<Vec<_>>(), &mut gradients);
        Ok((losses, gradients))
    }

    fn check_samples(&self, samples: &[TuneSample]) -> Result<(), LlmError> {
        if samples.is_empty() {
            return Err(LlmError::Argument("there is no sample to tune on".into()));
        }
        for (row, sample) in samples.iter().enumerate() {
            check_prompt(&self.decoder, row, &sample.tokens)?;
            if sample.answer as usize >= self.config().vocabulary {
                let what = format!("the answer token {} is not in the vocabulary", sample.answer);
                return Err(LlmError::Prompt { row, what });
            }
        }
        Ok(())
    }
}

impl TuneSettings {
    /// Refuses what makes no sense; the adapter's size is checked with the adapter.
    fn check(&self) -> Result<(), LlmError> {
        if self.batch_size == 0 || self.epochs == 0 {
            let what = "tuning needs a batch size and a number of epochs of 1 or more";
            return Err(LlmError::Argument(what.into()));
        }
        let numbers = [("learning_rate", self.learning_rate), ("weight_decay", self.weight_decay), ("clip", self.clip)];
        match numbers.into_iter().find(|(_, number)| !(number.is_finite() && *number >= 0.0)) {
            Some((name, number)) => Err(LlmError::Argument(format!("{name} is {number}; it must be 0 or more"))),
            None => Ok(()),
        }
    }
}

/// A training in work.
struct Training<'a> {
    model: &'a LanguageModel,
    samples: &'a [TuneSample],
    settings: &'a TuneSettings,
    steps_an_epoch: u64,
    steps: u64,
    /// Its shape; the numbers are the state's.
    shape: Adapter,
    state: State,
    tokens: u64,
}

impl Training<'_> {
    /// Refuses a state that no training of these samples and settings can be in.
    fn check_state(&self) -> Result<(), LlmError> {
        let wrong = |what: String| Err(LlmError::State(format!("{what}: it is of another training")));
        let State { optimizer, done, history, validated, best, .. } = &self.state;
        let steps = optimizer.steps;
        if steps > self.steps {
            return wrong(format!("it is after step {steps} of {}", self.steps));
        }
        let records = history.iter().map(|record| record.step);
        if !records.eq(1..=steps) {
            return wrong(format!("it is after step {steps}, and its history is of {} steps", history.len()));
        }
        let samples = if steps < self.steps { self.batch().len() } else { 1 };
        if *done >= samples {
            return wrong(format!("{done} samples are done of a step of {samples}"));
        }
        let chosen = best.as_ref().map_or(0, |best| best.step);
        if *validated > steps || chosen > *validated {
            return wrong(format!("it is after step {steps}, and was validated after step {}", chosen.max(*validated)));
        }
        Ok(())
    }

    fn run(mut self, hooks: &mut dyn TuneHooks) -> Result<Tuned, LlmError> {
        let stopped = |flow: ControlFlow<()>| if flow.is_break() { Err(LlmError::Cancelled) } else { Ok(()) };
        stopped(hooks.progress(self.progress()))?;
        loop {
            if self.owes_validation() {
                self.validate(hooks)?;
            }
            if self.is_over() {
                break;
            }
            self.part_of_step()?;
            stopped(hooks.progress(self.progress()))?;
            if hooks.wants_state() {
                stopped(hooks.save(self.state.encode()?))?;
            }
        }
        let last = self.state.optimizer.steps;
        let (step, values) = match self.state.best {
            Some(best) => (best.step, best.values),
            None => (last, self.state.values),
        };
        Ok(Tuned { adapter: self.shape.with_values(values)?, history: self.state.history, step })
    }

    /// Samples of the step in work, longest first: in the order in which they are computed.
    fn batch(&self) -> Vec<usize> {
        let step = self.state.optimizer.steps;
        let (epoch, number) = (step / self.steps_an_epoch, (step % self.steps_an_epoch) as usize);
        let mut rng = row_rng(self.settings.seed, "tune.shuffle", epoch, 0);
        let order = draw::permutation(&mut rng, self.samples.len());
        let batch = order.chunks(self.settings.batch_size).nth(number).unwrap_or_default();
        let mut batch = batch.to_vec();
        // Samples of one length by their place in the list, so that the order is the same wherever it is made.
        batch.sort_by_key(|&sample| (std::cmp::Reverse(self.samples[sample].tokens.len()), sample));
        batch
    }

    /// Computes the next few samples of a step, and takes the step when they are the last.
    fn part_of_step(&mut self) -> Result<(), LlmError> {
        let batch = self.batch();
        let rest = &batch[self.state.done..];
        let mut tokens = 0;
        let fit = rest.iter().take_while(|&&sample| {
            tokens += self.samples[sample].tokens.len();
            tokens <= self.settings.micro_tokens
        });
        let count = fit.count().max(1);
        let part: Vec<&TuneSample> = rest[..count].iter().map(|&sample| &self.samples[sample]).collect();
        self.tokens += part.iter().map(|sample| sample.tokens.len() as u64).sum::<u64>();
        let adapter = self.shape.with_values(std::mem::take(&mut self.state.values))?;
        let gradient = Gradient {
            decoder: &self.model.decoder,
            adapter: &adapter,
            draws: Draws { seed: self.settings.seed, epoch: self.state.optimizer.steps / self.steps_an_epoch },
            memory_bytes: self.settings.memory_bytes,
            weight: 1.0 / batch.len() as f64,
        };
        let losses = gradient.add(&part, &mut self.state.gradients);
        self.state.values = adapter.into_values();
        if let Some(&loss) = losses.iter().find(|loss| !loss.is_finite()) {
            return Err(LlmError::Diverged { step: self.state.optimizer.steps + 1, loss });
        }
        self.state.done += count;
        losses.iter().for_each(|loss| self.state.loss += loss);
        if self.state.done == batch.len() {
            self.step(batch.len())?;
        }
        Ok(())
    }

    fn step(&mut self, samples: usize) -> Result<(), LlmError> {
        let (state, settings) = (&mut self.state, self.settings);
        let number = state.optimizer.steps;
        let loss = state.loss / samples as f64;
        let gradient_norm = clip(&mut state.gradients, settings.clip);
        let diverged = LlmError::Diverged { step: number + 1, loss };
        if !gradient_norm.is_finite() {
            return Err(diverged);
        }
        let learning_rate = settings.learning_rate * linear_schedule(number, settings.warmup_steps, self.steps);
        state.optimizer.step(&mut state.values, &state.gradients, learning_rate, settings.weight_decay);
        if state.values.iter().any(|value| !value.is_finite()) {
            return Err(diverged);
        }
        let epoch = number / self.steps_an_epoch;
        state.history.push(StepRecord {
            step: number + 1,
            epoch,
            loss,
            learning_rate,
            gradient_norm,
            validation: None,
        });
        state.gradients.fill(0.0);
        state.loss = 0.0;
        state.done = 0;
        Ok(())
    }

    /// Whether a validation is due that has not been made: a question of the state, so that one that was interrupted is
    /// made after all.
    fn owes_validation(&self) -> bool {
        let Some(last) = self.state.history.last().filter(|_| self.state.done == 0) else { return false };
        let due = last.step == self.steps
            || (self.settings.eval_steps > 0 && last.step.is_multiple_of(self.settings.eval_steps));
        due && self.state.validated < last.step
    }

    fn validate(&mut self, hooks: &mut dyn TuneHooks) -> Result<(), LlmError> {
        let tuned = self.model.with_adapter(&self.shape.with_values(self.state.values.clone())?)?;
        let ControlFlow::Continue(score) = hooks.validate(&tuned) else { return Err(LlmError::Cancelled) };
        let state = &mut self.state;
        let Some(last) = state.history.last_mut() else { return Ok(()) };
        state.validated = last.step;
        let given = score;
        let score = given.filter(|score| score.is_finite());
        if score != given {
            tracing::warn!(step = last.step, score = given, "a validation's score is no number and does not count");
        }
        last.validation = score;
        let Some(score) = score else { return Ok(()) };
        if state.best.as_ref().is_none_or(|best| score > best.score) {
            state.best = Some(Best { step: last.step, score, values: state.values.clone() });
            state.since_best = 0;
        } else {
            state.since_best += 1;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let patience = self.settings.patience;
        self.state.optimizer.steps == self.steps || (patience > 0 && self.state.since_best >= patience)
    }

    fn progress(&self) -> TuneProgress {
        let (epochs, steps) = (self.state.optimizer.steps / self.steps_an_epoch, self.state.optimizer.steps);
        let whole = (steps % self.steps_an_epoch) as usize * self.settings.batch_size + self.state.done;
        TuneProgress {
            samples: epochs * self.samples.len() as u64 + whole as u64,
            of: self.settings.epochs.saturating_mul(self.samples.len() as u64),
            tokens: self.tokens,
            loss: self.state.history.last().map(|record| record.loss),
        }
    }
}
