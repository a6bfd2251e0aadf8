//! A worker as a member of a cluster: says how it is, asks the lanes that the leader names, drains when it is told to stop.

use crate::Worker;
use futures::StreamExt;
use rallrec_core::{
    fleet::Beat,
    ids::WorkerId,
    lane::{Lane, model_name},
};
use rallrec_proto::{BeatMessage, decode_order, encode_beat};
use rallrec_queue::{QueueError, nats::Words};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};

/// Time between two beats.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// What a worker offers.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Its name; another one after each start.
    pub id: WorkerId,
    /// The machine's name.
    pub host: String,
    /// Its pool.
    pub pool: String,
    /// Tasks that it runs at once.
    pub slots: u32,
    /// Host memory, in MiB.
    pub memory_mb: u64,
    /// Memory of its accelerator, in MiB.
    pub gpu_memory_mb: Option<u64>,
    /// Time that tasks have to end after the worker was told to stop; then they are stopped, and tell so.
    pub grace: Duration,
}

/// Works until `stop` says so, then drains: nothing new begins, what is under way ends within the grace period or is
/// stopped where it stands, with its checkpoint.
///
/// # Errors
/// When the queue will not do.
pub async fn serve(
    worker: Worker,
    words: Words,
    profile: Profile,
    mut stop: watch::Receiver<bool>,
) -> Result<(), QueueError> {
    let (lanes, asked) = watch::channel(Vec::<Lane>::new());
    let mut slots = JoinSet::new();
    for _ in 0..profile.slots {
        slots.spawn(worker.clone().slot(profile.id.clone(), asked.clone()));
    }
    let mut member = Member { words, worker, profile, models: BTreeSet::new() };
    let mut orders = Box::pin(member.words.orders(&member.profile.id).await?);
    let mut tick = tokio::time::interval(BEAT_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => member.beat(false, false).await,
            Some(order) = orders.next() => match decode_order(&order) {
                Ok(order) => {
                    member.worker.board.stop(&order.stop);
                    let wanted = if order.drain { Vec::new() } else { order.lanes };
                    lanes.send_if_modified(|lanes| {
                        let changed = *lanes != wanted;
                        *lanes = wanted;
                        changed
                    });
                }
                Err(error) => tracing::warn!(%error, "an order cannot be read"),
            },
            Some(ended) = slots.join_next() => return ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())),
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    tracing::info!(at_work = member.worker.board.at_work().len(), "draining");
    lanes.send_replace(Vec::new());
    drop(lanes);
    let until = Instant::now() + member.profile.grace;
    while !slots.is_empty() {
        tokio::select! {
            _ = tick.tick() => {
                member.beat(true, false).await;
                if Instant::now() >= until {
                    member.worker.cancel.set();
                }
            }
            Some(_) = slots.join_next() => {}
        }
    }
    member.beat(true, true).await;
    // The last word should be on its way before the process ends.
    member.words.flush().await
}

struct Member {
    worker: Worker,
    words: Words,
    profile: Profile,
    models: BTreeSet<String>,
}

impl Member {
    async fn beat(&mut self, draining: bool, leaving: bool) {
        // While one is being loaded, the models that were there a moment ago are told.
        if let Some(loaded) = self.worker.models.digests() {
            self.models = loaded.iter().map(|digest| model_name(digest)).collect();
        }
        let beat = Beat {
            worker: self.profile.id.clone(),
            host: self.profile.host.clone(),
            pool: self.profile.pool.clone(),
            slots: self.profile.slots,
            memory_mb: self.profile.memory_mb,
            gpu_memory_mb: self.profile.gpu_memory_mb,
            models: self.models.clone(),
            draining,
            at_work: self.worker.board.at_work(),
            program: crate::program(),
        };
        // The next one says it again.
        let _ = self.words.beat(&self.profile.id, encode_beat(&BeatMessage { beat, leaving })).await;
    }
}
