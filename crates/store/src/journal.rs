//! Journals: numbered records put by create-if-absent. Whoever continues the numbering owns what it tells of; the next
//! put of anyone else conflicts, and tells it to stop. Who writes in a term cannot continue what a later term has written.
//!
//! A record is a line that names its writer, and its term where there is one, and then its payload.

use crate::{READS_AT_ONCE, Store, StoreError, run_path};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use rallrec_core::ids::RunId;

/// A journal, as seen by one coordinator.
#[derive(Clone, Debug)]
pub struct Records {
    store: Store,
    folder: Path,
    writer: String,
    /// Terms are a cluster's: `None` continues whatever is there.
    term: Option<u64>,
    next: u64,
}

/// What comes before the term in a record's first line.
const TERM: &str = " term ";

impl Records {
    /// The journal of `run`. `writer` tells this coordinator's records from every other's, and must be unique to it.
    pub fn of_run(store: Store, run: &RunId, writer: impl Into<String>) -> Self {
        Self { folder: run_path(run, "journal"), store, writer: writer.into(), term: None, next: 0 }
    }

    /// The journal of the cluster: who leads, and which runs there are.
    pub fn of_cluster(store: Store, writer: impl Into<String>) -> Self {
        Self { folder: Path::from_iter(["cluster", "journal"]), store, writer: writer.into(), term: None, next: 0 }
    }

    /// Writes in this term of the cluster.
    #[must_use]
    pub fn in_term(self, term: u64) -> Self {
        Self { term: Some(term), ..self }
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

    /// Records that were put since the last one that was read, without listing the folder. What was read before an error is
    /// given; the error then shows the next time.
    ///
    /// # Errors
    /// When the store cannot be reached, or a record is not one of ours.
    pub async fn follow(&mut self) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut records = Vec::new();
        loop {
            match self.try_read(self.next).await {
                Ok(Some((_, record))) => records.push(record),
                Err(error) if records.is_empty() => return Err(error),
                Ok(None) | Err(_) => return Ok(records),
            }
            self.next += 1;
        }
    }

    /// Every record's payload, in order. Later records continue after them.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a later term has written; else when the store cannot be reached, or a record is missing
    /// or not one of ours.
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
        let term = self.term.map_or_else(String::new, |term| format!("{TERM}{term}"));
        let record = [self.writer.as_bytes(), term.as_bytes(), b"\n", payload].concat();
        self.store.create(&self.path(self.next), record).await?;
        self.next += 1;
        Ok(())
    }

    async fn read(&self, number: u64) -> Result<Vec<u8>, StoreError> {
        let missing = || damaged(&self.path(number), "the record is missing, but later ones are there");
        let (term, payload) = self.try_read(number).await?.ok_or_else(missing)?;
        match (self.term, term) {
            (Some(mine), Some(theirs)) if theirs > mine => {
                Err(StoreError::Conflict { path: self.path(number).to_string() })
            }
            _ => Ok(payload),
        }
    }

    /// A record's term and payload.
    async fn try_read(&self, number: u64) -> Result<Option<(Option<u64>, Vec<u8>)>, StoreError> {
        let path = self.path(number);
        let Some(bytes) = self.store.get(&path).await? else { return Ok(None) };
        match bytes.iter().position(|&b| b == b'\n') {
            Some(end) => Ok(Some((term(&bytes[..end]), bytes[end + 1..].to_vec()))),
            None => Err(damaged(&path, "a record begins with a line that names its writer")),
        }
    }

    fn path(&self, number: u64) -> Path {
        self.folder.clone().join(format!("{number:012}.json"))
    }
}

/// The term that a record's first line tells.
fn term(line: &[u8]) -> Option<u64> {
    std::str::from_utf8(line).ok()?.rsplit_once(TERM)?.1.parse().ok()
}

fn damaged(path: &Path, reason: &str) -> StoreError {
    StoreError::Journal { path: path.to_string(), reason: reason.to_owned() }
}
