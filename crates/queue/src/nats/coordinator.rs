//! The coordinator's end: keeps the streams there, sends offers, hands reports to the runs that they are about.

use super::{ACK_WAIT, Connection, NatsSettings, Words, jittered, names::Names};
use crate::{CoordinatorEnd, LeaderEnd, LeaderWords, OfferName, QueueError};
use async_nats::StatusCode;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use rallrec_core::{
    ids::{RunId, WorkerId},
    lane::Lane,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

/// Reports of one run that its driver has not read; when so many wait, the rest stay on the stream.
const UNREAD: usize = 1024;

/// Reports asked for at once, and how long the server keeps the question open.
const REPORTS_AT_ONCE: usize = 256;
const REPORTS_WAIT: Duration = Duration::from_secs(5);

/// How often the streams are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Refusals of an offer after which it is given up: about a minute of them.
const REFUSALS: u32 = 30;

/// Consumer of the reports.
const REPORTS_CONSUMER: &str = "coordinator";

/// Time in which an offer that is sent twice counts once. An offer is sent again after a crash or a wipe, so this
/// should be longer than either takes to mend.
const DUPLICATES: Duration = Duration::from_secs(600);

/// The coordinator's connection. Clones are the same connection; with the last one go its background tasks.
#[derive(Clone)]
pub struct NatsCoordinator {
    shared: Arc<Shared>,
    _background: Arc<Background>,
}

struct Shared {
    connection: Connection,
    runs: Mutex<BTreeMap<RunId, mpsc::Sender<Bytes>>>,
    /// Lanes that have had an offer.
    lanes: Mutex<BTreeSet<Lane>>,
    /// When the offers' stream was made, as the server tells: another time is another stream.
    made: Mutex<Option<String>>,
    wiped: watch::Sender<u64>,
}

struct Background(Vec<JoinHandle<()>>);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl NatsCoordinator {
    /// Connects and makes the streams if they are not there.
    ///
    /// # Errors
    /// When the server cannot be reached or lacks what is needed.
    pub async fn connect(settings: &NatsSettings) -> Result<Self, QueueError> {
        let shared = Arc::new(Shared {
            connection: Connection::open(settings).await?,
            runs: Mutex::default(),
            lanes: Mutex::default(),
            made: Mutex::default(),
            wiped: watch::channel(0).0,
        });
        shared.upkeep().await?;
        Ok(Self { _background: Arc::new(Background(vec![tokio::spawn(keep_up(Arc::clone(&shared)))])), shared })
    }

    /// Words over the same connection.
    pub fn words(&self) -> Words {
        Words { connection: self.shared.connection.clone() }
    }

    /// The end of one run, which hears the reports about it from now on.
    pub fn run(&self, run: RunId) -> NatsRun {
        let (sender, heard) = mpsc::channel(UNREAD);
        let mine = sender.downgrade();
        lock(&self.shared.runs).insert(run.clone(), sender);
        NatsRun { shared: Arc::clone(&self.shared), run, mine, heard: tokio::sync::Mutex::new(heard) }
    }

    /// Reads reports and hands them to their runs, until it is dropped. A report about a run that nobody drives is
    /// dropped, so begin once every run that goes on has its end.
    pub async fn hand_out_reports(&self) {
        let mut wait = Duration::from_millis(100);
        loop {
            match self.shared.read_reports().await {
                Ok(()) => wait = Duration::from_millis(100),
                Err(error) => {
                    tracing::debug!(%error, "cannot read reports, trying again");
                    tokio::time::sleep(jittered(wait)).await;
                    wait = (wait * 2).min(Duration::from_secs(2));
                }
            }
        }
    }

    /// Counts the times that the stream was found gone or made anew: what was on it must be sent again.
    pub fn wiped(&self) -> watch::Receiver<u64> {
        self.shared.wiped.subscribe()
    }
}

#[async_trait]
impl LeaderWords for NatsCoordinator {
    fn is_connected(&self) -> bool {
        self.words().is_connected()
    }

    async fn beats(&self) -> Result<BoxStream<'static, Bytes>, QueueError> {
        Ok(self.words().beats().await?.boxed())
    }

    async fn leaders(&self) -> Result<BoxStream<'static, Bytes>, QueueError> {
        Ok(self.words().leaders().await?.boxed())
    }

    async fn lead(&self, payload: Bytes) -> Result<(), QueueError> {
        self.words().lead(payload).await
    }

    async fn order(&self, worker: &WorkerId, payload: Bytes) -> Result<(), QueueError> {
        self.words().order(worker, payload).await
    }
}

#[async_trait]
impl LeaderEnd for NatsCoordinator {
    fn run(&self, run: RunId) -> Arc<dyn CoordinatorEnd> {
        Arc::new(Self::run(self, run))
    }

    async fn hand_out_reports(&self) {
        Self::hand_out_reports(self).await;
    }

    fn wiped(&self) -> watch::Receiver<u64> {
        Self::wiped(self)
    }
}

async fn keep_up(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Err(error) = shared.upkeep().await {
            tracing::warn!(%error, "cannot look at the streams");
        }
    }
}

impl Shared {
    /// Makes what is missing; tells when the offers' stream is another one than before.
    async fn upkeep(&self) -> Result<(), QueueError> {
        let names = &self.connection.names;
        let made = self.stream(&names.offers_stream(), &names.offers()).await?;
        self.stream(&names.reports_stream(), &names.reports()).await?;
        let before = lock(&self.made).replace(made.clone());
        if before.as_ref() != Some(&made) {
            let lanes = lock(&self.lanes).clone();
            for lane in lanes {
                self.lane_consumer(&lane).await?;
            }
            if before.is_some() {
                tracing::warn!("the offers on NATS were wiped; what is owed is sent again");
                self.wiped.send_modify(|times| *times += 1);
            }
        }
        self.consumer(&names.reports_stream(), REPORTS_CONSUMER, &names.reports()).await
    }

    /// Makes a work-queue stream unless it is there. Gives the time when it was made.
    async fn stream(&self, name: &str, subjects: &str) -> Result<String, QueueError> {
        let config = json!({
            "name": name, "subjects": [subjects], "retention": "workqueue", "storage": "file", "num_replicas": 1,
            "discard": "old", "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0,
            "duplicate_window": nanos(DUPLICATES),
        });
        let made = match self.connection.api(&format!("STREAM.INFO.{name}"), &json!({})).await {
            Err(QueueError::Refused(_)) => self.connection.api(&format!("STREAM.CREATE.{name}"), &config).await?,
            found => found?,
        };
        Ok(made["created"].as_str().unwrap_or_default().to_owned())
    }

    async fn lane_consumer(&self, lane: &Lane) -> Result<(), QueueError> {
        let names = &self.connection.names;
        self.consumer(&names.offers_stream(), &Names::consumer(lane), &names.offers_of_lane(lane)).await
    }

    async fn consumer(&self, stream: &str, name: &str, filter: &str) -> Result<(), QueueError> {
        let body = json!({ "stream_name": stream, "config": {
            "durable_name": name, "name": name, "ack_policy": "explicit", "deliver_policy": "all",
            "replay_policy": "instant", "filter_subject": filter, "ack_wait": nanos(ACK_WAIT), "max_deliver": -1,
            // A claim is one message and one waiting question; both are bounded by the fleet's slots.
            "max_ack_pending": -1, "max_waiting": 65_536,
        }});
        self.connection.api(&format!("CONSUMER.CREATE.{stream}.{name}.{filter}"), &body).await.map(drop)
    }

    async fn put_offer(&self, lane: &Lane, run: &RunId, name: OfferName, payload: &Bytes) -> Result<(), QueueError> {
        if !lock(&self.lanes).contains(lane) {
            self.lane_consumer(lane).await?;
            lock(&self.lanes).insert(lane.clone());
        }
        let subject = self.connection.names.offer(lane, run, name);
        let id = format!("{run}/{}/{}", name.task, name.attempt);
        self.connection.put(subject, &id, payload.clone()).await
    }

    /// Hands out one question's worth of reports.
    async fn read_reports(&self) -> Result<(), QueueError> {
        let client = &self.connection.client;
        let closed = |_| QueueError::Closed;
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| QueueError::Closed)?;
        let stream = self.connection.names.reports_stream();
        let ask = json!({ "batch": REPORTS_AT_ONCE, "expires": nanos(REPORTS_WAIT) }).to_string();
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{REPORTS_CONSUMER}");
        client.publish_with_reply(subject, inbox, ask.into()).await.map_err(closed)?;
        let until = tokio::time::Instant::now() + REPORTS_WAIT + Duration::from_secs(1);
        for _ in 0..REPORTS_AT_ONCE {
            let Ok(Some(message)) = tokio::time::timeout_at(until, answers.next()).await else { break };
            match message.status {
                None => {}
                Some(StatusCode::NO_RESPONDERS) => return Err(QueueError::Unreachable("the stream is gone".into())),
                // Nothing came in time: ask again.
                Some(_) => break,
            }
            let run = Names::reported_run(&message.subject);
            let driver = lock(&self.runs).get(&run).cloned();
            // A driver that has ended hears no more.
            let taken = match driver {
                Some(driver) => driver.send(message.payload).await.is_ok(),
                None => false,
            };
            if !taken {
                tracing::debug!(%run, "a report about a run that nobody drives is dropped");
            }
            if let Some(reply) = message.reply {
                client.publish(reply, "+ACK".into()).await.map_err(closed)?;
            }
        }
        Ok(())
    }
}

/// The coordinator's end of one run. Dropped, it hears no more reports.
pub struct NatsRun {
    shared: Arc<Shared>,
    run: RunId,
    /// Tells this end from a later one of the same run.
    mine: mpsc::WeakSender<Bytes>,
    heard: tokio::sync::Mutex<mpsc::Receiver<Bytes>>,
}

impl Drop for NatsRun {
    fn drop(&mut self) {
        let mut runs = lock(&self.shared.runs);
        let mine = self.mine.upgrade();
        if runs.get(&self.run).zip(mine).is_some_and(|(there, mine)| there.same_channel(&mine)) {
            runs.remove(&self.run);
        }
    }
}

impl NatsRun {
    async fn purge(&self, subject: &str) -> Result<(), QueueError> {
        let connection = &self.shared.connection;
        let stream = connection.names.offers_stream();
        let purged = connection.api(&format!("STREAM.PURGE.{stream}"), &json!({ "filter": subject })).await;
        match purged {
            // The stream is gone, and with it the offers.
            Err(QueueError::Refused(why)) if why.contains("10059") => Ok(()),
            other => other.map(drop),
        }
    }
}

#[async_trait]
impl CoordinatorEnd for NatsRun {
    async fn offer(&self, lane: &Lane, name: OfferName, payload: Bytes) -> Result<(), QueueError> {
        let mut wait = Duration::from_millis(50);
        let mut refused = 0;
        loop {
            match self.shared.put_offer(lane, &self.run, name, &payload).await {
                Ok(()) => return Ok(()),
                Err(QueueError::Closed) => return Err(QueueError::Closed),
                // A server that has just started, or was wiped, refuses until its streams are there again.
                Err(error @ QueueError::Refused(_)) if refused >= REFUSALS => return Err(error),
                Err(error) => {
                    refused += u32::from(matches!(error, QueueError::Refused(_)));
                    tracing::warn!(%error, task = %name.task, "cannot send an offer, trying again");
                }
            }
            tokio::time::sleep(jittered(wait)).await;
            wait = (wait * 2).min(Duration::from_secs(2));
            if let Err(error) = self.shared.upkeep().await {
                tracing::debug!(%error, "cannot look at the streams");
            }
        }
    }

    async fn withdraw(&self, lane: &Lane, name: OfferName) -> Result<(), QueueError> {
        self.purge(&self.shared.connection.names.offer(lane, &self.run, name)).await
    }

    async fn withdraw_all(&self) -> Result<(), QueueError> {
        self.purge(&self.shared.connection.names.offers_of_run(&self.run)).await
    }

    async fn held(&self) -> Result<BTreeSet<OfferName>, QueueError> {
        let connection = &self.shared.connection;
        let stream = connection.names.offers_stream();
        let filter = connection.names.offers_of_run(&self.run);
        let mut held = BTreeSet::new();
        loop {
            let ask = json!({ "subjects_filter": filter, "offset": held.len() });
            let info = connection.api(&format!("STREAM.INFO.{stream}"), &ask).await?;
            let page = info["state"]["subjects"].as_object().map_or(Vec::new(), |subjects| subjects.keys().collect());
            let before = held.len();
            held.extend(page.into_iter().filter_map(|subject| Names::offer_name(subject)));
            let all = info["total"].as_u64().unwrap_or(0);
            if held.len() == before || held.len() as u64 >= all {
                return Ok(held);
            }
        }
    }

    async fn next_report(&self) -> Result<Option<Bytes>, QueueError> {
        Ok(self.heard.lock().await.recv().await)
    }
}

fn nanos(time: Duration) -> Value {
    json!(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
