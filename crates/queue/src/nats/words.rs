//! Words that may be lost, because the next one says it again: beats, orders, the leader's sign of life, log lines.

use super::{Connection, NatsSettings, names::Names};
use crate::{OfferName, QueueError};
use async_nats::Subscriber;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use rallrec_core::ids::{RunId, WorkerId};

/// Says and hears words. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Words {
    pub(super) connection: Connection,
}

impl Words {
    /// A connection for words alone, as a standby needs.
    ///
    /// # Errors
    /// When the server cannot be reached or lacks what is needed.
    pub async fn connect(settings: &NatsSettings) -> Result<Self, QueueError> {
        Ok(Self { connection: Connection::open(settings).await? })
    }

    /// Whether the server is reachable now.
    pub fn is_connected(&self) -> bool {
        self.connection.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Waits until everything that was said is with the server.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn flush(&self) -> Result<(), QueueError> {
        self.connection.client.flush().await.map_err(|_| QueueError::Closed)
    }

    /// A worker says how it is.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn beat(&self, worker: &WorkerId, payload: Bytes) -> Result<(), QueueError> {
        self.say(self.connection.names.beat(Some(worker)), payload).await
    }

    /// Every worker's beats.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn beats(&self) -> Result<impl Stream<Item = Bytes> + Send + use<>, QueueError> {
        self.hear(self.connection.names.beat(None)).await
    }

    /// The leader tells a worker what to do.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn order(&self, worker: &WorkerId, payload: Bytes) -> Result<(), QueueError> {
        self.say(self.connection.names.order(worker), payload).await
    }

    /// What the leader tells this worker.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn orders(&self, worker: &WorkerId) -> Result<impl Stream<Item = Bytes> + Send + use<>, QueueError> {
        self.hear(self.connection.names.order(worker)).await
    }

    /// The leader's sign of life.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn lead(&self, payload: Bytes) -> Result<(), QueueError> {
        self.say(self.connection.names.leader(), payload).await
    }

    /// Every leader's signs of life.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn leaders(&self) -> Result<impl Stream<Item = Bytes> + Send + use<>, QueueError> {
        self.hear(self.connection.names.leader()).await
    }

    /// Lines of an attempt's log.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn log(&self, run: &RunId, name: OfferName, lines: Bytes) -> Result<(), QueueError> {
        self.say(self.connection.names.log(run, Some(name)), lines).await
    }

    /// What the attempts of a run log from now on.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn logs(&self, run: &RunId) -> Result<impl Stream<Item = (OfferName, Bytes)> + Send + use<>, QueueError> {
        let heard = self.subscribe(self.connection.names.log(run, None)).await?;
        Ok(heard.filter_map(async |message| Some((Names::offer_name(&message.subject)?, message.payload))))
    }

    async fn say(&self, subject: String, payload: Bytes) -> Result<(), QueueError> {
        self.connection.client.publish(subject, payload).await.map_err(|_| QueueError::Closed)
    }

    async fn hear(&self, subject: String) -> Result<impl Stream<Item = Bytes> + Send + use<>, QueueError> {
        Ok(self.subscribe(subject).await?.map(|message| message.payload))
    }

    async fn subscribe(&self, subject: String) -> Result<Subscriber, QueueError> {
        let heard = self.connection.client.subscribe(subject).await.map_err(|_| QueueError::Closed)?;
        // The server takes what comes on one connection in order: once it has answered, it knows who listens, and what
        // others say from now on is heard.
        self.connection.round_trip().await?;
        Ok(heard)
    }
}
