//! Opening the artifact store: tried first by whoever will write to it, with a cache where it is not on this machine.

use crate::{clock, failure::Failure, home::Home, run::Place};
use rallrec_store::{BucketSettings, Location, Store, StoreError};
use std::path::{Path, PathBuf};

/// What a cache may hold, if nothing else is said.
pub const CACHE_BYTES: u64 = 20_000_000_000;

/// A cache's folder, and the most that it may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The folder.
    pub folder: PathBuf,
    /// The bound.
    pub bytes: u64,
}

/// The store of this home, to run pipelines in.
///
/// # Errors
/// When it cannot be had, or overwrites.
pub async fn to_work_in(place: &Place) -> Result<Store, Failure> {
    let store = checked(place.home.store(), &place.buckets).await?;
    Ok(with_cache(store, cache(place.home.store(), &place.home, None, CACHE_BYTES))?)
}

/// The store of this home, to look at. Makes its folder.
///
/// # Errors
/// When it cannot be had.
pub async fn to_read(place: &Place) -> Result<Store, Failure> {
    Ok(Store::open_to_read(place.home.store(), &place.buckets).await?)
}

/// A store that has shown that it does not overwrite.
///
/// # Errors
/// When it cannot be had, or overwrites.
pub async fn checked(location: &Location, buckets: &BucketSettings) -> Result<Store, StoreError> {
    Store::open(location, buckets, &clock::new_run_id().0).await
}

/// The cache before a store: where one is named, else in the home before a store in S3. A folder needs none.
pub fn cache(location: &Location, home: &Home, named: Option<&Path>, bytes: u64) -> Option<Cache> {
    let own = || location.folder().is_none().then(|| home.cache());
    let folder = named.map(Path::to_owned).or_else(own)?;
    (bytes > 0).then_some(Cache { folder, bytes })
}

/// The store behind its cache.
///
/// # Errors
/// When the cache's folder cannot be made.
pub fn with_cache(store: Store, cache: Option<Cache>) -> Result<Store, StoreError> {
    match cache {
        Some(cache) => store.with_cache(&cache.folder, cache.bytes),
        None => Ok(store),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_elsewhere_has_a_cache() {
        let home = Home::new("h".into(), None);
        let (folder, bucket) = (Location::Folder("s".into()), "s3://b/p".parse().unwrap());
        assert_eq!(cache(&folder, &home, None, 10), None);
        assert_eq!(cache(&bucket, &home, None, 10).map(|c| c.folder), Some("h/cache".into()));
        assert_eq!(cache(&folder, &home, Some(Path::new("c")), 10).map(|c| c.folder), Some("c".into()));
        assert_eq!(cache(&bucket, &home, None, 0), None);
    }
}
