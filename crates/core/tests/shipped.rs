//! The pipelines that ship compile without a warning, and plan.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rallrec_core::{
    kind::StageKind,
    plan::{Pins, Plan},
    spec::{Diagnostics, Pipeline, compile, compile_whole},
};
use std::{collections::HashSet, fs, path::PathBuf};

/// A pipeline with what it includes.
fn whole(name: &str, text: &str, set: &[(String, String)]) -> Result<Pipeline, Diagnostics> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../pipelines");
    compile_whole(name, text, set, &|path| fs::read_to_string(folder.join(path)).map_err(|e| e.to_string()))
}

fn shipped() -> Vec<(String, Pipeline)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../pipelines");
    let mut all: Vec<(String, Pipeline)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&path).unwrap();
            let pipeline = whole(&name, &text, &[]).unwrap_or_else(|found| panic!("{found}"));
            (name, pipeline)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn pins(pipeline: &Pipeline) -> Pins {
    let digest = |name: &String| (name.clone(), "0".repeat(64));
    Pins {
        models: pipeline.models.iter().map(|m| digest(&m.name)).collect(),
        data: pipeline.data.iter().map(|s| digest(&s.name)).collect(),
        ..Pins::default()
    }
}

#[test]
fn shipped_pipelines_compile_and_plan() {
    let all = shipped();
    assert!(all.len() >= 2);
    for (name, pipeline) in all {
        assert!(pipeline.warnings.is_empty(), "{}", pipeline.warnings);
        let kinds: HashSet<StageKind> = pipeline.stages.iter().map(|s| s.kind()).collect();
        // Some show one thing each; these show the whole method.
        let method = ["quickstart.yaml", "rallrec-plus.yaml", "paper.yaml"].contains(&name.as_str());
        let every = StageKind::ALL.iter().filter(|kind| !matches!(kind, StageKind::Rows | StageKind::Wait));
        assert!(!method || every.into_iter().all(|kind| kinds.contains(kind)), "{name} does not show every kind");
        let plan = Plan::new(&pipeline, &pins(&pipeline)).unwrap();
        assert_eq!(plan.stages.len(), pipeline.stages.len());
        for (i, stage) in plan.stages.iter().enumerate() {
            assert!(stage.needs.iter().all(|n| (n.stage as usize) < i), "{name}: {} comes too early", stage.name);
        }
    }
}

/// Each system is one file, whatever the data set.
#[test]
fn every_system_runs_on_every_data_set() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../pipelines");
    let mut tried = 0;
    for (name, _) in shipped() {
        let text = fs::read_to_string(folder.join(&name)).unwrap();
        if !text.contains("parts/${set}.yaml") {
            continue;
        }
        for set in ["movielens-1m", "movielens-100k", "bookcrossing", "amazon"] {
            let pipeline = whole(&name, &text, &[("set".to_owned(), set.to_owned())]).unwrap_or_else(|e| panic!("{e}"));
            assert!(pipeline.warnings.is_empty(), "{name}, {set}: {}", pipeline.warnings);
            Plan::new(&pipeline, &pins(&pipeline)).unwrap();
            tried += 1;
        }
    }
    assert!(tried >= 8 * 4, "{tried}");
}

#[test]
fn set_changes_only_what_uses_the_parameter() {
    let text =
        fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/quickstart.yaml")).unwrap();
    let plan = |set: &[(String, String)]| {
        let pipeline = compile("quickstart.yaml", &text, set).unwrap();
        Plan::new(&pipeline, &pins(&pipeline)).unwrap()
    };
    let changed = |name: &str, value: &str| -> Vec<String> {
        let (old, new) = (plan(&[]), plan(&[(name.to_owned(), value.to_owned())]));
        let pairs = old.stages.iter().zip(&new.stages);
        pairs.filter(|(a, b)| a.stage_key != b.stage_key).map(|(a, _)| a.name.to_string()).collect()
    };
    assert_eq!(changed("alpha", "0.3"), ["merge", "evaluate", "report"]);
    assert_eq!(changed("alpha", "0.1"), [""; 0], "the same value changes nothing");
    let tuning = ["retrieve-high", "retrieve-sequential", "retrieve-simple", "tune", "score-tuned"];
    assert_eq!(
        changed("tuned_on", "20"),
        ["sample"].iter().chain(&tuning).chain(&["reason", "merge", "evaluate", "report"]).copied().collect::<Vec<_>>()
    );
    let predictions = ["retrieve", "score"].iter().chain(&tuning).chain(&["reason", "merge", "evaluate", "report"]);
    assert_eq!(changed("k", "12"), predictions.copied().collect::<Vec<_>>());
}
