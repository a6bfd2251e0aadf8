//! One process drives a run: an operating system lock on a file beside the runs, gone when the process is.
//!
//! The journal's numbering is what keeps two coordinators of one run from harming it; the lock only says so early and
//! kindly, and tells a running run from one that was left.

use crate::{failure::Failure, home::Home};
use rallrec_core::ids::RunId;
use std::{
    fs::{self, File, TryLockError},
    path::PathBuf,
    time::Duration,
};

/// Tries at a lock that another process has, and the wait between them.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Locks of the runs of one store: beside them in a local one. For a store in S3 they lie in the home, where the
/// processes of this machine see them, and no others.
#[derive(Clone, Debug)]
pub struct RunLocks {
    folder: PathBuf,
    all: bool,
}

impl RunLocks {
    /// Locks for the store of that home.
    pub fn new(home: &Home) -> Self {
        let beside = home.store().folder();
        Self { folder: beside.unwrap_or(home.root()).join("locks"), all: beside.is_some() }
    }

    /// Whether it can be told that nobody drives a run: where not every process's locks are seen, of runs that were
    /// begun here.
    pub fn tell(&self, run: &RunId) -> bool {
        self.all || self.path(run).exists()
    }

    fn path(&self, run: &RunId) -> PathBuf {
        self.folder.join(format!("{run}.lock"))
    }

    /// Takes a run's lock, held until the file is dropped; `None` when another process has it.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn take(&self, run: &RunId) -> Result<Option<File>, Failure> {
        let path = self.path(run);
        let failed = |e: std::io::Error| Failure::Unreachable(format!("{}: {e}", path.display()));
        fs::create_dir_all(&self.folder).map_err(failed)?;
        let file = File::create(&path).map_err(failed)?;
        for _ in 0..LOOKS {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                // Someone who only looks (`is_held`) lets go at once; a driver does not.
                Err(TryLockError::WouldBlock) => std::thread::sleep(BETWEEN_LOOKS),
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
        }
        Ok(None)
    }

    /// Whether some process holds a run's lock now.
    pub fn is_held(&self, run: &RunId) -> bool {
        match File::open(self.path(run)) {
            Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_one_driver_at_a_time() {
        let store = tempfile::tempdir().unwrap();
        let home = Home::new(store.path().to_owned(), Some(store.path().to_owned()));
        let (locks, run) = (RunLocks::new(&home), RunId("r".into()));
        assert!(!locks.is_held(&run));
        let lock = locks.take(&run).unwrap();
        assert!(lock.is_some() && locks.is_held(&run));
        assert!(locks.take(&run).unwrap().is_none());
        drop(lock);
        assert!(!locks.is_held(&run));
        assert!(locks.take(&run).unwrap().is_some());
        let far = RunLocks::new(&Home::new(store.path().to_owned(), Some("s3://b/p".into())));
        assert!(locks.tell(&RunId("other".into())) && !far.tell(&RunId("other".into())));
        assert!(far.take(&run).unwrap().is_some() && far.tell(&run));
    }
}
