//! The pipelines that ship compile without a warning, and plan.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rallrec_core::{
    kind::StageKind,
    plan::{Pins, Plan},
    spec::{Pipeline, compile},
};
use std::{collections::HashSet, fs, path::PathBuf};

fn shipped() -> Vec<(String, Pipeline)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../pipelines");
    let mut all: Vec<(String, Pipeline)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&path).unwrap();
            let pipeline = compile(&name, &text, &[]).unwrap_or_else(|found| panic!("{found}"));
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
        // Some show one thing each; the others show the whole method.
        let one_thing = ["movielens-1m-tuned.yaml", "fan.yaml", "ctr-baselines.yaml", "your-own-data.yaml"];
        let part = one_thing.contains(&name.as_str());
        let method = StageKind::ALL.iter().filter(|kind| !matches!(kind, StageKind::Rows | StageKind::Wait));
        assert!(part || method.into_iter().all(|kind| kinds.contains(kind)), "{name} does not show every kind");
        let plan = Plan::new(&pipeline, &pins(&pipeline)).unwrap();
        assert_eq!(plan.stages.len(), pipeline.stages.len());
        for (i, stage) in plan.stages.iter().enumerate() {
            assert!(stage.needs.iter().all(|n| (n.stage as usize) < i), "{name}: {} comes too early", stage.name);
        }
    }
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
