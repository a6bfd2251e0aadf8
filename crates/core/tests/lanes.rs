//! From what a pipeline says that a stage needs to the lane that its tasks wait in.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rallrec_core::{
    lane::{Lane, Room},
    plan::{Pins, Plan},
    spec::compile,
};

fn lane(resources: &str, model_bytes: Option<u64>) -> Lane {
    let text = format!(
        "rallrec: 1\nname: p\nmodels: {{llm: {{source: smollm2-135m-instruct}}}}\ndata: {{ratings: {{source: movielens-100k}}}}\n\
         stages:\n  dataset: {{kind: dataset, data: ratings}}\n  embed: {{kind: embed, needs: {{items: dataset}}, model: llm{resources}}}\n"
    );
    let pipeline = compile("p.yaml", &text, &[]).unwrap_or_else(|found| panic!("{found}"));
    let pins = Pins {
        models: [("llm".to_owned(), "ab".repeat(32))].into(),
        data: [("ratings".to_owned(), "d".to_owned())].into(),
        model_bytes: model_bytes.into_iter().map(|bytes| ("llm".to_owned(), bytes)).collect(),
    };
    Lane::of(&Plan::new(&pipeline, &pins).unwrap().stages[1])
}

fn room(host_gib: u32, gpu_gib: u32) -> Room {
    Room { gpu_gib, host_gib }
}

#[test]
fn what_is_written_is_demanded_in_whole_gib() {
    let lane = lane(", resources: {pool: gpu, memory_mb: 3000, gpu_memory_mb: 17000}", Some(1 << 40));
    assert_eq!((lane.least, lane.wanted), (room(3, 17), room(3, 17)));
    assert_eq!(lane.to_string(), "gpu/abababababababab/m3g17");
}

#[test]
fn a_model_s_size_is_a_wish() {
    // 16 GiB of weights, a quarter more, and 2 GiB.
    let lane = lane("", Some(16 << 30));
    assert_eq!((lane.least, lane.wanted), (room(2, 0), room(2, 22)));
    assert_eq!(lane.to_string(), "cpu/abababababababab/m2-m2g22");
}

#[test]
fn without_a_size_nothing_is_asked_of_the_accelerator() {
    assert_eq!(lane("", None).wanted, room(2, 0));
    assert_eq!(lane(", resources: {gpu_memory_mb: 0}", Some(16 << 30)).wanted, room(2, 0));
}

#[test]
fn plans_of_earlier_versions_are_read() {
    let old = r#"{"pool":"cpu","memory_mb":2048}"#;
    let resources: rallrec_core::plan::Resources = serde_json::from_str(old).unwrap();
    assert_eq!(serde_json::to_string(&resources).unwrap(), old);
}
