//! Journals: numbered records put by create-if-absent. Whoever continues the numbering owns what it tells of; the next
//! put of anyone else conflicts, and tells it to stop. Who writes in a term cannot continue what a later term has written.
//!
//! A record is a line that names its writer, and its term where there is one, and then its payload. A snapshot looks the same,
//! lies beside the journal under the number of the record that comes after it, and stands for all records before that.
//! Those stay: what a snapshot says can always be had without it.

use crate::{READS_AT_ONCE, Store, StoreError, run_path};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use rallrec_core::ids::RunId;

/// A journal, as seen by one coordinator.
#[derive(Clone, Debug)]
pub struct Records {
    store: Store,
    folder: Path,
    snapshots: Path,
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
        let (folder, snapshots) = (run_path(run, "journal"), run_path(run, "snapshots"));
        Self { folder, snapshots, store, writer: writer.into(), term: None, next: 0 }
    }

    /// The journal of the cluster: who leads, and which runs there are.
    pub fn of_cluster(store: Store, writer: impl Into<String>) -> Self {
        let folder = |name| Path::from_iter(["cluster", name]);
        let (folder, snapshots) = (folder("journal"), folder("snapshots"));
        Self { folder, snapshots, store, writer: writer.into(), term: None, next: 0 }
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
        self.replay_from(0).await
    }

    /// The payloads from record `first` on, in order, as [`Self::replay`] gives them.
    ///
    /// # Errors
    /// As those of [`Self::replay`].
    pub async fn replay_from(&mut self, first: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let listed = match first.checked_sub(1) {
            Some(last) => self.store.objects.list_with_offset(Some(&self.folder), &numbered(&self.folder, last)),
            None => self.store.objects.list(Some(&self.folder)),
        };
        let listed: Vec<_> =
            listed.try_collect().await.map_err(|e| StoreError::object("list", self.folder.as_ref(), e))?;
        let end = first + listed.len() as u64;
        let records: Vec<Vec<u8>> =
            stream::iter(first..end).map(|n| self.read(n)).buffered(READS_AT_ONCE).try_collect().await?;
        self.next = end;
        Ok(records)
    }

    /// The latest snapshot, and the number of the first record that comes after it.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a later term made it; else when the store cannot be reached, or it is not one of ours.
    pub async fn snapshot(&self) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        let listed: Vec<_> = self
            .store
            .objects
            .list(Some(&self.snapshots))
            .try_collect()
            .await
            .map_err(|e| StoreError::object("list", self.snapshots.as_ref(), e))?;
        let number = |path: &Path| path.filename()?.strip_suffix(".json")?.parse::<u64>().ok();
        let Some(number) = listed.iter().filter_map(|object| number(&object.location)).max() else { return Ok(None) };
        let path = numbered(&self.snapshots, number);
        // One that was listed and is gone is as good as none.
        let Some((term, payload)) = self.try_get(&path).await? else { return Ok(None) };
        self.check_term(&path, term)?;
        Ok(Some((number, payload)))
    }

    /// Keeps what all records so far come to. Later records may be put meanwhile.
    pub fn keep_snapshot(
        &self,
        payload: &[u8],
    ) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        let (store, path, bytes) = (self.store.clone(), numbered(&self.snapshots, self.next), self.headed(payload));
        async move {
            match store.create(&path, bytes).await {
                // Somebody else kept the same.
                Err(StoreError::Conflict { .. }) => Ok(()),
                other => other,
            }
        }
    }

    /// Puts the next record.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when someone else has continued the journal; else when the store cannot be reached.
    pub async fn append(&mut self, payload: &[u8]) -> Result<(), StoreError> {
        self.store.create(&self.path(self.next), self.headed(payload)).await?;
        self.next += 1;
        Ok(())
    }

    async fn read(&self, number: u64) -> Result<Vec<u8>, StoreError> {
        let missing = || damaged(&self.path(number), "the record is missing, but later ones are there");
        let (term, payload) = self.try_read(number).await?.ok_or_else(missing)?;
        self.check_term(&self.path(number), term)?;
        Ok(payload)
    }

    /// Refuses what a later term has written.
    fn check_term(&self, path: &Path, term: Option<u64>) -> Result<(), StoreError> {
        match (self.term, term) {
            (Some(mine), Some(theirs)) if theirs > mine => Err(StoreError::Conflict { path: path.to_string() }),
            _ => Ok(()),
        }
    }

    /// A payload behind the line that names its writer.
    fn headed(&self, payload: &[u8]) -> Vec<u8> {
        let term = self.term.map_or_else(String::new, |term| format!("{TERM}{term}"));
        [self.writer.as_bytes(), term.as_bytes(), b"\n", payload].concat()
    }

    /// A record's term and payload.
    async fn try_read(&self, number: u64) -> Result<Option<(Option<u64>, Vec<u8>)>, StoreError> {
        self.try_get(&self.path(number)).await
    }

    async fn try_get(&self, path: &Path) -> Result<Option<(Option<u64>, Vec<u8>)>, StoreError> {
        let Some(bytes) = self.store.get(path).await? else { return Ok(None) };
        match bytes.iter().position(|&b| b == b'\n') {
            Some(end) => Ok(Some((term(&bytes[..end]), bytes[end + 1..].to_vec()))),
            None => Err(damaged(path, "a record begins with a line that names its writer")),
        }
    }

    fn path(&self, number: u64) -> Path {
        numbered(&self.folder, number)
    }
}

fn numbered(folder: &Path, number: u64) -> Path {
    folder.clone().join(format!("{number:012}.json"))
}

/// The term that a record's first line tells.
fn term(line: &[u8]) -> Option<u64> {
    std::str::from_utf8(line).ok()?.rsplit_once(TERM)?.1.parse().ok()
}

fn damaged(path: &Path, reason: &str) -> StoreError {
    StoreError::Journal { path: path.to_string(), reason: reason.to_owned() }
}
