//! Leads the cluster for one term: drives its runs, knows its workers, answers people.

use super::{
    ClusterError, ClusterSettings,
    active::{Active, Ended, How, Surroundings},
    record::{ClusterRecord, Runs, Submitted},
    service::{Ask, Refusal, Role},
    standby::Term,
};
use crate::{Clock, Control, DriverError, RunEnd, SystemClock};
use futures::StreamExt;
use rallrec_core::{
    fleet::{Demands, Fleet},
    ids::{Attempt, RunId, TaskId, WorkerId},
    plan::Plan,
    run::{RunOutcome, RunState},
};
use rallrec_proto::{LeaderBeat, Order, api, decode_beat, decode_leader, encode_leader, encode_order};
use rallrec_queue::{
    OfferName, QueueError,
    nats::{NatsCoordinator, Words},
};
use rallrec_store::{Records, Store, StoreError};
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
const COMPARE_EVERY: u32 = 4;

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

/// Leads until another coordinator does.
pub(super) async fn lead(
    store: &Store,
    settings: &ClusterSettings,
    address: &str,
    term: Term,
    role: &Role,
) -> Result<(), ClusterError> {
    let queue = NatsCoordinator::connect(&settings.nats).await.map_err(LeaderError::from)?;
    let (asks, asked) = mpsc::channel(64);
    let around = Surroundings {
        store: store.clone(),
        queue: queue.clone(),
        name: settings.name.clone(),
        turned: Arc::new(Notify::new()),
        progress: broadcast::channel(1024).0,
    };
    role.lead(asks, around.progress.clone());
    let mut leader = Leader {
        words: queue.words(),
        records: term.records,
        runs: term.runs,
        sign: LeaderBeat { term: term.number, leader: settings.name.clone(), address: address.to_owned() },
        around,
        fleet: Fleet::default(),
        actives: BTreeMap::new(),
        drivers: JoinSet::new(),
        missed: BTreeMap::new(),
        compared: 0,
    };
    tracing::info!(term = leader.sign.term, leader = leader.sign.leader, "leads");
    let ended = leader.serve(asked).await;
    role.none();
    Ok(ended?)
}

struct Leader {
    around: Surroundings,
    words: Words,
    /// The cluster's journal.
    records: Records,
    runs: Runs,
    sign: LeaderBeat,
    fleet: Fleet,
    actives: BTreeMap<RunId, Active>,
    drivers: JoinSet<Ended>,
    /// Attempts that nobody had, by how many comparisons in a row.
    missed: BTreeMap<(RunId, TaskId, Attempt), u32>,
    compared: u32,
}

/// Whether to go on.
enum Next {
    GoOn,
    Overtaken,
}

impl Leader {
    async fn serve(&mut self, mut asked: mpsc::Receiver<Ask>) -> Result<(), LeaderError> {
        let mut beats = Box::pin(self.words.beats().await?);
        let mut leaders = Box::pin(self.words.leaders().await?);
        let mut wiped = self.around.queue.wiped();
        let unfinished: Vec<_> =
            self.runs.0.iter().filter(|(_, r)| r.outcome.is_none()).map(|(r, _)| r.clone()).collect();
        for run in unfinished {
            self.activate(&run, How::TakeOver).await?;
        }
        // Reports are handed out once every run has its end.
        let queue = self.around.queue.clone();
        let reports = async move { queue.hand_out_reports().await };
        let turned = Arc::clone(&self.around.turned);
        let mut tick = tokio::time::interval(BEAT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::pin!(reports);
        loop {
            let next = tokio::select! {
                Some(ended) = self.drivers.join_next() => self.ended(ended).await?,
                Some(ask) = asked.recv() => self.answer(ask).await?,
                Some(beat) = beats.next() => self.hear(&beat).await?,
                Some(sign) = leaders.next() => self.hear_leader(&sign),
                () = turned.notified() => self.refresh().await?,
                Ok(()) = wiped.changed() => self.resend().await,
                _ = tick.tick() => self.tick().await?,
                () = &mut reports => Next::GoOn,
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
            // The store was away for longer than a driver has patience: it goes on from its journal.
            Err(DriverError::Store(StoreError::Object { .. }) | DriverError::Queue(QueueError::Unreachable(_))) => {
                tracing::warn!(%run, "the run's driver lost the store; it goes on");
                self.activate(&run, How::TakeOver).await?;
                return Ok(Next::GoOn);
            }
            Err(error) => {
                tracing::error!(%run, %error, "the run cannot be driven");
                RunOutcome::Failed
            }
        };
        tracing::info!(%run, ?outcome, "run ended");
        let next = self.record(ClusterRecord::Ended { run, outcome, at: SystemClock.now() }).await?;
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
        let new = self.fleet.hear(message.beat, SystemClock.now());
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

    async fn tick(&mut self) -> Result<Next, LeaderError> {
        // A word that is lost is said again in half a second.
        let _ = self.words.lead(encode_leader(&self.sign)).await;
        if !self.words.is_connected() {
            // NATS is away: that workers are silent says nothing about them.
            self.fleet.excuse(SystemClock.now());
        }
        for worker in self.fleet.lose(SystemClock.now()) {
            tracing::warn!(%worker, "worker lost");
            self.lost(&worker).await;
        }
        self.compared += 1;
        if self.compared.is_multiple_of(COMPARE_EVERY) {
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
        self.actives.iter().map(|(run, active)| (run.clone(), active.demand())).collect()
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
        Ok(Next::GoOn)
    }

    async fn order(&self, worker: &WorkerId) {
        let Some(member) = self.fleet.member(worker) else { return };
        let order =
            Order { lanes: member.lanes.clone(), drain: member.asked_to_drain, leader: self.sign.leader.clone() };
        let _ = self.words.order(worker, encode_order(&order)).await;
    }

    /// Finds attempts that nobody has: neither a worker that speaks, nor the queue.
    async fn compare(&mut self) {
        let mut at_work = BTreeSet::new();
        for member in self.fleet.members() {
            at_work.extend(member.beat.at_work.iter().map(|at| (at.run.clone(), at.task, at.attempt)));
        }
        let mut missed = BTreeMap::new();
        for (run, active) in &self.actives {
            let out = active.seen.borrow().out.clone();
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

    async fn answer(&mut self, ask: Ask) -> Result<Next, LeaderError> {
        match ask {
            Ask::Submit(request, reply) => {
                let (answer, next) = self.submit(request).await?;
                let _ = reply.send(answer);
                return Ok(next);
            }
            Ask::Retry(run, reply) => {
                let ended = self.runs.0.get(&run).map(|r| (r.clone(), r.outcome));
                let answer = match ended {
                    None => Err(Refusal::NoRun(run)),
                    Some((_, None)) => Err(Refusal::Active(run)),
                    Some((_, Some(RunOutcome::Done))) => Err(Refusal::Done(run)),
                    Some(_) if self.around.store.run_file(&run, "plan.json").await?.is_none() => {
                        Err(Refusal::Collected(run))
                    }
                    Some((submitted, Some(_))) => {
                        if let Next::Overtaken = self.submitted(&run, &submitted, How::Resume).await? {
                            return Ok(Next::Overtaken);
                        }
                        Ok(())
                    }
                };
                let _ = reply.send(answer);
            }
            Ask::Cancel(run, reply) => {
                let answer = match self.actives.get(&run) {
                    Some(active) => {
                        active.say(Control::Cancel).await;
                        Ok(())
                    }
                    None if self.runs.0.contains_key(&run) => Err(Refusal::Over(run)),
                    None => Err(Refusal::NoRun(run)),
                };
                let _ = reply.send(answer);
            }
            Ask::IsActive(run, reply) => {
                let known = self.runs.0.get(&run).map(|submitted| submitted.outcome.is_none());
                let _ = reply.send(known);
            }
            Ask::Runs(reply) => drop(reply.send(self.list_runs())),
            Ask::Workers(reply) => drop(reply.send(self.list_workers())),
            Ask::Drain(worker, reply) => {
                let known = self.fleet.drain(&worker);
                let _ = reply.send(if known { Ok(()) } else { Err(Refusal::NoWorker(worker.clone())) });
                self.order(&worker).await;
                return self.refresh().await;
            }
        }
        Ok(Next::GoOn)
    }

    async fn submit(
        &mut self,
        request: api::SubmitRequest,
    ) -> Result<(Result<api::SubmitReply, Refusal>, Next), LeaderError> {
        let plan: Plan = match serde_json::from_slice(&request.plan_json) {
            Ok(plan) => plan,
            Err(error) => return Ok((Err(Refusal::Plan(error.to_string())), Next::GoOn)),
        };
        if let Some((run, _)) =
            self.actives.iter().find(|(id, a)| id.0 == request.run || (!request.new && *a.plan == plan))
        {
            return Ok((Ok(api::SubmitReply { run: run.0.clone(), resumed: true }), Next::GoOn));
        }
        let run = RunId(request.run);
        if !is_run_id(&run) || self.runs.0.contains_key(&run) {
            return Ok((Err(Refusal::RunId(run)), Next::GoOn));
        }
        if let Err(defect) = RunState::new(run.clone(), Arc::new(plan.clone())) {
            return Ok((Err(Refusal::Plan(defect.to_string())), Next::GoOn));
        }
        let json = serde_json::to_vec_pretty(&plan).expect("a plan that was read as JSON is JSON");
        match self.around.store.create_run_file(&run, "plan.json", json).await {
            Ok(()) => {}
            Err(StoreError::Conflict { .. }) => return Ok((Err(Refusal::RunId(run)), Next::GoOn)),
            Err(error) => return Err(error.into()),
        }
        let submitted = Submitted {
            pipeline: plan.pipeline,
            priority: request.priority,
            weight: request.weight.max(1),
            at: SystemClock.now(),
            outcome: None,
        };
        let next = self.submitted(&run, &submitted, How::TakeOver).await?;
        Ok((Ok(api::SubmitReply { run: run.0, resumed: false }), next))
    }

    async fn submitted(&mut self, run: &RunId, submitted: &Submitted, how: How) -> Result<Next, LeaderError> {
        let record = ClusterRecord::Submitted {
            run: run.clone(),
            pipeline: submitted.pipeline.clone(),
            priority: submitted.priority,
            weight: submitted.weight,
            at: SystemClock.now(),
        };
        if let Next::Overtaken = self.record(record).await? {
            return Ok(Next::Overtaken);
        }
        self.activate(run, how).await?;
        Ok(Next::GoOn)
    }

    fn list_runs(&self) -> Vec<api::Run> {
        let state = |outcome| match outcome {
            None => "active",
            Some(RunOutcome::Done) => "done",
            Some(RunOutcome::Failed) => "failed",
            Some(RunOutcome::Cancelled) => "cancelled",
        };
        let shown = self.runs.0.iter().map(|(run, submitted)| {
            let seen = self.actives.get(run).map(|active| active.seen.borrow().clone()).unwrap_or_default();
            api::Run {
                run: run.0.clone(),
                pipeline: submitted.pipeline.clone(),
                state: state(submitted.outcome).to_owned(),
                submitted_at_ms: submitted.at.0,
                priority: submitted.priority,
                tasks_done: seen.done,
                tasks_known: seen.known,
            }
        });
        shown.collect()
    }

    fn list_workers(&self) -> Vec<api::Worker> {
        let now = SystemClock.now();
        let shown = self.fleet.members().map(|member| api::Worker {
            worker: member.beat.worker.0.clone(),
            host: member.beat.host.clone(),
            pool: member.beat.pool.clone(),
            slots: member.beat.slots,
            busy: u32::try_from(member.beat.at_work.len()).unwrap_or(u32::MAX),
            lanes: member.lanes.iter().map(ToString::to_string).collect(),
            models: member.beat.models.iter().cloned().collect(),
            draining: member.is_draining(),
            silent_ms: now.0.saturating_sub(member.heard.0),
        });
        shown.collect()
    }
}

/// Ids are parts of NATS subjects and of paths.
fn is_run_id(run: &RunId) -> bool {
    !run.0.is_empty() && run.0.len() <= 64 && run.0.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}
