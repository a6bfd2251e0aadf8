//! Samples answers: continuous batching in bounded memory, with keys and values shared wherever prompts are equal.
//!
//! A prompt is computed once, from the beginning that it shares with others (see [`crate::prefix`]); its samples branch
//! off from it. Whenever a sample ends, the next takes its place before the next step, so the batch stays full; the
//! longest prompts go first. Draws come from the generator that the caller gives with each sample; as logits do not
//! depend on the batch (on the CPU to the bit), neither does any text.
//!
//! Nobody knows how long an answer gets, and reserving the longest would leave most of the memory empty. So a sample
//! begins when there is room for its first page and for one more page of each sample in progress. When there is no
//! room for the next step, the samples that began last are paused: their keys and values are given up, and computed
//! again from their tokens when there is room. The sample that began first always goes on, so every call ends.

use crate::{
    LlmError,
    decoder::{Decoder, Step},
    host::floats,
    kv::{Keep, KvPool, PAGE, Sequence},
    memory,
    ops::Draw,
    prefill::{Done, OnProgress, Rows, check_prompt, not_finite},
    prefix::PrefixTree,
    sampler::{Drawn, Sampler, Sampling},
    stopping::{StopSearch, cut},
    tokenizer::TextTokenizer,
};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::{collections::VecDeque, time::Instant};

/// Prompt tokens that are computed at once when slots are refilled: enough for full speed, few enough that the
/// activations stay small.
const PREFILL_TOKENS: usize = 1024;

/// A prompt and the samples wanted of it.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// One generator a sample, from `rallrec_core::rng::row_rng`: the sample's every draw comes from it.
    pub samples: Vec<ChaCha8Rng>,
}

/// How many samples are in progress at once. It bounds memory and speed, and changes no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Samples at most.
    pub samples: usize,
    /// Bytes for keys and values; a quarter of the free memory if `None`. Exceeded only while a single sample is in
    /// progress, if it needs more beside its prompt and what other prompts begin with.
    pub kv_bytes: Option<u64>,
}

impl From<usize> for Slots {
    /// So many samples, in the memory that there is.
    fn from(samples: usize) -> Self {
        Self { samples, kv_bytes: None }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// One of the stop tokens was drawn.
    StopToken,
    /// The text has one of the stop texts.
    StopText,
    /// It has `max_new_tokens`.
    Length,
    /// Prompt and answer fill the model's context.
    Context,
}

impl Finish {
    /// Whether the model ended the answer, and no limit cut it off.
    pub fn is_natural(self) -> bool {
        matches!(self, Self::StopToken | Self::StopText)
    }
}

/// One sampled answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The answer without control tokens and stop text.
    pub text: String,
    /// The tokens drawn, the one that ended the answer included.
    pub tokens: Vec<u32>,
    /// Each token's log-probability, see [`crate::sampler::Drawn`].
    pub log_probabilities: Vec<f32>,
    /// Wall-clock seconds from the first token's draw to the last's, beside the batch's other samples.
    pub seconds: f32,
    /// Why it ended.
    pub finish: Finish,
}

impl Generation {
    /// Mean of the tokens' log-probabilities.
    pub fn mean_log_probability(&self) -> f32 {
        let sum: f64 = self.log_probabilities.iter().copied().map(f64::from).sum();
        (sum / self.log_probabilities.len() as f64) as f32
    }
}

/// See [`crate::LanguageModel::generate`].
pub(crate) fn generate(
    decoder: &Decoder,
    tokenizer: &TextTokenizer,
    requests: Vec<GenerateRequest>,
    sampling: &Sampling,
    slots: Slots,
    on_progress: OnProgress<'_>,
) -> Result<Rows<Vec<Generation>>, LlmError> {
    sampling.check()?;
    if slots.samples == 0 {
        return Err(LlmError::Argument("batch_size is 0; it must be 1 or more".into()));
    }
    let rules = Rules { tokenizer, sampling, context: decoder.config.context };
    let mut engine = Engine::new(decoder, rules, requests, slots);
    loop {
        engine.refill()?;
        if engine.slots.is_empty() {
            break;
        }
        if on_progress(engine.done()).is_break() {
            return Err(LlmError::Cancelled);
        }
        engine.step()?;
    }
    // The last report says that all is done; there is nothing left to stop.
    let _ = on_progress(engine.done());
    Ok(engine.results())
}

/// How tokens are drawn and when answers end.
#[derive(Clone, Copy)]
struct Rules<'a> {
    tokenizer: &'a TextTokenizer,
    sampling: &'a Sampling,
    context: usize,
}

/// A sample in progress, or paused.
struct Slot {
    row: usize,
    sample: usize,
    rng: ChaCha8Rng,
    /// Prompt and answer but for the last token drawn; nothing while it is paused.
    sequence: Sequence,
    tokens: Vec<u32>,
    log_probabilities: Vec<f32>,
    stop: StopSearch,
    started: Instant,
    state: SlotState,
}

#[derive(Clone, Copy, PartialEq)]
enum SlotState {
    Running,
    Ended(Finish),
    /// A logit was not a finite number.
    Broken,
}

/// A computed prompt whose samples have not all begun.
struct Ready {
    row: usize,
    sequence: Sequence,
    logits: Vec<f32>,
}

struct Engine<'a> {
    decoder: &'a Decoder,
    rules: Rules<'a>,
    batch_size: usize,
    /// Pages of the cache that may be used.
    max_pages: usize,
    /// Tokens of a forward pass over prompts.
    prefill_tokens: usize,
    pool: KvPool,
    prompts: Vec<Vec<u32>>,
    /// Of each row, the samples that have not begun.
    unbegun: Vec<VecDeque<(usize, ChaCha8Rng)>>,
    tree: PrefixTree,
    ready: VecDeque<Ready>,
    /// The one that began first goes on first: it is the last.
    paused: Vec<Slot>,
    /// In the order in which they began or went on.
    slots: Vec<Slot>,
    sampler: Sampler,
    answers: Vec<Vec<Option<Generation>>>,
    errors: Vec<Option<LlmError>>,
    /// But for `rows`, which is counted when it is asked for.
    done: Done,
}

impl<'a> Engine<'a> {
    fn new(decoder: &'a Decoder, rules: Rules<'a>, requests: Vec<GenerateRequest>, slots: Slots) -> Self {
        let answers = requests.iter().map(|request| vec![None; request.samples.len()]).collect();
        let (prompts, unbegun): (Vec<_>, Vec<VecDeque<_>>) = requests
            .into_iter()
            .map(|request| (request.prompt, request.samples.into_iter().enumerate().collect()))
            .unzip();
        let errors: Vec<_> =
            prompts.iter().enumerate().map(|(row, prompt)| check_prompt(decoder, row, prompt).err()).collect();
        let good = (0..prompts.len()).filter(|&row| errors[row].is_none() && !unbegun[row].is_empty());
        let (pool, bytes) = (decoder.pool(), decoder.default_bytes());
        Self {
            batch_size: slots.samples,
            max_pages: memory::pages_that_fit(&pool, slots.kv_bytes.unwrap_or(bytes)),
            prefill_tokens: decoder.tokens_at_once(PREFILL_TOKENS, bytes),
            tree: PrefixTree::new(&prompts, good.collect()),
            decoder,
            rules,
            pool,
            prompts,
            unbegun,
            ready: VecDeque::new(),
            paused: Vec::new(),
            slots: Vec::new(),
            sampler: Sampler::default(),
            answers,
            errors,
            done: Done::default(),
        }
    }

    /// Begins samples until all slots are taken, there is no room, or none are left.
    fn refill(&mut self) -> Result<(), LlmError> {
        while self.slots.len() < self.batch_size {
            if let Some(slot) = self.paused.last() {
                let tokens = self.prompts[slot.row].len() + slot.tokens.len();
                if !self.has_room(tokens.div_ceil(PAGE)) {
                    return Ok(());
                }
                self.go_on();
            } else if let Some(ready) = self.ready.front() {
                let (row, broken) = (ready.row, self.errors[ready.row].is_some());
                let Some((sample, rng)) = self.unbegun[row].pop_front().filter(|_| !broken) else {
                    self.ready.pop_front().into_iter().for_each(|ready| self.pool.release(ready.sequence));
                    continue;
                };
                if !self.has_room(1) {
                    self.unbegun[row].push_front((sample, rng));
                    return Ok(());
                }
                self.begin(sample, rng)?;
            } else if !self.prefill() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether so many more pages leave one for each sample in progress and the next. Always, when none is.
    fn has_room(&self, pages: usize) -> bool {
        self.slots.is_empty() || self.pool.used() + pages + self.slots.len() < self.max_pages
    }

    /// Begins the next sample of the first ready prompt.
    fn begin(&mut self, sample: usize, rng: ChaCha8Rng) -> Result<(), LlmError> {
        let ready = self.ready.pop_front().expect("the caller has seen it");
        let row = ready.row;
        let mut slot = Slot {
            row,
            sample,
            rng,
            sequence: Sequence::new(Keep::AllLayers),
            tokens: Vec::new(),
            log_probabilities: Vec::new(),
            stop: StopSearch::default(),
            started: Instant::now(),
            state: SlotState::Running,
        };
        let length = ready.sequence.len();
        slot.draw(&ready.logits, length, &self.prompts[row], self.rules, &mut self.sampler)?;
        self.done.tokens += 1;
        self.done.answer_tokens += 1;
        // The last sample takes the prompt's own cache.
        if self.unbegun[row].is_empty() {
            slot.sequence = ready.sequence;
        } else {
            if slot.state == SlotState::Running {
                slot.sequence = self.pool.fork(&ready.sequence, Keep::AllLayers);
            }
            self.ready.push_front(ready);
        }
        if slot.state == SlotState::Running {
            self.slots.push(slot)
        } else {
            self.end(slot)?
        }
        Ok(())
    }

    /// Computes the next prompts: enough samples to fill the free slots, within the token budget and the memory.
    /// Returns whether there was something to compute and room for it.
    fn prefill(&mut self) -> bool {
        let free = self.batch_size - self.slots.len();
        let (mut samples, mut tokens, mut pages) = (0, 0, 0);
        let (slots, used) = (self.slots.len(), self.pool.used());
        let (unbegun, max_tokens, max_pages) = (&self.unbegun, self.prefill_tokens, self.max_pages);
        let units = self.tree.take(|unit| {
            let first = tokens == 0;
            let enough = samples >= free;
            tokens += unit.tokens.len();
            pages += unit.pages();
            samples += if unit.is_shared() { 0 } else { unbegun[unit.row].len() };
            // As in `has_room`, for all samples that can begin with these: no prompt waits in memory for others' ends.
            let room = used + pages + slots + 2 * samples.clamp(1, free) <= max_pages;
            if first { slots == 0 || room } else { !enough && tokens <= max_tokens && room }
        });
        if units.is_empty() {
            return false;
        }
        for unit in units.iter().map(|&unit| self.tree.unit(unit)) {
            self.done.tokens += unit.tokens.len() as u64;
            if unit.is_shared() {
                self.done.shared_tokens += (unit.tokens.len() * (unit.prompts - 1)) as u64;
            } else {
                self.done.prompt_tokens += self.prompts[unit.row].len() as u64;
            }
        }
        let mut logits = Vec::new();
        let (decoder, how) = (self.decoder, (Keep::AllLayers, self.prefill_tokens));
        let sequences = self.tree.compute(decoder, &mut self.pool, &self.prompts, &units, how, |tree, x, spans| {
            let ends = spans.iter().filter(|span| span.complete && !tree.unit(span.unit).is_shared());
            let last: Vec<usize> = ends.map(|span| span.rows.end - 1).collect();
            if !last.is_empty() {
                let all = decoder.logits(&decoder.finish(x, &last));
                let all = floats(&all).chunks_exact(decoder.config.vocabulary);
                logits.extend(all.take(last.len()).map(<[f32]>::to_vec));
            }
        });
        let rests = units.iter().map(|&unit| self.tree.unit(unit)).filter(|unit| !unit.is_shared());
        let computed = rests.zip(sequences).zip(logits);
        self.ready.extend(computed.map(|((unit, sequence), logits)| Ready { row: unit.row, sequence, logits }));
        true
    }

    /// One more token for every slot; ended samples leave.
    fn step(&mut self) -> Result<(), LlmError> {
        self.pause_what_has_no_room();
        let mut steps: Vec<Step<'_>> = self
            .slots
            .iter_mut()
            .map(|slot| Step { tokens: &slot.tokens[slot.tokens.len() - 1..], sequence: &mut slot.sequence })
            .collect();
        let x = self.decoder.forward(&mut self.pool, &mut steps);
        let rows: Vec<usize> = (0..self.slots.len()).collect();
        let (rules, prompts) = (self.rules, &self.prompts);
        // The device's sampler knows no repetition penalty.
        if self.decoder.draws() && rules.sampling.repetition_penalty == 1.0 {
            let draws: Vec<Draw> = self.slots.iter_mut().map(|slot| slot.device_draw(rules.sampling)).collect();
            let drawn = self.decoder.draw(x, &rows, &draws);
            for (slot, drawn) in self.slots.iter_mut().zip(drawn) {
                slot.take(drawn, slot.sequence.len(), rules)?;
            }
        } else {
            let logits = self.decoder.logits(&self.decoder.finish(x, &rows));
            let logits = floats(&logits).par_chunks_exact(self.decoder.config.vocabulary);
            self.slots.par_iter_mut().zip(logits).try_for_each_init(Sampler::default, |sampler, (slot, logits)| {
                slot.draw(logits, slot.sequence.len(), &prompts[slot.row], rules, sampler)
            })?;
        }
        self.done.tokens += self.slots.len() as u64;
        self.done.answer_tokens += self.slots.len() as u64;
        for slot in self.slots.extract_if(.., |slot| slot.state != SlotState::Running).collect::<Vec<_>>() {
            self.end(slot)?;
        }
        Ok(())
    }

    /// Makes room for the pages that the next step begins.
    fn pause_what_has_no_room(&mut self) {
        loop {
            let begins_page = |slot: &&Slot| slot.sequence.len().is_multiple_of(PAGE);
            let new_pages = self.slots.iter().filter(begins_page).count();
            if self.slots.len() <= 1 || self.pool.used() + new_pages <= self.max_pages {
                return;
            }
            let Some(mut slot) = self.slots.pop() else { return };
            self.pool.release(std::mem::replace(&mut slot.sequence, Sequence::new(Keep::AllLayers)));
            tracing::debug!(row = slot.row, sample = slot.sample, tokens = slot.tokens.len(), "paused: memory is full");
            self.paused.push(slot);
        }
    }

    /// Computes a paused sample's tokens again and lets it go on.
    fn go_on(&mut self) {
        let Some(mut slot) = self.paused.pop() else { return };
        if let Some(ready) = self.ready.iter().find(|ready| ready.row == slot.row) {
            slot.sequence = self.pool.fork(&ready.sequence, Keep::AllLayers);
        }
        let drawn = slot.tokens.len() - 1;
        let tokens = [&self.prompts[slot.row], &slot.tokens[..drawn]].concat();
        let missing = &tokens[slot.sequence.len()..];
        for tokens in missing.chunks(self.prefill_tokens) {
            let _ = self.decoder.forward(&mut self.pool, &mut [Step { sequence: &mut slot.sequence, tokens }]);
        }
        self.done.tokens += missing.len() as u64;
        self.slots.push(slot);
    }

    fn end(&mut self, slot: Slot) -> Result<(), LlmError> {
        self.pool.release(slot.sequence);
        let SlotState::Ended(finish) = slot.state else {
            self.errors[slot.row] = Some(not_finite(slot.row));
            return Ok(());
        };
        let (sampling, tokens) = (self.rules.sampling, slot.tokens);
        let said = &tokens[..tokens.len() - usize::from(finish == Finish::StopToken)];
        self.answers[slot.row][slot.sample] = Some(Generation {
            text: cut(self.rules.tokenizer.decode(said)?, &sampling.stop_texts),
            tokens,
            log_probabilities: slot.log_probabilities,
            seconds: slot.started.elapsed().as_secs_f32(),
            finish,
        });
        Ok(())
    }

    fn done(&self) -> Done {
        let ended = |(answers, error): (&Vec<Option<Generation>>, &Option<LlmError>)| {
            error.is_some() || answers.iter().all(Option::is_some)
        };
        let rows = self.answers.iter().zip(&self.errors).filter(|&row| ended(row)).count();
        Done { rows, ..self.done }
    }

    fn results(self) -> Rows<Vec<Generation>> {
        let all = |answers: Vec<Option<Generation>>| {
            answers.into_iter().map(|answer| answer.expect("every sample of a row without error has ended")).collect()
        };
        let rows = self.answers.into_iter().zip(self.errors);
        rows.map(|(answers, error)| error.map_or_else(|| Ok(all(answers)), Err)).collect()
    }
}

impl Slot {
    /// Draws the next token and says whether the answer ends with it. `length` tokens are computed.
    fn draw(
        &mut self,
        logits: &[f32],
        length: usize,
        prompt: &[u32],
        rules: Rules<'_>,
        sampler: &mut Sampler,
    ) -> Result<(), LlmError> {
        let before = prompt.iter().chain(&self.tokens);
        let drawn = sampler.draw(logits, rules.sampling, before, &mut self.rng);
        self.take(drawn, length, rules)
    }

    /// What the device needs to draw the next token: the same number as [`Sampler::draw`] would draw.
    fn device_draw(&mut self, sampling: &Sampling) -> Draw {
        let Sampling { temperature, top_k, top_p, min_p, .. } = *sampling;
        let uniform = sampling.uniform(&mut self.rng).unwrap_or(0.0);
        Draw { temperature, top_k, top_p, min_p, uniform }
    }

    /// Takes the next token and says whether the answer ends with it.
    fn take(&mut self, drawn: Option<Drawn>, length: usize, rules: Rules<'_>) -> Result<(), LlmError> {
        let Rules { tokenizer, sampling, context } = rules;
        let Some(drawn) = drawn else {
            self.state = SlotState::Broken;
            return Ok(());
        };
        self.tokens.push(drawn.token);
        self.log_probabilities.push(drawn.log_probability);
        if sampling.stop_tokens.contains(&drawn.token) {
            self.state = SlotState::Ended(Finish::StopToken);
        } else if self.stop.found(&self.tokens, &sampling.stop_texts, tokenizer)? {
            self.state = SlotState::Ended(Finish::StopText);
        } else if self.tokens.len() >= sampling.max_new_tokens {
            self.state = SlotState::Ended(Finish::Length);
        } else if length >= context {
            // The token just drawn would take one more position when it is computed.
            self.state = SlotState::Ended(Finish::Context);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
