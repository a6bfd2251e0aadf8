//! Parts of artifacts on this machine's disk, by digest, so that tasks that read the same part fetch it once.
//!
//! Whatever is here is checked against its digest each time that it is read, and fetched again if it is wrong: so
//! nothing is synced, a process may be killed anywhere, and processes need no agreement but one. It is about who fetches:
//! a lock of the system for each first byte of a digest, gone with its process. What was used longest ago goes first
//! when there is too much. Not here: sources and models, which have their own folder.

use bytes::Bytes;
use rallrec_core::key::hex;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

/// Age at which a file that was not finished is a killed process's.
const LEFT: Duration = Duration::from_secs(3600);

/// A folder of parts. Several processes may share it.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    limit_bytes: u64,
}

/// Whoever has it fetches.
pub(crate) struct Turn(#[expect(dead_code, reason = "held for its lock")] File);

impl Cache {
    /// A cache in a folder, which is made if it is not there.
    pub(crate) fn open(folder: &Path, limit_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(folder.join("locks"))?;
        Ok(Self { folder: folder.to_owned(), limit_bytes })
    }

    /// The part of this digest, if it is here.
    pub(crate) fn get(&self, sha256: &str) -> Option<Bytes> {
        let path = self.path(sha256);
        let bytes = fs::read(&path).ok()?;
        if hex(&Sha256::digest(&bytes)) != sha256 {
            tracing::warn!(path = %path.display(), "a damaged file in the cache is fetched anew");
            let _ = fs::remove_file(&path);
            return None;
        }
        // Used now. If this cannot be told, it only goes sooner.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(bytes.into())
    }

    /// Waits until nobody else fetches a part of this digest. Blocks.
    pub(crate) fn turn(&self, sha256: &str) -> io::Result<Turn> {
        let first = sha256.get(..2).unwrap_or("00");
        let file =
            File::options().create(true).write(true).truncate(false).open(self.folder.join("locks").join(first))?;
        file.lock()?;
        Ok(Turn(file))
    }

    /// Keeps a part whose digest was checked, and drops what is too much.
    pub(crate) fn put(&self, sha256: &str, bytes: &[u8]) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        if bytes.len() as u64 > self.limit_bytes {
            return Ok(());
        }
        self.make_room(bytes.len() as u64)?;
        let new = self.folder.join(format!("{}-{}.new", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let put = fs::write(&new, bytes).and_then(|()| fs::rename(&new, self.path(sha256)));
        if put.is_err() {
            let _ = fs::remove_file(&new);
        }
        put
    }

    fn path(&self, sha256: &str) -> PathBuf {
        self.folder.join(sha256)
    }

    /// Removes what was used longest ago, until so many bytes fit.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            // What another process has just removed is no file any more.
            let Ok(known) = entry.metadata() else { continue };
            if known.is_file() {
                files.push((known.modified()?, known.len(), entry.path()));
            }
        }
        files.sort();
        let mut held: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        let now = SystemTime::now();
        for (used, length, path) in files {
            let unfinished = path.extension().is_some();
            let left = unfinished && now.duration_since(used).is_ok_and(|age| age > LEFT);
            let too_much = !unfinished && held + bytes > self.limit_bytes;
            // Whoever has it open reads on.
            if (left || too_much) && fs::remove_file(&path).is_ok() {
                held -= length;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> String {
        hex(&Sha256::digest(bytes))
    }

    fn aged(cache: &Cache, sha256: &str, hours: u64) {
        let file = File::open(cache.path(sha256)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600 * hours)).unwrap();
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 250).unwrap();
        let parts: Vec<(String, Vec<u8>)> = (0..4u8).map(|n| vec![n; 100]).map(|b| (digest(&b), b)).collect();
        for (age, (sha256, bytes)) in [3, 2].into_iter().zip(&parts) {
            cache.put(sha256, bytes).unwrap();
            aged(&cache, sha256, age);
        }
        assert_eq!(cache.get(&parts[0].0).unwrap(), parts[0].1, "used now");
        cache.put(&parts[2].0, &parts[2].1).unwrap();
        let held: Vec<bool> = parts.iter().map(|(sha256, _)| cache.get(sha256).is_some()).collect();
        assert_eq!(held, [true, false, true, false]);
        cache.put(&digest(&[9; 300]), &[9; 300]).unwrap();
        assert!(cache.get(&digest(&[9; 300])).is_none(), "more than there is room for");
        assert!(cache.get(&parts[2].0).is_some());
    }

    #[test]
    fn a_damaged_file_is_forgotten_and_a_killed_writers_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 1000).unwrap();
        let sha256 = digest(b"whole");
        cache.put(&sha256, b"whole").unwrap();
        fs::write(cache.path(&sha256), b"who").unwrap();
        assert!(cache.get(&sha256).is_none() && !cache.path(&sha256).exists());
        for (name, hours) in [("1-0.new", 2), ("2-0.new", 0)] {
            fs::write(cache.path(name), b"cut").unwrap();
            aged(&cache, name, hours);
        }
        cache.put(&sha256, b"whole").unwrap();
        assert!(!cache.path("1-0.new").exists() && cache.path("2-0.new").exists());
    }

    #[test]
    fn one_fetches_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 1000).unwrap();
        let turn = cache.turn("ab12").unwrap();
        let other = File::open(folder.path().join("locks/ab")).unwrap();
        assert!(other.try_lock().is_err());
        let free = cache.turn("cd34").unwrap();
        drop((turn, free));
        other.try_lock().unwrap();
    }
}
