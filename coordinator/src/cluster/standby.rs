//! Waits until nobody leads, then takes the next term; tells a leader when another has.

use super::{
    Candidate, LeaderError,
    record::{ClusterRecord, Runs},
};
use futures::StreamExt;
use rallrec_proto::decode_leader;
use rallrec_store::{Records, StoreError};
use std::time::Duration;

/// Silence of the leader after which another takes over: four of its signs of life.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a leader looks whether the journal knows a later term.
const LOOK_EVERY: Duration = Duration::from_secs(5);

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
pub(super) async fn wait_for_turn(candidate: &Candidate) -> Result<Term, LeaderError> {
    let mut leaders = candidate.network.leaders().await?;
    let mut known = read(candidate).await?.latest;
    loop {
        match tokio::time::timeout(PATIENCE, leaders.next()).await {
            Ok(Some(heard)) => match decode_leader(&heard) {
                Ok(leader) => {
                    known = known.max(Some(leader.term));
                    candidate.role.follow(leader.address);
                }
                Err(error) => tracing::warn!(%error, "a leader's sign of life cannot be read"),
            },
            // Without the network nobody can lead, and silence says nothing.
            _ if !candidate.network.is_connected() => tokio::time::sleep(PATIENCE / 4).await,
            _ => {
                let journal = read(candidate).await?;
                // Somebody was faster, and has not been heard yet.
                let newer = journal.latest.filter(|latest| known.is_none_or(|known| known < *latest));
                match newer {
                    Some(_) => known = newer,
                    None => {
                        if let Some(term) = take(candidate, journal).await? {
                            return Ok(term);
                        }
                    }
                }
            }
        }
    }
}

/// Ends once a later term stands in the journal, of which `records` is at the end. It may never be heard of otherwise: who
/// wrote it may have died at once, and the others take this leader's signs of life for enough.
pub(super) async fn later_term(mut records: Records) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let is_term = |record: &Vec<u8>| matches!(serde_json::from_slice(record), Ok(ClusterRecord::Term { .. }));
        match records.follow().await {
            Ok(new) if new.iter().any(is_term) => return,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "cannot look whether another coordinator leads"),
        }
    }
}

/// The cluster's journal, read to its end.
struct Journal {
    records: Records,
    runs: Runs,
    /// Number of the latest term.
    latest: Option<u64>,
}

async fn read(candidate: &Candidate) -> Result<Journal, StoreError> {
    let mut records = Records::of_cluster(candidate.store.clone(), candidate.name.clone());
    let (mut runs, mut latest) = (Runs::default(), None);
    for (number, record) in (0..).zip(records.replay().await?) {
        match serde_json::from_slice(&record) {
            Ok(ClusterRecord::Term { .. }) => latest = Some(number),
            Ok(record) => runs.add(&record),
            Err(error) => tracing::error!(%error, "a record of the cluster's journal cannot be read; passed over"),
        }
    }
    Ok(Journal { records, runs, latest })
}

/// Writes the next record. `None`: somebody else was faster.
async fn take(candidate: &Candidate, journal: Journal) -> Result<Option<Term>, StoreError> {
    let Journal { mut records, runs, .. } = journal;
    let number = records.position();
    let (leader, address, at) = (candidate.name.clone(), candidate.address.clone(), candidate.clock.now());
    let term = ClusterRecord::Term { leader, address, at };
    let bytes = serde_json::to_vec(&term).expect("a record of names and numbers is JSON");
    match records.append(&bytes).await {
        Ok(()) => Ok(Some(Term { number, records, runs })),
        Err(StoreError::Conflict { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
