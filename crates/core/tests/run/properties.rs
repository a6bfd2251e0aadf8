//! Properties of a run that hold in every world; proptest prints and keeps the seed of one where they do not.

use crate::{plans, world::World};
use proptest::prelude::*;
use rallrec_core::{
    lane::Slots,
    run::{Effect, Event, Input, Phase, RunOutcome, RunState, owed},
    task::FailureClass,
};

const CLASSES: [FailureClass; 5] = [
    FailureClass::Transient,
    FailureClass::Resource,
    FailureClass::Permanent,
    FailureClass::Lost,
    FailureClass::Unavailable,
];

/// One drawn action: `what` happens, to the `which`-th thing that it can happen to, `how`.
fn act(world: &mut World, what: u8, which: usize, how: usize) {
    match what {
        0..=3 => {
            let effects: Vec<Effect> = owed(&world.state).take(12).collect();
            if !effects.is_empty() {
                world.perform(effects[which % effects.len()]);
            }
        }
        4 | 5 => {
            let lanes = world.state.lanes();
            let lane = lanes[which % lanes.len()].clone();
            let slots = if how.is_multiple_of(8) { Slots::Pool(lane.pool) } else { Slots::Lane(lane) };
            world.tell(Input::Capacity { slots, free: (how % 4) as u32 });
        }
        6 | 7 if !world.offers.is_empty() => {
            let offer = world.offers.remove(which % world.offers.len());
            if how.is_multiple_of(8) {
                world.offers.push(offer.clone());
            }
            world.claim(offer);
        }
        8 | 9 if !world.claimed.is_empty() => {
            let (offer, worker) = world.claimed.remove(which % world.claimed.len());
            let report = world.commit(&offer, &worker);
            match how % 8 {
                0 => {}
                1 => world.inbox.extend([report.clone(), report]),
                _ => world.inbox.push(report),
            }
        }
        10 if !world.claimed.is_empty() => {
            let (offer, worker) = world.claimed.remove(which % world.claimed.len());
            world.fail(&offer, &worker, CLASSES[how % CLASSES.len()]);
        }
        11..=15 if !world.inbox.is_empty() => {
            let input = world.inbox.remove(which % world.inbox.len());
            if how.is_multiple_of(8) {
                world.inbox.push(input.clone());
            }
            world.tell(input);
        }
        16 if !world.claimed.is_empty() => {
            let at = which % world.claimed.len();
            let worker = world.claimed[at].1.clone();
            // Every other time it was only slow, and goes on.
            if how.is_multiple_of(2) {
                world.claimed.remove(at);
            }
            world.tell(Input::WorkerLost { worker });
        }
        17 => {
            if how.is_multiple_of(2) {
                world.offers.clear();
                world.claimed.clear();
            }
            world.inbox.truncate(which % 8);
            world.crash();
        }
        18 => world.cut_after = Some(how % 3),
        21 => world.take_over(),
        22 => {
            let running = world.under_way();
            if !running.is_empty() {
                let (task, attempt) = (running[which % running.len()].0, running[which % running.len()].1.attempt);
                world.tell(Input::AttemptLost { task, attempt });
            }
        }
        19 if how.is_multiple_of(4) => world.tell(Input::Cancel),
        20 => world.now += (which * 100) as u64,
        23 | 24 => {
            // Late enough for whatever runs to straggle.
            world.now += 20_000;
            let lane = world.state.lanes()[which % world.state.lanes().len()].clone();
            let slots = if how.is_multiple_of(2) { Slots::Pool(lane.pool) } else { Slots::Lane(lane) };
            world.tell(Input::Spare { slots, free: (how % 4) as u32 });
        }
        _ => {}
    }
    if matches!(world.state.phase(), Phase::Finished(RunOutcome::Failed | RunOutcome::Cancelled)) {
        world.tell(Input::Resume);
    }
}

/// Does what was drawn, and ends.
fn live(mut world: World, actions: Vec<(u8, prop::sample::Index, usize)>) {
    for (what, which, how) in actions {
        act(&mut world, what, which.index(1 << 16), how);
        world.check_against_scan();
    }
    world.settle();
    world.check_end();
    assert_eq!(RunState::replay(&world.journal).unwrap(), world.state);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn every_world_ends_and_keeps_the_promises(
        case in plans::case(),
        actions in proptest::collection::vec((0..25u8, any::<prop::sample::Index>(), 0..64usize), 0..250),
    ) {
        live(World::new(case), actions);
    }

    /// The same from a state in which half of a stage is done and every other task has a second attempt.
    #[test]
    fn every_world_with_stragglers_ends_and_keeps_the_promises(
        shards in 2..9u32,
        second_begun in any::<bool>(),
        actions in proptest::collection::vec((0..25u8, any::<prop::sample::Index>(), 0..64usize), 0..120),
    ) {
        let mut world = World::new(plans::wide(u64::from(shards)));
        world.straggle(second_begun);
        prop_assert_eq!(world.doubled, shards / 2);
        live(world, actions);
    }

    /// Every prefix of a journal, also one that ends within a decision, is a state that goes on to the end.
    #[test]
    fn a_crash_after_any_event_is_survived(case in plans::case(), at in any::<prop::sample::Index>()) {
        let mut world = World::new(case);
        world.settle();
        let store = world.store;
        let kept = 1 + at.index(world.journal.len());
        let journal = world.journal[..kept].to_vec();
        let mut again = World::new(world.case);
        again.state = RunState::replay(&journal).unwrap();
        again.journal = journal;
        again.store = store;
        let over = again.state.phase() == Phase::Finished(RunOutcome::Done);
        if !over {
            again.crash();
        }
        let before = again.journal.len();
        again.settle();
        again.check_end();
        // Everything is in the store already, so nothing is computed again.
        let none_dispatched = again.journal[before..].iter().all(|e| !matches!(e, Event::TaskDispatched { .. }));
        prop_assert!(none_dispatched);
    }

    /// With everything in the store, a run ends without an attempt.
    #[test]
    fn a_cached_run_dispatches_nothing(case in plans::case()) {
        let mut first = World::new(case.clone());
        first.settle();
        let mut second = World::new(case);
        second.store = first.store;
        second.settle();
        second.check_end();
        let none_dispatched = second.journal.iter().all(|e| !matches!(e, Event::TaskDispatched { .. }));
        prop_assert!(none_dispatched);
        prop_assert!(second.state.view().stages.iter().all(|s| s.reused == s.done));
    }
}
