//! What the leader answers people: it takes runs in, cancels, retries and drains, and tells what there is.

use super::{Leader, LeaderError, Next};
use crate::{
    Control,
    cluster::{
        active::How,
        record::{ClusterRecord, Submitted},
        service::{Ask, Glance, Refusal},
    },
};
use rallrec_core::{
    ids::RunId,
    plan::Plan,
    run::{RunOutcome, RunState},
};
use rallrec_proto::api;
use rallrec_store::StoreError;
use std::{collections::BTreeMap, sync::Arc};

/// Signs of life after which every worker that is there has been heard: three seconds.
const FAMILIAR: u64 = 6;

impl Leader {
    pub(super) async fn answer(&mut self, ask: Ask) -> Result<Next, LeaderError> {
        if let Ask::Retry(run, _) | Ask::Cancel(run, _) | Ask::Look(run, _) = &ask
            && !self.runs.0.contains_key(run)
        {
            match self.records.follow().await {
                Ok(new) if new.is_empty() => {}
                // Another leads by now, and it may know the run.
                Ok(_) => return Ok(Next::Overtaken),
                // Without an answer, whoever asked asks again.
                Err(error) => {
                    tracing::warn!(%run, %error, "cannot tell whether there is such a run");
                    return Ok(Next::GoOn);
                }
            }
        }
        match ask {
            Ask::Submit(request, reply) => {
                let (answer, next) = self.submit(request).await?;
                // What was not written was not taken: no answer, and the asker tries whoever leads now.
                if let Next::GoOn = next {
                    let _ = reply.send(answer);
                }
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
            Ask::Look(run, reply) => {
                let waits = || self.waits().remove(&run).unwrap_or_default();
                let known = self.runs.0.get(&run).map(|submitted| submitted.outcome.is_none());
                let _ = reply.send(known.map(|active| Glance { active, waits: if active { waits() } else { vec![] } }));
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
        if let Some((run, _)) = self
            .actives
            .iter()
            .find(|(id, a)| id.0 == request.run || (!request.new && a.plan.is_but_for_estimates(&plan)))
        {
            return Ok((Ok(api::SubmitReply { run: run.0.clone(), resumed: true }), Next::GoOn));
        }
        let run = RunId(request.run);
        if !is_run_id(&run) {
            return Ok((Err(Refusal::RunId(run)), Next::GoOn));
        }
        if let Err(defect) = RunState::new(run.clone(), Arc::new(plan.clone())) {
            return Ok((Err(Refusal::Plan(defect.to_string())), Next::GoOn));
        }
        if let Err(refusal) = self.keep_plan(&run, &plan).await {
            return Ok((Err(refusal), Next::GoOn));
        }
        if self.runs.0.contains_key(&run) {
            return Ok((Ok(api::SubmitReply { run: run.0, resumed: true }), Next::GoOn));
        }
        let submitted = Submitted {
            pipeline: plan.pipeline,
            priority: request.priority,
            weight: request.weight.max(1),
            at: self.around.clock.now(),
            outcome: None,
        };
        let next = self.submitted(&run, &submitted, How::TakeOver).await?;
        Ok((Ok(api::SubmitReply { run: run.0, resumed: false }), next))
    }

    /// Puts a new run's plan into the store. One that is there already is that of an earlier try, whose answer was lost,
    /// or the id is taken.
    async fn keep_plan(&self, run: &RunId, plan: &Plan) -> Result<(), Refusal> {
        let store = &self.around.store;
        let json = serde_json::to_vec_pretty(plan).expect("a plan that was read as JSON is JSON");
        let put = store.create_run_file(run, "plan.json", json.clone()).await;
        let standing = match put {
            Ok(()) => return Ok(()),
            Err(StoreError::Conflict { .. }) => store.run_file(run, "plan.json").await.map_err(Refusal::Store)?,
            Err(error) => return Err(Refusal::Store(error)),
        };
        if standing == Some(json) { Ok(()) } else { Err(Refusal::RunId(run.clone())) }
    }

    async fn submitted(&mut self, run: &RunId, submitted: &Submitted, how: How) -> Result<Next, LeaderError> {
        let record = ClusterRecord::Submitted {
            run: run.clone(),
            pipeline: submitted.pipeline.clone(),
            priority: submitted.priority,
            weight: submitted.weight,
            at: self.around.clock.now(),
        };
        if let Next::Overtaken = self.record(record).await? {
            return Ok(Next::Overtaken);
        }
        self.activate(run, how).await?;
        Ok(Next::GoOn)
    }

    /// What each run waits for that is not there, stage by stage.
    fn waits(&self) -> BTreeMap<RunId, Vec<String>> {
        if self.signs < FAMILIAR {
            return BTreeMap::new();
        }
        let waits = self.fleet.waits(&self.demands()).into_iter().map(|(run, waits)| {
            let stages = self.actives.get(&run).map(|active| active.seen.borrow().waiting.clone()).unwrap_or_default();
            let told = stages.iter().filter_map(|waiting| {
                let wait = waits.iter().find(|wait| wait.lane == waiting.lane)?;
                Some(format!("stage `{}` waits for {wait}", waiting.stage))
            });
            let told = told.collect();
            (run, told)
        });
        waits.collect()
    }

    fn list_runs(&self) -> Vec<api::Run> {
        let mut waits = self.waits();
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
                waits: waits.remove(run).unwrap_or_default(),
            }
        });
        shown.collect()
    }

    fn list_workers(&self) -> Vec<api::Worker> {
        let now = self.time();
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
