//! Queue, worker slots and coordinator of one run in this process, and what Ctrl-C does to them.

use crate::{clock, console::Console, failure::Failure, history, run_view::RunView};
use rallrec_coordinator::{Control, Driver, DriverError, Notice, RunEnd, Settings, SystemClock};
use rallrec_core::{
    ids::{RunId, WorkerId},
    lane::Lane,
    plan::Plan,
    run::Event,
    task::{MemoryMb, Outcome},
};
use rallrec_queue::{MemoryQueue, QueueError};
use rallrec_stages::{Cancel, Device, ModelCache};
use rallrec_store::{Records, Store};
use rallrec_worker::{Board, SourcePaths, Worker};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

/// Pool that all tasks run in here: whatever pools a pipeline names, this machine is all of them.
pub const POOL: &str = "local";

/// Words to the driver that may wait: only the one that cancels is ever sent.
const CONTROL_BOUND: usize = 4;

/// Least time between two progress reports of a task: often enough for a person.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// One run, about to be driven.
#[derive(Clone, Debug)]
pub struct Session {
    /// Where artifacts and journal are.
    pub store: Store,
    /// The run's plan, with every stage in [`POOL`].
    pub plan: Arc<Plan>,
    /// The run.
    pub run: RunId,
    /// Tasks computed at the same time.
    pub slots: u32,
}

impl Session {
    /// Drives the run to its end, or until Ctrl-C.
    ///
    /// # Errors
    /// When it cannot be driven: the store is out of reach, or the journal is damaged.
    pub async fn drive(
        &self,
        device: Device,
        places: BTreeMap<String, PathBuf>,
        view: &Arc<Mutex<RunView>>,
        console: &Console,
    ) -> Result<RunEnd, Failure> {
        let earlier = history::events(&self.store, &self.run).await?;
        locked(view, |view| view.replay(&earlier));
        let queue = Arc::new(MemoryQueue::new(2 * self.slots as usize));
        let worker = Worker {
            store: self.store.clone(),
            queue: Arc::clone(&queue) as _,
            device,
            models: Arc::new(ModelCache::default()),
            tables: Arc::default(),
            sources: Arc::new(places.into_iter().collect::<SourcePaths>()),
            cancel: Cancel::default(),
            board: Board::default(),
            memory: MemoryMb::default(),
            progress_every: PROGRESS_EVERY,
            words: None,
        };
        let (control, heard) = mpsc::channel(CONTROL_BOUND);
        let signals = tokio::spawn(obey_signals(Signals::caught(), control, console.clone()));
        let (_unchanged, lanes) = watch::channel(self.lanes());
        let mut slots = JoinSet::new();
        for n in 1..=self.slots {
            slots.spawn(worker.clone().slot(WorkerId(format!("local-{n}")), lanes.clone()));
        }
        let driver = self.driver(Arc::clone(&queue), heard, Arc::clone(view), worker.cancel.clone());
        let driven = async {
            if earlier.is_empty() {
                driver.start(self.run.clone(), Arc::clone(&self.plan)).await
            } else {
                driver.resume().await
            }
        };
        let ended = tokio::select! {
            ended = driven => ended.map_err(Failure::from),
            Some(slot) = slots.join_next() => Err(slot_died(slot)),
        };
        queue.close();
        // Whatever a slot still computes (after a failure, or for a run that another process took over) is thrown away
        // before the process ends.
        worker.cancel.set();
        while slots.join_next().await.is_some() {}
        signals.abort();
        ended
    }

    /// Every lane of the plan, in its order; whatever a task needs, this machine is all that there is.
    fn lanes(&self) -> Vec<Lane> {
        let mut lanes: Vec<Lane> = Vec::new();
        for lane in self.plan.stages.iter().map(|stage| Lane::of(stage).anywhere()) {
            if !lanes.contains(&lane) {
                lanes.push(lane);
            }
        }
        lanes
    }

    fn driver(
        &self,
        queue: Arc<MemoryQueue>,
        control: mpsc::Receiver<Control>,
        view: Arc<Mutex<RunView>>,
        cancel: Cancel,
    ) -> Driver<Store, Records> {
        // A run's lock keeps other processes out; the name tells our records from an earlier process's.
        let writer = format!("local-{}", clock::new_run_id());
        Driver {
            artifacts: self.store.clone(),
            journal: Records::of_run(self.store.clone(), &self.run, writer),
            queue,
            clock: Arc::new(SystemClock),
            settings: Settings::new([(POOL.to_owned(), self.slots)].into()),
            control,
            observer: Box::new(move |notice| {
                // Only once the cancel is journaled: a task that stops earlier would count as a lost worker.
                if let Notice::Event(Event::CancelRequested { .. }) = notice {
                    cancel.set();
                }
                locked(&view, |view| show(view, notice));
            }),
        }
    }
}

/// A view that panicked while drawing still counts right, so its lock is taken anyway.
pub fn locked<T>(view: &Mutex<RunView>, with: impl FnOnce(&mut RunView) -> T) -> T {
    with(&mut view.lock().unwrap_or_else(PoisonError::into_inner))
}

fn show(view: &mut RunView, notice: Notice<'_>) {
    match notice {
        Notice::Event(event) => view.event(event),
        Notice::Progress(report) => {
            if let Outcome::Progress(progress) = &report.outcome {
                view.running(report.task, progress);
            }
        }
        // The view counts from the events itself: it also shows what is inside a task.
        Notice::State(_) | Notice::InVain(_) | Notice::Obeys(_) => {}
    }
}

/// The first Ctrl-C (or SIGTERM) drains, the second ends the process at once.
async fn obey_signals(mut signals: Signals, control: mpsc::Sender<Control>, console: Console) {
    if !signals.next().await {
        return;
    }
    console.note("stopping: running tasks end at their next look at the cancel flag; Ctrl-C again ends at once");
    // The driver may have ended meanwhile; then there is nothing to cancel.
    let _ = control.send(Control::Cancel).await;
    if signals.next().await {
        console.note("ended at once; what was committed is kept");
        std::process::exit(130);
    }
}

/// Requests to stop: Ctrl-C, and SIGTERM. They are caught from the moment that this is made.
#[cfg(unix)]
pub struct Signals(Option<(tokio::signal::unix::Signal, tokio::signal::unix::Signal)>);

#[cfg(unix)]
impl Signals {
    /// Begins to catch them.
    pub fn caught() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        Self(signal(SignalKind::interrupt()).ok().zip(signal(SignalKind::terminate()).ok()))
    }

    /// Waits for the next one; `false` when the system offers none.
    pub async fn next(&mut self) -> bool {
        let Some((interrupt, terminate)) = &mut self.0 else { return false };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        true
    }
}

/// Requests to stop: Ctrl-C.
#[cfg(not(unix))]
pub struct Signals;

#[cfg(not(unix))]
impl Signals {
    /// Begins to catch them.
    pub fn caught() -> Self {
        Self
    }

    /// Waits for the next one; `false` when the system offers none.
    pub async fn next(&mut self) -> bool {
        tokio::signal::ctrl_c().await.is_ok()
    }
}

fn slot_died(slot: Result<Result<(), QueueError>, tokio::task::JoinError>) -> Failure {
    let why = match slot {
        Ok(Ok(())) => "it ended before the run did".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    Failure::Other(anyhow::anyhow!("a worker slot died: {why}; run the same command again to resume"))
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        match error {
            DriverError::Store(error) => error.into(),
            error @ (DriverError::Record(_) | DriverError::Replay(_)) => {
                Self::Invalid(format!("{error}: add --new to the command"))
            }
            error => Self::Other(error.into()),
        }
    }
}
