//! The queue of a cluster: NATS JetStream.
//!
//! Offers lie on one work-queue stream, one subject an offer, and reports on another. What it forgets costs time and no
//! result, so nothing here waits for a disk: the coordinator works out from its journal what is owed, and sends it again.
//! Both ends outlive the server: they wait while it is away, and the coordinator's end puts back what was wiped.
//!
//! Deliberately not here: leases (beats are [`Words`], what they mean is the coordinator's), and any use of NATS as a store.

mod coordinator;
mod examine;
mod names;
mod words;
mod worker;

pub use coordinator::{NatsCoordinator, NatsRun};
pub use examine::{NatsServerFacts, Sync, examine};
pub use words::Words;
pub use worker::NatsWorker;

use crate::QueueError;
use async_nats::{Client, ConnectOptions, RequestErrorKind, StatusCode};
use bytes::Bytes;
use names::Names;
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};

/// Oldest server that has all that is used here and was tested.
const MIN_SERVER: (u32, u32) = (2, 12);

/// Patience with one request. Requests are small; a server that needs longer is away.
const REQUEST: Duration = Duration::from_secs(2);

/// Longest wait between two tries to reach a server that is away.
const MAX_RECONNECT: Duration = Duration::from_secs(2);

/// Time that a worker may be silent about a claimed offer before it is given to another: three of its signs of life.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(30);

/// How the server is reached.
#[derive(Clone, Debug, Default)]
pub struct NatsSettings {
    /// Addresses, `nats://HOST:PORT` or `tls://HOST:PORT`.
    pub servers: Vec<String>,
    /// File with a user's credentials.
    pub credentials: Option<PathBuf>,
    /// File with the certificates to trust, beside the system's.
    pub ca: Option<PathBuf>,
    /// Tells clusters on one server apart: letters, digits, `-` and `_`.
    pub cluster: String,
    /// What the server's monitoring calls this client.
    pub client: String,
}

/// A connection, and what the cluster's things are called on it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) names: Names,
}

impl Connection {
    /// Connects, and refuses a server that lacks what is needed. Afterwards the connection mends itself.
    pub(crate) async fn open(settings: &NatsSettings) -> Result<Self, QueueError> {
        let names = Names::new(&settings.cluster)?;
        let mut options = ConnectOptions::new()
            .name(&settings.client)
            .connection_timeout(REQUEST)
            .request_timeout(Some(REQUEST))
            .reconnect_delay_callback(reconnect_delay)
            .ping_interval(Duration::from_secs(5))
            // Beats and answers on one connection: a slow reader must not lose an answer.
            .subscription_capacity(1 << 16);
        if let Some(path) = &settings.credentials {
            let refused =
                |e| QueueError::Refused(format!("{}: {e}; it should be a NATS credentials file", path.display()));
            options = options.credentials_file(path).await.map_err(refused)?;
        }
        if let Some(path) = &settings.ca {
            options = options.add_root_certificates(path.clone());
        }
        let servers = settings.servers.join(",");
        let unreachable = |e: &dyn std::fmt::Display| QueueError::Unreachable(format!("{servers}: {e}"));
        let client = options.connect(&servers).await.map_err(|e| unreachable(&e))?;
        let connection = Self { client, names };
        connection.check_version()?;
        connection.api("INFO", &json!({})).await.map_err(|e| match e {
            QueueError::Refused(why) => {
                QueueError::Refused(format!("{servers} has no JetStream ({why}); start nats-server with -js"))
            }
            other => other,
        })?;
        Ok(connection)
    }

    fn check_version(&self) -> Result<(), QueueError> {
        let version = self.client.server_info().version;
        let mut numbers = version.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
        let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if found >= MIN_SERVER {
            return Ok(());
        }
        let (major, minor) = MIN_SERVER;
        Err(QueueError::Refused(format!(
            "the NATS server has version {version}, and {major}.{minor} or later is needed: older ones ignore settings silently"
        )))
    }

    /// Returns once the server has taken everything that was sent before.
    pub(crate) async fn round_trip(&self) -> Result<(), QueueError> {
        self.api("INFO", &json!({})).await.map(drop)
    }

    /// One request to JetStream's interface.
    pub(crate) async fn api(&self, what: &str, body: &Value) -> Result<Value, QueueError> {
        let subject = format!("$JS.API.{what}");
        let answer = self.client.request(subject, Bytes::from(body.to_string())).await.map_err(request_error)?;
        let answer: Value = serde_json::from_slice(&answer.payload)
            .map_err(|e| QueueError::Refused(format!("JetStream's answer to {what} is no JSON: {e}")))?;
        match answer.get("error") {
            None => Ok(answer),
            Some(error) => Err(QueueError::Refused(format!("{what}: {error}"))),
        }
    }

    /// Puts a message on a stream; `Ok` once the server has it.
    pub(crate) async fn put(&self, subject: String, id: &str, payload: Bytes) -> Result<(), QueueError> {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        let answer = self.client.request_with_headers(subject, headers, payload).await.map_err(request_error)?;
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(QueueError::Unreachable("the stream is gone".into()));
        }
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        match answer.get("error") {
            None => Ok(()),
            Some(error) => Err(QueueError::Refused(format!("the stream takes no message: {error}"))),
        }
    }
}

fn request_error(error: async_nats::client::RequestError) -> QueueError {
    match error.kind() {
        RequestErrorKind::NoResponders => QueueError::Unreachable("nobody answers for JetStream".into()),
        RequestErrorKind::TimedOut => QueueError::Unreachable("the server does not answer".into()),
        _ => QueueError::Unreachable(error.to_string()),
    }
}

/// Doubling, capped, and between half of the nominal wait and all of it, so that a cluster does not come back at once.
fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(6);
    jittered((Duration::from_millis(50) * 2u32.pow(doublings)).min(MAX_RECONNECT))
}

/// Between half of `nominal` and all of it.
pub(crate) fn jittered(nominal: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    // A process's hash seed is as random as this needs.
    let draw = RandomState::new().hash_one(std::time::Instant::now()) % 1000;
    nominal / 2 + nominal / 2 * u32::try_from(draw).unwrap_or(0) / 1000
}
