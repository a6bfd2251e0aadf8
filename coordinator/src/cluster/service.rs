//! The gRPC interface: what people ask, handed to the leader, or the leader's address when that is another.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use rallrec_core::{
    ids::{RunId, WorkerId},
    run::{Event, JournalRecord},
};
use rallrec_proto::api::{self, coordinator_server, watch_reply::What};
use rallrec_store::{Records, Store, StoreError};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{broadcast, mpsc, oneshot};
use tonic::{Request, Response, Status};

/// How often a watched run's journal is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// Header of a refusal that tells who leads.
pub const LEADER_HEADER: &str = "rallrec-leader";

/// Something that is asked of the leader.
pub(super) enum Ask {
    Submit(api::SubmitRequest, oneshot::Sender<Result<api::SubmitReply, Refusal>>),
    Retry(RunId, oneshot::Sender<Result<(), Refusal>>),
    Cancel(RunId, oneshot::Sender<Result<(), Refusal>>),
    /// `None`: no such run.
    Look(RunId, oneshot::Sender<Option<Glance>>),
    Runs(oneshot::Sender<Vec<api::Run>>),
    Workers(oneshot::Sender<Vec<api::Worker>>),
    Drain(WorkerId, oneshot::Sender<Result<(), Refusal>>),
}

/// A run as somebody who watches it sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Glance {
    pub(super) active: bool,
    /// What it waits for that is not there.
    pub(super) waits: Vec<String>,
}

/// Why the leader will not.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("there is no run {0}; `rallrec status` lists them")]
    NoRun(RunId),
    #[error("run {0} is active; cancel it first")]
    Active(RunId),
    #[error("run {0} has ended")]
    Over(RunId),
    #[error("run {0} is done; there is nothing to try again")]
    Done(RunId),
    #[error("`rallrec gc` has removed run {0}; submit its pipeline again")]
    Collected(RunId),
    #[error("the plan cannot be run: {0}; use a client of the coordinator's version")]
    Plan(String),
    #[error("{0} cannot be a new run's id: it is taken, or has other characters than letters, digits and `-`")]
    RunId(RunId),
    #[error("there is no worker {0}; `rallrec workers` lists them")]
    NoWorker(WorkerId),
    #[error("{0}; ask again in a few seconds")]
    Store(StoreError),
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Store(_) => Self::unavailable(text),
            Refusal::NoRun(_) | Refusal::NoWorker(_) => Self::not_found(text),
            Refusal::Plan(_) | Refusal::RunId(_) => Self::invalid_argument(text),
            Refusal::Active(_) | Refusal::Over(_) | Refusal::Done(_) | Refusal::Collected(_) => {
                Self::failed_precondition(text)
            }
        }
    }
}

/// How far tasks are, told to whoever watches: reports of [`rallrec_proto`].
pub(super) type Told = broadcast::Sender<(RunId, Bytes)>;

/// What this coordinator is at the moment.
#[derive(Default)]
pub(super) struct Role(Mutex<State>);

#[derive(Clone, Default)]
enum State {
    /// Nobody leads, as far as it knows.
    #[default]
    Alone,
    /// Somebody else does, at this address.
    Following(String),
    Leading(mpsc::Sender<Ask>, Told),
}

impl Role {
    pub(super) fn lead(&self, asks: mpsc::Sender<Ask>, progress: Told) {
        self.set(State::Leading(asks, progress));
    }

    pub(super) fn follow(&self, address: String) {
        self.set(State::Following(address));
    }

    pub(super) fn none(&self) {
        self.set(State::Alone);
    }

    fn set(&self, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn get(&self) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A coordinator's answers to people. It answers for the leader while it leads, and else names it.
pub struct Interface {
    pub(super) role: Arc<Role>,
    pub(super) store: Store,
}

fn nobody() -> Status {
    Status::unavailable("no coordinator leads at the moment; try again in a few seconds")
}

impl Interface {
    fn leading(&self) -> Result<(mpsc::Sender<Ask>, Told), Status> {
        match self.role.get() {
            State::Leading(asks, progress) => Ok((asks, progress)),
            State::Alone => Err(nobody()),
            State::Following(address) => {
                let mut status = Status::failed_precondition(format!("this coordinator stands by; {address} leads"));
                if let Ok(value) = address.parse() {
                    status.metadata_mut().insert(LEADER_HEADER, value);
                }
                Err(status)
            }
        }
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Status> {
        let (asks, _) = self.leading()?;
        let (reply, answer) = oneshot::channel();
        asks.send(ask(reply)).await.map_err(|_| nobody())?;
        answer.await.map_err(|_| nobody())
    }
}

type Watched = Pin<Box<dyn Stream<Item = Result<api::WatchReply, Status>> + Send>>;

#[tonic::async_trait]
impl coordinator_server::Coordinator for Interface {
    type WatchStream = Watched;

    async fn submit(&self, request: Request<api::SubmitRequest>) -> Result<Response<api::SubmitReply>, Status> {
        Ok(Response::new(self.ask(|reply| Ask::Submit(request.into_inner(), reply)).await??))
    }

    async fn list_runs(&self, _: Request<api::ListRunsRequest>) -> Result<Response<api::ListRunsReply>, Status> {
        Ok(Response::new(api::ListRunsReply { runs: self.ask(Ask::Runs).await? }))
    }

    async fn watch(&self, request: Request<api::WatchRequest>) -> Result<Response<Watched>, Status> {
        let run = RunId(request.into_inner().run);
        if self.ask(|reply| Ask::Look(run.clone(), reply)).await?.is_none() {
            return Err(Refusal::NoRun(run).into());
        }
        let (asks, progress) = self.leading()?;
        let heard = progress.subscribe();
        let (sender, mut told) = mpsc::channel(64);
        tokio::spawn(follow(self.store.clone(), run, asks, heard, sender));
        Ok(Response::new(futures::stream::poll_fn(move |context| told.poll_recv(context)).boxed()))
    }

    async fn cancel(&self, request: Request<api::CancelRequest>) -> Result<Response<api::CancelReply>, Status> {
        self.ask(|reply| Ask::Cancel(RunId(request.into_inner().run), reply)).await??;
        Ok(Response::new(api::CancelReply {}))
    }

    async fn retry(&self, request: Request<api::RetryRequest>) -> Result<Response<api::RetryReply>, Status> {
        self.ask(|reply| Ask::Retry(RunId(request.into_inner().run), reply)).await??;
        Ok(Response::new(api::RetryReply {}))
    }

    async fn list_workers(
        &self,
        _: Request<api::ListWorkersRequest>,
    ) -> Result<Response<api::ListWorkersReply>, Status> {
        Ok(Response::new(api::ListWorkersReply { workers: self.ask(Ask::Workers).await? }))
    }

    async fn drain(&self, request: Request<api::DrainRequest>) -> Result<Response<api::DrainReply>, Status> {
        self.ask(|reply| Ask::Drain(WorkerId(request.into_inner().worker), reply)).await??;
        Ok(Response::new(api::DrainReply {}))
    }
}

/// Tells a watcher a run's journal as it grows, and how far its tasks are, until the run has ended.
async fn follow(
    store: Store,
    run: RunId,
    asks: mpsc::Sender<Ask>,
    mut progress: broadcast::Receiver<(RunId, Bytes)>,
    told: mpsc::Sender<Result<api::WatchReply, Status>>,
) {
    let mut records = Records::of_run(store, &run, "watcher");
    let (mut finished, mut waits) = (false, Vec::new());
    loop {
        // Asked before the journal is read: whoever ends afterwards has its last record in the next round.
        let (reply, active) = oneshot::channel();
        let asked = asks.send(Ask::Look(run.clone(), reply)).await.is_ok();
        let glance = if asked { active.await.ok().flatten().unwrap_or_default() } else { Glance::default() };
        let new = match records.follow().await {
            Ok(new) => new,
            Err(error) => return drop(told.send(Err(Status::unavailable(error.to_string()))).await),
        };
        for record in new {
            finished = JournalRecord::decode(&record)
                .is_ok_and(|record| matches!(record.events.last(), Some(Event::RunFinished { .. })));
            let reply = api::WatchReply { what: Some(What::RecordJson(record)) };
            if told.send(Ok(reply)).await.is_err() {
                return;
            }
        }
        if !asked {
            return drop(told.send(Err(nobody())).await);
        }
        if glance.active && glance.waits != waits {
            waits = glance.waits;
            let reply = api::WatchReply { what: Some(What::Waits(api::Waits { stages: waits.clone() })) };
            if told.send(Ok(reply)).await.is_err() {
                return;
            }
        }
        if !glance.active {
            if !finished {
                let what = format!("run {run} cannot be driven on; the log of the coordinator that led says why");
                let _ = told.send(Err(Status::failed_precondition(what))).await;
            }
            return;
        }
        let next = tokio::time::sleep(FOLLOW_EVERY);
        tokio::pin!(next);
        loop {
            tokio::select! {
                () = &mut next => break,
                heard = progress.recv() => match heard {
                    Ok((of, report)) if of == run => {
                        let reply = api::WatchReply { what: Some(What::Report(report.to_vec())) };
                        if told.send(Ok(reply)).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                },
            }
        }
    }
}
