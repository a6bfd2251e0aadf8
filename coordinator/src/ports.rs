//! What the driver needs of storage: two small traits, for the object store and for simulations.

use rallrec_core::{key::Key, task::ArtifactSummary};
use rallrec_store::{Records, Store, StoreError};

/// Knows which artifacts are there.
pub trait Artifacts: Clone + Send + Sync + 'static {
    /// What the artifacts of these keys hold, in their order; `None` for one that was not committed.
    ///
    /// # Errors
    /// When the store cannot be reached, or what is there is damaged.
    fn probe(&self, keys: Vec<Key>) -> impl Future<Output = Result<Vec<Option<ArtifactSummary>>, StoreError>> + Send;
}

/// Keeps the records of one run.
pub trait Journal: Send {
    /// The latest snapshot, and the number of the first record after it.
    ///
    /// # Errors
    /// As those of [`Self::replay`].
    fn snapshot(&mut self) -> impl Future<Output = Result<Option<(u64, Vec<u8>)>, StoreError>> + Send;

    /// The records from number `first` on, in order; later ones continue after them.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when someone rules by now whom this one must not follow; else when the store cannot be
    /// reached or a record is damaged.
    fn replay(&mut self, first: u64) -> impl Future<Output = Result<Vec<Vec<u8>>, StoreError>> + Send;

    /// Adds a record. After an error the same record may be added again.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when someone else has continued the journal; else when the store cannot be reached.
    fn append(&mut self, record: &[u8]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Keeps a snapshot of what the records so far come to; others may be added meanwhile. Nothing rests on it.
    fn keep(&self, snapshot: Vec<u8>) -> impl Future<Output = Result<(), StoreError>> + Send + 'static;
}

impl Artifacts for Store {
    async fn probe(&self, keys: Vec<Key>) -> Result<Vec<Option<ArtifactSummary>>, StoreError> {
        self.summaries(keys).await
    }
}

impl Journal for Records {
    async fn snapshot(&mut self) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        Records::snapshot(self).await
    }

    async fn replay(&mut self, first: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        self.replay_from(first).await
    }

    async fn append(&mut self, record: &[u8]) -> Result<(), StoreError> {
        Records::append(self, record).await
    }

    fn keep(&self, snapshot: Vec<u8>) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
        self.keep_snapshot(&snapshot)
    }
}
