//! Keys change with everything that can change an output, and with nothing else; changes are explained by their cause.
//!
//! Driven by the tables: a new kind or parameter is covered the moment it exists.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use rallrec_core::{
    field::{Effect, Field, ValueKind},
    ids::StageName,
    kind::{Mode, StageKind},
    models::ModelPlace,
    params::StageParams,
    plan::{Pins, Plan, PlannedStage, why_changed},
    spec::{Pipeline, compile},
};
use serde_json::{Map, Value, json};

/// Every kind at least once, so that a change of any stage has something behind it to change.
const WHOLE: &str = include_str!("all_kinds.yaml");

fn whole() -> Pipeline {
    compile("all_kinds.yaml", WHOLE, &[]).unwrap()
}

fn pins() -> Pins {
    Pins {
        models: [("llm".to_owned(), "m0".to_owned()), ("own".to_owned(), "m0".to_owned())].into(),
        data: [("ratings".to_owned(), "d0".to_owned())].into(),
        ..Pins::default()
    }
}

fn plan(pipeline: &Pipeline) -> Plan {
    Plan::new(pipeline, &pins()).unwrap()
}

fn stage<'a>(plan: &'a Plan, name: &str) -> &'a PlannedStage {
    plan.stages.iter().find(|s| s.name.0 == name).unwrap()
}

/// Another valid value of a parameter.
fn other(field: &Field, current: &Value, pick: u64) -> Value {
    let (lo, hi) = field.range.unwrap_or((0.0, 1e9));
    match &field.kind {
        ValueKind::Int => {
            let span = (hi - lo) as u64;
            let value = lo as u64 + pick % span;
            json!(if current.as_u64() == Some(value) { value + 1 } else { value })
        }
        ValueKind::Float => {
            let value = lo + (hi - lo) * ((pick % 9973) as f64 / 9973.0);
            json!(if current.as_f64() == Some(value) { hi } else { value })
        }
        ValueKind::Bool => json!(current != &json!(true)),
        ValueKind::Text => json!(format!("{}{pick}", current.as_str().unwrap())),
        ValueKind::Choice(words) => {
            let others: Vec<&&str> = words.iter().filter(|w| *current != json!(w)).collect();
            json!(others.get(pick as usize % others.len().max(1)).copied().unwrap_or(&words[0]))
        }
        ValueKind::List(element) => {
            let mut list = current.as_array().unwrap().clone();
            list.push(other_element(element, lo as u64 + pick));
            json!(list)
        }
        ValueKind::Map(element) => json!({ format!("n{pick}"): other_element(element, pick) }),
        ValueKind::Record(fields) => {
            // Every default, but of the first text: what a parameter is below another matters as much.
            let mut record: Map<String, Value> =
                fields.iter().map(|f| (f.name.to_owned(), f.default.clone())).collect();
            if let Some(text) = fields.iter().find(|f| f.kind == ValueKind::Text) {
                record.insert(text.name.to_owned(), json!(format!("{pick}")));
            }
            Value::Object(record)
        }
    }
}

fn other_element(kind: &ValueKind, pick: u64) -> Value {
    match kind {
        ValueKind::Choice(words) => json!(words[pick as usize % words.len()]),
        ValueKind::Text => json!(format!("{pick}")),
        _ => json!(1 + pick % 100),
    }
}

/// Positions of the stages that read from `from`, directly or through others, and `from` itself.
fn downstream(plan: &Plan, from: usize) -> Vec<bool> {
    let mut reached = vec![false; plan.stages.len()];
    reached[from] = true;
    for i in from + 1..plan.stages.len() {
        reached[i] = plan.stages[i].needs.iter().any(|n| reached[n.stage as usize]);
    }
    reached
}

fn with_param(pipeline: &Pipeline, position: usize, name: &str, value: Value) -> Pipeline {
    let mut changed = pipeline.clone();
    let stage = &mut changed.stages[position];
    let mut params = stage.params.to_json();
    params[name] = value;
    stage.params = StageParams::from_json(stage.kind(), params).unwrap();
    changed
}

proptest! {
    // Each case tries every parameter of every kind.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_keyed_parameter_is_in_the_keys_and_no_free_one(pick in any::<u64>()) {
        let pipeline = whole();
        let old = plan(&pipeline);
        for (position, stage) in pipeline.stages.iter().enumerate() {
            for field in StageParams::fields(stage.kind()) {
                let current = stage.params.to_json()[field.name].clone();
                let value = other(&field, &current, pick);
                // A set of one word has no other.
                if value == current {
                    continue;
                }
                let new = plan(&with_param(&pipeline, position, field.name, value));
                let at = old.stages.iter().position(|s| s.name == stage.name).unwrap();
                let reached = downstream(&old, at);
                for (i, (a, b)) in old.stages.iter().zip(&new.stages).enumerate() {
                    let (rows, whole) = (a.row_key != b.row_key, a.stage_key != b.stage_key);
                    let what = format!("{}.{} seen by {}", stage.name, field.name, a.name);
                    match field.effect {
                        Effect::Keyed | Effect::Later => prop_assert_eq!((rows, whole), (reached[i], reached[i]), "{}", what),
                        Effect::Free => prop_assert_eq!((rows, whole), (false, false), "{}", what),
                        Effect::Scope => {
                            prop_assert_eq!(whole, reached[i], "{}", what);
                            // Rows change only where somebody read a whole table.
                            let reads_whole = a.needs.iter().any(|n| n.mode == Mode::Whole && reached[n.stage as usize]);
                            if !reads_whole && a.drive().is_some() && i == at {
                                prop_assert!(!rows, "{}", what);
                            }
                        }
                    }
                }
                let last = downstream(&old, at).iter().rposition(|reached| *reached).unwrap();
                let causes = why_changed(&old, &new, &old.stages[last].name);
                if field.effect == Effect::Free {
                    prop_assert!(causes.is_empty());
                } else {
                    prop_assert_eq!(causes.len(), 1, "{:?}", &causes);
                    prop_assert_eq!(&causes[0].stage, &stage.name);
                    prop_assert_eq!(&causes[0].field, &format!("with.{}", field.name));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn settings_that_do_not_touch_the_output_are_in_no_key(
        position in 0usize..16, rows in 1u64..10_000, memory_mb in 1u64..100_000, attempts in 1u32..100, bad in 0u64..100,
    ) {
        let pipeline = whole();
        let mut changed = pipeline.clone();
        let stage = &mut changed.stages[position];
        stage.shard_rows = stage.shard_rows.map(|_| rows);
        stage.resources.memory_mb = memory_mb;
        stage.resources.pool = "gpu".into();
        stage.retry.max_attempts = attempts;
        stage.retry.backoff_ms = memory_mb;
        stage.max_bad_rows = bad;
        for (a, b) in plan(&pipeline).stages.iter().zip(&plan(&changed).stages) {
            prop_assert_eq!((&a.row_key, &a.stage_key), (&b.row_key, &b.stage_key));
        }
    }

    #[test]
    fn a_seed_is_in_the_keys_of_the_kinds_that_draw(position in 0usize..16, seed in 43u64..) {
        let pipeline = whole();
        let mut changed = pipeline.clone();
        changed.stages[position].seed = seed;
        let (old, new) = (plan(&pipeline), plan(&changed));
        let name = &pipeline.stages[position].name;
        let at = old.stages.iter().position(|s| s.name == *name).unwrap();
        let draws = pipeline.stages[position].kind().info().random;
        prop_assert_eq!(old.stages[at].row_key != new.stages[at].row_key, draws);
    }
}

#[test]
fn digests_are_in_the_keys_and_names_are_not() {
    let old = plan(&whole());
    let mut pins = pins();
    pins.models.insert("llm".into(), "m1".into());
    let new = Plan::new(&whole(), &pins).unwrap();
    let changed: Vec<&str> = old
        .stages
        .iter()
        .zip(&new.stages)
        .filter(|(a, b)| a.row_key != b.row_key)
        .map(|(a, _)| a.name.0.as_str())
        .collect();
    assert!(changed.starts_with(&["describe", "embed"]) && !changed.contains(&"lightgcn") && !changed.contains(&"ctr"));
    let why: Vec<String> =
        why_changed(&old, &new, &StageName("merge".into())).iter().map(ToString::to_string).collect();
    assert!(
        why.contains(&"needs.predictions.0, needs.traces changed because score: model.digest: m0 -> m1".to_owned()),
        "{why:?}"
    );

    // A renamed stage is the same work, unless its name is printed.
    let renamed = plan(
        &compile("renamed", &WHOLE.replace("embed:", "vectors:").replace("text: embed", "text: vectors"), &[]).unwrap(),
    );
    assert_eq!(stage(&old, "embed").row_key, stage(&renamed, "vectors").row_key);
    assert_eq!(stage(&old, "report").stage_key, stage(&renamed, "report").stage_key);
    let renamed = plan(
        &compile("renamed", &WHOLE.replace("  ctr:", "  deepfm:").replace("merge, ctr]", "merge, deepfm]"), &[])
            .unwrap(),
    );
    assert_eq!(stage(&old, "ctr").row_key, stage(&renamed, "deepfm").row_key);
    assert_ne!(stage(&old, "evaluate").row_key, stage(&renamed, "evaluate").row_key);
    let why = why_changed(&old, &renamed, &StageName("evaluate".into()));
    assert_eq!(
        why.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["needs.predictions.2 of evaluate: ctr -> deepfm"]
    );
}

#[test]
fn parameters_that_came_later_are_in_no_key_as_they_were_and_may_be_missing() {
    let pipeline = whole();
    for stage in &plan(&pipeline).stages {
        for field in StageParams::fields(stage.kind).into_iter().filter(|f| f.effect == Effect::Later) {
            assert!(!stage.fields.0.contains_key(&format!("with.{}", field.name)), "{}", field.name);
            let mut older = stage.clone();
            older.params.as_object_mut().unwrap().remove(field.name);
            assert_eq!(older.params().unwrap(), stage.params().unwrap());
        }
    }
}

#[test]
fn a_larger_limit_keeps_the_shards_of_row_wise_stages() {
    let set = |limit: &str| plan(&compile("p", WHOLE, &[("eval_limit".into(), limit.into())]).unwrap());
    let (old, new) = (set("40"), set("60"));
    for name in ["retrieve", "score", "reason"] {
        assert_eq!(stage(&old, name).row_key, stage(&new, name).row_key, "{name}");
        assert_ne!(stage(&old, name).stage_key, stage(&new, name).stage_key, "{name}");
    }
    assert_ne!(stage(&old, "merge").row_key, stage(&new, "merge").row_key);
    let why: Vec<String> =
        why_changed(&old, &new, &StageName("merge".into())).iter().map(ToString::to_string).collect();
    assert_eq!(why, ["needs.predictions.0, needs.traces changed because retrieve: with.limit: 40 -> 60"]);
    let why: Vec<String> =
        why_changed(&old, &new, &StageName("retrieve".into())).iter().map(ToString::to_string).collect();
    assert_eq!(why, ["with.limit of retrieve: 40 -> 60"]);
}

#[test]
fn the_readable_fields_of_each_kind_are_as_approved() {
    let plan = plan(&whole());
    let mut shown = String::new();
    for stage in &plan.stages {
        shown += &format!("{} ({})\n", stage.name, stage.kind);
        for (name, value) in &stage.fields.0 {
            // Upstream hashes change with every default; their names do not.
            let value = match value.split_once('#') {
                Some((key, table)) if name.starts_with("needs.") => {
                    let label = key.split_once('=').map_or(String::new(), |(label, _)| format!("{label}="));
                    format!("{label}KEY#{table}")
                }
                _ => value.clone(),
            };
            shown += &format!("  {name} = {value}\n");
        }
    }
    insta::assert_snapshot!("key_fields", shown);
    assert_eq!(
        plan.stages.iter().map(|s| s.kind).collect::<std::collections::HashSet<_>>().len(),
        StageKind::ALL.len()
    );
}

#[test]
fn unpinned_sources_are_named() {
    let error = Plan::new(&whole(), &Pins::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "stage `dataset` uses the data set `ratings`, whose digest is not known: pull it first"
    );
}

/// The example pipeline with its model behind a server.
fn remote(settings: &str) -> Pipeline {
    let server = format!("llm: {{provider: openai, url: \"http://a/v1\", model: m, tokenizer: \"file:t\"{settings}}}");
    // What tunes needs weights at hand, and a server takes no adapter.
    let text = WHOLE
        .replace("llm: {source: smollm2-135m-instruct}", &format!("{server}\n  own: {{source: smollm2-135m-instruct}}"))
        .replace("{prompts: [retrieve-train]}\n    model: llm", "{prompts: [retrieve-train]}\n    model: own")
        .replace(", adapter: tune}", "}");
    compile("remote.yaml", &text, &[]).unwrap()
}

#[test]
fn what_a_server_answers_with_is_in_the_keys_and_how_it_is_asked_is_not() {
    let old = plan(&remote(""));
    let keys = |plan: &Plan| plan.stages.iter().map(|s| s.row_key.clone()).collect::<Vec<_>>();
    for free in [
        ", api_key_env: KEY",
        ", concurrency: 3",
        ", requests_per_minute: 10",
        ", retries: 0",
        ", timeout_s: 9",
        ", price_input: 0.5, price_output: 2",
    ] {
        assert_eq!(keys(&old), keys(&plan(&remote(free))), "{free}");
    }
    let mut moved = remote("");
    let ModelPlace::Remote(server) = &mut moved.models[0].place else { panic!("a server") };
    server.url = "https://elsewhere/v1".into();
    assert_eq!(keys(&old), keys(&plan(&moved)));
    let ModelPlace::Remote(server) = &mut moved.models[0].place else { panic!("a server") };
    server.model = "other".into();
    assert_ne!(keys(&old), keys(&plan(&moved)));
    let why = why_changed(&old, &plan(&remote(", revision: \"2\"")), &StageName("score".into()));
    assert!(why.iter().any(|w| w.to_string() == "model.revision of score:  -> 2"), "{why:?}");
    let mut pins = pins();
    pins.models.insert("llm".into(), "other tokenizer".into());
    assert_ne!(keys(&old), keys(&Plan::new(&remote(""), &pins).unwrap()));
    assert_ne!(keys(&old), keys(&plan(&whole())));
}

#[test]
fn the_precision_of_a_models_weights_is_in_the_keys() {
    let with = |precision: &str| {
        let model = format!("llm: {{source: smollm2-135m-instruct, precision: {precision}}}");
        plan(&compile("p.yaml", &WHOLE.replace("llm: {source: smollm2-135m-instruct}", &model), &[]).unwrap())
    };
    assert_eq!(stage(&plan(&whole()), "score").row_key, stage(&with("auto"), "score").row_key);
    let why = why_changed(&with("bf16"), &with("int8"), &StageName("embed".into()));
    assert!(why.iter().any(|w| w.to_string() == "model.precision of embed: bf16 -> int8"), "{why:?}");
}

#[test]
fn plans_from_before_there_were_servers_are_read() {
    let mut plan = serde_json::to_value(plan(&whole())).unwrap();
    for stage in plan["stages"].as_array_mut().unwrap() {
        if let Some(model) = stage["model"].as_object_mut() {
            model.remove("precision");
        }
    }
    let read: Plan = serde_json::from_value(plan).unwrap();
    assert_eq!(read, self::plan(&whole()));
}
