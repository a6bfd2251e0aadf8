//! Stragglers: tasks that take far longer than their stage's others. Each may have a second attempt, in slots that nothing
//! else wants; whichever commits first ends the task.
//!
//! Only row-wise stages have them: a stage of one task has nothing that it could be compared with. Nor stages whose model is
//! behind a server: that is as slow for another worker, and asking twice costs twice; nor those with a named limit, whose
//! places are for tasks. Half of the tasks that
//! a stage has to compute must be done, so that the mean of their computing time means something; a task that has run for
//! longer than twice the mean and [`STRAGGLER_FLOOR_MS`] straggles. So among tasks of an hour one may take two before another slot
//! is spent on it, and what holds up a task of milliseconds now and then (a model to load, a store that is slow) does
//! not double it.
//!
//! Deliberately not here: which slots are idle ([`crate::fleet`]), and that the second attempt runs on another worker
//! than the first, which the workers see to.

use super::{Event, RunState, TaskState};
use crate::{
    ids::{Attempt, TaskId, TimeMs, WorkerId},
    lane::Slots,
    models::PinnedModel,
};

/// What every task may take beside twice the mean: 10 seconds. Less than the silence after which a worker is lost.
pub const STRAGGLER_FLOOR_MS: u64 = 10_000;

/// A begun attempt that a second one may be made beside, once it has taken too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The task.
    pub task: TaskId,
    /// Who is at it.
    pub worker: WorkerId,
    /// Since when.
    pub since: TimeMs,
    /// Time that it may take.
    pub patience_ms: u64,
}

impl Suspect {
    /// Whether it takes too long. A start that lies further ahead than it may take was told by another clock than `now`,
    /// and counts as long ago.
    pub fn straggles(&self, now: TimeMs) -> bool {
        now.0.abs_diff(self.since.0) > self.patience_ms
    }
}

impl RunState {
    /// Every attempt that may become a straggler, or is one. Costs about the number of attempts that are begun.
    pub fn suspects(&self) -> impl Iterator<Item = Suspect> + '_ {
        self.index.running.iter().filter_map(|&task| {
            let patience_ms = self.patience_ms(task.stage)?;
            let run = self.task_run(task)?;
            match &run.state {
                TaskState::Running(running) if !run.history.doubled => {
                    let begun = running.begun.as_ref()?;
                    Some(Suspect { task, worker: begun.worker.clone(), since: begun.at, patience_ms })
                }
                _ => None,
            }
        })
    }

    /// Tasks of these slots that have two attempts under way.
    pub fn doubled(&self, slots: &Slots) -> u32 {
        let lanes: Vec<usize> = self.lanes_of(slots).collect();
        let doubled = |task: &&TaskId| {
            let run = self.task_run(**task);
            run.is_some_and(|run| lanes.contains(&(run.lane as usize)) && matches!(run.state, TaskState::Doubled(_)))
        };
        self.index.running.iter().filter(doubled).count() as u32
    }

    /// Time that a task of a stage may take; `None` while too few others are done, or there are none.
    fn patience_ms(&self, stage: u32) -> Option<u64> {
        let sharded = self.sharded(stage)?;
        sharded.shards.rows()?;
        let planned = &self.plan.stages[stage as usize];
        if matches!(planned.model, Some(PinnedModel::Remote { .. })) || !planned.resources.limits.is_empty() {
            return None;
        }
        let tally = &sharded.tally;
        let (computed, reused) = (u64::from(tally.done - tally.reused), u64::from(tally.reused));
        let to_compute = sharded.tasks.len() as u64 - reused;
        let enough = computed > 0 && 2 * computed >= to_compute;
        enough.then(|| 2 * tally.computed_ms / computed + STRAGGLER_FLOOR_MS)
    }
}

/// Second attempts at the stragglers of some slots, those that have run longest first.
pub(super) fn double(state: &RunState, slots: &Slots, free: u32, now: TimeMs) -> Vec<Event> {
    let lanes: Vec<usize> = state.lanes_of(slots).collect();
    let theirs =
        |suspect: &Suspect| state.task_run(suspect.task).is_some_and(|run| lanes.contains(&(run.lane as usize)));
    let mut stragglers: Vec<Suspect> = state.suspects().filter(|s| theirs(s) && s.straggles(now)).collect();
    stragglers.sort_unstable_by_key(|suspect| (suspect.since, suspect.task));
    let events = stragglers.into_iter().take(free as usize).filter_map(|Suspect { task, .. }| {
        let attempt = Attempt(state.attempts(task)? + 1);
        Some(Event::TaskDoubled { task, attempt, at: now })
    });
    events.collect()
}
