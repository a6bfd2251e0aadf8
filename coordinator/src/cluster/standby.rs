//! Waits until nobody leads, then takes the next term.

use super::{
    ClusterSettings, LeaderError,
    record::{ClusterRecord, Runs},
    service::Role,
};
use crate::{Clock, SystemClock};
use futures::StreamExt;
use rallrec_proto::decode_leader;
use rallrec_queue::nats::Words;
use rallrec_store::{Records, Store, StoreError};
use std::time::Duration;

/// Silence of the leader after which another takes over: four of its signs of life.
const PATIENCE: Duration = Duration::from_secs(2);

/// A term that is this coordinator's.
pub(super) struct Term {
    /// Its number: the position of its record.
    pub(super) number: u64,
    /// The cluster's journal, which this coordinator has continued.
    pub(super) records: Records,
    /// Every run so far.
    pub(super) runs: Runs,
}

/// Returns once this coordinator leads.
pub(super) async fn wait_for_turn(
    store: &Store,
    settings: &ClusterSettings,
    address: &str,
    role: &Role,
) -> Result<Term, super::ClusterError> {
    let words = Words::connect(&settings.nats).await.map_err(LeaderError::from)?;
    let mut leaders = Box::pin(words.leaders().await.map_err(LeaderError::from)?);
    loop {
        match tokio::time::timeout(PATIENCE, leaders.next()).await {
            Ok(Some(heard)) => match decode_leader(&heard) {
                Ok(leader) => role.follow(leader.address),
                Err(error) => tracing::warn!(%error, "a leader's sign of life cannot be read"),
            },
            // Without NATS nobody can lead, and silence says nothing.
            _ if !words.is_connected() => tokio::time::sleep(PATIENCE / 4).await,
            _ => {
                if let Some(term) = take(store, settings, address).await.map_err(LeaderError::from)? {
                    return Ok(term);
                }
            }
        }
    }
}

/// Writes the next record. `None`: somebody else was faster.
async fn take(store: &Store, settings: &ClusterSettings, address: &str) -> Result<Option<Term>, StoreError> {
    let mut records = Records::of_cluster(store.clone(), settings.name.clone());
    let mut runs = Runs::default();
    for record in records.replay().await? {
        match serde_json::from_slice(&record) {
            Ok(record) => runs.add(&record),
            Err(error) => tracing::error!(%error, "a record of the cluster's journal cannot be read; passed over"),
        }
    }
    let number = records.position();
    let term =
        ClusterRecord::Term { leader: settings.name.clone(), address: address.to_owned(), at: SystemClock.now() };
    let bytes = serde_json::to_vec(&term).expect("a record of names and numbers is JSON");
    match records.append(&bytes).await {
        Ok(()) => Ok(Some(Term { number, records, runs })),
        Err(StoreError::Conflict { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
