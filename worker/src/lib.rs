//! The worker: claims tasks, runs their stages, commits what they made, and reports.
//!
//! Each slot has one task at a time: claim, run the stage on a thread of its own, commit by create-if-absent, report,
//! acknowledge. It decides nothing about the run: what to do after a failure is the coordinator's.

mod checkpoint;
mod input;
mod output;
mod task;

pub use task::program;

use rallrec_core::ids::WorkerId;
use rallrec_queue::{QueueError, TaskQueue};
use rallrec_stages::{Cancel, Device, ModelCache};
use rallrec_store::Store;
use std::{collections::HashMap, path::PathBuf, sync::Arc};

/// Where the content of a pinned source lies on this machine, by digest.
pub type SourcePaths = HashMap<String, PathBuf>;

/// What a worker works with.
#[derive(Clone)]
pub struct Worker {
    /// Where artifacts are.
    pub store: Store,
    /// Where tasks come from and reports go.
    pub queue: Arc<dyn TaskQueue>,
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
    /// One slot: works on the tasks of a lane, one at a time, until the queue is closed.
    ///
    /// # Errors
    /// When the queue fails.
    pub async fn slot(self, id: WorkerId, lane: &str) -> Result<(), QueueError> {
        while let Some(delivery) = self.queue.claim(lane).await? {
            match rallrec_proto::decode_offer(delivery.payload()) {
                Ok(offer) => task::run(&self, &id, offer).await?,
                // Nobody can be told which task it was; the coordinator's lease on it runs out.
                Err(error) => tracing::error!(%error, lane, "a message on the queue is not a task"),
            }
            delivery.ack();
        }
        Ok(())
    }
}
