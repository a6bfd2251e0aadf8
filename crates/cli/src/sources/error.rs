//! What can go wrong with a source, by what the user should do.

use std::{io, path::PathBuf};

/// A source that cannot be had, or cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such name.
    #[error("no source is named `{name}`{}; the catalogue has {}", .suggestion.as_ref().map(|s| format!(" (did you mean `{s}`?)")).unwrap_or_default(), .known.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
        /// The nearest known name.
        suggestion: Option<String>,
        /// Every known name.
        known: Vec<String>,
    },
    /// It is not here and must not be pulled.
    #[error("source `{name}` is not here ({folder}) and pulling is off; run `rallrec {command} pull {name}` while online, or {}", other_way(.name))]
    Offline {
        /// Its name.
        name: String,
        /// Where it would be.
        folder: PathBuf,
        /// `data` or `models`.
        command: &'static str,
    },
    /// Every mirror failed.
    #[error("source `{name}` could not be pulled; tried:\n{}\nGet the files in another way and run `rallrec {command} pull {name} --from PATH`, where PATH is a folder that holds them, a .zip, or a .tar.gz or .tar.xz.\nFiles: {}", .tried.iter().map(|(mirror, why)| format!("  {mirror}: {why}")).collect::<Vec<_>>().join("\n"), .files.join(", "))]
    AllMirrorsFailed {
        /// Its name.
        name: String,
        /// `data` or `models`.
        command: &'static str,
        /// Each mirror, and why it failed.
        tried: Vec<(String, String)>,
        /// What the files are called.
        files: Vec<String>,
    },
    /// `--from` was given for a source that nobody could check the files of.
    #[error(
        "`{name}` takes no --from, as nothing says what its files must be; name a folder or a file of your own as `source: file:PATH`"
    )]
    NoFrom {
        /// The source as it was named.
        name: String,
    },
    /// The Hugging Face Hub, or a bucket, does not give it.
    #[error("source `{name}` could not be pulled from {from}: {why}")]
    Remote {
        /// The source as the pipeline has it.
        name: String,
        /// Where it was looked for.
        from: String,
        /// Why not.
        why: String,
    },
    /// Files were given, but not the right ones.
    #[error("{path} does not hold source `{name}`:\n{}\nOfficial address: {official}", .reasons.iter().map(|r| format!("  {r}")).collect::<Vec<_>>().join("\n"))]
    Mismatch {
        /// Its name.
        name: String,
        /// What was looked at.
        path: PathBuf,
        /// For each variant, what is wrong.
        reasons: Vec<String>,
        /// Where the right files are.
        official: String,
    },
    /// A pulled source was changed afterwards.
    #[error("source `{name}` was changed after it was pulled: {what}; remove {folder} and pull it again")]
    Changed {
        /// Its name.
        name: String,
        /// Which file, and how.
        what: String,
        /// Where it lies.
        folder: PathBuf,
    },
    /// An archive cannot be read.
    #[error("{path} cannot be unpacked: {why}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// The disk refused.
    #[error("{path}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
}

impl SourceError {
    /// Wraps an I/O error with the path that it is about.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io { path, error }
    }

    /// Whether the user gave something wrong, rather than something being out of reach.
    pub fn is_invalid_input(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::NoFrom { .. } | Self::Mismatch { .. } | Self::Archive { .. })
    }
}

/// How to have a source without a network.
fn other_way(name: &str) -> &'static str {
    if name.contains(':') { "bring its files here and name them as `source: file:PATH`" } else { "add `--from PATH`" }
}
