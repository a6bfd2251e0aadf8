//! Which lanes each worker asks.
//!
//! A worker asks the lanes of one model, all those that it has the memory for, and every lane without a model that it has
//! the memory for. It keeps its model while there is work for it that it can do, so that the model stays in memory; one
//! that has no work takes the neediest model, and of equals one that it has loaded. A lane that nobody asks gets a worker
//! that its own model can spare.
//!
//! Who has the memory: every worker that has what the tasks seem to need. Where there is none, the largest of those that
//! have what a person asked for, so that an estimate or a need that grew never keeps tasks waiting; and where there is none
//! of those either, nobody, which [`Fleet::waits`] tells.

use super::{Demands, Fleet, Member};
use crate::{
    ids::{RunId, WorkerId},
    lane::{Lane, Room},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// A lane with tasks that no worker can be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The lane.
    pub lane: Lane,
    /// Most memory of a worker of its pool, of the host and of an accelerator, in MiB; `None`: no worker takes tasks of it.
    pub largest: Option<(u64, u64)>,
}

/// `a worker of pool `gpu` with 32 GiB of GPU memory; the largest has 16`.
impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Lane { pool, least, .. }, whole) = (&self.lane, |mb: u64| format!("{}", (mb * 10 / 1024) as f64 / 10.0));
        write!(f, "a worker of pool `{pool}`")?;
        let Some((host_mb, gpu_mb)) = self.largest else { return write!(f, "; there is none that takes tasks") };
        let host = (host_mb < u64::from(least.host_gib) * 1024).then(|| (least.host_gib, "memory", whole(host_mb)));
        let gpu = (gpu_mb < u64::from(least.gpu_gib) * 1024).then(|| (least.gpu_gib, "GPU memory", whole(gpu_mb)));
        match (gpu, host) {
            (Some((gib, what, has)), None) | (None, Some((gib, what, has))) => {
                write!(f, " with {gib} GiB of {what}; the largest has {has}")
            }
            (Some((gpu, _, _)), Some((host, _, _))) => {
                write!(f, " with {gpu} GiB of GPU memory and {host} GiB of memory; none has either")
            }
            (None, None) => {
                let Room { gpu_gib, host_gib } = least;
                write!(f, " with {gpu_gib} GiB of GPU memory and {host_gib} GiB of memory; none has both")
            }
        }
    }
}

/// What all runs together want of a lane.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    /// The highest of those that want it.
    priority: i32,
    tasks: u64,
}

impl Fleet {
    /// Gives each worker its lanes. Returns those whose lanes changed.
    pub fn assign(&mut self, demands: &Demands) -> Vec<WorkerId> {
        let pools: BTreeSet<String> = self.members.values().map(|m| m.beat.pool.clone()).collect();
        let mut orders = Vec::new();
        for pool in pools {
            let mut board = Board::new(self, &pool, demands);
            board.keep();
            board.choose();
            board.rescue();
            orders.extend(board.orders());
        }
        let mut changed = Vec::new();
        for (worker, lanes) in orders {
            let Some(member) = self.members.get_mut(&worker) else { continue };
            if member.lanes != lanes {
                member.lanes = lanes;
                changed.push(worker);
            }
        }
        changed
    }

    /// Lanes with tasks that wait for a worker that is not there, of each run that has any.
    pub fn waits(&self, demands: &Demands) -> BTreeMap<RunId, Vec<Wait>> {
        let mut waits: BTreeMap<RunId, Vec<Wait>> = BTreeMap::new();
        for (run, demand) in demands {
            for lane in demand.lanes.iter().filter(|(_, wants)| wants.waiting > 0).map(|(lane, _)| lane) {
                let members: Vec<&Member> = self.takers(&lane.pool).collect();
                if able(lane, &members).contains(&true) {
                    continue;
                }
                let most = |mb: fn(&Member) -> u64| members.iter().map(|member| mb(member)).max();
                let largest = most(|m| m.beat.memory_mb).zip(most(Member::gpu_mb));
                waits.entry(run.clone()).or_default().push(Wait { lane: lane.clone(), largest });
            }
        }
        waits
    }

    /// Workers of a pool that take tasks.
    fn takers(&self, pool: &str) -> impl Iterator<Item = &Member> {
        self.members.values().filter(move |member| member.beat.pool == pool && !member.is_draining())
    }
}

impl Member {
    fn has(&self, room: Room) -> bool {
        room.is_within(self.beat.memory_mb, self.gpu_mb())
    }

    fn gpu_mb(&self) -> u64 {
        self.beat.gpu_memory_mb.unwrap_or(0)
    }
}

/// Which of a pool's workers may be given a lane's tasks.
fn able(lane: &Lane, members: &[&Member]) -> Vec<bool> {
    let having: Vec<bool> = members.iter().map(|member| member.has(lane.wanted.max(lane.least))).collect();
    if having.contains(&true) {
        return having;
    }
    // Of what is wanted, as much as can be had; what is beyond it makes nobody larger.
    let size = |member: &Member| {
        let capped = |mb: u64, gib: u32| mb.min(u64::from(gib) * 1024);
        (capped(member.gpu_mb(), lane.wanted.gpu_gib), capped(member.beat.memory_mb, lane.wanted.host_gib))
    };
    let largest = members.iter().filter(|member| member.has(lane.least)).map(|member| size(member)).max();
    members.iter().map(|member| member.has(lane.least) && Some(size(member)) == largest).collect()
}

/// One pool's lanes and workers while lanes are given.
struct Board<'a> {
    members: Vec<&'a Member>,
    /// Lanes with a model, that have tasks.
    lanes: Vec<(&'a Lane, Wanted)>,
    /// Lanes without one, of all runs that go on: whether they have tasks changes too often to tell workers each time.
    plain: Vec<(&'a Lane, Vec<bool>)>,
    /// By lane, by member.
    able: Vec<Vec<bool>>,
    /// The model of each member.
    chosen: Vec<Option<&'a str>>,
    /// Members that ask each lane.
    serving: Vec<u32>,
}

impl<'a> Board<'a> {
    fn new(fleet: &'a Fleet, pool: &str, demands: &'a Demands) -> Self {
        let members: Vec<&Member> = fleet.takers(pool).collect();
        let (mut backlog, mut plain): (BTreeMap<&Lane, Wanted>, BTreeSet<&Lane>) = Default::default();
        for run in demands.values() {
            for (lane, demand) in run.lanes.iter().filter(|(lane, _)| lane.pool == pool) {
                let tasks = demand.waiting + u64::from(demand.handed_out);
                if lane.model.is_none() {
                    plain.insert(lane);
                } else if tasks > 0 {
                    let wanted = backlog.entry(lane).or_insert(Wanted { priority: run.priority, tasks: 0 });
                    wanted.priority = wanted.priority.max(run.priority);
                    wanted.tasks += tasks;
                }
            }
        }
        let lanes: Vec<_> = backlog.into_iter().collect();
        // The largest first: small tasks have other workers too.
        let plain = plain.into_iter().rev().map(|lane| (lane, able(lane, &members))).collect();
        Self {
            able: lanes.iter().map(|(lane, _)| able(lane, &members)).collect(),
            chosen: vec![None; members.len()],
            serving: vec![0; lanes.len()],
            plain,
            members,
            lanes,
        }
    }

    /// Positions of a model's lanes that a member may ask.
    fn asks(&self, member: usize, model: &str) -> impl Iterator<Item = usize> {
        let of_model = move |lane: &usize| self.lanes[*lane].0.model.as_deref() == Some(model);
        (0..self.lanes.len()).filter(of_model).filter(move |lane| self.able[*lane][member])
    }

    fn give(&mut self, member: usize, model: Option<&'a str>) {
        for (model, change) in [(self.chosen[member], -1), (model, 1)] {
            let Some(model) = model else { continue };
            for lane in self.asks(member, model).collect::<Vec<_>>() {
                self.serving[lane] = self.serving[lane].saturating_add_signed(change);
            }
        }
        self.chosen[member] = model;
    }

    /// Who has a model that there is work for, which it can do, keeps it.
    fn keep(&mut self) {
        for member in 0..self.members.len() {
            let Some(model) = self.members[member].lanes.first().and_then(|lane| lane.model.as_deref()) else {
                continue;
            };
            if self.asks(member, model).next().is_some() {
                self.give(member, Some(model));
            }
        }
    }

    /// Who has none takes the neediest, and of equals one that it has in memory.
    fn choose(&mut self) {
        let models: BTreeSet<&'a str> = self.lanes.iter().filter_map(|(lane, _)| lane.model.as_deref()).collect();
        for member in (0..self.members.len()).filter(|member| self.chosen[*member].is_none()).collect::<Vec<_>>() {
            let need = |model: &str| {
                let lanes: Vec<usize> = self.asks(member, model).collect();
                let priority = lanes.iter().map(|lane| self.lanes[*lane].1.priority).max()?;
                let loaded = self.members[member].beat.models.contains(model);
                let unserved = || lanes.iter().filter(|lane| self.serving[**lane] == 0);
                // What few others could serve goes first.
                let others = unserved().map(|lane| self.able[*lane].iter().filter(|able| **able).count()).min();
                let tasks: u64 =
                    lanes.iter().map(|lane| self.lanes[*lane].1.tasks / u64::from(self.serving[*lane] + 1)).sum();
                Some((priority, others.is_some(), Reverse(others), loaded, tasks))
            };
            let neediest = models.iter().copied().filter_map(|model| Some((need(model)?, model))).max();
            self.give(member, neediest.map(|(_, model)| model));
        }
    }

    /// A lane that nobody asks gets a worker that is spared elsewhere, if need be because another takes its place.
    fn rescue(&mut self) {
        for idle in 0..self.lanes.len() {
            let Some(model) = self.lanes[idle].0.model.as_deref() else { continue };
            if self.serving[idle] > 0 {
                continue;
            }
            let able = (0..self.members.len()).filter(|member| self.able[idle][*member]).collect::<Vec<_>>();
            // The one whose lanes have least to do for each of their workers.
            let spare = able.iter().copied().filter(|m| self.is_spare(*m)).min_by_key(|member| self.work(*member));
            if let Some(member) = spare {
                self.give(member, Some(model));
                continue;
            }
            let swap = able.iter().find_map(|&member| Some((member, self.stand_in(member)?)));
            if let Some((member, other)) = swap {
                let left = self.chosen[member];
                self.give(other, left);
                self.give(member, Some(model));
            }
        }
    }

    /// Whether every lane that a member asks has another one.
    fn is_spare(&self, member: usize) -> bool {
        self.chosen[member].is_none_or(|model| self.asks(member, model).all(|lane| self.serving[lane] >= 2))
    }

    /// What its lanes have to do, for each of their workers.
    fn work(&self, member: usize) -> u64 {
        let Some(model) = self.chosen[member] else { return 0 };
        self.asks(member, model).map(|lane| self.lanes[lane].1.tasks / u64::from(self.serving[lane].max(1))).sum()
    }

    /// A spare member that may ask every lane that only `member` asks.
    fn stand_in(&self, member: usize) -> Option<usize> {
        let model = self.chosen[member]?;
        let alone: Vec<usize> = self.asks(member, model).filter(|lane| self.serving[*lane] < 2).collect();
        let may = |other: &usize| alone.iter().all(|lane| self.able[*lane][*other]);
        let others = (0..self.members.len()).filter(|other| *other != member && self.chosen[*other] != Some(model));
        others.filter(may).find(|other| self.is_spare(*other))
    }

    fn orders(&self) -> Vec<(WorkerId, Vec<Lane>)> {
        let lanes = |member: usize| {
            let model = self.chosen[member].into_iter().flat_map(move |model| self.asks(member, model));
            // As those without: the largest first.
            let mut model: Vec<&Lane> = model.map(|lane| self.lanes[lane].0).collect();
            model.reverse();
            let plain = self.plain.iter().filter(move |(_, able)| able[member]).map(|(lane, _)| *lane);
            model.into_iter().chain(plain).cloned().collect()
        };
        (0..self.members.len()).map(|member| (self.members[member].beat.worker.clone(), lanes(member))).collect()
    }
}
