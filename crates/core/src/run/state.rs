//! The state of a run, and the indexes that keep every question about it cheap.
//!
//! All changes of a task go through [`RunState::set`]: it is the one place where indexes, counts and the waiting of
//! other tasks follow a task's state.

use super::{
    Event, IllegalTransition, PlanDefect, RunOutcome, apply,
    graph::{Graph, reads_whole},
    retry,
    rooms::Lanes,
    shards::{Shards, narrow},
    task::{History, Ready, Running, TaskRun, TaskState, Unprobed},
};
use crate::{
    ids::{Attempt, RowRange, RunId, TaskId, TimeMs},
    key::Key,
    lane::Slots,
    plan::{Need, Plan},
    task::ArtifactSummary,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

/// How far the run as a whole is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Not begun.
    Created,
    /// Working.
    Active,
    /// Asked to stop; attempts that a worker has begun may end.
    Cancelling,
    /// Ended.
    Finished(RunOutcome),
}

/// What a stage has made so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) done: u32,
    pub(super) reused: u32,
    pub(super) failed: u32,
    /// Rows of the driving table that are done.
    pub(super) rows_done: u64,
    /// Rows of each table, summed over done shards.
    pub(super) tables: BTreeMap<String, u64>,
    pub(super) bytes: u64,
    pub(super) bad_rows: u64,
    /// Milliseconds of computing; whole, so that the sum survives replay exactly.
    pub(super) compute_ms: u64,
    /// Those of tasks that were not reused.
    pub(super) computed_ms: u64,
}

/// A stage whose tasks are known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sharded {
    pub(super) shards: Shards,
    pub(super) tasks: Vec<TaskRun>,
    pub(super) tally: Tally,
}

impl Sharded {
    pub(super) fn complete(&self) -> bool {
        self.tally.done as usize == self.tasks.len()
    }
}

/// Place of a task in its lane's queue. Stages of one task come first: whole stages wait for each of them. Then the
/// plan's order, which also keeps one model's shards together.
pub(super) type Rank = (bool, TaskId);

/// Tasks by what can happen to them next.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Index {
    pub(super) unprobed: BTreeSet<TaskId>,
    /// By lane: ready at any time.
    pub(super) ready: Vec<BTreeSet<Rank>>,
    /// By lane: ready from a time on.
    pub(super) delayed: Vec<BTreeSet<(TimeMs, TaskId)>>,
    /// With an attempt that is handed out and not begun.
    pub(super) offered: BTreeSet<TaskId>,
    /// With an attempt that is begun.
    pub(super) running: BTreeSet<TaskId>,
    /// By lane: attempts that are handed out, begun or not.
    pub(super) handed_out: Vec<u32>,
    /// By named limit: handed out, begun or not.
    pub(super) capped: Vec<u32>,
    /// By stage: ready, now or from a time on.
    pub(super) waiting: Vec<u32>,
    pub(super) failed: BTreeSet<TaskId>,
    /// Tasks of sharded stages that are not done.
    pub(super) open_tasks: u64,
    /// Stages whose tasks are not known.
    pub(super) unsharded: u32,
}

impl Index {
    pub(super) fn ready_count(&self) -> usize {
        self.ready.iter().map(BTreeSet::len).sum::<usize>() + self.delayed.iter().map(BTreeSet::len).sum::<usize>()
    }
}

/// State of a run. Changed only by [`apply`].
#[derive(Clone, Debug, PartialEq)]
pub struct RunState {
    pub(super) plan: Arc<Plan>,
    pub(super) graph: Arc<Graph>,
    pub(super) run: RunId,
    pub(super) phase: Phase,
    /// `None` while the rows of the driving table are not known.
    pub(super) stages: Vec<Option<Sharded>>,
    pub(super) lanes: Lanes,
    pub(super) index: Index,
}

/// Events that are not a run's.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The first event is not [`Event::RunStarted`].
    #[error("the journal does not begin with the start of a run; start a new run (finished artifacts are reused)")]
    NoStart,
    /// The plan cannot be run.
    #[error(transparent)]
    Plan(#[from] PlanDefect),
    /// A snapshot is none of a run's.
    #[error("the snapshot does not fit its run: {0}")]
    Snapshot(&'static str),
    /// An event does not fit what came before it.
    #[error("event {position} of the journal: {source}; start a new run (finished artifacts are reused)")]
    Illegal {
        /// Position of the event, from 0.
        position: usize,
        /// What does not fit.
        source: IllegalTransition,
    },
}

impl RunState {
    /// A run that has not begun.
    ///
    /// # Errors
    /// When the plan is not one that validation lets pass.
    pub fn new(run: RunId, plan: Arc<Plan>) -> Result<Self, PlanDefect> {
        let graph = Graph::new(&plan)?;
        let lanes = graph.lanes.len();
        let index = Index {
            ready: vec![BTreeSet::new(); lanes],
            delayed: vec![BTreeSet::new(); lanes],
            handed_out: vec![0; lanes],
            capped: vec![0; graph.caps.len()],
            waiting: vec![0; plan.stages.len()],
            unsharded: narrow(plan.stages.len() as u64),
            ..Index::default()
        };
        Ok(Self {
            run,
            phase: Phase::Created,
            stages: vec![None; plan.stages.len()],
            index,
            lanes: Lanes::new(&graph),
            graph: Arc::new(graph),
            plan,
        })
    }

    /// The state after these events, the first of which is [`Event::RunStarted`].
    ///
    /// # Errors
    /// When the events are not those of one run.
    pub fn replay<'a>(events: impl IntoIterator<Item = &'a Event>) -> Result<Self, ReplayError> {
        let mut events = events.into_iter().peekable();
        let Some(Event::RunStarted { run, plan, .. }) = events.peek() else { return Err(ReplayError::NoStart) };
        let mut state = Self::new(run.clone(), Arc::new((**plan).clone()))?;
        for (position, event) in events.enumerate() {
            apply(&mut state, event).map_err(|source| ReplayError::Illegal { position, source })?;
        }
        Ok(state)
    }

    /// The run.
    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// What it runs.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// How far it is as a whole.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How a stage is cut; `None` while that is not known.
    pub fn shards(&self, stage: u32) -> Option<Shards> {
        Some(self.sharded(stage)?.shards)
    }

    /// State of a task; `None` when there is no such task (yet).
    pub fn task(&self, task: TaskId) -> Option<&TaskState> {
        Some(&self.task_run(task)?.state)
    }

    /// Number of the task's latest attempt, 0 before the first; `None` when there is no such task.
    pub fn attempts(&self, task: TaskId) -> Option<u32> {
        Some(self.task_run(task)?.history.attempts)
    }

    /// Key of a task; `None` when there is no such task.
    pub fn key(&self, task: TaskId) -> Option<&Key> {
        Some(&self.task_run(task)?.key)
    }

    /// Attempts in these slots that are handed out, begun or not.
    pub fn handed_out(&self, slots: &Slots) -> u32 {
        self.lanes_of(slots).map(|lane| self.index.handed_out[lane]).sum()
    }

    /// Tasks of these slots that could be handed out now, or as soon as their wait for another attempt is over.
    pub fn waiting(&self, slots: &Slots) -> u64 {
        self.lanes_of(slots).map(|lane| (self.index.ready[lane].len() + self.index.delayed[lane].len()) as u64).sum()
    }

    /// Tasks of a stage that could be handed out now, or as soon as their wait for another attempt is over.
    pub fn waiting_of(&self, stage: u32) -> u32 {
        self.index.waiting.get(stage as usize).copied().unwrap_or(0)
    }

    /// Milliseconds until the next wait of a task for its next attempt is over; `None` when none waits. What is ready already
    /// does not count: it waits for a slot of its own lane, and what becomes ready later may have one in another.
    pub fn next_retry_ms(&self, now: TimeMs) -> Option<u64> {
        let next = self.index.delayed.iter().filter_map(|waiting| retry::next_due(waiting, now)).min()?;
        Some(next.0 - now.0)
    }

    /// The attempts at a task that are under way: none, one, or two, the first one first.
    pub fn under_way(&self, task: TaskId) -> impl Iterator<Item = &Running> + use<'_> {
        let (first, second) = self.task(task).map_or((None, None), TaskState::under_way);
        first.into_iter().chain(second)
    }

    /// An attempt that is under way.
    pub fn attempt(&self, task: TaskId, attempt: Attempt) -> Option<&Running> {
        self.under_way(task).find(|running| running.attempt == attempt)
    }

    /// Positions of the lanes that these slots serve.
    pub(super) fn lanes_of<'a>(&'a self, slots: &'a Slots) -> impl Iterator<Item = usize> + 'a {
        self.lanes.all.iter().enumerate().filter(|(_, lane)| slots.serve(lane)).map(|(position, _)| position)
    }

    /// Every attempt that is handed out, with who is at it.
    pub fn all_handed_out(&self) -> impl Iterator<Item = (TaskId, &Running)> {
        let of = |task: &TaskId, begun: bool| {
            let task = *task;
            self.under_way(task).filter(move |running| running.begun.is_some() == begun).map(move |r| (task, r))
        };
        let offered = self.index.offered.iter().flat_map(move |task| of(task, false));
        offered.chain(self.index.running.iter().flat_map(move |task| of(task, true)))
    }

    pub(super) fn sharded(&self, stage: u32) -> Option<&Sharded> {
        self.stages.get(stage as usize)?.as_ref()
    }

    pub(super) fn task_run(&self, task: TaskId) -> Option<&TaskRun> {
        self.sharded(task.stage)?.tasks.get(task.shard as usize)
    }

    /// Rows of a stage's table, as soon as they are known.
    pub(super) fn table_rows(&self, stage: u32, table: &str) -> Option<u64> {
        let sharded = self.sharded(stage)?;
        match sharded.shards.rows() {
            Some(rows) => Some(rows),
            None => sharded.tally.tables.get(table).copied(),
        }
    }

    /// Shards of an input that a task reads; `None` while the input's stage is not cut.
    pub(super) fn input_shards(&self, row_wise: bool, need: &Need, range: Option<RowRange>) -> Option<Range<u32>> {
        let shards = self.sharded(need.stage)?.shards;
        Some(match range {
            Some(range) if !reads_whole(row_wise, need) => shards.covering(range),
            _ => 0..narrow(shards.count()),
        })
    }

    /// Cuts a stage into its tasks. The caller has checked that it is not cut yet.
    pub(super) fn shard(&mut self, stage: u32, shards: Shards) {
        let planned = &self.plan.stages[stage as usize];
        let row_wise = planned.drive().is_some();
        let lane = self.lanes.of_stage[stage as usize];
        let tasks = (0..narrow(shards.count())).map(|shard| {
            let range = shards.range(shard);
            let waiting = planned.needs.iter().map(|need| self.unmet(row_wise, need, range)).sum();
            TaskRun {
                key: planned.task_key(range),
                waiting,
                history: History::default(),
                state: TaskState::Unprobed(Unprobed { not_before: TimeMs(0) }),
                lane,
            }
        });
        let tasks: Vec<TaskRun> = tasks.collect();
        self.index.unprobed.extend((0..narrow(tasks.len() as u64)).map(|shard| TaskId { stage, shard }));
        self.index.open_tasks += tasks.len() as u64;
        self.index.unsharded -= 1;
        self.stages[stage as usize] = Some(Sharded { shards, tasks, tally: Tally::default() });
        self.recount_readers(stage, shards);
    }

    /// Unmet conditions of one input of a task.
    fn unmet(&self, row_wise: bool, need: &Need, range: Option<RowRange>) -> u32 {
        let Some(source) = self.sharded(need.stage) else { return 1 };
        match (range, self.input_shards(row_wise, need, range)) {
            (Some(_), Some(shards)) if !reads_whole(row_wise, need) => {
                let open = shards.filter(|s| !matches!(source.tasks[*s as usize].state, TaskState::Done(_)));
                narrow(open.count() as u64)
            }
            _ => u32::from(!source.complete()),
        }
    }

    /// Readers that were cut before `stage` waited for it as one; now they wait for those of its shards that they read.
    fn recount_readers(&mut self, stage: u32, shards: Shards) {
        let graph = Arc::clone(&self.graph);
        for edge in graph.readers[stage as usize].iter().filter(|e| !e.whole) {
            let Some(reader) = self.sharded(edge.stage) else { continue };
            let ranges = reader.shards;
            for shard in 0..narrow(ranges.count()) {
                let covering = ranges.range(shard).map_or(1, |r| narrow(shards.covering(r).count() as u64));
                self.change_waiting(TaskId { stage: edge.stage, shard }, i64::from(covering) - 1);
            }
        }
    }

    /// Moves a task to another state.
    pub(super) fn set(&mut self, task: TaskId, next: TaskState) {
        self.unindex(task);
        let done = matches!(next, TaskState::Done(_));
        let lane = self.lanes.of_stage[task.stage as usize];
        let run = self.run_mut(task);
        if !matches!(next, TaskState::Running(_) | TaskState::Doubled(_)) {
            run.lane = lane;
        }
        run.state = next;
        self.enter(task);
        if done {
            self.release_readers(task);
        }
    }

    /// Counts a done task's artifact. Called before [`Self::set`].
    pub(super) fn count_artifact(&mut self, task: TaskId, summary: &ArtifactSummary, reused: bool) {
        let Some(sharded) = self.stages[task.stage as usize].as_mut() else { return };
        let rows = sharded.shards.range(task.shard).map_or(0, |r| r.len());
        let tally = &mut sharded.tally;
        tally.rows_done += rows;
        for (table, rows) in &summary.rows {
            *tally.tables.entry(table.clone()).or_default() += rows;
        }
        tally.bytes += summary.bytes;
        tally.bad_rows += summary.bad_rows;
        let ms = (summary.seconds.max(0.0) * 1000.0).round() as u64;
        tally.compute_ms += ms;
        tally.computed_ms += if reused { 0 } else { ms };
    }

    pub(super) fn run_mut(&mut self, task: TaskId) -> &mut TaskRun {
        let sharded = self.stages[task.stage as usize].as_mut().expect("callers look the task up first");
        &mut sharded.tasks[task.shard as usize]
    }

    fn tally_mut(&mut self, stage: u32) -> &mut Tally {
        &mut self.stages[stage as usize].as_mut().expect("callers look the task up first").tally
    }

    fn rank(&self, task: TaskId) -> Rank {
        (self.plan.stages[task.stage as usize].drive().is_some(), task)
    }

    /// Takes a task out of the index of its present state.
    fn unindex(&mut self, task: TaskId) {
        let lane = self.run_mut(task).lane as usize;
        let rank = self.rank(task);
        match self.run_mut(task).state.clone() {
            TaskState::Unprobed(_) => drop(self.index.unprobed.remove(&task)),
            TaskState::Blocked => {}
            TaskState::Ready(Ready { not_before }) => {
                match not_before {
                    TimeMs(0) => _ = self.index.ready[lane].remove(&rank),
                    _ => _ = self.index.delayed[lane].remove(&(not_before, task)),
                }
                self.index.waiting[task.stage as usize] -= 1;
            }
            state @ (TaskState::Running(_) | TaskState::Doubled(_)) => {
                self.index.offered.remove(&task);
                self.index.running.remove(&task);
                let attempts = state.attempts_under_way();
                self.index.handed_out[lane] -= attempts;
                self.graph.caps_of[task.stage as usize].iter().for_each(|cap| self.index.capped[*cap] -= attempts);
            }
            TaskState::Done(_) => {}
            TaskState::Failed(_) => {
                self.index.failed.remove(&task);
                self.tally_mut(task.stage).failed -= 1;
            }
        }
    }

    /// Puts a task into the index of its present state.
    fn enter(&mut self, task: TaskId) {
        let lane = self.run_mut(task).lane as usize;
        let rank = self.rank(task);
        match self.run_mut(task).state.clone() {
            TaskState::Unprobed(_) => drop(self.index.unprobed.insert(task)),
            TaskState::Blocked => {}
            TaskState::Ready(Ready { not_before }) => {
                match not_before {
                    TimeMs(0) => _ = self.index.ready[lane].insert(rank),
                    _ => _ = self.index.delayed[lane].insert((not_before, task)),
                }
                self.index.waiting[task.stage as usize] += 1;
            }
            state @ (TaskState::Running(_) | TaskState::Doubled(_)) => {
                let attempts = state.attempts_under_way();
                self.index.handed_out[lane] += attempts;
                self.graph.caps_of[task.stage as usize].iter().for_each(|cap| self.index.capped[*cap] += attempts);
                let (first, second) = state.under_way();
                for running in first.into_iter().chain(second) {
                    let set = if running.begun.is_some() { &mut self.index.running } else { &mut self.index.offered };
                    set.insert(task);
                }
            }
            TaskState::Done(done) => {
                self.index.open_tasks -= 1;
                let tally = self.tally_mut(task.stage);
                tally.done += 1;
                tally.reused += u32::from(done.reused);
            }
            TaskState::Failed(_) => {
                self.index.failed.insert(task);
                self.tally_mut(task.stage).failed += 1;
            }
        }
    }

    /// Tells the tasks that read a task that just became done.
    fn release_readers(&mut self, task: TaskId) {
        let graph = Arc::clone(&self.graph);
        let Some(source) = self.sharded(task.stage) else { return };
        let (shards, complete) = (source.shards, source.complete());
        for edge in &graph.readers[task.stage as usize] {
            let Some(reader) = self.sharded(edge.stage) else { continue };
            let released = match edge.whole {
                true if complete => 0..narrow(reader.shards.count()),
                true => continue,
                false => reader.shards.readers(&shards, task.shard),
            };
            for shard in released {
                self.change_waiting(TaskId { stage: edge.stage, shard }, -1);
            }
        }
    }

    fn change_waiting(&mut self, task: TaskId, change: i64) {
        let run = self.run_mut(task);
        run.waiting = u32::try_from(i64::from(run.waiting) + change).expect("a condition is met once");
        if run.waiting == 0 && run.state == TaskState::Blocked {
            self.set(task, TaskState::Ready(Ready { not_before: TimeMs(0) }));
        }
    }
}
