//! Models that share a worker's memory.

use crate::{
    cluster::Cluster,
    support::{events, is},
};

const PIPELINE: &str = "tests/pipelines/two-models.yaml";

/// The weights take 111 and 151 MB: both fit one after the other, not together.
#[test]
fn a_model_leaves_when_another_needs_its_place() {
    let mut cluster = Cluster::new();
    let _leader = cluster.coordinator();
    let _worker = cluster.worker_with("w", "slots = 2\nmodel_memory_mb = 200");
    let events = events(&cluster.ask(&["submit", PIPELINE, "--wait", "--json"]));
    crate::cluster::check(&events);
    let begun = events.iter().filter(|e| is(e, "task_started")).count();
    assert_eq!(begun, 7, "nothing was tried twice");
}

#[test]
fn a_model_that_is_too_large_is_told_with_what_to_do() {
    let mut cluster = Cluster::new();
    let _leader = cluster.coordinator();
    let _worker = cluster.worker_with("w", "model_memory_mb = 50");
    let addresses = cluster.addresses.join(",");
    let set = ["submit", PIPELINE, "--wait", "--coordinator", &addresses];
    let ended = cluster.home.call(&set);
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned() + &String::from_utf8_lossy(&ended.stdout);
    assert!(
        said.contains("this worker keeps at most 50 MiB of models") && said.contains("`model_memory_mb`"),
        "{said}"
    );
}

/// The weights alone take 98 MB; what a process holds that scored with them is more.
#[test]
fn what_tasks_took_of_memory_is_what_later_ones_are_thought_to_need() {
    const LEARNED: &str = "tests/pipelines/learned.yaml";
    let mut cluster = Cluster::new();
    let _leader = cluster.coordinator();
    let _worker = cluster.worker("w");
    let planned = |set: &str| -> Vec<serde_json::Value> {
        let plan = cluster.home.ok(&["plan", LEARNED, "--json", "--set", set]);
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        let memory = |stage: &str| {
            let found = plan["stages"].as_array().unwrap().iter().find(|s| s["stage"] == stage).unwrap();
            found["memory"].clone()
        };
        ["score", "written", "retrieve"].map(memory).into()
    };
    let before = planned("k=2");
    assert_eq!((&before[0]["host_by"], &before[0]["gpu_by"]), (&"default".into(), &"model files".into()));

    let first = cluster.ask(&["submit", LEARNED]).trim().to_owned();
    cluster.ask(&["watch", &first]);
    let score = crate::support::files(&cluster.store().join("artifacts"));
    let manifests = score
        .iter()
        .filter(|path| path.ends_with("manifest.json"))
        .map(|path| serde_json::from_slice::<serde_json::Value>(&std::fs::read(path).unwrap()).unwrap());
    let peaks: Vec<f64> =
        manifests.filter(|m| m["stage"] == "score").filter_map(|m| m["metrics"]["host_peak_mb"].as_f64()).collect();
    assert!(peaks.len() == 2 && peaks.iter().all(|mb| (110.0..16_384.0).contains(mb)), "{peaks:?}");

    // Another run, whose tasks are not those of the first; the coordinator is asked, which has the store.
    let second = cluster.ask(&["submit", LEARNED, "--set", "k=1"]).trim().to_owned();
    cluster.ask(&["watch", &second]);
    let plan = std::fs::read(cluster.store().join("runs").join(&second).join("plan.json")).unwrap();
    let plan: serde_json::Value = serde_json::from_slice(&plan).unwrap();
    let resources = |stage: &str| {
        let stages = plan["stages"].as_array().unwrap();
        stages.iter().find(|s| s["name"] == stage).unwrap()["resources"].clone()
    };
    assert_eq!(resources("score")["host_measured_in"], first.as_str());
    let estimate = resources("score")["host_estimate_mb"].as_f64().unwrap();
    // `written` has the same kind and model, so its task tells of `score`, too.
    assert!(estimate >= peaks.iter().fold(0.0, |a: f64, b| a.max(*b)), "{estimate} of {peaks:?}");
    assert!(resources("written")["host_estimate_mb"].is_null() && resources("retrieve")["host_estimate_mb"].is_null());

    let after = planned("k=3");
    assert_eq!(after[1]["host_mb"], 1024);
    assert_eq!((&after[1], &after[2]), (&before[1], &before[2]));
    if estimate > 2048.0 {
        assert_eq!(after[0]["host_by"], format!("run {second}"));
    }
    let told = cluster.ask(&["status", &first]);
    assert!(told.contains(&first) && !told.contains(&second), "{told}");
    assert!(cluster.ask(&["status"]).contains(&second));
}
