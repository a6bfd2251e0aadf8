//! The outer level of a file: format version, name, parameters, models, data, and the list of stages.

use super::{
    DEFAULT_SEED, FORMAT_VERSION, Pipeline, Source, bounds,
    diagnostics::{Collector, Span, list, shown},
    files::Files,
    graph,
    include::Whole,
    mapping, models,
    node::{Content, Entry, Node},
    recover::Recovered,
    stage::{self, Draft, Surroundings},
    sweep,
    values::{Expected, Param, Reader, get, is_name, name_help, resolve},
};
use crate::field::ValueKind;
use serde_json::Value;
use std::{collections::HashSet, rc::Rc};

/// Keys of a file.
const KEYS: &[&str] = &["rallrec", "name", "seed", "params", "models", "data", "limits", "include", "stages", "sweep"];
const START: Span = Span { line: 1, column: 1, width: 1 };

/// Names of declared models or data sets.
#[derive(Debug, Default)]
pub(super) struct Declared {
    names: Vec<(String, Span)>,
    /// Names whose declaration is wrong, so that using them is not a second error.
    pub(super) broken: HashSet<String>,
    /// Whether the whole section is unreadable.
    pub(super) unknown: bool,
}

impl Declared {
    /// Whether the name may be used.
    pub(super) fn has(&self, name: &str) -> bool {
        self.unknown || self.broken.contains(name) || self.names.iter().any(|(n, _)| n == name)
    }

    /// The names, for suggestions.
    pub(super) fn names(&self) -> Vec<&str> {
        self.names.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// Checks the whole file. The pipeline is there when it could be built; it counts only without errors.
pub(super) fn lower(
    whole: Whole,
    files: Files,
    overrides: &[(String, String)],
    out: Collector,
) -> (Option<Pipeline>, Collector) {
    let Whole { file, included, used } = whole;
    let mut reader = Reader { files, used, ..Reader::new(out) };
    for root in &included {
        let Content::Map(entries) = &root.content else { continue };
        let start = Span { column: 1, width: 1, ..root.span };
        unknown_keys(&mut reader, entries);
        version(&mut reader, entries, start);
    }
    let pipeline =
        root(&mut reader, &file).and_then(|entries| pipeline(&mut reader, entries, &file.lost_names, overrides));
    (pipeline, reader.out)
}

fn root<'n>(reader: &mut Reader, file: &'n Recovered) -> Option<&'n [Entry]> {
    let example = "begin with `rallrec: 1`, `name: my-pipeline` and `stages:`; docs/pipeline.md shows a whole file";
    match file.root.as_deref() {
        Some(Node { content: Content::Map(entries), .. }) => Some(entries),
        Some(node) if !matches!(&node.content, Content::Scalar { text, .. } if text.is_empty()) => {
            let message = format!("a pipeline file must be a mapping, not {}", node.describe());
            reader.out.error(node.span, message, Some(example.to_owned()));
            None
        }
        _ => {
            reader.out.error(START, "the file is empty", Some(example.to_owned()));
            None
        }
    }
}

fn pipeline(
    reader: &mut Reader,
    entries: &[Entry],
    lost_names: &HashSet<String>,
    overrides: &[(String, String)],
) -> Option<Pipeline> {
    unknown_keys(reader, entries);
    version(reader, entries, START);
    params(reader, entries, overrides);
    let name = name(reader, entries);
    let seed = get(entries, "seed").and_then(|node| reader.whole(node, "seed", bounds::SEED)).unwrap_or(DEFAULT_SEED);
    let (mut model_names, models) = models::read(reader, entries);
    let (mut data_names, data) = declared(reader, entries, "data", "movielens-100k", data_set);
    model_names.broken.extend(lost_names.iter().cloned());
    data_names.broken.extend(lost_names.iter().cloned());
    let (mut limit_names, limits) = declared(reader, entries, "limits", "4", limit);
    limit_names.broken.extend(lost_names.iter().cloned());
    let around = Surroundings {
        seed,
        model_names: &model_names,
        models: &models,
        data_names: &data_names,
        limit_names: &limit_names,
        limits: &limits,
        item_fields: &mapping::item_fields(get(entries, "stages").map(|node| &**node)),
    };
    let Drafts { drafts, broken, used } = stages(reader, entries, &around)?;
    let stages = graph::connect(reader, drafts, &broken, lost_names);
    let sweep = get(entries, "sweep").and_then(|node| sweep::read(reader, node, stages.as_deref()));
    warn_unused(reader, &model_names, "model", |name| used.contains(&("model", name.to_owned())));
    warn_unused(reader, &limit_names, "limit", |name| used.contains(&("limits", name.to_owned())));
    warn_unused(reader, &data_names, "data set", |name| used.contains(&("data", name.to_owned())));
    // What an included file declares is for whoever uses it; a `--set` wants to change something.
    let matters = |param: &Param| param.overridden || reader.files.is_main(param.span);
    let unused = reader.params.iter().filter(|(name, param)| matters(param) && !reader.used.contains(*name));
    let unused: Vec<(String, Span)> = unused.map(|(name, param)| (name.clone(), param.span)).collect();
    for (name, span) in unused {
        let message = format!("the parameter `{name}` is never used");
        reader.out.warning(span, message, Some(format!("write `${{{name}}}` where its value belongs, or remove it")));
    }
    Some(Pipeline { name: name?, models, data, stages: stages?, sweep, warnings: super::Diagnostics::default() })
}

fn unknown_keys(reader: &mut Reader, entries: &[Entry]) {
    let is_stage = |node: &Node| matches!(&node.content, Content::Map(fields) if get(fields, "kind").is_some());
    let mut known = KEYS.to_vec();
    known.extend(entries.iter().map(|e| &*e.key).filter(|key| key.starts_with("x-")));
    for entry in entries.iter().filter(|e| !KEYS.contains(&&*e.key) && is_stage(&e.value)) {
        if !entry.key.starts_with("x-") {
            let message = format!("the stage `{}` stands outside `stages`", shown(&entry.key));
            reader.out.error(entry.key_span, message, Some("indent it below `stages:`".to_owned()));
        }
        known.push(&entry.key);
    }
    reader.unknown_keys(entries, &known, "the file");
}

fn warn_unused(reader: &mut Reader, declared: &Declared, what: &str, used: impl Fn(&str) -> bool) {
    let own = |span| reader.files.is_main(span);
    let unused: Vec<_> = declared.names.iter().filter(|(name, span)| own(*span) && !used(name)).collect();
    for (name, span) in unused {
        let message = format!("the {what} `{name}` is declared but no stage uses it");
        reader.out.warning(*span, message, Some("remove it, or use it in a stage".to_owned()));
    }
}

/// Whether a missing key is there under a wrong name, which is reported already.
fn misspelt(reader: &Reader, entries: &[Entry], key: &str) -> bool {
    reader.out.misspelt(key, entries.iter().map(|e| &*e.key), KEYS)
}

fn version(reader: &mut Reader, entries: &[Entry], start: Span) {
    let Some(node) = get(entries, "rallrec") else {
        if misspelt(reader, entries, "rallrec") {
            return;
        }
        let help = Some(format!("begin the file with `rallrec: {FORMAT_VERSION}`, the version of its format"));
        reader.out.error(start, "the key `rallrec` is missing", help);
        return;
    };
    let expected = Expected { name: "rallrec", kind: &ValueKind::Int, range: None, empty: false };
    let found = reader.typed(node, &expected).and_then(|v| v.as_i64());
    if let Some(found) = found.filter(|v| *v != FORMAT_VERSION as i64) {
        reader.out.error(
            node.span,
            format!("the file has format version {found}; this program reads version {FORMAT_VERSION}"),
            Some(format!("write `rallrec: {FORMAT_VERSION}`, or use the rallrec that the file was written for")),
        );
    }
}

fn name(reader: &mut Reader, entries: &[Entry]) -> Option<String> {
    let Some(node) = get(entries, "name") else {
        if misspelt(reader, entries, "name") {
            return None;
        }
        let help = Some("name the pipeline, for example `name: quickstart`".to_owned());
        reader.out.error(START, "the key `name` is missing", help);
        return None;
    };
    let name = reader.text(node, "name")?;
    if !is_name(&name) {
        let message = format!("\"{}\" can't name a pipeline", shown(&name));
        reader.out.error(node.span, message, Some(name_help(&name)));
        return None;
    }
    Some(name)
}

/// Reads `params:` and applies the `--set`.
fn params(reader: &mut Reader, entries: &[Entry], overrides: &[(String, String)]) {
    if let Some(node) = get(entries, "params") {
        let declared = reader.map(node, "params", "params: {alpha: 0.1}");
        reader.params_known = declared.is_some();
        for entry in declared.unwrap_or_default() {
            param(reader, entry);
        }
    }
    for (name, text) in overrides {
        let value = resolve(text);
        if let Some(param) = reader.params.get_mut(name) {
            (param.value, param.overridden) = (unquoted(text).unwrap_or(value), true);
        } else if reader.params_known {
            let help = reader
                .out
                .did_you_mean(name, reader.params.keys().map(String::as_str), "declared parameters")
                .or_else(|| Some("the file declares none: add it under `params:`".to_owned()));
            reader.out.override_error(format!("`{}` is not declared under `params`", shown(name)), help);
        }
    }
}

/// The text of a scalar in quotes, as YAML has it.
fn unquoted(text: &str) -> Option<Value> {
    let mut quiet = Collector::default();
    let node = text.starts_with(['"', '\'']).then(|| super::node::parse(text, &mut quiet).ok()).flatten().flatten()?;
    match &node.content {
        Content::Scalar { text, .. } => Some(Value::from(text.as_str())),
        _ => None,
    }
}

fn param(reader: &mut Reader, entry: &Entry) {
    if !is_name(&entry.key) {
        let message = format!("\"{}\" can't name a parameter", shown(&entry.key));
        reader.out.error(entry.key_span, message, Some(name_help(&entry.key)));
        return;
    }
    let value = match &entry.value.content {
        Content::Scalar { text, .. } if text.contains("${") => {
            let help = Some("write the value itself, or use both parameters where they are needed".to_owned());
            reader.out.error(entry.value.span, "a parameter's value can't use parameters", help);
            Value::Null
        }
        Content::Scalar { text, plain: true } => resolve(text),
        Content::Scalar { text, plain: false } => Value::from(text.as_str()),
        Content::Broken => Value::Null,
        _ => {
            let message = format!(
                "the parameter `{}` must be a number, a text, true or false, not {}",
                entry.key,
                entry.value.describe()
            );
            reader.out.error(entry.value.span, message, Some("use one parameter for each value".to_owned()));
            Value::Null
        }
    };
    let param = Param { value, span: entry.key_span, overridden: false };
    reader.params.insert(entry.key.to_string(), param);
}

/// The entries of a section that declares sources, each read by `read`.
pub(super) fn declared<T>(
    reader: &mut Reader,
    entries: &[Entry],
    section: &str,
    example: &str,
    read: fn(&mut Reader, &Entry) -> Option<T>,
) -> (Declared, Vec<T>) {
    let (mut names, mut items) = (Declared::default(), Vec::new());
    let Some(node) = get(entries, section) else { return (names, items) };
    let shape = if section == "limits" { example.to_owned() } else { format!("{{source: {example}}}") };
    let Some(given) = reader.map(node, section, &format!("{section}: {{NAME: {shape}}}")) else {
        names.unknown = true;
        return (names, items);
    };
    for entry in given {
        match read(reader, entry) {
            Some(item) => {
                names.names.push((entry.key.to_string(), entry.key_span));
                items.push(item);
            }
            None => _ = names.broken.insert(entry.key.to_string()),
        }
    }
    (names, items)
}

/// Reports a declared name that is none.
pub(super) fn named(reader: &mut Reader, entry: &Entry, section: &str) {
    if !is_name(&entry.key) {
        let message = format!("\"{}\" can't be a name under `{section}`", shown(&entry.key));
        reader.out.error(entry.key_span, message, Some(name_help(&entry.key)));
    }
}

/// Whether a source's text may be a name of the catalogue.
pub(super) fn is_catalogue_name(source: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.');
    !source.is_empty() && source.bytes().all(word)
}

fn data_set(reader: &mut Reader, entry: &Entry) -> Option<Source> {
    let (section, example) = ("data", "movielens-100k");
    named(reader, entry, section);
    let fields = reader.map(&entry.value, &entry.key, &format!("{}: {{source: {example}}}", entry.key))?;
    reader.unknown_keys(fields, &["source"], &format!("`{section}.{}`", entry.key));
    let Some(node) = get(fields, "source") else {
        if !matches!(entry.value.content, Content::Broken) {
            let help = Some(format!("write `source: {example}`, or `source: file:PATH`"));
            reader.out.error(entry.key_span, format!("`{section}.{}` has no `source`", entry.key), help);
        }
        return None;
    };
    let source = reader.text(node, "source")?;
    let path = source.strip_prefix("file:");
    if path.is_some_and(|p| p.is_empty()) || (path.is_none() && !is_catalogue_name(&source)) {
        let help = if source.contains(['/', '\\']) {
            format!("for a file or folder of your own, write `source: file:{}`", shown(&source))
        } else {
            format!("write a catalogue name such as `{example}`, or `file:PATH`")
        };
        reader.out.error(node.span, format!("\"{}\" is no source", shown(&source)), Some(help));
        return None;
    }
    Some(Source { name: entry.key.to_string(), source })
}

/// A named limit: tasks that may be handed out at once.
fn limit(reader: &mut Reader, entry: &Entry) -> Option<(String, u32)> {
    named(reader, entry, "limits");
    let most = reader.whole(&entry.value, &entry.key, bounds::LIMIT)?;
    Some((entry.key.to_string(), u32::try_from(most).ok()?))
}

/// Sources that stages use, by key and name.
pub(super) type Used = HashSet<(&'static str, String)>;

/// The stages as far as they could be read.
struct Drafts {
    drafts: Vec<Draft>,
    /// Names of those that could not.
    broken: HashSet<String>,
    used: Used,
}

fn stages(reader: &mut Reader, entries: &[Entry], around: &Surroundings<'_>) -> Option<Drafts> {
    let example = "stages: {dataset: {kind: dataset, data: ratings}}";
    let Some(node) = get(entries, "stages") else {
        if misspelt(reader, entries, "stages") {
            return None;
        }
        reader.out.error(START, "the key `stages` is missing", Some(format!("for example `{example}`")));
        return None;
    };
    if let Content::List(_) = &node.content {
        let help = Some("drop the `- ` and write each stage's name as a key: `dataset: {kind: dataset, …}`".to_owned());
        reader.out.error(node.span, "`stages` must be a mapping from names to stages, not a list", help);
        return None;
    }
    let entries = reader.map(node, "stages", example)?;
    if entries.is_empty() {
        let help = Some(format!("a pipeline needs at least one: `{example}`"));
        reader.out.error(node.span, "`stages` is empty", help);
        return None;
    }
    let mut drafts = Vec::with_capacity(entries.len());
    let mut broken = HashSet::new();
    let mut used = Used::new();
    for entry in entries {
        match stage::read(reader, entry, around, &mut used) {
            Some(draft) => drafts.push(draft),
            None => _ = broken.insert(entry.key.to_string()),
        }
    }
    Some(Drafts { drafts, broken, used })
}

/// The value of a key that names a declared source, for a kind that needs one; `None` after reporting.
pub(super) fn used_source(
    reader: &mut Reader,
    node: &Rc<Node>,
    declared: &Declared,
    key: &'static str,
    section: &str,
    used: &mut Used,
) -> Option<String> {
    let name = reader.text(node, key)?;
    if !declared.has(&name) {
        let names = declared.names();
        let help = match reader.out.closest(&name, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if names.is_empty() => {
                format!("declare it at the top: `{section}: {{{}: {{source: …}}}}`", shown(&name))
            }
            None => format!("declared under `{section}`: {}", list(&names)),
        };
        reader.out.error(node.span, format!("`{}` is not declared under `{section}`", shown(&name)), Some(help));
    }
    used.insert((key, name.clone()));
    Some(name)
}
