//! Whole prompts through the decoder: hidden states pooled into embeddings, and scores of answer tokens.
//!
//! Prompts go through in batches of tokens, without padding; beginnings that several of them share are computed once
//! (see [`crate::prefix`]). The composition of the batches follows from the list of prompts, the budget and the memory,
//! and on the CPU results do not depend on it at all (see [`crate::decoder`]). Keys and values of all layers are kept of
//! shared beginnings, and of a prompt that is longer than a batch while its pieces are computed; of all else those of
//! one layer at a time. The head is applied to the answer tokens at each prompt's last position only.

use crate::{
    LlmError,
    decoder::{Decoder, Stream},
    kv::{Keep, KvPool},
    memory,
    prefix::{PrefixTree, Span},
};
use std::{collections::HashMap, ops::ControlFlow};

/// How a prompt's hidden states become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all of the prompt's tokens.
    Mean,
    /// The last token's.
    Last,
}

/// How much is computed at once. It bounds memory and speed, and changes no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBudget {
    /// Tokens computed together at most; fewer where more are no faster (1,024 on the CPU) or would not fit, and at least
    /// 32. A longer prompt is computed in pieces.
    pub tokens: usize,
    /// Bytes for activations, and again for the cache of shared beginnings; a quarter of the free memory if `None`.
    pub memory_bytes: Option<u64>,
}

impl From<usize> for TokenBudget {
    /// So many tokens, in the memory that there is.
    fn from(tokens: usize) -> Self {
        Self { tokens, memory_bytes: None }
    }
}

/// How far a batch job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Prompts finished, those with errors included.
    pub rows: usize,
    /// Tokens computed so far: of prompts, each shared token once, and of answers.
    pub tokens: u64,
    /// Tokens of the prompts that were begun, each prompt counted whole.
    pub prompt_tokens: u64,
    /// Prompt tokens that need not be computed, as they are part of a beginning that was computed for another prompt.
    pub shared_tokens: u64,
    /// Tokens of answers.
    pub answer_tokens: u64,
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

/// Why a row whose results are not numbers fails.
pub(crate) fn not_finite(row: usize) -> LlmError {
    let what = "the model gives a number that is not finite; its file may be damaged: pull it again".into();
    LlmError::Prompt { row, what }
}

/// Goes through all prompts in batches.
struct Prefill<'a> {
    decoder: &'a Decoder,
    prompts: &'a [Vec<u32>],
    /// Tokens of a forward pass.
    batch_tokens: usize,
    /// Pages of shared beginnings that are kept at once.
    held_pages: usize,
    tree: PrefixTree,
    pool: KvPool,
    errors: Vec<Option<LlmError>>,
    done: Done,
}

impl<'a> Prefill<'a> {
    fn new(decoder: &'a Decoder, prompts: &'a [Vec<u32>], budget: TokenBudget) -> Self {
        let errors: Vec<_> =
            prompts.iter().enumerate().map(|(row, prompt)| check_prompt(decoder, row, prompt).err()).collect();
        let good = (0..prompts.len()).filter(|&row| errors[row].is_none()).collect();
        let bytes = budget.memory_bytes.unwrap_or_else(|| decoder.default_bytes());
        let pool = decoder.pool();
        Self {
            decoder,
            prompts,
            batch_tokens: decoder.tokens_at_once(budget.tokens, bytes),
            held_pages: memory::pages_that_fit(&pool, bytes),
            tree: PrefixTree::new(prompts, good),
            pool,
            done: Done { rows: errors.iter().flatten().count(), ..Done::default() },
            errors,
        }
    }

    /// Computes all prompts and shows `visit` every batch: the decoder's rows and whose they are.
    fn run(
        &mut self,
        on_progress: OnProgress<'_>,
        mut visit: impl FnMut(&PrefixTree, Stream, &[Span]),
    ) -> Result<(), LlmError> {
        while !self.tree.is_done() {
            if on_progress(self.done).is_break() {
                return Err(LlmError::Cancelled);
            }
            self.batch(&mut visit);
        }
        // The last report says that all is done; there is nothing left to stop.
        let _ = on_progress(self.done);
        Ok(())
    }

    /// One batch: as many tokens as the budget allows, and always one unit.
    fn batch(&mut self, visit: &mut impl FnMut(&PrefixTree, Stream, &[Span])) {
        let (mut tokens, mut held) = (0, self.pool.used());
        let units = self.tree.take(|unit| {
            let first = tokens == 0;
            tokens += unit.tokens.len();
            held += if unit.is_shared() { unit.pages() } else { 0 };
            first || (tokens <= self.batch_tokens && (!unit.is_shared() || held <= self.held_pages))
        });
        let how = (Keep::CurrentLayer, self.batch_tokens);
        let (decoder, prompts) = (self.decoder, self.prompts);
        for sequence in self.tree.compute(decoder, &mut self.pool, prompts, &units, how, visit) {
            self.pool.release(sequence);
        }
        for unit in units.into_iter().map(|unit| self.tree.unit(unit)) {
            self.done.tokens += unit.tokens.len() as u64;
            if unit.is_shared() {
                self.done.shared_tokens += (unit.tokens.len() * (unit.prompts - 1)) as u64;
            } else {
                self.done.rows += 1;
                self.done.prompt_tokens += self.prompts[unit.row].len() as u64;
            }
        }
    }

    /// Each row's value or error.
    fn results(self, out: Vec<Option<Vec<f32>>>) -> Rows<Vec<f32>> {
        let row = |(row, (value, error)): (usize, (Option<Vec<f32>>, Option<LlmError>))| match (value, error) {
            (_, Some(error)) => Err(error),
            (Some(value), None) if value.iter().all(|x| x.is_finite()) => Ok(value),
            _ => Err(not_finite(row)),
        };
        out.into_iter().zip(self.errors).enumerate().map(row).collect()
    }
}

/// See [`crate::LanguageModel::embed`].
pub(crate) fn embed(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    pooling: Pooling,
    budget: TokenBudget,
    on_progress: OnProgress<'_>,
) -> Result<Rows<Vec<f32>>, LlmError> {
    let mut prefill = Prefill::new(decoder, prompts, budget);
    if pooling == Pooling::Last {
        let mut out = vec![None; prompts.len()];
        prefill.run(on_progress, |tree, x, spans| {
            for (row, state) in last_states(decoder, tree, x, spans) {
                out[row] = Some(state);
            }
        })?;
        return Ok(prefill.results(out));
    }
    let mut means = Means::new(decoder.config.hidden, prompts);
    prefill.run(on_progress, |tree, x, spans| means.add(decoder, tree, x, spans))?;
    Ok(prefill.results(means.out))
}

/// The finished hidden state of every prompt whose last token is in the batch, with its row.
fn last_states(decoder: &Decoder, tree: &PrefixTree, x: Stream, spans: &[Span]) -> Vec<(usize, Vec<f32>)> {
    let ends = |span: &&Span| span.complete && !tree.unit(span.unit).is_shared();
    let (rows, last): (Vec<usize>, Vec<usize>) =
        spans.iter().filter(ends).map(|span| (tree.unit(span.unit).row, span.rows.end - 1)).unzip();
    if last.is_empty() {
        return Vec::new();
    }
    rows.into_iter().zip(decoder.finish(x, &last)).collect()
}

/// Means of hidden states. Sums are carried in 64 bits from a shared beginning to what follows it, token by token in
/// the prompt's order: what is shared, or computed in pieces, does not show.
struct Means<'a> {
    hidden: usize,
    prompts: &'a [Vec<u32>],
    /// By unit: the sum up to its last computed token, while it is needed.
    sums: HashMap<usize, Vec<f64>>,
    out: Vec<Option<Vec<f32>>>,
}

impl<'a> Means<'a> {
    fn new(hidden: usize, prompts: &'a [Vec<u32>]) -> Self {
        Self { hidden, prompts, sums: HashMap::new(), out: vec![None; prompts.len()] }
    }

    fn add(&mut self, decoder: &Decoder, tree: &PrefixTree, x: Stream, spans: &[Span]) {
        let rows: Vec<usize> = spans.iter().flat_map(|span| span.rows.clone()).collect();
        let mut states = decoder.finish(x, &rows).into_iter();
        for span in spans {
            let unit = tree.unit(span.unit);
            let begun = || unit.parent.map_or_else(|| vec![0.0; self.hidden], |parent| self.sums[&parent].clone());
            let mut sum = self.sums.get(&span.unit).cloned().unwrap_or_else(begun);
            for state in states.by_ref().take(span.rows.len()) {
                for (sum, x) in sum.iter_mut().zip(state) {
                    *sum += f64::from(x);
                }
            }
            if span.complete && !unit.is_shared() {
                self.sums.remove(&span.unit);
                let count = self.prompts[unit.row].len() as f64;
                self.out[unit.row] = Some(sum.into_iter().map(|x| (x / count) as f32).collect());
            } else {
                self.sums.insert(span.unit, sum);
            }
        }
        // A beginning from which the last unit has branched off is not asked for again.
        for parent in spans.iter().filter_map(|span| tree.unit(span.unit).parent) {
            if !tree.is_held(parent) {
                self.sums.remove(&parent);
            }
        }
    }
}

/// See [`crate::LanguageModel::score`].
pub(crate) fn score(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    answers: &[u32],
    budget: TokenBudget,
    on_progress: OnProgress<'_>,
) -> Result<Rows<Vec<f32>>, LlmError> {
    let vocabulary = decoder.config.vocabulary;
    if let Some(answer) = answers.iter().find(|&&answer| answer as usize >= vocabulary) {
        return Err(LlmError::Argument(format!("answer token {answer} is not in the vocabulary of {vocabulary}")));
    }
    let columns = decoder.head_columns(answers);
    let mut out: Vec<Option<Vec<f32>>> = vec![None; prompts.len()];
    let mut prefill = Prefill::new(decoder, prompts, budget);
    prefill.run(on_progress, |tree, x, spans| {
        for (row, state) in last_states(decoder, tree, x, spans) {
            out[row] = Some(columns.iter().map(|column| dot(column, &state)).collect());
        }
    })?;
    Ok(prefill.results(out))
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LanguageModel, Precision, device::pick_device, tiny};

    #[test]
    fn shared_beginnings_are_kept_within_the_memory_and_let_go() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), tiny::gguf()).unwrap();
        let model = LanguageModel::load(file.path(), &pick_device("cpu").unwrap(), Precision::F32).unwrap();
        // Twenty pairs that share two pages each, beside one that all share.
        let word = |i: u32, row: u32| if i < 32 { i } else { (i * (row / 2 + 3)) % 250 };
        let prompts: Vec<Vec<u32>> =
            (0..40).map(|row| (0..100).map(|i| word(i, row)).chain([row % 2]).collect()).collect();
        for (pages, tokens) in [(3, 64), (8, 64), (8, 1024), (1000, 1024)] {
            let bytes = pages as u64 * model.decoder.pool().page_bytes();
            let mut prefill = Prefill::new(&model.decoder, &prompts, TokenBudget { tokens, memory_bytes: Some(bytes) });
            prefill.batch_tokens = tokens;
            let mut most = 0;
            while !prefill.tree.is_done() {
                prefill.batch(&mut |_, _, _| ());
                most = most.max(prefill.pool.used());
            }
            assert!(most <= pages, "{most} of {pages} pages");
            assert_eq!(prefill.pool.used(), 0);
            assert_eq!(prefill.done.tokens + prefill.done.shared_tokens, prefill.done.prompt_tokens);
        }
    }
}
