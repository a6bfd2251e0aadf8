//! Every system of the paper, as it ships, on an invented data set: they run, and share what they have in common.

use crate::support::{Home, is, root};
use serde_json::Value;
use std::collections::BTreeSet;

fn shipped(name: &str) -> String {
    root().join("pipelines").join(name).canonicalize().unwrap().to_str().unwrap().to_owned()
}

/// Runs one of `pipelines/` on the data set of `tests/pipelines/tiny-data.yaml`.
fn run(home: &Home, name: &str, set: &[&str]) -> Vec<Value> {
    let pipeline = shipped(name);
    let mut args = vec![&*pipeline, "--set", "set=../../tests/pipelines/tiny-data"];
    set.iter().for_each(|set| args.extend(["--set", set]));
    home.run(&args)
}

/// Stages that had a task to compute.
fn computed(events: &[Value]) -> BTreeSet<&str> {
    events.iter().filter(|event| is(event, "task_dispatched")).filter_map(|event| event["stage"].as_str()).collect()
}

fn metrics(home: &Home) -> Vec<Value> {
    let text = home.ok(&["report", "last", "--format", "json"]);
    serde_json::from_str(&text).unwrap()
}

#[test]
fn every_system_of_the_paper_runs_and_shares_its_work() {
    let home = Home::new();
    let rallrec = run(&home, "rallrec.yaml", &[]);
    assert!(computed(&rallrec).contains("tune-1") && !computed(&rallrec).contains("reasoning-traces"));
    let whole = run(&home, "paper.yaml", &[]);
    let again: BTreeSet<&str> = computed(&whole).intersection(&computed(&rallrec)).copied().collect();
    assert_eq!(again, BTreeSet::from(["evaluate", "report"]), "what RALLRec computed is there already");

    let metrics = metrics(&home);
    let systems: BTreeSet<&str> = metrics.iter().filter_map(|row| row["system"].as_str()).collect();
    let all = [
        "autoint",
        "cm-only",
        "concat-without-ssl",
        "dcn",
        "deepfm",
        "hybrid-score",
        "id-based",
        "kp-only",
        "no-kp-no-cm",
        "rallrec",
        "rallrec-plus",
        "reasoning-retrieval",
        "reasoning-zero-shot",
        "rella",
        "retrieval-high",
        "retrieval-sequential",
        "retrieval-simple",
        "text-based",
        "xdeepfm",
        "zero-shot",
    ];
    assert_eq!(systems, BTreeSet::from(all));
    for row in &metrics {
        assert_eq!((row["samples"].as_i64(), row["missing"].as_i64()), (Some(6), Some(0)), "{row}");
        assert!(row["metric"] == "auc" || row["value"].is_f64(), "{row}");
    }

    // Every other system is part of it: nothing but its own evaluation is left to do.
    for name in [
        "zero-shot.yaml",
        "rella.yaml",
        "hybrid-score.yaml",
        "ctr-baselines.yaml",
        "ablations.yaml",
        "rallrec-plus.yaml",
    ] {
        assert_eq!(computed(&run(&home, name, &[])), BTreeSet::from(["evaluate", "report"]), "{name}");
    }
    let alpha = run(&home, "paper.yaml", &["alpha=0.4"]);
    assert_eq!(computed(&alpha), BTreeSet::from(["cm-only", "evaluate", "rallrec-plus", "report"]));
}

#[test]
fn a_mistake_in_a_piece_is_told_in_the_piece() {
    let home = Home::new();
    let piece = home.path().join("piece.yaml");
    std::fs::write(
        &piece,
        "rallrec: 1\ndata: {r: {source: movielens-100k}}\nstages:\n  dataset: {kind: datset, data: r}\n",
    )
    .unwrap();
    let main = home.path().join("main.yaml");
    std::fs::write(&main, "rallrec: 1\nname: main\ninclude: [piece.yaml, gone.yaml]\nstages: {dataset: {}}\n").unwrap();
    let output = home.call(&["validate", main.to_str().unwrap()]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.contains(&format!("{}:4:19: error: ", piece.display())) && told.contains("did you mean `dataset`?"),
        "{told}"
    );
    assert!(
        told.contains(&format!("{}:3:23: error: ", main.display())) && told.contains("gone.yaml cannot be read"),
        "{told}"
    );
}
