//! `coordinator` and `worker`: the two services, until they are told to stop.

use super::{
    config::{self, COORDINATOR_VARIABLES, CoordinatorConfig, WORKER_VARIABLES, WorkerConfig},
    memory::Memory,
};
use crate::{clock, console::Console, embedded::Signals, failure::Failure, run::Place, sources::DigestCache, stores};
use rallrec_coordinator::cluster::{ClusterError, ClusterSettings, Coordinator, LeaderError, Tls, Tokens};
use rallrec_core::{ids::WorkerId, plan::PinnedSource};
use rallrec_queue::{
    QueueError,
    nats::{NatsCoordinator, NatsWorker},
};
use rallrec_stages::{Cancel, ModelCache, StageError};
use rallrec_worker::{Board, Places, Profile, Worker};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// Least time between two progress reports of a task; beats tell it as well.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// Runs a coordinator until SIGTERM or Ctrl-C.
///
/// # Errors
/// When its file is wrong, or NATS, the store or the address cannot be had.
pub async fn coordinator(place: &Place, path: &Path, console: &Console) -> Result<(), Failure> {
    let stop = stop_signal();
    let config: CoordinatorConfig = config::read_service(path, COORDINATOR_VARIABLES)?;
    let (tls, tokens) = access(&config, path, console)?;
    let name = format!("{}-{}", host(), clock::new_run_id());
    let settings = ClusterSettings {
        nats: config::nats(&config.nats, &config.cluster, &name),
        name,
        listen: config.listen,
        address: config.address,
        tls,
        tokens,
    };
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let store = stores::checked(&config.store, &config::buckets(&place.buckets, &config.s3)?).await?;
    // Says what is wrong with NATS before anybody waits.
    NatsCoordinator::connect(&settings.nats).await.map_err(unreachable)?;
    let coordinator = Coordinator::bind(store, settings).await.map_err(cluster_failure)?;
    if let Ok(address) = coordinator.address() {
        console.note(&format!("coordinator of cluster {} on {scheme}://{address}", config.cluster));
    }
    coordinator.serve(stop).await.map_err(cluster_failure)
}

/// Who may speak to it. Beyond this machine nobody may unless it has both TLS and tokens, or is told to let everybody.
fn access(config: &CoordinatorConfig, path: &Path, console: &Console) -> Result<(Option<Tls>, Tokens), Failure> {
    let read = |file: &Path| std::fs::read(file).map_err(|e| Failure::Unreachable(format!("{}: {e}", file.display())));
    let tls = match &config.tls {
        Some(tls) => Some(Tls::new(read(&tls.cert)?, read(&tls.key)?)),
        None => None,
    };
    let tokens = match &config.token_file {
        Some(file) => {
            let text = String::from_utf8_lossy(&read(file)?).into_owned();
            Tokens::read(&text).map_err(|e| Failure::Invalid(format!("{}: {e}", file.display())))?
        }
        None => Tokens::default(),
    };
    if config.listen.ip().is_loopback() || (tls.is_some() && tokens.are_asked()) {
        return Ok((tls, tokens));
    }
    let missing = match (&tls, tokens.are_asked()) {
        (None, false) => "TLS and a token",
        (None, true) => "TLS",
        (Some(_), _) => "a token",
    };
    if !config.insecure {
        return Err(Failure::Invalid(format!(
            "{}: `listen = \"{}\"` is reachable from other machines without {missing}: give `[tls] cert, key` and `token_file`, listen on 127.0.0.1, or accept the risk with `insecure = true`",
            path.display(),
            config.listen
        )));
    }
    console.warn(&format!("{} is reachable from other machines without {missing}", config.listen));
    Ok((tls, tokens))
}

/// Runs a worker until SIGTERM or Ctrl-C, then drains it.
///
/// # Errors
/// When its file is wrong, or NATS or the store cannot be had.
pub async fn worker(place: &Place, path: &Path, console: &Console) -> Result<(), Failure> {
    let stop = stop_signal();
    let config: WorkerConfig = config::read_service(path, WORKER_VARIABLES)?;
    let device = rallrec_llm::pick_device(&config.device).map_err(|e| Failure::Unreachable(e.to_string()))?;
    let id = WorkerId(format!("{}-{}", host(), clock::new_run_id()));
    let buckets = config::buckets(&place.buckets, &config.s3)?;
    let cache = stores::cache(&config.store, &place.home, config.cache.as_deref(), config.cache_bytes);
    let store = stores::with_cache(stores::checked(&config.store, &buckets).await?, cache)?;
    let place = Place { sources: place.sources.clone().with_buckets(buckets), ..place.clone() };
    let queue = NatsWorker::connect(&config::nats(&config.nats, &config.cluster, &id.0)).await.map_err(unreachable)?;
    let words = queue.words();
    let memory = Memory::of(&config)?;
    let worker = Worker {
        store,
        queue: Arc::new(queue),
        device,
        models: Arc::new(ModelCache::with_limit(memory.models_mb << 20)),
        tables: Arc::default(),
        sources: Arc::new(MachinePlaces { place, fetching: Mutex::new(()) }),
        cancel: Cancel::default(),
        board: Board::default(),
        progress_every: PROGRESS_EVERY,
        words: Some(words.clone()),
    };
    let profile = Profile {
        id: id.clone(),
        host: host(),
        pool: config.pool.clone(),
        slots: config.slots,
        memory_mb: memory.host_mb,
        gpu_memory_mb: memory.gpu_mb,
        grace: Duration::from_secs(config.grace_seconds),
    };
    console.note(&format!("worker {id} of cluster {}, pool {}, {} slots", config.cluster, config.pool, config.slots));
    rallrec_worker::serve(worker, words, profile, stop).await.map_err(unreachable)
}

/// Sources on this machine, pulled when a task first needs them.
struct MachinePlaces {
    place: Place,
    /// One fetch at a time: two slots that want one source would pull it twice.
    fetching: Mutex<()>,
}

impl Places for MachinePlaces {
    fn place(&self, source: &PinnedSource) -> Result<PathBuf, StageError> {
        let _fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        let failed =
            |e: &dyn std::fmt::Display| StageError::Transient(format!("{} ({}): {e}", source.name, source.source));
        let (digest, path) = match source.source.strip_prefix("file:") {
            Some(path) => {
                let path = PathBuf::from(path);
                let mut cache = DigestCache::open(self.place.home.digests());
                let digest = cache.digest(&path).map_err(|e| failed(&e))?;
                cache.save();
                (digest, path)
            }
            None => {
                let sources = &self.place.sources;
                let here = sources.pulled(&source.source, false).map_err(|e| failed(&e))?;
                let record = match here {
                    Some(record) => record,
                    None => sources.pull(&source.source, None, &|_| {}).map_err(|e| failed(&e))?,
                };
                let folder = sources.folder(&source.source);
                let path = match record.files.as_slice() {
                    [file] => folder.join(&file.name),
                    _ => folder,
                };
                (record.digest, path)
            }
        };
        if digest == source.digest {
            return Ok(path);
        }
        Err(failed(&format!(
            "its SHA-256 here is {digest}, and the run was planned with {}; pull it anew, or submit the pipeline again",
            source.digest
        )))
    }
}

fn unreachable(error: QueueError) -> Failure {
    match error {
        QueueError::Refused(why) => Failure::Invalid(format!("NATS: {why}")),
        other => Failure::Unreachable(format!("NATS: {other}")),
    }
}

fn cluster_failure(error: ClusterError) -> Failure {
    match error {
        ClusterError::Leader(LeaderError::Store(error)) => error.into(),
        ClusterError::Leader(LeaderError::Queue(error)) => unreachable(error),
        ClusterError::Listen { .. } => Failure::Unreachable(error.to_string()),
        ClusterError::Tls(_) => Failure::Invalid(error.to_string()),
        other => Failure::Other(other.into()),
    }
}

/// Turns true at the first SIGTERM or Ctrl-C; the second ends the process.
fn stop_signal() -> watch::Receiver<bool> {
    let (stop, stopped) = watch::channel(false);
    let mut signals = Signals::caught();
    tokio::spawn(async move {
        if signals.next().await {
            stop.send_replace(true);
        }
        if signals.next().await {
            std::process::exit(130);
        }
    });
    stopped
}

/// This machine's name, as far as it can stand in a subject.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String =
        name.trim().chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    if name.is_empty() { "host".into() } else { name }
}
