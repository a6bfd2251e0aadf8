//! A run that is being driven, as the leader sees it.

use super::{RunWatcher, leader::LeaderError, record::Submitted};
use crate::{Capacity, Clock, Control, Driver, DriverError, Notice, RunEnd, Settings, gc::wait_for_collections};
use bytes::Bytes;
use rallrec_core::{
    fleet::{AttemptName, Claim, Demand, RunClaims, RunDemand, Stragglers},
    ids::{Attempt, RunId, StageName, TaskId, TimeMs, WorkerId},
    lane::{Lane, Slots},
    plan::Plan,
    run::{RunState, Suspect},
};
use rallrec_proto::encode_report;
use rallrec_queue::{CoordinatorEnd, LeaderEnd};
use rallrec_store::{Records, Store, StoreError};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
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
    /// Stages with tasks that could be handed out, with their lanes.
    pub(super) waiting: Vec<Waiting>,
    /// Of each named limit, the tasks that are handed out; `None`: nothing was seen yet.
    pub(super) limited: Option<BTreeMap<String, u32>>,
    pub(super) out: Vec<Out>,
    /// Second attempts that are handed out.
    pub(super) doubled: BTreeMap<Lane, u32>,
    /// What straggles, or will if it does not end soon.
    pub(super) suspects: Vec<(Lane, Suspect)>,
    pub(super) done: u64,
    pub(super) known: u64,
}

/// A stage with tasks that could be handed out.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) stage: StageName,
    pub(super) lane: Lane,
    /// Its named limits.
    pub(super) limits: Vec<String>,
    /// As many as its limits let out.
    pub(super) tasks: u64,
}

impl Waiting {
    /// Every stage that has some.
    fn of(state: &RunState) -> Vec<Self> {
        let left: BTreeMap<&str, u64> =
            state.limits().map(|(name, most, out)| (name, u64::from(most.saturating_sub(out)))).collect();
        let stages = (0..).zip(&state.plan().stages).filter(|(stage, _)| state.waiting_of(*stage) > 0);
        let waiting = stages.filter_map(|(stage, planned)| {
            let limits: Vec<String> = planned.resources.limits.keys().cloned().collect();
            let most = limits.iter().filter_map(|name| left.get(name.as_str())).min();
            let all = u64::from(state.waiting_of(stage));
            let tasks = most.map_or(all, |most| all.min(*most));
            Some(Self { stage: planned.name.clone(), lane: state.lane(stage)?.clone(), limits, tasks })
        });
        waiting.collect()
    }
}

impl Seen {
    fn of(state: &RunState) -> Self {
        let waiting = Waiting::of(state);
        let lanes = state.lanes().iter().map(|lane| {
            let slots = Slots::Lane(lane.clone());
            // Places that a limit forbids to use are better given to others.
            let tasks = waiting.iter().filter(|waiting| waiting.lane == *lane).map(|waiting| waiting.tasks).sum();
            (lane.clone(), Demand { waiting: tasks, handed_out: state.handed_out(&slots), offered: 0 })
        });
        let mut lanes: BTreeMap<Lane, Demand> = lanes.collect();
        let mut out = Vec::new();
        for (task, running) in state.all_handed_out() {
            let worker = running.begun.as_ref().map(|begun| begun.worker.clone());
            if let (None, Some(demand)) = (&worker, state.lane_of_task(task).and_then(|lane| lanes.get_mut(lane))) {
                demand.offered += 1;
            }
            out.push(Out { task, attempt: running.attempt, worker });
        }
        let doubled = state.lanes().iter().map(|lane| (lane.clone(), state.doubled(&Slots::Lane(lane.clone()))));
        let suspects =
            state.suspects().filter_map(|suspect| Some((state.lane_of_task(suspect.task)?.clone(), suspect)));
        let view = state.view();
        Self {
            lanes,
            limited: Some(state.limits().map(|(name, _, out)| (name.to_owned(), out)).collect()),
            waiting,
            out,
            doubled: doubled.collect(),
            suspects: suspects.collect(),
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
    /// Second attempts that it was granted last.
    pub(super) granted_second: BTreeMap<Lane, u32>,
    /// Attempts that were found to help nobody any more.
    in_vain: watch::Receiver<BTreeSet<(TaskId, Attempt)>>,
    /// What it was told last of the cluster's named limits that it has.
    told: BTreeMap<String, u32>,
    /// What it said that it obeys.
    obeys: watch::Receiver<BTreeMap<String, u32>>,
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
    /// Named limits over all runs.
    pub(super) limits: BTreeMap<String, u32>,
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
        let (found, in_vain) = watch::channel(BTreeSet::new());
        let named = plan.stages.iter().flat_map(|stage| stage.resources.limits.keys());
        let named = named.filter(|name| around.limits.contains_key(*name));
        // Nothing, before it is said how much.
        let limits: BTreeMap<String, u32> = named.map(|name| (name.clone(), 0)).collect();
        let (obedience, obeys) = watch::channel(limits.clone());
        let told = limits.clone();
        let (turned, progress, id) = (Arc::clone(&around.turned), around.progress.clone(), run.clone());
        let watcher = Arc::clone(&around.watcher);
        let driver = Driver {
            artifacts: around.store.clone(),
            journal: Records::of_run(around.store.clone(), run, around.name.clone()).in_term(around.term),
            queue: Arc::clone(&queue),
            clock: Arc::clone(&around.clock),
            settings: Settings {
                limits,
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
                Notice::InVain(attempts) => drop(found.send_replace(attempts.iter().copied().collect())),
                Notice::Obeys(limits) => {
                    obedience.send_replace(limits.clone());
                    turned.notify_one();
                }
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
        let (granted, granted_second) = Default::default();
        Ok(Self { plan, control, seen, queue, granted, granted_second, in_vain, told, obeys, priority, weight })
    }

    /// What it wants.
    pub(super) fn demand(&self, now: TimeMs) -> RunDemand {
        let seen = self.seen.borrow();
        let straggling = |(lane, doubled): (&Lane, &u32)| {
            let of_lane = seen.suspects.iter().filter(|(of, suspect)| of == lane && suspect.straggles(now));
            let at = of_lane.map(|(_, suspect)| suspect.worker.clone()).collect();
            (lane.clone(), Stragglers { doubled: *doubled, at })
        };
        let stragglers = seen.doubled.iter().map(straggling).collect();
        RunDemand { priority: self.priority, weight: self.weight, lanes: seen.lanes.clone(), stragglers }
    }

    /// Asks which of the attempts that workers are at help nobody. The answer is [`Self::is_in_vain`]'s, soon; a driver
    /// that has no time for the question is asked again.
    pub(super) fn ask_in_vain(&self, attempts: Vec<(TaskId, Attempt)>) {
        let _ = self.control.try_send(Control::AtWork(attempts));
    }

    /// Whether the task of an attempt was done when it was last asked about.
    pub(super) fn is_in_vain(&self, name: &AttemptName) -> bool {
        self.in_vain.borrow().contains(&(name.task, name.attempt))
    }

    /// What it wants of the cluster's named limits, by tasks whose lanes somebody asks.
    pub(super) fn claims(&self, is_asked: impl Fn(&Lane) -> bool) -> RunClaims {
        let (seen, obeys) = (self.seen.borrow(), self.obeys.borrow());
        let limits = self.told.iter().map(|(name, told)| {
            let waiting = seen.waiting.iter().filter(|w| w.limits.contains(name) && is_asked(&w.lane));
            let claim = Claim {
                waiting: waiting.map(|waiting| waiting.tasks).sum(),
                handed_out: seen.limited.as_ref().map(|limited| limited.get(name).copied().unwrap_or(0)),
                told: *told,
                obeys: obeys.get(name).copied().unwrap_or(0),
            };
            (name.clone(), claim)
        });
        RunClaims { priority: self.priority, weight: self.weight, limits: limits.collect() }
    }

    /// Tells it how many tasks of each limit it may have handed out, unless it knows.
    pub(super) async fn limit(&mut self, limits: BTreeMap<String, u32>) {
        if self.told != limits {
            self.told.clone_from(&limits);
            self.say(Control::Limit(limits)).await;
        }
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
