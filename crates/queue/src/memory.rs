//! The queue of a run in one process.
//!
//! One mutex and two condition-like notifies: a few hundred messages a second pass here, each standing for seconds of
//! computing, so there is nothing to win with channels, and giving an offer back to the front of its lane is simple.

use crate::{CoordinatorEnd, Delivery, Hold, OfferName, QueueError, WorkerEnd};
use async_trait::async_trait;
use bytes::Bytes;
use rallrec_core::{ids::RunId, lane::Lane};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Unread reports. Workers report a few times a second at most and the coordinator reads at once; at this bound it is
/// stuck in a slow journal write, and workers should wait rather than fill the memory.
const MAX_REPORTS: usize = 1024;

/// Both ends of an in-memory queue, for one run. Clones are the same queue.
#[derive(Clone)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Something changed: every waiter looks again. Few wait: one a worker slot, one coordinator.
    changed: Notify,
    lane_bound: usize,
}

#[derive(Default)]
struct State {
    lanes: BTreeMap<Lane, VecDeque<(OfferName, Bytes)>>,
    /// Claimed and not acknowledged.
    claimed: BTreeSet<OfferName>,
    reports: VecDeque<Bytes>,
    closed: bool,
}

impl MemoryQueue {
    /// A queue whose lanes hold at most `lane_bound` offers each (at least one). Twice the number of worker slots is
    /// right: enough that no slot waits for the coordinator, few enough that order is decided late.
    pub fn new(lane_bound: usize) -> Self {
        Self {
            shared: Arc::new(Shared { state: Mutex::default(), changed: Notify::new(), lane_bound: lane_bound.max(1) }),
        }
    }

    /// Waits until `look` finds something.
    async fn wait_for<T>(&self, mut look: impl FnMut(&mut State) -> Option<T> + Send) -> T {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that no change falls between the two.
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.shared.lock()) {
                self.shared.changed.notify_waiters();
                return found;
            }
            changed.await;
        }
    }
}

impl Shared {
    /// A panic while the lock is held leaves the queue whole: every change is one push or pop.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CoordinatorEnd for MemoryQueue {
    async fn offer(&self, lane: &Lane, name: OfferName, payload: Bytes) -> Result<(), QueueError> {
        let bound = self.shared.lane_bound;
        let mut payload = Some(payload);
        self.wait_for(|state| {
            if state.closed {
                return Some(Err(QueueError::Closed));
            }
            if state.claimed.contains(&name) {
                return Some(Ok(()));
            }
            let offers = state.lanes.entry(lane.clone()).or_default();
            if offers.iter().any(|(there, _)| *there == name) {
                return Some(Ok(()));
            }
            (offers.len() < bound).then(|| {
                offers.extend(payload.take().map(|payload| (name, payload)));
                Ok(())
            })
        })
        .await
    }

    async fn withdraw(&self, lane: &Lane, name: OfferName) -> Result<(), QueueError> {
        if let Some(offers) = self.shared.lock().lanes.get_mut(lane) {
            offers.retain(|(there, _)| *there != name);
        }
        self.shared.changed.notify_waiters();
        Ok(())
    }

    async fn withdraw_all(&self) -> Result<(), QueueError> {
        self.shared.lock().lanes.clear();
        self.shared.changed.notify_waiters();
        Ok(())
    }

    async fn held(&self) -> Result<BTreeSet<OfferName>, QueueError> {
        let state = self.shared.lock();
        let waiting = state.lanes.values().flatten().map(|(name, _)| *name);
        Ok(waiting.chain(state.claimed.iter().copied()).collect())
    }

    async fn next_report(&self) -> Result<Option<Bytes>, QueueError> {
        let next = self.wait_for(|state| match state.reports.pop_front() {
            Some(report) => Some(Some(report)),
            None => state.closed.then_some(None),
        });
        Ok(next.await)
    }
}

#[async_trait]
impl WorkerEnd for MemoryQueue {
    async fn claim(&self, lanes: &[Lane]) -> Result<Option<Delivery>, QueueError> {
        let taken = self.wait_for(|state| {
            let first = lanes.iter().find_map(|lane| Some((lane, state.lanes.get_mut(lane)?.pop_front()?)));
            match first {
                Some((lane, (name, payload))) => {
                    state.claimed.insert(name);
                    Some(Some((lane.clone(), name, payload)))
                }
                None => state.closed.then_some(None),
            }
        });
        Ok(taken.await.map(|(lane, name, payload)| {
            let hold = Held { shared: Arc::clone(&self.shared), lane, name };
            Delivery::new(payload, Box::new(hold))
        }))
    }

    async fn report(&self, _run: &RunId, payload: Bytes) -> Result<(), QueueError> {
        let mut payload = Some(payload);
        self.wait_for(|state| {
            if state.closed {
                return Some(Err(QueueError::Closed));
            }
            (state.reports.len() < MAX_REPORTS).then(|| {
                state.reports.extend(payload.take());
                Ok(())
            })
        })
        .await
    }
}

impl MemoryQueue {
    /// Ends the queue for everyone: unclaimed offers are gone, waiting claims get `None`.
    pub fn close(&self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.lanes.clear();
        drop(state);
        self.shared.changed.notify_waiters();
    }
}

/// A claimed offer of a [`MemoryQueue`].
struct Held {
    shared: Arc<Shared>,
    lane: Lane,
    name: OfferName,
}

impl Hold for Held {
    fn ack(self: Box<Self>) {
        self.shared.lock().claimed.remove(&self.name);
    }

    fn give_back(self: Box<Self>, payload: Bytes) {
        let mut state = self.shared.lock();
        state.claimed.remove(&self.name);
        if !state.closed {
            // To the front, past the bound if need be: it has waited longest, and was within the bound before.
            state.lanes.entry(self.lane).or_default().push_front((self.name, payload));
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, future::join_all};
    use rallrec_core::{
        ids::{Attempt, TaskId},
        lane::Room,
    };

    fn bytes(n: u32) -> Bytes {
        Bytes::copy_from_slice(&n.to_le_bytes())
    }

    fn lane(pool: &str) -> Lane {
        Lane { pool: pool.into(), model: None, least: Room::default(), wanted: Room::default() }
    }

    fn name(shard: u32) -> OfferName {
        OfferName { task: TaskId { stage: 0, shard }, attempt: Attempt(1) }
    }

    async fn offer(queue: &MemoryQueue, pool: &str, n: u32) -> Result<(), QueueError> {
        queue.offer(&lane(pool), name(n), bytes(n)).await
    }

    async fn claim(queue: &MemoryQueue, pool: &str) -> Delivery {
        queue.claim(&[lane(pool)]).await.unwrap().unwrap()
    }

    async fn report(queue: &MemoryQueue, n: u32) -> Result<(), QueueError> {
        queue.report(&RunId("r".into()), bytes(n)).await
    }

    #[tokio::test]
    async fn lanes_are_apart_and_first_in_is_first_out() {
        let queue = MemoryQueue::new(4);
        for (lane, n) in [("a", 1), ("b", 2), ("a", 3)] {
            offer(&queue, lane, n).await.unwrap();
        }
        assert_eq!(claim(&queue, "b").await.payload(), &bytes(2));
        let first = claim(&queue, "a").await;
        assert_eq!(first.payload(), &bytes(1));
        first.ack();
        assert_eq!(claim(&queue, "a").await.payload(), &bytes(3));
    }

    #[tokio::test]
    async fn an_unacknowledged_offer_goes_back_to_the_front() {
        let queue = MemoryQueue::new(2);
        offer(&queue, "a", 1).await.unwrap();
        offer(&queue, "a", 2).await.unwrap();
        drop(claim(&queue, "a").await);
        let again = claim(&queue, "a").await;
        assert_eq!(again.payload(), &bytes(1));
        again.ack();
        claim(&queue, "a").await.ack();
        assert!(queue.claim(&[lane("a")]).now_or_never().is_none());
    }

    #[tokio::test]
    async fn an_offer_that_is_put_off_goes_back_a_second_later() {
        let queue = MemoryQueue::new(2);
        offer(&queue, "a", 1).await.unwrap();
        let begun = std::time::Instant::now();
        claim(&queue, "a").await.put_off();
        assert!(queue.claim(&[lane("a")]).now_or_never().is_none());
        assert_eq!(queue.held().await.unwrap(), [name(1)].into(), "it is not lost meanwhile");
        assert_eq!(claim(&queue, "a").await.payload(), &bytes(1));
        assert!(begun.elapsed().as_millis() >= 1000);
    }

    #[tokio::test]
    async fn a_full_lane_makes_the_offerer_wait_until_there_is_room() {
        let queue = MemoryQueue::new(1);
        offer(&queue, "a", 1).await.unwrap();
        let mut second = Box::pin(offer(&queue, "a", 2));
        assert!((&mut second).now_or_never().is_none());
        assert!(offer(&queue, "b", 9).now_or_never().is_some(), "another lane has room");
        claim(&queue, "a").await.ack();
        second.await.unwrap();
        assert_eq!(claim(&queue, "a").await.payload(), &bytes(2));
    }

    #[tokio::test]
    async fn a_claim_that_is_dropped_takes_nothing_with_it() {
        let queue = MemoryQueue::new(1);
        let lanes = [lane("a")];
        let mut waiting = queue.claim(&lanes);
        assert!((&mut waiting).now_or_never().is_none());
        drop(waiting);
        offer(&queue, "a", 1).await.unwrap();
        assert_eq!(claim(&queue, "a").await.payload(), &bytes(1));
    }

    #[tokio::test]
    async fn withdrawn_offers_are_gone_but_claimed_ones_stay() {
        let queue = MemoryQueue::new(2);
        offer(&queue, "a", 1).await.unwrap();
        offer(&queue, "a", 2).await.unwrap();
        let held = claim(&queue, "a").await;
        queue.withdraw_all().await.unwrap();
        assert!(queue.claim(&[lane("a")]).now_or_never().is_none());
        drop(held);
        assert_eq!(claim(&queue, "a").await.payload(), &bytes(1));
    }

    #[tokio::test]
    async fn closing_wakes_everyone_and_leaves_reports_to_be_read() {
        let queue = MemoryQueue::new(1);
        report(&queue, 1).await.unwrap();
        offer(&queue, "a", 1).await.unwrap();
        let claimed = claim(&queue, "a").await;
        let lanes = [lane("a")];
        let mut waiting = queue.claim(&lanes);
        assert!((&mut waiting).now_or_never().is_none());
        queue.close();
        assert!(waiting.await.unwrap().is_none());
        drop(claimed);
        assert!(queue.claim(&[lane("a")]).await.unwrap().is_none());
        assert_eq!(report(&queue, 2).await, Err(QueueError::Closed));
        assert_eq!(offer(&queue, "a", 2).await, Err(QueueError::Closed));
        assert_eq!(queue.next_report().await.unwrap(), Some(bytes(1)));
        assert_eq!(queue.next_report().await.unwrap(), None);
    }

    #[tokio::test]
    async fn reports_are_bounded() {
        let queue = MemoryQueue::new(1);
        for n in 0..MAX_REPORTS as u32 {
            report(&queue, n).await.unwrap();
        }
        let mut more = Box::pin(report(&queue, 7));
        assert!((&mut more).now_or_never().is_none());
        assert_eq!(queue.next_report().await.unwrap(), Some(bytes(0)));
        more.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_claimers_get_every_offer_once() {
        let queue = MemoryQueue::new(3);
        let claimers = (0..8).map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while let Some(delivery) = queue.claim(&[lane("a")]).await.unwrap() {
                    seen.push(delivery.payload().clone());
                    delivery.ack();
                    report(&queue, 0).await.unwrap();
                }
                seen
            })
        });
        let claimers: Vec<_> = claimers.collect();
        let offerer = queue.clone();
        let offering = tokio::spawn(async move { join_all((0..500).map(|n| offer(&offerer, "a", n))).await });
        for _ in 0..500 {
            queue.next_report().await.unwrap().unwrap();
        }
        queue.close();
        assert!(offering.await.unwrap().into_iter().all(|r| r.is_ok()));
        let mut all: Vec<Bytes> = join_all(claimers).await.into_iter().flat_map(Result::unwrap).collect();
        all.sort_by_key(|b| u32::from_le_bytes(b[..].try_into().unwrap()));
        assert_eq!(all, (0..500).map(bytes).collect::<Vec<_>>());
    }
}
