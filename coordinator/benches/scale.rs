//! What a large run costs the coordinator: time and memory to know every task of a plan, and to take up the run again
//! from its journal.
//!
//! `CARGO_TARGET_DIR=target-light cargo bench -p rallrec-coordinator --bench scale [-- TASKS...]`. Each figure is of a process of
//! its own, so that its memory is its own; the limits stand beside it. The journal is on the disk of the temporary folder.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints its measurements")]

use rallrec_core::{
    ids::{Attempt, RunId, TaskId, TimeMs, WorkerId},
    lane::Slots,
    plan::{Pins, Plan},
    run::{Event, Input, JournalRecord, RunState, apply, decide},
    task::{ArtifactSummary, Outcome, TaskReport},
};
use rallrec_store::{Records, Store};
use std::{path::Path, sync::Arc, time::Instant};

/// Seconds in which a plan of a million tasks should be known.
const SECONDS: f64 = 5.0;

/// MiB that a million tasks may take.
const MIB: f64 = 2048.0;

/// Signals whose events make one record, as when reports come faster than records are put.
const SIGNALS: usize = 256;

/// Records between two snapshots: fewer than a driver's 1,000 for runs of fewer tasks, so that there is one at all.
const SNAPSHOT_RECORDS: usize = 300;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    match arguments.as_slice() {
        [phase, tasks, folder] => {
            let (tasks, folder): (u64, _) = (tasks.parse().unwrap(), Path::new(folder));
            match phase.as_str() {
                "compile" => compile(tasks),
                "journal" => journal(tasks, folder).await,
                "start" => start(folder, "the latest snapshot and what came after it").await,
                "replay" => {
                    std::fs::remove_dir_all(folder.join("runs/scale/snapshots")).unwrap();
                    start(folder, "the whole journal").await;
                }
                other => panic!("no phase {other}"),
            }
        }
        [] => [100_000, 1_000_000].iter().for_each(|tasks| measure(*tasks)),
        tasks => tasks.iter().for_each(|tasks| measure(tasks.parse().unwrap())),
    }
}

/// Each phase in a process of its own.
fn measure(tasks: u64) {
    let folder = tempfile::tempdir().unwrap();
    for phase in ["compile", "journal", "start", "replay"] {
        let program = std::env::current_exe().unwrap();
        let ended = std::process::Command::new(program).args([phase, &tasks.to_string()]).arg(folder.path()).status();
        assert!(ended.unwrap().success());
    }
}

fn plan(tasks: u64) -> Plan {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/fan.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let pipeline = rallrec_core::spec::compile("fan.yaml", &text, &[("tasks".into(), tasks.to_string())]).unwrap();
    Plan::new(&pipeline, &Pins::default()).unwrap()
}

/// From the pipeline's text to a state that knows every task and its key.
fn compile(tasks: u64) {
    let began = Instant::now();
    let mut state = RunState::new(RunId("scale".into()), Arc::new(plan(tasks))).unwrap();
    let mut events = Vec::new();
    take(&mut state, Input::Start, &mut events);
    commit(&mut state, TaskId { stage: 0, shard: 0 }, tasks, &mut events);
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(state.view().stages[1].tasks, Some(tasks));
    tell(tasks, "from pipeline text to every task", seconds);
}

/// Writes the journal of a run all of whose tasks were computed but the last.
async fn journal(tasks: u64, folder: &Path) {
    let mut records = records(folder).await;
    let mut state = RunState::new(RunId("scale".into()), Arc::new(plan(tasks))).unwrap();
    let mut events = Vec::new();
    take(&mut state, Input::Start, &mut events);
    commit(&mut state, TaskId { stage: 0, shard: 0 }, tasks, &mut events);
    let (mut bytes, mut count) = (0, 0);
    for first in (0..tasks as u32 - 1).step_by(SIGNALS) {
        for shard in first..(first + SIGNALS as u32).min(tasks as u32 - 1) {
            commit(&mut state, TaskId { stage: 1, shard }, 1, &mut events);
        }
        let record = JournalRecord::new(std::mem::take(&mut events)).encode().unwrap();
        records.append(&record).await.unwrap();
        bytes += record.len();
        count += 1;
        // As drivers do.
        if count % SNAPSHOT_RECORDS == 0 {
            records.keep_snapshot(&state.snapshot().encode().unwrap()).await.unwrap();
        }
    }
    println!("{tasks} tasks: journal of {count} records, {:.0} MB", bytes as f64 / 1e6);
}

/// What a coordinator does that takes a run over.
async fn start(folder: &Path, from: &str) {
    let began = Instant::now();
    let mut records = records(folder).await;
    let state = rallrec_coordinator::replay(&mut records).await.unwrap().unwrap();
    let seconds = began.elapsed().as_secs_f64();
    let fan = &state.view().stages[1];
    assert_eq!(fan.done + 1, fan.tasks.unwrap());
    tell(fan.tasks.unwrap(), &format!("from {from} to the state"), seconds);
}

async fn records(folder: &Path) -> Records {
    Records::of_run(Store::local(folder).await.unwrap(), &RunId("scale".into()), "bench")
}

fn take(state: &mut RunState, input: Input, events: &mut Vec<Event>) {
    for event in decide(state, input, TimeMs(1_790_000_000_000)).unwrap() {
        apply(state, &event).unwrap();
        events.push(event);
    }
}

/// A task from the store's answer to its commit.
fn commit(state: &mut RunState, task: TaskId, rows: u64, events: &mut Vec<Event>) {
    take(state, Input::Probed { task, after: 0, found: None }, events);
    take(state, Input::Capacity { slots: Slots::from("cpu"), free: 1 }, events);
    let report = |outcome| {
        let (run, worker) = (RunId("scale".into()), WorkerId("w-1".into()));
        Input::Report(TaskReport { run, task, attempt: Attempt(1), worker, outcome })
    };
    take(state, report(Outcome::Started), events);
    let summary = ArtifactSummary { rows: [("rows".into(), rows)].into(), bytes: 900, seconds: 0.01, bad_rows: 0 };
    take(state, report(Outcome::Committed { summary, first: true }), events);
}

fn tell(tasks: u64, what: &str, seconds: f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
    let mib = peak.map_or(f64::NAN, |kb| kb.trim().parse::<f64>().unwrap() / 1024.0);
    let million = tasks as f64 / 1e6;
    println!(
        "{tasks} tasks: {what}: {seconds:.2} s ({:.2} of {SECONDS} s a million), {mib:.0} MiB at most ({:.2} of {MIB} MiB a million)",
        seconds / million / SECONDS,
        mib / million / MIB,
    );
}
