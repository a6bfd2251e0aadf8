//! `gc`: removes what no kept run can reach.
//!
//! What it promises: a kept run, run again, computes nothing; a run that is active or begins meanwhile misses nothing;
//! nothing is ever visible half-removed. `docs/gc.md` has the argument. In short:
//! - a run that has not ended is kept, and so is all that it may ask for: the keys of its shards, and, where its rows are
//!   not known yet, every shard of the stage that anybody ever made;
//! - a run that begins waits until a collection is over ([`wait_for_collections`]);
//! - what was put in the last hour stays, and unfinished parts and checkpoints that nobody needs stay for three days;
//! - a run's plan goes before its journal, a manifest before its parts. A collection that dies leaves garbage for the
//!   next one and nothing that looks whole.
//!
//! What cannot be read is never taken for unneeded: a run of another version stops the collection.

mod gate;
mod reach;
mod sweep;

pub use gate::wait_for_collections;

use gate::Mark;
use rallrec_core::ids::{RunId, TimeMs};
use rallrec_store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, time::Duration};
use sweep::Sweep;

/// Which runs are kept. One that has not ended always is; of those that have, what one of the two numbers keeps, or all
/// when there is neither.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// This many done runs of each pipeline, the latest, and what came after them.
    pub last: Option<u32>,
    /// Runs that ended within so many days.
    pub days: Option<u32>,
    /// Runs to remove in any case; none that is active.
    pub forget: BTreeSet<RunId>,
}

/// How old things must be before they count as left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ages {
    /// Whatever was put less than this before the collection began stays.
    pub recent_ms: u64,
    /// Parts without a manifest, and checkpoints, that were put less than this before stay.
    pub abandoned_ms: u64,
}

impl Default for Ages {
    fn default() -> Self {
        Self { recent_ms: 3_600_000, abandoned_ms: 3 * 86_400_000 }
    }
}

/// Objects and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Objects, or artifacts.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Whether it was.
    pub deleted: bool,
    /// Runs that are kept.
    pub kept_runs: u64,
    /// Runs that go.
    pub runs: Vec<RunId>,
    /// Objects of those: plans, journals, logs.
    pub run_files: Tally,
    /// Artifacts, and the bytes of all their objects.
    pub artifacts: Tally,
    /// Parts that no manifest names.
    pub parts: Tally,
    /// Checkpoints.
    pub checkpoints: Tally,
    /// Objects of models and data.
    pub sources: Tally,
    /// What stays of artifacts.
    pub kept_artifacts: Tally,
}

impl Collected {
    /// All bytes that go.
    pub fn bytes(&self) -> u64 {
        [self.run_files, self.artifacts, self.parts, self.checkpoints, self.sources].iter().map(|t| t.bytes).sum()
    }
}

/// Why nothing was collected, or not all.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// Another one is at it.
    #[error("another collection is under way ({other}); wait until it is over")]
    Busy {
        /// Its mark.
        other: String,
    },
    /// It could not renew its mark.
    #[error("the collection was held up for so long that runs may have begun; it stopped, begin it again")]
    Stalled,
    /// Nobody knows what a run needs.
    #[error(
        "run {run} cannot be read: it is damaged, or of another version of rallrec. What it needs is not known, so nothing is removed; use that version, or give the run up with --forget {run}"
    )]
    Unreadable {
        /// The run.
        run: RunId,
    },
    /// No such run.
    #[error("there is no run {run} to forget")]
    NoRun {
        /// The run.
        run: RunId,
    },
    /// It has not ended and somebody drives it.
    #[error("run {run} is active; cancel it before it is forgotten")]
    Active {
        /// The run.
        run: RunId,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Says what would be removed. `is_driven` tells of runs that a process on this machine drives.
///
/// # Errors
/// [`GcError`].
pub async fn dry_run(
    store: &Store,
    keep: &Keep,
    ages: Ages,
    is_driven: &(dyn Fn(&RunId) -> bool + Sync),
    now: TimeMs,
) -> Result<Collected, GcError> {
    Sweep::new(store, ages, None, now).run(keep, is_driven, now).await
}

/// Removes it. `id` names the collection: another one each time.
///
/// # Errors
/// [`GcError`]. What was removed until then is garbage that is gone.
pub async fn collect(
    store: &Store,
    keep: &Keep,
    ages: Ages,
    is_driven: &(dyn Fn(&RunId) -> bool + Sync),
    now: TimeMs,
    id: &str,
) -> Result<Collected, GcError> {
    let mark = Mark::raise(store, id, Duration::from_secs(1)).await?;
    // Ages are told by the store's clock, which put the mark as well.
    let began = mark.put_at;
    let collected = Sweep::new(store, ages, Some(&mark), began).run(keep, is_driven, now).await;
    mark.lower().await;
    collected
}
