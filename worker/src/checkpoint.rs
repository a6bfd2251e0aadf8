//! A task's checkpoints, kept in the store under its key.

use crate::task::from_store;
use rallrec_core::key::Key;
use rallrec_stages::{Checkpoints, StageError};
use rallrec_store::{Checkpoint, Store};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::runtime::Handle;

/// Reads and writes on the stage's thread. Numbers go on from what was found.
pub(crate) struct TaskCheckpoints {
    store: Store,
    handle: Handle,
    key: Key,
    next: AtomicU64,
    used: AtomicBool,
}

impl TaskCheckpoints {
    pub(crate) fn new(store: Store, handle: Handle, key: Key) -> Self {
        Self { store, handle, key, next: AtomicU64::new(1), used: AtomicBool::new(false) }
    }

    /// Removes them once the task is committed. What cannot be removed does no harm: nothing reads it again.
    pub(crate) fn clear(&self) {
        // Most stages have none, and listing an object store costs a request.
        if !self.used.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.handle.block_on(self.store.clear_checkpoints(&self.key)) {
            tracing::warn!(key = self.key.short(), %error, "cannot remove the checkpoints of a finished task");
        }
    }
}

impl Checkpoints for TaskCheckpoints {
    fn latest(&self) -> Result<Option<Vec<u8>>, StageError> {
        self.used.store(true, Ordering::Relaxed);
        let found = self.handle.block_on(self.store.checkpoint(&self.key)).map_err(from_store)?;
        Ok(found.map(|checkpoint| {
            self.next.store(checkpoint.number + 1, Ordering::Relaxed);
            checkpoint.state
        }))
    }

    fn save(&self, state: Vec<u8>) -> Result<(), StageError> {
        self.used.store(true, Ordering::Relaxed);
        let checkpoint = Checkpoint { number: self.next.fetch_add(1, Ordering::Relaxed), state };
        self.handle.block_on(self.store.put_checkpoint(&self.key, &checkpoint)).map_err(from_store)
    }
}
