//! Putting objects so that an answer that was lost on its way changes nothing.
//!
//! A client that hears nothing of a put, or hears that the server broke, does not know whether the object is there; sent
//! again, its own object refuses it. So whatever a put says but yes, what stands there decides: the same bytes are this
//! put's. Whoever must be the only one therefore puts its own name into what it puts, as journals and manifests do.
//!
//! Large objects go up in pieces, a few at a time, and are visible whole or not at all. Not here: overwriting.

use crate::{Store, StoreError};
use bytes::Bytes;
use object_store::{
    Error, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart,
    client::{HttpError, HttpErrorKind},
    path::Path,
};
use std::time::Duration;

/// Bytes of a piece of a large object, and the most that is put at once. Servers want at least 5 MiB.
pub(crate) const CHUNK_BYTES: usize = 8 << 20;
/// Pieces of an object on their way: enough to fill a line, and what an upload holds in memory.
const CHUNKS_AT_ONCE: usize = 4;

/// Further tries at a put of which nobody knows how it ended, or that collided with another that then failed; the first
/// wait before one.
const TRIES: u32 = 5;
const WAIT: Duration = Duration::from_millis(50);

impl Store {
    /// Puts an object that must not be there; it may be there with the same bytes.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when other bytes are there; else when the store cannot be reached.
    pub(crate) async fn create(&self, path: &Path, bytes: impl Into<Bytes>) -> Result<(), StoreError> {
        let bytes = bytes.into();
        let mut tries = 0;
        loop {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let put = self.objects.put_opts(path, PutPayload::from(bytes.clone()), options).await;
            let Err(failed) = put else { return Ok(()) };
            match self.get(path).await {
                Ok(Some(standing)) if standing == bytes => return Ok(()),
                Ok(Some(_)) => return Err(StoreError::Conflict { path: path.to_string() }),
                Ok(None) if tries < TRIES && may_go_better(&failed) => {
                    tokio::time::sleep(WAIT * 2u32.pow(tries)).await;
                    tries += 1;
                }
                Ok(None) | Err(_) => return Err(StoreError::object("create", path.as_ref(), failed)),
            }
        }
    }
}

/// Whether the same put may succeed at once. What the client itself has sent again for as long as it was told to is not
/// among it.
fn may_go_better(error: &Error) -> bool {
    // Servers answer 409 to one of two puts at once, even if the other fails later.
    if matches!(error, Error::AlreadyExists { .. } | Error::Precondition { .. }) {
        return true;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return !matches!(error.kind(), HttpErrorKind::Connect | HttpErrorKind::Request);
        }
        cause = error.source();
    }
    false
}

/// A large object on its way into the store, under a name that nobody else uses.
#[derive(Debug)]
pub(crate) struct Upload {
    path: Path,
    bytes: u64,
    pieces: WriteMultipart,
}

impl Upload {
    pub(crate) async fn begin(store: &Store, path: Path) -> Result<Self, StoreError> {
        let upload = store.objects.put_multipart(&path).await.map_err(|e| failed(&path, e))?;
        Ok(Self { path, bytes: 0, pieces: WriteMultipart::new_with_chunk_size(upload, CHUNK_BYTES) })
    }

    /// Adds bytes, and waits while enough are on their way.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.bytes += bytes.len() as u64;
        self.pieces.put(bytes);
        self.pieces.wait_for_capacity(CHUNKS_AT_ONCE).await.map_err(|e| failed(&self.path, e))
    }

    /// Makes the object visible. If it cannot be, its pieces are removed.
    pub(crate) async fn finish(self, store: &Store) -> Result<(), StoreError> {
        let Err(error) = self.pieces.finish().await else { return Ok(()) };
        // The server may have done it all the same; a second request for it fails.
        match store.objects.head(&self.path).await {
            Ok(found) if found.size == self.bytes => Ok(()),
            _ => Err(failed(&self.path, error)),
        }
    }

    /// Removes what went up.
    pub(crate) async fn abort(self) {
        if let Err(error) = self.pieces.abort().await {
            tracing::warn!(path = self.path.as_ref(), reason = crate::words::words(&error), "cannot end an upload");
        }
    }
}

fn failed(path: &Path, error: Error) -> StoreError {
    StoreError::object("put", path.as_ref(), error)
}
