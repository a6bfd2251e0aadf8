//! Whole prompts through the decoder: hidden states pooled into embeddings, and scores of answer tokens.
//!
//! Prompts are sorted by length, so that a batch's attention tasks are alike, and batched by tokens without padding;
//! what all prompts begin with is computed once. The composition of the batches follows from the list of prompts and
//! the token budget alone, and on the CPU results do not depend on it at all (see [`crate::decoder`]). No keys and
//! values are kept, and the head is applied to the answer tokens at each prompt's last position only.

use crate::{
    LlmError,
    decoder::{Decoder, Step},
    kv::{Keep, KvPool, PAGE, Sequence},
};
use std::ops::ControlFlow;

/// How a prompt's hidden states become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all of the prompt's tokens.
    Mean,
    /// The last token's.
    Last,
}

/// How far a batch job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Prompts finished, those with errors included.
    pub rows: usize,
    /// Tokens computed so far: of prompts, each shared token once, and of answers.
    pub tokens: u64,
}

/// Hears how far a batch job is, after every step; [`ControlFlow::Break`] ends it with [`LlmError::Cancelled`].
pub type OnProgress<'a> = &'a mut dyn FnMut(Done) -> ControlFlow<()>;

/// One result a prompt, or why that prompt has none.
pub type Rows<T> = Vec<Result<T, LlmError>>;

/// What is wrong with a prompt, if anything: empty, too long, or with tokens that the model does not know.
pub(crate) fn check_prompt(decoder: &Decoder, row: usize, prompt: &[u32]) -> Result<(), LlmError> {
    let (context, vocabulary) = (decoder.config.context, decoder.config.vocabulary);
    let what = if prompt.is_empty() {
        "it has no tokens".into()
    } else if prompt.len() > context {
        format!("{} tokens are more than the model's context of {context}; shorten it", prompt.len())
    } else if let Some(token) = prompt.iter().find(|&&token| token as usize >= vocabulary) {
        format!("token {token} is not in the vocabulary of {vocabulary}")
    } else {
        return Ok(());
    };
    Err(LlmError::Prompt { row, what })
}

/// Length of the common beginning of some prompts that is worth computing once: whole pages, at least one token less
/// than the shortest prompt, and 0 for a single prompt.
pub(crate) fn shared_tokens<'a>(mut prompts: impl Iterator<Item = &'a [u32]>) -> usize {
    let Some(first) = prompts.next() else { return 0 };
    let (mut shared, mut count) = (first.len(), 1);
    for prompt in prompts {
        let equal = first.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        shared = shared.min(equal).min(prompt.len() - 1);
        count += 1;
    }
    if count == 1 { 0 } else { shared.min(first.len() - 1) / PAGE * PAGE }
}

/// What the rows of one batch became.
struct BatchStates<'a> {
    /// Position of each prompt in the list.
    rows: &'a [usize],
    /// Finished hidden states: of all of a prompt's own tokens, or of its last only.
    states: Vec<Vec<Vec<f32>>>,
}

/// Goes through all prompts in batches.
struct Prefill<'a> {
    decoder: &'a Decoder,
    prompts: &'a [Vec<u32>],
    batch_tokens: usize,
    all_positions: bool,
}

impl Prefill<'_> {
    /// Calls `take` with every batch. Returns the errors of the prompts that cannot be computed, and the hidden states
    /// of the shared beginning first, through `prefix`.
    fn run(
        &self,
        on_progress: OnProgress<'_>,
        mut prefix: impl FnMut(&[Vec<f32>]),
        mut take: impl FnMut(BatchStates<'_>),
    ) -> Result<Vec<(usize, LlmError)>, LlmError> {
        let mut order = Vec::new();
        let mut errors = Vec::new();
        for (row, prompt) in self.prompts.iter().enumerate() {
            match check_prompt(self.decoder, row, prompt) {
                Ok(()) => order.push(row),
                Err(error) => errors.push((row, error)),
            }
        }
        // Stable: prompts of one length stay in the list's order. Longest first: memory peaks at once or never.
        order.sort_by_key(|&row| std::cmp::Reverse(self.prompts[row].len()));
        let mut pool = self.decoder.pool();
        let shared = shared_tokens(order.iter().map(|&row| self.prompts[row].as_slice()));
        let mut done = Done { rows: errors.len(), tokens: shared as u64 };
        let mut base = Sequence::new(Keep::AllLayers);
        if shared > 0 {
            let mut steps = [Step { sequence: &mut base, tokens: &self.prompts[order[0]][..shared] }];
            let x = self.decoder.forward(&mut pool, &mut steps);
            if self.all_positions {
                prefix(&self.decoder.finish(x, &(0..shared).collect::<Vec<_>>()));
            }
        }
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(self.batch_length(rest, shared));
            rest = later;
            if on_progress(done).is_break() {
                return Err(LlmError::Cancelled);
            }
            let states = self.states(&mut pool, &base, batch, shared);
            take(BatchStates { rows: batch, states });
            done.rows += batch.len();
            done.tokens += batch.iter().map(|&row| (self.prompts[row].len() - shared) as u64).sum::<u64>();
        }
        // The last report says that all is done; there is nothing left to stop.
        let _ = on_progress(done);
        Ok(errors)
    }

    /// Prompts of the next batch: as many as the token budget allows, and always one.
    fn batch_length(&self, rows: &[usize], shared: usize) -> usize {
        let mut tokens = 0;
        let fits = rows.iter().take_while(|&&row| {
            tokens += self.prompts[row].len() - shared;
            tokens <= self.batch_tokens
        });
        fits.count().max(1)
    }

    fn states(&self, pool: &mut KvPool, base: &Sequence, batch: &[usize], shared: usize) -> Vec<Vec<Vec<f32>>> {
        let mut sequences: Vec<Sequence> = batch.iter().map(|_| pool.fork(base, Keep::CurrentLayer)).collect();
        let own = |row: usize| &self.prompts[row][shared..];
        let mut steps: Vec<Step<'_>> =
            sequences.iter_mut().zip(batch).map(|(sequence, &row)| Step { sequence, tokens: own(row) }).collect();
        let x = self.decoder.forward(pool, &mut steps);
        let mut wanted = Vec::new();
        let mut counts = Vec::new();
        let mut end = 0;
        for &row in batch {
            let first = if self.all_positions { end } else { end + own(row).len() - 1 };
            end += own(row).len();
            wanted.extend(first..end);
            counts.push(end - first);
        }
        let mut states = self.decoder.finish(x, &wanted).into_iter();
        for sequence in sequences {
            pool.release(sequence);
        }
        counts.into_iter().map(|count| states.by_ref().take(count).collect()).collect()
    }
}

/// See [`crate::LanguageModel::embed`].
pub(crate) fn embed(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    pooling: Pooling,
    batch_tokens: usize,
    on_progress: OnProgress<'_>,
) -> Result<Rows<Vec<f32>>, LlmError> {
    let mut out: Vec<Option<Vec<f32>>> = vec![None; prompts.len()];
    let all_positions = pooling == Pooling::Mean;
    let prefill = Prefill { decoder, prompts, batch_tokens, all_positions };
    let shared_sum = std::cell::RefCell::new(vec![0.0_f64; decoder.config.hidden]);
    let errors = prefill.run(
        on_progress,
        |states| add_all(&mut shared_sum.borrow_mut(), states),
        |batch| {
            for (&row, mut states) in batch.rows.iter().zip(batch.states) {
                out[row] = match pooling {
                    Pooling::Last => states.pop(),
                    Pooling::Mean => {
                        let mut sum = shared_sum.borrow().clone();
                        add_all(&mut sum, &states);
                        let count = prompts[row].len() as f64;
                        Some(sum.into_iter().map(|x| (x / count) as f32).collect())
                    }
                };
            }
        },
    )?;
    Ok(rows(out, errors))
}

/// Sums are in 64 bits, so that where a sum is split does not show in 32.
fn add_all(sum: &mut [f64], states: &[Vec<f32>]) {
    for state in states {
        for (sum, &x) in sum.iter_mut().zip(state) {
            *sum += f64::from(x);
        }
    }
}

/// See [`crate::LanguageModel::score`].
pub(crate) fn score(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    answers: &[u32],
    batch_tokens: usize,
    on_progress: OnProgress<'_>,
) -> Result<Rows<Vec<f32>>, LlmError> {
    let vocabulary = decoder.config.vocabulary;
    if let Some(answer) = answers.iter().find(|&&answer| answer as usize >= vocabulary) {
        return Err(LlmError::Argument(format!("answer token {answer} is not in the vocabulary of {vocabulary}")));
    }
    let columns = decoder.head_columns(answers);
    let mut out: Vec<Option<Vec<f32>>> = vec![None; prompts.len()];
    let prefill = Prefill { decoder, prompts, batch_tokens, all_positions: false };
    let errors = prefill.run(
        on_progress,
        |_| (),
        |batch| {
            for (&row, states) in batch.rows.iter().zip(batch.states) {
                let last = &states[states.len() - 1];
                out[row] = Some(columns.iter().map(|column| dot(column, last)).collect());
            }
        },
    )?;
    Ok(rows(out, errors))
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32
}

fn rows<T>(out: Vec<Option<T>>, errors: Vec<(usize, LlmError)>) -> Rows<T> {
    let mut errors = errors.into_iter();
    let missing = "every prompt has a result or an error, and errors are in the list's order";
    out.into_iter().map(|value| value.map_or_else(|| Err(errors.next().expect(missing).1), Ok)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_before_the_last_token_are_shared() {
        let shared = |prompts: &[&[u32]]| shared_tokens(prompts.iter().copied());
        let long = [7; 100];
        assert_eq!(shared(&[]), 0);
        assert_eq!(shared(&[&long]), 0);
        assert_eq!(shared(&[&long, &long]), 96);
        assert_eq!(shared(&[&long, &long[..64]]), 32);
        assert_eq!(shared(&[&long[..65], &long]), 64);
        let mut other = long;
        other[40] = 8;
        assert_eq!(shared(&[&long, &other]), 32);
    }
}
