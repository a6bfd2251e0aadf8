//! Records of the cluster's journal.

use rallrec_core::{
    ids::{RunId, TimeMs},
    run::RunOutcome,
};
use rallrec_store::{Records, Store, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One thing that happened to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum ClusterRecord {
    /// From here on this coordinator leads.
    Term {
        /// Its name.
        leader: String,
        /// Address of its gRPC interface.
        address: String,
        /// When.
        at: TimeMs,
    },
    /// A run was handed in, or is to go on after it ended. Its plan is its file `plan.json`.
    Submitted {
        /// The run.
        run: RunId,
        /// Name of its pipeline.
        pipeline: String,
        /// Higher goes first.
        priority: i32,
        /// Share among runs of its priority.
        weight: u32,
        /// When.
        at: TimeMs,
    },
    /// A run ended.
    Ended {
        /// The run.
        run: RunId,
        /// How.
        outcome: RunOutcome,
        /// When.
        at: TimeMs,
    },
}

/// A run as the cluster's journal knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Submitted {
    pub(crate) pipeline: String,
    pub(crate) priority: i32,
    pub(crate) weight: u32,
    pub(crate) at: TimeMs,
    /// `None` while it is to be driven.
    pub(crate) outcome: Option<RunOutcome>,
}

/// Every run that was handed in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs(pub(crate) BTreeMap<RunId, Submitted>);

impl Runs {
    pub(crate) fn add(&mut self, record: &ClusterRecord) {
        match record {
            ClusterRecord::Term { .. } => {}
            ClusterRecord::Submitted { run, pipeline, priority, weight, at } => {
                let at = self.0.get(run).map_or(*at, |before| before.at);
                let submitted =
                    Submitted { pipeline: pipeline.clone(), priority: *priority, weight: *weight, at, outcome: None };
                self.0.insert(run.clone(), submitted);
            }
            ClusterRecord::Ended { run, outcome, .. } => {
                if let Some(run) = self.0.get_mut(run) {
                    run.outcome = Some(*outcome);
                }
            }
        }
    }
}

/// Runs that the cluster of this store drives or is to drive; none where there is no cluster.
pub(crate) async fn active_runs(store: &Store) -> Result<BTreeSet<RunId>, StoreError> {
    let mut runs = Runs::default();
    for record in Records::of_cluster(store.clone(), "reader").replay().await? {
        // As the leader does: what cannot be read is passed over.
        if let Ok(record) = serde_json::from_slice(&record) {
            runs.add(&record);
        }
    }
    Ok(runs.0.into_iter().filter(|(_, run)| run.outcome.is_none()).map(|(run, _)| run).collect())
}
