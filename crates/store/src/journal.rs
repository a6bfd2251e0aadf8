//! Journals: numbered records put by create-if-absent. Whoever continues the numbering owns what it tells of; the next
//! put of anyone else conflicts, and tells it to stop.

use crate::{Store, StoreError, run_path};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use rallrec_core::ids::RunId;

/// Records read at once during a replay: enough to hide an object store's latency.
const READS_AT_ONCE: usize = 16;

/// A journal, as seen by one coordinator.
#[derive(Debug)]
pub struct Records {
    store: Store,
    folder: Path,
    writer: String,
    next: u64,
}

impl Records {
    /// The journal of `run`. `writer` tells this coordinator's records from every other's, and must be unique to it.
    pub fn of_run(store: Store, run: &RunId, writer: impl Into<String>) -> Self {
        Self { folder: run_path(run, "journal"), store, writer: writer.into(), next: 0 }
    }

    /// The journal of the cluster: who leads, and which runs there are.
    pub fn of_cluster(store: Store, writer: impl Into<String>) -> Self {
        Self { folder: Path::from_iter(["cluster", "journal"]), store, writer: writer.into(), next: 0 }
    }

    /// Number of the record that is read or put next.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Whether nothing was ever put.
    ///
    /// # Errors
    /// When the store cannot be reached, or the first record is not one of ours.
    pub async fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.try_read(0).await?.is_none())
    }

    /// Records that were put since the last one that was read, without listing the folder.
    ///
    /// # Errors
    /// When the store cannot be reached, or a record is not one of ours.
    pub async fn follow(&mut self) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut records = Vec::new();
        while let Some(record) = self.try_read(self.next).await? {
            records.push(record);
            self.next += 1;
        }
        Ok(records)
    }

    /// Every record's payload, in order. Later records continue after them.
    ///
    /// # Errors
    /// When the store cannot be reached, or a record is missing or not one of ours.
    pub async fn replay(&mut self) -> Result<Vec<Vec<u8>>, StoreError> {
        let listed: Vec<_> = self
            .store
            .objects
            .list(Some(&self.folder))
            .try_collect()
            .await
            .map_err(|e| StoreError::object("list", self.folder.as_ref(), e))?;
        let count = listed.len() as u64;
        let records: Vec<Vec<u8>> =
            stream::iter(0..count).map(|n| self.read(n)).buffered(READS_AT_ONCE).try_collect().await?;
        self.next = count;
        Ok(records)
    }

    /// Puts the next record.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when someone else has continued the journal; else when the store cannot be reached.
    pub async fn append(&mut self, payload: &[u8]) -> Result<(), StoreError> {
        let path = self.path(self.next);
        let record = [self.writer.as_bytes(), b"\n", payload].concat();
        if let Err(failed) = self.store.create(&path, record.clone()).await {
            // An unclear failure, or a conflict with our own retried put: what stands there decides.
            match self.store.get(&path).await {
                Ok(Some(standing)) if standing == record => {}
                Ok(Some(_)) => return Err(StoreError::Conflict { path: path.to_string() }),
                Ok(None) | Err(_) => return Err(failed),
            }
        }
        self.next += 1;
        Ok(())
    }

    async fn read(&self, number: u64) -> Result<Vec<u8>, StoreError> {
        let missing = || damaged(&self.path(number), "the record is missing, but later ones are there");
        self.try_read(number).await?.ok_or_else(missing)
    }

    async fn try_read(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(number);
        let Some(bytes) = self.store.get(&path).await? else { return Ok(None) };
        match bytes.iter().position(|&b| b == b'\n') {
            Some(end) => Ok(Some(bytes[end + 1..].to_vec())),
            None => Err(damaged(&path, "a record begins with a line that names its writer")),
        }
    }

    fn path(&self, number: u64) -> Path {
        self.folder.clone().join(format!("{number:012}.json"))
    }
}

fn damaged(path: &Path, reason: &str) -> StoreError {
    StoreError::Journal { path: path.to_string(), reason: reason.to_owned() }
}
