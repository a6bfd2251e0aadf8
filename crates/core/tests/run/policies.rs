//! Single rules of the run, each by a small case worked out by hand, and the run's cost at scale.

use crate::plans::{defaults, need, stage};
use rallrec_core::{
    ids::{Attempt, RunId, TaskId, TimeMs, WorkerId},
    kind::{Mode, StageKind},
    plan::{Plan, PlannedStage},
    run::{Effect, Event, Input, Next, Phase, Rejection, RunOutcome, RunState, TaskState, apply, decide, owed},
    task::{ArtifactSummary, FailureClass, MemoryMb, Outcome, TaskReport},
};
use std::sync::Arc;

pub(crate) const SOURCE: TaskId = TaskId { stage: 0, shard: 0 };

pub(crate) fn row_wise(position: usize, needs: Vec<rallrec_core::plan::Need>, shard_rows: u64) -> PlannedStage {
    stage(position, StageKind::Retrieve, defaults(StageKind::Retrieve), needs, Some(shard_rows))
}

pub(crate) fn source() -> PlannedStage {
    stage(0, StageKind::Dataset, defaults(StageKind::Dataset), Vec::new(), None)
}

pub(crate) fn start(stages: Vec<PlannedStage>) -> RunState {
    let plan = Plan { version: 1, pipeline: "p".into(), stages };
    let mut state = RunState::new(RunId("r".into()), Arc::new(plan)).unwrap();
    tell(&mut state, 0, Input::Start).unwrap();
    state
}

pub(crate) fn tell(state: &mut RunState, now: u64, input: Input) -> Result<Vec<Event>, Rejection> {
    let events = decide(state, input, TimeMs(now))?;
    for event in &events {
        apply(state, event).unwrap();
    }
    Ok(events)
}

pub(crate) fn probe(state: &mut RunState, task: TaskId, rows: Option<&[(&str, u64)]>) -> Vec<Event> {
    let found = rows.map(|rows| ArtifactSummary {
        rows: rows.iter().map(|(t, n)| (t.to_string(), *n)).collect(),
        ..Default::default()
    });
    let after = state.attempts(task).unwrap();
    tell(state, 0, Input::Probed { task, after, found }).unwrap()
}

pub(crate) fn report(task: TaskId, attempt: u32, outcome: Outcome) -> Input {
    Input::Report(TaskReport {
        run: RunId("r".into()),
        task,
        attempt: Attempt(attempt),
        worker: WorkerId("w".into()),
        outcome,
    })
}

pub(crate) fn failed(class: FailureClass) -> Outcome {
    Outcome::Failed { class, message: "it broke".into(), needed: MemoryMb::default() }
}

fn committed(rows: &[(&str, u64)]) -> Outcome {
    let rows = rows.iter().map(|(t, n)| (t.to_string(), *n)).collect();
    Outcome::Committed { summary: ArtifactSummary { rows, ..Default::default() }, first: true }
}

/// The next attempt at the source, begun.
fn attempt(state: &mut RunState, now: u64) {
    probe(state, SOURCE, None);
    let events = tell(state, now, Input::Capacity { slots: "cpu".into(), free: 1 }).unwrap();
    assert_eq!(events.len(), 1, "{:?}", state.task(SOURCE));
    let number = state.attempts(SOURCE).unwrap();
    tell(state, now, report(SOURCE, number, Outcome::Started)).unwrap();
}

#[test]
fn a_permanent_failure_ends_the_run_but_not_what_does_not_depend_on_it() {
    let mut other = source();
    other.stage_key = rallrec_core::key::Key("other".into());
    let mut state = start(vec![source(), other, row_wise(2, vec![need(0, "a", Mode::Drive)], 2)]);
    attempt(&mut state, 0);
    tell(&mut state, 0, report(SOURCE, 1, failed(FailureClass::Permanent))).unwrap();
    assert_eq!(owed(&state).collect::<Vec<_>>(), [Effect::Probe { task: TaskId { stage: 1, shard: 0 }, after: 0 }]);
    probe(&mut state, TaskId { stage: 1, shard: 0 }, Some(&[]));
    assert_eq!(owed(&state).collect::<Vec<_>>(), [Effect::Finish { outcome: RunOutcome::Failed }]);
    tell(&mut state, 0, Input::Finish).unwrap();
    let view = state.view();
    assert_eq!(view.outcome, Some(RunOutcome::Failed));
    assert_eq!(view.stages[0].error.as_ref().unwrap().message, "it broke");
    assert_eq!(view.stages[2].tasks, None);
}

#[test]
fn bad_rows_are_bounded_over_the_stage_and_not_over_each_shard() {
    let mut bounded = row_wise(1, vec![need(0, "a", Mode::Drive)], 2);
    bounded.max_bad_rows = 3;
    let mut state = start(vec![source(), bounded]);
    probe(&mut state, SOURCE, Some(&[("a", 4)]));
    let found = |shard| {
        let found = Some(ArtifactSummary { bad_rows: 2, ..Default::default() });
        Input::Probed { task: TaskId { stage: 1, shard }, after: 0, found }
    };
    tell(&mut state, 0, found(0)).unwrap();
    assert!(matches!(state.task(TaskId { stage: 1, shard: 0 }), Some(TaskState::Done(_))));
    tell(&mut state, 0, found(1)).unwrap();
    assert!(matches!(state.task(TaskId { stage: 1, shard: 1 }), Some(TaskState::Failed(_))));
    let view = state.view();
    let message = &view.stages[1].error.as_ref().unwrap().message;
    assert!(message.starts_with("4 bad rows in the stage so far, and max_bad_rows is 3"), "{message}");
}

#[test]
fn transient_failures_wait_and_then_use_up_the_attempts() {
    let mut state = start(vec![source()]);
    let mut now = 0;
    for n in 1..=2 {
        attempt(&mut state, now);
        tell(&mut state, now, report(SOURCE, n, failed(FailureClass::Transient))).unwrap();
        probe(&mut state, SOURCE, None);
        let due = now + state.next_retry_ms(TimeMs(now)).unwrap();
        let nominal = 1000 << (n - 1);
        assert!((now + nominal / 2..=now + nominal).contains(&due), "{due}");
        assert!(tell(&mut state, due - 1, Input::Capacity { slots: "cpu".into(), free: 1 }).unwrap().is_empty());
        now = due;
        // Probed again by `attempt`: as after a crash.
        tell(&mut state, now, Input::Resume).unwrap();
    }
    attempt(&mut state, now);
    tell(&mut state, now, report(SOURCE, 3, failed(FailureClass::Transient))).unwrap();
    assert!(matches!(state.task(SOURCE), Some(TaskState::Failed(_))));
}

/// Found by seed 22341 of the simulation: one task was due in a lane that no worker asked, and nobody looked when the next
/// one, of a lane with a free worker, became due. The run stood still.
#[test]
fn a_task_that_is_due_and_has_no_slot_hides_no_later_one() {
    let mut other = source();
    other.resources.pool = "gpu".into();
    let mut state = start(vec![source(), other]);
    let tasks = [SOURCE, TaskId { stage: 1, shard: 0 }];
    for task in tasks {
        probe(&mut state, task, None);
    }
    for (now, pool) in [(0, "cpu"), (400, "gpu")] {
        tell(&mut state, now, Input::Capacity { slots: pool.into(), free: 1 }).unwrap();
    }
    for (now, task) in [(0, tasks[0]), (400, tasks[1])] {
        tell(&mut state, now, report(task, 1, failed(FailureClass::Transient))).unwrap();
        probe(&mut state, task, None);
    }
    let first = 400 + state.next_retry_ms(TimeMs(400)).unwrap();
    let second = first + state.next_retry_ms(TimeMs(first)).expect("the second still waits");
    assert!(second > first);
    let events = tell(&mut state, second, Input::Capacity { slots: "gpu".into(), free: 1 }).unwrap();
    assert!(matches!(&events[..], [Event::TaskDispatched { task, .. }] if *task == tasks[1]), "{events:?}");
    assert_eq!(state.next_retry_ms(TimeMs(second)), None);
}

#[test]
fn losses_do_not_use_up_attempts_but_three_are_quarantine() {
    let mut state = start(vec![source()]);
    for n in 1..=3 {
        attempt(&mut state, 0);
        let events = tell(&mut state, 0, Input::WorkerLost { worker: WorkerId("w".into()) }).unwrap();
        let expected = if n < 3 { Next::Replace { counts: true } } else { Next::GiveUp };
        assert!(matches!(&events[..], [Event::TaskFailed { next, .. }] if *next == expected), "{events:?}");
    }
    assert_eq!(
        tell(&mut state, 0, report(SOURCE, 3, failed(FailureClass::Transient))),
        Err(Rejection::Stale { task: SOURCE })
    );
}

#[test]
fn a_late_commit_is_welcome_even_after_giving_up() {
    let mut state = start(vec![source()]);
    for _ in 1..=3 {
        attempt(&mut state, 0);
        tell(&mut state, 0, Input::WorkerLost { worker: WorkerId("w".into()) }).unwrap();
    }
    tell(&mut state, 0, report(SOURCE, 1, committed(&[("a", 1)]))).unwrap();
    assert_eq!(tell(&mut state, 0, report(SOURCE, 2, committed(&[]))), Err(Rejection::Duplicate { task: SOURCE }));
    assert_eq!(owed(&state).collect::<Vec<_>>(), [Effect::Finish { outcome: RunOutcome::Done }]);
}

#[test]
fn reports_that_cannot_be_are_told_from_late_ones() {
    let mut state = start(vec![source()]);
    let unknown = tell(&mut state, 0, report(SOURCE, 1, committed(&[]))).unwrap_err();
    assert_eq!(unknown, Rejection::Unknown { task: SOURCE, attempt: Attempt(1) });
    assert!(!unknown.is_harmless());
    attempt(&mut state, 0);
    assert_eq!(tell(&mut state, 0, report(SOURCE, 1, Outcome::Started)), Err(Rejection::Duplicate { task: SOURCE }));
    let Input::Report(mut other) = report(SOURCE, 1, Outcome::Started) else { unreachable!() };
    other.run = RunId("another".into());
    assert!(matches!(tell(&mut state, 0, Input::Report(other)), Err(Rejection::OtherRun { .. })));
}

#[test]
fn cancelling_withdraws_offers_waits_for_running_ones_and_can_be_resumed() {
    let mut state = start(vec![source(), row_wise(1, vec![need(0, "a", Mode::Drive)], 1)]);
    probe(&mut state, SOURCE, Some(&[("a", 3)]));
    let shard = |shard| TaskId { stage: 1, shard };
    (0..3).for_each(|s| drop(probe(&mut state, shard(s), None)));
    tell(&mut state, 0, Input::Capacity { slots: "cpu".into(), free: 2 }).unwrap();
    tell(&mut state, 0, report(shard(0), 1, Outcome::Started)).unwrap();
    tell(&mut state, 0, Input::Cancel).unwrap();
    assert_eq!(owed(&state).count(), 0, "one attempt runs, and nothing else may begin");
    assert!(tell(&mut state, 0, Input::Capacity { slots: "cpu".into(), free: 2 }).unwrap().is_empty());
    // A worker that stops because the run does is not a loss.
    let events = tell(&mut state, 0, report(shard(0), 1, failed(FailureClass::Lost))).unwrap();
    assert!(matches!(&events[..], [Event::TaskFailed { next: Next::Replace { counts: false }, .. }]));
    tell(&mut state, 0, Input::Finish).unwrap();
    assert_eq!(state.phase(), Phase::Finished(RunOutcome::Cancelled));
    tell(&mut state, 0, Input::Resume).unwrap();
    assert_eq!(owed(&state).count(), 3);
}

#[test]
fn a_shard_starts_as_soon_as_the_shards_that_cover_it_are_done() {
    // Rows 0..10: upstream shards of 3 (0..3, 3..6, 6..9, 9..10), downstream of 4 (0..4, 4..8, 8..10).
    let mut state = start(vec![
        source(),
        row_wise(1, vec![need(0, "a", Mode::Drive)], 3),
        row_wise(2, vec![need(1, "a", Mode::Drive)], 4),
    ]);
    let events = probe(&mut state, SOURCE, Some(&[("a", 10)]));
    assert_eq!(events[1..], [Event::StageSharded { stage: 1, rows: 10 }, Event::StageSharded { stage: 2, rows: 10 }]);
    let down = |shard| TaskId { stage: 2, shard };
    (0..3).for_each(|s| drop(probe(&mut state, down(s), None)));
    let up = |state: &mut RunState, shard| drop(probe(state, TaskId { stage: 1, shard }, Some(&[("a", 3)])));
    let ready = |state: &RunState, s| matches!(state.task(down(s)), Some(TaskState::Ready(_)));
    up(&mut state, 0);
    assert!(!ready(&state, 0));
    up(&mut state, 1);
    assert!(ready(&state, 0) && !ready(&state, 1));
    up(&mut state, 3);
    assert!(!ready(&state, 2));
    up(&mut state, 2);
    assert!(ready(&state, 1) && ready(&state, 2));
    tell(&mut state, 0, Input::Capacity { slots: "cpu".into(), free: 9 }).unwrap();
    let offer = state.offer(down(1), Attempt(1)).unwrap();
    let held: Vec<_> = offer.inputs[0].shards.iter().map(|s| s.rows.unwrap().to_string()).collect();
    assert_eq!(held, ["3..6", "6..9"]);
}

#[test]
fn an_aligned_table_that_is_too_short_fails_the_task_and_names_the_way_out() {
    let stages = vec![source(), row_wise(1, vec![need(0, "a", Mode::Drive), need(0, "b", Mode::Aligned)], 4)];
    let mut state = start(stages);
    probe(&mut state, SOURCE, Some(&[("a", 8), ("b", 6)]));
    (0..2).for_each(|shard| drop(probe(&mut state, TaskId { stage: 1, shard }, None)));
    let events = tell(&mut state, 0, Input::Capacity { slots: "cpu".into(), free: 9 }).unwrap();
    assert!(matches!(&events[0], Event::TaskDispatched { .. }));
    assert!(
        matches!(&events[1], Event::TaskFailed { message, .. } if message.contains("`s1` needs rows 4..8 of `s0.b`, which has 6")),
        "{events:?}"
    );
}

#[test]
fn an_artifact_without_the_driving_table_fails_its_task() {
    let mut state = start(vec![source(), row_wise(1, vec![need(0, "a", Mode::Drive)], 4)]);
    attempt(&mut state, 0);
    let events = tell(&mut state, 0, report(SOURCE, 1, committed(&[("b", 1)]))).unwrap();
    assert!(
        matches!(&events[..], [Event::TaskFailed { message, .. }] if message.contains("lacks table `a`")),
        "{events:?}"
    );
}

#[test]
fn a_stage_without_rows_is_one_shard() {
    let mut state = start(vec![source(), row_wise(1, vec![need(0, "a", Mode::Drive)], 4)]);
    probe(&mut state, SOURCE, Some(&[("a", 0)]));
    assert_eq!(state.shards(1).unwrap().count(), 1);
}

/// 100,000 shards from start to end; the time is printed (`--no-capture`), not judged, as machines differ.
#[test]
fn a_hundred_thousand_shards_are_workable() {
    let shards = 100_000u32;
    let stages = vec![
        source(),
        row_wise(1, vec![need(0, "a", Mode::Drive)], 1),
        row_wise(2, vec![need(1, "a", Mode::Drive)], 2000),
    ];
    let begun = std::time::Instant::now();
    let mut state = start(stages);
    let mut events = 0;
    probe(&mut state, SOURCE, Some(&[("a", u64::from(shards))]));
    while state.phase() == Phase::Active {
        let effects: Vec<Effect> = owed(&state).take(16).collect();
        for effect in effects {
            events += match effect {
                Effect::Probe { task, .. } => probe(&mut state, task, None).len(),
                Effect::Finish { .. } => tell(&mut state, 0, Input::Finish).unwrap().len(),
                Effect::Dispatch { task, attempt } => {
                    assert!(state.offer(task, attempt).is_some());
                    tell(&mut state, 0, report(task, attempt.0, Outcome::Started)).unwrap();
                    1 + tell(&mut state, 0, report(task, attempt.0, committed(&[("a", 1)]))).unwrap().len()
                }
            };
        }
        events += tell(&mut state, 0, Input::Capacity { slots: "cpu".into(), free: 4 }).unwrap_or_default().len();
    }
    let took = begun.elapsed();
    assert_eq!(state.view().stages[1].done, u64::from(shards));
    assert!(events > 4 * shards as usize);
    println!("{events} events of {shards} shards in {took:?}");
}
