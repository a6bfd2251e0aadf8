//! Errors of the store, by what the caller should do.

use crate::words::words;
use std::{fmt, io};

/// What went wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Someone else put that object first. A journal's writer has been fenced off and must stop.
    #[error("{path} was written by someone else first")]
    Conflict {
        /// The object.
        path: String,
    },
    /// The store cannot be reached or refuses. Try again later.
    #[error("cannot {action} {path} in the store: {cause}")]
    Object {
        /// What was tried.
        action: &'static str,
        /// On which object.
        path: String,
        /// What the store said.
        cause: Cause,
    },
    /// The folder of a local store.
    #[error("cannot use the folder {path} as a store: {source}; make it writable or name another with --store")]
    Folder {
        /// The folder.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be used as a store at all. The reason says what to do.
    #[error("{place} cannot be the store: {reason}")]
    Unfit {
        /// The store.
        place: String,
        /// What is wrong with it, and how to mend that.
        reason: String,
    },
    /// An object is not what its manifest says. Remove the artifact's folder to have it made again.
    #[error("{path} is damaged: {reason}; remove the artifact's folder and run again to have it made anew")]
    Corrupt {
        /// The object.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A record of a run's journal is not what it should be.
    #[error(
        "{path} is damaged: {reason}; run again with --new to begin another run, which reuses every finished artifact"
    )]
    Journal {
        /// The record.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Rows that cannot be encoded.
    #[error("cannot encode table {table}: {reason}")]
    Encode {
        /// The table.
        table: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// What an object store said. Shown in one line; the rest of a server's answer, which may repeat a token, stays inside.
pub struct Cause(pub(crate) Box<object_store::Error>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&words(&self.0))
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&words(&self.0))
    }
}

impl StoreError {
    pub(crate) fn object(action: &'static str, path: &str, cause: object_store::Error) -> Self {
        Self::Object { action, path: path.to_owned(), cause: Cause(Box::new(cause)) }
    }

    /// Whether the disk under the store is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Object { cause, .. } => has_kind(&cause.0, io::ErrorKind::StorageFull),
            Self::Folder { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }

    pub(crate) fn corrupt(path: &str, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), reason: reason.into() }
    }
}

/// Whether one of an error's causes is the system's, of that kind.
pub(crate) fn has_kind(error: &object_store::Error, kind: io::ErrorKind) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == kind) {
            return true;
        }
        cause = error.source();
    }
    false
}
