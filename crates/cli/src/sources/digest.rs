//! Digests of `file:PATH` sources, which nobody pinned: the hash of the file's or folder's content.
//!
//! Hashing gigabytes at every start would make a fully cached run slow, so digests are remembered by path, size and
//! modification time. The cache may be deleted at any time; a stale or broken one only costs hashing.

use super::{SourceError, files::sha256_of, record};
use crate::home::write_atomically;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// Folders inside a `file:` source are followed this deep, so that a loop of links ends.
const MAX_DEPTH: usize = 16;

/// What was hashed, and what came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    bytes: u64,
    modified_ns: u64,
    sha256: String,
}

/// Remembered digests of files.
#[derive(Debug)]
pub struct DigestCache {
    path: PathBuf,
    known: BTreeMap<PathBuf, Known>,
    changed: bool,
    hashed_bytes: u64,
}

impl DigestCache {
    /// Opens the cache at `path`; starts empty when there is none or it cannot be understood.
    pub fn open(path: PathBuf) -> Self {
        let known = fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        Self { path, known, changed: false, hashed_bytes: 0 }
    }

    /// Digest of a file, or of every file in a folder by relative name.
    ///
    /// # Errors
    /// When something cannot be read, or the folder is empty.
    pub fn digest(&mut self, path: &Path) -> Result<String, SourceError> {
        let path = fs::canonicalize(path).map_err(SourceError::io(path))?;
        if path.is_file() {
            return self.file(&path);
        }
        let mut files = Vec::new();
        list(&path, MAX_DEPTH, &mut files)?;
        files.sort();
        let mut named = Vec::new();
        for file in &files {
            let name = file.strip_prefix(&path).unwrap_or(file).to_string_lossy().into_owned();
            named.push((name, self.file(file)?));
        }
        if named.is_empty() {
            let error = std::io::Error::new(std::io::ErrorKind::NotFound, "the folder holds no files");
            return Err(SourceError::io(path)(error));
        }
        Ok(record::digest(named.iter().map(|(n, s)| (n.as_str(), s.as_str()))))
    }

    /// Bytes that had to be read so far.
    pub fn hashed_bytes(&self) -> u64 {
        self.hashed_bytes
    }

    /// Keeps what was learned. Failing to write costs time at the next start, nothing else, so it is only logged.
    pub fn save(&self) {
        if self.changed {
            let bytes = serde_json::to_vec_pretty(&self.known).unwrap_or_default();
            if let Err(error) = write_atomically(&self.path, &bytes) {
                tracing::warn!(path = %self.path.display(), %error, "digests are not remembered");
            }
        }
    }

    fn file(&mut self, path: &Path) -> Result<String, SourceError> {
        let meta = fs::metadata(path).map_err(SourceError::io(path))?;
        let modified = meta.modified().map_err(SourceError::io(path))?;
        // A file from before 1970 only loses its place in the cache, not its digest.
        let modified_ns = modified.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        if let Some(known) = self.known.get(path)
            && known.bytes == meta.len()
            && known.modified_ns == modified_ns
        {
            return Ok(known.sha256.clone());
        }
        let sha256 = sha256_of(path).map_err(SourceError::io(path))?;
        self.hashed_bytes += meta.len();
        self.changed = true;
        self.known.insert(path.to_owned(), Known { bytes: meta.len(), modified_ns, sha256: sha256.clone() });
        Ok(sha256)
    }
}

fn list(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), SourceError> {
    for entry in fs::read_dir(folder).map_err(SourceError::io(folder))? {
        let path = entry.map_err(SourceError::io(folder))?.path();
        if path.is_dir() && depth > 0 {
            list(&path, depth - 1, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}
