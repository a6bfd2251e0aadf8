//! The services' TOML files. An unknown key is refused with its line; what stands in the environment goes before the file.
//!
//! Every key has a variable: `RALLREC_COORDINATOR_` or `RALLREC_WORKER_` and the key in capitals, with `__` for the dot of a table
//! (`RALLREC_WORKER_SLOTS=4`, `RALLREC_WORKER_S3__REGION=eu-north-1`). Its value is TOML where it is that, and text otherwise.

use crate::{failure::Failure, stores::CACHE_BYTES};
use rallrec_queue::nats::NatsSettings;
use rallrec_store::{BucketSettings, Location, S3Table};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
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
    /// Host memory that tasks may count on, in MiB; the machine's, or the container's, if it is not said.
    pub(super) memory_mb: Option<u64>,
    /// Memory of the accelerator, in MiB; asked of its driver if it is not said.
    pub(super) gpu_memory_mb: Option<u64>,
    /// The most that models' weights may take, in MiB; three quarters of the device's memory if it is not said.
    pub(super) model_memory_mb: Option<u64>,
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

/// What each service's variables begin with.
pub(super) const COORDINATOR_VARIABLES: &str = "RALLREC_COORDINATOR_";
/// See [`COORDINATOR_VARIABLES`].
pub(super) const WORKER_VARIABLES: &str = "RALLREC_WORKER_";

/// Reads a service's file; variables whose names begin with `prefix` go before it.
///
/// # Errors
/// [`Failure::Unreachable`] when it cannot be read, [`Failure::Invalid`] with line and column, or the variables, when it is wrong.
pub(super) fn read_service<T: for<'a> Deserialize<'a>>(path: &Path, prefix: &str) -> Result<T, Failure> {
    let told =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let told = told.filter(|(name, value)| name.starts_with(prefix) && !value.is_empty());
    with_variables(path, prefix, told.collect())
}

fn with_variables<T: for<'a> Deserialize<'a>>(
    path: &Path,
    prefix: &str,
    told: BTreeMap<String, String>,
) -> Result<T, Failure> {
    let alone = read(path);
    if told.is_empty() || matches!(alone, Err(Failure::Unreachable(_))) {
        return alone;
    }
    let mut table: toml::Table = read(path)?;
    for (name, value) in &told {
        let key = name.trim_start_matches(prefix).to_lowercase();
        let (tables, key) = key.rsplit_once("__").map_or((None, key.as_str()), |(tables, key)| (Some(tables), key));
        let mut place = &mut table;
        for part in tables.into_iter().flat_map(|tables| tables.split("__")) {
            let entry = place.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            place = entry.as_table_mut().ok_or_else(|| Failure::Invalid(format!("{name}: `{part}` is no table")))?;
        }
        place.insert(key.to_owned(), variable(value));
    }
    // What is wrong in the file is told with its place, also when variables are there.
    table.try_into().map_err(|error: toml::de::Error| match alone {
        Err(wrong) if !wrong.to_string().contains("missing field") => wrong,
        _ => {
            let names: Vec<&str> = told.keys().map(String::as_str).collect();
            Failure::Invalid(format!("{} with {}: {}", path.display(), names.join(", "), error.message()))
        }
    })
}

/// A variable's value as TOML: a number, a truth value, an array; anything else is text.
fn variable(value: &str) -> toml::Value {
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut table| table.remove("v"));
    parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()))
}

/// Reads a file.
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
    fn variables_go_before_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.toml");
        let read = |text: &str, told: &[(&str, &str)]| {
            std::fs::write(&path, text).unwrap();
            let told = told.iter().map(|(name, value)| (format!("{WORKER_VARIABLES}{name}"), (*value).to_owned()));
            with_variables::<WorkerConfig>(&path, WORKER_VARIABLES, told.collect())
        };
        let told = [
            ("STORE", "s3://b/team"),
            ("SLOTS", "4"),
            ("POOL", "gpu"),
            ("S3__PATH_STYLE", "true"),
            ("NATS__SERVERS", "[\"nats://a:4222\", \"nats://b:4222\"]"),
        ];
        let config = read("slots = 2\n[s3]\nendpoint = \"http://s3\"\n", &told).unwrap();
        assert_eq!((config.slots, config.pool.as_str(), config.store.to_string().as_str()), (4, "gpu", "s3://b/team"));
        assert_eq!((config.s3.path_style, config.s3.endpoint.as_deref()), (Some(true), Some("http://s3")));
        assert_eq!(config.nats.servers, ["nats://a:4222", "nats://b:4222"]);
        let refused = |text, told: &[_]| read(text, told).unwrap_err().to_string();
        let unknown = refused("store = \"s\"\n", &[("SLOTZ", "4")]);
        assert!(unknown.contains("with RALLREC_WORKER_SLOTZ: unknown field `slotz`"), "{unknown}");
        let wrong = refused("store = \"s\"\n", &[("SLOTS", "many")]);
        assert!(wrong.contains("with RALLREC_WORKER_SLOTS: invalid type"), "{wrong}");
        let at = refused("store = \"s\"\nslotz = 2\n", &[("SLOTS", "4")]);
        assert!(at.contains("worker.toml:2:1: unknown field `slotz`"), "{at}");
        assert!(refused("", &[("SLOTS", "4")]).contains("missing field `store`"));
    }

    #[test]
    fn an_unknown_key_is_refused_at_its_place() {
        let refused = parse("store = \"s\"\nslotz = 2\n").unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(refused.to_string().contains("worker.toml:2:1: unknown field `slotz`"), "{refused}");
    }
}
