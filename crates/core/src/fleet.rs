//! The fleet: which workers there are, which lanes each should ask, how many tasks of a lane each run may have out.
//!
//! Pure: beats, demands and the time come in; who is lost, orders and grants come out. Which worker asks which lanes is
//! `place`'s. Slots of a lane are shared by the runs that wait on it: the highest priority first, equals by their weights,
//! and what one does not need goes to the others; `limits` shares named limits over all runs in the same way. A slot that
//! nothing waits for may have a second attempt (`spare`). Deliberately not here: what becomes of a lost worker's tasks (each
//! run's own matter, [`crate::run`]), and sending anything.

mod limits;
mod place;

pub use limits::{Claim, RunClaims, allot};
pub use place::Wait;

use crate::{
    ids::{Attempt, RunId, TaskId, TimeMs, WorkerId},
    lane::Lane,
    task::Progress,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

mod spare;

/// Silence after which a worker is lost: 15 beats.
pub const LOST_AFTER_MS: u64 = 15_000;

/// Offers out for each slot that asks a lane: one that is worked on, and one so that no slot waits for a round trip.
const DEPTH: u32 = 2;

/// An attempt, among those of all runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttemptName {
    /// Its run.
    pub run: RunId,
    /// The task.
    pub task: TaskId,
    /// The attempt.
    pub attempt: Attempt,
}

/// An attempt that a worker is at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AtWork {
    /// Its run.
    pub run: RunId,
    /// The task.
    pub task: TaskId,
    /// The attempt.
    pub attempt: Attempt,
    /// How far it is.
    pub progress: Progress,
}

impl AtWork {
    /// Which attempt it is.
    pub fn name(&self) -> AttemptName {
        AttemptName { run: self.run.clone(), task: self.task, attempt: self.attempt }
    }
}

/// What a worker says of itself, every second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// Who speaks; another name after each start.
    pub worker: WorkerId,
    /// The machine's name, for people.
    pub host: String,
    /// Its pool.
    pub pool: String,
    /// Tasks that it runs at once.
    pub slots: u32,
    /// Host memory, in MiB.
    pub memory_mb: u64,
    /// Memory of its accelerator, in MiB; `None` where it has none.
    pub gpu_memory_mb: Option<u64>,
    /// Models in memory, as lanes name them.
    pub models: BTreeSet<String>,
    /// Whether it takes no further task.
    pub draining: bool,
    /// What it is at.
    pub at_work: Vec<AtWork>,
    /// Program and version.
    pub program: String,
}

/// A worker as the fleet knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Its latest beat.
    pub beat: Beat,
    /// When that was heard.
    pub heard: TimeMs,
    /// Lanes that it should ask, the first first.
    pub lanes: Vec<Lane>,
    /// Whether somebody asked that it takes no further task.
    pub asked_to_drain: bool,
}

/// What a run wants of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Tasks that could be handed out.
    pub waiting: u64,
    /// Attempts that are.
    pub handed_out: u32,
    /// Of these, those that wait for a worker.
    pub offered: u32,
}

/// What of a run takes too long in a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stragglers {
    /// Second attempts that are handed out.
    pub doubled: u32,
    /// Of each task that could have one, the worker that is at it.
    pub at: Vec<WorkerId>,
}

/// What a run wants, and its claim to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunDemand {
    /// Higher goes first.
    pub priority: i32,
    /// Share among runs of its priority; at least 1.
    pub weight: u32,
    /// By lane.
    pub lanes: BTreeMap<Lane, Demand>,
    /// By lane.
    pub stragglers: BTreeMap<Lane, Stragglers>,
}

/// What all runs want.
pub type Demands = BTreeMap<RunId, RunDemand>;

/// Tasks of each lane that each run may have handed out at once.
pub type Grants = BTreeMap<RunId, BTreeMap<Lane, u32>>;

/// Every worker that was heard and is not lost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fleet {
    members: BTreeMap<WorkerId, Member>,
}

impl Fleet {
    /// A worker spoke. Tells whether it is new.
    pub fn hear(&mut self, beat: Beat, now: TimeMs) -> bool {
        match self.members.get_mut(&beat.worker) {
            Some(member) => {
                member.beat = beat;
                member.heard = now;
                false
            }
            None => {
                let member = Member { heard: now, lanes: Vec::new(), asked_to_drain: false, beat };
                self.members.insert(member.beat.worker.clone(), member);
                true
            }
        }
    }

    /// Workers that were silent for too long. They are forgotten: one that speaks again is new.
    pub fn lose(&mut self, now: TimeMs) -> Vec<WorkerId> {
        let silent = |member: &Member| now.0.saturating_sub(member.heard.0) >= LOST_AFTER_MS;
        let lost: Vec<_> = self.members.iter().filter(|(_, m)| silent(m)).map(|(worker, _)| worker.clone()).collect();
        lost.iter().for_each(|worker| drop(self.members.remove(worker)));
        lost
    }

    /// Nobody could be heard until now, so nobody was silent.
    pub fn excuse(&mut self, now: TimeMs) {
        self.members.values_mut().for_each(|member| member.heard = now);
    }

    /// A worker said goodbye.
    pub fn leave(&mut self, worker: &WorkerId) {
        self.members.remove(worker);
    }

    /// Asks a worker to take no further task. Tells whether there is one of that name.
    pub fn drain(&mut self, worker: &WorkerId) -> bool {
        let member = self.members.get_mut(worker);
        member.map(|member| member.asked_to_drain = true).is_some()
    }

    /// The workers.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// A worker.
    pub fn member(&self, worker: &WorkerId) -> Option<&Member> {
        self.members.get(worker)
    }

    /// Slots that ask a lane.
    pub fn slots(&self, lane: &Lane) -> u32 {
        let asks = |member: &&Member| !member.is_draining() && member.lanes.contains(lane);
        self.members.values().filter(asks).map(|member| member.beat.slots).sum()
    }

    /// How many tasks of each lane each run may have out.
    pub fn grants(&self, demands: &Demands) -> Grants {
        let lanes: BTreeSet<&Lane> = demands.values().flat_map(|run| run.lanes.keys()).collect();
        let mut grants: Grants = demands.keys().map(|run| (run.clone(), BTreeMap::new())).collect();
        for lane in lanes {
            for (run, granted) in share(lane, self.slots(lane) * DEPTH, demands) {
                if let Some(grant) = grants.get_mut(run) {
                    grant.insert(lane.clone(), granted);
                }
            }
        }
        grants
    }
}

impl Member {
    /// Whether it takes no further task.
    pub fn is_draining(&self) -> bool {
        self.asked_to_drain || self.beat.draining
    }
}

/// Shares `places` of a lane among the runs that can use them.
fn share<'a>(lane: &Lane, places: u32, demands: &'a Demands) -> BTreeMap<&'a RunId, u32> {
    let uses = |run: &RunDemand| {
        let demand = run.lanes.get(lane).copied().unwrap_or_default();
        u32::try_from(demand.waiting + u64::from(demand.handed_out)).unwrap_or(u32::MAX)
    };
    share_out(places, demands.iter().map(|(id, run)| (id, run.priority, run.weight, uses(run))))
}

/// Shares `places` among runs, each with its priority, its weight and what it can use: by priority, then in rounds by
/// weight, to nobody more than it can use.
fn share_out<'a>(mut places: u32, runs: impl Iterator<Item = (&'a RunId, i32, u32, u32)>) -> BTreeMap<&'a RunId, u32> {
    let runs: Vec<_> = runs.collect();
    let mut shares: BTreeMap<&RunId, u32> = BTreeMap::new();
    let priorities: BTreeSet<i32> = runs.iter().map(|(_, priority, ..)| *priority).collect();
    for priority in priorities.into_iter().rev() {
        let of_priority = runs.iter().filter(|(_, of, _, uses)| *of == priority && *uses > 0);
        let mut hungry: Vec<(&RunId, u64, u32)> =
            of_priority.map(|(id, _, weight, uses)| (*id, u64::from((*weight).max(1)), *uses)).collect();
        while places > 0 && !hungry.is_empty() {
            let weights: u64 = hungry.iter().map(|(_, weight, _)| weight).sum();
            let round = places;
            for (id, weight, uses) in &hungry {
                // Rounded up, so that every round gives something; the first ones get the odd places.
                let fair = (u64::from(round) * weight).div_ceil(weights) as u32;
                let share: &mut u32 = shares.entry(*id).or_default();
                let given = fair.min(uses - *share).min(places);
                *share += given;
                places -= given;
            }
            hungry.retain(|(id, _, uses)| shares.get(id).copied().unwrap_or(0) < *uses);
        }
    }
    shares
}

#[cfg(test)]
mod tests;
