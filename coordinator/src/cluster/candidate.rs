//! A coordinator without its socket: stands by and leads, in turns.
//!
//! Everything outside comes in here: store, network, clock. In earnest they are S3, NATS and the system's clock
//! ([`super::Coordinator`]); simulations bring their own, and run the very same coordinator.

use super::{LeaderError, leader, service, standby};
use crate::{Clock, driver::SNAPSHOT_RECORDS};
use rallrec_core::run::RunState;
use rallrec_queue::LeaderEnd;
use rallrec_store::Store;
use std::{convert::Infallible, sync::Arc, time::Duration};

/// Time before the next try when leading has failed: the store should not be pressed by one that cannot use it.
const PAUSE: Duration = Duration::from_secs(1);

/// Hears each run as it is after every record of its journal, between turns: it should return at once.
pub type RunWatcher = Arc<dyn Fn(&RunState) + Send + Sync>;

/// A coordinator that leads when nobody else does.
pub struct Candidate {
    pub(super) store: Store,
    pub(super) network: Arc<dyn LeaderEnd>,
    pub(super) clock: Arc<dyn Clock>,
    /// Its name; another one after each start.
    pub(super) name: String,
    /// Where people reach it.
    pub(super) address: String,
    pub(super) role: Arc<service::Role>,
    pub(super) watcher: RunWatcher,
    pub(super) snapshot_records: u64,
}

impl Candidate {
    /// A coordinator of this name, which must be another one after each start, that people reach at `address`.
    pub fn new(
        store: Store,
        network: Arc<dyn LeaderEnd>,
        clock: Arc<dyn Clock>,
        name: impl Into<String>,
        address: impl Into<String>,
    ) -> Self {
        let (name, address) = (name.into(), address.into());
        let (role, watcher) = (Arc::default(), Arc::new(|_: &RunState| {}));
        Self { store, network, clock, name, address, role, watcher, snapshot_records: SNAPSHOT_RECORDS }
    }

    /// Keeps a snapshot of a run after so many records of its journal.
    #[must_use]
    pub fn with_snapshots_every(self, snapshot_records: u64) -> Self {
        Self { snapshot_records, ..self }
    }

    /// Lets somebody see the runs that it drives.
    #[must_use]
    pub fn watched_by(self, watcher: RunWatcher) -> Self {
        Self { watcher, ..self }
    }

    /// Its answers to people.
    pub fn interface(&self) -> service::Interface {
        service::Interface { role: Arc::clone(&self.role), store: self.store.clone() }
    }

    /// Stands by and leads, in turns, until it is dropped. While the store or the network is away it tries again.
    ///
    /// # Errors
    /// When the store or the network will not do, or the store holds something damaged.
    pub async fn stand(&self) -> Result<Infallible, LeaderError> {
        loop {
            let ended = self.lead_once().await;
            self.role.none();
            match ended {
                Ok(()) => {}
                Err(error) if error.may_pass() => {
                    tracing::warn!(%error, "cannot lead at the moment; stands by");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn lead_once(&self) -> Result<(), LeaderError> {
        let term = standby::wait_for_turn(self).await?;
        leader::lead(self, term).await
    }
}
