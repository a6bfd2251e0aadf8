//! Large files pass, hostile ones are refused, and no text at all makes the compiler panic.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use rallrec_core::{
    plan::{Pins, Plan},
    spec::compile,
};
use std::fmt::Write;

const HEAD: &str = "rallrec: 1\nname: large\nmodels: {llm: {source: smollm2-135m-instruct}}\ndata: {ratings: {source: movielens-1m}}\nstages:\n  dataset: {kind: dataset, data: ratings}\n";

fn large(stages: usize) -> String {
    let mut text = HEAD.to_owned();
    for i in 0..stages {
        write!(
            text,
            "  embed-{i}:\n    kind: embed\n    needs: {{items: dataset}}\n    model: llm\n    with: {{pooling: last}}\n    shards: {{rows: {}}}\n    resources: {{pool: gpu, memory_mb: 4096}}\n    retry: {{max_attempts: 5}}\n",
            i + 1
        )
        .unwrap();
    }
    text
}

#[test]
fn twenty_thousand_stages_compile_and_plan() {
    let pipeline = compile("large.yaml", &large(20_000), &[]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(pipeline.stages.len(), 20_001);
    let (models, data) = ([("llm".into(), "m".into())].into(), [("ratings".into(), "d".into())].into());
    let pins = Pins { models, data, ..Pins::default() };
    assert_eq!(Plan::new(&pipeline, &pins).unwrap().stages.len(), 20_001);
}

#[test]
fn a_chain_of_twenty_thousand_stages_needs_no_deep_stack() {
    let mut text = HEAD.to_owned();
    text += "  retrieve: {kind: retrieve, needs: {samples: dataset.test, items: dataset, users: dataset.users, interactions: dataset.interactions}, with: {variant: simple}}\n";
    text += "  merge-0: {kind: score, needs: {prompts: retrieve}, model: llm}\n";
    text += "  reason: {kind: reason, needs: {prompts: retrieve, predictions: merge-0}, model: llm}\n";
    for i in (1..20_000).rev() {
        writeln!(text, "  merge-{i}: {{kind: merge, needs: {{predictions: merge-{}, traces: reason}}}}", i - 1)
            .unwrap();
    }
    assert_eq!(compile("chain.yaml", &text, &[]).unwrap_or_else(|e| panic!("{e}")).stages.len(), 20_003);
    let circle = text.replace("predictions: merge-0}, model", "predictions: merge-19999}, model");
    let found = compile("circle.yaml", &circle, &[]).unwrap_err();
    assert_eq!(found.errors(), 1);
    assert!(found.items[0].message.contains("in a circle: `reason` -> `merge-19999`"), "{}", found.items[0].message);
    assert!(found.items[0].message.contains("more)"), "a long circle is shortened");
}

#[test]
fn twenty_thousand_mistakes_are_all_told() {
    let text = large(20_000).replace("items: dataset", "items: datasett");
    assert_eq!(compile("large.yaml", &text, &[]).unwrap_err().errors(), 20_000);
}

#[test]
fn files_over_sixteen_mebibytes_are_refused() {
    let text = format!("{HEAD}{}", "#".repeat(16 << 20));
    let found = compile("huge.yaml", &text, &[]).unwrap_err();
    assert!(found.to_string().starts_with("huge.yaml:1:1: error: the file has 16777"), "{found}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Broken versions of a real pipeline: a piece cut out, doubled, or overwritten.
    #[test]
    fn no_text_makes_the_compiler_panic(at in 0usize..2400, length in 0usize..60, noise in "[ -~\n\t{}\\[\\]&*:${}é]{0,12}", twice in any::<bool>()) {
        let text = include_str!("../../../pipelines/quickstart.yaml");
        let chars: Vec<char> = text.chars().collect();
        let at = at.min(chars.len());
        let end = (at + length).min(chars.len());
        let head: String = chars[..at].iter().collect();
        let piece: String = chars[at..end].iter().collect();
        let tail: String = chars[end..].iter().collect();
        let broken = if twice { format!("{head}{piece}{noise}{piece}{tail}") } else { format!("{head}{noise}{tail}") };
        if let Err(found) = compile("noise.yaml", &broken, &[]) {
            prop_assert!(found.errors() > 0);
            let lines = broken.lines().count() as u32 + 1;
            for item in &found.items {
                prop_assert!(item.span.is_none_or(|s| s.line >= 1 && s.line <= lines && s.column >= 1), "{:?}", item);
            }
            prop_assert_eq!(&found, &compile("noise.yaml", &broken, &[]).unwrap_err());
            prop_assert!(!found.to_string().is_empty());
        }
    }
}
