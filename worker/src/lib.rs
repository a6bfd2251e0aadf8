//! The worker: claims tasks, runs their stages, commits what they made, and reports.
//!
//! Each slot has one task at a time: claim, run the stage on a thread of its own, commit by create-if-absent, report,
//! acknowledge. It decides nothing about the run: what to do after a failure is the coordinator's.

mod checkpoint;
mod input;
mod output;
mod task;

pub use task::program;

use rallrec_core::{ids::WorkerId, lane::Lane};
use rallrec_queue::{QueueError, WorkerEnd};
use rallrec_stages::{Cancel, Device, ModelCache};
use rallrec_store::Store;
use std::{collections::HashMap, path::PathBuf, sync::Arc};
use tokio::sync::watch;

/// Where the content of a pinned source lies on this machine, by digest.
pub type SourcePaths = HashMap<String, PathBuf>;

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
    /// Models and raw data on this machine.
    pub sources: Arc<SourcePaths>,
    /// Set to drain: running tasks stop at their next look at it, and report themselves lost.
    pub cancel: Cancel,
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
                Ok(offer) => task::run(&self, &id, offer).await?,
                // Nobody can be told which task it was; the coordinator's lease on it runs out.
                Err(error) => tracing::error!(%error, "a message on the queue is not a task"),
            }
            delivery.ack();
        }
    }
}
