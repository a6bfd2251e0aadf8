//! The object store: where truth lives.
//!
//! Artifacts (tables and their manifest, committed by create-if-absent), the journal of a run, checkpoints of
//! unfinished tasks, and nothing else. Beside it, for sources that lie there: reading other people's buckets.
//! Only `PutMode::Create` on keyed or numbered names decides anything, because that is what every object store and
//! a local disk can do (`docs/adr/0004`). Deliberately absent: scheduling, leases, knowledge of stages.

mod artifact;
mod bucket;
mod checkpoint;
mod error;
mod journal;
mod log;
mod manifest;
mod mark;
mod raw;
mod table;

pub use artifact::{ArtifactWriter, Committed, Producer};
pub use bucket::{Bucket, BucketError, BucketSettings, Object};
pub use checkpoint::Checkpoint;
pub use error::StoreError;
pub use journal::Records;
pub use log::{LogFile, LogFilter, LogLine, LogPlace, LogTail};
pub use manifest::{BadRow, Manifest, Part, TableManifest};
pub use raw::{Listed, Opened};
pub use table::parquet_batches;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, local::LocalFileSystem, memory::InMemory, path::Path,
};
use rallrec_core::{ids::RunId, key::Key, task::ArtifactSummary};
use std::sync::Arc;

/// Objects read at once for one caller: enough to hide an object store's latency.
pub(crate) const READS_AT_ONCE: usize = 16;

/// A store of artifacts and runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
}

impl Store {
    /// A store in a local folder, which is made if it is not there. Every write is synced to the disk.
    ///
    /// # Errors
    /// When the folder cannot be made or written.
    pub async fn local(root: &std::path::Path) -> Result<Self, StoreError> {
        let place = |source: std::io::Error| StoreError::Folder { path: root.display().to_string(), source };
        std::fs::create_dir_all(root).map_err(place)?;
        let root = root.canonicalize().map_err(place)?;
        let objects = LocalFileSystem::new_with_prefix(&root)
            .map_err(|e| StoreError::object("open", &root.display().to_string(), e))?
            .with_automatic_cleanup(true)
            .with_fsync(true);
        Ok(Self { objects: Arc::new(objects) })
    }

    /// A store in memory, gone with the process.
    pub fn memory() -> Self {
        Self { objects: Arc::new(InMemory::new()) }
    }

    /// Any object store, for example S3. Refused when it overwrites on a conditional create, as some do silently.
    ///
    /// # Errors
    /// [`StoreError::Overwrites`], or when the store cannot be reached.
    pub async fn checked(objects: Arc<dyn ObjectStore>, probe: &str) -> Result<Self, StoreError> {
        let store = Self { objects };
        let path = Path::from(format!("probe/{probe}"));
        store.create(&path, b"first".to_vec()).await?;
        let second = store.create(&path, b"second".to_vec()).await;
        let deleted = store.objects.delete(&path).await;
        match second {
            Err(StoreError::Conflict { .. }) => {
                deleted.map_err(|e| StoreError::object("delete", path.as_ref(), e))?;
                Ok(store)
            }
            Err(other) => Err(other),
            Ok(()) => Err(StoreError::Overwrites),
        }
    }

    /// The manifest of an artifact, if it was committed.
    ///
    /// # Errors
    /// When the store cannot be reached, or the manifest is not one of ours.
    pub async fn manifest(&self, key: &Key) -> Result<Option<Manifest>, StoreError> {
        let path = artifact::manifest_path(key);
        let Some(bytes) = self.get(&path).await? else { return Ok(None) };
        let manifest = Manifest::decode(&bytes).map_err(|reason| StoreError::corrupt(path.as_ref(), reason))?;
        if manifest.key != *key {
            return Err(StoreError::corrupt(path.as_ref(), format!("it is the manifest of {}", manifest.key)));
        }
        Ok(Some(manifest))
    }

    /// What artifacts hold, in the order of their keys; `None` for one that was not committed.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub async fn summaries(&self, keys: Vec<Key>) -> Result<Vec<Option<ArtifactSummary>>, StoreError> {
        let one = |key: Key| async move { Ok(self.manifest(&key).await?.map(|manifest| manifest.summary())) };
        stream::iter(keys).map(one).buffered(READS_AT_ONCE).try_collect().await
    }

    /// Every run in the store, oldest first.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn runs(&self) -> Result<Vec<RunId>, StoreError> {
        let prefix = Path::from("runs");
        let listing = self.objects.list_with_delimiter(Some(&prefix)).await;
        let listing = listing.map_err(|e| StoreError::object("list", prefix.as_ref(), e))?;
        let mut runs: Vec<_> =
            listing.common_prefixes.iter().filter_map(|p| p.filename()).map(|name| RunId(name.to_owned())).collect();
        runs.sort();
        Ok(runs)
    }

    /// A named record of a run, for example `plan.json`.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn run_file(&self, run: &RunId, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(&run_path(run, name)).await
    }

    /// Writes a named record of a run, which must not be there yet.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it is there, or when the store cannot be reached.
    pub async fn create_run_file(&self, run: &RunId, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.create(&run_path(run, name), bytes).await
    }

    async fn get(&self, path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        let failed = |e| StoreError::object("read", path.as_ref(), e);
        match self.objects.get(path).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(failed)?.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    async fn create(&self, path: &Path, bytes: Vec<u8>) -> Result<(), StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.objects.put_opts(path, PutPayload::from(bytes), options).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Err(StoreError::Conflict { path: path.to_string() })
            }
            Err(e) => Err(StoreError::object("create", path.as_ref(), e)),
        }
    }
}

fn run_path(run: &RunId, name: &str) -> Path {
    Path::from_iter(["runs", run.0.as_str(), name])
}

#[cfg(test)]
mod tests;
