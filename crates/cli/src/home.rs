//! The home folder: sources, the default store, run locks, and the cache of a store that is elsewhere. Everything that `rallrec` leaves on a machine is here.

use rallrec_store::Location;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where things lie.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
    store: Location,
}

impl Home {
    /// Home at `root`, with its store elsewhere if `store` is given.
    pub fn new(root: PathBuf, store: Option<PathBuf>) -> Self {
        let store = Location::from(store.unwrap_or_else(|| root.join("store")));
        Self { root, store }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The artifact store.
    pub fn store(&self) -> &Location {
        &self.store
    }

    /// Parts of artifacts of a store that is not on this machine.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Folder of pulled sources.
    pub fn sources(&self) -> PathBuf {
        self.root.join("sources")
    }

    /// Remembered digests of `file:` sources.
    pub fn digests(&self) -> PathBuf {
        self.root.join("digests.json")
    }
}

/// Writes a file so that readers see the old content or the new, never a part.
///
/// # Errors
/// When the folder cannot be made or the disk refuses.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    fs::write(&new, bytes)?;
    fs::rename(&new, path)
}
