//! One file over HTTP into `*.part`, resumed where an earlier try stopped, accepted only with the pinned SHA-256.
//!
//! What is on disk is trusted for its length only: the sum is taken over the whole file at the end, and a file that
//! was resumed and comes out wrong is fetched once more from the start. A file of which nobody knows the sum is never
//! resumed.

use super::{files::sha256_of, record};
use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

/// How long to wait for a server.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection, and for the name before it.
    pub connect: Duration,
    /// For the next bytes.
    pub silence: Duration,
}

impl Default for Patience {
    /// Short for connecting, so that a machine without a network soon tries the next mirror.
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), silence: Duration::from_secs(30) }
    }
}

/// What to fetch.
pub(super) struct Wanted<'a> {
    /// Where from.
    pub url: &'a str,
    /// SHA-256 that it must have, hexadecimal; `None` where nobody says, and then it is fetched in one piece.
    pub sha256: Option<&'a str>,
    /// Bytes that it must have.
    pub bytes: u64,
    /// Value of the header of that name. It is not sent on to where a redirect leads.
    pub authorization: Option<&'a str>,
}

/// Where a file is gathered that is called `name`: a place of its own for each content, whatever names it has
/// (`identity`: source, version and path, say).
pub(super) fn part(downloads: &Path, name: &str, identity: &[&str]) -> PathBuf {
    let of = record::digest(identity.iter().map(|word| (*word, "")));
    downloads.join(format!("{}-{name}.part", &of[..16]))
}

/// Most requests for one file: each resumes the one before, and one that brings nothing ends the try.
const MAX_REQUESTS: u32 = 50;

/// Fetches into `part` and checks it. On failure `part` stays if it is worth resuming.
///
/// # Errors
/// One line that says why.
pub(super) fn fetch(
    wanted: &Wanted<'_>,
    part: &Path,
    patience: Patience,
    on_bytes: &dyn Fn(u64, u64),
) -> Result<(), String> {
    let mut whole = length(part) == 0;
    if wanted.sha256.is_none() && part.exists() {
        fs::remove_file(part).map_err(|e| format!("{}: {e}", part.display()))?;
    }
    loop {
        fill(wanted, part, patience, on_bytes)?;
        let Some(pinned) = wanted.sha256 else { return Ok(()) };
        let sha256 = sha256_of(part).map_err(|e| format!("{}: {e}", part.display()))?;
        if sha256 == pinned {
            return Ok(());
        }
        fs::remove_file(part).map_err(|e| format!("{}: {e}", part.display()))?;
        if whole {
            return Err(format!("content has SHA-256 {sha256}, pinned is {pinned}"));
        }
        whole = true;
    }
}

/// Makes `part` as long as it must be.
fn fill(wanted: &Wanted<'_>, part: &Path, patience: Patience, on_bytes: &dyn Fn(u64, u64)) -> Result<(), String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_resolve(Some(patience.connect))
        .timeout_connect(Some(patience.connect))
        .timeout_recv_response(Some(patience.silence))
        .timeout_per_read(Some(patience.silence))
        .user_agent(concat!("rallrec/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    if length(part) > wanted.bytes {
        fs::remove_file(part).map_err(|e| format!("{}: {e}", part.display()))?;
    }
    for _ in 0..MAX_REQUESTS {
        let before = if wanted.sha256.is_some() { length(part) } else { 0 };
        if before == wanted.bytes && part.exists() {
            return Ok(());
        }
        let result = request(&agent, wanted, part, before, on_bytes);
        let after = length(part);
        match result {
            Ok(()) if after == wanted.bytes => return Ok(()),
            Ok(()) if after > wanted.bytes => {
                fs::remove_file(part).map_err(|e| format!("{}: {e}", part.display()))?;
                return Err(format!("sends more than the pinned {} bytes", wanted.bytes));
            }
            Err(why) if after <= before => return Err(why),
            Ok(()) if after <= before => return Err(format!("ended at {after} of {} bytes", wanted.bytes)),
            // Cut off, but it brought something: ask for the rest.
            Ok(()) | Err(_) => {}
        }
    }
    Err(format!("cut off {MAX_REQUESTS} times, {} of {} bytes are kept", length(part), wanted.bytes))
}

/// One request for the bytes from `have` on, appended to `part`.
fn request(
    agent: &ureq::Agent,
    wanted: &Wanted<'_>,
    part: &Path,
    have: u64,
    on_bytes: &dyn Fn(u64, u64),
) -> Result<(), String> {
    let mut request = agent.get(wanted.url);
    if let Some(authorization) = wanted.authorization {
        request = request.header("authorization", authorization);
    }
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let response = match request.call() {
        Ok(response) => response,
        Err(ureq::Error::StatusCode(416)) => {
            fs::remove_file(part).map_err(|e| format!("{}: {e}", part.display()))?;
            return Err("has fewer bytes than were already fetched".into());
        }
        Err(ureq::Error::StatusCode(status)) => return Err(format!("HTTP status {status}")),
        Err(e) => return Err(e.to_string()),
    };
    let content_range = response.headers().get("content-range").and_then(|v| v.to_str().ok());
    let resumed = response.status() == 206 && content_range.is_some_and(|r| r.starts_with(&format!("bytes {have}-")));
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(resumed)
        .truncate(!resumed)
        .open(part)
        .map_err(|e| format!("{}: {e}", part.display()))?;
    let mut done = if resumed { have } else { 0 };
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 256 * 1024];
    on_bytes(done, wanted.bytes);
    while done <= wanted.bytes {
        let read = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(format!("cut off after {done} of {} bytes: {e}", wanted.bytes)),
        };
        file.write_all(&buffer[..read]).map_err(|e| format!("{}: {e}", part.display()))?;
        done += read as u64;
        on_bytes(done.min(wanted.bytes), wanted.bytes);
    }
    Ok(())
}

pub(super) fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.len())
}
