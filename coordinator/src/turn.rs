//! The driver's synchronous half: signals in, events and futures out. Nothing here waits.

use crate::{
    Artifacts, Capacity, Clock, Control, DriverError, Notice, Observer, Settings,
    driver::{Signal, Tries},
};
use futures::{FutureExt, future::BoxFuture, stream::FuturesUnordered};
use rallrec_core::{
    ids::{Attempt, TaskId},
    key::Key,
    lane::{Lane, Slots},
    run::{Effect, Event, Input, RunState, apply, decide, owed},
    task::{FailureClass, Outcome, TaskReport},
};
use rallrec_proto::{decode_report, encode_offer};
use rallrec_queue::{CoordinatorEnd, OfferName, QueueError};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Tasks that the store is asked about in one question.
const ASKED_TOGETHER: usize = 64;

/// A run between two journal records.
pub(crate) struct Turn<A> {
    pub(crate) state: RunState,
    /// Applied, not journaled.
    pub(crate) unwritten: Vec<Event>,
    /// Effects under way. Each may be dropped: what it was for is still owed.
    pub(crate) in_flight: FuturesUnordered<BoxFuture<'static, Signal>>,
    /// Journal records that were put.
    pub(crate) records: u64,
    /// Whether the caller may still say something.
    pub(crate) heeds_control: bool,
    probing: BTreeSet<(TaskId, u32)>,
    offered: BTreeSet<(TaskId, Attempt)>,
    artifacts: A,
    queue: Arc<dyn CoordinatorEnd>,
    clock: Arc<dyn Clock>,
    settings: Settings,
    granted: BTreeMap<Lane, u32>,
}

impl<A: Artifacts> Turn<A> {
    pub(crate) fn new(
        state: RunState,
        artifacts: A,
        queue: Arc<dyn CoordinatorEnd>,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Self {
        Self {
            state,
            unwritten: Vec::new(),
            in_flight: FuturesUnordered::new(),
            records: 0,
            heeds_control: true,
            probing: BTreeSet::new(),
            offered: BTreeSet::new(),
            artifacts,
            queue,
            clock,
            settings,
            granted: BTreeMap::new(),
        }
    }

    /// Decides on an input and applies what follows. Returns whether it counted.
    pub(crate) fn take(&mut self, input: Input) -> Result<bool, DriverError> {
        match decide(&self.state, input, self.clock.now()) {
            Ok(events) => {
                for event in events {
                    self.withdraw_superseded(&event);
                    apply(&mut self.state, &event)?;
                    self.unwritten.push(event);
                }
                Ok(true)
            }
            Err(rejection) if rejection.is_harmless() => {
                tracing::debug!(%rejection, "input does not count");
                Ok(false)
            }
            Err(rejection) => {
                tracing::warn!(%rejection, "input refused");
                Ok(false)
            }
        }
    }

    /// Turns a signal into inputs.
    pub(crate) fn handle(&mut self, signal: Signal, observer: &mut Observer) -> Result<(), DriverError> {
        match signal {
            Signal::Report(payload) => match decode_report(&payload?.ok_or(QueueError::Closed)?) {
                Ok(report) => self.hear(report, observer)?,
                Err(error) => tracing::warn!(%error, "a report cannot be read and is dropped"),
            },
            Signal::Probed { asked, found } => {
                for ((task, after), found) in asked.into_iter().zip(found?) {
                    self.probing.remove(&(task, after));
                    self.take(Input::Probed { task, after, found })?;
                }
            }
            Signal::Sent(sent) => sent?,
            // The next one will do; until then more records are replayed.
            Signal::Kept(Err(error)) => tracing::warn!(%error, "a snapshot could not be kept"),
            Signal::Kept(Ok(())) => {}
            // Slots are filled at the end of every turn.
            Signal::Wake => {}
            Signal::Control(None) => self.heeds_control = false,
            Signal::Control(Some(Control::WorkerLost(worker))) => drop(self.take(Input::WorkerLost { worker })?),
            Signal::Control(Some(Control::AttemptLost(task, attempt))) => {
                self.take(Input::AttemptLost { task, attempt })?;
            }
            // Slots are filled at the end of every turn.
            Signal::Control(Some(Control::Grant(granted))) => self.granted = granted,
            Signal::Control(Some(Control::Wiped)) => self.offered.clear(),
            Signal::Control(Some(Control::Cancel)) => {
                if self.take(Input::Cancel)? {
                    self.withdraw();
                }
            }
        }
        Ok(())
    }

    /// Takes back the offer of an attempt that nobody should work on any more: it was lost, or another has committed.
    /// Needs no journal record first: should this process die now, working on it again does no harm.
    fn withdraw_superseded(&mut self, event: &Event) {
        let superseded = match event {
            Event::TaskFailed { task, attempt: Some(attempt), class: FailureClass::Lost, .. } => {
                Some((*task, *attempt))
            }
            Event::TaskCommitted { task, attempt, .. } => {
                self.state.running(*task).map(|r| (*task, r.attempt)).filter(|(_, running)| running != attempt)
            }
            _ => None,
        };
        let Some((task, attempt)) = superseded else { return };
        let Some(lane) = self.state.lane(task.stage).cloned() else { return };
        let (queue, name) = (Arc::clone(&self.queue), OfferName { task, attempt });
        self.in_flight.push(async move { Signal::Sent(queue.withdraw(&lane, name).await) }.boxed());
    }

    fn hear(&mut self, report: TaskReport, observer: &mut Observer) -> Result<(), DriverError> {
        if matches!(report.outcome, Outcome::Progress(_)) {
            if self.take(Input::Report(report.clone()))? {
                observer(Notice::Progress(&report));
            }
        } else {
            self.take(Input::Report(report))?;
        }
        Ok(())
    }

    /// Takes offers back that nobody has claimed. Needs no journal record first: should this process die now, they
    /// are gone as well.
    fn withdraw(&mut self) {
        self.in_flight.clear();
        self.probing.clear();
        self.offered.clear();
        let queue = Arc::clone(&self.queue);
        self.in_flight.push(async move { Signal::Sent(queue.withdraw_all().await) }.boxed());
    }

    /// Fills free slots, and ends the run when nothing is left to do.
    pub(crate) fn settle(&mut self) -> Result<(), DriverError> {
        let allowed: Vec<(Slots, u32)> = match &self.settings.capacity {
            Capacity::Slots(slots) => {
                slots.iter().map(|(pool, n)| (Slots::Pool(pool.clone()), n.saturating_mul(2))).collect()
            }
            Capacity::Granted => self.granted.iter().map(|(lane, n)| (Slots::Lane(lane.clone()), *n)).collect(),
        };
        for (slots, most) in allowed {
            let free = most.saturating_sub(self.state.handed_out(&slots));
            if free > 0 && self.state.waiting(&slots) > 0 {
                self.take(Input::Capacity { slots, free })?;
            }
        }
        if matches!(owed(&self.state).next(), Some(Effect::Finish { .. })) {
            self.take(Input::Finish)?;
        }
        Ok(())
    }

    /// Starts what is owed and not under way, within the bounds. The turn's events must be journaled.
    pub(crate) fn perform(&mut self) {
        let state = &self.state;
        let mut asks = Vec::new();
        self.offered.retain(|(task, attempt)| state.running(*task).is_some_and(|r| r.attempt == *attempt));
        for effect in owed(state) {
            match effect {
                Effect::Finish { .. } => {}
                Effect::Dispatch { task, attempt } => {
                    let new = self.offered.insert((task, attempt));
                    let offer = new.then(|| state.offer(task)).flatten();
                    if let (Some(offer), Some(lane)) = (offer, state.lane(task.stage).cloned()) {
                        let (queue, payload) = (Arc::clone(&self.queue), encode_offer(&offer));
                        let name = OfferName { task, attempt };
                        self.in_flight
                            .push(async move { Signal::Sent(queue.offer(&lane, name, payload).await) }.boxed());
                    }
                }
                Effect::Probe { .. } if self.probing.len() >= self.settings.probes.max(1) => break,
                Effect::Probe { task, after } => {
                    let new = self.probing.insert((task, after));
                    if let Some(key) = new.then(|| state.key(task)).flatten() {
                        asks.push(((task, after), key.clone()));
                    }
                }
            }
        }
        for asks in asks.chunks(ASKED_TOGETHER) {
            let (asked, keys) = asks.iter().cloned().unzip();
            self.in_flight.push(probe(self.artifacts.clone(), Arc::clone(&self.clock), asked, keys));
        }
    }
}

/// Asks the store, patiently.
fn probe<A: Artifacts>(
    artifacts: A,
    clock: Arc<dyn Clock>,
    asked: Vec<(TaskId, u32)>,
    keys: Vec<Key>,
) -> BoxFuture<'static, Signal> {
    async move {
        let mut tries = Tries::default();
        let found = loop {
            match artifacts.probe(keys.clone()).await {
                Ok(found) => break Ok(found),
                Err(error) => {
                    if let Err(error) = tries.wait_or_fail(&*clock, error).await {
                        break Err(error);
                    }
                }
            }
        };
        Signal::Probed { asked, found }
    }
    .boxed()
}
