//! One seed: coordinators, workers, people and a storm of faults, from the first moment until every run is done.

use crate::{
    checker::{Figures, History, check},
    faults::{Counts, Fault, Profile, STRIKES},
    network::{Link, Server},
    objects::{Shared, SimObjects},
    person::{Directory, Person},
    plans::plan,
    worker::Worker,
    world::{Mutant, Node, NodeClock, World, lock},
};
use futures::future::join_all;
use object_store::memory::InMemory;
use rallrec_coordinator::cluster::Candidate;
use rallrec_core::ids::RunId;
use rallrec_store::Store;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;

const COORDINATORS: usize = 3;
const WORKERS: usize = 3;

/// Records of a run between its snapshots: few, so that nearly every take-over goes on from one.
const SNAPSHOT_RECORDS: u64 = 3;

/// Longest storm.
const STORM: Duration = Duration::from_secs(180);

/// Time after the longest storm in which every run must end: what still sleeps when it ends wakes within 80 s.
const CALM: Duration = Duration::from_secs(900);

/// What became of a seed.
pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    pub(crate) trace_hash: u64,
    pub(crate) trace: Vec<String>,
    pub(crate) counts: Counts,
    pub(crate) figures: Figures,
    pub(crate) virtual_ms: u64,
}

/// Runs one seed on this thread.
pub(crate) fn run(seed: u64, profile: Profile, mutant: Option<Mutant>, traced: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    // An artifact's writer stays on its thread.
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let world = World::new(seed, profile, mutant, traced);
        let history = History::new(&world);
        let shared = Arc::new(Shared { objects: InMemory::new(), history: Arc::clone(&history) });
        let cluster = Cluster {
            server: Server::new(&world),
            shared,
            world: Arc::clone(&world),
            directory: Directory::default(),
            coordinators: Default::default(),
            workers: Default::default(),
        };
        Arc::new(cluster).live().await;
        let (trace_hash, trace) = world.trace();
        Outcome {
            violations: world.violations(),
            trace_hash,
            trace,
            counts: world.counts(),
            figures: history.figures(),
            virtual_ms: world.now_ms(),
        }
    })
}

/// A place where a process runs, dies, and is started again.
#[derive(Default)]
struct Place {
    node: Mutex<Option<Arc<Node>>>,
    drain: Mutex<Arc<AtomicBool>>,
}

struct Cluster {
    world: Arc<World>,
    server: Arc<Server>,
    shared: Arc<Shared>,
    directory: Directory,
    coordinators: [Place; COORDINATORS],
    workers: [Place; WORKERS],
}

impl Cluster {
    async fn live(self: Arc<Self>) {
        let runs: Vec<RunId> = (0..self.world.between(1, 2)).map(|n| RunId(format!("r{n}"))).collect();
        let mut processes = tokio::task::JoinSet::new();
        for place in 0..COORDINATORS {
            processes.spawn_local(Arc::clone(&self).coordinator(place));
        }
        for place in 0..WORKERS {
            processes.spawn_local(Arc::clone(&self).worker(place));
        }
        let people = runs.iter().enumerate().map(|(number, run)| {
            let (world, directory) = (Arc::clone(&self.world), Arc::clone(&self.directory));
            Person { world, directory, run: run.clone(), plan: plan(self.world.seed, number as u64) }.see_it_done()
        });
        let storm = self.storm();
        let ended = tokio::time::timeout(STORM + CALM, async { tokio::join!(join_all(people), storm) }).await;
        if ended.is_err() {
            self.world.violate(format!(
                "long after the storm not every run has ended; on the streams {:?}",
                self.server.depth()
            ));
        }
        // What is still on its way to the store arrives.
        sleep(Duration::from_secs(60)).await;
        processes.shutdown().await;
        check(&self.world, &self.shared, &runs).await;
    }

    /// Starts a coordinator, and another one whenever that is dead.
    async fn coordinator(self: Arc<Self>, place: usize) {
        let world = &self.world;
        for life in 1.. {
            let node = Node::new(world, format!("c{place}-{life}"), Fault::CoordinatorKilledAtCall);
            *lock(&self.coordinators[place].node) = Some(Arc::clone(&node));
            let address = format!("http://{}", node.name);
            let stands = async {
                let store = self.store(&node).await;
                let link = Arc::new(Link::new(&node, &self.server));
                let history = Arc::clone(&self.shared.history);
                let clock = Arc::new(NodeClock(Arc::clone(&node)));
                let candidate = Candidate::new(store, link.clone(), clock, node.name.clone(), address.clone())
                    .watched_by(Arc::new(move |state| history.seen(state)))
                    .with_snapshots_every(SNAPSHOT_RECORDS);
                lock(&self.directory).insert(address.clone(), Arc::new(candidate.interface()));
                tokio::select! {
                    biased;
                    gave_up = candidate.stand() => {
                        let Err(error) = gave_up;
                        world.violate(format!("{} gave up: {error}", node.name));
                    }
                    () = link.keep_up() => {}
                }
            };
            tokio::select! {
                biased;
                () = node.died() => {}
                () = stands => {}
            }
            lock(&self.directory).remove(&address);
            node.kill();
            sleep(Duration::from_millis(world.between(100, 20_000))).await;
        }
    }

    /// Starts a worker, and another one whenever that is dead or has drained.
    async fn worker(self: Arc<Self>, place: usize) {
        for life in 1.. {
            let node = Node::new(&self.world, format!("w{place}-{life}"), Fault::WorkerKilledAtCall);
            let drain = Arc::new(AtomicBool::new(false));
            *lock(&self.workers[place].node) = Some(Arc::clone(&node));
            *lock(&self.workers[place].drain) = Arc::clone(&drain);
            let store = self.store(&node).await;
            let worker = Worker::new(&node, &self.server, store, &self.shared.history, &drain);
            tokio::select! {
                biased;
                () = node.died() => {}
                () = worker.serve() => {}
            }
            node.kill();
            sleep(Duration::from_millis(self.world.between(100, 20_000))).await;
        }
    }

    /// A node's store, from now on with faults.
    async fn store(&self, node: &Arc<Node>) -> Store {
        let objects = SimObjects::new(node, &self.shared);
        let store = Store::over(Arc::new(objects.clone()));
        objects.use_it();
        store
    }

    /// Has things go wrong for a while.
    async fn storm(&self) {
        let world = &self.world;
        let until = world.between(30_000, STORM.as_millis() as u64);
        world.set_storm(true);
        while world.now_ms() < until {
            sleep(Duration::from_millis(world.between(500, 15_000))).await;
            let all: u64 = STRIKES.iter().map(|fault| u64::from(world.profile.rate(*fault).min(10))).sum();
            if all == 0 {
                continue;
            }
            let mut draw = world.between(0, all - 1);
            for fault in STRIKES {
                let weight = u64::from(world.profile.rate(fault).min(10));
                if draw < weight {
                    self.strike(fault);
                    break;
                }
                draw -= weight;
            }
        }
        world.set_storm(false);
    }

    fn strike(&self, fault: Fault) {
        let world = &self.world;
        let any = |places: &[Place]| {
            let place = &places[world.between(0, places.len() as u64 - 1) as usize];
            (lock(&place.node).clone(), Arc::clone(&lock(&place.drain)))
        };
        let (coordinator, worker, drain) = {
            let (worker, drain) = any(&self.workers);
            (any(&self.coordinators).0, worker, drain)
        };
        let (Some(coordinator), Some(worker)) = (coordinator, worker) else { return };
        let time = Duration::from_millis(world.between(200, 40_000));
        world.count(fault);
        match fault {
            Fault::QueueWiped => self.server.wipe(),
            Fault::QueueAway => self.server.take_away(time),
            Fault::StoreAway => world.take_store_away(time * 2),
            Fault::CoordinatorKilled => coordinator.kill(),
            Fault::CoordinatorFrozen => coordinator.freeze(time),
            Fault::CoordinatorCut => coordinator.cut(time),
            Fault::ClockJumped => coordinator.jump(world.between(0, 7_200_000) as i64 - 3_600_000),
            Fault::WorkerKilled => worker.kill(),
            Fault::WorkerFrozen => worker.freeze(time),
            Fault::WorkerCut => worker.cut(time),
            Fault::WorkerDrained => drain.store(true, Ordering::Relaxed),
            _ => {}
        }
    }
}
