//! What a server says of itself, for `doctor`.

use super::{Connection, NatsSettings};
use crate::QueueError;
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;

/// A server that is fit to be the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsServerFacts {
    /// Its version.
    pub version: String,
    /// How JetStream writes to its disk, if the server tells: it tells only clients that may ask its system account.
    pub sync: Option<Sync>,
}

/// How JetStream writes to its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Each message before it is acknowledged.
    Always,
    /// So often.
    Every(Duration),
}

/// Connects as a coordinator or a worker does, and looks.
///
/// # Errors
/// [`QueueError::Unreachable`], and [`QueueError::Refused`] for a server that is too old or has no JetStream.
pub async fn examine(settings: &NatsSettings) -> Result<NatsServerFacts, QueueError> {
    let connection = Connection::open(settings).await?;
    let asked = Bytes::from(json!({ "config": true }).to_string());
    // That nobody answers is the rule.
    let answer = connection.client.request("$SYS.REQ.SERVER.PING.JSZ", asked).await.ok();
    let told: Option<Value> = answer.and_then(|answer| serde_json::from_slice(&answer.payload).ok());
    Ok(NatsServerFacts {
        version: connection.client.server_info().version,
        sync: told.as_ref().and_then(|told| sync(&told["data"]["config"])),
    })
}

/// As the server's answer has it: nanoseconds, and a flag beside them.
fn sync(config: &Value) -> Option<Sync> {
    if config["sync_always"] == true {
        return Some(Sync::Always);
    }
    config["sync_interval"].as_u64().map(|nanos| Sync::Every(Duration::from_nanos(nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_tells_is_read() {
        let always = json!({ "sync_interval": 120_000_000_000_u64, "sync_always": true });
        assert_eq!(sync(&always), Some(Sync::Always));
        let every = json!({ "sync_interval": 120_000_000_000_u64 });
        assert_eq!(sync(&every), Some(Sync::Every(Duration::from_secs(120))));
        assert_eq!(sync(&json!({})), None);
    }
}
