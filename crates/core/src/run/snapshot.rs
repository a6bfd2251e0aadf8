//! A run's state in short: what its journal came to after some number of records, so that taking the run up again needs
//! only those that came later.
//!
//! Nothing is true because a snapshot says so: it repeats what the records before it say, and they stay. Keys, indexes and
//! what waits for what are worked out again, so a stage whose tasks stand alike costs a line, not a line a task.

use super::{
    Phase, RecordError, RunState,
    shards::Shards,
    state::{ReplayError, Tally},
    task::{History, TaskState},
};
use crate::{
    ids::{RunId, TaskId},
    lane::Room,
    plan::Plan,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A run after some records of its journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    version: u32,
    run: RunId,
    plan: Plan,
    phase: Phase,
    /// `None`: not cut into tasks.
    stages: Vec<Option<StageSnapshot>>,
    /// Stages that turned out to need more memory, in the order in which they did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    grown: Vec<(u32, Room)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StageSnapshot {
    /// Rows of a row-wise stage.
    rows: Option<u64>,
    tally: Tally,
    /// In the order of shards.
    tasks: Vec<Alike>,
}

/// Neighbours that stand alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Alike {
    count: u32,
    history: History,
    state: TaskState,
    /// Position of the lane that they were handed out in, where it is no longer their stage's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lane: Option<u32>,
}

impl Snapshot {
    /// Version that this program writes.
    pub const VERSION: u32 = 2;

    /// As one line of JSON.
    ///
    /// # Errors
    /// When a value cannot be JSON (none is).
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads [`Self::encode`]'s bytes.
    ///
    /// # Errors
    /// When the bytes are damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        RecordError::check_version(bytes, Self::VERSION)?;
        Ok(serde_json::from_slice(bytes)?)
    }
}

impl RunState {
    /// The state in short.
    pub fn snapshot(&self) -> Snapshot {
        let stages = self.stages.iter().zip(&self.lanes.of_stage).map(|(stage, current)| {
            let sharded = stage.as_ref()?;
            let mut tasks: Vec<Alike> = Vec::new();
            for task in &sharded.tasks {
                let lane = Some(task.lane).filter(|lane| lane != current);
                match tasks.last_mut() {
                    Some(last) if (last.history, last.lane) == (task.history, lane) && last.state == task.state => {
                        last.count += 1;
                    }
                    _ => tasks.push(Alike { count: 1, history: task.history, state: task.state.clone(), lane }),
                }
            }
            Some(StageSnapshot { rows: sharded.shards.rows(), tally: sharded.tally.clone(), tasks })
        });
        Snapshot {
            version: Snapshot::VERSION,
            run: self.run.clone(),
            plan: (*self.plan).clone(),
            phase: self.phase,
            stages: stages.collect(),
            grown: self.lanes.grown.clone(),
        }
    }

    /// The state that a snapshot was made of.
    ///
    /// # Errors
    /// When the snapshot is not one of a run's.
    pub fn restore(snapshot: Snapshot) -> Result<Self, ReplayError> {
        let Snapshot { run, plan, phase, stages, grown, .. } = snapshot;
        let mut state = Self::new(run, Arc::new(plan))?;
        if stages.len() != state.plan.stages.len() {
            return Err(ReplayError::Snapshot("it has another number of stages than its plan"));
        }
        state.phase = phase;
        grown.into_iter().for_each(|(stage, wanted)| state.outgrow(stage, wanted));
        for (stage, rows) in (0..).zip(stages.iter().map(|stage| stage.as_ref().map(|stage| stage.rows))) {
            let Some(rows) = rows else { continue };
            let planned = &state.plan.stages[stage as usize];
            let shards = match (planned.drive(), rows) {
                (None, None) => Shards::Single,
                (Some(_), Some(rows)) => Shards::of_rows(planned, rows),
                _ => return Err(ReplayError::Snapshot("a stage is cut in another way than its plan says")),
            };
            state.shard(stage, shards);
        }
        // What is done first: it lets others go that wait for it, and those are put where they stood after that.
        for done in [true, false] {
            for (stage, snapshot) in (0..).zip(&stages) {
                let Some(snapshot) = snapshot else { continue };
                state.restore_tasks(stage, &snapshot.tasks, done)?;
            }
        }
        for (stage, snapshot) in state.stages.iter_mut().zip(stages) {
            if let (Some(sharded), Some(snapshot)) = (stage, snapshot) {
                sharded.tally = snapshot.tally;
            }
        }
        Ok(state)
    }

    fn restore_tasks(&mut self, stage: u32, tasks: &[Alike], done: bool) -> Result<(), ReplayError> {
        let known = self.sharded(stage).map_or(0, |sharded| sharded.tasks.len() as u64);
        if tasks.iter().map(|alike| u64::from(alike.count)).sum::<u64>() != known {
            return Err(ReplayError::Snapshot("a stage has another number of tasks than its rows make"));
        }
        let mut shards = 0..;
        for Alike { count, history, state, lane } in tasks {
            if lane.is_some_and(|lane| lane as usize >= self.lanes.all.len()) {
                return Err(ReplayError::Snapshot("a task was handed out in a lane that there is not"));
            }
            let wanted = matches!(state, TaskState::Done(_)) == done;
            for shard in shards.by_ref().take(*count as usize).filter(|_| wanted) {
                let task = TaskId { stage, shard };
                let run = self.run_mut(task);
                run.history = *history;
                run.lane = lane.unwrap_or(run.lane);
                self.set(task, state.clone());
            }
        }
        Ok(())
    }
}
