//! Samples answers: continuous batching with the prompt's keys and values shared between its samples.
//!
//! A request's prompt is computed once; its samples branch off from it. Whenever a sample finishes, the next takes its
//! place before the next step, so the batch stays full. Draws come from the generator that the caller gives with each
//! sample; as logits do not depend on the batch (on the CPU to the bit), neither does any text.

use crate::{
    LlmError,
    decoder::{Decoder, Step},
    host::floats,
    kv::{Keep, KvPool, Sequence},
    ops::Draw,
    prefill::{Done, OnProgress, Rows, check_prompt, shared_tokens},
    sampler::next_token,
    tokenizer::TextTokenizer,
};
use rand_chacha::{ChaCha8Rng, rand_core::Rng};
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

/// How tokens are drawn and when an answer ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Draws from the smallest set of tokens with this probability; 1 for all.
    pub top_p: f32,
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// Tokens that end an answer. They are in `tokens`, not in `text`.
    pub stop_tokens: Vec<u32>,
    /// Texts that end an answer. They are cut from `text`, and what came after them.
    pub stop_texts: Vec<String>,
}

impl Sampling {
    fn check(&self) -> Result<(), LlmError> {
        let wrong = |what: String| Err(LlmError::Argument(what));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong(format!("temperature is {}; it must be 0 or more", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong(format!("top_p is {}; it must be above 0 and at most 1", self.top_p));
        }
        if self.max_new_tokens == 0 {
            return wrong("max_new_tokens is 0; it must be 1 or more".into());
        }
        if self.stop_texts.iter().any(String::is_empty) {
            return wrong("a stop text is empty".into());
        }
        Ok(())
    }
}

/// One sampled answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The answer without control tokens and stop text.
    pub text: String,
    /// The tokens drawn, the one that ended the answer included.
    pub tokens: Vec<u32>,
    /// Wall-clock seconds from the first token's draw to the last's, beside the batch's other samples.
    pub seconds: f32,
    /// Whether it ended by itself; `false` when `max_new_tokens` or the context cut it off.
    pub finished: bool,
}

/// See [`crate::LanguageModel::generate`].
pub(crate) fn generate(
    decoder: &Decoder,
    tokenizer: &TextTokenizer,
    requests: Vec<GenerateRequest>,
    sampling: &Sampling,
    batch_size: usize,
    on_progress: OnProgress<'_>,
) -> Result<Rows<Vec<Generation>>, LlmError> {
    sampling.check()?;
    if batch_size == 0 {
        return Err(LlmError::Argument("batch_size is 0; it must be 1 or more".into()));
    }
    let mut engine = Engine::new(decoder, tokenizer, requests, sampling, batch_size);
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

/// A sample in progress.
struct Slot {
    row: usize,
    sample: usize,
    rng: ChaCha8Rng,
    sequence: Sequence,
    tokens: Vec<u32>,
    started: Instant,
    /// The last drawing: whether the answer goes on.
    state: SlotState,
}

#[derive(Clone, Copy, PartialEq)]
enum SlotState {
    Running,
    Ended {
        finished: bool,
    },
    /// No logit was finite.
    Broken,
}

/// A computed prompt whose samples have not all begun.
struct Ready {
    row: usize,
    sequence: Sequence,
    logits: Vec<f32>,
    samples: VecDeque<(usize, ChaCha8Rng)>,
}

struct Engine<'a> {
    decoder: &'a Decoder,
    tokenizer: &'a TextTokenizer,
    sampling: &'a Sampling,
    batch_size: usize,
    pool: KvPool,
    /// What all prompts begin with.
    base: Sequence,
    waiting: VecDeque<(usize, GenerateRequest)>,
    ready: VecDeque<Ready>,
    slots: Vec<Slot>,
    answers: Vec<Vec<Option<Generation>>>,
    errors: Vec<Option<LlmError>>,
    tokens: u64,
}

impl<'a> Engine<'a> {
    fn new(
        decoder: &'a Decoder,
        tokenizer: &'a TextTokenizer,
        requests: Vec<GenerateRequest>,
        sampling: &'a Sampling,
        batch_size: usize,
    ) -> Self {
        let mut errors = Vec::with_capacity(requests.len());
        let answers = requests.iter().map(|request| vec![None; request.samples.len()]).collect();
        let mut waiting = VecDeque::new();
        for (row, request) in requests.into_iter().enumerate() {
            errors.push(check_prompt(decoder, row, &request.prompt).err());
            if errors[row].is_none() && !request.samples.is_empty() {
                waiting.push_back((row, request));
            }
        }
        let mut pool = decoder.pool();
        let mut base = Sequence::new(Keep::AllLayers);
        let shared = shared_tokens(waiting.iter().map(|(_, request)| request.prompt.as_slice()));
        if shared > 0 {
            let tokens = &waiting[0].1.prompt[..shared];
            let mut steps = [Step { sequence: &mut base, tokens }];
            let _ = decoder.forward(&mut pool, &mut steps);
        }
        Self {
            decoder,
            tokenizer,
            sampling,
            batch_size,
            pool,
            base,
            waiting,
            ready: VecDeque::new(),
            slots: Vec::new(),
            answers,
            errors,
            tokens: shared as u64,
        }
    }

    /// Begins samples until all slots are taken or none are left.
    fn refill(&mut self) -> Result<(), LlmError> {
        while self.slots.len() < self.batch_size {
            let Some(mut ready) = self.ready.pop_front() else {
                if self.waiting.is_empty() {
                    return Ok(());
                }
                self.prefill();
                continue;
            };
            let Some((sample, rng)) = ready.samples.pop_front() else {
                self.pool.release(ready.sequence);
                continue;
            };
            let sequence = self.pool.fork(&ready.sequence, Keep::AllLayers);
            let (tokens, started, state) = (Vec::new(), Instant::now(), SlotState::Running);
            let mut slot = Slot { row: ready.row, sample, rng, sequence, tokens, started, state };
            slot.draw(&ready.logits, self.sampling, self.tokenizer, self.decoder.config.context)?;
            self.tokens += 1;
            self.ready.push_front(ready);
            if slot.state == SlotState::Running { self.slots.push(slot) } else { self.end(slot)? }
        }
        Ok(())
    }

    /// Computes the next prompts: enough samples to fill the free slots, within the token budget.
    fn prefill(&mut self) {
        let free = self.batch_size - self.slots.len();
        let shared = self.base.len();
        let (mut requests, mut samples, mut tokens) = (Vec::new(), 0, 0);
        while let Some((_, next)) = self.waiting.front() {
            tokens += next.prompt.len() - shared;
            if !requests.is_empty() && (samples >= free || tokens > PREFILL_TOKENS) {
                break;
            }
            samples += next.samples.len();
            requests.extend(self.waiting.pop_front());
        }
        let mut sequences: Vec<Sequence> =
            requests.iter().map(|_| self.pool.fork(&self.base, Keep::AllLayers)).collect();
        let mut last_rows = Vec::new();
        let mut end = 0;
        let mut steps = Vec::new();
        for (sequence, (_, request)) in sequences.iter_mut().zip(&requests) {
            let own = &request.prompt[shared..];
            end += own.len();
            last_rows.push(end - 1);
            steps.push(Step { sequence, tokens: own });
        }
        let x = self.decoder.forward(&mut self.pool, &mut steps);
        self.tokens += end as u64;
        let logits = self.decoder.logits(&self.decoder.finish(x, &last_rows));
        let logits = floats(&logits).chunks_exact(self.decoder.config.vocabulary);
        for (((row, request), sequence), logits) in requests.into_iter().zip(sequences).zip(logits) {
            let samples = request.samples.into_iter().enumerate().collect();
            self.ready.push_back(Ready { row, sequence, logits: logits.to_vec(), samples });
        }
    }

    /// One more token for every slot; ended samples leave.
    fn step(&mut self) -> Result<(), LlmError> {
        let mut steps: Vec<Step<'_>> = self
            .slots
            .iter_mut()
            .map(|slot| Step { tokens: &slot.tokens[slot.tokens.len() - 1..], sequence: &mut slot.sequence })
            .collect();
        let x = self.decoder.forward(&mut self.pool, &mut steps);
        let rows: Vec<usize> = (0..self.slots.len()).collect();
        let (vocabulary, context) = (self.decoder.config.vocabulary, self.decoder.config.context);
        let (sampling, tokenizer) = (self.sampling, self.tokenizer);
        if self.decoder.draws() {
            let draws: Vec<Draw> = self.slots.iter_mut().map(|slot| slot.uniform(sampling)).collect();
            let drawn = self.decoder.draw(x, &rows, &draws);
            for (slot, drawn) in self.slots.iter_mut().zip(drawn) {
                slot.take(drawn.map(|drawn| drawn.token), sampling, tokenizer, context)?;
            }
        } else {
            let logits = self.decoder.logits(&self.decoder.finish(x, &rows));
            let logits = floats(&logits).par_chunks_exact(vocabulary);
            let slots = self.slots.par_iter_mut();
            slots.zip(logits).try_for_each(|(slot, logits)| slot.draw(logits, sampling, tokenizer, context))?;
        }
        self.tokens += self.slots.len() as u64;
        for slot in self.slots.extract_if(.., |slot| slot.state != SlotState::Running).collect::<Vec<_>>() {
            self.end(slot)?;
        }
        Ok(())
    }

    fn end(&mut self, slot: Slot) -> Result<(), LlmError> {
        self.pool.release(slot.sequence);
        let finished = match slot.state {
            SlotState::Ended { finished } => finished,
            SlotState::Running | SlotState::Broken => {
                let what = "no logit is a finite number: the model file is damaged or of another precision".into();
                self.errors[slot.row] = Some(LlmError::Prompt { row: slot.row, what });
                return Ok(());
            }
        };
        let text = answer_text(&slot.tokens, self.sampling, self.tokenizer)?;
        let seconds = slot.started.elapsed().as_secs_f32();
        self.answers[slot.row][slot.sample] = Some(Generation { text, tokens: slot.tokens, seconds, finished });
        Ok(())
    }

    fn done(&self) -> Done {
        let ended = |(answers, error): (&Vec<Option<Generation>>, &Option<LlmError>)| {
            error.is_some() || answers.iter().all(Option::is_some)
        };
        let rows = self.answers.iter().zip(&self.errors).filter(|&row| ended(row)).count();
        Done { rows, tokens: self.tokens }
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
    /// Draws the next token and says whether the answer ends with it.
    fn draw(
        &mut self,
        logits: &[f32],
        sampling: &Sampling,
        tokenizer: &TextTokenizer,
        context: usize,
    ) -> Result<(), LlmError> {
        let token = next_token(logits, sampling.temperature, sampling.top_p, &mut self.rng);
        self.take(token, sampling, tokenizer, context)
    }

    /// What the device needs to draw the next token: the same number as the sampler would draw.
    fn uniform(&mut self, sampling: &Sampling) -> Draw {
        let Sampling { temperature, top_p, .. } = *sampling;
        let uniform = if temperature == 0.0 { 0.0 } else { (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64 };
        Draw { temperature, top_k: 0, top_p, min_p: 0.0, uniform }
    }

    /// Takes the next token and says whether the answer ends with it.
    fn take(
        &mut self,
        token: Option<u32>,
        sampling: &Sampling,
        tokenizer: &TextTokenizer,
        context: usize,
    ) -> Result<(), LlmError> {
        let Some(token) = token else {
            self.state = SlotState::Broken;
            return Ok(());
        };
        self.tokens.push(token);
        // The token just drawn takes one more position when it is computed.
        let full = self.tokens.len() >= sampling.max_new_tokens || self.sequence.len() >= context;
        if sampling.stop_tokens.contains(&token) || ends_with_stop_text(&self.tokens, sampling, tokenizer)? {
            self.state = SlotState::Ended { finished: true };
        } else if full {
            self.state = SlotState::Ended { finished: false };
        }
        Ok(())
    }
}

/// Whether one of the last tokens completed a stop text.
fn ends_with_stop_text(tokens: &[u32], sampling: &Sampling, tokenizer: &TextTokenizer) -> Result<bool, LlmError> {
    let Some(longest) = sampling.stop_texts.iter().map(String::len).max() else { return Ok(false) };
    // A token is at least one byte, so a stop text lies within as many tokens as it has bytes.
    let tail = tokenizer.decode(&tokens[tokens.len().saturating_sub(longest)..])?;
    Ok(sampling.stop_texts.iter().any(|stop| tail.contains(stop.as_str())))
}

fn answer_text(tokens: &[u32], sampling: &Sampling, tokenizer: &TextTokenizer) -> Result<String, LlmError> {
    let stopped = tokens.last().is_some_and(|last| sampling.stop_tokens.contains(last));
    let mut text = tokenizer.decode(&tokens[..tokens.len() - usize::from(stopped)])?;
    if let Some(at) = sampling.stop_texts.iter().filter_map(|stop| text.find(stop.as_str())).min() {
        text.truncate(at);
    }
    Ok(text)
}
