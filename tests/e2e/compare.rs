//! `compare` over real runs: every exit code that it promises, baselines as runs and as files, segments, what CI systems
//! read, and the script that they call.

use crate::support::{Home, root};
use rallrec_test_servers::Moto;
use serde_json::Value;
use std::{
    path::Path,
    process::{Command, Output},
};

const NIGHTLY: &str = "tests/pipelines/nightly.yaml";
/// For the some 300 test samples of the invented data set.
const GATE: &str = "rallrec-gate: 1
confidence: 0.95
resamples: 500
metrics:
  - {system: ctr, metric: auc, max_drop: 0.02, detect: 0.25}
  - {system: ctr, metric: accuracy, max_drop: 0.02, detect: 0.25}
";

/// A run with these overrides; its id.
fn run(home: &Home, set: &[&str]) -> String {
    let mut arguments = vec![NIGHTLY];
    set.iter().for_each(|set| arguments.extend(["--set", set]));
    let events = home.run(&arguments);
    events[0]["run"].as_str().unwrap().to_owned()
}

fn write(home: &Home, name: &str, text: &str) -> String {
    let path = home.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Compares; exit code, and all that was printed.
fn compare(home: &Home, run: &str, baseline: &str, gate: &str, more: &[&str]) -> (Option<i32>, String) {
    let asked = [&["compare", run, "--baseline", baseline, "--gate", gate], more].concat();
    told(&home.call(&asked))
}

fn told(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn every_exit_code_is_the_promised_one() {
    let home = Home::new();
    let gate = write(&home, "gate.yaml", GATE);
    let good = run(&home, &[]);
    let same = run(&home, &["limit=13"]);
    let worse = run(&home, &["learning_rate=1e-9"]);

    // 0: another run in which nothing that `ctr` depends on has changed.
    let (code, text) = compare(&home, &same, &good, &gate, &[]);
    assert!(code == Some(0) && text.contains("ctr: unchanged: it has the baseline's key"), "{text}");

    // 1: a model that learned nothing, said in every form.
    let junit = home.path().join("out/junit.xml");
    let (code, text) = compare(&home, &worse, &good, &gate, &["--format", "md", "--junit", junit.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("| **ctr** | **auc** |") && text.contains("### nightly: REGRESSION"), "{text}");
    let xml = std::fs::read_to_string(&junit).unwrap();
    assert!(xml.contains("failures=\"2\"") && xml.contains("<failure type=\"regression\""), "{xml}");
    let (code, text) = compare(&home, &worse, &good, &gate, &["--format", "json"]);
    let json: Value = serde_json::from_str(text.split("\nerror:").next().unwrap()).unwrap();
    assert_eq!((code, &json["verdict"]), (Some(1), &"regression".into()), "{text}");
    let (auc, harm) = (&json["checks"][0], json["checks"][0]["harm"].as_f64().unwrap());
    assert!(harm > 0.1 && auc["low"].as_f64().unwrap() > 0.02 && auc["p_holm"].as_f64().unwrap() <= 0.05, "{auc}");
    let reported = home.ok(&["report", &worse, "--format", "json"]);
    let reported: Vec<Value> = serde_json::from_str(&reported).unwrap();
    let ctr = reported.iter().find(|m| m["system"] == "ctr" && m["metric"] == "auc").unwrap();
    assert_eq!(ctr["value"], auc["new"], "it is the report's AUC");
    // The other way round it is no regression, but so far from certain that nothing was lost by chance.
    assert_eq!(compare(&home, &good, &worse, &gate, &[]).0, Some(0));

    // 2: the gate, the system, the samples, the command line.
    let wrong =
        write(&home, "wrong.yaml", "rallrec-gate: 1\nmetrics:\n  - {system: crt, metric: auc, max_drop: 0.1}\n");
    let (code, text) = compare(&home, &same, &good, &wrong, &[]);
    assert!(code == Some(2) && text.contains("wrong.yaml:3:14: error: run") && text.contains("score, ctr"), "{text}");
    let broken = write(&home, "broken.yaml", "rallrec-gate: 1\nmetrics: [{system: ctr, metrik: auc}]\n");
    let (code, text) = compare(&home, &same, "nowhere/at.all", &broken, &[]);
    assert!(code == Some(2) && text.contains("broken.yaml:2:25: error: unknown key `metrik`"), "{text}");
    let score = "rallrec-gate: 1\nmetrics: [{system: score, metric: log_loss, max_rise: 0.1, detect: 9}]\n";
    let (code, text) = compare(&home, &same, &good, &write(&home, "score.yaml", score), &[]);
    assert!(code == Some(2) && text.contains("1 are only in the run, 0 only in the baseline"), "{text}");
    assert_eq!(home.call(&["compare", &good]).status.code(), Some(2));

    // With the samples that both have: 12, unchanged, out of the shards of `retrieve` and `score`.
    let common = write(&home, "common.yaml", &format!("{score}on_common_samples: true\n"));
    let (code, text) = compare(&home, &same, &good, &common, &[]);
    assert!(code == Some(0) && text.contains("not common: 1 samples only in the run"), "{text}");

    // 3: no such file, and a store that is none.
    let (code, text) = compare(&home, &same, "nowhere/at.parquet", &gate, &["--junit", junit.to_str().unwrap()]);
    assert!(code == Some(3) && text.contains("nowhere/at.parquet"), "{text}");
    let xml = std::fs::read_to_string(&junit).unwrap();
    assert!(xml.contains("<error message=\"nowhere/at.parquet"), "{xml}");
    assert_eq!(compare(&home, &same, &good, &gate, &["--store", &gate]).0, Some(3));

    // 4: a fall of 0.01 that must be found, and 300 samples to find it in.
    let strict = GATE.replace("max_drop: 0.02, detect: 0.25", "max_drop: 0.005");
    let close = run(&home, &["learning_rate=0.011"]);
    let (code, text) = compare(&home, &close, &good, &write(&home, "strict.yaml", &strict), &[]);
    assert!(code == Some(4) && text.contains("too few to tell"), "{text}");
}

#[test]
fn a_baseline_is_kept_as_a_file_and_segments_are_asked() {
    let home = Home::new();
    let good = run(&home, &[]);
    let file = home.path().join("kept/baseline.parquet");
    let file = file.to_str().unwrap();
    let saved = home.ok(&["compare", &good, "--save", file]);
    assert!(saved.contains("systems ctr, score"), "{saved}");
    let worse = run(&home, &["learning_rate=1e-9"]);
    let text = format!(
        "{GATE}segments:
  - {{by: gender, metric: auc, max_drop: 0.02, detect: 0.4}}
  - {{by: history, edges: [8, 13, 500], metric: auc, max_drop: 0.02, detect: 0.9, min_samples: 20}}\n"
    );
    let gate = write(&home, "gate.yaml", &text);
    let as_json = |baseline: &str| {
        let (code, text) = compare(&home, &worse, baseline, &gate, &["--format", "json"]);
        let json: Value = serde_json::from_str(text.split("\nerror:").next().unwrap()).unwrap();
        (code, json)
    };
    let (code, json) = as_json(file);
    assert_eq!(code, Some(1), "{json}");
    assert_eq!((code, &json), (as_json(&good).0, &as_json(&good).1), "the file says what the run says");
    let checks = json["checks"].as_array().unwrap();
    let samples = |prefix: &str| {
        let fits = |c: &&Value| c["segment"].as_str().is_some_and(|s| s.starts_with(prefix));
        checks.iter().filter(fits).map(|c| c["samples"].as_u64().unwrap()).sum::<u64>()
    };
    let all = checks[0]["samples"].as_u64().unwrap();
    assert!(all > 200 && samples("gender ") == all && samples("history ") == all, "{json}");
    let nobody = checks.iter().find(|c| c["segment"] == "history 500 and above").unwrap();
    assert_eq!((&nobody["samples"], nobody.get("verdict")), (&0.into(), None), "{nobody}");

    let unknown = text.replace("by: gender", "by: sex");
    let (code, text) = compare(&home, &worse, file, &write(&home, "unknown.yaml", &unknown), &[]);
    assert!(code == Some(2) && text.contains("unknown.yaml:8:10: error:"), "{text}");
    assert!(text.contains("gender, age, job"), "{text}");
}

#[test]
fn runs_in_a_bucket_are_compared_too() {
    let Some(moto) = Moto::start("nightly") else { return };
    let home = Home::new();
    let gate = write(&home, "gate.yaml", GATE);
    let ask = |arguments: &[&str]| {
        let mut command = home.command(&[arguments, &["--store", "s3://nightly/kept"]].concat());
        command.env("AWS_ENDPOINT_URL", moto.url()).env("AWS_ACCESS_KEY_ID", "AKIA1").env("AWS_SECRET_ACCESS_KEY", "s");
        told(&command.output().unwrap())
    };
    let rate = |rate: &str| ask(&["run", NIGHTLY, "--set", &format!("learning_rate={rate}")]);
    let (code, text) = rate("0.01");
    assert_eq!(code, Some(0), "{text}");
    let kept = home.path().join("kept.parquet");
    let kept = kept.to_str().unwrap();
    assert_eq!(ask(&["compare", "last", "--save", kept]).0, Some(0));
    assert_eq!(rate("1e-9").0, Some(0));
    let (code, text) = ask(&["compare", "last", "--baseline", kept, "--gate", &gate]);
    assert!(code == Some(1) && text.contains("REGRESSION"), "{text}");
}

#[test]
fn the_nightly_script_keeps_a_baseline_and_compares_with_it() {
    let home = Home::new();
    let gate = write(&home, "gate.yaml", GATE);
    let pipeline = root().join(NIGHTLY);
    let night = |pipeline: &Path| {
        let mut script = Command::new("bash");
        script.arg(root().join("deploy/ci/nightly.sh")).arg(pipeline).arg(&gate).arg(home.path().join("report"));
        script.current_dir(home.path()).env("RALLREC", env!("CARGO_BIN_EXE_rallrec"));
        script.env("RALLREC_HOME", home.path()).env("RALLREC_BASELINE", "kept.parquet");
        script.env("GITHUB_STEP_SUMMARY", home.path().join("summary.md")).env_remove("RALLREC_STORE");
        told(&script.output().unwrap())
    };
    let (code, text) = night(&pipeline);
    assert!(code == Some(0) && text.contains("this run is it now: kept.parquet"), "{text}");
    let kept = std::fs::read(home.path().join("kept.parquet")).unwrap();

    let (code, text) = night(&pipeline);
    assert!(code == Some(0) && text.contains("no regression"), "{text}");
    let junit = std::fs::read_to_string(home.path().join("report/junit.xml")).unwrap();
    assert!(junit.contains("tests=\"2\" failures=\"0\" errors=\"0\""), "{junit}");

    let text = std::fs::read_to_string(&pipeline).unwrap();
    let fixtures = root().join("tests/fixtures/tiny-1m").canonicalize().unwrap();
    let text = text.replace("../fixtures/tiny-1m", fixtures.to_str().unwrap());
    let worse = write(&home, "worse.yaml", &text.replace("learning_rate: 0.01\n", "learning_rate: 1.0e-9\n"));
    let (code, text) = night(Path::new(&worse));
    assert!(code == Some(1) && text.contains("REGRESSION"), "{text}");
    assert_eq!(std::fs::read(home.path().join("kept.parquet")).unwrap(), kept, "a baseline is never replaced");
    let summary = std::fs::read_to_string(home.path().join("summary.md")).unwrap();
    assert!(summary.contains("| **ctr** | **auc** |") && summary.contains("| score "), "{summary}");

    // A stage that fails is no regression.
    std::fs::create_dir(home.path().join("empty")).unwrap();
    for name in ["ratings.dat", "users.dat", "movies.dat"] {
        std::fs::write(home.path().join("empty").join(name), "neither\n").unwrap();
    }
    let failing = write(
        &home,
        "failing.yaml",
        &std::fs::read_to_string(&worse)
            .unwrap()
            .replace(fixtures.to_str().unwrap(), home.path().join("empty").to_str().unwrap()),
    );
    let (code, text) = night(Path::new(&failing));
    assert!(code == Some(3) && text.contains("nothing was compared"), "{text}");
}
