//! The worker: claims tasks, runs their stages, commits what they made, and reports.
//!
//! Each slot has one task at a time: claim, run the stage on a thread of its own, commit by create-if-absent, report,
//! acknowledge. It decides nothing about the run: what to do after a failure is the coordinator's.

mod board;
mod checkpoint;
mod input;
mod log;
mod member;
mod output;
mod peak;
mod tables;
mod task;

pub use board::Board;
pub use log::TaskLogs;
pub use member::{Profile, serve};
pub use tables::TableCache;
pub use task::program;

use rallrec_core::{ids::WorkerId, lane::Lane, plan::PinnedSource, task::MemoryMb};
use rallrec_queue::{QueueError, WorkerEnd, nats::Words};
use rallrec_stages::{Cancel, Device, ModelCache, StageError};
use rallrec_store::Store;
use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;

/// Knows where the content of a pinned source lies on this machine, and may fetch it.
pub trait Places: Send + Sync {
    /// File or folder of a source. Blocks while it is fetched.
    ///
    /// # Errors
    /// [`StageError::Transient`] when it is not here and cannot be had now.
    fn place(&self, source: &PinnedSource) -> Result<PathBuf, StageError>;
}

/// Where the content of a pinned source lies on this machine, by digest.
pub type SourcePaths = HashMap<String, PathBuf>;

impl Places for SourcePaths {
    fn place(&self, source: &PinnedSource) -> Result<PathBuf, StageError> {
        self.get(&source.digest).cloned().ok_or_else(|| {
            StageError::Transient(format!(
                "{} ({}) is not on this machine; run `rallrec doctor` there",
                source.name, source.source
            ))
        })
    }
}

/// What a worker works with.
#[derive(Clone)]
pub struct Worker {
    /// Where artifacts are.
    pub store: Store,
    /// Where tasks come from and reports go.
    pub queue: Arc<dyn WorkerEnd>,
    /// Where to compute.
    pub device: Device,
    /// Models in memory, shared by the slots.
    pub models: Arc<ModelCache>,
    /// Input tables in memory, shared by the slots.
    pub tables: Arc<TableCache>,
    /// Models and raw data on this machine.
    pub sources: Arc<dyn Places>,
    /// Set to drain: running tasks stop at their next look at it, and report themselves lost.
    pub cancel: Cancel,
    /// What the slots are at.
    pub board: Board,
    /// What the machine has; 0 where nobody asks, because there is no other.
    pub memory: MemoryMb,
    /// Least time between two progress reports of a task. Beats carry progress too, so a cluster needs few.
    pub progress_every: Duration,
    /// Where log lines of tasks are told live; they are kept in the store in any case.
    pub words: Option<Words>,
}

impl Worker {
    /// One slot: works on tasks of these lanes, one at a time, until the queue is closed or nobody can change the lanes
    /// any more.
    ///
    /// # Errors
    /// When the queue fails.
    pub async fn slot(self, id: WorkerId, mut lanes: watch::Receiver<Vec<Lane>>) -> Result<(), QueueError> {
        loop {
            let asked = lanes.borrow_and_update().clone();
            let delivery = tokio::select! {
                claimed = self.queue.claim(&asked) => match claimed? {
                    Some(delivery) => delivery,
                    None => return Ok(()),
                },
                changed = lanes.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return Ok(()),
                },
            };
            match rallrec_proto::decode_offer(delivery.payload()) {
                Ok(offer) => match self.board.enter(&offer, &self.cancel) {
                    Some(entry) => task::run(&self, &id, offer, entry).await?,
                    None => {
                        delivery.put_off();
                        continue;
                    }
                },
                // Nobody can be told which task it was; the coordinator's lease on it runs out.
                Err(error) => tracing::error!(%error, "a message on the queue is not a task"),
            }
            delivery.ack();
        }
    }
}
