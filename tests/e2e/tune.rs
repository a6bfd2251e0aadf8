//! Tuning: prompts that the model cannot hold, and validations that say nothing. That it learns is tested in `crates/llm`,
//! that it survives being killed in `kill.rs`.

use crate::support::{Home, families, files};
use rallrec_store::Manifest;
use std::path::Path;

const PIPELINE: &str = "tests/pipelines/tune.yaml";
/// A context that holds some of the pipeline's prompts.
const CONTEXT: u64 = 161;

/// A tiny model with this context, in the folder.
fn model(folder: &Path) -> String {
    let from = families().join("smollm2");
    for file in files(&from) {
        std::fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    }
    let config = folder.join("config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    json["max_position_embeddings"] = CONTEXT.into();
    std::fs::write(&config, json.to_string()).unwrap();
    format!("model=file:{}", folder.display())
}

#[test]
fn prompts_that_the_model_cannot_hold_are_bad_rows() {
    let (home, folder) = (Home::new(), tempfile::tempdir().unwrap());
    let model = model(folder.path());
    let refused = home.call(&["run", PIPELINE, "--set", &model]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("tune") && told.contains("row ") && told.contains("the model's context is 161"), "{told}");

    home.run(&[PIPELINE, "--set", &model, "--set", "bad=11"]);
    let manifest = files(&home.path().join("store/artifacts"))
        .into_iter()
        .filter(|path| path.ends_with("manifest.json"))
        .map(|path| serde_json::from_slice::<Manifest>(&std::fs::read(path).unwrap()).unwrap())
        .find(|manifest| manifest.stage.0 == "tune")
        .unwrap();
    let bad = manifest.bad_rows.len();
    assert!((1..12).contains(&bad), "some fit and some do not: {:?}", manifest.bad_rows);
    assert_eq!(manifest.metrics["samples"], (12 - bad) as f64);
    assert!((1.0..12.0).contains(&manifest.metrics["valid_left_out"]), "{:?}", manifest.metrics);
    assert!(manifest.metrics.contains_key("valid_auc"));
}

#[test]
fn a_validation_that_has_no_auc_is_refused() {
    let home = Home::new();
    let model = format!("model=file:{}", families().join("smollm2").display());
    let refused = home.call(&["run", PIPELINE, "--set", &model, "--set", "valid=1"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("input valid: ") && told.contains("an AUC needs both likes and others"), "{told}");
    let left = home.path().join("store/checkpoints");
    assert!(!left.exists() || files(&left).is_empty(), "no step was made");
}
