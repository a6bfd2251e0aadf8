//! Buckets: other people's objects in S3, or on a server that speaks its interface, listed and read in ranges.
//!
//! An object is read under the ETag that it was found with, so that all of its ranges are of one version. Nothing is
//! written here, and nothing kept: that is for the caller.

use crate::{BucketSettings, Patience, SettingsError, words::words};
use bytes::Bytes;
use object_store::{Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, aws::AmazonS3, path::Path};
use std::{fmt, ops::Range, time::Duration};

/// Requests that fail in passing are sent again as often as this, for no longer than that.
const RETRIES: (usize, Duration) = (3, Duration::from_secs(180));

/// Why a bucket or an object in it cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// It cannot be asked at all.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Whoever asks may not.
    #[error("access is denied ({0}): these credentials may not read it, or it is not there")]
    Denied(String),
    /// No such bucket.
    #[error("there is no bucket {0}")]
    NoBucket(String),
    /// No such object.
    #[error("there is no object {0}")]
    NoObject(String),
    /// It was replaced after it was found.
    #[error("{0} was replaced while it was being read; pull again")]
    Replaced(String),
    /// Nobody answers, or not as S3 does.
    #[error("{0}")]
    Failed(String),
}

/// An object as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its key: names between slashes.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// What its version is known by, where the server tells.
    pub etag: Option<String>,
}

impl Object {
    /// The last of its key's names.
    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or(&self.key)
    }
}

impl From<ObjectMeta> for Object {
    fn from(meta: ObjectMeta) -> Self {
        // A weak one does not say that bytes are equal.
        let etag = meta.e_tag.filter(|tag| !tag.is_empty() && !tag.starts_with("W/"));
        Self { key: meta.location.to_string(), bytes: meta.size, etag }
    }
}

/// A bucket that can be read.
pub struct Bucket {
    objects: AmazonS3,
    name: String,
}

impl fmt::Debug for Bucket {
    /// The client's own shows credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bucket").field(&self.name).finish()
    }
}

impl Bucket {
    /// A bucket, once there are credentials to ask with. It may still not be there. `connect` is the longest wait for a
    /// connection, `silence` that for the next bytes.
    ///
    /// # Errors
    /// [`BucketError::Settings`].
    pub async fn open(
        name: &str,
        settings: &BucketSettings,
        connect: Duration,
        silence: Duration,
    ) -> Result<Self, BucketError> {
        let patience = Patience { connect, silence, retries: RETRIES.0, retry_for: RETRIES.1 };
        let objects = settings.client(name, patience).await?;
        Ok(Self { objects, name: name.to_owned() })
    }

    /// One object.
    ///
    /// # Errors
    /// [`BucketError`].
    pub async fn object(&self, key: &str) -> Result<Object, BucketError> {
        let path = parsed(key)?;
        self.objects.head(&path).await.map(Object::from).map_err(|error| self.failure(key, &error))
    }

    /// The objects right under a folder; `""` is the bucket itself.
    ///
    /// # Errors
    /// [`BucketError`]; a folder that is not there is an empty one.
    pub async fn folder(&self, folder: &str) -> Result<Vec<Object>, BucketError> {
        let path = parsed(folder)?;
        let found =
            self.objects.list_with_delimiter(Some(&path)).await.map_err(|error| self.failure(folder, &error))?;
        // Some tools put an empty object in the place of a folder.
        let inside = found.objects.into_iter().filter(|object| object.location != path);
        Ok(inside.map(Object::from).collect())
    }

    /// Some bytes of an object, all of them of the version that was found.
    ///
    /// # Errors
    /// [`BucketError`].
    pub async fn read(&self, object: &Object, range: Range<u64>) -> Result<Bytes, BucketError> {
        let wanted = range.end - range.start;
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: object.etag.clone(),
            ..GetOptions::default()
        };
        let failed = |error: Error| self.failure(&object.key, &error);
        let bytes = self.objects.get_opts(&parsed(&object.key)?, options).await.map_err(failed)?.bytes().await;
        let bytes = bytes.map_err(failed)?;
        if bytes.len() as u64 != wanted {
            return Err(BucketError::Failed(format!("{}: {} bytes came of {wanted}", object.key, bytes.len())));
        }
        Ok(bytes)
    }

    fn failure(&self, key: &str, error: &Error) -> BucketError {
        let words = words(error);
        let of = if key.is_empty() { String::new() } else { format!("{key}: ") };
        match error {
            _ if words.starts_with("NoSuchBucket") => BucketError::NoBucket(self.name.clone()),
            Error::NotFound { .. } => BucketError::NoObject(key.to_owned()),
            Error::Precondition { .. } => BucketError::Replaced(key.to_owned()),
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => BucketError::Denied(words),
            // What S3 says to requests that are for another region.
            _ if words.contains("400 Bad Request") || words.contains("redirect") => {
                BucketError::Failed(format!("{of}{words}; look at AWS_REGION and at the endpoint"))
            }
            _ => BucketError::Failed(format!("{of}{words}")),
        }
    }
}

/// A key as it is: what looks like an escape is none.
fn parsed(key: &str) -> Result<Path, BucketError> {
    Path::parse(key).map_err(|error| BucketError::Failed(error.to_string()))
}
