//! Named limits over all runs of a cluster, and needs that nobody meets, as people see them.

use crate::{cluster::Cluster, support::is};
use std::time::{Duration, Instant};

const PIPELINE: &str = "tests/pipelines/limited.yaml";

#[test]
fn the_clusters_limit_holds_and_what_is_missing_is_told() {
    let mut cluster = Cluster::new();
    let _leader = cluster.coordinator_with("listen = \"127.0.0.1:0\"\n[limits]\nnaps = 2");
    let _worker = cluster.worker_with("w", "slots = 6");
    let run = cluster.ask(&["submit", PIPELINE]).trim().to_owned();
    let (watching, events) = cluster.watch(&run);
    let (mut out, mut most, mut done) = (0u32, 0, 0);
    for event in events {
        if event["stage"] == "nap" && is(&event, "task_dispatched") {
            out += 1;
            most = most.max(out);
        } else if event["stage"] == "nap" && is(&event, "task_committed") {
            (out, done) = (out - 1, done + 1);
        }
        if done == 12 {
            break;
        }
    }
    drop(watching);
    assert_eq!(most, 2, "the pipeline allows 3, the cluster 2, and there are slots for 6");
    let wanted = "stage `large` waits for a worker of pool `cpu` with 976 GiB of memory";
    // A leader tells it once it has heard of every worker.
    let until = Instant::now() + Duration::from_secs(30);
    while !cluster.ask(&["status"]).contains(wanted) {
        assert!(Instant::now() < until, "{}", cluster.ask(&["status"]));
    }
}
