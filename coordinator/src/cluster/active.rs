//! A run that is being driven, as the leader sees it.

use super::{RunWatcher, leader::LeaderError, record::Submitted};
use crate::{Capacity, Clock, Control, Driver, DriverError, Notice, RunEnd, Settings, gc::wait_for_collections};
use bytes::Bytes;
use rallrec_core::{
    fleet::{Demand, RunDemand},
    ids::{Attempt, RunId, TaskId, WorkerId},
    lane::{Lane, Slots},
    plan::Plan,
    run::RunState,
};
use rallrec_proto::encode_report;
use rallrec_queue::{CoordinatorEnd, LeaderEnd};
use rallrec_store::{Records, Store, StoreError};
use std::{collections::BTreeMap, sync::Arc};
use tokio::{
    sync::{Notify, broadcast, mpsc, watch},
    task::JoinSet,
};

/// Words to a driver that may wait.
const CONTROL_BOUND: usize = 64;

/// An attempt that is handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Out {
    pub(super) task: TaskId,
    pub(super) attempt: Attempt,
    /// Who has begun it.
    pub(super) worker: Option<WorkerId>,
}

/// A run after its latest turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) lanes: BTreeMap<Lane, Demand>,
    pub(super) out: Vec<Out>,
    pub(super) done: u64,
    pub(super) known: u64,
}

impl Seen {
    fn of(state: &RunState) -> Self {
        let lanes = state.lanes().iter().map(|lane| {
            let slots = Slots::Lane(lane.clone());
            let demand = Demand { waiting: state.waiting(&slots), handed_out: state.handed_out(&slots) };
            (lane.clone(), demand)
        });
        let out = state.all_handed_out().map(|(task, running)| Out {
            task,
            attempt: running.attempt,
            worker: running.worker.clone(),
        });
        let view = state.view();
        Self {
            lanes: lanes.collect(),
            out: out.collect(),
            done: view.stages.iter().map(|stage| stage.done).sum(),
            known: view.stages.iter().filter_map(|stage| stage.tasks).sum(),
        }
    }
}

/// How a run is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// It is new, or another coordinator drove it.
    TakeOver,
    /// It had ended.
    Resume,
}

/// A run that is being driven.
pub(super) struct Active {
    pub(super) plan: Arc<Plan>,
    pub(super) control: mpsc::Sender<Control>,
    pub(super) seen: watch::Receiver<Seen>,
    /// Its end of the queue, to ask what it holds.
    pub(super) queue: Arc<dyn CoordinatorEnd>,
    /// What it was granted last.
    pub(super) granted: BTreeMap<Lane, u32>,
    priority: i32,
    weight: u32,
}

/// What a driver's end comes to.
pub(super) type Ended = (RunId, Result<RunEnd, DriverError>);

/// What every run is given.
pub(super) struct Surroundings {
    pub(super) store: Store,
    pub(super) network: Arc<dyn LeaderEnd>,
    pub(super) clock: Arc<dyn Clock>,
    /// Name of this coordinator, unique to it.
    pub(super) name: String,
    /// The term that it leads in.
    pub(super) term: u64,
    /// Told after every turn of a run.
    pub(super) turned: Arc<Notify>,
    /// Hears how far tasks are.
    pub(super) progress: broadcast::Sender<(RunId, Bytes)>,
    /// Hears how runs are.
    pub(super) watcher: RunWatcher,
    /// Records of a run's journal between two snapshots.
    pub(super) snapshot_records: u64,
}

impl Active {
    /// Starts to drive a run.
    pub(super) async fn begin(
        around: &Surroundings,
        run: &RunId,
        submitted: &Submitted,
        how: How,
        drivers: &mut JoinSet<Ended>,
    ) -> Result<Self, LeaderError> {
        let plan = around.store.run_file(run, "plan.json").await?;
        let plan = plan.ok_or_else(|| LeaderError::NoPlan { run: run.clone() })?;
        let plan: Arc<Plan> =
            Arc::new(serde_json::from_slice(&plan).map_err(|source| LeaderError::Plan { run: run.clone(), source })?);
        let queue: Arc<dyn CoordinatorEnd> = around.network.run(run.clone());
        let (control, heard) = mpsc::channel(CONTROL_BOUND);
        let (sight, seen) = watch::channel(Seen::default());
        let (turned, progress, id) = (Arc::clone(&around.turned), around.progress.clone(), run.clone());
        let watcher = Arc::clone(&around.watcher);
        let driver = Driver {
            artifacts: around.store.clone(),
            journal: Records::of_run(around.store.clone(), run, around.name.clone()).in_term(around.term),
            queue: Arc::clone(&queue),
            clock: Arc::clone(&around.clock),
            settings: Settings {
                capacity: Capacity::Granted,
                probes: crate::driver::PROBES,
                snapshot_records: around.snapshot_records,
            },
            control: heard,
            observer: Box::new(move |notice| match notice {
                Notice::State(state) => {
                    watcher(state);
                    sight.send_replace(Seen::of(state));
                    turned.notify_one();
                }
                // Nobody may be watching.
                Notice::Progress(report) => drop(progress.send((id.clone(), encode_report(report)))),
                Notice::Event(_) => {}
            }),
        };
        let (run, its_plan) = (run.clone(), Arc::clone(&plan));
        let store = around.store.clone();
        drivers.spawn(async move {
            // A run that goes on is kept by every collection; one that begins waits until none is under way.
            if let Err(error) = wait_before(&store, &run, how).await {
                return (run, Err(error.into()));
            }
            let ended = match how {
                How::TakeOver => driver.take_over(run.clone(), its_plan).await,
                How::Resume => driver.resume().await,
            };
            (run, ended)
        });
        let (priority, weight) = (submitted.priority, submitted.weight);
        Ok(Self { plan, control, seen, queue, granted: BTreeMap::new(), priority, weight })
    }

    /// What it wants.
    pub(super) fn demand(&self) -> RunDemand {
        RunDemand { priority: self.priority, weight: self.weight, lanes: self.seen.borrow().lanes.clone() }
    }

    /// Says something to the driver; one that has ended does not hear it.
    pub(super) async fn say(&self, control: Control) {
        let _ = self.control.send(control).await;
    }
}

async fn wait_before(store: &Store, run: &RunId, how: How) -> Result<(), StoreError> {
    if how == How::Resume || Records::of_run(store.clone(), run, "reader").is_empty().await? {
        wait_for_collections(store).await?;
    }
    Ok(())
}
