//! What the stages that use a language model share: the model, prompts in its chat format, rows that failed.

use crate::{OutputWriter, StageContext, StageError, columns::Table};
use rallrec_core::task::Progress;
use rallrec_llm::{Done, LanguageModel, LlmError, Message, Slots};
use std::{ops::ControlFlow, sync::Arc, time::Instant};

/// The task's model.
pub(crate) fn model(context: &StageContext<'_>) -> Result<Arc<LanguageModel>, StageError> {
    let source = context.model.as_ref().ok_or_else(|| StageError::Invalid("the stage needs `model`".into()))?;
    context.models.get(source, context.device)
}

/// A user's message, after a system message unless that is empty, as the model's chat prompt: text that ends where the
/// answer begins. Control tokens in the messages are taken out: a title must not open or close a turn.
pub(crate) fn chat(model: &LanguageModel, system: &str, user: &str) -> Result<String, LlmError> {
    let plain = |text| model.tokenizer().without_control_tokens(text);
    let system = (!system.is_empty()).then(|| Message::new("system", plain(system)));
    let messages: Vec<_> = system.into_iter().chain([Message::new("user", plain(user))]).collect();
    model.chat(&messages, true)
}

/// The one token of an answer.
pub(crate) fn answer_token(model: &LanguageModel, answer: &str) -> Result<u32, StageError> {
    let found = model.encode_plain(answer)?;
    match found[..] {
        [token] => Ok(token),
        _ => Err(StageError::Invalid(format!(
            "the answer {answer:?} is {} tokens in this model, and must be one; choose another word for with.yes or with.no",
            found.len()
        ))),
    }
}

/// The probability of yes among the two answers.
pub(crate) fn probability(logit_yes: f32, logit_no: f32) -> f32 {
    1.0 / (1.0 + (logit_no - logit_yes).exp())
}

/// Tokens of the texts; a text that is too long or fails is an error of its row.
pub(crate) fn encode_all(
    model: &LanguageModel,
    texts: impl IntoIterator<Item = Result<String, LlmError>>,
    max_tokens: usize,
) -> Vec<Result<Vec<u32>, String>> {
    let encode = |text: Result<String, LlmError>| {
        let tokens = text.and_then(|text| model.encode(&text)).map_err(|e| e.to_string())?;
        if tokens.len() <= max_tokens {
            return Ok(tokens);
        }
        Err(format!(
            "the prompt has {} tokens, and with.max_prompt_tokens allows {max_tokens}; shorten the history (with.k of retrieve), or allow more",
            tokens.len()
        ))
    };
    texts.into_iter().map(encode).collect()
}

/// The tokens of a table's prompts up to where the answer begins, as `score` reads them and `tune` learns them.
pub(crate) fn answer_prompts(
    model: &LanguageModel,
    prompts: &Table<'_>,
    system: &str,
    max_tokens: u32,
) -> Result<Vec<Result<Vec<u32>, String>>, StageError> {
    let texts = prompts.text("prompt")?.into_iter().map(|prompt| chat(model, system, prompt));
    Ok(encode_all(model, texts, max_tokens as usize))
}

/// Hears how far the model is: tells the task's progress, stops the model when the task is cancelled, and counts tokens
/// over all calls for the manifest.
pub(crate) struct Meter<'a> {
    context: &'a StageContext<'a>,
    began: Instant,
    /// Of the calls that ended, and of the one in progress.
    before: Done,
    now: Done,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(context: &'a StageContext<'a>) -> Self {
        Self { context, began: Instant::now(), before: Done::default(), now: Done::default() }
    }

    /// Listens to the next call, of `total` rows.
    pub(crate) fn watch(&mut self, total: usize) -> impl FnMut(Done) -> ControlFlow<()> {
        self.next_call();
        move |done| {
            let done = self.hear(done);
            let rows = done.rows as u64;
            self.context.progress.report(Progress { done: rows, total: total as u64, tokens: done.tokens, loss: None });
            self.unless_cancelled()
        }
    }

    /// Listens to the next call, whose rows are not the task's.
    pub(crate) fn watch_quietly(&mut self) -> impl FnMut(Done) -> ControlFlow<()> {
        self.next_call();
        move |done| {
            self.hear(done);
            self.unless_cancelled()
        }
    }

    /// Puts the counts into the manifest: `tokens_read`, `tokens_written`, `tokens_shared` and `tokens_per_second`.
    pub(crate) fn record(&self, output: &mut dyn OutputWriter) {
        let all = sum(self.before, self.now);
        output.metric("tokens_read", all.prompt_tokens as f64);
        output.metric("tokens_written", all.answer_tokens as f64);
        output.metric("tokens_shared", all.shared_tokens as f64);
        let seconds = self.began.elapsed().as_secs_f64().max(1e-9);
        output.metric("tokens_per_second", all.tokens as f64 / seconds);
    }

    fn next_call(&mut self) {
        self.before = sum(self.before, std::mem::take(&mut self.now));
    }

    fn hear(&mut self, done: Done) -> Done {
        self.now = done;
        done
    }

    fn unless_cancelled(&self) -> ControlFlow<()> {
        if self.context.cancel.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn sum(a: Done, b: Done) -> Done {
    Done {
        rows: a.rows + b.rows,
        tokens: a.tokens + b.tokens,
        prompt_tokens: a.prompt_tokens + b.prompt_tokens,
        shared_tokens: a.shared_tokens + b.shared_tokens,
        answer_tokens: a.answer_tokens + b.answer_tokens,
    }
}

/// How many samples are in progress at once; 0 bytes for what the machine has.
pub(crate) fn slots(batch_size: u32, kv_bytes: u64) -> Slots {
    Slots { samples: batch_size as usize, kv_bytes: (kv_bytes > 0).then_some(kv_bytes) }
}

/// Each row's result, or `None` and a reason where it failed: one reason a row, empty where all is well.
pub(crate) struct RowResults<T> {
    pub(crate) values: Vec<Option<T>>,
    pub(crate) errors: Vec<Option<String>>,
}

impl<T> RowResults<T> {
    /// Runs `compute` on the rows that can be computed, and puts its results back in their places.
    pub(crate) fn of(
        prompts: Vec<Result<Vec<u32>, String>>,
        compute: impl FnOnce(Vec<Vec<u32>>) -> Result<Vec<Result<T, LlmError>>, LlmError>,
    ) -> Result<Self, StageError> {
        let (mut places, mut good, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (row, prompt) in prompts.into_iter().enumerate() {
            match prompt {
                Ok(prompt) => {
                    places.push(row);
                    good.push(prompt);
                    errors.push(None);
                }
                Err(reason) => errors.push(Some(reason)),
            }
        }
        let mut values: Vec<Option<T>> = errors.iter().map(|_| None).collect();
        for (row, result) in places.into_iter().zip(compute(good)?) {
            match result {
                Ok(value) => values[row] = Some(value),
                // The error's own row is a position in this call; the caller's row is told beside it.
                Err(LlmError::Prompt { what, .. }) => errors[row] = Some(what),
                Err(error) => errors[row] = Some(error.to_string()),
            }
        }
        Ok(Self { values, errors })
    }

    /// Records every failed row; fails when there are too many.
    pub(crate) fn record(&self, context: &StageContext<'_>, output: &mut dyn OutputWriter) -> Result<(), StageError> {
        let first = context.rows.map_or(0, |r| r.start);
        for (row, error) in (first..).zip(&self.errors) {
            if let Some(reason) = error {
                output.bad_row(row, reason)?;
            }
        }
        Ok(())
    }
}

impl From<LlmError> for StageError {
    fn from(error: LlmError) -> Self {
        match error {
            LlmError::Cancelled => Self::Cancelled,
            other => Self::Invalid(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_rows_keep_their_places() {
        let prompts = vec![Ok(vec![1]), Err("too long".to_owned()), Ok(vec![2]), Ok(vec![3])];
        let results = RowResults::of(prompts, |good| {
            assert_eq!(good, [vec![1], vec![2], vec![3]]);
            Ok(vec![Ok(10), Err(LlmError::Prompt { row: 1, what: "it is odd".into() }), Ok(30)])
        })
        .unwrap();
        assert_eq!(results.values, [Some(10), None, None, Some(30)]);
        let failed: Vec<bool> = results.errors.iter().map(Option::is_some).collect();
        assert_eq!(failed, [false, true, true, false]);
    }

    #[test]
    fn probabilities_do_not_overflow() {
        assert_eq!(probability(0.0, 0.0), 0.5);
        assert_eq!((probability(200.0, -200.0), probability(-200.0, 200.0)), (1.0, 0.0));
    }
}
