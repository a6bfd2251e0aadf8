//! The queue between coordinator and workers: offers one way, in lanes, reports the other.
//!
//! Payloads are bytes, so that a network queue ([`nats`]) and the one of an embedded run ([`MemoryQueue`]) fit behind the
//! same two traits, one for each end. The queue is a courier: it may deliver an offer twice, and losing everything in it
//! costs time but never results, because what is owed is worked out from the journal. So it deliberately knows nothing of
//! what it carries but an offer's name, decides nothing, and promises no order between lanes.

mod leader;
mod memory;
pub mod nats;

pub use leader::{LeaderEnd, LeaderWords};
pub use memory::MemoryQueue;

use async_trait::async_trait;
use bytes::Bytes;
use rallrec_core::{
    ids::{Attempt, RunId, TaskId},
    lane::Lane,
};
use std::{collections::BTreeSet, time::Duration};

/// Time until an offer that was put off goes back.
const PUT_OFF: Duration = Duration::from_secs(1);

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The queue was closed. Stop using it.
    #[error("the queue is closed")]
    Closed,
    /// The service cannot be reached. Try again later.
    #[error("the queue cannot be reached: {0}")]
    Unreachable(String),
    /// The service answers, and will not do. Trying again does not help.
    #[error("{0}")]
    Refused(String),
}

/// Names an offer within its run: the same name is the same offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OfferName {
    /// The task.
    pub task: TaskId,
    /// The attempt at it.
    pub attempt: Attempt,
}

/// The coordinator's end, for one run. Every future may be dropped before it ends without losing a message.
#[async_trait]
pub trait CoordinatorEnd: Send + Sync {
    /// Puts an offer at the end of a lane. Waits while the lane is full. One that is there already is not put twice.
    ///
    /// # Errors
    /// When the queue is closed or out of reach.
    async fn offer(&self, lane: &Lane, name: OfferName, payload: Bytes) -> Result<(), QueueError>;

    /// Takes an offer back that nobody should work on any more, claimed or not.
    ///
    /// # Errors
    /// When the queue is out of reach.
    async fn withdraw(&self, lane: &Lane, name: OfferName) -> Result<(), QueueError>;

    /// Takes every offer of the run that nobody has claimed out of all lanes.
    ///
    /// # Errors
    /// When the queue is out of reach.
    async fn withdraw_all(&self) -> Result<(), QueueError>;

    /// The run's offers that are in the queue, those that are claimed and not acknowledged included.
    ///
    /// # Errors
    /// When the queue is out of reach.
    async fn held(&self) -> Result<BTreeSet<OfferName>, QueueError>;

    /// Takes the run's next report, waiting for one; `None` once the queue is closed and no report is left.
    ///
    /// # Errors
    /// When the queue is out of reach.
    async fn next_report(&self) -> Result<Option<Bytes>, QueueError>;
}

/// A worker's end. Every future may be dropped before it ends without losing a message.
#[async_trait]
pub trait WorkerEnd: Send + Sync {
    /// Takes the first offer of these lanes, of the first lane that has one, waiting for one; `None` once the queue is
    /// closed.
    ///
    /// # Errors
    /// When the queue will not do. While it is out of reach this waits.
    async fn claim(&self, lanes: &[Lane]) -> Result<Option<Delivery>, QueueError>;

    /// Sends a report about a run. Waits while too many are unread, or the queue is out of reach.
    ///
    /// # Errors
    /// When the queue is closed.
    async fn report(&self, run: &RunId, payload: Bytes) -> Result<(), QueueError>;
}

/// A claimed offer. Dropped without [`Delivery::ack`], it goes back to the front of its lane.
pub struct Delivery {
    payload: Bytes,
    hold: Option<Box<dyn Hold>>,
}

/// What a queue keeps of a claimed offer until it is acknowledged.
pub trait Hold: Send + Sync {
    /// The offer is dealt with.
    fn ack(self: Box<Self>);
    /// The claimer is gone.
    fn give_back(self: Box<Self>, payload: Bytes);
}

impl Delivery {
    /// For implementations of [`WorkerEnd`].
    pub fn new(payload: Bytes, hold: Box<dyn Hold>) -> Self {
        Self { payload, hold: Some(hold) }
    }

    /// What was offered.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Another worker should have it: goes back in a second, so that whoever gave it up does not get it back at once and
    /// again and again. Needs a tokio runtime.
    pub fn put_off(self) {
        tokio::spawn(async move {
            tokio::time::sleep(PUT_OFF).await;
            drop(self);
        });
    }

    /// The offer is dealt with: its result is committed, or was reported as failed. Not before, or a dying worker
    /// takes the offer with it.
    pub fn ack(mut self) {
        if let Some(hold) = self.hold.take() {
            hold.ack();
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            hold.give_back(std::mem::take(&mut self.payload));
        }
    }
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("bytes", &self.payload.len()).finish_non_exhaustive()
    }
}
