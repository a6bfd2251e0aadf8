//! `run`: queue, workers and coordinator in one process, over a local folder as the store, or S3.
//!
//! The same code as the cluster's behind the same traits; only what is particular to one process is here: which run
//! to take up, how many slots, what Ctrl-C does, and what is printed at the end.

use crate::{
    args::RunArgs,
    clock,
    console::{Console, counted, thousands},
    embedded::{POOL, Session, locked},
    failure::Failure,
    history::{self, PLAN_FILE},
    home::Home,
    load::{self, Absent},
    report,
    run_lock::RunLocks,
    run_view::{RunView, place},
    sources::Sources,
    stores,
};
use rallrec_coordinator::{RunEnd, gc::wait_for_collections};
use rallrec_core::{
    ids::RunId,
    plan::Plan,
    run::{RunOutcome, TaskError},
};
use rallrec_stages::Device;
use rallrec_store::{BucketSettings, Store};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Instant,
};

/// Where a command works.
#[derive(Clone, Debug)]
pub struct Place {
    /// The home folder.
    pub home: Home,
    /// Its sources.
    pub sources: Sources,
    /// Where buckets are, and who asks.
    pub buckets: BucketSettings,
}

/// Runs a pipeline.
///
/// # Errors
/// Every way in which it can end badly; see [`Failure`].
pub async fn run(place: &Place, args: &RunArgs, console: &Console) -> Result<(), Failure> {
    let began = Instant::now();
    let device = rallrec_llm::pick_device(&args.device).map_err(|e| Failure::Unreachable(e.to_string()))?;
    let pipeline = load::pipeline(&args.pipeline.pipeline, &args.pipeline.set, console)?;
    let absent = if args.offline { Absent::Refuse } else { Absent::Pull };
    let pinned = load::pin_shown(&pipeline, &args.pipeline.pipeline, &place.home, &place.sources, absent, console)?;
    let plan = Plan::new(&pipeline, &pinned.pins).map_err(|e| Failure::Invalid(e.to_string()))?;
    let how = How { device, slots: args.slots, new: args.new, json: args.json };
    let driven = drive(place, plan, pinned.places, &how, console).await?;
    match &driven.end {
        RunEnd::Failed { errors } => Err(Failure::Stage(failed_tasks(&driven.run, &driven.plan, errors))),
        RunEnd::Done => {
            show_result(&driven, args.json, console).await?;
            let time = clock::duration(began.elapsed().as_secs_f64());
            console.note(&format!("run {} done in {time}: {}", driven.run, driven.counts()));
            console.note(&format!("store: {}", place.home.store()));
            Ok(())
        }
        RunEnd::Cancelled | RunEnd::Fenced => Err(driven.stopped()),
    }
}

/// How a plan is run.
#[derive(Clone, Debug)]
pub struct How {
    /// Where to compute.
    pub device: Device,
    /// Tasks computed at the same time, if the user says so.
    pub slots: Option<u32>,
    /// Whether an unfinished run of the plan is left alone.
    pub new: bool,
    /// Whether events are printed as JSON.
    pub json: bool,
}

/// A run that came to an end.
#[derive(Debug)]
pub struct Driven {
    /// The run.
    pub run: RunId,
    /// Its plan.
    pub plan: Arc<Plan>,
    /// Its store.
    pub store: Store,
    /// How it ended.
    pub end: RunEnd,
    /// Tasks whose artifact was there.
    pub reused: u64,
    /// Tasks that were computed.
    pub computed: u64,
}

impl Driven {
    /// What it did, in words.
    pub fn counts(&self) -> String {
        format!("{} tasks computed, {} reused", thousands(self.computed), thousands(self.reused))
    }

    /// The failure of a run that neither is done nor has failed.
    pub fn stopped(&self) -> Failure {
        if matches!(self.end, RunEnd::Fenced) {
            return Failure::Unreachable(format!("run {} was taken over by another process", self.run));
        }
        Failure::Interrupted { run: self.run.clone(), resume: resume_line(std::env::args()) }
    }
}

/// Runs a plan here to its end; an unfinished run of the same plan goes on. Its pools are all this machine.
///
/// # Errors
/// When it cannot be driven; that a task failed, or that it was cancelled, is an end.
pub async fn drive(
    place: &Place,
    mut plan: Plan,
    places: BTreeMap<String, PathBuf>,
    how: &How,
    console: &Console,
) -> Result<Driven, Failure> {
    for stage in &mut plan.stages {
        stage.resources.pool = POOL.to_owned();
    }
    let store = stores::to_work_in(place).await?;
    let chosen = choose_in_peace(&store, &RunLocks::new(&place.home), &plan, how.new).await?;
    let verb = if chosen.resumed { "resuming run" } else { "run" };
    let stages = counted(plan.stages.len() as u64, "stage");
    console.note(&format!("{verb} {} of {}, {stages}", chosen.run, plan.pipeline));
    let view = Arc::new(Mutex::new(RunView::new(&plan, how.json, console)));
    let session = Session { store, plan: Arc::new(plan), run: chosen.run.clone(), slots: slots(how.slots) };
    let ended = session.drive(how.device.clone(), places, &view, console).await;
    locked(&view, RunView::finish);
    let (reused, computed) = locked(&view, |view| view.totals());
    Ok(Driven { run: session.run, plan: session.plan, store: session.store, end: ended?, reused, computed })
}

/// The report's table, or for programs the metrics.
///
/// # Errors
/// When the store cannot be reached.
pub async fn show_result(driven: &Driven, json: bool, console: &Console) -> Result<(), Failure> {
    if json {
        let metrics = report::metrics(&driven.store, &driven.plan).await?;
        console.print(&json!({ "event": "report", "run": driven.run, "metrics": metrics }).to_string());
    } else if let Some(markdown) = report::markdown(&driven.store, &driven.plan).await? {
        console.print(&markdown);
    }
    Ok(())
}

/// A run to drive, and its lock.
pub struct Chosen {
    /// Its id.
    pub run: RunId,
    /// Whether an earlier process began it.
    pub resumed: bool,
    /// Held while this process drives the run.
    _lock: File,
}

/// Chooses while no collection is under way: what was chosen before its end may be gone after it.
async fn choose_in_peace(store: &Store, locks: &RunLocks, plan: &Plan, new: bool) -> Result<Chosen, Failure> {
    loop {
        let chosen = choose(store, locks, plan, new).await?;
        if !wait_for_collections(store).await? || store.run_file(&chosen.run, PLAN_FILE).await?.is_some() {
            return Ok(chosen);
        }
    }
}

/// The latest run of exactly this plan if it is unfinished, else a new one.
async fn choose(store: &Store, locks: &RunLocks, plan: &Plan, new: bool) -> Result<Chosen, Failure> {
    if !new && let Some(run) = unfinished(store, locks, plan).await? {
        return match locks.take(&run)? {
            Some(lock) => Ok(Chosen { run, resumed: true, _lock: lock }),
            None => Err(Failure::Unreachable(format!(
                "run {run} of the same plan is driven by another process; wait for it, or begin another with --new"
            ))),
        };
    }
    let run = clock::new_run_id();
    let lock = locks.take(&run)?.ok_or_else(|| anyhow::anyhow!("run id {run} was drawn twice; try again"))?;
    let json = serde_json::to_vec_pretty(plan).map_err(anyhow::Error::from)?;
    store.create_run_file(&run, PLAN_FILE, json).await?;
    Ok(Chosen { run, resumed: false, _lock: lock })
}

/// The latest run of exactly this plan, unless it ended. A failed run has ended: what it finished is reused anyway.
async fn unfinished(store: &Store, locks: &RunLocks, plan: &Plan) -> Result<Option<RunId>, Failure> {
    for run in store.runs().await?.into_iter().rev().filter(|run| locks.tell(run)) {
        let Some(bytes) = store.run_file(&run, PLAN_FILE).await? else { continue };
        if serde_json::from_slice::<Plan>(&bytes).is_ok_and(|other| other == *plan) {
            let outcome = history::record(store, &run).await?.outcome;
            return Ok(matches!(outcome, None | Some(RunOutcome::Cancelled)).then_some(run));
        }
    }
    Ok(None)
}

/// Most failed tasks that are named at the end; all of them were told when they failed, and are journaled.
const FAILURES_SHOWN: usize = 5;

/// Says which tasks of a run failed, and what to do.
pub fn failed_tasks(run: &RunId, plan: &Plan, errors: &[TaskError]) -> String {
    let tasks = if errors.len() == 1 { "a task".to_owned() } else { format!("{} tasks", errors.len()) };
    let mut lines = vec![format!("run {run}: {tasks} failed")];
    lines.extend(errors.iter().take(FAILURES_SHOWN).map(|e| format!("  {}: {}", place(plan, e.task), e.message)));
    if errors.len() > FAILURES_SHOWN {
        lines.push(format!("  and {} more", errors.len() - FAILURES_SHOWN));
    }
    lines.push("mend the cause and run the same command again: what was finished is reused".to_owned());
    lines.join("\n")
}

/// The command line that goes on with this run: the same one, without `--new`.
fn resume_line(args: impl Iterator<Item = String>) -> String {
    let quoted = |arg: String| {
        let plain = |c: char| c.is_alphanumeric() || "-_./=:,@%+".contains(c);
        if !arg.is_empty() && arg.chars().all(plain) { arg } else { format!("'{}'", arg.replace('\'', "'\\''")) }
    };
    args.filter(|a| a != "--new").map(quoted).collect::<Vec<_>>().join(" ")
}

/// Half the cores, at least one. A task computes on all cores already (matrices are cut over them), so a slot for
/// each would only have them wait for each other and hold more working memory; with one slot alone, cores idle while
/// a task reads, writes or tokenizes.
fn slots(asked: Option<u32>) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    asked.unwrap_or((cores / 2).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resume_line_can_be_pasted_into_a_shell() {
        let args =
            ["rallrec", "run", "my file.yaml", "--new", "--set", "title=it's", "--slots", "2"].map(str::to_owned);
        assert_eq!(resume_line(args.into_iter()), r"rallrec run 'my file.yaml' --set 'title=it'\''s' --slots 2");
    }

    #[test]
    fn there_is_at_least_one_slot() {
        assert!(slots(None) >= 1);
        assert_eq!(slots(Some(3)), 3);
    }

    #[tokio::test]
    async fn an_unfinished_run_of_the_same_plan_is_taken_up_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::local(folder.path()).await.unwrap();
        let locks = RunLocks::new(&Home::new(folder.path().to_owned(), Some(folder.path().to_owned())));
        let plan = |name: &str| Plan { version: 1, pipeline: name.into(), stages: vec![] };
        let first = choose(&store, &locks, &plan("a"), false).await.unwrap();
        assert!(!first.resumed);
        assert!(matches!(choose(&store, &locks, &plan("a"), false).await, Err(Failure::Unreachable(_))));
        assert!(!choose(&store, &locks, &plan("b"), false).await.unwrap().resumed);
        let id = first.run.clone();
        drop(first);
        let again = choose(&store, &locks, &plan("a"), false).await.unwrap();
        assert!(again.resumed && again.run == id);
        drop(again);
        assert!(!choose(&store, &locks, &plan("a"), true).await.unwrap().resumed);
    }
}
