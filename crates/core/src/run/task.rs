//! A task: its state, and what was tried before. A struct per state: no field that is valid only sometimes.

use crate::{
    ids::{Attempt, TimeMs, WorkerId},
    key::Key,
    task::FailureClass,
};
use serde::{Deserialize, Serialize};

/// Whether the task's artifact is there is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unprobed {
    /// A further attempt must not begin before this time.
    pub not_before: TimeMs,
}

/// All inputs are there; may be dispatched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Not before this time; 0 before the first attempt.
    pub not_before: TimeMs,
}

/// An attempt was handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The attempt.
    pub attempt: Attempt,
    /// `None` while the offer waits for a worker.
    pub begun: Option<Begun>,
}

/// A worker is at an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Who.
    pub worker: WorkerId,
    /// Since when, by the clock of the coordinator that heard of it.
    pub at: TimeMs,
}

/// Two attempts are under way: the first one took too long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubled {
    /// The one that took too long.
    pub first: Running,
    /// The other.
    pub second: Running,
}

/// The artifact is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Whether it was there before the run asked for it.
    pub reused: bool,
}

/// No further attempt will be made, unless the run is resumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Why.
    pub class: FailureClass,
    /// What happened.
    pub message: String,
}

/// State of one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// The store has not been asked.
    Unprobed(Unprobed),
    /// The artifact is missing, and so is an input.
    Blocked,
    /// Can be dispatched.
    Ready(Ready),
    /// Handed out.
    Running(Running),
    /// Handed out twice. Boxed, as it is rare.
    Doubled(Box<Doubled>),
    /// Present.
    Done(Done),
    /// Given up. Boxed: it is rare, and a million tasks should be small.
    Failed(Box<Failed>),
}

impl TaskState {
    /// Its name, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unprobed(_) => "unprobed",
            Self::Blocked => "blocked",
            Self::Ready(_) => "ready",
            Self::Running(_) => "running",
            Self::Doubled(_) => "running twice",
            Self::Done(_) => "done",
            Self::Failed(_) => "failed",
        }
    }

    /// The attempts that are under way.
    pub(super) fn under_way(&self) -> (Option<&Running>, Option<&Running>) {
        match self {
            Self::Running(running) => (Some(running), None),
            Self::Doubled(doubled) => (Some(&doubled.first), Some(&doubled.second)),
            Self::Unprobed(_) | Self::Blocked | Self::Ready(_) | Self::Done(_) | Self::Failed(_) => (None, None),
        }
    }

    pub(super) fn attempts_under_way(&self) -> u32 {
        let (first, second) = self.under_way();
        u32::from(first.is_some()) + u32::from(second.is_some())
    }
}

/// What was tried before, in every state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    /// Number of the latest attempt; 0 before the first.
    pub(super) attempts: u32,
    /// Attempts that ended in the task's own failure.
    pub(super) failures: u32,
    /// Attempts that lost their worker and count towards quarantine.
    pub(super) losses: u32,
    /// Attempts that ended because the store did not answer.
    pub(super) outages: u32,
    /// Whether the attempt that was dispatched last has had a second one beside it.
    pub(super) doubled: bool,
}

/// A task.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TaskRun {
    pub(super) key: Key,
    /// Input shards that are not done; for an input read whole, or not cut into shards yet, one.
    pub(super) waiting: u32,
    pub(super) history: History,
    pub(super) state: TaskState,
    /// Position of the lane that it was handed out in; of a task that is not, its stage's.
    pub(super) lane: u32,
}

impl Doubled {
    pub(super) fn has(&self, attempt: Attempt) -> bool {
        self.first.attempt == attempt || self.second.attempt == attempt
    }

    /// The other attempt.
    pub(super) fn without(&self, attempt: Attempt) -> Running {
        if self.first.attempt == attempt { self.second.clone() } else { self.first.clone() }
    }
}

impl History {
    /// One of two attempts has ended, and its task goes on. What does not count leaves the task its second attempt, too.
    pub(super) fn charge(&mut self, class: FailureClass, counts: bool) {
        self.doubled = counts;
        match class {
            FailureClass::Lost => self.losses += u32::from(counts),
            FailureClass::Transient | FailureClass::Resource => self.failures += u32::from(counts),
            FailureClass::Unavailable => self.outages += u32::from(counts),
            FailureClass::Permanent => {}
        }
    }
}
