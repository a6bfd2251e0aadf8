//! A whole pipeline through the real binary: every kind of stage, reuse, resume, and what the user is told.

use crate::support::{Home, events, files, is, root, stages_of};

const TINY: &str = "tests/pipelines/tiny.yaml";

#[test]
fn a_pipeline_runs_and_only_what_changed_runs_again() {
    let home = Home::new();
    let first = home.run(&[TINY]);
    let committed = first.iter().filter(|e| is(e, "task_committed")).count();
    let dispatched = first.iter().filter(|e| is(e, "task_dispatched")).count();
    assert_eq!(committed, dispatched, "each task runs once");
    assert!(stages_of(&first, "task_reused").is_empty());
    assert_eq!(stages_of(&first, "task_committed").len(), 17, "every stage ran");
    let left = home.path().join("store/checkpoints");
    assert!(!left.exists() || files(&left).is_empty(), "a finished task leaves no checkpoints");
    let table = home.ok(&["report", "last"]);
    for system in ["score", "merge", "ctr"] {
        assert!(table.contains(&format!("| {system} ")), "{table}");
    }

    let again = home.run(&[TINY]);
    assert!(stages_of(&again, "task_dispatched").is_empty(), "nothing runs when nothing changed");
    assert_eq!(home.ok(&["report", "last"]), table);

    let alpha = home.run(&[TINY, "--set", "alpha=0.3"]);
    assert_eq!(stages_of(&alpha, "task_dispatched"), ["evaluate", "merge", "report"]);
    let why = home.ok(&["explain", "last", "evaluate"]);
    assert!(why.contains("alpha") && why.contains("0.1") && why.contains("0.3"), "{why}");

    let template = home.run(&[TINY, "--set", "template={user} {verb} {history} {like_above} {target}: Yes or No?"]);
    let expected = ["evaluate", "merge", "reason", "report", "retrieve", "score"];
    assert_eq!(stages_of(&template, "task_dispatched"), expected);
    let why = home.ok(&["explain", "last", "score"]);
    assert!(why.contains("with.template"), "{why}");

    // Shard sizes and batch sizes are nobody's business but the scheduler's: whole-table consumers stay reused.
    let shards = home.run(&[TINY, "--set", "shard=16"]);
    assert_eq!(stages_of(&shards, "task_dispatched"), ["embed"]);
}

#[test]
fn the_three_layouts_of_raw_files_give_the_same_samples() {
    let home = Home::new();
    let counts: Vec<_> = ["tiny-1m", "tiny-100k", "tiny-recbole"]
        .iter()
        .map(|layout| {
            let pipeline = home.path().join(format!("{layout}.yaml"));
            let text = format!(
                "rallrec: 1\nname: d\ndata: {{r: {{source: \"file:{}\"}}}}\nstages:\n  dataset: {{kind: dataset, data: r}}\n",
                root().join("tests/fixtures").join(layout).canonicalize().unwrap().display()
            );
            std::fs::write(&pipeline, text).unwrap();
            let events = home.run(&[pipeline.to_str().unwrap()]);
            let done = events.iter().find(|e| is(e, "task_committed")).unwrap();
            done["summary"]["rows"].clone()
        })
        .collect();
    assert!(counts[0]["train"].as_u64() > Some(100), "{}", counts[0]);
    assert_eq!(counts[0], counts[1]);
    assert_eq!(counts[0], counts[2]);
}

#[test]
fn exit_codes_say_what_went_wrong() {
    let home = Home::new();
    let write = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let wrong = write("wrong.yaml", "rallrec: 1\nname: x\nstages:\n  a: {kind: datset}\n");
    let refused = home.call(&["run", &wrong]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{message}");
    assert!(message.contains("wrong.yaml:4:13: error:") && message.contains("did you mean `dataset`"), "{message}");

    let missing = write(
        "missing.yaml",
        "rallrec: 1\nname: x\ndata: {r: {source: \"file:/nowhere/at/all\"}}\nstages:\n  a: {kind: dataset, data: r}\n",
    );
    assert_eq!(home.call(&["run", &missing]).status.code(), Some(3));

    std::fs::create_dir(home.path().join("raw")).unwrap();
    let raw = home.path().join("raw");
    for file in ["users.dat", "movies.dat"] {
        std::fs::copy(root().join("tests/fixtures/tiny-1m").join(file), raw.join(file)).unwrap();
    }
    std::fs::write(raw.join("ratings.dat"), "1::1::5::978300000\n1::2::five::978300001\n").unwrap();
    let text = format!(
        "rallrec: 1\nname: x\ndata: {{r: {{source: \"file:{}\"}}}}\nstages:\n  a: {{kind: dataset, data: r}}\n",
        raw.display()
    );
    let failed = home.call(&["run", &write("bad-row.yaml", &text)]);
    let message = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{message}");
    assert!(message.contains("ratings.dat:2"), "{message}");
}

#[test]
fn an_interrupted_run_says_so_and_resumes() {
    use std::io::{BufRead, BufReader};
    let home = Home::new();
    let mut child = home.start(&[TINY]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let embedding =
        lines.find(|line| line.as_ref().is_ok_and(|l| l.contains("task_committed") && l.contains("\"embed\"")));
    assert!(embedding.is_some());
    let interrupt =
        std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(interrupt.success());
    for _ in lines {}
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let resumed = events(&home.ok(&["run", "--json", TINY]));
    assert!(resumed.iter().any(|e| is(e, "run_resumed")));
    assert!(resumed.iter().any(|e| is(e, "run_finished")));
}
