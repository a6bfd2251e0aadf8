//! The object store as one node sees it: slow, failing, doing what it says it did not, and with mutants broken on purpose.
//!
//! What really holds is one store in memory that all nodes share, with a create-if-absent that is one.

use crate::{
    checker::History,
    faults::Fault,
    world::{Mutant, Node, lock},
};
use async_trait::async_trait;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};
use rallrec_core::run::JournalRecord;
use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Tries of a client before it tells of a failure, as those of S3 make.
const TRIES: u32 = 3;

/// A node's client of the store. Clones are the same client.
#[derive(Clone)]
pub(crate) struct SimObjects {
    node: Arc<Node>,
    shared: Arc<Shared>,
    /// The record that a broken replay forgets.
    forgotten: Arc<Mutex<Option<Path>>>,
    /// Whether it is in use: before that nothing goes wrong.
    used: Arc<AtomicBool>,
}

/// What all clients share.
pub(crate) struct Shared {
    pub(crate) objects: InMemory,
    pub(crate) history: Arc<History>,
}

impl SimObjects {
    pub(crate) fn new(node: &Arc<Node>, shared: &Arc<Shared>) -> Self {
        Self { node: Arc::clone(node), shared: Arc::clone(shared), forgotten: Arc::default(), used: Arc::default() }
    }

    /// From now on things go wrong.
    pub(crate) fn use_it(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    fn failed(what: &str) -> Error {
        Error::Generic { store: "simulated", source: what.to_owned().into() }
    }

    /// The way there or back.
    async fn travel(&self) {
        let world = &self.node.world;
        let slow = world.fires(Fault::StoreSlow);
        let ms = if slow { world.between(500, 8_000) } else { world.between(1, 20) };
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// A request that changes something.
    async fn change<T: Send + 'static>(
        &self,
        make: impl Fn() -> BoxFuture<'static, Result<T>> + Send + Sync,
    ) -> Result<T> {
        if !self.used.load(Ordering::Relaxed) {
            return make().await;
        }
        let world = Arc::clone(&self.node.world);
        for tried in 1.. {
            self.node.call().await;
            self.travel().await;
            let done = if world.is_store_away() || world.fires(Fault::PutFailed) {
                Err(Self::failed("503"))
            } else if world.fires(Fault::PutLandsLater) {
                let (request, late) = (make(), world.between(100, 20_000));
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(late)).await;
                    drop(request.await);
                });
                Err(Self::failed("no answer"))
            } else {
                let done = make().await;
                if world.fires(Fault::PutFailedButDone) { Err(Self::failed("connection reset")) } else { done }
            };
            self.travel().await;
            self.node.call().await;
            match done {
                Err(Error::Generic { .. }) if tried < TRIES => {}
                done => return done,
            }
        }
        Err(Self::failed("no answer"))
    }

    /// A request that changes nothing.
    async fn read<T>(&self, make: impl Future<Output = Result<T>>) -> Result<T> {
        let world = &self.node.world;
        self.node.call().await;
        self.travel().await;
        let fails = world.is_store_away() || world.fires(Fault::ReadFailed);
        let read = if fails { Err(Self::failed("503")) } else { make.await };
        self.node.call().await;
        read
    }

    async fn list_now(&self, prefix: Option<Path>) -> Result<Vec<ObjectMeta>> {
        let listed: Vec<ObjectMeta> =
            self.read(async { self.shared.objects.list(prefix.as_ref()).try_collect().await }).await?;
        let of_run = prefix.is_some_and(|prefix| is_run_journal(&prefix));
        let forget = match self.node.world.mutant {
            Some(Mutant::ReplayForgetsTheLast) => listed.len().checked_sub(1),
            Some(Mutant::ReplaySkipsOne) => Some(listed.len() / 2),
            _ => None,
        };
        if let Some(record) = forget.filter(|n| of_run && *n > 0).and_then(|n| listed.get(n)) {
            *lock(&self.forgotten) = Some(record.location.clone());
        }
        Ok(listed)
    }

    /// A broken replay's record with nothing in it.
    async fn forgetting(&self, path: &Path, found: GetResult, options: GetOptions) -> Result<GetResult> {
        if lock(&self.forgotten).take_if(|forgotten| forgotten == path).is_none() {
            return Ok(found);
        }
        let empty = JournalRecord::new(Vec::new()).encode().map_err(|e| Self::failed(&e.to_string()))?;
        let blank = InMemory::new();
        blank.put(path, [b"broken\n", empty.as_slice()].concat().into()).await?;
        blank.get_opts(path, options).await
    }
}

pub(crate) fn is_run_journal(path: &Path) -> bool {
    path.as_ref().starts_with("runs/") && path.as_ref().contains("/journal")
}

/// Puts as the mutant, if there is one, would have it.
async fn put_now(
    shared: Arc<Shared>,
    mutant: Option<Mutant>,
    node: Arc<Node>,
    path: Path,
    payload: PutPayload,
    mut options: PutOptions,
) -> Result<PutResult> {
    match mutant {
        Some(Mutant::JournalOverwrites) if is_run_journal(&path) => options.mode = PutMode::Overwrite,
        Some(Mutant::ManifestOverwrites) if path.as_ref().ends_with("manifest.json") => {
            options.mode = PutMode::Overwrite;
        }
        _ => {}
    }
    let bytes: Vec<u8> = payload.iter().flatten().copied().collect();
    match shared.objects.put_opts(&path, payload, options).await {
        Ok(put) => {
            shared.history.put(&node, &path, &bytes);
            Ok(put)
        }
        Err(Error::AlreadyExists { .. }) if mutant == Some(Mutant::JournalIgnoresConflict) && is_run_journal(&path) => {
            let blank = InMemory::new();
            blank.put(&path, bytes.into()).await
        }
        Err(error) => Err(error),
    }
}

impl fmt::Display for SimObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated store of {}", self.node.name)
    }
}

impl fmt::Debug for SimObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[async_trait]
impl ObjectStore for SimObjects {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let bytes: Vec<u8> = payload.iter().flatten().copied().collect();
        let put = self
            .change(|| {
                let (shared, node, mutant) = (Arc::clone(&self.shared), Arc::clone(&self.node), self.node.world.mutant);
                put_now(shared, mutant, node, path.clone(), payload.clone(), options.clone()).boxed()
            })
            .await?;
        self.shared.history.acknowledged(path, bytes);
        Ok(put)
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotSupported { source: "simulated tasks make small parts".into() })
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let found = self.read(self.shared.objects.get_opts(path, options.clone())).await?;
        self.forgetting(path, found, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let client = self.clone();
        let delete = move |path: Result<Path>| {
            let client = client.clone();
            async move {
                let path = path?;
                let shared = &client.shared;
                let request = || {
                    let (shared, path) = (Arc::clone(shared), path.clone());
                    async move { shared.objects.delete(&path).await }.boxed()
                };
                client.change(request).await?;
                Ok(path)
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (client, prefix) = (self.clone(), prefix.cloned());
        let listed = async move { Ok::<_, Error>(futures::stream::iter(client.list_now(prefix).await?).map(Ok)) };
        futures::stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.read(self.shared.objects.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.read(self.shared.objects.copy_opts(from, to, options)).await
    }
}
