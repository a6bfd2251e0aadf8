//! Events to state: the one place where a run moves.

use super::{
    Begun, Done, Doubled, Event, Failed, Next, Phase, Ready, RunOutcome, RunState, Running, Shards, TaskState,
    Unprobed, task::History,
};
use crate::{
    ids::{Attempt, TaskId, TimeMs, WorkerId},
    task::FailureClass,
};

/// An event that does not fit the state. Events come from [`super::decide`] on the same state, so this means a damaged
/// journal, or a bug.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IllegalTransition {
    /// The run as a whole is in a phase that does not allow the event.
    #[error("`{event}` cannot happen to a run that is {phase:?}")]
    Run {
        /// Name of the event.
        event: &'static str,
        /// The phase.
        phase: Phase,
    },
    /// The task's state does not allow the event.
    #[error("`{event}` cannot happen to task {task}, which is {state}")]
    Task {
        /// Name of the event.
        event: &'static str,
        /// The task.
        task: TaskId,
        /// Name of its state.
        state: &'static str,
    },
    /// A stage is cut twice, or not as its driving table says.
    #[error("stage {stage} cannot be cut into shards of {rows} rows in all now")]
    Stage {
        /// Position of the stage.
        stage: u32,
        /// Rows that the event names.
        rows: u64,
    },
}

/// Moves the state by one event. On error the state is as before.
///
/// # Errors
/// When the event does not fit the state.
pub fn apply(state: &mut RunState, event: &Event) -> Result<(), IllegalTransition> {
    use Phase::{Active, Cancelling, Created, Finished};
    match (state.phase, event) {
        (Created, Event::RunStarted { .. }) => start(state),
        (Active | Cancelling | Finished(RunOutcome::Failed | RunOutcome::Cancelled), Event::RunResumed { .. }) => {
            resume(state)
        }
        // What is owed stays owed, and who is at work stays so.
        (Active | Cancelling, Event::RunTakenOver { .. }) => {}
        (Active | Cancelling, Event::StageSharded { stage, rows }) => return shard(state, *stage, *rows),
        (
            Active | Cancelling,
            Event::TaskReused { task, .. }
            | Event::TaskMissing { task }
            | Event::TaskStarted { task, .. }
            | Event::TaskCommitted { task, .. }
            | Event::TaskFailed { task, .. },
        )
        | (Active, Event::TaskDispatched { task, .. } | Event::TaskDoubled { task, .. }) => {
            return apply_task(state, *task, event);
        }
        (Active | Cancelling, Event::StageOutgrown { stage, wanted, .. }) if state.lane(*stage).is_some() => {
            state.outgrow(*stage, *wanted);
        }
        (Active, Event::CancelRequested { .. }) => cancel(state),
        (Active | Cancelling, Event::RunFinished { outcome, .. }) if state.due_outcome() == Some(*outcome) => {
            state.phase = Finished(*outcome);
        }
        (phase, event) => return Err(IllegalTransition::Run { event: event.name(), phase }),
    }
    Ok(())
}

fn apply_task(state: &mut RunState, task: TaskId, event: &Event) -> Result<(), IllegalTransition> {
    let illegal = |name| IllegalTransition::Task { event: event.name(), task, state: name };
    let Some(run) = state.task_run(task) else { return Err(illegal("unknown")) };
    let (waiting, mut history) = (run.waiting, run.history);
    let next = match (&run.state, event) {
        (TaskState::Unprobed(_), Event::TaskReused { summary, .. }) => {
            let summary = summary.clone();
            state.count_artifact(task, &summary, true);
            TaskState::Done(Done { reused: true })
        }
        (TaskState::Unprobed(_), Event::TaskMissing { .. }) if waiting > 0 => TaskState::Blocked,
        (TaskState::Unprobed(Unprobed { not_before }), Event::TaskMissing { .. }) => {
            TaskState::Ready(Ready { not_before: *not_before })
        }
        (TaskState::Ready(_), Event::TaskDispatched { attempt, .. }) if attempt.0 == history.attempts + 1 => {
            history.attempts = attempt.0;
            history.doubled = false;
            TaskState::Running(Running { attempt: *attempt, begun: None })
        }
        (TaskState::Running(first), Event::TaskDoubled { attempt, .. }) if attempt.0 == history.attempts + 1 => {
            history.attempts = attempt.0;
            history.doubled = true;
            let second = Running { attempt: *attempt, begun: None };
            TaskState::Doubled(Box::new(Doubled { first: first.clone(), second }))
        }
        (TaskState::Running(running), Event::TaskStarted { attempt, worker, at, .. })
            if running.attempt == *attempt =>
        {
            TaskState::Running(begin(*attempt, worker, *at))
        }
        (TaskState::Doubled(doubled), Event::TaskStarted { attempt, worker, at, .. }) if doubled.has(*attempt) => {
            let begun = begin(*attempt, worker, *at);
            TaskState::Doubled(Box::new(match doubled.first.attempt == *attempt {
                true => Doubled { first: begun, second: doubled.second.clone() },
                false => Doubled { first: doubled.first.clone(), second: begun },
            }))
        }
        (
            TaskState::Unprobed(_)
            | TaskState::Blocked
            | TaskState::Ready(_)
            | TaskState::Running(_)
            | TaskState::Doubled(_)
            | TaskState::Failed(_),
            Event::TaskCommitted { attempt, summary, .. },
        ) if (1..=history.attempts).contains(&attempt.0) => {
            state.count_artifact(task, summary, false);
            TaskState::Done(Done { reused: false })
        }
        (
            TaskState::Unprobed(_) | TaskState::Ready(_) | TaskState::Running(_) | TaskState::Doubled(_),
            Event::TaskFailed { next: Next::GiveUp, class, message, .. },
        ) => TaskState::Failed(Box::new(Failed { class: *class, message: message.clone() })),
        (TaskState::Running(running), Event::TaskFailed { attempt, class, next: Next::Retry { not_before }, .. })
            if Some(running.attempt) == *attempt =>
        {
            match class {
                FailureClass::Unavailable => history.outages += 1,
                _ => history.failures += 1,
            }
            TaskState::Unprobed(Unprobed { not_before: *not_before })
        }
        (TaskState::Running(running), Event::TaskFailed { attempt, next: Next::Replace { counts }, .. })
            if Some(running.attempt) == *attempt =>
        {
            history.losses += u32::from(*counts);
            TaskState::Unprobed(Unprobed { not_before: TimeMs(0) })
        }
        (
            TaskState::Doubled(doubled),
            Event::TaskFailed { attempt: Some(attempt), class, next: Next::Other { counts }, .. },
        ) if doubled.has(*attempt) => {
            history.charge(*class, *counts);
            TaskState::Running(doubled.without(*attempt))
        }
        (other, _) => return Err(illegal(other.name())),
    };
    state.run_mut(task).history = history;
    state.set(task, next);
    Ok(())
}

fn begin(attempt: Attempt, worker: &WorkerId, at: TimeMs) -> Running {
    Running { attempt, begun: Some(Begun { worker: worker.clone(), at }) }
}

/// Stages of one task are cut at once; the others wait for their driving table.
fn start(state: &mut RunState) {
    state.phase = Phase::Active;
    let plan = std::sync::Arc::clone(&state.plan);
    for (stage, planned) in plan.stages.iter().enumerate() {
        if planned.drive().is_none() {
            state.shard(stage as u32, Shards::Single);
        }
    }
}

/// Whatever is not done is asked for again: attempts have lost their workers, and another run may have made what was
/// missing. What had failed gets a fresh start. Attempt numbers go on.
fn resume(state: &mut RunState) {
    state.phase = Phase::Active;
    for stage in 0..state.stages.len() as u32 {
        let tasks = state.sharded(stage).map_or(0, |s| s.tasks.len() as u32);
        for task in (0..tasks).map(|shard| TaskId { stage, shard }) {
            let run = state.run_mut(task);
            match run.state {
                TaskState::Done(_) | TaskState::Unprobed(_) => continue,
                TaskState::Failed(_) => run.history = History { attempts: run.history.attempts, ..History::default() },
                TaskState::Blocked | TaskState::Ready(_) | TaskState::Running(_) | TaskState::Doubled(_) => {}
            }
            state.set(task, TaskState::Unprobed(Unprobed { not_before: TimeMs(0) }));
        }
    }
}

/// Offers that no worker has begun are withdrawn; one that was claimed in this moment may still commit, and is welcome.
fn cancel(state: &mut RunState) {
    state.phase = Phase::Cancelling;
    for task in state.index.offered.clone() {
        let begun = state.under_way(task).find(|running| running.begun.is_some()).cloned();
        let next = begun.map_or(TaskState::Unprobed(Unprobed { not_before: TimeMs(0) }), TaskState::Running);
        state.set(task, next);
    }
}

fn shard(state: &mut RunState, stage: u32, rows: u64) -> Result<(), IllegalTransition> {
    if state.shardable_rows(stage) != Some(rows) {
        return Err(IllegalTransition::Stage { stage, rows });
    }
    let shards = Shards::of_rows(&state.plan.stages[stage as usize], rows);
    state.shard(stage, shards);
    Ok(())
}

impl RunState {
    /// Rows of a stage that can be cut now and is not.
    pub(super) fn shardable_rows(&self, stage: u32) -> Option<u64> {
        let planned = self.plan.stages.get(stage as usize)?;
        if self.sharded(stage).is_some() {
            return None;
        }
        let drive = planned.drive()?;
        self.limited(stage, self.table_rows(drive.stage, &drive.table)?)
    }

    /// Rows that a row-wise stage makes of a driving table with `rows` rows.
    pub(super) fn limited(&self, stage: u32, rows: u64) -> Option<u64> {
        let limit = *self.graph.limits.get(stage as usize)?;
        Some(limit.map_or(rows, |limit| rows.min(limit)))
    }
}

impl Event {
    /// Its name in the journal.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RunStarted { .. } => "run_started",
            Self::RunResumed { .. } => "run_resumed",
            Self::RunTakenOver { .. } => "run_taken_over",
            Self::StageSharded { .. } => "stage_sharded",
            Self::TaskReused { .. } => "task_reused",
            Self::TaskMissing { .. } => "task_missing",
            Self::TaskDispatched { .. } => "task_dispatched",
            Self::TaskDoubled { .. } => "task_doubled",
            Self::TaskStarted { .. } => "task_started",
            Self::TaskCommitted { .. } => "task_committed",
            Self::TaskFailed { .. } => "task_failed",
            Self::StageOutgrown { .. } => "stage_outgrown",
            Self::CancelRequested { .. } => "cancel_requested",
            Self::RunFinished { .. } => "run_finished",
        }
    }
}
