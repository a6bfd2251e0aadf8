//! The object store: where truth lives.
//!
//! Artifacts (tables and their manifest, committed by create-if-absent), the journal of a run, checkpoints of
//! unfinished tasks, and nothing else; in a folder or in S3. Beside it, for sources that lie there: reading other
//! people's buckets. Only `PutMode::Create` on keyed or numbered names decides anything, because that is what every
//! object store and a local disk can do (`docs/adr/0004`); a store that cannot is refused at start. Deliberately absent:
//! scheduling, leases, knowledge of stages.

mod artifact;
mod bucket;
mod cache;
mod checkpoint;
mod cut;
mod error;
#[cfg(test)]
mod faulty;
mod journal;
mod location;
mod log;
mod manifest;
mod mark;
mod open;
mod part;
mod put;
mod raw;
mod settings;
mod table;
mod words;

pub use artifact::{ArtifactWriter, Committed, Producer};
pub use bucket::{Bucket, BucketError, Object};
pub use checkpoint::Checkpoint;
pub use error::{Cause, StoreError};
pub use journal::Records;
pub use location::Location;
pub use log::{LogFile, LogFilter, LogLine, LogPlace, LogTail};
pub use manifest::{BadRow, Chunk, Manifest, Part, Piece, TableManifest};
pub use raw::{Listed, Opened};
pub use settings::{BucketSettings, Patience, S3Table, SettingsError};
pub use table::parquet_batches;

use bytes::Bytes;
use cache::Cache;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use rallrec_core::{ids::RunId, key::Key, task::ArtifactSummary};
use std::{fmt, sync::Arc};

/// Objects read at once for one caller: enough to hide an object store's latency.
pub(crate) const READS_AT_ONCE: usize = 16;

/// A store of artifacts and runs. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// Where parts are kept on this machine, if they are.
    cache: Option<Arc<Cache>>,
}

impl fmt::Debug for Store {
    /// As S3 clients call themselves: what their own `Debug` shows has credentials in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.objects)
    }
}

impl Store {
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
        Ok(self.get(&run_path(run, name)).await?.map(Vec::from))
    }

    /// Writes a named record of a run, which must not be there yet.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it is there, or when the store cannot be reached.
    pub async fn create_run_file(&self, run: &RunId, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.create(&run_path(run, name), bytes).await
    }

    async fn get(&self, path: &Path) -> Result<Option<Bytes>, StoreError> {
        let failed = |e| StoreError::object("read", path.as_ref(), e);
        match self.objects.get(path).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(failed)?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }
}

fn run_path(run: &RunId, name: &str) -> Path {
    Path::from_iter(["runs", run.0.as_str(), name])
}

#[cfg(test)]
mod tests;
