//! Counts what a task's calls of a language model read and write, tells its progress, and stops it when it is cancelled.

use crate::{OutputWriter, StageContext};
use rallrec_core::task::Progress;
use rallrec_llm::Done;
use std::{ops::ControlFlow, time::Instant};

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
