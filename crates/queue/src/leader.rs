//! The network as coordinators need it: words that may be lost, and the queue with one end a run.
//!
//! Two small traits between the coordinator and what carries its messages: [`crate::nats`] in earnest, a simulated network
//! in the coordinator's tests. Deliberately not here: connecting, which is each network's own matter.

use crate::{CoordinatorEnd, QueueError};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use rallrec_core::ids::{RunId, WorkerId};
use std::sync::Arc;
use tokio::sync::watch;

/// What coordinators say and hear. Any word may be lost, because the next one says it again.
#[async_trait]
pub trait LeaderWords: Send + Sync {
    /// Whether the network is reachable now.
    fn is_connected(&self) -> bool;

    /// Every worker's beats, from now on.
    ///
    /// # Errors
    /// When the connection is closed.
    async fn beats(&self) -> Result<BoxStream<'static, Bytes>, QueueError>;

    /// Every leader's signs of life, from now on.
    ///
    /// # Errors
    /// When the connection is closed.
    async fn leaders(&self) -> Result<BoxStream<'static, Bytes>, QueueError>;

    /// The leader's sign of life.
    ///
    /// # Errors
    /// When the connection is closed.
    async fn lead(&self, payload: Bytes) -> Result<(), QueueError>;

    /// The leader tells a worker what to do.
    ///
    /// # Errors
    /// When the connection is closed.
    async fn order(&self, worker: &WorkerId, payload: Bytes) -> Result<(), QueueError>;
}

/// A coordinator's connection: the words, and the queue of all runs.
#[async_trait]
pub trait LeaderEnd: LeaderWords {
    /// The end of one run, which hears the reports about it from now on.
    fn run(&self, run: RunId) -> Arc<dyn CoordinatorEnd>;

    /// Reads reports and hands them to their runs, until it is dropped. A report about a run that nobody drives is
    /// dropped, so begin once every run that goes on has its end.
    async fn hand_out_reports(&self);

    /// Counts the times that offers were found gone: what was there must be sent again.
    fn wiped(&self) -> watch::Receiver<u64>;
}
