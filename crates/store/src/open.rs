//! Opening a store, and finding out whether it is fit to be one.
//!
//! Everything rests on create-if-absent, and some servers and file systems take the condition and overwrite all the
//! same. So whoever will write puts a probe twice, and then several at once, and refuses a store that lets both stand.

use crate::{
    BucketSettings, Cause, Location, Patience, Store, StoreError,
    cache::Cache,
    put::{CHUNK_BYTES, Upload},
    words::words,
};
use bytes::Bytes;
use futures::{TryStreamExt, future::join_all};
use object_store::{
    Error, ObjectStore, ObjectStoreExt, client::HttpError, local::LocalFileSystem, memory::InMemory, path::Path,
    prefix::PrefixStore,
};
use std::{io, sync::Arc, time::Duration};

/// With a store in use: a server that restarts or is overloaded is waited for.
const PATIENT: Patience = Patience {
    connect: Duration::from_secs(5),
    silence: Duration::from_secs(30),
    retries: usize::MAX,
    retry_for: Duration::from_secs(60),
};
/// With a store that is opened: whoever has just typed its address should hear of a mistake.
const IMPATIENT: Patience = Patience {
    connect: Duration::from_secs(5),
    silence: Duration::from_secs(15),
    retries: 3,
    retry_for: Duration::from_secs(15),
};
/// Creators of one probe at once.
const RACERS: usize = 4;

impl Store {
    /// A store to write to, once it has shown that it does not overwrite. `probe` is a name that nobody else uses.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] with what is wrong and how to mend it; [`StoreError::Folder`].
    pub async fn open(location: &Location, settings: &BucketSettings, probe: &str) -> Result<Self, StoreError> {
        let opened = match location {
            Location::Folder(folder) => Self::local(folder).await?,
            Location::Bucket { .. } => Self::bucket(location, settings, IMPATIENT).await?,
        };
        opened.check(location, &settings.endpoint(), probe).await?;
        Self::open_to_read(location, settings).await
    }

    /// A store that is only read: it is not looked whether it could be written.
    ///
    /// # Errors
    /// As [`Store::open`], of which there are fewer.
    pub async fn open_to_read(location: &Location, settings: &BucketSettings) -> Result<Self, StoreError> {
        match location {
            Location::Folder(folder) => Self::local(folder).await,
            Location::Bucket { .. } => Self::bucket(location, settings, PATIENT).await,
        }
    }

    /// A store in a local folder, which is made if it is not there. Every write is synced to the disk.
    ///
    /// # Errors
    /// When the folder cannot be made or written.
    pub async fn local(root: &std::path::Path) -> Result<Self, StoreError> {
        let place = |source: io::Error| StoreError::Folder { path: root.display().to_string(), source };
        std::fs::create_dir_all(root).map_err(place)?;
        let root = root.canonicalize().map_err(place)?;
        let objects = LocalFileSystem::new_with_prefix(&root)
            .map_err(|e| StoreError::object("open", &root.display().to_string(), e))?
            .with_automatic_cleanup(true)
            .with_fsync(true);
        Ok(Self::over(Arc::new(objects)))
    }

    /// A store in memory, gone with the process.
    pub fn memory() -> Self {
        Self::over(Arc::new(InMemory::new()))
    }

    /// Keeps parts that are read whole in a folder of this machine, up to so many bytes in all. Several processes may
    /// share the folder.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] when the folder cannot be made.
    pub fn with_cache(self, folder: &std::path::Path, limit_bytes: u64) -> Result<Self, StoreError> {
        let cache = Cache::open(folder, limit_bytes).map_err(|e| StoreError::Unfit {
            place: format!("the cache {}", folder.display()),
            reason: format!("{e}; make it writable, or name another folder with `cache`"),
        })?;
        Ok(Self { cache: Some(Arc::new(cache)), ..self })
    }

    /// Any object store. It is not looked whether it is fit to be written: for one that is only read, and for tests.
    pub fn over(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects, cache: None }
    }

    async fn bucket(location: &Location, settings: &BucketSettings, patience: Patience) -> Result<Self, StoreError> {
        let unfit = |reason: String| StoreError::Unfit { place: location.to_string(), reason };
        let Location::Bucket { bucket, prefix } = location else { return Err(unfit("it is a folder".into())) };
        if bucket.is_empty() {
            return Err(unfit("it names no bucket; write s3://BUCKET/PREFIX".into()));
        }
        let objects = settings.client(bucket, patience).await.map_err(|e| unfit(e.to_string()))?;
        let prefix = Path::parse(prefix).map_err(|e| unfit(e.to_string()))?;
        Ok(Self::over(Arc::new(PrefixStore::new(objects, prefix))))
    }

    /// Tries what everything rests on.
    pub(crate) async fn check(&self, place: &Location, endpoint: &str, probe: &str) -> Result<(), StoreError> {
        let folder = Path::from_iter(["probe", probe]);
        let checked = self.creates_once(&folder).await;
        let cleared = self.clear(&folder).await;
        let unfit = |reason| StoreError::Unfit { place: place.to_string(), reason };
        match checked.and_then(|once| cleared.map(|()| once)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(unfit(OVERWRITES.to_owned())),
            Err(StoreError::Object { action, cause, .. }) => Err(unfit(why(place, endpoint, action, &cause))),
            Err(other) => Err(other),
        }
    }

    /// Whether of several creators of one object one wins, one after the other and all at once.
    async fn creates_once(&self, folder: &Path) -> Result<bool, StoreError> {
        let (first, race) = (folder.clone().join("first"), folder.clone().join("race"));
        self.create(&first, &b"first"[..]).await?;
        let second = self.create(&first, &b"second"[..]).await;
        let racers = join_all((0..RACERS).map(|n| self.create(&race, format!("racer {n}")))).await;
        let mut winners = 0;
        for put in racers.into_iter().chain([second]) {
            match put {
                Ok(()) => winners += 1,
                Err(StoreError::Conflict { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        let kept = self.get(&first).await?;
        let listed: Vec<_> = self
            .objects
            .list(Some(folder))
            .try_collect()
            .await
            .map_err(|e| StoreError::object("list", folder.as_ref(), e))?;
        Ok(winners == 1 && kept.as_deref() == Some(b"first") && listed.len() == 2)
    }

    async fn clear(&self, folder: &Path) -> Result<(), StoreError> {
        for name in ["first", "race"] {
            let path = folder.clone().join(name);
            match self.objects.delete(&path).await {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(e) => return Err(StoreError::object("delete", path.as_ref(), e)),
            }
        }
        Ok(())
    }

    /// Puts an object that goes up in pieces, reads it back by range, and removes it: what `doctor` tries. `probe` is a
    /// name that nobody else uses.
    ///
    /// # Errors
    /// What the store said.
    pub async fn check_pieces(&self, probe: &str) -> Result<(), StoreError> {
        let path = Path::from_iter(["probe", probe, "pieces"]);
        let mut upload = Upload::begin(self, path.clone()).await?;
        for bytes in [Bytes::from(vec![1; CHUNK_BYTES]), Bytes::from_static(b"2")] {
            if let Err(error) = upload.write(bytes).await {
                upload.abort().await;
                return Err(error);
            }
        }
        upload.finish(self).await?;
        let end = CHUNK_BYTES as u64;
        let read = self.objects.get_range(&path, end - 1..end + 1).await;
        self.objects.delete(&path).await.map_err(|e| StoreError::object("delete", path.as_ref(), e))?;
        match read.map_err(|e| StoreError::object("read", path.as_ref(), e))?.as_ref() {
            [1, b'2'] => Ok(()),
            _ => Err(StoreError::corrupt(path.as_ref(), "what was put in two pieces is read as something else")),
        }
    }
}

const OVERWRITES: &str = "of two writers that create one object both succeed (it ignores `If-None-Match: *`), so one would destroy the other's work; use a server that honours it, such as Amazon S3 or a current MinIO (Garage does not)";

/// What is wrong with a store that failed its probe, and what to do.
fn why(place: &Location, endpoint: &str, action: &str, cause: &Cause) -> String {
    let (error, said) = (&*cause.0, words(&cause.0));
    match place {
        Location::Folder(_) if lacks_hard_links(error) => format!(
            "its file system has no hard links ({said}), without which a writer cannot tell that another was first; use a folder on another file system, or s3://"
        ),
        Location::Folder(_) => format!("cannot {action} in it: {said}; make it writable, or name another"),
        Location::Bucket { bucket, .. } => match error {
            _ if said.starts_with("NoSuchBucket") => {
                format!("there is no bucket {bucket} at {endpoint}; create it, or name another")
            }
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => format!(
                "{endpoint} refuses to {action} ({said}); check the credentials, which must be allowed to list the bucket and to read, write and delete in it"
            ),
            _ if is_http(error) => {
                format!("{endpoint} does not answer: {said}; check that it runs, and the endpoint in [s3]")
            }
            _ => format!("cannot {action} at {endpoint}: {said}; check endpoint and region in [s3]"),
        },
    }
}

fn causes(error: &Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source())
}

/// Whether nobody spoke HTTP there.
fn is_http(error: &Error) -> bool {
    causes(error).any(|cause| cause.downcast_ref::<HttpError>().is_some())
}

/// What systems say to a hard link where there is none: not permitted (1), or not supported.
fn lacks_hard_links(error: &Error) -> bool {
    let mut system = causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>());
    system.any(|e| e.raw_os_error() == Some(1) || e.kind() == io::ErrorKind::Unsupported)
}
