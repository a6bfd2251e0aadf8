//! What the world still has to do for a state.

use super::{Phase, RunOutcome, RunState};
use crate::ids::{Attempt, TaskId};
use std::fmt;

/// Something to be done outside. The value is its own identity: equal effects are the same effect, performing one
/// twice is harmless, and the answer to an old one is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// End the run: answered by [`super::Input::Finish`].
    Finish {
        /// How it ends.
        outcome: RunOutcome,
    },
    /// Send [`RunState::offer`] to a worker: answered by reports.
    Dispatch {
        /// The task.
        task: TaskId,
        /// The attempt.
        attempt: Attempt,
    },
    /// Ask the store for [`RunState::key`]: answered by [`super::Input::Probed`].
    Probe {
        /// The task.
        task: TaskId,
        /// Attempts that ended before.
        after: u32,
    },
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finish { outcome } => write!(f, "finish/{outcome:?}"),
            Self::Dispatch { task, attempt } => write!(f, "dispatch/{task}/{attempt}"),
            Self::Probe { task, after } => write!(f, "probe/{task}/{after}"),
        }
    }
}

/// What the state requires, most urgent first. Lazy: taking n effects costs about n, however large the run is, so a
/// driver asks again after each event and skips what it has in flight.
///
/// A dispatch is owed until a worker has begun; the task then is the worker's.
pub fn owed(state: &RunState) -> impl Iterator<Item = Effect> + '_ {
    let finish = state.due_outcome().map(|outcome| Effect::Finish { outcome });
    let dispatches = state
        .index
        .offered
        .iter()
        .flat_map(|&task| state.under_way(task).map(move |running| (task, running)))
        .filter(|(_, running)| running.begun.is_none())
        .map(|(task, running)| Effect::Dispatch { task, attempt: running.attempt });
    let probes = (state.phase == Phase::Active).then(|| state.index.unprobed.iter()).into_iter().flatten();
    let probes = probes.filter_map(|&task| Some(Effect::Probe { task, after: state.attempts(task)? }));
    finish.into_iter().chain(dispatches).chain(probes)
}

impl RunState {
    /// How the run must end now; `None` while something can still happen, and once it has ended.
    pub(super) fn due_outcome(&self) -> Option<RunOutcome> {
        let index = &self.index;
        let idle = index.running.is_empty() && index.offered.is_empty();
        let nothing_left = index.unprobed.is_empty() && index.ready_count() == 0;
        let ended = if !index.failed.is_empty() {
            RunOutcome::Failed
        } else if index.open_tasks == 0 && index.unsharded == 0 {
            RunOutcome::Done
        } else {
            RunOutcome::Cancelled
        };
        match self.phase {
            Phase::Active if idle && nothing_left => Some(ended),
            Phase::Cancelling if idle && ended == RunOutcome::Done => Some(RunOutcome::Done),
            Phase::Cancelling if idle => Some(RunOutcome::Cancelled),
            Phase::Active | Phase::Cancelling | Phase::Created | Phase::Finished(_) => None,
        }
    }
}
