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
    /// Every record, in order; later ones continue after them.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when someone rules by now whom this one must not follow; else when the store cannot be
    /// reached or a record is damaged.
    fn replay(&mut self) -> impl Future<Output = Result<Vec<Vec<u8>>, StoreError>> + Send;

    /// Adds a record. After an error the same record may be added again.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when someone else has continued the journal; else when the store cannot be reached.
    fn append(&mut self, record: &[u8]) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl Artifacts for Store {
    async fn probe(&self, keys: Vec<Key>) -> Result<Vec<Option<ArtifactSummary>>, StoreError> {
        self.summaries(keys).await
    }
}

impl Journal for Records {
    async fn replay(&mut self) -> Result<Vec<Vec<u8>>, StoreError> {
        Records::replay(self).await
    }

    async fn append(&mut self, record: &[u8]) -> Result<(), StoreError> {
        Records::append(self, record).await
    }
}
