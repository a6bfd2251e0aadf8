//! Errors of the store, by what the caller should do.

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
    #[error("cannot {action} {path} in the store: {source}")]
    Object {
        /// What was tried.
        action: &'static str,
        /// On which object.
        path: String,
        /// What the store said.
        source: Box<object_store::Error>,
    },
    /// The folder of a local store.
    #[error("cannot use the folder {path} as a store: {source}; make it writable or name another with --store")]
    Folder {
        /// The folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
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
    /// The store does not honour create-if-absent, so nothing in it would be safe.
    #[error(
        "the store overwrites on a conditional create (If-None-Match), so two writers could destroy each other's work; use a store that honours it"
    )]
    Overwrites,
}

impl StoreError {
    pub(crate) fn object(action: &'static str, path: &str, source: object_store::Error) -> Self {
        Self::Object { action, path: path.to_owned(), source: Box::new(source) }
    }

    /// Whether the disk under the store is full.
    pub fn is_full(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::StorageFull) {
                return true;
            }
            cause = error.source();
        }
        false
    }

    pub(crate) fn corrupt(path: &str, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), reason: reason.into() }
    }
}
