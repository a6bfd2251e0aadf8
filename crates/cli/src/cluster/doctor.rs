//! `doctor --config`: what a service of a cluster needs, checked as the service will use it.

use super::config::{self, COORDINATOR_VARIABLES, CoordinatorConfig, NatsConfig, WORKER_VARIABLES, WorkerConfig};
use crate::{
    clock,
    console::{Console, bytes},
    doctor::{self, Check, State},
    failure::Failure,
    run::Place,
    stores,
};
use rallrec_queue::nats::{self, NatsServerFacts, Sync};
use rallrec_store::{BucketSettings, Location, S3Table};
use std::path::Path;

/// Keys that only a coordinator has.
const COORDINATORS: [&str; 3] = ["listen", "address", "insecure"];

/// Looks at everything that the service with this file needs, and prints a line each.
///
/// # Errors
/// When the file is wrong; [`Failure::Unreachable`] when something that is needed is missing.
pub async fn doctor(place: &Place, path: &Path, console: &Console) -> Result<(), Failure> {
    let checks = if is_coordinators(path) {
        let config: CoordinatorConfig = config::read_service(path, COORDINATOR_VARIABLES)?;
        let mut checks = shared(place, &config.nats, &config.cluster, &config.store, &config.s3).await?;
        checks.push(doctor::memory());
        checks
    } else {
        let config: WorkerConfig = config::read_service(path, WORKER_VARIABLES)?;
        let mut checks = shared(place, &config.nats, &config.cluster, &config.store, &config.s3).await?;
        checks.extend([doctor::writable(place.home.root(), "home"), doctor::disk(place.home.root())]);
        let cache = stores::cache(&config.store, &place.home, config.cache.as_deref(), config.cache_bytes);
        checks.extend(
            cache.map(|cache| room(doctor::writable(&cache.folder, "cache"), cache.bytes, doctor::free(&cache.folder))),
        );
        checks.extend([doctor::memory(), doctor::processor(), doctor::device(), device(&config.device)]);
        checks
    };
    doctor::told(&checks, console)
}

/// A cache that can be written, and whether it may become as large as it may be.
fn room(check: Check, wanted: u64, free: Option<u64>) -> Check {
    match free {
        Some(free) if check.state == State::Ok && free < wanted => {
            let detail = format!("it may hold {}, and {} are free there", bytes(wanted), bytes(free));
            Check::new("cache", State::Note, detail)
                .fix("set a smaller cache_bytes, or name a folder on another disk with cache")
        }
        _ => check,
    }
}

/// Whether a file is a coordinator's: by its keys, or where they do not tell by its name.
fn is_coordinators(path: &Path) -> bool {
    let table = std::fs::read_to_string(path).ok().and_then(|text| text.parse::<toml::Table>().ok());
    let by_key = table.is_some_and(|table| COORDINATORS.iter().any(|key| table.contains_key(*key)));
    by_key || path.file_name().is_some_and(|name| name.to_string_lossy().contains("coordinator"))
}

/// What both services need.
async fn shared(
    place: &Place,
    nats: &NatsConfig,
    cluster: &str,
    store: &Location,
    s3: &S3Table,
) -> Result<Vec<Check>, Failure> {
    let settings = config::nats(nats, cluster, &format!("doctor-{}", clock::new_run_id()));
    let mut checks = queue(nats::examine(&settings).await, &settings.servers.join(","));
    let buckets: BucketSettings = config::buckets(&place.buckets, s3)?;
    checks.extend(doctor::store(store, &buckets).await);
    checks.extend(store.folder().map(doctor::disk));
    Ok(checks)
}

/// What the NATS server is like.
fn queue(found: Result<NatsServerFacts, rallrec_queue::QueueError>, servers: &str) -> Vec<Check> {
    let facts = match found {
        Ok(facts) => facts,
        Err(e) => {
            return vec![
                Check::new("nats", State::Missing, e.to_string())
                    .fix("nats-server -js, 2.12 or later, at one of the addresses of [nats] servers or RALLREC_NATS"),
            ];
        }
    };
    let server = Check::new("nats", State::Ok, format!("{servers}: version {}, JetStream is on", facts.version));
    let cost = "a power cut may lose messages, which costs time and no result";
    let sync = match facts.sync {
        Some(Sync::Always) => Check::new("nats sync", State::Ok, "every message is synced to the disk"),
        Some(Sync::Every(time)) => Check::new("nats sync", State::Note, format!("every {} s: {cost}", time.as_secs())),
        None => Check::new("nats sync", State::Note, format!("the server does not tell clients; by default {cost}")),
    };
    let mended = "to have none lost: jetstream { sync_interval: always } in nats-server's file";
    vec![server, if facts.sync == Some(Sync::Always) { sync } else { sync.fix(mended) }]
}

/// The device that a worker's file names.
fn device(name: &str) -> Check {
    match rallrec_llm::pick_device(name) {
        Ok(_) => Check::new("device", State::Ok, format!("device = \"{name}\" can be used")),
        Err(e) => Check::new("device", State::Missing, format!("device = \"{name}\": {e}"))
            .fix("install the NVIDIA driver and CUDA toolkit and a build with CUDA, or set device = \"cpu\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_coordinators_by_its_keys_or_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            is_coordinators(&path)
        };
        assert!(file("a.toml", "store = \"s\"\nlisten = \"127.0.0.1:0\"\n"));
        assert!(file("coordinator.toml", "store = \"s\"\n"));
        assert!(!file("worker.toml", "store = \"s\"\npool = \"gpu\"\n"));
    }

    #[test]
    fn a_server_that_syncs_now_and_then_is_only_noted() {
        let facts = |sync| Ok(NatsServerFacts { version: "2.15.1".into(), sync });
        for sync in [None, Some(Sync::Every(std::time::Duration::from_secs(120))), Some(Sync::Always)] {
            assert!(queue(facts(sync), "nats://h").iter().all(|check| check.state != State::Missing));
        }
        let away = Err(rallrec_queue::QueueError::Unreachable("nats://h: refused".into()));
        assert_eq!(queue(away, "nats://h")[0].state, State::Missing);
    }
}
