//! Objects as they lie in the store: for whoever passes them on to those who cannot reach it, and for `gc`. Nothing here
//! knows what an object means.

use crate::{Store, StoreError};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{Error, GetOptions, GetRange, ObjectMeta, ObjectStoreExt, path::Path};
use rallrec_core::ids::TimeMs;
use std::{ops::Range, sync::Arc};

/// Objects that are removed at once.
const REMOVED_AT_ONCE: usize = 64;

/// An object, as a listing tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Names between slashes.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// When it was put, by the store's own clock.
    pub modified_at: TimeMs,
}

impl From<ObjectMeta> for Listed {
    fn from(meta: ObjectMeta) -> Self {
        let modified_at = TimeMs(u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0));
        Self { path: meta.location.to_string(), bytes: meta.size, modified_at }
    }
}

/// An object that is being read.
pub struct Opened {
    /// Which.
    pub object: Listed,
    /// Its bytes, as far as they were asked for.
    pub bytes: BoxStream<'static, Result<Bytes, StoreError>>,
}

impl Store {
    /// Every object below a path, in no certain order.
    pub fn objects_below(&self, prefix: &str) -> impl Stream<Item = Result<Listed, StoreError>> + Send + 'static {
        let (path, name) = (Path::from(prefix), prefix.to_owned());
        let listed = self.objects.list(Some(&path));
        listed.map(move |found| found.map(Listed::from).map_err(|e| StoreError::object("list", &name, e)))
    }

    /// What lies right under a path: objects, and the paths of folders.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn objects_in(&self, prefix: &str) -> Result<(Vec<Listed>, Vec<String>), StoreError> {
        let found = self.objects.list_with_delimiter(Some(&Path::from(prefix))).await;
        let found = found.map_err(|e| StoreError::object("list", prefix, e))?;
        let folders = found.common_prefixes.iter().map(ToString::to_string).collect();
        Ok((found.objects.into_iter().map(Listed::from).collect(), folders))
    }

    /// Opens an object, or these bytes of it; `None` when it is not there. An empty range asks whether it is there.
    ///
    /// # Errors
    /// When the store cannot be reached, or the range begins past the end.
    pub async fn open_object(&self, path: &str, range: Range<u64>) -> Result<Option<Opened>, StoreError> {
        let name = path.to_owned();
        let failed = move |e| StoreError::object("read", &name, e);
        let head = range.is_empty();
        let wanted =
            if range.end == u64::MAX { GetRange::Offset(range.start) } else { GetRange::Bounded(range.clone()) };
        let all = head || range == (0..u64::MAX);
        let options = GetOptions { range: (!all).then_some(wanted), head, ..GetOptions::default() };
        let found = match self.objects.get_opts(&Path::from(path), options).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let object = Listed::from(found.meta.clone());
        let bytes = if head { futures::stream::empty().boxed() } else { found.into_stream().map_err(failed).boxed() };
        Ok(Some(Opened { object, bytes }))
    }

    /// Removes objects, several at once. One that is not there is removed already.
    ///
    /// # Errors
    /// When the store cannot be reached; some may be removed then.
    pub async fn remove_objects(&self, paths: &[String]) -> Result<(), StoreError> {
        let removed = futures::stream::iter(paths.to_vec()).map(|path| {
            let objects = Arc::clone(&self.objects);
            async move {
                match objects.delete(&Path::from(path.as_str())).await {
                    Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                    Err(error) => Err(StoreError::object("remove", &path, error)),
                }
            }
        });
        removed.buffer_unordered(REMOVED_AT_ONCE).try_collect::<()>().await
    }
}
