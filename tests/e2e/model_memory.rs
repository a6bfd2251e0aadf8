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
