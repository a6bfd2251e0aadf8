//! Slots for second attempts of stragglers: those that are idle although everything that waits has one.
//!
//! Counted by what workers said last, so up to a second late. What comes of a mistake is small: a second attempt that waits
//! for a slot. Which worker takes it is not decided here; one that is at the task itself passes it on.

use super::{Demands, Fleet, Grants, Member};
use crate::{ids::WorkerId, lane::Lane};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

impl Fleet {
    /// How many second attempts each run may have out in each lane: those that it has, and one more for each straggler that
    /// a slot is left for, on another worker than its own. Higher priorities go first.
    pub fn second_attempts(&self, demands: &Demands) -> Grants {
        let mut spare = Spare::of(self, demands);
        let mut runs: Vec<_> = demands.iter().collect();
        runs.sort_by_key(|(_, run)| Reverse(run.priority));
        let mut grants = Grants::new();
        for (id, run) in runs {
            let granted = run.stragglers.iter().map(|(lane, stragglers)| {
                let more = stragglers.at.iter().filter(|worker| spare.take(lane, worker)).count();
                (lane.clone(), stragglers.doubled + more as u32)
            });
            grants.insert(id.clone(), granted.collect());
        }
        grants
    }
}

struct Spare<'a> {
    /// Workers with idle slots, and how many.
    idle: Vec<(&'a Member, u64)>,
    /// Tasks that wait or are on their way, by lane.
    pending: BTreeMap<&'a Lane, u64>,
}

impl<'a> Spare<'a> {
    fn of(fleet: &'a Fleet, demands: &'a Demands) -> Self {
        let idle = fleet.members().filter(|member| !member.is_draining()).filter_map(|member| {
            let idle = u64::from(member.beat.slots).saturating_sub(member.beat.at_work.len() as u64);
            (idle > 0).then_some((member, idle))
        });
        let mut pending: BTreeMap<&Lane, u64> = BTreeMap::new();
        for (lane, demand) in demands.values().flat_map(|run| &run.lanes) {
            *pending.entry(lane).or_default() += demand.waiting + u64::from(demand.offered);
        }
        Self { idle: idle.collect(), pending }
    }

    /// Takes a slot of a lane, if one is left on another worker than this. Whatever waits in any lane that the lane's workers
    /// ask may come to them, so all of it counts.
    fn take(&mut self, lane: &Lane, not: &WorkerId) -> bool {
        let asking = self.idle.iter().filter(|(member, _)| member.lanes.contains(lane));
        let lanes: BTreeSet<&Lane> = asking.clone().flat_map(|(member, _)| &member.lanes).collect();
        let pending: u64 = lanes.iter().filter_map(|lane| self.pending.get(lane)).sum();
        if asking.map(|(_, idle)| idle).sum::<u64>() <= pending {
            return false;
        }
        let may = |member: &Member| member.lanes.contains(lane) && member.beat.worker != *not;
        let Some((_, idle)) = self.idle.iter_mut().find(|(member, idle)| *idle > 0 && may(member)) else {
            return false;
        };
        *idle -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fleet::{AtWork, Demand, RunDemand, Stragglers, tests},
        ids::{Attempt, RunId, TaskId, TimeMs},
        task::Progress,
    };

    /// Workers with two slots each, that are at so many tasks.
    fn fleet(busy: &[u32], demands: &Demands) -> Fleet {
        let mut fleet = Fleet::default();
        for (n, busy) in busy.iter().enumerate() {
            let at = |shard| AtWork {
                run: RunId("r".into()),
                task: TaskId { stage: 1, shard },
                attempt: Attempt(1),
                progress: Progress::default(),
            };
            let mut beat = tests::beat(&format!("w{n}"), 2, &[]);
            beat.at_work = (0..*busy).map(at).collect();
            fleet.hear(beat, TimeMs(0));
        }
        fleet.assign(demands);
        fleet
    }

    fn any() -> Lane {
        tests::lane(None)
    }

    fn demand(priority: i32, waiting: u64, offered: u32, doubled: u32, at: &[&str]) -> RunDemand {
        let at = at.iter().map(|worker| WorkerId((*worker).into())).collect();
        RunDemand {
            priority,
            weight: 1,
            lanes: [(any(), Demand { waiting, handed_out: 3 + offered, offered })].into(),
            stragglers: [(any(), Stragglers { doubled, at })].into(),
        }
    }

    fn granted(busy: &[u32], runs: Vec<RunDemand>) -> Vec<u32> {
        let named = runs.into_iter().enumerate().map(|(n, run)| (RunId(format!("r{n}")), run));
        let demands: Demands = named.collect();
        fleet(busy, &demands).second_attempts(&demands).values().map(|lanes| lanes[&any()]).collect()
    }

    #[test]
    fn idle_slots_that_nothing_waits_for_are_spare() {
        assert_eq!(granted(&[2, 0], vec![demand(0, 0, 0, 0, &["w0", "w0", "w0"])]), [2]);
        assert_eq!(granted(&[2, 0], vec![demand(0, 1, 0, 0, &["w0", "w0", "w0"])]), [1], "a task waits");
        assert_eq!(granted(&[2, 0], vec![demand(0, 1, 1, 0, &["w0", "w0", "w0"])]), [0], "and one is on its way");
        assert_eq!(granted(&[2, 1], vec![demand(0, 0, 0, 1, &["w0", "w0"])]), [2], "one is out, and one may follow");
        assert_eq!(granted(&[2, 2], vec![demand(0, 0, 0, 1, &["w0", "w0"])]), [1]);
        assert_eq!(granted(&[2, 0], vec![demand(0, 0, 0, 0, &[])]), [0]);
    }

    #[test]
    fn the_straggler_s_own_worker_is_no_help() {
        assert_eq!(granted(&[1], vec![demand(0, 0, 0, 0, &["w0"])]), [0]);
        assert_eq!(granted(&[1, 2], vec![demand(0, 0, 0, 0, &["w0", "w1"])]), [1]);
    }

    #[test]
    fn what_waits_for_another_run_comes_first_and_priorities_do() {
        assert_eq!(granted(&[2, 0], vec![demand(0, 0, 0, 0, &["w0"]), demand(0, 2, 0, 0, &[])]), [0, 0]);
        assert_eq!(granted(&[2, 1], vec![demand(0, 0, 0, 0, &["w0"]), demand(1, 0, 0, 0, &["w0"])]), [0, 1]);
    }

    #[test]
    fn a_task_that_waits_in_another_lane_of_the_same_workers_counts() {
        let model = tests::lane(Some("m"));
        let mut run = demand(0, 0, 0, 0, &["w0"]);
        run.lanes.insert(model, Demand { waiting: 2, handed_out: 0, offered: 0 });
        assert_eq!(granted(&[2, 0], vec![run]), [0]);
    }

    #[test]
    fn a_draining_worker_has_no_spare_slot() {
        let demands: Demands = [(RunId("r0".into()), demand(0, 0, 0, 0, &["w0"]))].into();
        let mut fleet = fleet(&[2, 0], &demands);
        fleet.drain(&WorkerId("w1".into()));
        assert_eq!(fleet.second_attempts(&demands)[&RunId("r0".into())][&any()], 0);
    }
}
