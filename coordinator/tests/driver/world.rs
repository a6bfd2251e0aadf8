//! A simulated world round a driver: a store and a journal in memory, a clock that jumps, workers that misbehave as
//! drawn from a seed.

use futures::{FutureExt, future::BoxFuture};
use rallrec_coordinator::{Artifacts, Clock, Control, Driver, DriverError, Journal, Notice, RunEnd, Settings};
use rallrec_core::{
    ids::{RunId, StageName, TimeMs, WorkerId},
    key::{Key, KeyFields},
    kind::{Mode, StageKind},
    lane::Lane,
    params::StageParams,
    plan::{Need, Plan, PlannedStage, Resources, Retry},
    rng::row_rng,
    run::{Event, JournalRecord},
    task::{ArtifactSummary, FailureClass, Outcome, Progress, TaskOffer, TaskReport},
};
use rallrec_proto::{decode_offer, encode_report};
use rallrec_queue::{CoordinatorEnd, MemoryQueue, WorkerEnd};
use rallrec_store::StoreError;
use rand_chacha::rand_core::Rng;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

/// A store in memory that remembers who was first.
#[derive(Clone, Default)]
pub(crate) struct SimStore {
    pub(crate) artifacts: Arc<Mutex<BTreeMap<Key, ArtifactSummary>>>,
    /// Attempts that computed something, by key.
    pub(crate) computed: Arc<Mutex<BTreeMap<Key, u32>>>,
}

impl Artifacts for SimStore {
    async fn probe(&self, keys: Vec<Key>) -> Result<Vec<Option<ArtifactSummary>>, StoreError> {
        tokio::task::yield_now().await;
        let there = self.artifacts.lock().unwrap();
        Ok(keys.iter().map(|key| there.get(key).cloned()).collect())
    }
}

/// A journal in memory that can die at a given record, before or after it is written.
#[derive(Clone, Default)]
pub(crate) struct SimJournal {
    pub(crate) records: Arc<Mutex<Vec<Vec<u8>>>>,
    /// By the number of the first record after it.
    pub(crate) snapshots: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
    pub(crate) next: usize,
    pub(crate) dies_at: Option<usize>,
    pub(crate) dies_after_write: bool,
}

impl SimJournal {
    pub(crate) fn events(&self) -> Vec<Event> {
        self.records.lock().unwrap().iter().flat_map(|r| JournalRecord::decode(r).unwrap().events).collect()
    }

    /// What another process sees.
    pub(crate) fn reopened(&self) -> Self {
        Self { records: Arc::clone(&self.records), snapshots: Arc::clone(&self.snapshots), ..Self::default() }
    }
}

impl Journal for SimJournal {
    async fn snapshot(&mut self) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        let snapshots = self.snapshots.lock().unwrap();
        Ok(snapshots.last_key_value().map(|(next, bytes)| (*next, bytes.clone())))
    }

    async fn replay(&mut self, first: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let records = self.records.lock().unwrap();
        self.next = records.len();
        Ok(records[first as usize..].to_vec())
    }

    fn keep(&self, snapshot: Vec<u8>) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
        let (snapshots, next) = (Arc::clone(&self.snapshots), self.next as u64);
        async move {
            tokio::task::yield_now().await;
            snapshots.lock().unwrap().entry(next).or_insert(snapshot);
            Ok(())
        }
    }

    async fn append(&mut self, record: &[u8]) -> Result<(), StoreError> {
        tokio::task::yield_now().await;
        let died = || StoreError::Corrupt { path: "journal".into(), reason: "the process died".into() };
        let dies = self.dies_at == Some(self.next);
        if dies && !self.dies_after_write {
            return Err(died());
        }
        let mut records = self.records.lock().unwrap();
        if records.len() != self.next {
            return Err(StoreError::Conflict { path: format!("journal/{}", self.next) });
        }
        records.push(record.to_vec());
        self.next += 1;
        if dies { Err(died()) } else { Ok(()) }
    }
}

/// A clock that jumps to whatever is waited for.
#[derive(Default)]
pub(crate) struct JumpingClock(Arc<AtomicU64>);

impl Clock for JumpingClock {
    fn now(&self) -> TimeMs {
        TimeMs(self.0.load(Ordering::Relaxed))
    }

    fn wait(&self, ms: u64) -> BoxFuture<'static, ()> {
        let now = Arc::clone(&self.0);
        let at = self.now().0 + ms;
        async move {
            now.fetch_max(at, Ordering::Relaxed);
        }
        .boxed()
    }
}

/// How workers behave.
#[derive(Clone)]
pub(crate) struct Temper {
    pub(crate) seed: u64,
    /// Of 100 attempts this many go wrong in some way.
    pub(crate) faults: u32,
    /// A key that always fails.
    pub(crate) poisoned: Option<Key>,
    /// Nothing is computed while this is false.
    pub(crate) gate: watch::Receiver<bool>,
}

impl Temper {
    pub(crate) fn good() -> Self {
        Self { seed: 0, faults: 0, poisoned: None, gate: watch::channel(true).1 }
    }
}

/// One process: a driver with its queue and its workers.
pub(crate) struct Process {
    pub(crate) control: mpsc::Sender<Control>,
    queue: Arc<MemoryQueue>,
    driver: Option<Driver<SimStore, AnyJournal>>,
    workers: Vec<JoinHandle<()>>,
    pub(crate) notices: Arc<Mutex<Vec<&'static str>>>,
}

/// Either journal.
pub(crate) enum AnyJournal {
    Sim(SimJournal),
    Real(rallrec_store::Records),
}

impl Journal for AnyJournal {
    async fn snapshot(&mut self) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        match self {
            Self::Sim(journal) => journal.snapshot().await,
            Self::Real(journal) => journal.snapshot().await,
        }
    }

    async fn replay(&mut self, first: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        match self {
            Self::Sim(journal) => journal.replay(first).await,
            Self::Real(journal) => journal.replay_from(first).await,
        }
    }

    fn keep(&self, snapshot: Vec<u8>) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
        match self {
            Self::Sim(journal) => journal.keep(snapshot).boxed(),
            Self::Real(journal) => journal.keep_snapshot(&snapshot).boxed(),
        }
    }

    async fn append(&mut self, record: &[u8]) -> Result<(), StoreError> {
        match self {
            Self::Sim(journal) => journal.append(record).await,
            Self::Real(journal) => journal.append(record).await,
        }
    }
}

impl Process {
    pub(crate) fn new(store: &SimStore, journal: AnyJournal, temper: Temper) -> Self {
        let queue = Arc::new(MemoryQueue::new(4));
        let (control, heard) = mpsc::channel(16);
        let notices = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&notices);
        let driver = Driver {
            artifacts: store.clone(),
            journal,
            queue: Arc::clone(&queue) as Arc<dyn CoordinatorEnd>,
            clock: Arc::new(JumpingClock::default()),
            settings: Settings { snapshot_records: 3, ..Settings::new([("cpu".to_string(), 2)].into()) },
            control: heard,
            observer: Box::new(move |notice| {
                seen.lock().unwrap().push(match notice {
                    Notice::Event(event) => event.name(),
                    Notice::Progress(_) => "progress",
                    Notice::State(_) => "state",
                });
            }),
        };
        let workers = (0..2)
            .map(|slot| tokio::spawn(worker(slot, Arc::clone(&queue), store.clone(), control.clone(), temper.clone())));
        Self { workers: workers.collect(), control, queue, driver: Some(driver), notices }
    }

    pub(crate) async fn start(&mut self, plan: &Plan) -> Result<RunEnd, DriverError> {
        let driver = self.driver.take().unwrap();
        let end = driver.start(RunId("r".into()), Arc::new(plan.clone())).await;
        self.stop(end).await
    }

    pub(crate) async fn resume(&mut self) -> Result<RunEnd, DriverError> {
        let end = self.driver.take().unwrap().resume().await;
        self.stop(end).await
    }

    /// After an error the process is dead, and so are its workers, wherever they stand.
    async fn stop(&mut self, end: Result<RunEnd, DriverError>) -> Result<RunEnd, DriverError> {
        self.queue.close();
        for worker in self.workers.drain(..) {
            if end.is_err() {
                worker.abort();
            }
            match worker.await {
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                _ => {}
            }
        }
        end
    }
}

async fn worker(
    slot: u32,
    queue: Arc<MemoryQueue>,
    store: SimStore,
    control: mpsc::Sender<Control>,
    mut temper: Temper,
) {
    let mut life = 0;
    let lanes = [Lane { pool: "cpu".into(), model: None }];
    while let Ok(Some(delivery)) = queue.claim(&lanes).await {
        let offer = decode_offer(delivery.payload()).unwrap();
        let worker = WorkerId(format!("slot{slot}.{life}"));
        let mut rng = row_rng(
            temper.seed,
            &format!("worker {slot} {life}"),
            u64::from(offer.attempt.0),
            u64::from(offer.task.shard),
        );
        life += 1;
        let say = |outcome| {
            let report = encode_report(&TaskReport {
                run: offer.run.clone(),
                task: offer.task,
                attempt: offer.attempt,
                worker: worker.clone(),
                outcome,
            });
            queue.report(&offer.run, report)
        };
        let _ = say(Outcome::Started).await;
        if temper.gate.wait_for(|open| *open).await.is_err() {
            return;
        }
        for _ in 0..rng.next_u32() % 4 {
            tokio::task::yield_now().await;
        }
        let goes_wrong = rng.next_u32() % 100 < temper.faults;
        match rng.next_u32() % 4 {
            _ if temper.poisoned.as_ref() == Some(&offer.key) => {
                let _ = say(Outcome::Failed { class: FailureClass::Permanent, message: "row 7 is bad".into() }).await;
            }
            0 if goes_wrong => {
                let _ = say(Outcome::Failed { class: FailureClass::Transient, message: "drawn".into() }).await;
            }
            // Given back: another slot runs the same attempt.
            1 if goes_wrong => continue,
            // Dead after its commit, before its report.
            2 if goes_wrong => {
                compute(&store, &offer);
                let _ = control.send(Control::WorkerLost(worker)).await;
            }
            3 if goes_wrong => {
                let _ = control.send(Control::WorkerLost(worker)).await;
            }
            _ => {
                let _ = say(Outcome::Progress(Progress { done: 1, total: 2, ..Progress::default() })).await;
                let (summary, first) = compute(&store, &offer);
                let _ = say(Outcome::Committed { summary, first }).await;
            }
        }
        delivery.ack();
    }
}

fn compute(store: &SimStore, offer: &TaskOffer) -> (ArtifactSummary, bool) {
    let mut artifacts = store.artifacts.lock().unwrap();
    for shard in offer.inputs.iter().flat_map(|input| input.shards.iter()) {
        assert!(artifacts.contains_key(&shard.key), "{} began before its inputs were there", offer.task);
    }
    let rows = match offer.rows {
        Some(rows) => [("rows".to_string(), rows.len())].into(),
        None => [("items".to_string(), 20), ("samples".to_string(), offer.seed)].into(),
    };
    let summary = ArtifactSummary { rows, bytes: 1, seconds: 0.5, bad_rows: 0 };
    let first = !artifacts.contains_key(&offer.key);
    artifacts.entry(offer.key.clone()).or_insert(summary.clone());
    *store.computed.lock().unwrap().entry(offer.key.clone()).or_default() += 1;
    (summary, first)
}

/// A data set; rows in threes; rows in fours over them; a training; samples in fives with it; a report.
/// `samples`: rows of the data set's second table.
pub(crate) fn plan(samples: u64) -> Plan {
    let need = |stage, table: &str, mode| Need { port: format!("{mode:?}{stage}"), stage, table: table.into(), mode };
    let stages = vec![
        stage(0, StageKind::Dataset, vec![], None, samples),
        stage(1, StageKind::Embed, vec![need(0, "items", Mode::Drive)], Some(3), 0),
        stage(2, StageKind::Score, vec![need(1, "rows", Mode::Drive), need(0, "items", Mode::Aligned)], Some(4), 0),
        stage(3, StageKind::LightGcn, vec![need(2, "rows", Mode::Whole)], None, 0),
        stage(4, StageKind::Score, vec![need(0, "samples", Mode::Drive), need(3, "items", Mode::Whole)], Some(5), 0),
        stage(5, StageKind::Report, vec![need(4, "rows", Mode::Whole)], None, 0),
    ];
    Plan { version: 1, pipeline: "simulated".into(), stages }
}

fn stage(position: u32, kind: StageKind, needs: Vec<Need>, shard_rows: Option<u64>, seed: u64) -> PlannedStage {
    let mut fields = KeyFields::default();
    fields.set("position", position);
    let key = fields.key();
    PlannedStage {
        name: StageName(format!("s{position}")),
        kind,
        params: StageParams::fields(kind)
            .into_iter()
            .map(|f| (f.name.to_string(), f.default))
            .collect::<serde_json::Value>(),
        needs,
        model: None,
        data: None,
        shard_rows,
        resources: Resources { pool: "cpu".into(), memory_mb: 1 },
        retry: Retry { max_attempts: 50, backoff_ms: 1000 },
        seed,
        max_bad_rows: 0,
        fields,
        row_key: key.clone(),
        stage_key: key,
    }
}
