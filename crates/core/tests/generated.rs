//! What is generated from the tables and committed for readers and editors: the kinds in `docs/pipeline.md`, and the
//! JSON Schema beside the pipelines. `RALLREC_UPDATE=1 cargo test -p rallrec-core --test generated` writes both anew.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rallrec_core::{
    field::{Effect, Field, ValueKind},
    kind::{KindInfo, Mode, StageKind, TableKind},
    models::{LocalModel, RemoteModel},
    params::StageParams,
    schema::json_schema,
};
use std::{env, fmt::Write, fs, path::PathBuf};

const BEGIN: &str = "<!-- generated from the tables: begin -->\n";
const END: &str = "<!-- generated from the tables: end -->\n";
const MODELS_BEGIN: &str = "<!-- generated from the tables of models: begin -->\n";
const MODELS_END: &str = "<!-- generated from the tables of models: end -->\n";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compares a committed file with what it should hold, or writes it.
fn check(path: &str, wanted: &str) {
    let file = root().join(path);
    if env::var_os("RALLREC_UPDATE").is_some() {
        fs::write(&file, wanted).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == wanted, "{path} is out of date: RALLREC_UPDATE=1 cargo test -p rallrec-core --test generated");
}

#[test]
fn the_schema_beside_the_pipelines_is_current() {
    check("pipelines/pipeline.schema.json", &format!("{}\n", serde_json::to_string_pretty(&json_schema()).unwrap()));
}

#[test]
fn the_reference_of_the_kinds_is_current() {
    let committed = fs::read_to_string(root().join("docs/pipeline.md")).unwrap();
    let kinds = replaced(&committed, BEGIN, END, &reference());
    check("docs/pipeline.md", &replaced(&kinds, MODELS_BEGIN, MODELS_END, &models()));
}

/// The document with another text between two marks.
fn replaced(document: &str, begin: &str, end: &str, text: &str) -> String {
    let (head, rest) = document.split_once(begin).unwrap_or_else(|| panic!("docs/pipeline.md has lost {begin}"));
    let (_, tail) = rest.split_once(end).unwrap_or_else(|| panic!("docs/pipeline.md has lost {end}"));
    format!("{head}{begin}{text}{end}{tail}")
}

/// The settings of both forms of a model.
fn models() -> String {
    let mut out = String::new();
    for (title, fields) in
        [("A model in files", LocalModel::fields()), ("A model behind a server", RemoteModel::fields())]
    {
        writeln!(out, "\n{title}:\n\n| setting | type | default | key | meaning |\n|---|---|---|---|---|").unwrap();
        for field in fields {
            row(&mut out, "", &field);
        }
    }
    out.push('\n');
    out
}

fn reference() -> String {
    let mut out = String::new();
    for kind in StageKind::ALL {
        let info = kind.info();
        write!(out, "\n### `{kind}`\n\n{}\n\n", info.doc).unwrap();
        let mut facts =
            vec![if info.drive().is_some() { "Row by row, cut into shards." } else { "One task." }.to_owned()];
        if info.data {
            facts.push("Needs `data`.".into());
        }
        if info.model {
            facts.push("Needs `model`.".into());
        }
        if info.random {
            facts.push("Draws random numbers by `seed`.".into());
        }
        writeln!(out, "{}\n", facts.join(" ")).unwrap();
        inputs(&mut out, &info);
        let tables: Vec<String> =
            info.outputs.iter().map(|(name, kind)| format!("`{name}` ({})", words(*kind))).collect();
        writeln!(out, "Makes {}.\n", tables.join(", ")).unwrap();
        writeln!(out, "| parameter | type | default | key | meaning |\n|---|---|---|---|---|").unwrap();
        for field in StageParams::fields(*kind) {
            row(&mut out, "", &field);
        }
    }
    out.push('\n');
    out
}

fn inputs(out: &mut String, info: &KindInfo) {
    if info.inputs.is_empty() {
        return;
    }
    writeln!(out, "| input | table | read |\n|---|---|---|").unwrap();
    for port in info.inputs {
        let read = match port.mode {
            Mode::Drive => "row by row: its rows are the stage's rows",
            Mode::Aligned => "row by row, beside them",
            Mode::Whole => "whole",
        };
        let name =
            if port.optional { format!("`{}` (may be left out)", port.name) } else { format!("`{}`", port.name) };
        let many = if port.many { ", or a list of them" } else { "" };
        writeln!(out, "| {name} | {}{many} | {read} |", words(port.table)).unwrap();
    }
    out.push('\n');
}

fn words(kind: TableKind) -> String {
    serde_json::to_value(kind).unwrap().as_str().unwrap().replace('_', " ")
}

/// A parameter below `above`, and those below it.
fn row(out: &mut String, above: &str, field: &Field) {
    let effect = match field.effect {
        Effect::Keyed => "yes",
        Effect::Later => "unless default",
        Effect::Scope => "scope",
        Effect::Free => "no",
    };
    let doc = field.doc.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let default = match field.default.to_string() {
        long if long.len() > 40 => "a long text, see the JSON Schema".to_owned(),
        short => format!("`{}`", short.replace('|', "\\|")),
    };
    let name = format!("{above}{}", field.name);
    if let ValueKind::Record(fields) = &field.kind {
        writeln!(out, "| `{name}` | mapping | | {effect} | {doc} |").unwrap();
        for field in fields {
            row(out, &format!("{name}."), field);
        }
        return;
    }
    writeln!(out, "| `{name}` | {} | {default} | {effect} | {doc} |", kind_words(&field.kind, field.range)).unwrap();
}

fn kind_words(kind: &ValueKind, range: Option<(f64, f64)>) -> String {
    let bounds = range.map_or(String::new(), |(lo, hi)| format!(", {lo} to {hi}"));
    match kind {
        ValueKind::Int => format!("whole number{bounds}"),
        ValueKind::Float => format!("number{bounds}"),
        ValueKind::Bool => "true or false".into(),
        ValueKind::Text => "text".into(),
        ValueKind::Choice(all) => all.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", "),
        ValueKind::List(element) => format!("list of {}", kind_words(element, range)),
        ValueKind::Map(element) => format!("names, each with {}", kind_words(element, range)),
        ValueKind::Record(_) => "mapping".into(),
    }
}
