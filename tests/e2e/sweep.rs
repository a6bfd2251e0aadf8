//! Sweeps through the real binary: what points share is computed once, the best is found, a failed point is told.

use crate::support::{Home, events, is, root};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

/// A pipeline of `tests/pipelines` with a sweep of its own, in the home.
fn with_sweep(home: &Home, sweep: &str) -> PathBuf {
    let text = fs::read_to_string(root().join("tests/pipelines/sweep.yaml")).unwrap();
    let data = root().join("tests/fixtures/tiny-1m").canonicalize().unwrap();
    let text = text.replace("file:../fixtures/tiny-1m", &format!("file:{}", data.display()));
    let path = home.path().join("sweep.yaml");
    fs::write(&path, format!("{text}\nsweep:\n{sweep}")).unwrap();
    path
}

/// The click-through-rate model alone: a sweep of seconds.
fn small(home: &Home, data: &str, sweep: &str) -> PathBuf {
    let path = home.path().join("small.yaml");
    let text = format!(
        "rallrec: 1
name: small
params: {{rate: 0.01, data: {data}, epochs: 1}}
data: {{r: {{source: \"${{data}}\"}}}}
stages:
  dataset: {{kind: dataset, data: r}}
  ctr:
    kind: ctr
    needs: {{train: dataset.train, valid: dataset.valid, test: dataset.test, items: dataset.items, users: dataset.users}}
    with: {{max_epochs: \"${{epochs}}\", batch_size: 64, learning_rate: \"${{rate}}\"}}
  evaluate: {{kind: evaluate, needs: {{predictions: [ctr]}}, with: {{bootstrap: 100}}}}
sweep:
{sweep}"
    );
    fs::write(&path, text).unwrap();
    path
}

fn sweep(home: &Home, pipeline: &Path) -> Vec<Value> {
    events(&home.ok(&["sweep", "--json", pipeline.to_str().unwrap()]))
}

fn dispatched(events: &[Value]) -> Vec<&Value> {
    events.iter().filter(|event| is(event, "task_dispatched")).collect()
}

/// Stages of the tasks that were handed out, as the pipeline file names them.
fn stages(events: &[Value]) -> BTreeSet<&str> {
    dispatched(events).iter().filter_map(|event| event["stage"].as_str()?.split('@').next()).collect()
}

fn of<'e>(events: &'e [Value], stage: &str) -> Vec<&'e Value> {
    let named = |event: &&Value| event["stage"].as_str().is_some_and(|name| name.split('@').next() == Some(stage));
    dispatched(events).into_iter().filter(named).collect()
}

fn found(events: &[Value]) -> &Value {
    events.iter().find(|event| is(event, "sweep")).unwrap()
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn points_share_all_that_is_the_same_and_merging_alone_is_quick() {
    let home = Home::new();
    let pipeline = with_sweep(&home, "  grid: {gamma: [0.5, 0.8], k: [2, 3], trace_seed: [1, 2]}\n");
    let first = sweep(&home, &pipeline);
    let keys: BTreeSet<&str> = dispatched(&first).iter().filter_map(|event| event["key"].as_str()).collect();
    assert_eq!(dispatched(&first).len(), keys.len(), "no key is computed twice");
    let counts = ["dataset", "embed", "lightgcn", "align", "index", "retrieve", "score", "merge"];
    assert_eq!(counts.map(|stage| of(&first, stage).len()), [1, 1, 1, 1, 1, 4, 4, 8]);
    assert_eq!(found(&first)["rounds"][0].as_array().unwrap().len(), 8);
    assert!(dispatched(&sweep(&home, &pipeline)).is_empty(), "nothing runs when nothing changed");

    // 60 points of alpha and eps, behind one run of the pipeline as the file has it.
    let alphas = "[0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.75, 1.0]";
    let grid = format!("  grid: {{alpha: {alphas}, eps: {{from: 1e-6, to: 1e-2, scale: log, points: 5}}}}\n");
    let pipeline = with_sweep(&home, &format!("{grid}  best: {{stage: evaluate, system: merge, metric: logloss}}\n"));
    home.run(&[pipeline.to_str().unwrap()]);
    let merged = sweep(&home, &pipeline);
    assert_eq!(stages(&merged), ["evaluate", "merge"].into());
    assert_eq!(of(&merged, "merge").len(), 59, "one of the 60 points is what the file says");
    let best = &found(&merged)["best"];
    let loss = |point: &Value| {
        let rows = point["metrics"].as_array().unwrap();
        let row = rows.iter().find(|row| row["system"] == "merge" && row["metric"] == "logloss").unwrap();
        row["value"].as_f64().unwrap()
    };
    let least = found(&merged)["rounds"][0].as_array().unwrap().iter().map(loss).fold(f64::INFINITY, f64::min);
    assert_eq!(loss(best), least);
    let table = fs::read_to_string(home.path().join("sweeps/sweep/points.csv")).unwrap();
    assert_eq!(table.lines().count(), 1 + 60 * (3 + 2 * 3), "a line for each metric of each system of each point");

    // A point is what a run with its values is.
    let set = |name: &str| format!("{name}={}", best["values"][name]);
    let alone = home.run(&[pipeline.to_str().unwrap(), "--set", &set("alpha"), "--set", &set("eps")]);
    assert!(dispatched(&alone).is_empty());
}

#[test]
fn a_value_is_chosen_on_validation_and_tested_once() {
    let home = Home::new();
    let best = "  best: {stage: evaluate-valid, system: score-valid, metric: auc, then: whole}\n";
    let pipeline = with_sweep(&home, &format!("  grid: {{gamma: [0.5, 0.667, 0.8]}}\n{best}"));
    let all = sweep(&home, &pipeline);
    let counts = ["retrieve-valid", "score-valid", "evaluate-valid", "retrieve", "score", "evaluate"];
    assert_eq!(counts.map(|stage| of(&all, stage).len()), [3, 3, 3, 1, 1, 1]);
    let shown = all.iter().find(|event| is(event, "report")).unwrap();
    assert!(shown["metrics"].as_array().unwrap().iter().any(|row| row["system"] == "merge"));
}

#[test]
fn the_best_points_go_on_with_a_larger_budget() {
    let home = Home::new();
    let data = format!("\"file:{}\"", root().join("tests/fixtures/tiny-1m").canonicalize().unwrap().display());
    let text = "  random: {draws: 6, axes: {rate: {from: 1e-4, to: 1e-1, scale: log}}}
  best: {system: ctr}
  halving: {param: epochs, values: [1, 2, 4], keep: 0.5}\n";
    let all = sweep(&home, &small(&home, &data, text));
    let rounds = found(&all)["rounds"].as_array().unwrap();
    let sizes: Vec<usize> = rounds.iter().map(|round| round.as_array().unwrap().len()).collect();
    assert_eq!(sizes, [6, 3, 2]);
    assert_eq!(rounds[2][0]["values"]["epochs"], 4);
    assert_eq!(of(&all, "dataset").len(), 1);
    assert_eq!(of(&all, "ctr").len(), 11);
}

#[test]
fn a_point_that_fails_is_told_and_takes_no_other_with_it() {
    let home = Home::new();
    let good = root().join("tests/fixtures/tiny-1m").canonicalize().unwrap();
    let bad = home.path().join("bad");
    fs::create_dir(&bad).unwrap();
    for file in ["users.dat", "movies.dat", "ratings.dat"] {
        fs::copy(good.join(file), bad.join(file)).unwrap();
    }
    let ratings = fs::read_to_string(good.join("ratings.dat")).unwrap();
    fs::write(bad.join("ratings.dat"), ratings.replacen("::", ":", 1)).unwrap();
    let axes = format!("  list: [{{data: \"file:{}\"}}, {{data: \"file:{}\"}}]\n", good.display(), bad.display());
    let pipeline = small(&home, "none", &axes);
    let path = pipeline.to_str().unwrap();
    let failed = home.call(&["sweep", path]);
    let text = told(&failed);
    assert_eq!(failed.status.code(), Some(1), "{text}");
    assert!(text.contains("1 of 2 points failed") && text.contains("ratings.dat:1"), "{text}");
    assert!(text.lines().any(|line| line.contains("| failed")), "{text}");

    fs::write(bad.join("ratings.dat"), ratings).unwrap();
    let mended = sweep(&home, &pipeline);
    assert_eq!(found(&mended)["rounds"][0].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_wrong_with_a_sweep_is_told_before_anything_runs() {
    let home = Home::new();
    let pipeline = small(&home, "\"file:/nowhere\"", "  grid: {rate: [0.1, fast]}\n");
    let refused = home.call(&["sweep", pipeline.to_str().unwrap()]);
    let text = told(&refused);
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(text.contains("point 2 (rate=fast)") && text.contains("small.yaml:10:"), "{text}");
    let none = home.call(&["sweep", "tests/pipelines/tiny.yaml"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(told(&none).contains("no `sweep:`"));
    let listed = small(&home, "\"file:/nowhere\"", "  grid: {rate: [0.1, 0.2]}\n");
    assert_eq!(home.ok(&["sweep", "--list", listed.to_str().unwrap()]), "1: rate=0.1\n2: rate=0.2\n");
}
