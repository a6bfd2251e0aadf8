//! Somebody who submits a run, looks at it now and then, and has it go on until it is done.

use crate::{
    faults::Fault,
    world::{World, lock},
};
use rallrec_coordinator::cluster::{Interface, LEADER_HEADER};
use rallrec_core::{ids::RunId, plan::Plan};
use rallrec_proto::api::{self, coordinator_server::Coordinator};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Status};

/// Patience with one question.
const ANSWER: Duration = Duration::from_secs(5);

/// Questions without an answer that helps before a person gives up: hours.
const PATIENCE: u32 = 10_000;

/// The coordinators that run, by address.
pub(crate) type Directory = Arc<Mutex<BTreeMap<String, Arc<Interface>>>>;

/// A person with a run.
pub(crate) struct Person {
    pub(crate) world: Arc<World>,
    pub(crate) directory: Directory,
    pub(crate) run: RunId,
    pub(crate) plan: Plan,
}

impl Person {
    /// Returns once the run is done.
    pub(crate) async fn see_it_done(self) {
        sleep(Duration::from_millis(self.world.between(0, 20_000))).await;
        self.submit().await;
        let mut cancel = self.world.fires(Fault::RunCancelled);
        for _ in 0..PATIENCE {
            sleep(Duration::from_millis(self.world.between(200, 3_000))).await;
            let Ok(listed) =
                self.ask(|to| async move { to.list_runs(Request::new(api::ListRunsRequest {})).await }).await
            else {
                continue;
            };
            match listed.runs.iter().find(|run| run.run == self.run.0).map(|run| run.state.as_str()) {
                Some("done") => return self.world.tell(format_args!("{} is done", self.run)),
                Some("failed" | "cancelled") => {
                    let run = self.run.0.clone();
                    let again = self.ask(|to| retry(to, run.clone())).await;
                    self.world.tell(format_args!("{} again: {:?}", self.run, again.err().map(|e| e.code())));
                }
                Some(_) if cancel => {
                    let run = self.run.0.clone();
                    let cancelled = self.ask(|to| stop(to, run.clone())).await;
                    if cancelled.as_ref().is_err_and(|refused| refused.code() == Code::NotFound) {
                        self.world.violate(format!("{} was taken and is not known", self.run));
                    }
                    cancel = cancelled.is_err();
                }
                // One that leads no longer, and does not know it, may list what it knows.
                Some(_) | None => {}
            }
        }
        self.world.violate(format!("{} does not end", self.run));
    }

    async fn submit(&self) {
        let request = api::SubmitRequest {
            run: self.run.0.clone(),
            plan_json: serde_json::to_vec(&self.plan).unwrap(),
            ..api::SubmitRequest::default()
        };
        for _ in 0..PATIENCE {
            let answer = self.ask(|to| submit(to, request.clone())).await;
            self.world.tell(format_args!("{} submitted: {:?}", self.run, answer.as_ref().map_err(Status::code)));
            match answer {
                Ok(_) => return,
                Err(refused) if refused.code() == Code::InvalidArgument => {
                    return self.world.violate(format!("{} is refused: {}", self.run, refused.message()));
                }
                Err(_) => {}
            }
            sleep(Duration::from_millis(self.world.between(100, 1_000))).await;
        }
        self.world.violate(format!("{} cannot be submitted", self.run));
    }

    /// Asks a coordinator, and if that names another as the leader, that one.
    async fn ask<T, F>(&self, question: impl Fn(Arc<Interface>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let first = {
            let directory = lock(&self.directory);
            let count = directory.len() as u64;
            (count > 0).then(|| directory.values().nth(self.world.between(0, count - 1) as usize).cloned()).flatten()
        };
        let first = first.ok_or_else(|| Status::unavailable("nobody listens"))?;
        let answer = one(question(first)).await;
        let Err(refused) = &answer else { return answer };
        let leader = refused.metadata().get(LEADER_HEADER).and_then(|leader| leader.to_str().ok());
        let leader = leader.and_then(|leader| lock(&self.directory).get(leader).cloned());
        match leader {
            Some(leader) => one(question(leader)).await,
            None => answer,
        }
    }
}

async fn one<T>(answer: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    let answer = timeout(ANSWER, answer).await.map_err(|_| Status::deadline_exceeded("no answer"))?;
    answer.map(tonic::Response::into_inner)
}

async fn submit(to: Arc<Interface>, request: api::SubmitRequest) -> Result<tonic::Response<api::SubmitReply>, Status> {
    to.submit(Request::new(request)).await
}

async fn retry(to: Arc<Interface>, run: String) -> Result<tonic::Response<api::RetryReply>, Status> {
    to.retry(Request::new(api::RetryRequest { run })).await
}

async fn stop(to: Arc<Interface>, run: String) -> Result<tonic::Response<api::CancelReply>, Status> {
    to.cancel(Request::new(api::CancelRequest { run })).await
}
