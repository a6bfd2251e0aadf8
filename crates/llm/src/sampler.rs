//! Draws the next token from logits: repetition penalty, temperature, top-k, top-p, min-p, in this order.
//!
//! The order and the meaning of each filter are those of transformers: a filter sees the distribution that the one
//! before it left, made to sum to 1 again. The vocabulary is never sorted as a whole: only tokens that can pass are,
//! heaviest first, as many as it takes. All sums are in 64 bits and in a fixed order, so a draw is a function of the
//! logits and the generator alone. What the answer is for, and when it ends, is not known here.

use crate::{
    LlmError,
    host::{exp, lane_max, vectorized},
};
use rand_chacha::{ChaCha8Rng, rand_core::Rng};

/// Tokens that are sorted at first; the number is doubled until the nucleus is complete.
const FIRST_SORTED: usize = 64;
/// Tokens whose weights are summed together: a draw finds its stretch first, then its token in it.
const STRETCH: usize = 512;
/// Floats that are computed side by side.
const LANES: usize = 32;

/// How tokens are drawn and when an answer ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Draws from this many most probable tokens; 0 for all.
    pub top_k: usize,
    /// Draws from the smallest set of tokens with this probability; 1 for all.
    pub top_p: f32,
    /// Draws from tokens at least this many times as probable as the most probable one; 0 for all.
    pub min_p: f32,
    /// Divides positive logits, and multiplies negative ones, of tokens that the prompt or the answer has; 1 for none
    /// (Keskar et al. 2019, as transformers does it).
    pub repetition_penalty: f32,
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// Tokens that end an answer. They are in `tokens`, not in `text`.
    pub stop_tokens: Vec<u32>,
    /// Texts that end an answer. They are cut from `text`, and what came after them.
    pub stop_texts: Vec<String>,
}

impl Default for Sampling {
    /// The model's own distribution, one token.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_new_tokens: 1,
            stop_tokens: Vec::new(),
            stop_texts: Vec::new(),
        }
    }
}

impl Sampling {
    /// # Errors
    /// [`LlmError::Argument`] that names the setting that makes no sense.
    pub(crate) fn check(&self) -> Result<(), LlmError> {
        let wrong = |what: String| Err(LlmError::Argument(what));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong(format!("temperature is {}; it must be 0 or more", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong(format!("top_p is {}; it must be above 0 and at most 1", self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return wrong(format!("min_p is {}; it must be from 0 to 1", self.min_p));
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return wrong(format!("repetition_penalty is {}; it must be above 0", self.repetition_penalty));
        }
        if self.max_new_tokens == 0 {
            return wrong("max_new_tokens is 0; it must be 1 or more".into());
        }
        if self.stop_texts.iter().any(String::is_empty) {
            return wrong("a stop text is empty; leave it out".into());
        }
        Ok(())
    }

    /// The number from 0 to 1, without 1, that says which token is drawn: 53 random bits. `None` where nothing is drawn,
    /// with a temperature of 0 or one so small that its reciprocal is infinite.
    pub(crate) fn uniform(&self, rng: &mut ChaCha8Rng) -> Option<f64> {
        (1.0 / self.temperature).is_finite().then(|| (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

/// A token and what the model thought of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability in the model's own distribution: softmax of the logits as they came,
    /// without penalty, temperature or filters.
    pub log_probability: f32,
}

/// Draws tokens. It keeps nothing between draws but the memory that they need.
#[derive(Default)]
pub struct Sampler {
    /// Logits after the repetition penalty.
    penalized: Vec<f32>,
    /// exp((score - largest score) / temperature): the largest is 1.
    weights: Vec<f32>,
    /// Sums of the weights, [`STRETCH`] at a time.
    sums: Vec<f64>,
    /// Tokens that may be drawn.
    kept: Vec<u32>,
    maxima: Vec<f32>,
}

impl Sampler {
    /// The next token, or `None` when a logit is not a number or infinite, or all are minus infinity (minus infinity
    /// alone means that a token is forbidden).
    ///
    /// `before` are the tokens of prompt and answer, for the repetition penalty. With a temperature of 0 (or one so
    /// small that its reciprocal is infinite) it is the largest score's token, the first of equals, and nothing is
    /// drawn. Otherwise one number of 53 bits is, whatever comes of it. Of equally probable tokens the smaller id counts
    /// as the more probable one, also for top-k, which keeps exactly k.
    pub fn draw<'a>(
        &mut self,
        logits: &[f32],
        sampling: &Sampling,
        before: impl IntoIterator<Item = &'a u32>,
        rng: &mut ChaCha8Rng,
    ) -> Option<Drawn> {
        let max = vectorized(Largest(logits));
        let (mut scores, mut max_score) = (logits, max);
        if sampling.repetition_penalty != 1.0 {
            self.penalize(logits, sampling.repetition_penalty, before);
            (scores, max_score) = (&self.penalized, vectorized(Largest(&self.penalized)));
        }
        let scale = 1.0 / sampling.temperature;
        let token = if let Some(uniform) = sampling.uniform(rng) {
            self.weights.resize(logits.len(), 0.0);
            self.sums.clear();
            let (weights, sums) = (&mut self.weights[..], &mut self.sums);
            let total = vectorized(Weights { scores, max: max_score, scale, weights, sums });
            if !total.is_finite() {
                return None;
            }
            if self.filter(sampling, total) {
                pick_kept(&self.kept, &self.weights, uniform)?
            } else {
                pick(&self.weights, &self.sums, uniform * total)?
            }
        } else {
            scores.iter().position(|&score| score == max_score)? as u32
        };
        let own = scale == 1.0 && sampling.repetition_penalty == 1.0;
        let total = if own { self.sums.iter().sum() } else { vectorized(SumOfExp { logits, max }) };
        let log_probability = f64::from(logits[token as usize] - max) - f64::ln(total);
        log_probability.is_finite().then_some(Drawn { token, log_probability: log_probability as f32 })
    }

    fn penalize<'a>(&mut self, logits: &[f32], penalty: f32, before: impl IntoIterator<Item = &'a u32>) {
        self.penalized.clear();
        self.penalized.extend_from_slice(logits);
        // From the logits as they came: a token that is there twice is penalized once.
        for &token in before {
            let logit = logits[token as usize];
            self.penalized[token as usize] = if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
    }

    /// Puts the tokens that pass top-k, top-p and min-p into `kept`; `false` when all do.
    fn filter(&mut self, sampling: &Sampling, total: f64) -> bool {
        let top_p = f64::from(sampling.top_p);
        let weights = &self.weights;
        if sampling.top_k > 0 && sampling.top_k < weights.len() {
            heaviest(weights, sampling.top_k, &mut self.maxima, &mut self.kept);
            if sampling.top_p < 1.0 {
                let mass: f64 = self.kept.iter().map(|&token| f64::from(weights[token as usize])).sum();
                let end = reaching(&self.kept, weights, top_p * mass);
                self.kept.truncate(end);
            }
        } else if sampling.top_p < 1.0 {
            nucleus(weights, total, top_p, &mut self.kept);
        } else if sampling.min_p > 0.0 {
            self.kept.clear();
            let passes = |&token: &u32| weights[token as usize] >= sampling.min_p;
            self.kept.extend((0..weights.len() as u32).filter(passes));
            return true;
        } else {
            return false;
        }
        // Heaviest first, and the heaviest weighs 1. It always stays.
        let end = self.kept.partition_point(|&token| weights[token as usize] >= sampling.min_p);
        self.kept.truncate(end.max(1));
        true
    }
}

fn heavier(weights: &[f32]) -> impl Fn(&u32, &u32) -> std::cmp::Ordering + Copy + '_ {
    |&a, &b| weights[b as usize].total_cmp(&weights[a as usize]).then(a.cmp(&b))
}

/// The `count` heaviest tokens, heaviest first; `count` is at least 1 and below the number of tokens.
fn heaviest(weights: &[f32], count: usize, maxima: &mut Vec<f32>, kept: &mut Vec<u32>) {
    // At least `count` tokens reach the weight that `count` stretches reach, and few others do.
    let mut bound = 0.0;
    if weights.len() / LANES > count {
        maxima.clear();
        maxima.extend(weights.chunks(LANES).map(|chunk| chunk.iter().copied().fold(0.0, f32::max)));
        bound = *maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1;
    }
    kept.clear();
    kept.extend((0..weights.len() as u32).filter(|&token| weights[token as usize] >= bound));
    if kept.len() > count {
        kept.select_nth_unstable_by(count, heavier(weights));
        kept.truncate(count);
    }
    kept.sort_unstable_by(heavier(weights));
}

/// How many tokens from the first on weigh at least `mass` together; all of them if they weigh less.
fn reaching(tokens: &[u32], weights: &[f32], mass: f64) -> usize {
    let mut sum = 0.0;
    let last = tokens.iter().position(|&token| {
        sum += f64::from(weights[token as usize]);
        sum >= mass
    });
    last.map_or(tokens.len(), |last| last + 1)
}

/// The smallest set of heaviest tokens that weighs at least `top_p * total`, heaviest first.
fn nucleus(weights: &[f32], total: f64, top_p: f64, kept: &mut Vec<u32>) {
    // All tokens below this weight together weigh less than what the nucleus leaves out, so none of them is in it.
    let negligible = (1.0 - top_p) * total / weights.len() as f64;
    kept.clear();
    kept.extend((0..weights.len() as u32).filter(|&token| f64::from(weights[token as usize]) >= negligible));
    let mut sorted = 0;
    let mut mass = 0.0;
    while sorted < kept.len() {
        let rest = &mut kept[sorted..];
        let count = FIRST_SORTED.max(sorted).min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count, heavier(weights));
        }
        rest[..count].sort_unstable_by(heavier(weights));
        for index in sorted..sorted + count {
            mass += f64::from(weights[kept[index] as usize]);
            if mass >= top_p * total {
                kept.truncate(index + 1);
                return;
            }
        }
        sorted += count;
    }
}

/// The token in whose share of the kept tokens' weight a number from 0 to 1 falls.
fn pick_kept(kept: &[u32], weights: &[f32], uniform: f64) -> Option<u32> {
    let weight = |&token: &u32| f64::from(weights[token as usize]);
    let mass: f64 = kept.iter().map(weight).sum();
    walk(kept.iter().map(|token| (*token, weight(token))), 0.0, uniform * mass)
}

/// The token in whose share of the summed weights `target` falls. `sums` are those of the stretches.
fn pick(weights: &[f32], sums: &[f64], target: f64) -> Option<u32> {
    let (mut before, mut stretch) = (0.0, None);
    for (index, &sum) in sums.iter().enumerate() {
        if sum > 0.0 {
            stretch = Some((index, before));
            before += sum;
            if before > target {
                break;
            }
        }
    }
    let (index, before) = stretch?;
    let first = index * STRETCH;
    let last = weights.len().min(first + STRETCH);
    walk((first..last).map(|token| (token as u32, f64::from(weights[token]))), before, target)
}

/// The token at which the running sum, `sum` at first, passes `target`; the last that weighs anything if none does.
fn walk(tokens: impl Iterator<Item = (u32, f64)>, mut sum: f64, target: f64) -> Option<u32> {
    let mut last = None;
    for (token, weight) in tokens {
        if weight > 0.0 {
            sum += weight;
            last = Some(token);
            if sum > target {
                break;
            }
        }
    }
    last
}

/// The largest value; what is not a number is passed over.
struct Largest<'a>(&'a [f32]);

impl pulp::NullaryFnOnce for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        for chunk in chunks {
            for (max, &x) in lanes.iter_mut().zip(chunk) {
                *max = if x > *max { x } else { *max };
            }
        }
        rest.iter().copied().fold(lane_max(lanes), f32::max)
    }
}

struct Weights<'a> {
    scores: &'a [f32],
    max: f32,
    scale: f32,
    weights: &'a mut [f32],
    sums: &'a mut Vec<f64>,
}

impl pulp::NullaryFnOnce for Weights<'_> {
    /// The sum; not a number if a score is not or is infinite.
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        for (weights, scores) in self.weights.chunks_mut(STRETCH).zip(self.scores.chunks(STRETCH)) {
            for (weight, &score) in weights.iter_mut().zip(scores) {
                *weight = weight_of(score, self.max, self.scale);
            }
            self.sums.push(sum_of(weights));
        }
        self.sums.iter().sum()
    }
}

/// The sum of exp(logit - max), without keeping the terms.
struct SumOfExp<'a> {
    logits: &'a [f32],
    max: f32,
}

impl pulp::NullaryFnOnce for SumOfExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let mut terms = [0.0; STRETCH];
        let mut total = 0.0;
        for logits in self.logits.chunks(STRETCH) {
            let terms = &mut terms[..logits.len()];
            for (term, &logit) in terms.iter_mut().zip(logits) {
                *term = weight_of(logit, self.max, 1.0);
            }
            total += sum_of(terms);
        }
        total
    }
}

#[inline(always)]
fn weight_of(score: f32, max: f32, scale: f32) -> f32 {
    let e = exp((score - max) * scale);
    if score == f32::NEG_INFINITY && max > f32::NEG_INFINITY { 0.0 } else { e }
}

#[inline(always)]
fn sum_of(weights: &[f32]) -> f64 {
    let mut sums = [0.0_f64; 16];
    for chunk in weights.chunks(sums.len()) {
        for (sum, &weight) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(weight);
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests;
