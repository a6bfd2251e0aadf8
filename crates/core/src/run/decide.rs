//! Inputs to events: every policy of a run is here, and none in [`super::apply`].

use super::{
    Event, MAX_SHARDS, Next, Phase, Ready, RunOutcome, RunState, Running, Shards, TaskState, handout, retry, straggler,
    task::History,
};
use crate::{
    ids::{Attempt, RunId, TaskId, TimeMs, WorkerId},
    lane::{Room, Slots},
    task::{ArtifactSummary, FailureClass, MemoryMb, Outcome, TaskReport},
};
use std::collections::BTreeMap;

/// Something that the outside tells a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Begin.
    Start,
    /// Go on after a crash or a stop; workers of earlier attempts are gone.
    Resume,
    /// Another coordinator goes on; the workers are still there, and so is what they have begun.
    TakeOver,
    /// The store's answer to [`super::Effect::Probe`].
    Probed {
        /// The task.
        task: TaskId,
        /// As in the effect.
        after: u32,
        /// What the store has under the task's key.
        found: Option<ArtifactSummary>,
    },
    /// A worker's word.
    Report(TaskReport),
    /// A worker is gone, with everything that it had begun.
    WorkerLost {
        /// The worker.
        worker: WorkerId,
    },
    /// Nobody has an attempt any more: its offer is gone from the queue, or the worker that began it does not know it.
    AttemptLost {
        /// The task.
        task: TaskId,
        /// The attempt.
        attempt: Attempt,
    },
    /// Slots can take this many further tasks.
    Capacity {
        /// Which.
        slots: Slots,
        /// How many.
        free: u32,
    },
    /// Slots that nothing else wants can take this many second attempts.
    Spare {
        /// Which.
        slots: Slots,
        /// How many.
        free: u32,
    },
    /// As [`Self::Capacity`], where named limits have less room than the plan gives them.
    CapacityWithin {
        /// Which.
        slots: Slots,
        /// How many.
        free: u32,
        /// Tasks with a named limit that may be handed out at once.
        caps: BTreeMap<String, u32>,
    },
    /// Stop.
    Cancel,
    /// [`super::Effect::Finish`] was done.
    Finish,
}

/// Why an input changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Said before. Harmless.
    #[error("{task}: said before")]
    Duplicate {
        /// The task.
        task: TaskId,
    },
    /// About an attempt or a probe that is over. Harmless.
    #[error("{task}: about an attempt or a probe that is over")]
    Stale {
        /// The task.
        task: TaskId,
    },
    /// The run has ended, or was asked to stop already. Harmless.
    #[error("the run has ended or is ending")]
    Over,
    /// The run has begun already. Harmless.
    #[error("the run has begun already")]
    Begun,
    /// Nothing has ended the run. Harmless.
    #[error("the run still has work")]
    Unfinished,
    /// The run has not begun.
    #[error("the run has not begun")]
    NotBegun,
    /// About another run: a queue is shared that should not be.
    #[error("a report about run {run} reached another run; check that runs do not share a queue")]
    OtherRun {
        /// The run it is about.
        run: RunId,
    },
    /// The run never had such a task or attempt: a bug, or a damaged message.
    #[error("{task}: no such task, or attempt {attempt} was never made")]
    Unknown {
        /// The task.
        task: TaskId,
        /// The attempt.
        attempt: Attempt,
    },
}

impl Rejection {
    /// Whether it is expected now and then, because messages are late, doubled or reordered.
    pub fn is_harmless(&self) -> bool {
        !matches!(self, Self::NotBegun | Self::OtherRun { .. } | Self::Unknown { .. })
    }
}

/// What follows from an input. An empty list: nothing worth journaling.
///
/// # Errors
/// When the input does not count; the case says why.
pub fn decide(state: &RunState, input: Input, now: TimeMs) -> Result<Vec<Event>, Rejection> {
    match (state.phase, input) {
        (Phase::Created, Input::Start) => {
            Ok(vec![Event::RunStarted { run: state.run.clone(), plan: Box::new((*state.plan).clone()), at: now }])
        }
        (Phase::Created, _) => Err(Rejection::NotBegun),
        (_, Input::Start) => Err(Rejection::Begun),
        (Phase::Finished(RunOutcome::Done), Input::Resume) => Err(Rejection::Over),
        (_, Input::Resume) => Ok(resume(state, Event::RunResumed { at: now })),
        (Phase::Finished(_), _) => Err(Rejection::Over),
        (_, Input::TakeOver) => Ok(resume(state, Event::RunTakenOver { at: now })),
        (_, Input::Probed { task, after, found }) => probed(state, task, after, found, now),
        (_, Input::Report(report)) => reported(state, report, now),
        (_, Input::WorkerLost { worker }) => Ok(worker_lost(state, &worker, now)),
        (_, Input::AttemptLost { task, attempt }) => attempt_lost(state, task, attempt, now),
        (Phase::Active, Input::Capacity { slots, free }) => Ok(dispatch(state, &slots, free, &BTreeMap::new(), now)),
        (Phase::Active, Input::CapacityWithin { slots, free, caps }) => Ok(dispatch(state, &slots, free, &caps, now)),
        (Phase::Active, Input::Spare { slots, free }) => Ok(straggler::double(state, &slots, free, now)),
        (Phase::Cancelling, Input::Capacity { .. } | Input::CapacityWithin { .. } | Input::Spare { .. }) => {
            Ok(Vec::new())
        }
        (Phase::Active, Input::Cancel) => Ok(vec![Event::CancelRequested { at: now }]),
        (Phase::Cancelling, Input::Cancel) => Err(Rejection::Over),
        (_, Input::Finish) => match state.due_outcome() {
            Some(outcome) => Ok(vec![Event::RunFinished { outcome, at: now }]),
            None => Err(Rejection::Unfinished),
        },
    }
}

/// Also cuts the stages that a crash between two events left uncut.
fn resume(state: &RunState, first: Event) -> Vec<Event> {
    let mut cut = vec![None; state.plan.stages.len()];
    let mut events = vec![first];
    for (stage, planned) in state.plan.stages.iter().enumerate() {
        let Some(drive) = planned.drive() else { continue };
        let driving = state.table_rows(drive.stage, &drive.table).or(cut[drive.stage as usize]);
        let rows = driving.and_then(|rows| state.limited(stage as u32, rows));
        if let (Some(rows), None) = (rows, state.sharded(stage as u32)) {
            cut[stage] = Some(rows);
            events.push(Event::StageSharded { stage: stage as u32, rows });
        }
    }
    events
}

fn probed(
    state: &RunState,
    task: TaskId,
    after: u32,
    found: Option<ArtifactSummary>,
    now: TimeMs,
) -> Result<Vec<Event>, Rejection> {
    let run = state.task_run(task).ok_or(Rejection::Unknown { task, attempt: Attempt(after) })?;
    match &run.state {
        TaskState::Unprobed(_) if run.history.attempts == after => {}
        _ => return Err(Rejection::Stale { task }),
    }
    Ok(match found {
        None => vec![Event::TaskMissing { task }],
        Some(summary) => {
            let event = |summary| Event::TaskReused { task, key: run.key.clone(), summary, at: now };
            present(state, task, None, summary, now, event)
        }
    })
}

fn reported(state: &RunState, report: TaskReport, now: TimeMs) -> Result<Vec<Event>, Rejection> {
    let TaskReport { run, task, attempt, worker, outcome } = report;
    if run != state.run {
        return Err(Rejection::OtherRun { run });
    }
    let known = state.task_run(task).filter(|t| (1..=t.history.attempts).contains(&attempt.0));
    let known = known.ok_or(Rejection::Unknown { task, attempt })?;
    match (&known.state, outcome) {
        (TaskState::Done(_), Outcome::Committed { .. }) => Err(Rejection::Duplicate { task }),
        // Whichever attempt it comes from: the artifact is there.
        (_, Outcome::Committed { summary, first }) => {
            let event = |summary| Event::TaskCommitted { task, attempt, worker, summary, first, at: now };
            Ok(present(state, task, Some(attempt), summary, now, event))
        }
        (_, outcome) => match state.attempt(task, attempt) {
            Some(running) => on_running(state, task, running, worker, outcome, now),
            None => Err(Rejection::Stale { task }),
        },
    }
}

/// A report, other than a commit, about an attempt that is under way.
fn on_running(
    state: &RunState,
    task: TaskId,
    running: &Running,
    worker: WorkerId,
    outcome: Outcome,
    now: TimeMs,
) -> Result<Vec<Event>, Rejection> {
    match outcome {
        Outcome::Started if running.begun.as_ref().is_some_and(|begun| begun.worker == worker) => {
            Err(Rejection::Duplicate { task })
        }
        Outcome::Started => Ok(vec![Event::TaskStarted { task, attempt: running.attempt, worker, at: now }]),
        // It stopped by itself, to drain: no sign of a bad task.
        Outcome::Failed { class: FailureClass::Lost, message, .. } => {
            Ok(vec![replaced(state, task, running.attempt, message, now)])
        }
        Outcome::Failed { class, message, needed } => {
            let grown = (class == FailureClass::Resource).then(|| outgrown(state, task, needed, now)).flatten();
            Ok(grown.into_iter().chain(failed(state, task, &[running.attempt], class, &message, now)).collect())
        }
        Outcome::Progress(_) | Outcome::Committed { .. } => Ok(Vec::new()),
    }
}

/// These attempts at a task have failed in the same way. While another goes on, the task does: the failure counts as
/// otherwise, and what follows it is decided when the last attempt ends.
fn failed(
    state: &RunState,
    task: TaskId,
    attempts: &[Attempt],
    class: FailureClass,
    message: &str,
    now: TimeMs,
) -> Vec<Event> {
    let Some(run) = state.task_run(task) else { return Vec::new() };
    let mut others = state.under_way(task).count();
    let mut losses = run.history.losses;
    let events = attempts.iter().map(|attempt| {
        others -= 1;
        let next = if others > 0 {
            losses += u32::from(class == FailureClass::Lost);
            Next::Other { counts: class != FailureClass::Lost || state.phase != Phase::Cancelling }
        } else {
            let retry = &state.plan.stages[task.stage as usize].retry;
            let history = History { losses, ..run.history };
            retry::next(retry, &run.key, &history, class, state.phase == Phase::Cancelling, now)
        };
        Event::TaskFailed { task, attempt: Some(*attempt), class, message: message.to_owned(), next, at: now }
    });
    events.collect()
}

/// The stage needs what the attempt says that it needed, or twice what its lane had. `None` when that is known.
fn outgrown(state: &RunState, task: TaskId, needed: MemoryMb, now: TimeMs) -> Option<Event> {
    let had = state.lane_of_task(task)?.wanted;
    let told = had.max(Room::of_mb(needed.host, needed.gpu));
    let known = state.lane(task.stage)?.wanted;
    let wanted = known.max(if told == had { had.doubled() } else { told });
    (wanted != known).then_some(Event::StageOutgrown { stage: task.stage, wanted, at: now })
}

fn worker_lost(state: &RunState, worker: &WorkerId, now: TimeMs) -> Vec<Event> {
    let message = format!("lost its worker {worker}");
    let events = state.index.running.iter().flat_map(|&task| {
        let theirs = state.under_way(task).filter(|r| r.begun.as_ref().is_some_and(|begun| begun.worker == *worker));
        let theirs: Vec<Attempt> = theirs.map(|running| running.attempt).collect();
        failed(state, task, &theirs, FailureClass::Lost, &message, now)
    });
    events.collect()
}

/// That nobody has an attempt any more says nothing about its task.
fn attempt_lost(state: &RunState, task: TaskId, attempt: Attempt, now: TimeMs) -> Result<Vec<Event>, Rejection> {
    state.task_run(task).ok_or(Rejection::Unknown { task, attempt })?;
    match state.attempt(task, attempt) {
        Some(_) => Ok(vec![replaced(state, task, attempt, "nobody has this attempt any more".into(), now)]),
        None => Err(Rejection::Stale { task }),
    }
}

fn replaced(state: &RunState, task: TaskId, attempt: Attempt, message: String, now: TimeMs) -> Event {
    let alone = state.under_way(task).count() < 2;
    let next = if alone { Next::Replace { counts: false } } else { Next::Other { counts: false } };
    Event::TaskFailed { task, attempt: Some(attempt), class: FailureClass::Lost, message, next, at: now }
}

/// The first ready tasks of some slots.
fn dispatch(state: &RunState, slots: &Slots, free: u32, caps: &BTreeMap<String, u32>, now: TimeMs) -> Vec<Event> {
    let first = handout::next(state, slots, free as usize, caps, now).into_iter();
    let events = first.filter_map(|task| {
        let run = state.task_run(task)?;
        debug_assert!(matches!(run.state, TaskState::Ready(Ready { .. })));
        let attempt = Attempt(run.history.attempts + 1);
        Some(match uncovered(state, task) {
            None => Event::TaskDispatched { task, key: run.key.clone(), attempt, at: now },
            Some(message) => give_up(task, None, message, now),
        })
    });
    events.collect()
}

/// Why a task's inputs, all present, do not hold the rows that it reads.
fn uncovered(state: &RunState, task: TaskId) -> Option<String> {
    let planned = &state.plan.stages[task.stage as usize];
    let range = state.sharded(task.stage)?.shards.range(task.shard)?;
    planned.needs.iter().filter(|n| n.mode == crate::kind::Mode::Aligned).find_map(|need| {
        let from = &state.plan.stages[need.stage as usize].name;
        let rows = state.table_rows(need.stage, &need.table);
        (rows.unwrap_or(0) < range.end).then(|| match rows {
            Some(rows) => format!(
                "stage `{}` needs rows {range} of `{from}.{}`, which has {rows}; give both stages the same rows (check `limit`)",
                planned.name, need.table
            ),
            None => format!("stage `{}` needs table `{}` of `{from}`, whose artifact lacks it", planned.name, need.table),
        })
    })
}

/// What follows from a task's artifact being there: the stages that it drives can be cut, and those that they drive.
/// An artifact that cannot drive them fails the task, because the run could never end otherwise.
fn present(
    state: &RunState,
    task: TaskId,
    attempt: Option<Attempt>,
    summary: ArtifactSummary,
    now: TimeMs,
    event: impl FnOnce(ArtifactSummary) -> Event,
) -> Vec<Event> {
    let followed = too_many_bad_rows(state, task, &summary).map_or_else(|| cuts(state, task, &summary), Err);
    match followed {
        Ok(cuts) => {
            let cuts = cuts.into_iter().map(|(stage, rows)| Event::StageSharded { stage, rows });
            std::iter::once(event(summary)).chain(cuts).collect()
        }
        // A task that has failed already stays so.
        Err(_) if matches!(state.task(task), Some(TaskState::Failed(_))) => Vec::new(),
        Err(message) => vec![give_up(task, attempt, message, now)],
    }
}

/// Bad rows are counted over the whole stage, those of reused artifacts too, so that the bound holds whatever the shards.
fn too_many_bad_rows(state: &RunState, task: TaskId, summary: &ArtifactSummary) -> Option<String> {
    let planned = &state.plan.stages[task.stage as usize];
    let bad = summary.bad_rows + state.sharded(task.stage).map_or(0, |s| s.tally.bad_rows);
    (bad > planned.max_bad_rows).then(|| {
        let allowed = planned.max_bad_rows;
        format!("{bad} bad rows in the stage so far, and max_bad_rows is {allowed}; mend the rows (the artifact's manifest lists them), or allow more")
    })
}

fn give_up(task: TaskId, attempt: Option<Attempt>, message: String, now: TimeMs) -> Event {
    Event::TaskFailed { task, attempt, class: FailureClass::Permanent, message, next: Next::GiveUp, at: now }
}

/// Stages that can be cut once the artifact is there, with their rows, in an order in which they can be cut.
fn cuts(state: &RunState, task: TaskId, summary: &ArtifactSummary) -> Result<Vec<(u32, u64)>, String> {
    let mut cuts: Vec<(u32, u64)> = Vec::new();
    if state.shards(task.stage) != Some(Shards::Single) {
        // A row-wise stage's readers were cut when it was.
        return Ok(cuts);
    }
    let mut sources = vec![(task.stage, None)];
    while let Some((source, rows)) = sources.pop() {
        for edge in state.graph.readers[source as usize].iter().filter(|e| e.drive && state.sharded(e.stage).is_none())
        {
            let planned = &state.plan.stages[edge.stage as usize];
            let Some(drive) = planned.drive().filter(|d| d.stage == source) else { continue };
            let from = &state.plan.stages[source as usize].name;
            let driving = rows.or_else(|| summary.rows.get(&drive.table).copied());
            let driving = driving.ok_or_else(|| {
                format!("the artifact of `{from}` lacks table `{}`, which `{}` reads", drive.table, planned.name)
            })?;
            let rows = state.limited(edge.stage, driving).unwrap_or(driving);
            let shards = Shards::of_rows(planned, rows).count();
            if shards > MAX_SHARDS {
                return Err(format!(
                    "`{from}.{}` has {driving} rows, which would cut `{}` into {shards} shards; raise its `shards: {{rows}}`",
                    drive.table, planned.name
                ));
            }
            cuts.push((edge.stage, rows));
            sources.push((edge.stage, Some(rows)));
        }
    }
    Ok(cuts)
}
