//! What the training stages share: progress and cancellation by callback.

use crate::{StageContext, StageError};
use rallrec_core::task::Progress;
use rallrec_recsys::training::{TrainError, TrainProgress};

/// Hears a training's progress, passes it on, and stops the training when the task is cancelled.
pub(crate) fn watch<'a>(context: &'a StageContext<'_>) -> impl FnMut(&TrainProgress) -> bool + 'a {
    |at| {
        let steps = u64::from(at.epochs) * at.steps as u64;
        let done = u64::from(at.epoch - 1) * at.steps as u64 + at.step as u64;
        context.progress.report(Progress { done, total: steps, tokens: 0, loss: at.loss });
        !context.cancel.is_set()
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
