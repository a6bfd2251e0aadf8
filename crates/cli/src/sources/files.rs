//! Finding wanted files in what the user or a mirror gave: a folder, a zip or wheel, a tarball, or one file.

use super::SourceError;
use rallrec_core::key::hex;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::Command,
};

/// Folders are searched this deep: archives hold one folder, rarely two, above their files.
const MAX_DEPTH: usize = 6;

/// A file that may be a wanted one.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// Its name, without a folder; `None` for a single file that the user named, which may be called anything.
    pub name: Option<String>,
    /// Where it lies.
    pub path: PathBuf,
}

/// SHA-256 of a file, hexadecimal.
pub(super) fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Every file under `path` whose name is wanted. Archives are unpacked into `scratch`.
///
/// # Errors
/// When `path` cannot be read or unpacked.
pub(super) fn candidates(
    path: &Path,
    wanted: &BTreeSet<String>,
    scratch: &Path,
) -> Result<Vec<Candidate>, SourceError> {
    let meta = fs::metadata(path).map_err(SourceError::io(path))?;
    let mut found = Vec::new();
    if meta.is_dir() {
        walk(path, wanted, MAX_DEPTH, &mut found)?;
    } else if has_suffix(path, &[".zip", ".whl"]) {
        unzip(path, wanted, scratch, &mut found)?;
    } else if has_suffix(path, &[".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tar.zst"]) {
        untar(path, scratch)?;
        walk(scratch, wanted, MAX_DEPTH, &mut found)?;
    } else {
        found.push(Candidate { name: None, path: path.to_owned() });
    }
    Ok(found)
}

fn has_suffix(path: &Path, suffixes: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    suffixes.iter().any(|s| name.ends_with(s))
}

fn walk(folder: &Path, wanted: &BTreeSet<String>, depth: usize, found: &mut Vec<Candidate>) -> Result<(), SourceError> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).map_err(SourceError::io(folder))?.filter_map(|e| e.ok().map(|e| e.path())).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && depth > 0 {
            walk(&path, wanted, depth - 1, found)?;
        } else if wanted.contains(&name) && path.is_file() {
            found.push(Candidate { name: Some(name), path });
        }
    }
    Ok(())
}

/// Takes the wanted members only, under names of our own choosing: a member's path is never written to.
fn unzip(
    path: &Path,
    wanted: &BTreeSet<String>,
    scratch: &Path,
    found: &mut Vec<Candidate>,
) -> Result<(), SourceError> {
    let archive_error = |e: &dyn std::fmt::Display| SourceError::Archive { path: path.to_owned(), why: e.to_string() };
    fs::create_dir_all(scratch).map_err(SourceError::io(scratch))?;
    let file = File::open(path).map_err(SourceError::io(path))?;
    let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(|e| archive_error(&e))?;
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).map_err(|e| archive_error(&e))?;
        let Some(name) = member.enclosed_name().and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
        else {
            continue;
        };
        if member.is_file() && wanted.contains(&name) {
            let to = scratch.join(format!("{i}-{name}"));
            let mut out = File::create(&to).map_err(SourceError::io(&to))?;
            io::copy(&mut member, &mut out).map_err(|e| archive_error(&e))?;
            found.push(Candidate { name: Some(name), path: to });
        }
    }
    Ok(())
}

/// Unpacks with the machine's `tar`, which knows the compressions that it was built with and refuses paths that
/// lead out of the folder.
fn untar(path: &Path, scratch: &Path) -> Result<(), SourceError> {
    fs::create_dir_all(scratch).map_err(SourceError::io(scratch))?;
    let output = Command::new("tar").arg("-xf").arg(path).arg("-C").arg(scratch).output().map_err(|e| {
        SourceError::Archive { path: path.to_owned(), why: format!("the `tar` command does not start: {e}") }
    })?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(SourceError::Archive { path: path.to_owned(), why })
}
