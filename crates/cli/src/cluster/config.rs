//! The services' TOML files. An unknown key is refused with its line; what stands in the environment goes before the file.

use crate::{failure::Failure, stores::CACHE_BYTES};
use rallrec_queue::nats::NatsSettings;
use rallrec_store::{BucketSettings, Location, S3Table};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

/// What both services need.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NatsConfig {
    /// Addresses of the servers.
    #[serde(default = "nats_servers")]
    pub(super) servers: Vec<String>,
    /// File with credentials.
    pub(super) credentials: Option<PathBuf>,
    /// File with certificates to trust.
    pub(super) ca: Option<PathBuf>,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self { servers: nats_servers(), credentials: None, ca: None }
    }
}

fn nats_servers() -> Vec<String> {
    vec!["nats://127.0.0.1:4222".into()]
}

fn cluster() -> String {
    "main".into()
}

/// `rallrec coordinator`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CoordinatorConfig {
    /// Tells clusters on one NATS server apart.
    #[serde(default = "cluster")]
    pub(super) cluster: String,
    /// The artifact store: `s3://BUCKET/PREFIX`, or a folder that every machine sees.
    pub(super) store: Location,
    /// How S3 is reached.
    #[serde(default)]
    pub(super) s3: S3Table,
    /// Where the gRPC interface listens.
    #[serde(default = "listen")]
    pub(super) listen: SocketAddr,
    /// Where people and other coordinators reach it, if not there.
    pub(super) address: Option<String>,
    /// Listen beyond this machine without TLS or without tokens.
    #[serde(default)]
    pub(super) insecure: bool,
    /// The interface's certificate.
    pub(super) tls: Option<TlsConfig>,
    /// File with the tokens that are accepted, one a line.
    pub(super) token_file: Option<PathBuf>,
    /// Named limits over all runs: tasks that are handed out at once.
    #[serde(default)]
    pub(super) limits: BTreeMap<String, NonZeroU32>,
    /// How NATS is reached.
    #[serde(default)]
    pub(super) nats: NatsConfig,
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsConfig {
    /// The certificate, with those between it and its authority's.
    pub(super) cert: PathBuf,
    /// Its private key.
    pub(super) key: PathBuf,
}

fn listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7070))
}

/// `rallrec worker`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkerConfig {
    /// Tells clusters on one NATS server apart.
    #[serde(default = "cluster")]
    pub(super) cluster: String,
    /// The artifact store: `s3://BUCKET/PREFIX`, or a folder that every machine sees.
    pub(super) store: Location,
    /// How S3 is reached.
    #[serde(default)]
    pub(super) s3: S3Table,
    /// Folder for parts of artifacts that were read: shared by the workers of a machine.
    pub(super) cache: Option<PathBuf>,
    /// The most that is kept there.
    #[serde(default = "cache_bytes")]
    pub(super) cache_bytes: u64,
    /// Pool that it belongs to.
    #[serde(default = "pool")]
    pub(super) pool: String,
    /// Tasks that it runs at once.
    #[serde(default = "slots")]
    pub(super) slots: u32,
    /// Where to compute: `auto`, `cpu` or `cuda:N`.
    #[serde(default = "device")]
    pub(super) device: String,
    /// Seconds that tasks have to end after the worker was told to stop.
    #[serde(default = "grace")]
    pub(super) grace_seconds: u64,
    /// How NATS is reached.
    #[serde(default)]
    pub(super) nats: NatsConfig,
}

fn cache_bytes() -> u64 {
    CACHE_BYTES
}

fn pool() -> String {
    "cpu".into()
}

fn slots() -> u32 {
    1
}

fn device() -> String {
    "auto".into()
}

fn grace() -> u64 {
    30
}

/// Reads a service's file.
///
/// # Errors
/// [`Failure::Unreachable`] when it cannot be read, [`Failure::Invalid`] with line and column when it is wrong.
pub(super) fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| Failure::Unreachable(format!("{name}: {e}")))?;
    toml::from_str(&text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start.min(text.len()));
        let before = &text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        Failure::Invalid(format!("{name}:{line}:{column}: {}", e.message()))
    })
}

/// Where S3 is and who asks: the environment, and where it says nothing the file.
///
/// # Errors
/// [`Failure::Unreachable`] when the file with the credentials cannot be read.
pub(super) fn buckets(environment: &BucketSettings, table: &S3Table) -> Result<BucketSettings, Failure> {
    environment.clone().or(table).map_err(|e| Failure::Unreachable(e.to_string()))
}

/// As the queue wants it.
pub(super) fn nats(config: &NatsConfig, cluster: &str, client: &str) -> NatsSettings {
    let servers = match std::env::var("RALLREC_NATS") {
        Ok(servers) if !servers.is_empty() => servers.split(',').map(|s| s.trim().to_owned()).collect(),
        _ => config.servers.clone(),
    };
    NatsSettings {
        servers,
        credentials: config.credentials.clone(),
        ca: config.ca.clone(),
        cluster: cluster.to_owned(),
        client: client.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<WorkerConfig, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.toml");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn a_file_that_names_the_store_is_enough() {
        let config = parse("store = \"/data/store\"\n").unwrap();
        assert_eq!((config.pool.as_str(), config.slots, config.cluster.as_str()), ("cpu", 1, "main"));
        assert_eq!(config.store, Location::Folder("/data/store".into()));
    }

    #[test]
    fn a_store_in_s3_has_its_table() {
        let config =
            parse("store = \"s3://b/team\"\n[s3]\nendpoint = \"http://s3:9000\"\npath_style = true\n").unwrap();
        assert_eq!(config.store.to_string(), "s3://b/team");
        assert_eq!(config.s3.endpoint.as_deref(), Some("http://s3:9000"));
        let refused = parse("store = \"s\"\n[s3]\nendpiont = 1\n").unwrap_err().to_string();
        assert!(refused.contains("worker.toml:3:1: unknown field `endpiont`"), "{refused}");
    }

    #[test]
    fn an_unknown_key_is_refused_at_its_place() {
        let refused = parse("store = \"s\"\nslotz = 2\n").unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(refused.to_string().contains("worker.toml:2:1: unknown field `slotz`"), "{refused}");
    }
}
