//! `kill -9` at random moments: the run resumes, ends with the same bytes, and no committed shard runs twice.

use crate::support::Home;
use rand_chacha::{ChaCha8Rng, rand_core::Rng as _};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    time::Duration,
};

const TINY: &str = "tests/pipelines/tiny.yaml";

/// Kills in a stage; `RALLREC_KILLS` asks for more.
fn kills(usual: usize) -> usize {
    std::env::var("RALLREC_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

#[test]
fn killed_in_the_middle_of_embed() {
    survives_kills_in("embed", "align", 10, 11);
}

#[test]
fn killed_in_the_middle_of_lightgcn() {
    survives_kills_in("lightgcn", "align", 10, 13);
}

/// It goes on from its checkpoints, which stand after every few samples here, and ends with the same bytes.
#[test]
fn killed_in_the_middle_of_tune() {
    survives_kills_in("tune", "score", 4, 17);
}

/// Kills a run after a random number of events of a stage, as often as asked, each time from the same beginning.
/// `behind` is a stage that begins when it is done.
fn survives_kills_in(stage: &str, behind: &str, usual: usize, seed: u64) {
    let quiet = Home::new();
    quiet.run(&[TINY]);
    let expected = quiet.ok(&["report", "last", "--format", "json"]);
    let (adapter, begun) = (adapters(&quiet.path()), up_to(stage, behind));
    assert_eq!(adapter.len(), 1);
    let mut rng: ChaCha8Rng = rallrec_core::rng::row_rng(seed, "kill", 0, 0);
    for kill in 0..kills(usual) {
        let after = 1 + (rng.next_u32() % 12) as usize;
        let pause = Duration::from_micros(u64::from(rng.next_u32() % 150_000));
        let home = begun.copy();
        let seen = kill_after(&home, (stage, behind), after, pause);
        let events = home.run(&[TINY]);
        let found = home.ok(&["report", "last", "--format", "json"]);
        assert_eq!(found, expected, "seed {seed}, kill {kill} after {seen} events of {stage}");
        assert!(adapters(&home.path()) == adapter, "seed {seed}, kill {kill}: another adapter");
        assert!(
            events.iter().any(|e| crate::support::is(e, "run_resumed")),
            "seed {seed}, kill {kill}: a new run was begun"
        );
        for (run, journal) in journals(&home.path()) {
            assert_no_commit_runs_again(&journal, &format!("seed {seed}, kill {kill}, run {run}"));
        }
    }
}

/// A home in which everything before `stage` is there already.
fn up_to(stage: &str, behind: &str) -> Home {
    let home = Home::new();
    kill_after(&home, (stage, behind), 1, Duration::ZERO);
    // The killed run is forgotten; its artifacts stay.
    std::fs::remove_dir_all(home.path().join("store/runs")).unwrap();
    home
}

/// Starts a run and kills it -9 some time after it has told `after` events of `stage`, or of the first event of the stage
/// behind it, when there were not so many.
fn kill_after(home: &Home, (stage, behind): (&str, &str), after: usize, pause: Duration) -> usize {
    let mut child = home.start(&[TINY]);
    let mine = format!("\"stage\":\"{stage}\"");
    let behind = format!("\"stage\":\"{behind}\"");
    let mut seen = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let working = line.contains("task_dispatched") || line.contains("progress") || line.contains("task_committed");
        seen += usize::from(line.contains(&mine) && working);
        let over = line.contains("task_dispatched") && line.contains(&behind);
        if seen >= after || over {
            break;
        }
    }
    // Nothing waits for this: it only puts the kill at any moment, and not just behind an event.
    std::thread::sleep(pause);
    child.kill().unwrap();
    child.wait().unwrap();
    seen
}

/// The bytes of the tables `adapter`.
fn adapters(home: &Path) -> Vec<Vec<u8>> {
    let files = crate::support::files(&home.join("store/artifacts"));
    let adapters = files.iter().filter(|f| f.file_name().is_some_and(|n| n == "adapter-00000.parquet"));
    adapters.map(|file| std::fs::read(file).unwrap()).collect()
}

/// The journaled events of every run in a home's store.
fn journals(home: &Path) -> BTreeMap<String, Vec<Value>> {
    let runs = std::fs::read_dir(home.join("store/runs")).unwrap().map(|r| r.unwrap());
    runs.filter(|r| r.path().join("journal").is_dir())
        .map(|r| (r.file_name().into_string().unwrap(), journal(&r.path().join("journal"))))
        .collect()
}

fn journal(folder: &Path) -> Vec<Value> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let mut events = Vec::new();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "json")) {
        let text = std::fs::read_to_string(file).unwrap();
        let (_, record) = text.split_once('\n').expect("a line that names the writer");
        let record: Value = serde_json::from_str(record).unwrap();
        events.extend(record["events"].as_array().expect("events").iter().cloned());
    }
    events
}

fn assert_no_commit_runs_again(events: &[Value], place: &str) {
    let mut committed = std::collections::BTreeSet::new();
    for event in events {
        let task = event["task"].to_string();
        if crate::support::is(event, "task_committed") || crate::support::is(event, "task_reused") {
            assert!(committed.insert(task.clone()), "{place}: task {task} was completed twice");
            assert_ne!(event["first"], false, "{place}: task {task} was computed although its artifact was there");
        } else if crate::support::is(event, "task_dispatched") {
            assert!(!committed.contains(&task), "{place}: task {task} was committed and dispatched again");
        }
    }
    assert!(!committed.is_empty(), "{place}: nothing was committed");
}
