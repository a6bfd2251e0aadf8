//! Second attempts beside tasks that take too long: when there are any, and what follows when one of the two ends.

use crate::{
    plans::need,
    policies::{SOURCE, failed, probe, report, row_wise, source, start, tell},
};
use rallrec_core::{
    ids::{Attempt, TaskId, TimeMs, WorkerId},
    kind::Mode,
    lane::Slots,
    models::{PinnedModel, RemoteModel},
    plan::PlannedStage,
    run::{
        Effect, Event, Input, Next, Phase, Rejection, RunOutcome, RunState, STRAGGLER_FLOOR_MS, TaskState, apply, owed,
    },
    task::{ArtifactSummary, FailureClass, Outcome, TaskReport},
};

fn shard(shard: u32) -> TaskId {
    TaskId { stage: 1, shard }
}

fn spare(free: u32) -> Input {
    Input::Spare { slots: "cpu".into(), free }
}

fn committed(seconds: f64) -> Outcome {
    Outcome::Committed { summary: ArtifactSummary { seconds, ..Default::default() }, first: true }
}

fn by(worker: &str, task: TaskId, attempt: u32, outcome: Outcome) -> Input {
    let Input::Report(said) = report(task, attempt, outcome) else { unreachable!() };
    Input::Report(TaskReport { worker: WorkerId(worker.into()), ..said })
}

fn doubled(events: &[Event]) -> Vec<(u32, u32)> {
    let shards = events.iter().filter_map(|event| match event {
        Event::TaskDoubled { task, attempt, .. } => Some((task.shard, attempt.0)),
        _ => None,
    });
    shards.collect()
}

/// Shards of a stage, all begun at once, each by a worker of its own.
fn begun(shards: u32) -> RunState {
    begun_of(row_wise(1, vec![need(0, "a", Mode::Drive)], 1), shards)
}

fn begun_of(stage: PlannedStage, shards: u32) -> RunState {
    let mut state = start(vec![source(), stage]);
    probe(&mut state, SOURCE, Some(&[("a", u64::from(shards))]));
    (0..shards).for_each(|n| drop(probe(&mut state, shard(n), None)));
    tell(&mut state, 0, Input::Capacity { slots: "cpu".into(), free: shards }).unwrap();
    for n in 0..shards {
        tell(&mut state, 0, by(&format!("w{n}"), shard(n), 1, Outcome::Started)).unwrap();
    }
    state
}

/// Two shards, of which the second straggles; its second attempt is begun, too.
fn second_begun() -> RunState {
    let mut state = begun(2);
    tell(&mut state, 0, report(shard(0), 1, committed(1.0))).unwrap();
    assert_eq!(doubled(&tell(&mut state, 20_000, spare(1)).unwrap()), [(1, 2)]);
    tell(&mut state, 20_000, by("other", shard(1), 2, Outcome::Started)).unwrap();
    state
}

fn next(events: &[Event]) -> Next {
    match events {
        [Event::TaskFailed { next, .. }] => *next,
        other => panic!("{other:?}"),
    }
}

fn attempts(state: &RunState) -> Vec<u32> {
    state.under_way(shard(1)).map(|running| running.attempt.0).collect()
}

#[test]
fn half_of_the_stage_must_be_done_and_the_task_take_twice_the_mean() {
    let mut state = begun(4);
    tell(&mut state, 20_000, report(shard(0), 1, committed(20.0))).unwrap();
    assert_eq!(doubled(&tell(&mut state, 1_000_000, spare(9)).unwrap()), []);
    tell(&mut state, 40_000, report(shard(1), 1, committed(40.0))).unwrap();
    let due = 60_000 + STRAGGLER_FLOOR_MS;
    assert_eq!(state.suspects().filter(|s| s.straggles(TimeMs(due))).count(), 0);
    assert_eq!(state.suspects().filter(|s| s.straggles(TimeMs(due + 1))).count(), 2);
    assert_eq!(doubled(&tell(&mut state, due, spare(9)).unwrap()), []);
    let other = Input::Spare { slots: Slots::Pool("gpu".into()), free: 9 };
    assert_eq!(doubled(&tell(&mut state, due + 1, other).unwrap()), []);
    assert_eq!(doubled(&tell(&mut state, due + 1, spare(1)).unwrap()), [(2, 2)]);
    assert_eq!(doubled(&tell(&mut state, due + 1, spare(9)).unwrap()), [(3, 2)]);
    assert_eq!(doubled(&tell(&mut state, 1_000_000, spare(9)).unwrap()), [], "one second attempt a task");
    let dispatch = |n| Effect::Dispatch { task: shard(n), attempt: Attempt(2) };
    assert_eq!(owed(&state).collect::<Vec<_>>(), [dispatch(2), dispatch(3)]);
    assert_eq!((state.handed_out(&"cpu".into()), state.doubled(&"cpu".into())), (4, 2));
    assert_eq!(state.offer(shard(2), Attempt(2)).unwrap().attempt, Attempt(2));
    assert_eq!(state.view().stages[1].running, 2, "tasks, not attempts");
}

#[test]
fn only_what_is_computed_is_compared() {
    // Of 6 shards 4 were there before: of the two that are left one is half.
    let mut state = start(vec![source(), row_wise(1, vec![need(0, "a", Mode::Drive)], 1)]);
    probe(&mut state, SOURCE, Some(&[("a", 6)]));
    (0..4).for_each(|n| drop(probe(&mut state, shard(n), Some(&[]))));
    (4..6).for_each(|n| drop(probe(&mut state, shard(n), None)));
    tell(&mut state, 0, Input::Capacity { slots: "cpu".into(), free: 2 }).unwrap();
    (4..6).for_each(|n| drop(tell(&mut state, 0, report(shard(n), 1, Outcome::Started)).unwrap()));
    assert_eq!(state.suspects().count(), 0);
    tell(&mut state, 0, report(shard(4), 1, committed(100.0))).unwrap();
    let suspects: Vec<_> = state.suspects().map(|suspect| (suspect.task, suspect.patience_ms)).collect();
    assert_eq!(suspects, [(shard(5), 200_000 + STRAGGLER_FLOOR_MS)]);
}

#[test]
fn a_model_behind_a_server_is_not_asked_twice() {
    let mut remote = row_wise(1, vec![need(0, "a", Mode::Drive)], 1);
    remote.model = Some(PinnedModel::Remote { name: "m".into(), remote: RemoteModel::default(), tokenizer: None });
    let mut state = begun_of(remote, 2);
    tell(&mut state, 0, report(shard(0), 1, committed(1.0))).unwrap();
    assert_eq!(doubled(&tell(&mut state, u64::MAX, spare(9)).unwrap()), []);
}

#[test]
fn a_stage_of_one_task_has_no_stragglers_and_a_waiting_offer_is_none() {
    let mut state = start(vec![source()]);
    probe(&mut state, SOURCE, None);
    tell(&mut state, 0, Input::Capacity { slots: "cpu".into(), free: 1 }).unwrap();
    tell(&mut state, 0, report(SOURCE, 1, Outcome::Started)).unwrap();
    assert_eq!(doubled(&tell(&mut state, u64::MAX, spare(9)).unwrap()), []);

    let mut state = start(vec![source(), row_wise(1, vec![need(0, "a", Mode::Drive)], 1)]);
    probe(&mut state, SOURCE, Some(&[("a", 2)]));
    (0..2).for_each(|n| drop(probe(&mut state, shard(n), None)));
    tell(&mut state, 0, Input::Capacity { slots: "cpu".into(), free: 2 }).unwrap();
    tell(&mut state, 0, report(shard(0), 1, committed(1.0))).unwrap();
    assert_eq!(doubled(&tell(&mut state, 1_000_000, spare(9)).unwrap()), [], "nobody has begun it");
}

/// Whoever leads by now may have another clock than whoever heard of the beginning.
#[test]
fn a_start_in_the_far_future_was_long_ago() {
    let mut state = begun(2);
    tell(&mut state, 5_000_000, by("w", shard(1), 1, Outcome::Started)).unwrap();
    tell(&mut state, 0, report(shard(0), 1, committed(1.0))).unwrap();
    let patience = 2_000 + STRAGGLER_FLOOR_MS;
    assert_eq!(doubled(&tell(&mut state, 5_000_000 - patience, spare(1)).unwrap()), []);
    assert_eq!(doubled(&tell(&mut state, 5_000_000 - patience - 1, spare(1)).unwrap()), [(1, 2)]);
}

#[test]
fn the_first_to_commit_wins_and_the_other_is_late() {
    for winner in [1, 2] {
        let mut state = second_begun();
        tell(&mut state, 0, report(shard(1), winner, committed(1.0))).unwrap();
        assert!(matches!(state.task(shard(1)), Some(TaskState::Done(_))));
        assert_eq!(state.handed_out(&"cpu".into()), 0);
        let loser = 3 - winner;
        let duplicate = Err(Rejection::Duplicate { task: shard(1) });
        assert_eq!(tell(&mut state, 0, report(shard(1), loser, committed(1.0))), duplicate);
        let stale = Err(Rejection::Stale { task: shard(1) });
        for outcome in [failed(FailureClass::Lost), failed(FailureClass::Transient), Outcome::Started] {
            assert_eq!(tell(&mut state, 0, report(shard(1), loser, outcome)), stale);
        }
        assert_eq!(tell(&mut state, 0, Input::AttemptLost { task: shard(1), attempt: Attempt(loser) }), stale);
        tell(&mut state, 0, Input::Finish).unwrap();
        assert_eq!(state.phase(), Phase::Finished(RunOutcome::Done));
    }
}

#[test]
fn what_fails_beside_another_counts_and_the_other_goes_on() {
    for first_to_fail in [1, 2] {
        let mut state = second_begun();
        let fail = |state: &mut RunState, attempt| {
            next(&tell(state, 0, report(shard(1), attempt, failed(FailureClass::Transient))).unwrap())
        };
        assert_eq!(fail(&mut state, first_to_fail), Next::Other { counts: true });
        assert_eq!(attempts(&state), [3 - first_to_fail]);
        assert_eq!(doubled(&tell(&mut state, 1_000_000, spare(9)).unwrap()), [], "it has had its second attempt");
        assert!(matches!(fail(&mut state, 3 - first_to_fail), Next::Retry { .. }));
        // Two of three attempts have failed.
        probe(&mut state, shard(1), None);
        tell(&mut state, 1_000_000, Input::Capacity { slots: "cpu".into(), free: 1 }).unwrap();
        assert_eq!(attempts(&state), [3]);
        tell(&mut state, 1_000_000, report(shard(1), 3, Outcome::Started)).unwrap();
        assert_eq!(doubled(&tell(&mut state, 1_020_000, spare(9)).unwrap()), [(1, 4)], "another may have one");
        assert_eq!(fail(&mut state, 4), Next::Other { counts: true });
        assert_eq!(fail(&mut state, 3), Next::GiveUp);
    }
}

#[test]
fn a_permanent_failure_waits_for_the_other_attempt() {
    let mut state = second_begun();
    let permanent = |attempt| report(shard(1), attempt, failed(FailureClass::Permanent));
    assert_eq!(next(&tell(&mut state, 0, permanent(2)).unwrap()), Next::Other { counts: true });
    assert_eq!(next(&tell(&mut state, 0, permanent(1)).unwrap()), Next::GiveUp);
}

#[test]
fn losses_count_as_ever_and_both_lost_is_one_replacement() {
    let mut state = second_begun();
    let lost = |worker: &str| Input::WorkerLost { worker: WorkerId(worker.into()) };
    assert_eq!(next(&tell(&mut state, 0, lost("other")).unwrap()), Next::Other { counts: true });
    assert_eq!(next(&tell(&mut state, 0, lost("w1")).unwrap()), Next::Replace { counts: true });
    assert_eq!(owed(&state).collect::<Vec<_>>(), [Effect::Probe { task: shard(1), after: 2 }]);
    probe(&mut state, shard(1), None);
    tell(&mut state, 0, Input::Capacity { slots: "cpu".into(), free: 1 }).unwrap();
    tell(&mut state, 0, by("w3", shard(1), 3, Outcome::Started)).unwrap();
    assert_eq!(next(&tell(&mut state, 0, lost("w3")).unwrap()), Next::GiveUp, "the third loss");

    // Both with one worker, which had the same offer twice.
    let mut state = second_begun();
    tell(&mut state, 0, by("w1", shard(1), 2, Outcome::Started)).unwrap();
    let events = tell(&mut state, 0, lost("w1")).unwrap();
    let next: Vec<_> = events.iter().map(|event| next(std::slice::from_ref(event))).collect();
    assert_eq!(next, [Next::Other { counts: true }, Next::Replace { counts: true }]);
}

#[test]
fn a_loss_that_does_not_count_leaves_the_task_its_second_attempt() {
    for lost in
        [Input::AttemptLost { task: shard(1), attempt: Attempt(2) }, report(shard(1), 2, failed(FailureClass::Lost))]
    {
        let mut state = second_begun();
        assert_eq!(next(&tell(&mut state, 0, lost).unwrap()), Next::Other { counts: false });
        assert_eq!(doubled(&tell(&mut state, 20_000, spare(1)).unwrap()), [(1, 3)]);
    }
}

#[test]
fn cancelling_takes_back_a_second_attempt_that_waits_and_lets_the_first_end() {
    let mut state = begun(2);
    tell(&mut state, 0, report(shard(0), 1, committed(1.0))).unwrap();
    tell(&mut state, 20_000, spare(1)).unwrap();
    tell(&mut state, 20_000, Input::Cancel).unwrap();
    assert_eq!(attempts(&state), [1]);
    assert_eq!(owed(&state).count(), 0);
    assert_eq!(tell(&mut state, 20_000, spare(1)).unwrap(), []);
    tell(&mut state, 20_000, report(shard(1), 1, committed(1.0))).unwrap();
    assert_eq!(owed(&state).collect::<Vec<_>>(), [Effect::Finish { outcome: RunOutcome::Done }]);
}

#[test]
fn what_cannot_be_doubled_is_refused() {
    let mut state = second_begun();
    let double = |attempt| Event::TaskDoubled { task: shard(1), attempt: Attempt(attempt), at: TimeMs(0) };
    assert!(apply(&mut state, &double(3)).is_err(), "two are under way");
    let mut state = begun(2);
    assert!(apply(&mut state, &double(3)).is_err(), "the second attempt is number 2");
    assert!(apply(&mut state, &double(2)).is_ok());
    let one_is_left = Event::TaskFailed {
        task: shard(1),
        attempt: Some(Attempt(1)),
        class: FailureClass::Lost,
        message: String::new(),
        next: Next::Replace { counts: true },
        at: TimeMs(0),
    };
    assert!(apply(&mut state, &one_is_left).is_err());
}
