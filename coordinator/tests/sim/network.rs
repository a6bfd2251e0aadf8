//! The network: a server with streams and subjects as NATS has them, and coordinators' and workers' connections to it.
//!
//! What of NATS matters to coordinators is here: offers that are claimed until they are acknowledged and given out again
//! when they are not, one message an id for a while, purging by subject, streams that are gone after a wipe until
//! somebody makes them anew, subjects that reach whoever listens at the moment.

use crate::{
    faults::Fault,
    world::{Node, World, lock},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use rallrec_core::{
    ids::{RunId, WorkerId},
    lane::Lane,
};
use rallrec_queue::{CoordinatorEnd, LeaderEnd, LeaderWords, OfferName, QueueError};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep},
};

/// Silence about a claimed message after which it is given out again.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(30);
/// Time until an offer that a worker does not take itself is given out again.
const PUT_OFF: Duration = Duration::from_secs(1);
/// Time in which a message id counts once.
const DUPLICATES: Duration = Duration::from_secs(600);
/// Patience with one request.
const REQUEST: Duration = Duration::from_secs(2);
/// Reports handed out at once.
const REPORTS_AT_ONCE: usize = 16;

/// What words are about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Beats,
    Leaders,
    Order(WorkerId),
}

/// A message on a stream.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    id: u64,
    pub(crate) run: RunId,
    name: Option<OfferName>,
    pub(crate) payload: Bytes,
    /// Not given out before; claimed messages are hidden until their claim runs out.
    hidden_until: Instant,
    /// Its place among those of its stream, to see reordering.
    number: u64,
}

#[derive(Default)]
struct Streams {
    /// Counts how often they were made; 0: never.
    made: u64,
    gone: bool,
    offers: BTreeMap<Lane, VecDeque<Message>>,
    reports: VecDeque<Message>,
    ids: BTreeMap<(RunId, OfferName), Instant>,
    last_report: u64,
}

/// The server.
pub(crate) struct Server {
    world: Arc<World>,
    streams: Mutex<Streams>,
    away_until: Mutex<Instant>,
    listeners: Mutex<BTreeMap<Subject, Vec<Listener>>>,
    next: AtomicU64,
    /// Something came onto a stream, or may be given out again.
    changed: Notify,
}

#[derive(Clone)]
struct Listener {
    node: Arc<Node>,
    words: mpsc::UnboundedSender<Bytes>,
    /// Number of the last word that came.
    last: Arc<AtomicU64>,
}

impl Server {
    pub(crate) fn new(world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            streams: Mutex::default(),
            away_until: Mutex::new(Instant::now()),
            listeners: Mutex::default(),
            next: AtomicU64::new(1),
            changed: Notify::new(),
        })
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Everything on the streams is gone, and the streams as well.
    pub(crate) fn wipe(&self) {
        let made = lock(&self.streams).made;
        *lock(&self.streams) = Streams { made, gone: true, ..Streams::default() };
    }

    /// Nobody reaches it for a while.
    pub(crate) fn take_away(&self, time: Duration) {
        *lock(&self.away_until) = Instant::now() + time;
    }

    pub(crate) fn is_reached_by(&self, node: &Node) -> bool {
        *lock(&self.away_until) <= Instant::now() && !node.is_cut()
    }

    fn make_streams(&self) -> u64 {
        let mut streams = lock(&self.streams);
        if streams.gone || streams.made == 0 {
            streams.gone = false;
            streams.made += 1;
        }
        streams.made
    }

    /// One request of a node, answered or not.
    async fn request<T>(&self, node: &Node, serve: impl FnOnce(&mut Streams) -> T) -> Result<T, QueueError> {
        node.call().await;
        sleep(Duration::from_millis(self.world.between(0, 3))).await;
        let lost = |why: &str| Err(QueueError::Unreachable(why.to_owned()));
        if !self.is_reached_by(node) {
            sleep(REQUEST).await;
            node.call().await;
            return lost("the server does not answer");
        }
        if lock(&self.streams).gone {
            node.call().await;
            return lost("the stream is gone");
        }
        let answer = serve(&mut lock(&self.streams));
        if self.world.fires(Fault::ReplyLost) {
            sleep(REQUEST).await;
            node.call().await;
            return lost("the answer was lost");
        }
        node.call().await;
        Ok(answer)
    }

    /// Says a word to whoever listens.
    pub(crate) fn say(&self, from: &Node, subject: &Subject, payload: &Bytes) {
        if !self.is_reached_by(from) {
            return;
        }
        let listeners: Vec<Listener> = {
            let mut all = lock(&self.listeners);
            let Some(listeners) = all.get_mut(subject) else { return };
            listeners.retain(|listener| !listener.words.is_closed());
            listeners.clone()
        };
        for listener in listeners {
            let times = 1 + u32::from(self.world.fires(Fault::WordDoubled));
            for _ in 0..times {
                if !self.world.fires(Fault::WordDropped) {
                    self.carry(listener.clone(), payload.clone());
                }
            }
        }
    }

    fn carry(&self, to: Listener, payload: Bytes) {
        let (world, number) = (Arc::clone(&self.world), self.number());
        let arrive = move || {
            if to.node.is_cut() {
                return;
            }
            if to.last.fetch_max(number, Ordering::Relaxed) > number {
                world.count(Fault::WordReordered);
            }
            let _ = to.words.send(payload);
        };
        if self.world.fires(Fault::WordDelayed) {
            let late = Duration::from_millis(self.world.between(10, 3_000));
            tokio::spawn(async move {
                sleep(late).await;
                arrive();
            });
        } else {
            arrive();
        }
    }

    /// What is said from now on, as a node hears it.
    pub(crate) fn listen(&self, node: &Arc<Node>, subject: Subject) -> BoxStream<'static, Bytes> {
        let (words, heard) = mpsc::unbounded_channel();
        let listener = Listener { node: Arc::clone(node), words, last: Arc::default() };
        lock(&self.listeners).entry(subject).or_default().push(listener);
        let node = Arc::clone(node);
        futures::stream::unfold((heard, node), |(mut heard, node)| async move {
            let word = heard.recv().await?;
            node.gate().await;
            Some((word, (heard, node)))
        })
        .boxed()
    }

    /// Puts a report onto its stream; returns once the server has it.
    pub(crate) async fn report(&self, node: &Node, run: &RunId, payload: Bytes) {
        // One id for all tries: a report is not doubled because its answer was lost.
        let mut id = None;
        loop {
            let put = self.request(node, |streams| {
                if id.is_some() {
                    return;
                }
                id = Some(());
                if self.world.fires(Fault::ReportLost) {
                    return;
                }
                for _ in 0..1 + u32::from(self.world.fires(Fault::ReportDoubled)) {
                    let late = self.world.fires(Fault::ReportDelayed);
                    let late = if late { self.world.between(10, 40_000) } else { 0 };
                    let hidden_until = Instant::now() + Duration::from_millis(late);
                    let number = self.number();
                    let (run, payload) = (run.clone(), payload.clone());
                    streams.reports.push_back(Message { id: number, run, name: None, payload, hidden_until, number });
                }
            });
            if put.await.is_ok() {
                self.changed.notify_waiters();
                return;
            }
            sleep(Duration::from_millis(self.world.between(50, 1_000))).await;
        }
    }

    /// Waits for an offer of these lanes, and claims it.
    pub(crate) async fn claim(&self, node: &Node, lanes: &[Lane]) -> Message {
        loop {
            let claimed = self.request(node, |streams| self.take(streams, lanes)).await;
            if let Ok(Some(message)) = claimed {
                return message;
            }
            let changed = self.changed.notified();
            tokio::select! {
                biased;
                () = changed => {}
                () = sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    fn take(&self, streams: &mut Streams, lanes: &[Lane]) -> Option<Message> {
        let now = Instant::now();
        for lane in lanes {
            let Some(offers) = streams.offers.get_mut(lane) else { continue };
            let Some(offer) = offers.iter_mut().find(|offer| offer.hidden_until <= now) else { continue };
            if !self.world.fires(Fault::OfferDoubled) {
                offer.hidden_until = now + ACK_WAIT;
            }
            return Some(offer.clone());
        }
        None
    }

    /// A claimed offer is being worked on.
    pub(crate) async fn keep(&self, node: &Node, id: u64) {
        self.on_offer(node, id, |offer| {
            offer.hidden_until = Instant::now() + ACK_WAIT;
            true
        })
        .await;
    }

    /// A claimed offer should be another worker's, in a moment.
    pub(crate) async fn put_off(&self, node: &Node, id: u64) {
        sleep(PUT_OFF).await;
        self.on_offer(node, id, |offer| {
            offer.hidden_until = Instant::now();
            true
        })
        .await;
        self.changed.notify_waiters();
    }

    /// A claimed offer is dealt with.
    pub(crate) async fn ack(&self, node: &Node, id: u64) {
        self.on_offer(node, id, |_| false).await;
    }

    /// A word about an offer, which may be lost on its way; tells whether the offer stays.
    async fn on_offer(&self, node: &Node, id: u64, mut change: impl FnMut(&mut Message) -> bool) {
        let _ = self
            .request(node, |streams| {
                for offers in streams.offers.values_mut() {
                    offers.retain_mut(|offer| offer.id != id || change(offer));
                }
            })
            .await;
    }

    /// Whether nothing is on the streams, for the trace.
    pub(crate) fn depth(&self) -> (usize, usize) {
        let streams = lock(&self.streams);
        (streams.offers.values().map(VecDeque::len).sum(), streams.reports.len())
    }
}

impl Message {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

/// A coordinator's connection. Clones are the same connection.
#[derive(Clone)]
pub(crate) struct Link {
    node: Arc<Node>,
    server: Arc<Server>,
    runs: Arc<Mutex<BTreeMap<RunId, mpsc::Sender<Bytes>>>>,
    wiped: watch::Sender<u64>,
}

impl Link {
    pub(crate) fn new(node: &Arc<Node>, server: &Arc<Server>) -> Self {
        let (node, server) = (Arc::clone(node), Arc::clone(server));
        Self { node, server, runs: Arc::default(), wiped: watch::channel(0).0 }
    }

    /// Looks at the streams now and then, and makes them anew when they are gone.
    pub(crate) async fn keep_up(&self) {
        let mut known = None;
        loop {
            self.node.call().await;
            if self.server.is_reached_by(&self.node) {
                let made = self.server.make_streams();
                if known.replace(made).is_some_and(|known| known != made) {
                    self.wiped.send_modify(|times| *times += 1);
                }
            }
            sleep(Duration::from_secs(2)).await;
        }
    }

    async fn hand_out_some(&self) -> Result<usize, QueueError> {
        let now = Instant::now();
        let taken = self.server.request(&self.node, |streams| {
            let waiting = streams.reports.iter_mut().filter(|report| report.hidden_until <= now);
            let mut taken = Vec::new();
            for report in waiting.take(REPORTS_AT_ONCE) {
                report.hidden_until = now + ACK_WAIT;
                taken.push(report.clone());
            }
            for report in &taken {
                if streams.last_report > report.number {
                    self.node.world.count(Fault::ReportReordered);
                }
                streams.last_report = streams.last_report.max(report.number);
            }
            taken
        });
        let taken = taken.await?;
        for report in &taken {
            let driver = lock(&self.runs).get(&report.run).cloned();
            if let Some(driver) = driver {
                let _ = driver.send(report.payload.clone()).await;
            }
            self.server.request(&self.node, |streams| streams.reports.retain(|there| there.id != report.id)).await?;
        }
        Ok(taken.len())
    }
}

#[async_trait]
impl LeaderWords for Link {
    fn is_connected(&self) -> bool {
        self.server.is_reached_by(&self.node)
    }

    async fn beats(&self) -> Result<BoxStream<'static, Bytes>, QueueError> {
        self.node.call().await;
        Ok(self.server.listen(&self.node, Subject::Beats))
    }

    async fn leaders(&self) -> Result<BoxStream<'static, Bytes>, QueueError> {
        self.node.call().await;
        Ok(self.server.listen(&self.node, Subject::Leaders))
    }

    async fn lead(&self, payload: Bytes) -> Result<(), QueueError> {
        self.node.call().await;
        self.server.say(&self.node, &Subject::Leaders, &payload);
        Ok(())
    }

    async fn order(&self, worker: &WorkerId, payload: Bytes) -> Result<(), QueueError> {
        self.node.call().await;
        self.server.say(&self.node, &Subject::Order(worker.clone()), &payload);
        Ok(())
    }
}

#[async_trait]
impl LeaderEnd for Link {
    fn run(&self, run: RunId) -> Arc<dyn CoordinatorEnd> {
        let (sender, heard) = mpsc::channel(1024);
        lock(&self.runs).insert(run.clone(), sender);
        Arc::new(RunLink { link: self.clone(), run, heard: tokio::sync::Mutex::new(heard) })
    }

    async fn hand_out_reports(&self) {
        loop {
            if !matches!(self.hand_out_some().await, Ok(1..)) {
                let changed = self.server.changed.notified();
                tokio::select! {
                    biased;
                    () = changed => {}
                    () = sleep(Duration::from_millis(500)) => {}
                }
            }
        }
    }

    fn wiped(&self) -> watch::Receiver<u64> {
        self.wiped.subscribe()
    }
}

/// A coordinator's end of one run.
struct RunLink {
    link: Link,
    run: RunId,
    heard: tokio::sync::Mutex<mpsc::Receiver<Bytes>>,
}

impl RunLink {
    async fn purge(&self, gone: impl Fn(&Message) -> bool) -> Result<(), QueueError> {
        let purge = |streams: &mut Streams| {
            for offers in streams.offers.values_mut() {
                offers.retain(|offer| !gone(offer));
            }
        };
        match self.link.server.request(&self.link.node, purge).await {
            // The stream is gone, and with it the offers.
            Err(QueueError::Unreachable(why)) if why.contains("gone") => Ok(()),
            other => other,
        }
    }
}

#[async_trait]
impl CoordinatorEnd for RunLink {
    async fn offer(&self, lane: &Lane, name: OfferName, payload: Bytes) -> Result<(), QueueError> {
        let (server, node) = (&self.link.server, &self.link.node);
        loop {
            let put = server.request(node, |streams| {
                let (now, id) = (Instant::now(), (self.run.clone(), name));
                if streams.ids.get(&id).is_some_and(|seen| now.duration_since(*seen) < DUPLICATES) {
                    return;
                }
                streams.ids.insert(id, now);
                if server.world.fires(Fault::OfferLost) {
                    return;
                }
                let (number, run, payload) = (server.number(), self.run.clone(), payload.clone());
                let offer = Message { id: number, run, name: Some(name), payload, hidden_until: now, number };
                streams.offers.entry(lane.clone()).or_default().push_back(offer);
            });
            if put.await.is_ok() {
                server.changed.notify_waiters();
                return Ok(());
            }
            sleep(Duration::from_millis(server.world.between(50, 1_000))).await;
            if server.is_reached_by(node) {
                server.make_streams();
            }
        }
    }

    async fn withdraw(&self, _lane: &Lane, name: OfferName) -> Result<(), QueueError> {
        self.purge(|offer| offer.run == self.run && offer.name == Some(name)).await
    }

    async fn withdraw_all(&self) -> Result<(), QueueError> {
        self.purge(|offer| offer.run == self.run).await
    }

    async fn held(&self) -> Result<BTreeSet<OfferName>, QueueError> {
        let held = |streams: &mut Streams| {
            let mine = streams.offers.values().flatten().filter(|offer| offer.run == self.run);
            mine.filter_map(|offer| offer.name).collect()
        };
        self.link.server.request(&self.link.node, held).await
    }

    async fn next_report(&self) -> Result<Option<Bytes>, QueueError> {
        // A report that was taken must not be lost to a freeze, so nothing is waited for afterwards.
        self.link.node.gate().await;
        Ok(self.heard.lock().await.recv().await)
    }
}
