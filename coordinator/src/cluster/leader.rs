//! Leads the cluster for one term: drives its runs, knows its workers. What it says to people is in [`answers`].

mod answers;

use super::{
    Candidate,
    active::{Active, Ended, How, Surroundings},
    record::{ClusterRecord, Runs},
    service::Ask,
    standby::{Term, later_term},
};
use crate::{Control, DriverError, RunEnd};
use futures::StreamExt;
use rallrec_core::{
    fleet::{AtWork, AttemptName, Demands, Fleet, allot},
    ids::{Attempt, RunId, TaskId, TimeMs, WorkerId},
    lane::Lane,
    run::RunOutcome,
};
use rallrec_proto::{LeaderBeat, Order, decode_beat, decode_leader, encode_leader, encode_order};
use rallrec_queue::{OfferName, QueueError};
use rallrec_store::{Records, StoreError};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, broadcast, mpsc},
    task::JoinSet,
};

/// The leader's signs of life.
const BEAT_EVERY: Duration = Duration::from_millis(500);

/// Every so many beats, what is out is compared with what workers and the queue have.
const COMPARE_EVERY: u64 = 4;

/// Comparisons in a row in which nobody has an attempt before it is lost: long enough for every word that is under way.
const MISSED: u32 = 3;

/// Why leading failed.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// The store does not answer, or holds something damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// NATS cannot be used.
    #[error("NATS: {0}")]
    Queue(#[from] QueueError),
    /// A run's plan is gone.
    #[error("run {run} has no plan.json; remove its folder from the store, or submit it again")]
    NoPlan {
        /// The run.
        run: RunId,
    },
    /// A run's plan cannot be read.
    #[error("the plan of run {run} cannot be read: {source}; it is damaged, or of a newer version")]
    Plan {
        /// The run.
        run: RunId,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl LeaderError {
    /// Whether it may be gone later, without anybody's doing.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error, StoreError::Object { .. } | StoreError::Folder { .. }),
            Self::Queue(error) => matches!(error, QueueError::Unreachable(_)),
            Self::NoPlan { .. } | Self::Plan { .. } => false,
        }
    }
}

/// Leads until another coordinator does.
pub(super) async fn lead(candidate: &Candidate, term: Term) -> Result<(), LeaderError> {
    let (asks, asked) = mpsc::channel(64);
    let around = Surroundings {
        store: candidate.store.clone(),
        network: Arc::clone(&candidate.network),
        clock: Arc::clone(&candidate.clock),
        name: candidate.name.clone(),
        term: term.number,
        turned: Arc::new(Notify::new()),
        progress: broadcast::channel(1024).0,
        watcher: Arc::clone(&candidate.watcher),
        limits: candidate.limits.clone(),
        snapshot_records: candidate.snapshot_records,
    };
    candidate.role.lead(asks, around.progress.clone());
    let mut leader = Leader {
        records: term.records,
        runs: term.runs,
        sign: LeaderBeat { term: term.number, leader: candidate.name.clone(), address: candidate.address.clone() },
        around,
        fleet: Fleet::default(),
        actives: BTreeMap::new(),
        drivers: JoinSet::new(),
        again: Vec::new(),
        missed: BTreeMap::new(),
        signs: 0,
    };
    tracing::info!(term = leader.sign.term, leader = leader.sign.leader, "leads");
    leader.serve(asked).await
}

struct Leader {
    around: Surroundings,
    /// The cluster's journal.
    records: Records,
    runs: Runs,
    sign: LeaderBeat,
    fleet: Fleet,
    actives: BTreeMap<RunId, Active>,
    drivers: JoinSet<Ended>,
    /// Runs whose driver is to be started anew at the next beat.
    again: Vec<RunId>,
    /// Attempts that nobody had, by how many comparisons in a row.
    missed: BTreeMap<(RunId, TaskId, Attempt), u32>,
    /// Its own signs of life so far.
    signs: u64,
}

/// Whether to go on.
enum Next {
    GoOn,
    Overtaken,
}

impl Leader {
    async fn serve(&mut self, mut asked: mpsc::Receiver<Ask>) -> Result<(), LeaderError> {
        let network = Arc::clone(&self.around.network);
        let mut beats = network.beats().await?;
        let mut leaders = network.leaders().await?;
        let mut wiped = network.wiped();
        let unfinished: Vec<_> =
            self.runs.0.iter().filter(|(_, r)| r.outcome.is_none()).map(|(r, _)| r.clone()).collect();
        for run in unfinished {
            self.activate(&run, How::TakeOver).await?;
        }
        // Reports are handed out once every run has its end.
        let mut reports = network.hand_out_reports();
        let mut overtaken = Box::pin(later_term(self.records.clone()));
        let turned = Arc::clone(&self.around.turned);
        let mut tick = tokio::time::interval(BEAT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = tokio::select! {
                // What never ends and what comes at most now and then goes first; after every turn of a run comes last.
                biased;
                () = &mut reports => Next::GoOn,
                () = &mut overtaken => Next::Overtaken,
                _ = tick.tick() => self.tick().await?,
                Some(sign) = leaders.next() => self.hear_leader(&sign),
                Some(ended) = self.drivers.join_next() => self.ended(ended).await?,
                Ok(()) = wiped.changed() => self.resend().await,
                Some(ask) = asked.recv() => self.answer(ask).await?,
                Some(beat) = beats.next() => self.hear(&beat).await?,
                () = turned.notified() => self.refresh().await?,
            };
            if matches!(next, Next::Overtaken) {
                tracing::warn!(term = self.sign.term, "overtaken by another coordinator; stands by");
                return Ok(());
            }
        }
    }

    async fn activate(&mut self, run: &RunId, how: How) -> Result<(), LeaderError> {
        let Some(submitted) = self.runs.0.get(run) else { return Ok(()) };
        match Active::begin(&self.around, run, submitted, how, &mut self.drivers).await {
            Ok(active) => drop(self.actives.insert(run.clone(), active)),
            // One bad run must not stop the others.
            Err(error @ (LeaderError::NoPlan { .. } | LeaderError::Plan { .. })) => tracing::error!(%error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Puts a record into the cluster's journal.
    async fn record(&mut self, record: ClusterRecord) -> Result<Next, LeaderError> {
        let bytes = serde_json::to_vec(&record).expect("a record of names and numbers is JSON");
        match self.records.append(&bytes).await {
            Ok(()) => {
                self.runs.add(&record);
                Ok(Next::GoOn)
            }
            Err(StoreError::Conflict { .. }) => Ok(Next::Overtaken),
            Err(error) => Err(error.into()),
        }
    }

    async fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) -> Result<Next, LeaderError> {
        let (run, ended) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "a run's driver died, which is a bug in rallrec");
                return Ok(Next::GoOn);
            }
        };
        self.actives.remove(&run);
        self.missed.retain(|(of, _, _), _| *of != run);
        let outcome = match ended {
            Ok(RunEnd::Done) => RunOutcome::Done,
            Ok(RunEnd::Failed { .. }) => RunOutcome::Failed,
            Ok(RunEnd::Cancelled) => RunOutcome::Cancelled,
            Ok(RunEnd::Fenced) => return Ok(Next::Overtaken),
            // The store or the queue was away for longer than a driver has patience. That says nothing about the run: it
            // goes on from its journal, soon.
            Err(
                error @ (DriverError::Store(StoreError::Object { .. } | StoreError::Folder { .. })
                | DriverError::Queue(_)),
            ) => {
                tracing::warn!(%run, %error, "the run's driver gave up for now; it goes on");
                self.again.push(run);
                return Ok(Next::GoOn);
            }
            Err(error) => {
                tracing::error!(%run, %error, "the run cannot be driven");
                RunOutcome::Failed
            }
        };
        tracing::info!(%run, ?outcome, "run ended");
        let next = self.record(ClusterRecord::Ended { run, outcome, at: self.around.clock.now() }).await?;
        if matches!(next, Next::Overtaken) { Ok(next) } else { self.refresh().await }
    }

    async fn hear(&mut self, bytes: &[u8]) -> Result<Next, LeaderError> {
        let message = match decode_beat(bytes) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%error, "a beat cannot be read");
                return Ok(Next::GoOn);
            }
        };
        let worker = message.beat.worker.clone();
        if message.leaving {
            self.fleet.leave(&worker);
            self.lost(&worker).await;
            return self.refresh().await;
        }
        let free_before = self.fleet.member(&worker).is_some_and(|m| !m.is_draining());
        let new = self.fleet.hear(message.beat, self.time());
        let free_now = self.fleet.member(&worker).is_some_and(|m| !m.is_draining());
        if new {
            tracing::info!(%worker, "worker joined");
        }
        if new || free_before != free_now {
            self.refresh().await?;
        }
        self.order(&worker).await;
        Ok(Next::GoOn)
    }

    /// A later term rules.
    fn hear_leader(&self, bytes: &[u8]) -> Next {
        match decode_leader(bytes) {
            Ok(other) if other.term > self.sign.term => Next::Overtaken,
            _ => Next::GoOn,
        }
    }

    /// The fleet's time: counted in this leader's own signs of life, so that neither a clock that jumps nor a pause of
    /// this process makes a worker seem silent that nobody listened to.
    fn time(&self) -> TimeMs {
        TimeMs(self.signs * BEAT_EVERY.as_millis() as u64)
    }

    async fn tick(&mut self) -> Result<Next, LeaderError> {
        self.signs += 1;
        // A word that is lost is said again in half a second.
        let _ = self.around.network.lead(encode_leader(&self.sign)).await;
        if !self.around.network.is_connected() {
            // NATS is away: that workers are silent says nothing about them.
            self.fleet.excuse(self.time());
        }
        for run in std::mem::take(&mut self.again) {
            self.activate(&run, How::TakeOver).await?;
        }
        for worker in self.fleet.lose(self.time()) {
            tracing::warn!(%worker, "worker lost");
            self.lost(&worker).await;
        }
        if self.signs.is_multiple_of(COMPARE_EVERY) {
            self.compare().await;
        }
        self.refresh().await
    }

    async fn lost(&self, worker: &WorkerId) {
        for active in self.actives.values() {
            active.say(Control::WorkerLost(worker.clone())).await;
        }
    }

    async fn resend(&self) -> Next {
        for active in self.actives.values() {
            active.say(Control::Wiped).await;
        }
        Next::GoOn
    }

    fn demands(&self) -> Demands {
        let now = self.around.clock.now();
        self.actives.iter().map(|(run, active)| (run.clone(), active.demand(now))).collect()
    }

    /// Gives workers their lanes, and runs their shares.
    async fn refresh(&mut self) -> Result<Next, LeaderError> {
        let demands = self.demands();
        for worker in self.fleet.assign(&demands) {
            self.order(&worker).await;
        }
        for (run, granted) in self.fleet.grants(&demands) {
            let Some(active) = self.actives.get_mut(&run) else { continue };
            if active.granted != granted {
                active.granted.clone_from(&granted);
                active.say(Control::Grant(granted)).await;
            }
        }
        // A task becomes a straggler while nothing happens: every sign of life looks.
        for (run, granted) in self.fleet.second_attempts(&demands) {
            let Some(active) = self.actives.get_mut(&run) else { continue };
            if active.granted_second != granted {
                active.granted_second.clone_from(&granted);
                active.say(Control::GrantSecond(granted)).await;
            }
        }
        self.limit().await;
        Ok(Next::GoOn)
    }

    /// Gives runs their shares of the cluster's named limits.
    async fn limit(&mut self) {
        let is_asked = |lane: &Lane| self.fleet.slots(lane) > 0;
        let claims = self.actives.iter().map(|(run, active)| (run.clone(), active.claims(is_asked))).collect();
        // What a run has out whose driver is to begin anew, nobody knows at the moment.
        for (run, limits) in allot(&self.around.limits, &claims, self.again.is_empty()) {
            if let Some(active) = self.actives.get_mut(&run) {
                active.limit(limits).await;
            }
        }
    }

    async fn order(&self, worker: &WorkerId) {
        let Some(member) = self.fleet.member(worker) else { return };
        let at_work = member.beat.at_work.iter().map(AtWork::name);
        let order = Order {
            lanes: member.lanes.clone(),
            drain: member.asked_to_drain,
            leader: self.sign.leader.clone(),
            stop: at_work.filter(|name| self.is_in_vain(name)).collect(),
        };
        let _ = self.around.network.order(worker, encode_order(&order)).await;
    }

    /// Whether an attempt helps nobody: its task is done, as far as is known.
    fn is_in_vain(&self, name: &AttemptName) -> bool {
        match self.actives.get(&name.run) {
            Some(active) => active.is_in_vain(name),
            None => self.runs.0.get(&name.run).is_some_and(|run| run.outcome == Some(RunOutcome::Done)),
        }
    }

    /// Finds attempts that nobody has: neither a worker that speaks, nor the queue. And asks the runs about those that
    /// workers have and runs do not count on.
    async fn compare(&mut self) {
        let mut at_work = BTreeSet::new();
        for member in self.fleet.members() {
            at_work.extend(member.beat.at_work.iter().map(|at| (at.run.clone(), at.task, at.attempt)));
        }
        let mut missed = BTreeMap::new();
        for (run, active) in &self.actives {
            let out = active.seen.borrow().out.clone();
            let known: BTreeSet<_> = out.iter().map(|out| (out.task, out.attempt)).collect();
            let theirs = at_work.iter().filter(|(of, _, _)| of == run).map(|(_, task, attempt)| (*task, *attempt));
            let left: Vec<_> = theirs.filter(|at| !known.contains(at)).collect();
            if !left.is_empty() {
                active.ask_in_vain(left);
            }
            let unseen: Vec<_> =
                out.into_iter().filter(|o| !at_work.contains(&(run.clone(), o.task, o.attempt))).collect();
            if unseen.is_empty() {
                continue;
            }
            // While the queue does not answer, nothing can be said.
            let Ok(held) = active.queue.held().await else { continue };
            for out in unseen {
                // One that was begun is acknowledged only once its report is sent.
                if held.contains(&OfferName { task: out.task, attempt: out.attempt }) && out.worker.is_none() {
                    continue;
                }
                let key = (run.clone(), out.task, out.attempt);
                let times = self.missed.get(&key).copied().unwrap_or(0) + 1;
                if times < MISSED {
                    missed.insert(key, times);
                } else {
                    tracing::warn!(%run, task = %out.task, attempt = %out.attempt, "nobody has this attempt any more");
                    active.say(Control::AttemptLost(out.task, out.attempt)).await;
                }
            }
        }
        self.missed = missed;
    }
}
