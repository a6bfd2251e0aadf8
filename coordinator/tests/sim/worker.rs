//! Simulated workers: they do what `worker` does with offers, words and the store, and compute nothing.
//!
//! Commits are the store's real ones. What a task makes is a number for each of its rows that depends on everything
//! upstream, so that a wrong input or a wrong artifact shows in the end.

use crate::{
    checker::{History, WorkerEntry},
    faults::Fault,
    network::{Message, Server, Subject},
    plans::dataset_rows,
    world::{Node, lock},
};
use arrow_array::{ArrayRef, RecordBatch, UInt64Array};
use futures::{StreamExt, stream::BoxStream};
use rallrec_core::{
    fleet::{AtWork, AttemptName, Beat},
    ids::{RowRange, TimeMs, WorkerId},
    kind::StageKind,
    lane::Lane,
    task::{FailureClass, MemoryMb, Outcome, Progress, TaskOffer, TaskReport},
};
use rallrec_proto::{BeatMessage, decode_offer, decode_order, encode_beat, encode_report};
use rallrec_store::{ArtifactWriter, Committed, Producer, Store, StoreError};
use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep},
};

/// Time that tasks have to end when a worker drains.
const GRACE: Duration = Duration::from_secs(5);

/// So many times longer takes what a worker begins while it crawls.
const CRAWL: u64 = 20;

/// One life of a worker.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) node: Arc<Node>,
    pub(crate) server: Arc<Server>,
    pub(crate) store: Store,
    pub(crate) history: Arc<History>,
    entry: Arc<WorkerEntry>,
    id: WorkerId,
    slots: u32,
    lanes: Arc<Mutex<Vec<Lane>>>,
    lanes_changed: Arc<Notify>,
    drain: Arc<AtomicBool>,
    /// Tasks end where they stand.
    stop: Arc<AtomicBool>,
    /// Attempts that the leader says help nobody.
    in_vain: Arc<Mutex<Vec<AttemptName>>>,
}

impl Worker {
    pub(crate) fn new(
        node: &Arc<Node>,
        server: &Arc<Server>,
        store: Store,
        history: &Arc<History>,
        drain: &Arc<AtomicBool>,
        memory_gib: u64,
    ) -> Self {
        let id = WorkerId(node.name.clone());
        let slots = node.world.between(1, 2) as u32;
        Self {
            entry: history.worker(&id, node, memory_gib * 1024),
            node: Arc::clone(node),
            server: Arc::clone(server),
            store,
            history: Arc::clone(history),
            id,
            slots,
            lanes: Arc::default(),
            lanes_changed: Arc::default(),
            drain: Arc::clone(drain),
            stop: Arc::default(),
            in_vain: Arc::default(),
        }
    }

    /// Works until it is dropped, or has drained.
    pub(crate) async fn serve(self) {
        let mut slots = JoinSet::new();
        for _ in 0..self.slots {
            slots.spawn_local(self.clone().slot());
        }
        let mut orders = self.server.listen(&self.node, Subject::Order(self.id.clone()));
        let mut draining_since = None;
        loop {
            self.node.call().await;
            self.beat(draining_since.is_some(), false);
            if self.drain.load(Ordering::Relaxed) && draining_since.is_none() {
                draining_since = Some(Instant::now());
                self.node.world.tell(format_args!("{} drains", self.id));
                self.set_lanes(Vec::new());
            }
            if draining_since.is_some_and(|since| since.elapsed() >= GRACE) {
                self.stop.store(true, Ordering::Relaxed);
            }
            if draining_since.is_some() && lock(&self.entry.board).is_empty() {
                break;
            }
            self.heed_orders(&mut orders, draining_since.is_some()).await;
        }
        slots.shutdown().await;
        self.beat(true, true);
        self.entry.left.store(true, Ordering::Relaxed);
    }

    /// For a second.
    async fn heed_orders(&self, orders: &mut BoxStream<'static, bytes::Bytes>, draining: bool) {
        let until = Instant::now() + Duration::from_secs(1);
        while let Ok(Some(order)) = tokio::time::timeout_at(until, orders.next()).await {
            let order = decode_order(&order).unwrap();
            lock(&self.in_vain).extend(order.stop);
            if !draining {
                self.set_lanes(if order.drain { Vec::new() } else { order.lanes });
            }
        }
    }

    fn set_lanes(&self, wanted: Vec<Lane>) {
        let mut lanes = lock(&self.lanes);
        if *lanes != wanted {
            *lanes = wanted;
            self.lanes_changed.notify_waiters();
        }
    }

    fn beat(&self, draining: bool, leaving: bool) {
        let board = lock(&self.entry.board);
        let at_work = board.keys().map(|(run, task, attempt)| AtWork {
            run: run.clone(),
            task: *task,
            attempt: *attempt,
            progress: Progress::default(),
        });
        let beat = Beat {
            worker: self.id.clone(),
            host: "simulated".into(),
            pool: "cpu".into(),
            slots: self.slots,
            memory_mb: self.entry.memory_mb,
            gpu_memory_mb: None,
            models: BTreeSet::new(),
            draining,
            at_work: at_work.collect(),
            program: "simulated".into(),
        };
        self.server.say(&self.node, &Subject::Beats, &encode_beat(&BeatMessage { beat, leaving }));
    }

    async fn slot(self) {
        loop {
            let lanes = lock(&self.lanes).clone();
            let changed = self.lanes_changed.notified();
            tokio::select! {
                biased;
                () = changed => {}
                claimed = self.server.claim(&self.node, &lanes), if !lanes.is_empty() => self.work(claimed).await,
            }
        }
    }

    /// One attempt, from the offer to the last report.
    async fn work(&self, claimed: Message) {
        let offer = decode_offer(&claimed.payload).unwrap();
        if lock(&self.entry.board).keys().any(|(run, task, _)| (run, *task) == (&offer.run, offer.task)) {
            let (server, node, id) = (Arc::clone(&self.server), Arc::clone(&self.node), claimed.id());
            self.node.world.tell(format_args!("{} leaves {} {} to others", self.id, offer.run, offer.task));
            tokio::task::spawn_local(async move { server.put_off(&node, id).await });
            return;
        }
        self.history.begun(&self.id, &offer);
        let name = (offer.run.clone(), offer.task, offer.attempt);
        lock(&self.entry.board).insert(name.clone(), Instant::now());
        self.report(&offer, Outcome::Started).await;
        let outcome = self.attempt(&offer, &claimed).await;
        if let Outcome::Failed { class: FailureClass::Transient | FailureClass::Resource, .. } = outcome {
            self.history.failed_by_itself(&offer);
        }
        if let Outcome::Committed { first, .. } = outcome {
            self.history.committed(&offer, first);
        }
        self.report(&offer, outcome).await;
        lock(&self.entry.board).remove(&name);
        self.server.ack(&self.node, claimed.id()).await;
    }

    async fn report(&self, offer: &TaskOffer, outcome: Outcome) {
        let report = TaskReport {
            run: offer.run.clone(),
            task: offer.task,
            attempt: offer.attempt,
            worker: self.id.clone(),
            outcome,
        };
        self.server.report(&self.node, &offer.run, encode_report(&report)).await;
    }

    async fn attempt(&self, offer: &TaskOffer, claimed: &Message) -> Outcome {
        let world = &self.node.world;
        let failed = |class, message: String| Outcome::Failed { class, message, needed: MemoryMb::default() };
        // Stages of one task have nobody to be compared with, so a test that has no other fault leaves them alone.
        let crawls = self.node.is_crawling() && (offer.rows.is_some() || !world.profile.one_crawls);
        let ms = match crawls {
            true if world.profile.one_crawls => 10 * CRAWL * world.between(10, 6_000),
            true => CRAWL * world.between(10, 6_000),
            false if world.fires(Fault::WorkerSlow) => world.between(20_000, 90_000),
            false => world.between(10, 6_000),
        };
        let name = AttemptName { run: offer.run.clone(), task: offer.task, attempt: offer.attempt };
        let until = Instant::now() + Duration::from_millis(ms);
        let mut said = Instant::now();
        while Instant::now() < until {
            sleep((until - Instant::now()).min(Duration::from_secs(1))).await;
            self.node.gate().await;
            if self.stop.load(Ordering::Relaxed) {
                return failed(FailureClass::Lost, "draining".into());
            }
            if lock(&self.in_vain).contains(&name) {
                self.history.stopped(offer);
                return failed(FailureClass::Lost, "in vain".into());
            }
            if said.elapsed() >= crate::network::ACK_WAIT / 3 {
                said = Instant::now();
                self.server.keep(&self.node, claimed.id()).await;
                self.report(offer, Outcome::Progress(Progress::default())).await;
            }
        }
        if world.fires(Fault::TaskFailed) {
            return failed(FailureClass::Transient, "drawn".into());
        }
        if world.fires(Fault::TaskOutgrown) {
            // Every other time it knows that it needs more than there is.
            let host = world.between(0, 1) * (self.entry.memory_mb + 1);
            let message = "out of memory, as drawn".into();
            return Outcome::Failed { class: FailureClass::Resource, message, needed: MemoryMb { host, gpu: 0 } };
        }
        match self.commit(offer, ms).await {
            Ok(committed) => Outcome::Committed { summary: committed.manifest.summary(), first: committed.first },
            Err(error) => failed(FailureClass::Unavailable, error.to_string()),
        }
    }

    async fn commit(&self, offer: &TaskOffer, ms: u64) -> Result<Committed, StoreError> {
        let mut inputs = Vec::new();
        for shard in offer.inputs.iter().flat_map(|input| input.shards.iter()) {
            match self.store.manifest(&shard.key).await? {
                Some(manifest) => inputs.push(manifest.metrics["value"]),
                None => self.node.world.violate(format!("{} began before its inputs were there", offer.task)),
            }
        }
        let value = value(offer, &inputs);
        // A message that is delivered twice makes two writers of one attempt.
        let writer = format!("{}-{}", self.id, self.node.world.between(0, u64::MAX - 1));
        let producer = Producer { offer: offer.clone(), program: "simulated".into(), writer };
        let mut artifact = ArtifactWriter::new(self.store.clone(), producer);
        for (table, rows) in tables(offer) {
            artifact.write(table, &batch(value, rows)).await?;
        }
        artifact.metric("value", value);
        artifact.commit(ms as f64 / 1000.0, TimeMs(self.node.clock_ms())).await
    }
}

/// What a task makes of what it reads: a whole number.
pub(crate) fn value(offer: &TaskOffer, inputs: &[f64]) -> f64 {
    let mut hasher = DefaultHasher::new();
    (&offer.key.0, offer.rows.map(|r| (r.start, r.end)), offer.seed).hash(&mut hasher);
    inputs.iter().for_each(|input| input.to_bits().hash(&mut hasher));
    (hasher.finish() >> 12) as f64
}

/// The tables of a task, with their rows.
pub(crate) fn tables(offer: &TaskOffer) -> Vec<(&'static str, RowRange)> {
    let all = |end| RowRange { start: 0, end };
    match (offer.rows, offer.kind) {
        (Some(rows), _) => vec![("rows", rows)],
        (None, StageKind::Dataset) => {
            let (items, samples) = dataset_rows(offer.seed);
            vec![("items", all(items)), ("samples", all(samples))]
        }
        (None, _) => vec![("items", all(3))],
    }
}

fn batch(value: f64, rows: RowRange) -> RecordBatch {
    let column: Vec<u64> = (rows.start..rows.end).map(|row| value as u64 ^ row).collect();
    RecordBatch::try_from_iter([("x", Arc::new(UInt64Array::from(column)) as ArrayRef)]).unwrap()
}
