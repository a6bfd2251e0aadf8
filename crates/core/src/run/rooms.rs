//! The lanes of a run, which change when a stage turns out to need more memory than was thought.
//!
//! What is handed out stays in the lane that it was handed out in, so that it can be withdrawn from there and its place is
//! counted there; everything else of the stage moves. Deliberately not here: which worker serves a lane
//! ([`crate::fleet`]'s).

use super::{RunState, TaskState, graph::Graph};
use crate::{
    ids::TaskId,
    lane::{Lane, Room},
};
use std::collections::BTreeSet;

/// The lanes of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lanes {
    /// Each once: those of the plan in its order, then those that stages grew into.
    pub(super) all: Vec<Lane>,
    /// Position of each stage's lane in `all`.
    pub(super) of_stage: Vec<u32>,
    /// What stages grew to, in the order of events: `all` follows from it.
    pub(super) grown: Vec<(u32, Room)>,
}

impl Lanes {
    pub(super) fn new(graph: &Graph) -> Self {
        let of_stage = graph.lane_of.iter().map(|lane| *lane as u32).collect();
        Self { all: graph.lanes.clone(), of_stage, grown: Vec::new() }
    }
}

impl RunState {
    /// The lanes that stages' tasks wait in, or have been handed out in.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes.all
    }

    /// The lane of a stage's tasks that are not handed out.
    pub fn lane(&self, stage: u32) -> Option<&Lane> {
        Some(&self.lanes.all[*self.lanes.of_stage.get(stage as usize)? as usize])
    }

    /// The lane that a task waits in, or was handed out in.
    pub fn lane_of_task(&self, task: TaskId) -> Option<&Lane> {
        Some(&self.lanes.all[self.task_run(task)?.lane as usize])
    }

    /// Named limits of the plan: how many tasks may be handed out at once, and how many are.
    pub fn limits(&self) -> impl Iterator<Item = (&str, u32, u32)> {
        let limits = self.graph.caps.iter().zip(&self.index.capped);
        limits.map(|((name, most), out)| (name.as_str(), *most, *out))
    }

    /// A stage's tasks want this much from now on. The caller has checked that there is such a stage.
    pub(super) fn outgrow(&mut self, stage: u32, wanted: Room) {
        let Some(lane) = self.lane(stage).map(|lane| Lane { wanted, ..lane.clone() }) else { return };
        self.lanes.grown.push((stage, wanted));
        let known = self.lanes.all.iter().position(|there| *there == lane);
        if known.is_none() {
            self.lanes.all.push(lane);
            self.index.ready.push(BTreeSet::new());
            self.index.delayed.push(BTreeSet::new());
            self.index.handed_out.push(0);
        }
        let lane = known.unwrap_or(self.lanes.all.len() - 1) as u32;
        self.lanes.of_stage[stage as usize] = lane;
        for task in (0..self.sharded(stage).map_or(0, |s| s.tasks.len() as u32)).map(|shard| TaskId { stage, shard }) {
            let run = self.run_mut(task);
            match run.state.clone() {
                TaskState::Running(_) | TaskState::Doubled(_) => {}
                // Into the other lane's queue.
                ready @ TaskState::Ready(_) => self.set(task, ready),
                TaskState::Unprobed(_) | TaskState::Blocked | TaskState::Done(_) | TaskState::Failed(_) => {
                    run.lane = lane
                }
            }
        }
    }
}
