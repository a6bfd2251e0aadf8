//! `source.json`: what was pulled. Written last, so that a folder without it counts as not pulled.

use super::SourceError;
use rallrec_core::key::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fs, io, path::Path};

/// Format of the record.
const VERSION: u32 = 1;

/// What lies in a pulled source's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRecord {
    /// Format of this record.
    pub version: u32,
    /// The source's name.
    pub name: String,
    /// Which of its accepted contents this is.
    pub variant: String,
    /// What the user should know about the variant.
    pub note: String,
    /// Its files, by name.
    pub files: Vec<RecordedFile>,
    /// SHA-256 over names and sums of the files, hexadecimal: what task keys contain.
    pub digest: String,
    /// Where it came from: a mirror or a path.
    pub origin: String,
    /// Terms of use, in short, with their address.
    pub terms: String,
    /// When it was pulled, milliseconds since the Unix epoch.
    pub pulled_at_ms: u64,
}

/// One file of a pulled source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedFile {
    /// Name, without a folder.
    pub name: String,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: u64,
}

impl SourceRecord {
    /// Name of the record's file.
    pub const FILE: &'static str = "source.json";

    /// A record of `files`; sorts them and computes the digest.
    pub(super) fn new(
        name: &str,
        variant: &super::Variant,
        mut files: Vec<RecordedFile>,
        origin: String,
        terms: String,
        pulled_at_ms: u64,
    ) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let digest = digest(files.iter().map(|f| (f.name.as_str(), f.sha256.as_str())));
        Self {
            version: VERSION,
            name: name.into(),
            variant: variant.name.clone(),
            note: variant.note.clone(),
            files,
            digest,
            origin,
            terms,
            pulled_at_ms,
        }
    }

    /// A record of what came from elsewhere, as it came. Its digest is what a `file:` source of the same content has:
    /// of one file its own sum.
    pub(super) fn as_it_came(
        name: &str,
        variant: &str,
        mut files: Vec<RecordedFile>,
        origin: String,
        terms: String,
        pulled_at_ms: u64,
    ) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let digest = match files.as_slice() {
            [file] => file.sha256.clone(),
            all => digest(all.iter().map(|f| (f.name.as_str(), f.sha256.as_str()))),
        };
        let (name, variant) = (name.into(), variant.into());
        Self { version: VERSION, name, variant, note: String::new(), files, digest, origin, terms, pulled_at_ms }
    }

    /// The record of a folder; `None` when the folder holds no complete source of this version.
    ///
    /// # Errors
    /// When the record is there and cannot be read.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, SourceError> {
        let path = folder.join(Self::FILE);
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice::<Self>(&bytes).ok().filter(|r| r.version == VERSION)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(SourceError::io(path)(e)),
        }
    }
}

/// SHA-256 over (file name, SHA-256) in the order given, each ended by a byte that neither can contain.
pub(super) fn digest<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut hash = Sha256::new();
    for (name, sha256) in files {
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(sha256.as_bytes());
        hash.update([b'\n']);
    }
    hex(&hash.finalize())
}
