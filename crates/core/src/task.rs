//! What a worker is told, and what it tells back. `proto` puts these on the wire.

use crate::{
    ids::{Attempt, RowRange, RunId, StageName, TaskId, WorkerId},
    key::Key,
    kind::{Mode, StageKind},
    models::PinnedModel,
    plan::PinnedSource,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One shard of an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputShard {
    /// Key of its artifact.
    pub key: Key,
    /// Rows that it holds of its stage's table; `None` when the stage is one task.
    pub rows: Option<RowRange>,
}

/// The shards of an input that a task reads, in order. Their keys are worked out: reading a million of them is said in
/// a few words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputShards {
    /// The artifact of a stage that is one task.
    One(Key),
    /// Shards of a row-wise stage.
    Cut {
        /// Identity of the stage's rows.
        row_key: Key,
        /// Rows of the shards together. None: the one shard of an empty stage.
        rows: RowRange,
        /// Rows of each shard but the last.
        step: u64,
    },
}

impl InputShards {
    /// How many there are.
    pub fn count(&self) -> u64 {
        match self {
            Self::One(_) => 1,
            Self::Cut { rows, step, .. } => rows.len().div_ceil((*step).max(1)).max(1),
        }
    }

    /// Each shard.
    pub fn iter(&self) -> impl Iterator<Item = InputShard> + '_ {
        (0..self.count()).map(move |number| match self {
            Self::One(key) => InputShard { key: key.clone(), rows: None },
            Self::Cut { row_key, rows, step } => {
                let start = rows.start.saturating_add(number.saturating_mul((*step).max(1)));
                let range = RowRange { start, end: start.saturating_add((*step).max(1)).min(rows.end) };
                InputShard { key: row_key.shard(range), rows: Some(range) }
            }
        })
    }
}

/// One input of a task: the shards that hold the rows it reads, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInput {
    /// Name of the input.
    pub port: String,
    /// Name of the stage that made it.
    pub stage: StageName,
    /// Name of its table.
    pub table: String,
    /// How it is read.
    pub mode: Mode,
    /// Its shards.
    pub shards: InputShards,
}

/// One attempt at a task, as sent to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskOffer {
    /// Its run.
    pub run: RunId,
    /// Its place in the run's plan.
    pub task: TaskId,
    /// Number of the attempt.
    pub attempt: Attempt,
    /// Where its output goes.
    pub key: Key,
    /// Name of its stage.
    pub stage: StageName,
    /// Kind of its stage.
    pub kind: StageKind,
    /// The stage's parameters, complete.
    pub params: serde_json::Value,
    /// Seed of everything random.
    pub seed: u64,
    /// The model to compute with.
    pub model: Option<PinnedModel>,
    /// The raw data to read.
    pub data: Option<PinnedSource>,
    /// Rows that may fail before the task does.
    pub max_bad_rows: u64,
    /// The rows to make; `None` for stages that are one task.
    pub rows: Option<RowRange>,
    /// What to read.
    pub inputs: Vec<TaskInput>,
    /// Why each field of the key is as it is; kept in the manifest as lineage.
    pub fields: crate::key::KeyFields,
}

/// Why an attempt failed, as far as it decides what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// May pass next time: try again after a wait.
    Transient,
    /// Not enough memory: try again with less, or on a larger machine.
    Resource,
    /// Will fail every time: bad input, or a bug. Do not try again.
    Permanent,
    /// The worker went away; does not count against the task.
    Lost,
    /// The store did not answer, or is full; says nothing about the task. Try again after a wait, patiently.
    Unavailable,
}

/// What an artifact holds, in short.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ArtifactSummary {
    /// Rows of each table.
    pub rows: BTreeMap<String, u64>,
    /// Bytes at rest.
    pub bytes: u64,
    /// Seconds that it took to compute.
    pub seconds: f64,
    /// Rows that failed and were let pass.
    pub bad_rows: u64,
}

/// How far an attempt is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Rows (or epochs, for training) done.
    pub done: u64,
    /// Rows (or epochs) in all.
    pub total: u64,
    /// Tokens read and written so far.
    pub tokens: u64,
    /// Latest training loss.
    pub loss: Option<f64>,
}

/// What a worker says about an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It has begun.
    Started,
    /// It goes on.
    Progress(Progress),
    /// Its artifact is in the store, put there by this attempt or by an earlier one.
    Committed {
        /// What the artifact holds.
        summary: ArtifactSummary,
        /// Whether this attempt's output became the artifact.
        first: bool,
    },
    /// It failed.
    Failed {
        /// What to do about it.
        class: FailureClass,
        /// What happened, with the row if one is at fault, and what to do.
        message: String,
        /// Memory that it needed, when it ran out of it.
        #[serde(default)]
        needed: MemoryMb,
    },
}

/// Memory of a machine, in MiB; 0 where nothing is said of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMb {
    /// Of the host.
    pub host: u64,
    /// Of the accelerator.
    pub gpu: u64,
}

/// A worker's word on one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// The run.
    pub run: RunId,
    /// The task.
    pub task: TaskId,
    /// The attempt.
    pub attempt: Attempt,
    /// Who speaks.
    pub worker: WorkerId,
    /// What it says.
    pub outcome: Outcome,
}
