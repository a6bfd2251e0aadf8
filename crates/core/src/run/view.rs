//! What people and progress displays see of a run. Costs about the number of stages, not of tasks.

use super::{Phase, RunOutcome, RunState, TaskState};
use crate::{
    ids::{RunId, StageName, TaskId},
    kind::StageKind,
    task::FailureClass,
};
use serde::{Deserialize, Serialize};

/// A run at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// The run.
    pub run: RunId,
    /// Name of its pipeline.
    pub pipeline: String,
    /// How it ended; `None` while it goes on.
    pub outcome: Option<RunOutcome>,
    /// Whether it was asked to stop and has not yet.
    pub cancelling: bool,
    /// Its stages, in the plan's order.
    pub stages: Vec<StageView>,
}

/// A stage at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageView {
    /// Its name.
    pub name: StageName,
    /// Its kind.
    pub kind: StageKind,
    /// Tasks in all; `None` while the rows of its driving table are not known.
    pub tasks: Option<u64>,
    /// Tasks whose artifact is there, reused ones included.
    pub done: u64,
    /// Tasks whose artifact was there before.
    pub reused: u64,
    /// Tasks that a worker has begun.
    pub running: u64,
    /// Tasks that failed for good.
    pub failed: u64,
    /// Rows in all, of a row-wise stage whose driving table is known.
    pub rows: Option<u64>,
    /// Rows in shards that are done.
    pub rows_done: u64,
    /// Rows that failed and were let pass.
    pub bad_rows: u64,
    /// Bytes of its artifacts.
    pub bytes: u64,
    /// Seconds of computing that its artifacts took, now or when they were made.
    pub seconds: f64,
    /// Failure of its first failed task.
    pub error: Option<TaskError>,
}

/// Why a task failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskError {
    /// The task.
    pub task: TaskId,
    /// Name of its stage.
    pub stage: StageName,
    /// Its class.
    pub class: FailureClass,
    /// What happened and what to do.
    pub message: String,
}

impl RunState {
    /// The run at a glance.
    pub fn view(&self) -> RunView {
        RunView {
            run: self.run.clone(),
            pipeline: self.plan.pipeline.clone(),
            outcome: match self.phase {
                Phase::Finished(outcome) => Some(outcome),
                Phase::Created | Phase::Active | Phase::Cancelling => None,
            },
            cancelling: self.phase == Phase::Cancelling,
            stages: (0..self.plan.stages.len() as u32).map(|stage| self.stage_view(stage)).collect(),
        }
    }

    fn stage_view(&self, stage: u32) -> StageView {
        let planned = &self.plan.stages[stage as usize];
        let of_stage = TaskId { stage, shard: 0 }..=TaskId { stage, shard: u32::MAX };
        let sharded = self.sharded(stage);
        let tally = sharded.map(|s| s.tally.clone()).unwrap_or_default();
        StageView {
            name: planned.name.clone(),
            kind: planned.kind,
            tasks: sharded.map(|s| s.tasks.len() as u64),
            done: u64::from(tally.done),
            reused: u64::from(tally.reused),
            running: self.index.running.range(of_stage.clone()).count() as u64,
            failed: u64::from(tally.failed),
            rows: sharded.and_then(|s| s.shards.rows()),
            rows_done: tally.rows_done,
            bad_rows: tally.bad_rows,
            bytes: tally.bytes,
            seconds: tally.compute_ms as f64 / 1000.0,
            error: self.index.failed.range(of_stage).next().and_then(|task| self.error(*task)),
        }
    }

    /// Every task that failed for good, in the plan's order.
    pub fn errors(&self) -> impl Iterator<Item = TaskError> + '_ {
        self.index.failed.iter().filter_map(|task| self.error(*task))
    }

    fn error(&self, task: TaskId) -> Option<TaskError> {
        match self.task(task)? {
            TaskState::Failed(failed) => Some(TaskError {
                task,
                stage: self.plan.stages[task.stage as usize].name.clone(),
                class: failed.class,
                message: failed.message.clone(),
            }),
            _ => None,
        }
    }
}
