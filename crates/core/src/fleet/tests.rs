use super::*;
use proptest::prelude::*;

fn lane(model: Option<&str>) -> Lane {
    Lane { pool: "cpu".into(), model: model.map(Into::into) }
}

pub(super) fn beat(worker: &str, slots: u32, models: &[&str]) -> Beat {
    Beat {
        worker: WorkerId(worker.into()),
        host: worker.into(),
        pool: "cpu".into(),
        slots,
        memory_mb: 1000,
        gpu_memory_mb: None,
        models: models.iter().map(|m| (*m).to_owned()).collect(),
        draining: false,
        at_work: vec![],
        program: "test".into(),
    }
}

fn run(id: &str, priority: i32, weight: u32, lanes: &[(Option<&str>, u64)]) -> (RunId, RunDemand) {
    let lanes =
        lanes.iter().map(|(m, waiting)| (lane(*m), Demand { waiting: *waiting, ..Demand::default() })).collect();
    (RunId(id.into()), RunDemand { priority, weight, lanes, ..RunDemand::default() })
}

fn fleet(workers: u32) -> Fleet {
    let mut fleet = Fleet::default();
    for n in 0..workers {
        fleet.hear(beat(&format!("w{n}"), 1, &[]), TimeMs(0));
    }
    fleet
}

fn model_of(fleet: &Fleet, worker: &str) -> Option<String> {
    fleet.member(&WorkerId(worker.into()))?.lanes.first()?.model.clone()
}

#[test]
fn a_silent_worker_is_lost_once() {
    let mut fleet = fleet(2);
    fleet.hear(beat("w1", 1, &[]), TimeMs(10_000));
    assert_eq!(fleet.lose(TimeMs(14_999)), []);
    assert_eq!(fleet.lose(TimeMs(15_000)), [WorkerId("w0".into())]);
    assert_eq!(fleet.lose(TimeMs(15_000)), []);
    assert!(fleet.hear(beat("w0", 1, &[]), TimeMs(16_000)), "it is new when it speaks again");
}

#[test]
fn while_nobody_can_be_heard_nobody_is_lost() {
    let mut fleet = fleet(1);
    fleet.excuse(TimeMs(60_000));
    assert_eq!(fleet.lose(TimeMs(60_000)), []);
    assert_eq!(fleet.lose(TimeMs(75_000)), [WorkerId("w0".into())]);
}

#[test]
fn workers_spread_over_models_and_keep_theirs() {
    let mut fleet = fleet(3);
    let mut demands = Demands::from([run("a", 0, 1, &[(Some("m1"), 90), (Some("m2"), 10), (Some("m3"), 10)])]);
    assert_eq!(fleet.assign(&demands).len(), 3);
    let first: Vec<_> = (0..3).map(|n| model_of(&fleet, &format!("w{n}"))).collect();
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3, "each model has a worker: {first:?}");
    assert!(fleet.assign(&demands).is_empty(), "nothing changed, so nobody moves");
    // m2 is done: its worker helps where most is left, and no other moves.
    for run in demands.values_mut() {
        run.lanes.remove(&lane(Some("m2")));
    }
    assert_eq!(fleet.assign(&demands).len(), 1);
    let later: Vec<_> = (0..3).map(|n| model_of(&fleet, &format!("w{n}"))).collect();
    assert_eq!(later.iter().filter(|m| m.as_deref() == Some("m1")).count(), 2, "{later:?}");
}

#[test]
fn a_worker_takes_the_model_that_it_has_and_a_new_model_gets_a_worker() {
    let mut fleet = Fleet::default();
    fleet.hear(beat("w0", 1, &["m2"]), TimeMs(0));
    fleet.hear(beat("w1", 1, &["m1"]), TimeMs(0));
    let demands = Demands::from([run("a", 0, 1, &[(Some("m1"), 5), (Some("m2"), 5)])]);
    fleet.assign(&demands);
    assert_eq!(model_of(&fleet, "w0").as_deref(), Some("m2"));
    assert_eq!(model_of(&fleet, "w1").as_deref(), Some("m1"));
    let demands = Demands::from([run("a", 0, 1, &[(Some("m1"), 5)])]);
    fleet.assign(&demands);
    let demands = Demands::from([run("a", 0, 1, &[(Some("m1"), 5), (Some("m9"), 1)])]);
    fleet.assign(&demands);
    let models: BTreeSet<_> = ["w0", "w1"].iter().filter_map(|w| model_of(&fleet, w)).collect();
    assert_eq!(models, BTreeSet::from(["m1".to_owned(), "m9".to_owned()]));
}

#[test]
fn priority_goes_first_and_equals_share_by_weight() {
    let mut fleet = fleet(10);
    let demands =
        Demands::from([run("a", 0, 3, &[(None, 100)]), run("b", 0, 1, &[(None, 100)]), run("c", 5, 1, &[(None, 4)])]);
    fleet.assign(&demands);
    let grants = fleet.grants(&demands);
    let granted = |id: &str| grants[&RunId(id.into())].get(&lane(None)).copied().unwrap_or(0);
    assert_eq!((granted("a"), granted("b"), granted("c")), (12, 4, 4));
}

#[test]
fn what_one_run_does_not_need_goes_to_the_others() {
    let mut fleet = fleet(10);
    let demands = Demands::from([run("a", 0, 1, &[(None, 3)]), run("b", 0, 1, &[(None, 100)])]);
    fleet.assign(&demands);
    let grants = fleet.grants(&demands);
    assert_eq!(grants[&RunId("a".into())][&lane(None)], 3);
    assert_eq!(grants[&RunId("b".into())][&lane(None)], 17);
}

#[test]
fn a_draining_worker_gives_no_slots() {
    let mut fleet = fleet(2);
    let demands = Demands::from([run("a", 0, 1, &[(None, 100)])]);
    fleet.assign(&demands);
    assert_eq!(fleet.slots(&lane(None)), 2);
    assert!(fleet.drain(&WorkerId("w0".into())));
    assert!(!fleet.drain(&WorkerId("nobody".into())));
    assert_eq!(fleet.slots(&lane(None)), 1);
}

proptest! {
    /// Nobody gets more than it can use, all places are used when they can be, and no priority passes a higher one.
    #[test]
    fn places_are_shared_out_exactly(
        places in 0..200u32,
        runs in proptest::collection::vec((0..3i32, 0..5u32, 0..60u64, 0..20u32), 1..8),
    ) {
        let demands: Demands = runs.iter().enumerate().map(|(n, (priority, weight, waiting, handed_out))| {
            let demand = Demand { waiting: *waiting, handed_out: *handed_out, ..Demand::default() };
            let lanes = BTreeMap::from([(lane(None), demand)]);
            (RunId(format!("r{n}")), RunDemand { priority: *priority, weight: *weight, lanes, ..RunDemand::default() })
        }).collect();
        let shares = share(&lane(None), places, &demands);
        let uses = |run: &RunDemand| run.lanes.values().map(|d| d.waiting as u32 + d.handed_out).sum::<u32>();
        let all: u32 = demands.values().map(uses).sum();
        prop_assert_eq!(shares.values().sum::<u32>(), places.min(all));
        for (id, run) in &demands {
            let share = shares.get(id).copied().unwrap_or(0);
            prop_assert!(share <= uses(run));
            if share < uses(run) {
                let lower = demands.iter().filter(|(_, other)| other.priority < run.priority);
                prop_assert!(lower.into_iter().all(|(other, _)| shares.get(other).copied().unwrap_or(0) == 0));
            }
        }
    }
}
