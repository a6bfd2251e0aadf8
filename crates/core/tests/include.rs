//! Pipelines of several files: what stands above what, which stages are kept, and whose mistakes are told where.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rallrec_core::{
    params::StageParams,
    spec::{Diagnostics, Pipeline, compile_whole},
};
use std::{collections::BTreeMap, path::Path};

const DATA: &str = "rallrec: 1
params: {limit: 10, seen: 5}
data: {ratings: {source: movielens-100k}}
stages:
  dataset: {kind: dataset, data: ratings}
";
const MODELS: &str = "rallrec: 1
include: data.yaml
params: {epochs: 3}
stages:
  one: &ctr
    kind: ctr
    needs: {train: dataset.train, valid: dataset.valid, test: dataset.test, items: dataset.items, users: dataset.users}
    with: {max_epochs: \"${epochs}\", limit: \"${limit}\", hidden: [8]}
  two: *ctr
  evaluate: {kind: evaluate, needs: {predictions: [one, two]}}
";

/// Compiles `main.yaml` in the folder `p`, whose other files are these.
fn whole(main: &str, others: &[(&str, &str)], set: &[(&str, &str)]) -> Result<Pipeline, Diagnostics> {
    let files: BTreeMap<&Path, &str> = others.iter().map(|(name, text)| (Path::new(*name), *text)).collect();
    let set: Vec<(String, String)> = set.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    compile_whole("p/main.yaml", main, &set, &|path| {
        files.get(path).map(|text| (*text).to_owned()).ok_or_else(|| "no such file".to_owned())
    })
}

fn parts() -> [(&'static str, &'static str); 2] {
    [("p/parts/models.yaml", MODELS), ("p/parts/data.yaml", DATA)]
}

fn refused(main: &str, others: &[(&str, &str)]) -> String {
    whole(main, others, &[]).unwrap_err().to_string()
}

const HEAD: &str = "rallrec: 1\nname: main\n";

#[test]
fn the_including_file_stands_above_and_takes_what_it_needs() {
    let main = format!(
        "{HEAD}params: {{limit: 20}}\ninclude: [parts/models.yaml]\nstages:\n  two: {{with: {{hidden: [4, 2]}}}}\n"
    );
    let pipeline = whole(&main, &parts(), &[]).unwrap();
    assert!(pipeline.warnings.is_empty(), "{}", pipeline.warnings);
    let names: Vec<_> = pipeline.stages.iter().map(|s| s.name.to_string()).collect();
    assert_eq!(names, ["dataset", "two"], "neither `one` nor `evaluate` is asked for");
    let StageParams::Ctr(two) = &pipeline.stages[1].params else { panic!() };
    assert_eq!((two.limit, two.max_epochs), (20, 3), "its own parameter, and the included one");
    assert_eq!(two.hidden, [4, 2], "a list is replaced whole");

    let two = |set: &[(&str, &str)]| match &whole(&main, &parts(), set).unwrap().stages[1].params {
        StageParams::Ctr(two) => two.clone(),
        _ => panic!(),
    };
    assert_eq!(two(&[("epochs", "9")]).max_epochs, 9, "`--set` reaches included parameters");
}

#[test]
fn pieces_mean_what_one_file_would() {
    let main = format!("{HEAD}include: [parts/models.yaml]\nstages: {{evaluate: {{}}}}\n");
    let of_pieces = whole(&main, &parts(), &[]).unwrap();
    let body = MODELS.replace("rallrec: 1\ninclude: data.yaml\nparams: {epochs: 3}\nstages:\n", "");
    let head = DATA.replace("rallrec: 1\n", HEAD).replace("limit: 10, seen: 5", "limit: 10, epochs: 3");
    let in_one = whole(&format!("{head}{body}"), &[], &[]).unwrap();
    assert_eq!(of_pieces, in_one);
}

#[test]
fn a_file_is_in_once_and_later_ones_stand_above() {
    let other = "rallrec: 1\ninclude: [data.yaml, ../main.yaml]\nparams: {limit: 30}\nstages: {}\n";
    let main = format!(
        "{HEAD}include: [parts/models.yaml, \"parts/${{which}}.yaml\"]\nparams: {{which: other}}\nstages: {{one: {{}}}}\n"
    );
    let mut files = parts().to_vec();
    files.push(("p/parts/other.yaml", other));
    let pipeline = whole(&main, &files, &[]).unwrap();
    assert!(pipeline.warnings.is_empty(), "{}", pipeline.warnings);
    let StageParams::Ctr(one) = &pipeline.stages[1].params else { panic!() };
    assert_eq!(one.limit, 30);
    let found = whole(&main, &files, &[("which", "none")]).unwrap_err().to_string();
    assert!(found.contains("p/parts/none.yaml cannot be read: no such file"), "{found}");
}

#[test]
fn mistakes_are_told_in_their_own_file() {
    let broken = MODELS.replace("max_epochs: \"${epochs}\"", "max_epoch: 4").replace("hidden: [8]", "hidden: [0]");
    let main = format!("{HEAD}include: parts/models.yaml\nstages:\n  two: {{with: {{batch_size: few}}}}\n");
    insta::assert_snapshot!(refused(&main, &[("p/parts/models.yaml", &broken), ("p/parts/data.yaml", DATA)]));
}

#[test]
fn files_that_cannot_be_included() {
    let main = format!(
        "{HEAD}include: [parts/a.yaml, parts/b.yaml, \"${{sett}}.yaml\", [c]]\nparams: {{set: x}}\nstages: {{one: {{}}}}\n"
    );
    let list = "- a\n- b\n";
    let syntax = "rallrec: 1\nstages:\n  one: {kind: rows\n  two: {kind: rows}\n";
    insta::assert_snapshot!(refused(&main, &[("p/parts/a.yaml", list), ("p/parts/b.yaml", syntax)]));
}

#[test]
fn included_files_have_versions_and_keys_too() {
    let main = format!("{HEAD}include: parts/a.yaml\nstages: {{one: {{}}}}\n");
    let old = "rallrec: 2\nstage:\n  one: {kind: rows}\nstages: {one: {kind: rows}}\n";
    insta::assert_snapshot!(refused(&main, &[("p/parts/a.yaml", old)]));
    let nothing = refused(&format!("{HEAD}include: parts/a.yaml\n"), &[("p/parts/a.yaml", DATA)]);
    assert!(nothing.contains("p/main.yaml:1:1: error: the key `stages` is missing"), "{nothing}");
    let main = format!("{HEAD}include: parts/a.yaml\nstages: {{one: {{needs: {{rows: [missing]}}}}}}\n");
    insta::assert_snapshot!(refused(&main, &[("p/parts/a.yaml", "stages: {one: {kind: wait}}\n")]));
}
