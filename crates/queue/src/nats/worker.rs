//! A worker's end: asks its lanes for offers, one a free slot, and sends reports.
//!
//! A slot that waits asks every lane that it serves at once, and takes the first answer. The other questions stay open
//! on the server for a while; an answer to one of them goes to another slot that waits on that lane, or straight back to
//! the server, which gives it to the next worker. So an offer is never held for a slot that is busy.

use super::{ACK_WAIT, Connection, NatsSettings, Words, jittered, names::Names};
use crate::{Delivery, Hold, QueueError, WorkerEnd};
use async_nats::{Client, Message, StatusCode, Subject};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use rallrec_core::{ids::RunId, lane::Lane};
use serde_json::json;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

/// How long the server keeps a question open.
const OPEN: Duration = Duration::from_secs(5);

/// After this a question that was not answered is taken to be lost with the server that heard it.
const FORGOTTEN: Duration = Duration::from_secs(6);

/// How often lost questions are asked again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A worker's connection. Clones are the same connection; with the last one goes its background task.
#[derive(Clone)]
pub struct NatsWorker {
    shared: Arc<Shared>,
    _background: Arc<Background>,
}

struct Background(Vec<JoinHandle<()>>);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

struct Shared {
    connection: Connection,
    /// Every question's answer comes to a subject under this one, which names the lane.
    inbox: String,
    lanes: Mutex<BTreeMap<Lane, LaneQuestions>>,
    slots: AtomicU64,
}

/// What is asked of one lane.
struct LaneQuestions {
    /// Tells the lane in answers' subjects.
    number: usize,
    /// Slots that wait, longest first.
    waiting: VecDeque<(u64, oneshot::Sender<Message>)>,
    /// Questions on the server, by when they were asked.
    open: VecDeque<Instant>,
    /// Not asked before this time, because the lane answered with an error.
    pause_until: Option<Instant>,
}

impl NatsWorker {
    /// Connects.
    ///
    /// # Errors
    /// When the server cannot be reached or lacks what is needed.
    pub async fn connect(settings: &NatsSettings) -> Result<Self, QueueError> {
        let connection = Connection::open(settings).await?;
        let inbox = connection.client.new_inbox();
        let heard = connection.client.subscribe(format!("{inbox}.*")).await.map_err(|_| QueueError::Closed)?;
        let shared = Arc::new(Shared { connection, inbox, lanes: Mutex::default(), slots: AtomicU64::new(0) });
        let answers = {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { heard.for_each(|message| shared.answer(message)).await })
        };
        let again = {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(LOOK_EVERY).await;
                    shared.ask_where_needed().await;
                }
            })
        };
        Ok(Self { shared, _background: Arc::new(Background(vec![answers, again])) })
    }

    /// Words over the same connection.
    pub fn words(&self) -> Words {
        Words { connection: self.shared.connection.clone() }
    }
}

impl Shared {
    /// Asks each lane as often as slots wait for it.
    async fn ask_where_needed(&self) {
        let now = Instant::now();
        let mut ask = Vec::new();
        for (lane, questions) in lock(&self.lanes).iter_mut() {
            questions.open.retain(|asked| now - *asked < FORGOTTEN);
            questions.waiting.retain(|(_, slot)| !slot.is_closed());
            if questions.pause_until.is_some_and(|until| now < until) {
                continue;
            }
            for _ in questions.open.len()..questions.waiting.len() {
                questions.open.push_back(now);
                ask.push((Names::consumer(lane), questions.number));
            }
        }
        let stream = self.connection.names.offers_stream();
        let body = Bytes::from(json!({ "batch": 1, "expires": OPEN.as_nanos() as u64 }).to_string());
        for (consumer, number) in ask {
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
            let reply = format!("{}.{number}", self.inbox);
            // A closed connection shows to the slots at their next report.
            let _ = self.connection.client.publish_with_reply(subject, reply, body.clone()).await;
        }
    }

    /// One answer of the server.
    async fn answer(&self, message: Message) {
        // A message's own subject is the offer's; the inbox it came to names the lane only for the server's own words.
        let Some(message) = (match message.status {
            Some(status) => {
                self.refused(&message.subject, status);
                self.ask_where_needed().await;
                None
            }
            None => self.to_a_slot(message),
        }) else {
            return;
        };
        // Nobody waits any more: to the next worker.
        if let Some(reply) = message.reply {
            let _ = self.connection.client.publish(reply, "-NAK".into()).await;
        }
    }

    /// The server has no offer, or no such lane.
    fn refused(&self, subject: &Subject, status: StatusCode) {
        let number = subject.rsplit('.').next().and_then(|n| n.parse::<usize>().ok());
        let mut lanes = lock(&self.lanes);
        let Some(questions) = lanes.values_mut().find(|q| Some(q.number) == number) else { return };
        questions.open.pop_front();
        // 404 and 408 say that nothing came in time. Anything else will be said again at once: the lane was never
        // offered anything, or its stream is gone.
        if !matches!(status.as_u16(), 404 | 408) {
            questions.pause_until = Some(Instant::now() + jittered(Duration::from_millis(600)));
        }
    }

    /// Gives an offer to the slot that has waited longest for its lane; gives it back when there is none.
    fn to_a_slot(&self, message: Message) -> Option<Message> {
        let mut lanes = lock(&self.lanes);
        let prefix_of = |lane: &Lane| self.connection.names.offers_of_lane(lane);
        let of_lane = lanes.iter_mut().find(|(lane, _)| {
            let pattern = prefix_of(lane);
            message.subject.starts_with(pattern.trim_end_matches('>'))
        });
        let Some((_, questions)) = of_lane else { return Some(message) };
        questions.open.pop_front();
        let mut message = message;
        while let Some((_, slot)) = questions.waiting.pop_front() {
            match slot.send(message) {
                Ok(()) => return None,
                Err(unwanted) => message = unwanted,
            }
        }
        Some(message)
    }

    /// A slot waits on these lanes.
    fn wait_on(&self, lanes: &[Lane]) -> (u64, Vec<oneshot::Receiver<Message>>) {
        let slot = self.slots.fetch_add(1, Ordering::Relaxed);
        let mut known = lock(&self.lanes);
        let heard = lanes.iter().map(|lane| {
            let (sender, heard) = oneshot::channel();
            let number = known.len();
            let questions = known.entry(lane.clone()).or_insert_with(|| LaneQuestions {
                number,
                waiting: VecDeque::new(),
                open: VecDeque::new(),
                pause_until: None,
            });
            questions.waiting.push_back((slot, sender));
            heard
        });
        let heard = heard.collect();
        (slot, heard)
    }

    fn delivery(&self, message: Message) -> Option<Delivery> {
        let reply = message.reply?;
        let client = self.connection.client.clone();
        let alive = tokio::spawn(keep_alive(client.clone(), reply.clone()));
        Some(Delivery::new(message.payload, Box::new(Held { client, reply, alive })))
    }
}

/// A slot that waits. However it ends, what came too late for it goes back.
struct Waiting {
    shared: Arc<Shared>,
    slot: u64,
    heard: Vec<oneshot::Receiver<Message>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        for questions in lock(&self.shared.lanes).values_mut() {
            questions.waiting.retain(|(slot, _)| *slot != self.slot);
        }
        let late: Vec<Subject> = self.heard.iter_mut().filter_map(|heard| heard.try_recv().ok()?.reply).collect();
        if !late.is_empty() {
            let client = self.shared.connection.client.clone();
            tokio::spawn(async move {
                for reply in late {
                    let _ = client.publish(reply, "-NAK".into()).await;
                }
            });
        }
    }
}

#[async_trait]
impl WorkerEnd for NatsWorker {
    async fn claim(&self, lanes: &[Lane]) -> Result<Option<Delivery>, QueueError> {
        let (slot, heard) = self.shared.wait_on(lanes);
        let mut waiting = Waiting { shared: Arc::clone(&self.shared), slot, heard };
        self.shared.ask_where_needed().await;
        loop {
            if waiting.heard.is_empty() {
                // Nothing to ask for until the leader says so.
                return std::future::pending().await;
            }
            let (first, position, _) = futures::future::select_all(waiting.heard.iter_mut()).await;
            waiting.heard.swap_remove(position);
            if let Some(delivery) = first.ok().and_then(|message| self.shared.delivery(message)) {
                return Ok(Some(delivery));
            }
        }
    }

    async fn report(&self, run: &RunId, payload: Bytes) -> Result<(), QueueError> {
        let connection = &self.shared.connection;
        let subject = connection.names.report(run);
        // One id for all tries: a report is not doubled because its answer was lost.
        let id = connection.client.new_inbox();
        let mut wait = Duration::from_millis(50);
        loop {
            match connection.put(subject.clone(), &id, payload.clone()).await {
                Err(QueueError::Unreachable(why)) => tracing::warn!(why, "cannot send a report, trying again"),
                other => return other,
            }
            tokio::time::sleep(jittered(wait)).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        }
    }
}

/// Tells the server that an offer is being worked on.
async fn keep_alive(client: Client, reply: Subject) {
    loop {
        tokio::time::sleep(ACK_WAIT / 3).await;
        let _ = client.publish(reply.clone(), "+WPI".into()).await;
    }
}

/// A claimed offer.
struct Held {
    client: Client,
    reply: Subject,
    alive: JoinHandle<()>,
}

impl Held {
    fn say(self, word: &'static str) {
        self.alive.abort();
        tokio::spawn(async move {
            let _ = self.client.publish(self.reply, word.into()).await;
        });
    }
}

impl Hold for Held {
    fn ack(self: Box<Self>) {
        self.say("+ACK");
    }

    fn give_back(self: Box<Self>, _payload: Bytes) {
        self.say("-NAK");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
