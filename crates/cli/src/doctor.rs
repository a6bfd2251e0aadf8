//! `doctor`: looks at this machine and says what is missing, with the command that fixes it.
//!
//! It changes nothing but probes in home and store, which it removes, and uses the network for a store in S3 only. What
//! the services of a cluster need is checked in `cluster::doctor`.

use crate::{
    clock,
    console::{Console, Mark, bytes},
    failure::Failure,
    run::Place,
    sources::{Role, Sources},
};
use rallrec_core::ids::TimeMs;
use rallrec_store::{BucketSettings, Location, Store};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// What `pipelines/quickstart.yaml` needs, with room: sources, artifacts and the store's parts.
const DISK_NEEDED: u64 = 2_000_000_000;
/// What the small model with its working memory and a data set need.
const MEMORY_NEEDED: u64 = 3_000_000_000;

/// A clock that differs from S3's by more than this is worth a word; from the second on S3 refuses every request.
const SKEW: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(900));
/// Patience with S3's answer about the time.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There.
    Ok,
    /// Not there, and not needed.
    Note,
    /// Not there, and needed.
    Missing,
}

/// One line of the answer.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    what: &'static str,
    pub(crate) state: State,
    detail: String,
    fix: Option<String>,
}

impl Check {
    pub(crate) fn new(what: &'static str, state: State, detail: impl Into<String>) -> Self {
        Self { what, state, detail: detail.into(), fix: None }
    }

    pub(crate) fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }
}

/// Looks at everything and prints a line each.
///
/// # Errors
/// [`Failure::Unreachable`] when something that is needed is missing.
pub async fn examine(place: &Place, console: &Console) -> Result<(), Failure> {
    let home = &place.home;
    let mut checks = vec![writable(home.root(), "home")];
    match home.store() {
        Location::Folder(folder) => checks.extend([writable(folder, "store"), disk(folder)]),
        location @ Location::Bucket { .. } => {
            checks.push(disk(home.root()));
            checks.extend(store(location, &place.buckets).await);
        }
    }
    checks.extend([memory(), processor(), device()]);
    checks.extend(programs());
    checks.extend(catalogue(&place.sources));
    told(&checks, console)
}

/// Prints a line a check.
///
/// # Errors
/// [`Failure::Unreachable`] when something that is needed is missing.
pub(crate) fn told(checks: &[Check], console: &Console) -> Result<(), Failure> {
    for check in checks {
        let (mark, word) = match check.state {
            State::Ok => (Mark::Green, "ok     "),
            State::Note => (Mark::Dim, "note   "),
            State::Missing => (Mark::Red, "missing"),
        };
        console.print(&format!("{}  {:<14} {}", console.mark(mark, word), check.what, check.detail));
        if let Some(fix) = &check.fix {
            console.print(&format!("         {:<14} fix: {}", "", console.mark(Mark::Bold, fix)));
        }
    }
    match checks.iter().filter(|c| c.state == State::Missing).count() {
        0 => Ok(()),
        n => Err(Failure::Unreachable(format!("{n} of {} checks found something missing", checks.len()))),
    }
}

pub(crate) fn writable(folder: &Path, what: &'static str) -> Check {
    let probe = folder.join(format!(".doctor-{}", std::process::id()));
    let tried =
        fs::create_dir_all(folder).and_then(|()| fs::write(&probe, b"probe")).and_then(|()| fs::remove_file(&probe));
    match tried {
        Ok(()) => Check::new(what, State::Ok, format!("{} is writable", folder.display())),
        Err(e) => Check::new(what, State::Missing, format!("{} cannot be written: {e}", folder.display()))
            .fix(format!("rallrec --{what} FOLDER doctor, with a folder of your own")),
    }
}

/// Whether a store does what it must: a folder creates only what is absent; S3 too, and takes large objects in pieces, and
/// its clock is near ours.
pub(crate) async fn store(location: &Location, buckets: &BucketSettings) -> Vec<Check> {
    let probe = clock::new_run_id().0;
    let opened = match Store::open(location, buckets, &probe).await {
        Ok(store) => store,
        // What is wrong, and what to do, are one sentence.
        Err(e) => return vec![Check::new("store", State::Missing, e.to_string())],
    };
    let mut checks = vec![Check::new("store", State::Ok, format!("{location} creates only what is absent"))];
    if location.folder().is_none() {
        checks.push(match opened.check_pieces(&probe).await {
            Ok(()) => Check::new("multipart", State::Ok, "large objects go up in pieces and come back by range"),
            Err(e) => Check::new("multipart", State::Missing, e.to_string()).fix(
                "use a server with multipart uploads and range requests, and credentials that may use them; check proxies before it",
            ),
        });
        let endpoint = buckets.endpoint();
        let asked = tokio::task::spawn_blocking(move || (date(&endpoint), clock::now())).await;
        let (there, here) = asked.unwrap_or((None, TimeMs(0)));
        checks.push(skew(there, here));
    }
    checks
}

/// What time a server has.
fn date(endpoint: &str) -> Option<TimeMs> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build().into();
    let answer = agent.get(endpoint).call().ok()?;
    clock::from_http(answer.headers().get("date")?.to_str().ok()?)
}

fn skew(there: Option<TimeMs>, here: TimeMs) -> Check {
    let Some(there) = there else {
        return Check::new("clock", State::Note, "S3 does not say what time it has");
    };
    let apart = Duration::from_millis(there.0.abs_diff(here.0));
    let detail = format!("{} s apart from S3's", apart.as_secs());
    match apart {
        _ if apart <= SKEW.0 => Check::new("clock", State::Ok, detail),
        _ if apart <= SKEW.1 => Check::new("clock", State::Note, detail).fix("sudo timedatectl set-ntp true"),
        _ => Check::new(
            "clock",
            State::Missing,
            format!("{detail}: S3 refuses signatures that are older than 15 minutes"),
        )
        .fix("sudo timedatectl set-ntp true, here and where S3 runs"),
    }
}

pub(crate) fn disk(folder: &Path) -> Check {
    match free(folder) {
        Some(free) if free >= DISK_NEEDED => Check::new("disk", State::Ok, format!("{} free", bytes(free))),
        Some(free) => {
            Check::new("disk", State::Missing, format!("{} free, {} are wanted", bytes(free), bytes(DISK_NEEDED)))
                .fix("rallrec --home FOLDER doctor, with a folder on a larger disk")
        }
        None => Check::new("disk", State::Note, "free space is unknown: `df` gave no answer"),
    }
}

/// Bytes that are free where a folder is, as far as the system tells.
pub(crate) fn free(folder: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(folder).stderr(Stdio::null()).output();
    output.ok().and_then(|o| free_bytes(&String::from_utf8_lossy(&o.stdout)))
}

/// The fourth number of `df -Pk`'s second line, in bytes.
fn free_bytes(df: &str) -> Option<u64> {
    df.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

pub(crate) fn memory() -> Check {
    match fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_memory(&text)) {
        Some(free) if free >= MEMORY_NEEDED => Check::new("memory", State::Ok, format!("{} available", bytes(free))),
        Some(free) => Check::new(
            "memory",
            State::Missing,
            format!("{} available, {} are wanted", bytes(free), bytes(MEMORY_NEEDED)),
        )
        .fix("close other programs, or run with --slots 1"),
        None => Check::new("memory", State::Note, "available memory is unknown on this system"),
    }
}

fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

pub(crate) fn processor() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    #[cfg(target_arch = "x86_64")]
    let features: Vec<&str> = [
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
    ]
    .iter()
    .filter_map(|(name, there)| there.then_some(*name))
    .collect();
    #[cfg(not(target_arch = "x86_64"))]
    let features: Vec<&str> = vec![std::env::consts::ARCH];
    let speed =
        if features.is_empty() { "no vector instructions that are used: slow".to_owned() } else { features.join(", ") };
    Check::new("processor", State::Ok, format!("{cores} cores; {speed}"))
}

pub(crate) fn device() -> Check {
    let card = Command::new("nvidia-smi").arg("-L").stdin(Stdio::null()).stderr(Stdio::null()).output().ok();
    let card = card
        .filter(|o| o.status.success())
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        .filter(|t| !t.is_empty());
    match (card, cfg!(feature = "cuda")) {
        (None, _) => Check::new("cuda", State::Note, "no NVIDIA device; everything is computed on the CPU"),
        (Some(card), false) => Check::new("cuda", State::Note, format!("not in this build, but there is {card}"))
            .fix("cargo install --path crates/cli --features cuda"),
        (Some(card), true) => match rallrec_llm::pick_device("cuda:0") {
            Ok(_) => Check::new("cuda", State::Ok, card),
            Err(e) => Check::new("cuda", State::Missing, format!("{card}, but {e}"))
                .fix("install the NVIDIA driver and CUDA toolkit, or run with --device cpu"),
        },
    }
}

/// Programs that only pulling needs: without them it still works from the official addresses.
fn programs() -> Vec<Check> {
    let pip =
        Command::new("python3").args(["-m", "pip", "--version"]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let pip = pip.ok().filter(|o| o.status.success());
    let pip = match pip {
        Some(output) => {
            let version = String::from_utf8_lossy(&output.stdout);
            let words: Vec<&str> = version.split_whitespace().take(2).collect();
            Check::new("python3, pip", State::Ok, format!("{}: package mirrors can be used", words.join(" ")))
        }
        None => Check::new(
            "python3, pip",
            State::Note,
            "not here; sources can only be pulled from their official addresses",
        )
        .fix("sudo apt install python3-pip"),
    };
    let tar =
        Command::new("tar").arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let tar = match tar {
        Ok(status) if status.success() => Check::new("tar", State::Ok, "--from takes tarballs"),
        _ => Check::new("tar", State::Note, "not here; --from takes folders and zip files only")
            .fix("sudo apt install tar xz-utils"),
    };
    vec![pip, tar]
}

/// Sources that are not here yet are no fault: `run` pulls what it needs.
fn catalogue(sources: &Sources) -> Vec<Check> {
    let mut checks = Vec::new();
    for role in [Role::Data, Role::Model] {
        for entry in sources.entries(role) {
            let what = if role == Role::Data { "data" } else { "model" };
            checks.push(match sources.pulled(&entry.name, false) {
                Ok(Some(record)) => Check::new(what, State::Ok, format!("{} ({}) is here", entry.name, record.variant)),
                Ok(None) => Check::new(
                    what,
                    State::Note,
                    format!("{} is not here; `run` pulls it when a pipeline names it", entry.name),
                )
                .fix(format!("rallrec {} pull {}", role.command(), entry.name)),
                Err(e) => Check::new(what, State::Missing, e.to_string()).fix(format!(
                    "rm -r {}; rallrec {} pull {}",
                    sources.folder(&entry.name).display(),
                    role.command(),
                    entry.name
                )),
            });
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn df_and_meminfo_are_read() {
        let df = "Filesystem     1024-blocks     Used Available Capacity Mounted on\noverlay           61202244 41202244  20000000      68% /\n";
        assert_eq!(free_bytes(df), Some(20_480_000_000));
        assert_eq!(free_bytes("df: no such file"), None);
        let meminfo = "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:   12000000 kB\n";
        assert_eq!(available_memory(meminfo), Some(12_288_000_000));
        assert_eq!(available_memory("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn clocks_are_compared() {
        let at = |seconds: u64| TimeMs(seconds * 1000);
        for (there, here, wanted) in [
            (Some(at(5000)), at(5010), State::Ok),
            (Some(at(5000)), at(5100), State::Note),
            (Some(at(5100)), at(4000), State::Missing),
            (None, at(0), State::Note),
        ] {
            assert_eq!(skew(there, here).state, wanted);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_missing_with_a_fix() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        assert_eq!(writable(folder.path(), "home").state, State::Ok);
        let check = writable(&file.join("below"), "home");
        assert_eq!(check.state, State::Missing);
        assert!(check.fix.is_some());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
