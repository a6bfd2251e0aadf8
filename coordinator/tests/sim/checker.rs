//! Holds the promises against what happened: some at every record of a journal, the rest when everything has ended.

use crate::{
    cluster::LIMIT,
    objects::{Shared, is_run_journal},
    plans::MAX_ATTEMPTS,
    worker::{tables, value},
    world::{Node, World, lock},
};
use object_store::{ObjectStoreExt, path::Path};
use rallrec_coordinator::cluster::ClusterRecord;
use rallrec_core::{
    ids::{Attempt, RunId, TaskId, TimeMs, WorkerId},
    key::Key,
    plan::Plan,
    run::{Event, JournalRecord, Next, Phase, RunOutcome, RunState, Snapshot},
    task::{FailureClass, TaskOffer},
};
use rallrec_store::Manifest;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// A worker that could be heard for so long is not lost, however late the record that says so.
const AUDIBLE: Duration = Duration::from_secs(150);

/// An attempt that was on a board for so long is somebody's.
const AT_WORK: Duration = Duration::from_secs(60);

/// One life of a worker, as everybody who checks sees it.
pub(crate) struct WorkerEntry {
    node: Arc<Node>,
    /// What it is at, and since when.
    pub(crate) board: Mutex<BTreeMap<(RunId, TaskId, Attempt), Instant>>,
    /// What its machine has.
    pub(crate) memory_mb: u64,
    /// Whether it said goodbye.
    pub(crate) left: AtomicBool,
}

/// What happened in one seed.
pub(crate) struct History {
    world: Arc<World>,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    workers: BTreeMap<WorkerId, Arc<WorkerEntry>>,
    /// Who led, from the first term on.
    terms: Vec<String>,
    /// The latest term that wrote into each run's journal.
    wrote: BTreeMap<String, usize>,
    acknowledged: BTreeMap<Path, Vec<u8>>,
    dispatched: BTreeSet<(RunId, TaskId, Attempt)>,
    second: BTreeSet<(RunId, TaskId, Attempt)>,
    started: BTreeMap<RunId, TimeMs>,
    plans: BTreeMap<RunId, Plan>,
    /// Handed out, and whether a worker has begun.
    out: BTreeMap<(RunId, TaskId), bool>,
    done: BTreeSet<(RunId, TaskId)>,
    offers: BTreeMap<Key, TaskOffer>,
    firsts: BTreeMap<Key, BTreeSet<(RunId, Attempt)>>,
    own_failures: BTreeMap<(RunId, TaskId), BTreeSet<Attempt>>,
    finished: Vec<RunState>,
    figures: Figures,
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) tasks: u64,
    pub(crate) begun: u64,
    /// Attempts that a worker began although the run knew the task to be done: an offer that could not be taken back.
    pub(crate) begun_in_vain: u64,
    pub(crate) terms: u64,
    pub(crate) records: u64,
    /// Snapshots that were kept, and held against the records before them.
    pub(crate) snapshots: u64,
    pub(crate) losses: u64,
    /// Second attempts beside stragglers.
    pub(crate) doubled: u64,
    /// Of these, those whose report of a commit came first.
    pub(crate) doubled_won: u64,
    /// Attempts that were stopped because their task was done.
    pub(crate) stopped: u64,
    /// Of the last run that ended: from its start to its end.
    pub(crate) makespan_ms: u64,
}

impl History {
    pub(crate) fn new(world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self { world: Arc::clone(world), told: Mutex::default() })
    }

    pub(crate) fn figures(&self) -> Figures {
        let told = lock(&self.told);
        Figures { terms: told.terms.len() as u64, ..told.figures }
    }

    pub(crate) fn worker(&self, id: &WorkerId, node: &Arc<Node>, memory_mb: u64) -> Arc<WorkerEntry> {
        let (board, left) = Default::default();
        let entry = Arc::new(WorkerEntry { node: Arc::clone(node), board, memory_mb, left });
        lock(&self.told).workers.insert(id.clone(), Arc::clone(&entry));
        entry
    }

    /// A worker begins an attempt.
    pub(crate) fn begun(&self, worker: &WorkerId, offer: &TaskOffer) {
        self.world.tell(format_args!("{worker} begins {} {}.{}", offer.run, offer.task, offer.attempt));
        let mut told = lock(&self.told);
        told.figures.begun += 1;
        if told.done.contains(&(offer.run.clone(), offer.task)) {
            told.figures.begun_in_vain += 1;
        }
        if !told.dispatched.contains(&(offer.run.clone(), offer.task, offer.attempt)) {
            self.world.violate(format!("{} {}.{} was offered before its record", offer.run, offer.task, offer.attempt));
        }
        let at_it = |entry: &Arc<WorkerEntry>| {
            lock(&entry.board).keys().any(|(run, task, _)| (run, *task) == (&offer.run, offer.task))
        };
        if told.workers.get(worker).is_some_and(at_it) {
            self.world.violate(format!("{worker} begins {} {} beside itself", offer.run, offer.task));
        }
        let stage = told.plans.get(&offer.run).map(|plan| &plan.stages[offer.task.stage as usize]);
        let needed = stage.map(|stage| stage.resources.memory_mb);
        if needed.is_none_or(|needed| needed > told.workers[worker].memory_mb) {
            self.world.violate(format!("{} {} needs {needed:?} MiB, which {worker} lacks", offer.run, offer.task));
        }
        told.offers.insert(offer.key.clone(), offer.clone());
    }

    /// An attempt was told to stop: rightly, if its task is done.
    pub(crate) fn stopped(&self, offer: &TaskOffer) {
        self.world.tell(format_args!("stopped {} {}.{}", offer.run, offer.task, offer.attempt));
        let mut told = lock(&self.told);
        told.figures.stopped += 1;
        if !told.done.contains(&(offer.run.clone(), offer.task)) {
            self.world.violate(format!(
                "{} {}.{} was stopped, and its task is not done",
                offer.run, offer.task, offer.attempt
            ));
        }
    }

    /// An attempt failed, and is to blame for it.
    pub(crate) fn failed_by_itself(&self, offer: &TaskOffer) {
        lock(&self.told).own_failures.entry((offer.run.clone(), offer.task)).or_default().insert(offer.attempt);
    }

    /// A worker committed, or found that somebody had.
    pub(crate) fn committed(&self, offer: &TaskOffer, first: bool) {
        self.world.tell(format_args!("committed {} {}.{} first: {first}", offer.run, offer.task, offer.attempt));
        if first {
            let mut told = lock(&self.told);
            let firsts = told.firsts.entry(offer.key.clone()).or_default();
            firsts.insert((offer.run.clone(), offer.attempt));
            if firsts.len() > 1 {
                self.world.violate(format!("several attempts were the first to commit {}: {firsts:?}", offer.task));
            }
        }
    }

    /// A run as its driver sees it.
    pub(crate) fn seen(&self, state: &RunState) {
        if let Phase::Finished(outcome) = state.phase() {
            self.world.tell(format_args!("{} ended {outcome:?}", state.run()));
            lock(&self.told).finished.push(state.clone());
        }
    }

    /// A client was told that its put is in.
    pub(crate) fn acknowledged(&self, path: &Path, bytes: Vec<u8>) {
        if path.as_ref().contains("/journal/") || path.as_ref().ends_with("manifest.json") {
            let before = lock(&self.told).acknowledged.insert(path.clone(), bytes.clone());
            if before.is_some_and(|before| before != bytes) {
                self.world.violate(format!("two writers were told that theirs is {path}"));
            }
        }
    }

    /// The store took an object.
    pub(crate) fn put(&self, node: &Node, path: &Path, bytes: &[u8]) {
        self.world.tell(format_args!("{} put {path} ({} bytes)", node.name, bytes.len()));
        let Some(end) = bytes.iter().position(|b| *b == b'\n') else { return };
        let (line, record) = (String::from_utf8_lossy(&bytes[..end]).into_owned(), &bytes[end + 1..]);
        let writer = line.split(' ').next().unwrap().to_owned();
        let mut told = lock(&self.told);
        if path.as_ref().starts_with("cluster/journal/") {
            match serde_json::from_slice(record).unwrap() {
                ClusterRecord::Term { leader, .. } => told.terms.push(leader),
                record if told.terms.last() != Some(&writer) => {
                    self.world.violate(format!("{writer} put {record:?} although {:?} leads", told.terms.last()))
                }
                _ => {}
            }
        } else if is_run_journal(path) {
            told.figures.records += 1;
            // As the record says: a coordinator may lead twice, and a put of its first term land in its second.
            let term = line.rsplit_once(" term ").unwrap().1.parse().unwrap();
            let run = path.parts().nth(1).unwrap().as_ref().to_owned();
            let wrote = told.wrote.entry(run.clone()).or_insert(term);
            if *wrote > term {
                self.world.violate(format!("{writer} of term {term} wrote {path} after term {wrote}"));
            }
            *wrote = (*wrote).max(term);
            for event in JournalRecord::decode(record).unwrap().events {
                self.world.tell(format_args!("  {run} {}", brief(&event)));
                told.happened(&self.world, &RunId(run.clone()), &event);
            }
        }
    }
}

fn brief(event: &Event) -> String {
    match event {
        Event::TaskDispatched { task, attempt, .. } => format!("dispatched {task}.{attempt}"),
        Event::TaskDoubled { task, attempt, .. } => format!("doubled {task}.{attempt}"),
        Event::TaskStarted { task, attempt, worker, .. } => format!("started {task}.{attempt} by {worker}"),
        Event::TaskCommitted { task, attempt, worker, .. } => format!("committed {task}.{attempt} by {worker}"),
        Event::TaskFailed { task, attempt, message, next, .. } => {
            format!("failed {task} {attempt:?} {message} {next:?}")
        }
        Event::TaskReused { task, .. } | Event::TaskMissing { task } => format!("{} {task}", event.name()),
        other => other.name().to_owned(),
    }
}

impl Told {
    /// An event was journaled.
    fn happened(&mut self, world: &World, run: &RunId, event: &Event) {
        self.count_out(world, run, event);
        match event {
            Event::RunStarted { at, .. } => drop(self.started.insert(run.clone(), *at)),
            Event::RunFinished { at, .. } => {
                self.figures.makespan_ms = self.started.get(run).map_or(0, |started| at.0.saturating_sub(started.0));
            }
            _ => {}
        }
        if let Event::TaskDoubled { task, attempt, .. } = event {
            self.figures.doubled += 1;
            self.second.insert((run.clone(), *task, *attempt));
        }
        match event {
            Event::TaskDispatched { task, attempt, .. } | Event::TaskDoubled { task, attempt, .. } => {
                if self.done.contains(&(run.clone(), *task)) {
                    world.violate(format!("{run} {task} was done and is run again"));
                }
                self.dispatched.insert((run.clone(), *task, *attempt));
            }
            Event::TaskCommitted { task, attempt, .. } if self.second.contains(&(run.clone(), *task, *attempt)) => {
                self.figures.doubled_won += 1;
                self.became_done(world, run, *task);
            }
            Event::TaskCommitted { task, .. } | Event::TaskReused { task, .. } => self.became_done(world, run, *task),
            Event::TaskFailed { task, attempt, class, message, next, .. } => {
                if *class == FailureClass::Lost {
                    self.figures.losses += 1;
                    self.lost(world, run, *task, attempt.unwrap(), message);
                }
                let own = self.own_failures.get(&(run.clone(), *task)).map_or(0, BTreeSet::len);
                match (class, next) {
                    (FailureClass::Permanent, _) => {
                        world.violate(format!("{run} {task} failed for good, and nothing is wrong with it: {message}"));
                    }
                    (FailureClass::Unavailable, Next::GiveUp) => {
                        world.violate(format!("{run} {task} was given up because the store was away: {message}"));
                    }
                    (FailureClass::Transient | FailureClass::Resource, Next::GiveUp) if own < MAX_ATTEMPTS as usize => {
                        world.violate(format!("{run} {task} was given up after {own} failures of its own: {message}"));
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Named limits hold.
    fn count_out(&mut self, world: &World, run: &RunId, event: &Event) {
        match event {
            Event::RunStarted { plan, .. } => drop(self.plans.insert(run.clone(), (**plan).clone())),
            Event::TaskDispatched { task, .. } => {
                self.out.insert((run.clone(), *task), false);
                for (name, most) in &self.plans[run].stages[task.stage as usize].resources.limits {
                    let limited = |(of, task): &&(RunId, TaskId)| {
                        self.plans[of].stages[task.stage as usize].resources.limits.contains_key(name)
                    };
                    let out = self.out.keys().filter(limited).count();
                    let mine = self.out.keys().filter(limited).filter(|(of, _)| of == run).count();
                    if mine > *most as usize || out > LIMIT as usize {
                        world.violate(format!("{mine} tasks of limit {name} of {run} are out, {out} of all runs"));
                    }
                }
            }
            Event::TaskStarted { task, .. } => drop(self.out.insert((run.clone(), *task), true)),
            Event::TaskCommitted { task, .. } | Event::TaskFailed { task, .. } => {
                self.out.remove(&(run.clone(), *task));
            }
            Event::RunResumed { .. } => self.out.retain(|(of, _), _| of != run),
            Event::CancelRequested { .. } => self.out.retain(|(of, _), begun| of != run || *begun),
            _ => {}
        }
    }

    fn became_done(&mut self, world: &World, run: &RunId, task: TaskId) {
        if !self.done.insert((run.clone(), task)) {
            world.violate(format!("{run} {task} became done twice"));
        }
    }

    /// A loss must have a reason: nobody's work is ended because coordinators come and go.
    fn lost(&self, world: &World, run: &RunId, task: TaskId, attempt: Attempt, message: &str) {
        if let Some(worker) = message.strip_prefix("lost its worker ") {
            let entry = &self.workers[&WorkerId(worker.to_owned())];
            if !entry.left.load(Ordering::Relaxed) && entry.node.was_audible_for(AUDIBLE) {
                world.violate(format!(
                    "{run} {task}.{attempt} lost {worker}, which is alive and was heard all the time"
                ));
            }
        } else if message.starts_with("nobody has") {
            let now = Instant::now();
            let at_work = |entry: &&Arc<WorkerEntry>| {
                let since = lock(&entry.board).get(&(run.clone(), task, attempt)).copied();
                entry.node.was_audible_for(AUDIBLE) && since.is_some_and(|since| now - since >= AT_WORK)
            };
            if let Some(entry) = self.workers.values().find(at_work) {
                world.violate(format!("{run} {task}.{attempt} was given up while {} is at it", entry.node.name));
            }
        }
    }
}

/// Checks what is left when every run has ended.
pub(crate) async fn check(world: &World, shared: &Shared, runs: &[RunId]) {
    for run in runs {
        if let Err(broken) = check_run(shared, run).await {
            world.violate(format!("{run}: {broken}"));
        }
    }
    let acknowledged = lock(&shared.history.told).acknowledged.clone();
    for (path, bytes) in acknowledged {
        let standing = match shared.objects.get(&path).await {
            Ok(found) => found.bytes().await.unwrap().to_vec(),
            Err(_) => Vec::new(),
        };
        if standing != bytes {
            world.violate(format!("{path} is not what its writer was told is in"));
        }
    }
}

async fn check_run(shared: &Shared, run: &RunId) -> Result<(), String> {
    let states = replay(shared, run).await?;
    let last = states.last().ok_or("it has not ended")?;
    if last.phase() != Phase::Finished(RunOutcome::Done) {
        return Err(format!("it is {:?} in the end", last.phase()));
    }
    let finished: Vec<RunState> =
        lock(&shared.history.told).finished.iter().filter(|state| state.run() == run).cloned().collect();
    if finished.is_empty() {
        return Err("nobody saw it end".into());
    }
    if finished.iter().any(|live| !states.contains(live)) {
        return Err("a driver's last state is not the one that the journal gives".into());
    }
    let mut tasks = 0;
    for stage in 0..last.plan().stages.len() as u32 {
        let shards = last.shards(stage).ok_or("a stage was never cut")?;
        for task in (0..shards.count() as u32).map(|shard| TaskId { stage, shard }) {
            tasks += 1;
            let key = last.key(task).ok_or("a task is missing")?;
            check_artifact(shared, key).await.map_err(|broken| format!("{task}: {broken}"))?;
        }
    }
    lock(&shared.history.told).figures.tasks += tasks;
    Ok(())
}

/// The run at each of its ends, as the journal tells. Each snapshot must be what the records before it come to.
async fn replay(shared: &Shared, run: &RunId) -> Result<Vec<RunState>, String> {
    let (mut events, mut states) = (Vec::new(), Vec::new());
    for number in 0.. {
        let path = Path::from(format!("runs/{run}/journal/{number:012}.json"));
        let Ok(found) = shared.objects.get(&path).await else { break };
        let bytes = found.bytes().await.unwrap();
        let end = bytes.iter().position(|b| *b == b'\n').unwrap();
        events.extend(JournalRecord::decode(&bytes[end + 1..]).unwrap().events);
        let state = RunState::replay(&events).map_err(|e| e.to_string())?;
        let path = Path::from(format!("runs/{run}/snapshots/{:012}.json", number + 1));
        if let Ok(found) = shared.objects.get(&path).await {
            let bytes = found.bytes().await.unwrap();
            let end = bytes.iter().position(|b| *b == b'\n').unwrap();
            let restored =
                RunState::restore(Snapshot::decode(&bytes[end + 1..]).unwrap()).map_err(|e| e.to_string())?;
            if restored != state {
                return Err(format!("{path} is not what the records before it come to"));
            }
            lock(&shared.history.told).figures.snapshots += 1;
        }
        if matches!(state.phase(), Phase::Finished(_)) {
            states.push(state);
        }
    }
    Ok(states)
}

/// A task's artifact is whole, and holds what its inputs make of it.
async fn check_artifact(shared: &Shared, key: &Key) -> Result<(), String> {
    let offer = lock(&shared.history.told).offers.get(key).cloned().ok_or("nobody ever began it")?;
    let manifest = manifest(shared, key).await?;
    let mut inputs = Vec::new();
    for shard in offer.inputs.iter().flat_map(|input| input.shards.iter()) {
        inputs.push(self::manifest(shared, &shard.key).await?.metrics["value"]);
    }
    let expected = value(&offer, &inputs);
    if manifest.metrics["value"].to_bits() != expected.to_bits() {
        return Err(format!("{} was made instead of {expected}", manifest.metrics["value"]));
    }
    let rows: BTreeMap<&str, u64> = tables(&offer).into_iter().map(|(table, rows)| (table, rows.len())).collect();
    let held = manifest.tables.iter().map(|(table, held)| (table.as_str(), held.rows)).collect();
    if rows != held {
        return Err(format!("it holds {held:?} rows instead of {rows:?}"));
    }
    // Small parts are in the manifest itself.
    for part in manifest.tables.values().flat_map(|table| &table.parts).filter(|part| part.content.is_none()) {
        match shared.objects.head(&Path::from(part.path.as_str())).await {
            Ok(there) if there.size == part.bytes => {}
            other => return Err(format!("its part {} is {other:?}", part.path)),
        }
    }
    Ok(())
}

async fn manifest(shared: &Shared, key: &Key) -> Result<Manifest, String> {
    let path = Path::from(format!("artifacts/{}/{key}/manifest.json", &key.0[..2]));
    let found = shared.objects.get(&path).await.map_err(|e| e.to_string())?;
    serde_json::from_slice(&found.bytes().await.unwrap()).map_err(|e| e.to_string())
}
