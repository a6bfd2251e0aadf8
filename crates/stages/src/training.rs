//! What the training stages share: progress and cancellation by callback.

use crate::{StageContext, StageError};
use rallrec_core::task::Progress;
use rallrec_recsys::training::{Checkpoints, TrainError, TrainProgress};
use std::time::{Duration, Instant};

/// Hears a training's progress, passes it on, and stops the training when the task is cancelled.
pub(crate) fn watch<'a>(context: &'a StageContext<'_>) -> impl FnMut(&TrainProgress) -> bool + 'a {
    |at| {
        let steps = u64::from(at.epochs) * at.steps as u64;
        let done = u64::from(at.epoch - 1) * at.steps as u64 + at.step as u64;
        context.progress.report(Progress { done, total: steps, tokens: 0, loss: at.loss });
        !context.cancel.is_set()
    }
}

/// Seconds between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// A training's checkpoints, kept as the task's. One that cannot be read or written costs time, never the task.
pub(crate) struct Kept<'a> {
    context: &'a StageContext<'a>,
    last: Instant,
}

impl<'a> Kept<'a> {
    pub(crate) fn new(context: &'a StageContext<'a>) -> Self {
        Self { context, last: Instant::now() }
    }
}

impl Checkpoints for Kept<'_> {
    fn latest(&mut self) -> Option<Vec<u8>> {
        self.context.checkpoints.latest().unwrap_or_else(|error| {
            tracing::warn!(%error, "a checkpoint cannot be read; the training begins again");
            None
        })
    }

    fn is_due(&mut self) -> bool {
        self.last.elapsed() >= CHECKPOINT_EVERY
    }

    fn save(&mut self, state: Vec<u8>) {
        if let Err(error) = self.context.checkpoints.save(state) {
            tracing::warn!(%error, "cannot save a checkpoint");
        }
        self.last = Instant::now();
    }
}

impl From<TrainError> for StageError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Stopped { .. } => Self::Cancelled,
            other => Self::Invalid(other.to_string()),
        }
    }
}

/// Leaves the first and the last epoch's loss in the manifest.
pub(crate) fn record_losses(output: &mut dyn crate::OutputWriter, losses: &[f64]) {
    if let (Some(first), Some(last)) = (losses.first(), losses.last()) {
        output.metric("epochs", losses.len() as f64);
        output.metric("loss_first", *first);
        output.metric("loss_last", *last);
    }
}
