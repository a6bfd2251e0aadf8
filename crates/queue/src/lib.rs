//! The queue between coordinator and workers: offers one way, in lanes, reports the other.
//!
//! Payloads are bytes, so that a network queue fits behind the same trait and the embedded run already carries what
//! a cluster's would. The queue is a courier: it may deliver an offer twice, and losing everything in it costs time
//! but never results, because what is owed is worked out from the journal. So it deliberately knows no tasks,
//! attempts or runs, keeps nothing on disk, and promises no order between lanes.

mod memory;

pub use memory::MemoryQueue;

use async_trait::async_trait;
use bytes::Bytes;

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The queue was closed. Stop using it.
    #[error("the queue is closed")]
    Closed,
    /// The service cannot be reached. Try again later.
    #[error("the queue cannot be reached: {0}")]
    Unreachable(String),
}

/// A queue of offers and reports. Every future may be dropped before it ends without losing a message.
#[async_trait]
pub trait TaskQueue: Send + Sync {
    /// Puts an offer at the end of a lane. Waits while the lane is full.
    ///
    /// # Errors
    /// When the queue is closed or out of reach.
    async fn offer(&self, lane: &str, payload: Bytes) -> Result<(), QueueError>;

    /// Takes the first offer of a lane, waiting for one; `None` once the queue is closed.
    ///
    /// # Errors
    /// When the queue is out of reach.
    async fn claim(&self, lane: &str) -> Result<Option<Delivery>, QueueError>;

    /// Takes every offer that nobody has claimed out of all lanes.
    ///
    /// # Errors
    /// When the queue is out of reach.
    async fn withdraw_offers(&self) -> Result<(), QueueError>;

    /// Sends a report. Waits while too many are unread.
    ///
    /// # Errors
    /// When the queue is closed or out of reach.
    async fn report(&self, payload: Bytes) -> Result<(), QueueError>;

    /// Takes the next report, waiting for one; `None` once the queue is closed and no report is left.
    ///
    /// # Errors
    /// When the queue is out of reach.
    async fn next_report(&self) -> Result<Option<Bytes>, QueueError>;

    /// Ends the queue for everyone: unclaimed offers are gone, waiting claims get `None`.
    async fn close(&self);
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
    /// For implementations of [`TaskQueue`].
    pub fn new(payload: Bytes, hold: Box<dyn Hold>) -> Self {
        Self { payload, hold: Some(hold) }
    }

    /// What was offered.
    pub fn payload(&self) -> &Bytes {
        &self.payload
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
