//! Drives one run to its end.
//!
//! ```text
//!  workers ── reports ──►┐
//!  store ──── probes ───►│        one Signal          decide, apply
//!  clock ──── retries ──►├─ select ──────► Turn ──────────────────► core::run
//!  caller ─── control ──►┘                  │ then, in this order:
//!                                           │  1. journal one record (group commit of all that was waiting)
//!                                           │  2. tell the observer
//!                                           └─ 3. perform what is owed: probe the store, offer to workers
//! ```
//!
//! Recovery is the same path: replay, then [`Input::Resume`], then a turn. Within a turn the state in memory runs
//! ahead of the journal, but nothing leaves the driver before the record is in: if it cannot be written the driver
//! ends, and the state with it.
//!
//! Bounds: offers out are at most twice the slots of a pool (no slot waits for a round trip, and what runs next is
//! decided late), second attempts only where slots are granted for them; probes at once are [`Settings::probes`]
//! (enough to hide an object store's latency, few enough for its request limits); a record holds the events of at most [`MAX_SIGNALS`] signals (so that a flood of reports cannot
//! keep the journal waiting).

use crate::{Artifacts, Clock, Journal, turn::Turn};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use rallrec_core::{
    ids::{Attempt, RunId, TaskId, WorkerId},
    lane::Lane,
    plan::Plan,
    run::{
        Event, IllegalTransition, Input, JournalRecord, Phase, PlanDefect, RecordError, ReplayError, RunOutcome,
        RunState, Snapshot, TaskError, apply,
    },
    task::{ArtifactSummary, TaskReport},
};
use rallrec_queue::{CoordinatorEnd, QueueError};
use rallrec_store::StoreError;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::mpsc;

/// Most signals whose events go into one journal record.
pub(crate) const MAX_SIGNALS: usize = 256;

/// Tasks that the store is asked about at once: what it answers makes one journal record, so fewer would wait for records.
pub(crate) const PROBES: usize = 1024;

/// Records after which the next snapshot is kept: replaying these takes a second or so.
pub(crate) const SNAPSHOT_RECORDS: u64 = 1000;

/// How many tasks may be handed out at once.
#[derive(Clone, Debug)]
pub enum Capacity {
    /// Twice the worker slots of each pool; every pool that the plan names must be there. No second attempts: the workers
    /// are this machine's, and what is slow on it will be slow again.
    Slots(BTreeMap<String, u32>),
    /// As [`Control::Grant`] says, of each lane; none before it is said.
    Granted,
}

/// How a run is driven. Changes its speed, never its results.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Named limits that hold until [`Control::Limit`] says otherwise, beside the plan's.
    pub limits: BTreeMap<String, u32>,
    /// Where tasks may run.
    pub capacity: Capacity,
    /// Tasks that the store is asked about at once.
    pub probes: usize,
    /// Journal records between two snapshots.
    pub snapshot_records: u64,
}

impl Settings {
    /// These slots, 1,024 probes at once, and a snapshot every 1,000 records.
    pub fn new(slots: BTreeMap<String, u32>) -> Self {
        Self {
            limits: BTreeMap::new(),
            capacity: Capacity::Slots(slots),
            probes: PROBES,
            snapshot_records: SNAPSHOT_RECORDS,
        }
    }
}

/// What the caller may say while a run goes on.
#[derive(Clone, Debug)]
pub enum Control {
    /// Stop: let begun attempts end, then return [`RunEnd::Cancelled`].
    Cancel,
    /// This worker is gone, and whatever it reported was put into the queue before this is said. The name must not be
    /// used again by another worker.
    WorkerLost(WorkerId),
    /// Nobody has this attempt any more.
    AttemptLost(TaskId, Attempt),
    /// The most tasks of each lane that may be handed out from now on; lanes that are not named get none.
    Grant(BTreeMap<Lane, u32>),
    /// The most second attempts of each lane that may be handed out from now on; lanes that are not named get none.
    GrantSecond(BTreeMap<Lane, u32>),
    /// Workers are at these attempts, which are not under way: [`Notice::InVain`] tells which of them help nobody.
    AtWork(Vec<(TaskId, Attempt)>),
    /// Of these named limits at most so many tasks may be handed out from now on, whatever the plan allows; answered by
    /// [`Notice::Obeys`].
    Limit(BTreeMap<String, u32>),
    /// What the queue held is gone: send again what is owed.
    Wiped,
}

/// What the driver tells while a run goes on.
#[derive(Clone, Copy, Debug)]
pub enum Notice<'a> {
    /// An event was journaled.
    Event(&'a Event),
    /// A worker told how far it is.
    Progress(&'a TaskReport),
    /// Of the attempts that [`Control::AtWork`] named, those whose task is done.
    InVain(&'a [(TaskId, Attempt)]),
    /// The run as it now is, after one or more events.
    State(&'a RunState),
    /// Named limits that hold from now on.
    Obeys(&'a BTreeMap<String, u32>),
}

/// Hears notices, between turns: it should return at once.
pub type Observer = Box<dyn FnMut(Notice<'_>) + Send>;

/// How driving ended.
#[derive(Clone, Debug, PartialEq)]
pub enum RunEnd {
    /// Every artifact is there.
    Done,
    /// At least one task failed for good.
    Failed {
        /// Every such task, in the plan's order.
        errors: Vec<TaskError>,
    },
    /// It was asked to stop. It can be resumed.
    Cancelled,
    /// Another coordinator has taken the run over. Stop, and leave the run to it.
    Fenced,
}

/// Why a run could not be driven to an end. Nothing that is committed is lost; resume the run once the cause is gone.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The store does not answer, or holds something damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The queue does not answer, or was closed too early.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The journal holds something that is no record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The journal's events are not those of one run.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A record does not fit what came before it.
    #[error("record {record} of the journal: {source}; start a new run (finished artifacts are reused)")]
    Journal {
        /// Number of the record.
        record: u64,
        /// What does not fit.
        source: IllegalTransition,
    },
    /// The plan cannot be run.
    #[error(transparent)]
    Plan(#[from] PlanDefect),
    /// An event was decided that cannot be applied.
    #[error("{0}; this is a bug in rallrec, please report it")]
    Bug(#[from] IllegalTransition),
    /// The run is there already.
    #[error("run {run} has begun already; resume it instead")]
    Begun {
        /// The run.
        run: RunId,
    },
    /// There is nothing to resume.
    #[error("the run has no journal, so there is nothing to resume; start it instead")]
    NothingToResume,
    /// No worker serves a pool.
    #[error(
        "no worker slots for pool `{pool}`; add a worker for it, or change `resources.pool` of the stages that name it"
    )]
    NoSlots {
        /// The pool.
        pool: String,
    },
}

/// Everything that drives one run. The queue must not serve another run at the same time. The caller closes the
/// queue once the driver has returned, which stops the workers.
pub struct Driver<A, J> {
    /// Knows which artifacts are there.
    pub artifacts: A,
    /// Keeps the run's events.
    pub journal: J,
    /// Leads to the workers.
    pub queue: Arc<dyn CoordinatorEnd>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Slots and bounds.
    pub settings: Settings,
    /// What the caller says; may be closed.
    pub control: mpsc::Receiver<Control>,
    /// Hears what happens.
    pub observer: Observer,
}

/// The one internal event: whatever the driver waits for ends in one of these.
pub(crate) enum Signal {
    /// A worker said something; `None`: the queue is closed.
    Report(Result<Option<Bytes>, QueueError>),
    /// The store answered about these tasks, after so many attempts of each.
    Probed { asked: Vec<(TaskId, u32)>, found: Result<Vec<Option<ArtifactSummary>>, StoreError> },
    /// The queue took an offer, or withdrew what it had.
    Sent(Result<(), QueueError>),
    /// A snapshot is in the store, or is not.
    Kept(Result<(), StoreError>),
    /// A task's wait for its next attempt is over.
    Wake,
    /// The caller said something; `None`: it never will again.
    Control(Option<Control>),
}

impl<A: Artifacts, J: Journal> Driver<A, J> {
    /// Begins a run and drives it to its end.
    ///
    /// # Errors
    /// When the run has begun already, a pool has no slots, or the store or the queue cannot be reached.
    pub async fn start(mut self, run: RunId, plan: Arc<Plan>) -> Result<RunEnd, DriverError> {
        if !self.journal.replay(0).await?.is_empty() {
            return Err(DriverError::Begun { run });
        }
        let state = RunState::new(run, plan)?;
        self.drive(state, Input::Start).await
    }

    /// Goes on with the run that the journal tells of. Attempts that were under way count as lost. A run that is done
    /// stays done.
    ///
    /// # Errors
    /// When there is no such run, its journal is damaged, or the store or the queue cannot be reached.
    pub async fn resume(mut self) -> Result<RunEnd, DriverError> {
        let state = match self.replayed().await {
            Err(DriverError::Store(StoreError::Conflict { .. })) => return Ok(RunEnd::Fenced),
            replayed => replayed?,
        };
        if let Phase::Finished(RunOutcome::Done) = state.phase() {
            (self.observer)(Notice::State(&state));
            return Ok(RunEnd::Done);
        }
        self.queue.withdraw_all().await?;
        self.drive(state, Input::Resume).await
    }

    /// Goes on with a run that another coordinator drove, or was about to begin. Attempts under way stay so, and so do
    /// offers: those that no worker is known to have begun are sent again under their names.
    ///
    /// # Errors
    /// When the journal is damaged, or the store or the queue cannot be reached.
    pub async fn take_over(mut self, run: RunId, plan: Arc<Plan>) -> Result<RunEnd, DriverError> {
        let state = match self.replayed().await {
            Err(DriverError::NothingToResume) => return self.drive(RunState::new(run, plan)?, Input::Start).await,
            Err(DriverError::Store(StoreError::Conflict { .. })) => return Ok(RunEnd::Fenced),
            replayed => replayed?,
        };
        if let Phase::Finished(outcome) = state.phase() {
            (self.observer)(Notice::State(&state));
            return Ok(end(outcome, &state));
        }
        self.drive(state, Input::TakeOver).await
    }

    async fn replayed(&mut self) -> Result<RunState, DriverError> {
        replay(&mut self.journal).await?.ok_or(DriverError::NothingToResume)
    }

    async fn drive(mut self, state: RunState, first: Input) -> Result<RunEnd, DriverError> {
        if let Capacity::Slots(slots) = &self.settings.capacity
            && let Some(lane) = state.lanes().iter().find(|lane| slots.get(&lane.pool).is_none_or(|n| *n == 0))
        {
            return Err(DriverError::NoSlots { pool: lane.pool.clone() });
        }
        let mut turn = Turn::new(
            state,
            self.artifacts.clone(),
            Arc::clone(&self.queue),
            Arc::clone(&self.clock),
            self.settings.clone(),
        );
        turn.take(first)?;
        loop {
            turn.settle()?;
            if let Err(error) = self.commit(&mut turn).await {
                return match error {
                    DriverError::Store(StoreError::Conflict { .. }) => Ok(RunEnd::Fenced),
                    other => Err(other),
                };
            }
            if let Phase::Finished(outcome) = turn.state.phase() {
                return Ok(end(outcome, &turn.state));
            }
            turn.tell_in_vain(&mut self.observer);
            turn.perform();
            self.handle_waiting(&mut turn).await?;
        }
    }

    /// Waits for one signal, then handles it and all others that are there already.
    async fn handle_waiting(&mut self, turn: &mut Turn<A>) -> Result<(), DriverError> {
        let first = self.next_signal(turn).await;
        turn.handle(first, &mut self.observer)?;
        for _ in 1..MAX_SIGNALS {
            let Some(signal) = self.next_signal(turn).now_or_never() else { break };
            turn.handle(signal, &mut self.observer)?;
        }
        Ok(())
    }

    /// Builds the next signal, and does nothing else.
    async fn next_signal(&mut self, turn: &mut Turn<A>) -> Signal {
        // A retry that is due already waits for a free slot of its lane, and so for a report or a grant.
        let retry = turn.state.next_retry_ms(self.clock.now());
        tokio::select! {
            biased;
            Some(signal) = turn.in_flight.next() => signal,
            // Before control: a lost worker's last words come before the news of its loss.
            report = self.queue.next_report() => Signal::Report(report),
            said = self.control.recv(), if turn.heeds_control => Signal::Control(said),
            () = self.clock.wait(retry.unwrap_or(0)), if retry.is_some() => Signal::Wake,
        }
    }

    /// Writes the turn's events as one record, and tells of them.
    async fn commit(&mut self, turn: &mut Turn<A>) -> Result<(), DriverError> {
        let events = std::mem::take(&mut turn.unwritten);
        if events.is_empty() {
            return Ok(());
        }
        let record = JournalRecord::new(events);
        let bytes = record.encode()?;
        let mut tries = Tries::default();
        while let Err(error) = self.journal.append(&bytes).await {
            tries.wait_or_fail(&*self.clock, error).await?;
        }
        for event in &record.events {
            (self.observer)(Notice::Event(event));
        }
        (self.observer)(Notice::State(&turn.state));
        turn.records += 1;
        if turn.records.is_multiple_of(self.settings.snapshot_records.max(1)) {
            let kept = self.journal.keep(turn.state.snapshot().encode()?);
            turn.in_flight.push(kept.map(Signal::Kept).boxed());
        }
        Ok(())
    }
}

/// The state that a journal comes to; `None` when it is empty. A snapshot that cannot be used is passed over.
///
/// # Errors
/// When the store cannot be reached, or the journal is damaged or of another version.
pub async fn replay(journal: &mut impl Journal) -> Result<Option<RunState>, DriverError> {
    let (first, mut state) = restored(journal).await?.map_or((0, None), |(next, state)| (next, Some(state)));
    for (number, record) in (first..).zip(journal.replay(first).await?) {
        let record = JournalRecord::decode(&record)?;
        let mut events = &record.events[..];
        if state.is_none() {
            let Some((first, later)) = events.split_first() else { continue };
            state = Some(RunState::replay([first])?);
            events = later;
        }
        let Some(state) = &mut state else { continue };
        let applied = events.iter().try_for_each(|event| apply(state, event));
        applied.map_err(|source| DriverError::Journal { record: number, source })?;
    }
    Ok(state)
}

/// The state of the latest snapshot, and the number of the first record after it.
async fn restored(journal: &mut impl Journal) -> Result<Option<(u64, RunState)>, DriverError> {
    let restore = |bytes: &[u8]| RunState::restore(Snapshot::decode(bytes)?).map_err(DriverError::from);
    let damage = match journal.snapshot().await {
        Ok(None) => return Ok(None),
        Ok(Some((next, bytes))) => match restore(&bytes) {
            Ok(state) => return Ok(Some((next, state))),
            Err(error) => error,
        },
        Err(error @ StoreError::Journal { .. }) => error.into(),
        Err(error) => return Err(error.into()),
    };
    tracing::warn!(error = %damage, "the latest snapshot cannot be used; the whole journal is read instead");
    Ok(None)
}

fn end(outcome: RunOutcome, state: &RunState) -> RunEnd {
    match outcome {
        RunOutcome::Done => RunEnd::Done,
        RunOutcome::Failed => RunEnd::Failed { errors: state.errors().collect() },
        RunOutcome::Cancelled => RunEnd::Cancelled,
    }
}

/// Patience with a store that does not answer: six tries, half a minute in all.
#[derive(Default)]
pub(crate) struct Tries {
    failed: u32,
}

impl Tries {
    /// Waits before the next try; gives the error back when trying again cannot help, or has not.
    pub(crate) async fn wait_or_fail(&mut self, clock: &dyn Clock, error: StoreError) -> Result<(), StoreError> {
        self.failed += 1;
        let may_pass = matches!(error, StoreError::Object { .. } | StoreError::Folder { .. });
        if !may_pass || self.failed >= 6 {
            return Err(error);
        }
        tracing::warn!(%error, tries = self.failed, "the store did not answer, trying again");
        clock.wait(500 << self.failed).await;
        Ok(())
    }
}
