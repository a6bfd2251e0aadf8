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

    is_a_whole_report(&home);

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

/// Whether every element that is opened is closed, in order.
fn is_well_formed(html: &str) -> Result<(), String> {
    let void = ["meta", "!doctype", "br", "img", "link"];
    let mut open: Vec<String> = Vec::new();
    for piece in html.split('<').skip(1) {
        let tag = piece.split('>').next().unwrap_or_default();
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap_or_default().to_lowercase();
        if tag.starts_with('/') {
            let last = open.pop();
            if last.as_deref() != Some(&*name) {
                return Err(format!("</{name}> closes {last:?}"));
            }
        } else if !tag.ends_with('/') && !void.contains(&&*name) {
            open.push(name);
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("never closed: {open:?}")) }
}

/// The report of a run of `paper.yaml`: every table and figure that it can have, with the values that `report` prints.
fn is_a_whole_report(home: &Home) {
    let out = home.path().join("report");
    let printed = home.ok(&["report", "last", "--out", out.to_str().unwrap()]);
    assert_eq!(printed.lines().count(), 4, "{printed}");
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let json: Value = serde_json::from_str(&read("report.json")).unwrap();
    let run = &json["runs"][0];
    let ids =
        |of: &Value| of.as_array().unwrap().iter().map(|t| t["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(ids(&run["tables"]), ["table_2", "table_3", "table_4", "table_5", "table_6", "figure_8"]);
    assert_eq!(ids(&run["figures"]), ["figure_2", "figure_3", "figure_8", "figure_9"]);
    assert_eq!(run["responses"]["responses"], 12, "two traces of each of six samples");
    assert_eq!(run["tables"][2]["pairs"].as_array().unwrap().len(), 9 * 8 / 2);
    let metrics = metrics(home);
    for system in run["tables"].as_array().unwrap().iter().flat_map(|t| t["systems"].as_array().unwrap()) {
        let of = |metric: &str| {
            metrics.iter().find(|row| row["system"] == system["stage"] && row["metric"] == metric).unwrap()
        };
        assert_eq!(system["logloss"]["value"], of("logloss")["value"]);
        assert_eq!(system["accuracy"]["low"], of("accuracy")["low"]);
        assert!(system["published"].is_null(), "the paper has nothing on an invented data set");
    }
    let html = read("report.html");
    is_well_formed(&html).unwrap();
    assert_eq!(html.matches("<svg").count(), 4);
    for other in ["src=", "href=", "@import", "url("] {
        assert!(!html.contains(other), "the page asks for nothing: {other}");
    }
    let stages = run["stages"].as_array().unwrap();
    assert!(stages.iter().all(|stage| stage["tasks"] == stage["done"] && stage["producers"][0].is_string()));
    assert!(stages.iter().any(|stage| stage["reused"].as_u64() > Some(0)), "what RALLRec computed was saved");
    // Every metric of every system of every table, and the head.
    let systems: usize = run["tables"].as_array().unwrap().iter().map(|t| t["systems"].as_array().unwrap().len()).sum();
    assert_eq!(read("report.csv").lines().count(), 1 + 3 * systems);
    assert!(read("report.md").contains("| RALLRec+ |"));

    let nothing = home.call(&["report", "last", "last"]);
    assert_eq!(nothing.status.code(), Some(2));
    let no_sweep = home.call(&["report", "last", "--out", out.to_str().unwrap(), "--sweep", "nowhere"]);
    assert!(String::from_utf8_lossy(&no_sweep.stderr).contains("the folder that `rallrec sweep` wrote"));
}
