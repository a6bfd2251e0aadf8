//! What people say to a coordinator. A standby's answer names the leader, and the client goes there.

use super::connect::Cluster;
use crate::{
    args::{ClusterArgs, SubmitArgs},
    clock,
    console::{Console, counted, thousands},
    embedded::locked,
    failure::Failure,
    learned,
    load::{self, Absent},
    run::{Place, failed_tasks},
    run_view::RunView,
};
use rallrec_coordinator::gc::Collected;
use rallrec_core::{
    ids::{RunId, TimeMs},
    models::PinnedModel,
    plan::{PinnedSource, Plan},
    run::{Event, JournalRecord, RunOutcome, RunState},
    task::Outcome,
};
use rallrec_proto::{
    api::{self, watch_reply::What},
    decode_report,
};
use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex},
    time::Instant,
};
use tonic::Code;

/// Hands a pipeline in; with `--wait` shows the run and ends as it does.
///
/// # Errors
/// When the pipeline is refused, nobody leads, or with `--wait` the run does not end well.
pub async fn submit(place: &Place, args: &SubmitArgs, console: &Console) -> Result<(), Failure> {
    let pipeline = load::pipeline(&args.pipeline.pipeline, &args.pipeline.set, console)?;
    let file = &args.pipeline.pipeline;
    let pinned = load::pin_shown(&pipeline, file, &place.home, &place.sources, Absent::Pull, console)?;
    let mut plan = Plan::new(&pipeline, &pinned.pins).map_err(|e| Failure::Invalid(e.to_string()))?;
    absolute_paths(&mut plan, file)?;
    let cluster = Cluster::of(&args.cluster)?;
    learned::learn(&cluster.store(), &mut plan, &pinned.pins.model_bytes).await;
    let request = api::SubmitRequest {
        plan_json: serde_json::to_vec(&plan).map_err(anyhow::Error::from)?,
        priority: args.priority,
        weight: args.weight,
        new: args.new,
        run: clock::new_run_id().0,
    };
    let reply = cluster.ask(async |mut client| Ok(client.submit(request.clone()).await?.into_inner())).await?;
    let verb = if reply.resumed { "goes on" } else { "submitted" };
    console.note(&format!("run {} {verb}, {}", reply.run, counted(plan.stages.len() as u64, "stage")));
    if args.wait {
        return follow(&cluster, &RunId(reply.run), args.json, console).await;
    }
    console.print(&reply.run);
    Ok(())
}

/// Paths mean the same to every worker: those of `file:` sources are made absolute.
fn absolute_paths(plan: &mut Plan, file: &Path) -> Result<(), Failure> {
    let base = file.parent().unwrap_or(Path::new(""));
    let absolute = |source: &mut PinnedSource| -> Result<(), Failure> {
        if let Some(path) = source.source.strip_prefix("file:") {
            let path = base.join(path);
            let found = path.canonicalize();
            let found = found.map_err(|e| Failure::Unreachable(format!("{}: {e}", path.display())))?;
            source.source = format!("file:{}", found.display());
        }
        Ok(())
    };
    for stage in &mut plan.stages {
        stage.data.as_mut().map_or(Ok(()), absolute)?;
        match &mut stage.model {
            Some(PinnedModel::Local { files, .. }) => absolute(files)?,
            Some(PinnedModel::Remote { tokenizer: Some(tokenizer), .. }) => absolute(tokenizer)?,
            Some(PinnedModel::Remote { .. }) | None => {}
        }
    }
    Ok(())
}

/// Shows a run until it ends, and ends as it does.
///
/// # Errors
/// When there is no such run, nobody leads, or the run does not end well.
pub async fn watch(cluster: &ClusterArgs, run: &str, json: bool, console: &Console) -> Result<(), Failure> {
    let cluster = Cluster::of(cluster)?;
    let run = resolve(&cluster, run).await?;
    follow(&cluster, &run, json, console).await
}

async fn follow(cluster: &Cluster, run: &RunId, json: bool, console: &Console) -> Result<(), Failure> {
    let began = Instant::now();
    let mut shown = Shown::default();
    let request = api::WatchRequest { run: run.0.clone() };
    loop {
        let mut stream = cluster.ask(async |mut client| Ok(client.watch(request.clone()).await?.into_inner())).await?;
        // A new leader tells the journal from its beginning; what was shown is skipped.
        let mut position = 0;
        loop {
            match stream.message().await {
                Ok(Some(reply)) => shown.take(reply, &mut position, json, console)?,
                Ok(None) => break,
                Err(status) if status.code() == Code::NotFound => {
                    return Err(Failure::Invalid(status.message().to_owned()));
                }
                Err(status) => {
                    tracing::debug!(%status, "the stream broke, asking again");
                    break;
                }
            }
        }
        if let Some(outcome) = shown.outcome() {
            return shown.end(run, outcome, began, console);
        }
    }
}

/// What of a run was shown.
#[derive(Default)]
struct Shown {
    state: Option<RunState>,
    view: Option<Arc<Mutex<RunView>>>,
    records: u64,
    waits: Vec<String>,
}

impl Shown {
    fn take(
        &mut self,
        reply: api::WatchReply,
        position: &mut u64,
        json: bool,
        console: &Console,
    ) -> Result<(), Failure> {
        match reply.what {
            Some(What::RecordJson(record)) => {
                *position += 1;
                if *position > self.records {
                    self.records = *position;
                    let record = JournalRecord::decode(&record).map_err(|e| Failure::Invalid(e.to_string()))?;
                    for event in &record.events {
                        self.event(event, json, console)?;
                    }
                }
            }
            Some(What::Report(report)) => {
                if let (Ok(report), Some(view)) = (decode_report(&report), &self.view)
                    && let Outcome::Progress(progress) = &report.outcome
                {
                    locked(view, |view| view.running(report.task, progress));
                }
            }
            Some(What::Waits(waits)) => self.waits(waits.stages, json, console),
            None => {}
        }
        Ok(())
    }

    /// Tells what the run waits for, when that changes.
    fn waits(&mut self, waits: Vec<String>, json: bool, console: &Console) {
        if waits == self.waits {
            return;
        }
        if json {
            console.print(&serde_json::json!({ "event": "waits", "stages": waits }).to_string());
        } else {
            let new = waits.iter().filter(|wait| !self.waits.contains(wait));
            new.for_each(|wait| console.note(wait));
        }
        self.waits = waits;
    }

    fn event(&mut self, event: &Event, json: bool, console: &Console) -> Result<(), Failure> {
        if let Event::RunStarted { run, plan, .. } = event {
            let plan = Arc::new((**plan).clone());
            self.view = Some(Arc::new(Mutex::new(RunView::new(&plan, json, console))));
            let state = RunState::new(run.clone(), plan).map_err(|e| Failure::Invalid(e.to_string()))?;
            self.state = Some(state);
        }
        if let Some(state) = &mut self.state {
            rallrec_core::run::apply(state, event).map_err(|e| Failure::Other(e.into()))?;
        }
        if let Some(view) = &self.view {
            locked(view, |view| view.event(event));
        }
        Ok(())
    }

    fn outcome(&self) -> Option<RunOutcome> {
        self.state.as_ref()?.view().outcome
    }

    fn end(&self, run: &RunId, outcome: RunOutcome, began: Instant, console: &Console) -> Result<(), Failure> {
        let (Some(state), Some(view)) = (&self.state, &self.view) else { return Ok(()) };
        locked(view, RunView::finish);
        match outcome {
            RunOutcome::Done => {
                let (reused, computed) = locked(view, |view| view.totals());
                let time = clock::duration(began.elapsed().as_secs_f64());
                let counts = format!("{} tasks computed, {} reused", thousands(computed), thousands(reused));
                console.note(&format!("run {run} done in {time}: {counts}"));
                Ok(())
            }
            RunOutcome::Failed => {
                let errors: Vec<_> = state.errors().collect();
                Err(Failure::Stage(failed_tasks(run, state.plan(), &errors)))
            }
            RunOutcome::Cancelled => {
                Err(Failure::Interrupted { run: run.clone(), resume: format!("rallrec retry {run}") })
            }
        }
    }
}

/// The run that a word means, out of those that the cluster knows.
async fn resolve(cluster: &Cluster, word: &str) -> Result<RunId, Failure> {
    let runs =
        cluster.ask(async |mut client| Ok(client.list_runs(api::ListRunsRequest {}).await?.into_inner())).await?;
    named(&runs, word)
}

/// The run of these that `word` means.
fn named(runs: &api::ListRunsReply, word: &str) -> Result<RunId, Failure> {
    let ids: Vec<RunId> = runs.runs.iter().map(|run| RunId(run.run.clone())).collect();
    crate::run_names::resolve(&ids, word)
}

/// Removes what no kept run can reach from the cluster's store, or says what that is.
///
/// # Errors
/// When a coordinator refuses, or none answers.
pub async fn collect(cluster: &Cluster, request: api::CollectRequest) -> Result<Collected, Failure> {
    let asked = cluster.read(|mut archive| {
        let request = request.clone();
        async move { Ok(archive.collect(request).await?.into_inner()) }
    });
    Ok(serde_json::from_slice(&asked.await?.collected_json).map_err(anyhow::Error::from)?)
}

/// The runs that the cluster drives now.
///
/// # Errors
/// When nobody leads.
pub async fn active_runs(cluster: &Cluster) -> Result<BTreeSet<RunId>, Failure> {
    let request = api::ListRunsRequest {};
    let runs = cluster.ask(async |mut client| Ok(client.list_runs(request).await?.into_inner())).await?;
    Ok(runs.runs.into_iter().filter(|run| run.state == "active").map(|run| RunId(run.run)).collect())
}

/// Lists the cluster's runs.
///
/// # Errors
/// When nobody leads.
pub async fn status(cluster: &ClusterArgs, run: Option<&str>, console: &Console) -> Result<(), Failure> {
    let cluster = Cluster::of(cluster)?;
    let mut reply =
        cluster.ask(async |mut client| Ok(client.list_runs(api::ListRunsRequest {}).await?.into_inner())).await?;
    if let Some(word) = run {
        let run = named(&reply, word)?.0;
        reply.runs.retain(|known| known.run == run);
    }
    let waits: Vec<String> =
        reply.runs.iter().flat_map(|run| run.waits.iter().map(|wait| format!("run {}: {wait}", run.run))).collect();
    let rows = reply.runs.into_iter().map(|run| {
        let tasks = match run.tasks_known {
            0 => String::new(),
            known => format!("{} of {}", thousands(run.tasks_done), thousands(known)),
        };
        let submitted = clock::readable(TimeMs(run.submitted_at_ms));
        [run.run, run.pipeline, run.state, submitted, run.priority.to_string(), tasks]
    });
    print_table(["RUN", "PIPELINE", "STATE", "SUBMITTED", "PRIORITY", "TASKS"], rows.collect(), console);
    waits.iter().for_each(|wait| console.print(wait));
    Ok(())
}

/// Lists the workers.
///
/// # Errors
/// When nobody leads.
pub async fn workers(cluster: &ClusterArgs, console: &Console) -> Result<(), Failure> {
    let cluster = Cluster::of(cluster)?;
    let request = api::ListWorkersRequest {};
    let reply = cluster.ask(async |mut client| Ok(client.list_workers(request).await?.into_inner())).await?;
    let rows = reply.workers.into_iter().map(|worker| {
        let state = if worker.draining { "draining" } else { "ready" }.to_owned();
        let slots = format!("{} of {}", worker.busy, worker.slots);
        let heard = format!("{} ago", clock::duration(worker.silent_ms as f64 / 1000.0));
        [worker.worker, worker.pool, state, slots, worker.lanes.join(" "), heard]
    });
    print_table(["WORKER", "POOL", "STATE", "BUSY", "LANES", "HEARD"], rows.collect(), console);
    Ok(())
}

/// Asks a run to stop.
///
/// # Errors
/// When there is no such run, or nobody leads.
pub async fn cancel(cluster: &ClusterArgs, run: &str, console: &Console) -> Result<(), Failure> {
    let cluster = Cluster::of(cluster)?;
    let run = resolve(&cluster, run).await?.0;
    let request = api::CancelRequest { run: run.clone() };
    cluster.ask(async |mut client| client.cancel(request.clone()).await).await?;
    console.note(&format!("run {run} stops once its running tasks have ended"));
    Ok(())
}

/// Goes on with a run that failed or was cancelled.
///
/// # Errors
/// When there is no such run, or nobody leads.
pub async fn retry(cluster: &ClusterArgs, run: &str, console: &Console) -> Result<(), Failure> {
    let cluster = Cluster::of(cluster)?;
    let run = resolve(&cluster, run).await?.0;
    let request = api::RetryRequest { run: run.clone() };
    cluster.ask(async |mut client| client.retry(request.clone()).await).await?;
    console.note(&format!("run {run} goes on: what failed is tried again"));
    Ok(())
}

/// Asks a worker to take no further task.
///
/// # Errors
/// When there is no such worker, or nobody leads.
pub async fn drain(cluster: &ClusterArgs, worker: &str, console: &Console) -> Result<(), Failure> {
    let cluster = Cluster::of(cluster)?;
    let request = api::DrainRequest { worker: worker.to_owned() };
    cluster.ask(async |mut client| client.drain(request.clone()).await).await?;
    console.note(&format!("worker {worker} takes no further task"));
    Ok(())
}

fn print_table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>, console: &Console) {
    let mut widths = head.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    console.print(&line(head));
    for row in &rows {
        console.print(&line(row.each_ref().map(String::as_str)));
    }
}
