//! Stages that turn out to need more memory.

use crate::{
    plans::need,
    policies::{row_wise, source},
};
use rallrec_core::{
    ids::{Attempt, RunId, TaskId, TimeMs, WorkerId},
    kind::Mode,
    lane::{Room, Slots},
    plan::Plan,
    run::{Event, Input, RunState, Snapshot, TaskState, apply, decide},
    task::{ArtifactSummary, FailureClass, MemoryMb, Outcome, TaskReport},
};
use std::sync::Arc;

fn tell(state: &mut RunState, input: Input) -> Vec<Event> {
    let events = decide(state, input, TimeMs(1)).unwrap();
    events.iter().for_each(|event| apply(state, event).unwrap());
    events
}

fn probe(state: &mut RunState, stage: u32, shard: u32) {
    let task = TaskId { stage, shard };
    let after = state.attempts(task).unwrap();
    tell(state, Input::Probed { task, after, found: None });
}

fn report(state: &mut RunState, shard: u32, stage: u32, outcome: Outcome) -> Vec<Event> {
    let task = TaskId { stage, shard };
    let attempt = Attempt(state.attempts(task).unwrap());
    let report = TaskReport { run: RunId("r".into()), task, attempt, worker: WorkerId("w".into()), outcome };
    tell(state, Input::Report(report))
}

fn out_of_memory(host: u64) -> Outcome {
    let needed = MemoryMb { host, gpu: 0 };
    Outcome::Failed { class: FailureClass::Resource, message: "it is full".into(), needed }
}

/// A table of six rows, and a stage of six tasks over it that need 2 GiB each; two of them are handed out.
fn begun() -> RunState {
    let mut rows = row_wise(1, vec![need(0, "a", Mode::Drive)], 1);
    rows.resources.memory_mb = 2048;
    let plan = Plan { version: 1, pipeline: "p".into(), stages: vec![source(), rows] };
    let mut state = RunState::new(RunId("r".into()), Arc::new(plan)).unwrap();
    tell(&mut state, Input::Start);
    probe(&mut state, 0, 0);
    tell(&mut state, Input::Capacity { slots: "cpu".into(), free: 1 });
    let summary = ArtifactSummary { rows: [("a".to_owned(), 6)].into(), ..ArtifactSummary::default() };
    report(&mut state, 0, 0, Outcome::Committed { summary, first: true });
    (0..6).for_each(|shard| probe(&mut state, 1, shard));
    tell(&mut state, Input::Capacity { slots: "cpu".into(), free: 2 });
    state
}

fn wanted(state: &RunState, shard: u32) -> u32 {
    state.lane_of_task(TaskId { stage: 1, shard }).unwrap().wanted.host_gib
}

#[test]
fn what_is_not_handed_out_waits_for_a_larger_worker() {
    let mut state = begun();
    let events = report(&mut state, 0, 1, out_of_memory(0));
    let grown = Room { gpu_gib: 0, host_gib: 4 };
    assert_eq!(events[0], Event::StageOutgrown { stage: 1, wanted: grown, at: TimeMs(1) });
    let lane = state.lane(1).unwrap().clone();
    assert_eq!((lane.least.host_gib, lane.wanted), (2, grown), "what a person wrote stays");
    assert_eq!([0, 1, 2, 5].map(|shard| wanted(&state, shard)), [4, 2, 4, 4], "task 1 is out, and stays where it is");
    let small = state.lane_of_task(TaskId { stage: 1, shard: 1 }).unwrap().clone();
    assert_eq!((state.waiting(&Slots::Lane(lane.clone())), state.waiting(&Slots::Lane(small.clone()))), (4, 0));
    assert_eq!(state.handed_out(&Slots::Lane(small.clone())), 1);
    // The same from the small lane again says nothing new.
    let events = report(&mut state, 1, 1, out_of_memory(0));
    assert!(events.iter().all(|event| !matches!(event, Event::StageOutgrown { .. })));
    assert_eq!((state.handed_out(&Slots::Lane(small)), wanted(&state, 1)), (0, 4));
    // What the worker says counts for more than doubling, also when it is less than the double.
    tell(&mut state, Input::Capacity { slots: Slots::Lane(lane), free: 1 });
    let out =
        (0..6).find(|shard| matches!(state.task(TaskId { stage: 1, shard: *shard }), Some(TaskState::Running(_))));
    report(&mut state, out.unwrap(), 1, out_of_memory(5 * 1024 + 1));
    assert_eq!(state.lane(1).unwrap().wanted.host_gib, 6);
}

#[test]
fn other_failures_ask_for_nothing() {
    let mut state = begun();
    let outcome = Outcome::Failed {
        class: FailureClass::Transient,
        message: "it broke".into(),
        needed: MemoryMb { host: 1 << 20, gpu: 0 },
    };
    report(&mut state, 0, 1, outcome);
    assert_eq!(state.lane(1).unwrap().wanted.host_gib, 2);
}

#[test]
fn a_need_grows_no_further_than_a_pipeline_may_ask_for() {
    let mut state = begun();
    report(&mut state, 0, 1, out_of_memory(u64::MAX));
    assert_eq!(state.lane(1).unwrap().wanted.host_gib, 16_384);
}

#[test]
fn a_snapshot_knows_what_grew_and_what_is_out_in_an_older_lane() {
    let mut state = begun();
    report(&mut state, 0, 1, out_of_memory(0));
    let bytes = state.snapshot().encode().unwrap();
    assert_eq!(RunState::restore(Snapshot::decode(&bytes).unwrap()).unwrap(), state);
}
