//! Where a store is: a folder, or a prefix in a bucket.

use serde::Deserialize;
use std::{
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A place for artifacts and runs, as people write it: a folder's path, or `s3://BUCKET/PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "PathBuf")]
pub enum Location {
    /// A folder.
    Folder(PathBuf),
    /// Objects in S3.
    Bucket {
        /// The bucket.
        bucket: String,
        /// What their keys begin with, without slashes at its ends; may be empty.
        prefix: String,
    },
}

impl Location {
    /// The folder, if it is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::Bucket { .. } => None,
        }
    }
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        let Some(rest) = path.to_str().and_then(|text| text.strip_prefix("s3://")) else { return Self::Folder(path) };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        Self::Bucket { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() }
    }
}

impl FromStr for Location {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(PathBuf::from(text).into())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Bucket { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::Bucket { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_with_s3_is_a_bucket_and_all_else_a_folder() {
        let read = |text: &str| text.parse::<Location>().unwrap();
        let bucket = |bucket: &str, prefix: &str| Location::Bucket { bucket: bucket.into(), prefix: prefix.into() };
        assert_eq!(read("s3://b"), bucket("b", ""));
        assert_eq!(read("s3://b/team/one/"), bucket("b", "team/one"));
        assert_eq!(read("/data/store"), Location::Folder("/data/store".into()));
        assert_eq!((read("s3://b/a/").to_string(), read("s3://b/").to_string()), ("s3://b/a".into(), "s3://b".into()));
    }
}
