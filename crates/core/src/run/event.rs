//! What happened to a run, as journaled. Enough to replay the run and to count what it did.

use crate::{
    ids::{Attempt, RunId, TaskId, TimeMs, WorkerId},
    key::Key,
    lane::Room,
    plan::Plan,
    task::{ArtifactSummary, FailureClass},
};
use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run began.
    RunStarted {
        /// The run.
        run: RunId,
        /// What it runs.
        plan: Box<Plan>,
        /// When.
        at: TimeMs,
    },
    /// A coordinator took the run up again; attempts that were running have lost their workers.
    RunResumed {
        /// When.
        at: TimeMs,
    },
    /// Another coordinator took the run over; attempts that were running go on.
    RunTakenOver {
        /// When.
        at: TimeMs,
    },
    /// The row count of a row-wise stage became known, and with it its shards.
    StageSharded {
        /// Position of the stage in the plan.
        stage: u32,
        /// Rows that it makes, after its own limit.
        rows: u64,
    },
    /// The store already has the task's artifact.
    TaskReused {
        /// The task.
        task: TaskId,
        /// Its key.
        key: Key,
        /// What the artifact holds.
        summary: ArtifactSummary,
        /// When.
        at: TimeMs,
    },
    /// The store does not have the task's artifact.
    TaskMissing {
        /// The task.
        task: TaskId,
    },
    /// An attempt was handed out.
    TaskDispatched {
        /// The task.
        task: TaskId,
        /// Its key.
        key: Key,
        /// Number of the attempt.
        attempt: Attempt,
        /// When.
        at: TimeMs,
    },
    /// A second attempt was handed out beside one that takes far longer than its stage's others.
    TaskDoubled {
        /// The task.
        task: TaskId,
        /// Number of the second attempt.
        attempt: Attempt,
        /// When.
        at: TimeMs,
    },
    /// A worker began an attempt.
    TaskStarted {
        /// The task.
        task: TaskId,
        /// Number of the attempt.
        attempt: Attempt,
        /// Who began it.
        worker: WorkerId,
        /// When.
        at: TimeMs,
    },
    /// The task's artifact is in the store.
    TaskCommitted {
        /// The task.
        task: TaskId,
        /// The attempt that says so; may be an earlier one than the latest.
        attempt: Attempt,
        /// Who said so.
        worker: WorkerId,
        /// What the artifact holds.
        summary: ArtifactSummary,
        /// Whether this attempt's output became the artifact.
        first: bool,
        /// When.
        at: TimeMs,
    },
    /// An attempt ended without an artifact, or the task cannot be attempted.
    TaskFailed {
        /// The task.
        task: TaskId,
        /// The attempt; `None` when there was none.
        attempt: Option<Attempt>,
        /// Why, as far as it decides what is next.
        class: FailureClass,
        /// What happened and what to do.
        message: String,
        /// What is next.
        next: Next,
        /// When.
        at: TimeMs,
    },
    /// A task of a stage ran out of memory: those that are not handed out wait for larger workers from now on.
    StageOutgrown {
        /// Position of the stage in the plan.
        stage: u32,
        /// What its tasks seem to need now.
        wanted: Room,
        /// When.
        at: TimeMs,
    },
    /// The run was asked to stop: running attempts may end, offered ones are withdrawn, nothing new begins.
    CancelRequested {
        /// When.
        at: TimeMs,
    },
    /// The run ended.
    RunFinished {
        /// How.
        outcome: RunOutcome,
        /// When.
        at: TimeMs,
    },
}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "next", rename_all = "snake_case")]
pub enum Next {
    /// Another attempt, because the task itself failed.
    Retry {
        /// Not before this time.
        not_before: TimeMs,
    },
    /// Another attempt, because the worker was lost.
    Replace {
        /// Whether the loss counts towards quarantine.
        counts: bool,
    },
    /// None: the task's other attempt goes on.
    Other {
        /// Whether it counts: a loss towards quarantine, a failure of the task's own as one.
        counts: bool,
    },
    /// None: the task has failed.
    GiveUp,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    /// Every task's artifact is in the store.
    Done,
    /// At least one task failed; everything that does not depend on one is done.
    Failed,
    /// It was asked to stop. It can be resumed.
    Cancelled,
}
