//! Which ready tasks are handed out next: retries that are due, then by rank, and of those with a named limit no more than
//! it allows.
//!
//! Whatever a limit holds back lets others go first, so slots stay free only when no task may have them.

use super::{RunState, retry, state::Rank};
use crate::{
    ids::{TaskId, TimeMs},
    lane::Slots,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

/// At most `free` tasks that these slots serve. `caps` bounds named limits further.
pub(super) fn next(
    state: &RunState,
    slots: &Slots,
    free: usize,
    caps: &BTreeMap<String, u32>,
    now: TimeMs,
) -> Vec<TaskId> {
    let graph = &state.graph;
    let left = graph.caps.iter().zip(&state.index.capped);
    let mut left: Vec<u32> = left
        .map(|((name, most), out)| caps.get(name).map_or(*most, |cap| *most.min(cap)).saturating_sub(*out))
        .collect();
    let is_open = |left: &[u32], stage: u32| graph.caps_of[stage as usize].iter().all(|cap| left[*cap] > 0);
    let mut chosen: Vec<TaskId> = Vec::new();
    let mut known: BTreeSet<TaskId> = BTreeSet::new();
    // Every further round has a stage less that is open.
    loop {
        let wanted = free - chosen.len();
        let may = |task: &TaskId| is_open(&left, task.stage) && !known.contains(task);
        let (mut due, mut ready): (Vec<&(TimeMs, TaskId)>, Vec<Rank>) = (Vec::new(), Vec::new());
        for lane in state.lanes_of(slots) {
            due.extend(retry::due(&state.index.delayed[lane], now).filter(|(_, task)| may(task)).take(wanted));
            ready.extend(
                of_open_stages(&state.index.ready[lane], |stage| is_open(&left, stage))
                    .filter(|(_, task)| may(task))
                    .take(wanted),
            );
        }
        due.sort_unstable();
        ready.sort_unstable();
        let candidates: Vec<TaskId> =
            due.into_iter().map(|(_, task)| *task).chain(ready.into_iter().map(|(_, task)| task)).collect();
        let mut closed = false;
        for task in candidates {
            if chosen.len() == free {
                break;
            }
            if is_open(&left, task.stage) {
                graph.caps_of[task.stage as usize].iter().for_each(|cap| left[*cap] -= 1);
                known.insert(task);
                chosen.push(task);
            } else {
                closed = true;
            }
        }
        if chosen.len() == free || !closed {
            return chosen;
        }
    }
}

/// Ready tasks of stages that are open, in their order. Passes over the tasks of a stage that is not at once, however many
/// they are.
fn of_open_stages<'a>(
    ready: &'a BTreeSet<Rank>,
    is_open: impl Fn(u32) -> bool + 'a,
) -> impl Iterator<Item = Rank> + 'a {
    let mut after = Bound::Unbounded;
    std::iter::from_fn(move || {
        loop {
            let rank = *ready.range((after, Bound::Unbounded)).next()?;
            let (many, task) = rank;
            if is_open(task.stage) {
                after = Bound::Excluded(rank);
                return Some(rank);
            }
            after = Bound::Excluded((many, TaskId { shard: u32::MAX, ..task }));
        }
    })
}
