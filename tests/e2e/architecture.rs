//! The arrows between the crates, as `ARCHITECTURE.md` draws them, read from `cargo metadata`.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

/// For each crate of ours, the crates of ours that it may name.
const ALLOWED: &[(&str, &[&str])] = &[
    ("rallrec-core", &[]),
    ("rallrec-store", &["rallrec-core"]),
    ("rallrec-queue", &["rallrec-core"]),
    ("rallrec-proto", &["rallrec-core"]),
    ("rallrec-kernels", &[]),
    ("rallrec-llm", &["rallrec-core", "rallrec-kernels"]),
    ("rallrec-recsys", &["rallrec-core"]),
    ("rallrec-provider", &["rallrec-core"]),
    ("rallrec-stages", &["rallrec-core", "rallrec-llm", "rallrec-recsys", "rallrec-provider"]),
    ("rallrec-coordinator", &["rallrec-core", "rallrec-store", "rallrec-queue", "rallrec-proto"]),
    ("rallrec-test-servers", &[]),
    ("rallrec-worker", &["rallrec-core", "rallrec-store", "rallrec-queue", "rallrec-proto", "rallrec-stages"]),
];

#[test]
fn crates_name_only_what_the_map_allows() {
    let graph = dependencies();
    for (name, allowed) in ALLOWED {
        let found = graph.get(*name).unwrap_or_else(|| panic!("no crate {name} in the workspace"));
        let ours: BTreeSet<&str> = found.iter().map(String::as_str).filter(|d| d.starts_with("rallrec-")).collect();
        let extra: Vec<_> = ours.iter().filter(|d| !allowed.contains(*d)).collect();
        assert!(extra.is_empty(), "{name} must not depend on {extra:?}; see ARCHITECTURE.md");
    }
    let named: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    let unnamed: Vec<_> = graph.keys().filter(|n| n.starts_with("rallrec-") && !named.contains(n.as_str())).collect();
    assert!(unnamed.is_empty(), "{unnamed:?} are not on the map; add them to ARCHITECTURE.md and to this test");
}

#[test]
fn the_core_stays_inert_and_the_coordinator_without_burn() {
    let graph = dependencies();
    let reach = |from: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(name) = open.pop() {
            for next in graph.get(&name).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
        seen
    };
    let core = reach("rallrec-core");
    for banned in ["tokio", "object_store", "arrow-array", "burn"] {
        assert!(!core.contains(banned), "rallrec-core reaches {banned}");
    }
    let coordinator = reach("rallrec-coordinator");
    for banned in ["burn", "rallrec-stages", "rallrec-llm", "rallrec-recsys"] {
        assert!(!coordinator.contains(banned), "rallrec-coordinator reaches {banned}");
    }
    assert!(coordinator.contains("rallrec-core") && reach("rallrec-worker").contains("burn"), "the walk itself works");
}

/// The normal dependencies of each package, by name.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let normal = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().into_iter().flatten();
        all.filter(|d| d["kind"].is_null()).map(|d| text(&d["name"])).collect()
    };
    packages.iter().map(|p| (text(&p["name"]), normal(p))).collect()
}
