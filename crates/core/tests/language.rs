//! What a right file means: defaults, references, parameters, anchors, and the order of a plan.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rallrec_core::{
    params::StageParams,
    plan::{Pins, Plan},
    spec::{Pipeline, Stage, compile},
};

const HEAD: &str = "rallrec: 1\nname: example\nmodels: {llm: {source: \"file:model.gguf\"}}\ndata: {ratings: {source: movielens-100k}}\n";

fn read(body: &str, set: &[(&str, &str)]) -> Pipeline {
    let set: Vec<(String, String)> = set.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    compile("example.yaml", &format!("{HEAD}{body}"), &set).unwrap_or_else(|found| panic!("{found}"))
}

fn stage<'a>(pipeline: &'a Pipeline, name: &str) -> &'a Stage {
    pipeline.stages.iter().find(|s| s.name.0 == name).unwrap()
}

#[test]
fn what_is_left_out_has_its_default() {
    let pipeline = read(
        "stages:\n  dataset: {kind: dataset, data: ratings}\n  embed: {kind: embed, needs: {items: dataset}, model: llm, with: , retry: }\n",
        &[],
    );
    let (dataset, embed) = (stage(&pipeline, "dataset"), stage(&pipeline, "embed"));
    assert_eq!((dataset.shard_rows, embed.shard_rows), (None, Some(1024)), "a kind that is one task has no shards");
    assert_eq!((embed.seed, embed.max_bad_rows), (42, 0));
    assert_eq!((embed.resources.pool.as_str(), embed.resources.memory_mb), ("cpu", 2048));
    assert_eq!((embed.retry.max_attempts, embed.retry.backoff_ms), (3, 1000));
    assert_eq!(embed.params.to_json()["pooling"], "mean");
    assert_eq!((embed.needs[0].stage, embed.needs[0].table), (0, "items"), "a stage alone is its first table");
    assert_eq!(pipeline.models[0].source(), Some("file:model.gguf"));
}

#[test]
fn a_stage_has_the_pipelines_seed_unless_it_has_its_own() {
    let pipeline = read(
        "seed: 7\nstages:\n  dataset: {kind: dataset, data: ratings}\n  a: {kind: describe, needs: {items: dataset}, model: llm}\n  b: {kind: describe, needs: {items: dataset}, model: llm, seed: 8}\n",
        &[],
    );
    assert_eq!((stage(&pipeline, "a").seed, stage(&pipeline, "b").seed), (7, 8));
}

const PARAMS: &str = "params: {tokens: 64, who: \"5\", rows: 10, source: dataset}
stages:
  dataset: {kind: dataset, data: ratings}
  describe:
    kind: describe
    needs: {items: \"${source}.items\"}
    model: llm
    with:
      max_new_tokens: ${tokens}
      temperature: ${tokens}e-2
      template: \"{title} for ${who} in ${tokens} tokens at $${{ 9\"
    shards: {rows: \"${rows}\"}
";

#[test]
fn parameters_keep_their_type_alone_and_are_text_within_text() {
    // `${tokens}e-2` is a text, and a temperature is a number.
    let found = compile("example.yaml", &format!("{HEAD}{PARAMS}"), &[]).unwrap_err();
    assert_eq!(found.errors(), 1);
    assert!(
        found.items[0].message.contains("`temperature` must be a number from 0 to 10, not the text \"64e-2\""),
        "{found}"
    );

    let body = PARAMS.replace("      temperature: ${tokens}e-2\n", "");
    let pipeline = read(&body, &[]);
    let StageParams::Describe(params) = &stage(&pipeline, "describe").params else { panic!("wrong kind") };
    assert_eq!(params.max_new_tokens, 64);
    assert_eq!(params.template, "{title} for 5 in 64 tokens at ${{ 9");
    assert_eq!(stage(&pipeline, "describe").shard_rows, Some(10));

    let pipeline = read(&body, &[("tokens", "1"), ("tokens", "0x20"), ("who", "'~'")]);
    let StageParams::Describe(params) = &stage(&pipeline, "describe").params else { panic!("wrong kind") };
    assert_eq!(params.max_new_tokens, 32, "the last of a name counts, read as YAML");
    assert_eq!(params.template, "{title} for ~ in 32 tokens at ${{ 9");
}

#[test]
fn anchors_aliases_and_merge_keys_work() {
    let pipeline = read(
        "x-gpu: &gpu {resources: {pool: gpu, memory_mb: 8192}, retry: {max_attempts: 9}}
x-small: &small {shards: {rows: 5}, retry: {max_attempts: 2}}
stages:
  dataset: {kind: dataset, data: ratings}
  describe: &writer
    <<: [*gpu, *small]
    kind: describe
    needs: &items {items: dataset}
    model: llm
    shards: {rows: 7}
  again:
    <<: *writer
    seed: 1
  embed: {kind: embed, needs: {<<: *items, descriptions: describe}, model: llm}
",
        &[],
    );
    let describe = stage(&pipeline, "describe");
    assert_eq!(describe.resources.pool, "gpu");
    assert_eq!(describe.retry.max_attempts, 9, "the first of a list wins");
    assert_eq!(describe.shard_rows, Some(7), "own keys win");
    assert_eq!((stage(&pipeline, "again").seed, stage(&pipeline, "again").shard_rows), (1, Some(7)));
    assert_eq!(stage(&pipeline, "embed").needs.len(), 2);
}

#[test]
fn byte_order_marks_and_windows_line_ends_are_read() {
    let text = format!("\u{FEFF}{HEAD}stages:\n  dataset: {{kind: dataset, data: ratings}}\n").replace('\n', "\r\n");
    assert!(compile("windows.yaml", &text, &[]).is_ok());
    let found = compile("windows.yaml", &text.replace("kind: dataset", "kind: dataste"), &[]).unwrap_err();
    assert!(found.to_string().starts_with("windows.yaml:6:19: error: there is no kind of stage called `dataste`\n6 |   dataset: {kind: dataste, data: ratings}\n"), "{found}");
}

#[test]
fn a_plan_puts_needs_first_and_otherwise_keeps_the_files_order() {
    let pipeline = read(
        "stages:
  report: {kind: report, needs: {metrics: [evaluate]}}
  evaluate: {kind: evaluate, needs: {predictions: [ctr-b, ctr-a]}}
  ctr-b: {kind: ctr, needs: &all {train: dataset.train, valid: dataset.valid, test: dataset.test, items: dataset, users: dataset.users}}
  ctr-a: {kind: ctr, needs: *all, with: {hidden: [8]}}
  dataset: {kind: dataset, data: ratings}
",
        &[],
    );
    let pins = Pins { data: [("ratings".to_owned(), "d".to_owned())].into(), ..Pins::default() };
    let plan = Plan::new(&pipeline, &pins).unwrap();
    let names: Vec<&str> = plan.stages.iter().map(|s| s.name.0.as_str()).collect();
    assert_eq!(names, ["dataset", "ctr-b", "ctr-a", "evaluate", "report"]);
    let systems: Vec<u32> = plan.stages[3].needs.iter().map(|n| n.stage).collect();
    assert_eq!(systems, [1, 2], "a list keeps its order");
    assert_eq!(plan.stages[3].params().unwrap(), pipeline.stages[1].params);
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan, "a plan survives its journal");
}
