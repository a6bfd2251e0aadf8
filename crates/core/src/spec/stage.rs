//! One stage of a file: its keys, its parameters and the text of its references, each checked by its kind's tables.

use super::{
    DEFAULT_SHARD_ROWS, bounds,
    diagnostics::{Span, list, shown},
    lower::{Declared, Used, used_source},
    models,
    node::{Content, Entry, Node},
    rules,
    values::{Expected, Reader, get, is_name, name_help},
};
use crate::{
    ids::StageName,
    kind::{Port, StageKind},
    models::Model,
    params::StageParams,
    plan::{Resources, Retry},
};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, rc::Rc};

/// Keys of a stage.
pub(crate) const KEYS: &[&str] =
    &["kind", "needs", "data", "model", "with", "shards", "resources", "retry", "seed", "max_bad_rows"];

/// What a stage may refer to.
pub(super) struct Surroundings<'a> {
    /// The pipeline's seed.
    pub(super) seed: u64,
    /// Names of the declared models.
    pub(super) model_names: &'a Declared,
    /// Those of them that could be read.
    pub(super) models: &'a [Model],
    /// Names of the declared data sets.
    pub(super) data_names: &'a Declared,
    /// Names of the declared limits.
    pub(super) limit_names: &'a Declared,
    /// Those of them that could be read.
    pub(super) limits: &'a [(String, u32)],
    /// Names of further texts of items, of all data sets of the file.
    pub(super) item_fields: &'a [String],
}

/// A stage whose references are still text.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) name: StageName,
    pub(super) kind: StageKind,
    /// `None` when they are wrong.
    pub(super) params: Option<StageParams>,
    pub(super) needs: Vec<Reference>,
    pub(super) model: Option<String>,
    pub(super) data: Option<String>,
    pub(super) shard_rows: Option<u64>,
    pub(super) resources: Resources,
    pub(super) retry: Retry,
    pub(super) seed: u64,
    pub(super) max_bad_rows: u64,
}

/// A reference to a table, as written.
#[derive(Debug)]
pub(super) struct Reference {
    pub(super) port: &'static Port,
    pub(super) span: Span,
    pub(super) stage: String,
    /// `None` for the stage's first table.
    pub(super) table: Option<String>,
}

/// Reads one stage, except what its references lead to; `None` when not even its kind is known.
pub(super) fn read(reader: &mut Reader, entry: &Entry, around: &Surroundings<'_>, used: &mut Used) -> Option<Draft> {
    if !is_name(&entry.key) {
        let message = format!("\"{}\" can't name a stage", shown(&entry.key));
        reader.out.error(entry.key_span, message, Some(name_help(&entry.key)));
    }
    if KEYS.contains(&&*entry.key) && !matches!(entry.value.content, Content::Map(_) | Content::Broken) {
        let help = Some(format!("indent `{}:` more than the stage's name", entry.key));
        let message = format!("`{}` stands in line with the stages, but belongs below one", entry.key);
        reader.out.error(entry.key_span, message, help);
        return None;
    }
    let fields = reader.map(&entry.value, &entry.key, &format!("{}: {{kind: …, needs: {{…}}}}", entry.key))?;
    let kind = kind(reader, entry, fields);
    unknown_keys(reader, entry, fields, kind);
    let kind = kind?;
    let info = kind.info();
    superfluous(reader, fields, kind);
    let [data, model] = sources(reader, entry, fields, kind, around, used);
    let node = |key| get(fields, key);
    let params = params(reader, entry, fields, kind, around.item_fields);
    let needs = needs(reader, entry, fields, kind);
    if let (Some(params), Some(needs)) = (&params, &needs) {
        rules::inputs(reader, params, entry.key_span, rules::given_params(fields), needs);
    }
    Some(Draft {
        name: StageName(entry.key.to_string()),
        kind,
        params,
        needs: needs.unwrap_or_default(),
        model,
        data,
        shard_rows: info.drive().map(|_| shard_rows(reader, fields)),
        resources: resources(reader, fields, around, used),
        retry: retry(reader, fields),
        seed: node("seed").and_then(|n| reader.whole(n, "seed", bounds::SEED)).unwrap_or(around.seed),
        max_bad_rows: node("max_bad_rows").and_then(|n| reader.whole(n, "max_bad_rows", bounds::BAD_ROWS)).unwrap_or(0),
    })
}

/// The data set and the model, where the kind takes them.
fn sources(
    reader: &mut Reader,
    entry: &Entry,
    fields: &[Entry],
    kind: StageKind,
    around: &Surroundings<'_>,
    used: &mut Used,
) -> [Option<String>; 2] {
    let info = kind.info();
    let data = (info.data, "data", "data", around.data_names);
    let model = (info.model, "model", "models", around.model_names);
    [data, model].map(|(needed, key, section, declared)| {
        let Some(node) = get(fields, key) else {
            if needed && !misspelt(reader, fields, key) {
                missing_source(reader, entry, kind, key, section, declared);
            }
            return None;
        };
        if needed {
            let name = used_source(reader, node, declared, key, section, used)?;
            if let Some(model) = around.models.iter().find(|m| key == "model" && m.name == name) {
                models::check_use(reader, node.span, kind, model);
                models::check_adapter(reader, get(fields, "needs"), model);
            }
            return Some(name);
        }
        let message = format!("`{kind}` takes no `{key}`");
        reader.out.error(key_span(fields, key), message, Some("remove it".to_owned()));
        None
    })
}

/// Keys that stages have, but not those of this kind.
fn superfluous(reader: &mut Reader, fields: &[Entry], kind: StageKind) {
    let given = |key| get(fields, key).is_some();
    if given("seed") && !kind.info().random {
        let message = format!("`{kind}` draws no random numbers: its `seed` has no effect");
        reader.out.warning(key_span(fields, "seed"), message, Some("remove it".to_owned()));
    }
    let row_wise: fn(&StageKind) -> bool = |kind| kind.info().drive().is_some();
    let has_bad_rows: fn(&StageKind) -> bool = |kind| kind.info().has_bad_rows();
    let keys = [("shards", row_wise), ("max_bad_rows", has_bad_rows)];
    for (key, takes) in keys.into_iter().filter(|(key, takes)| given(key) && !takes(&kind)) {
        let message = format!("`{key}` is only for kinds that work row by row, and `{kind}` is one task");
        let kinds: Vec<&str> = StageKind::ALL.iter().filter(|kind| takes(kind)).map(|k| k.info().name).collect();
        let help = format!("remove it; it can be used with {}", list(&kinds));
        reader.out.error(key_span(fields, key), message, Some(help));
    }
}

fn key_span(fields: &[Entry], key: &str) -> Span {
    fields.iter().find(|e| &*e.key == key).map(|e| e.key_span).unwrap_or_default()
}

/// Whether a missing key is there under a wrong name, which is reported already.
fn misspelt(reader: &Reader, fields: &[Entry], key: &str) -> bool {
    reader.out.misspelt(key, fields.iter().map(|e| &*e.key), KEYS)
}

fn kind(reader: &mut Reader, entry: &Entry, fields: &[Entry]) -> Option<StageKind> {
    let names: Vec<&str> = StageKind::ALL.iter().map(|k| k.info().name).collect();
    let Some(node) = get(fields, "kind") else {
        if misspelt(reader, fields, "kind") {
            return None;
        }
        let help = Some(format!("say what it does by `kind:` and one of {}", list(&names)));
        reader.out.error(entry.key_span, format!("the stage `{}` has no `kind`", shown(&entry.key)), help);
        return None;
    };
    let word = reader.text(node, "kind")?;
    let found = StageKind::ALL.iter().copied().find(|k| k.info().name == word);
    if found.is_none() {
        let help = reader.out.did_you_mean(&word, names, "kinds");
        reader.out.error(node.span, format!("there is no kind of stage called `{}`", shown(&word)), help);
    }
    found
}

/// Unknown keys of a stage; parameters and inputs that stand one level too high are told where they belong.
fn unknown_keys(reader: &mut Reader, entry: &Entry, fields: &[Entry], kind: Option<StageKind>) {
    for field in fields.iter().filter(|f| !KEYS.contains(&&*f.key)) {
        let key = &*field.key;
        let is_param = kind.is_some_and(|k| StageParams::fields(k).iter().any(|f| f.name == key));
        let is_port = kind.is_some_and(|k| k.info().inputs.iter().any(|p| p.name == key));
        let help = if is_param {
            Some(format!("`{key}` is a parameter: put it below `with:`"))
        } else if is_port {
            Some(format!("`{key}` is an input: put it below `needs:`"))
        } else {
            reader.out.did_you_mean(key, KEYS.iter().copied(), "known keys")
        };
        let message = format!("unknown key `{}` in the stage `{}`", shown(key), shown(&entry.key));
        reader.out.error(field.key_span, message, help);
    }
}

fn missing_source(reader: &mut Reader, entry: &Entry, kind: StageKind, key: &str, section: &str, declared: &Declared) {
    let help = match declared.names().first() {
        Some(name) => format!("write `{key}: {name}`"),
        None => format!("declare one at the top, `{section}: {{NAME: {{source: …}}}}`, and write `{key}: NAME`"),
    };
    let message = format!("the stage `{}` has no `{key}`, which the kind `{kind}` needs", entry.key);
    reader.out.error(entry.key_span, message, Some(help));
}

fn params(
    reader: &mut Reader,
    entry: &Entry,
    fields: &[Entry],
    kind: StageKind,
    item_fields: &[String],
) -> Option<StageParams> {
    let table = StageParams::fields(kind);
    let with = match get(fields, "with") {
        Some(node) => reader.map(node, "with", "with: {NAME: VALUE}")?,
        None => &[],
    };
    let names: Vec<&str> = table.iter().map(|f| f.name).collect();
    for given in with.iter().filter(|e| !names.contains(&&*e.key)) {
        let help = if KEYS.contains(&&*given.key) {
            Some(format!("`{}` belongs one level up, beside `with:`", given.key))
        } else {
            reader.out.did_you_mean(&given.key, names.iter().copied(), "its parameters")
        };
        reader.out.error(given.key_span, format!("`{kind}` has no parameter `{}`", shown(&given.key)), help);
    }
    let mut complete = true;
    let mut values = Map::new();
    for field in table {
        let value = match get(with, field.name) {
            Some(node) => {
                reader.typed(node, &Expected { name: field.name, kind: &field.kind, range: field.range, empty: true })
            }
            None => Some(field.default),
        };
        complete &= value.is_some();
        values.insert(field.name.to_owned(), value.unwrap_or_default());
    }
    if !complete {
        return None;
    }
    match StageParams::from_json(kind, Value::Object(values)) {
        Ok(params) => {
            rules::check(reader, &params, entry.key_span, with, item_fields);
            Some(params)
        }
        Err(error) => {
            // The table and the struct come from one declaration, so this is a bug; say so rather than stop.
            let help = Some("please report this: a parameter's table and type disagree".to_owned());
            reader.out.error(
                entry.key_span,
                format!("the parameters of `{}` do not fit `{kind}`: {error}", entry.key),
                help,
            );
            None
        }
    }
}

fn needs(reader: &mut Reader, entry: &Entry, fields: &[Entry], kind: StageKind) -> Option<Vec<Reference>> {
    let info = kind.info();
    let given = match get(fields, "needs") {
        Some(node) => reader.map(node, "needs", "needs: {INPUT: STAGE.TABLE}")?,
        None if misspelt(reader, fields, "needs") => return None,
        None => &[],
    };
    for extra in given.iter().filter(|e| info.inputs.iter().all(|p| p.name != &*e.key)) {
        let help = if info.inputs.is_empty() {
            Some(format!("`{kind}` reads no tables; remove it"))
        } else {
            reader.out.did_you_mean(&extra.key, info.inputs.iter().map(|p| p.name), "its inputs")
        };
        reader.out.error(extra.key_span, format!("`{kind}` has no input `{}`", shown(&extra.key)), help);
    }
    let names: Vec<&str> = info.inputs.iter().map(|p| p.name).collect();
    let mut references = Vec::new();
    let mut missing = Vec::new();
    for port in info.inputs {
        match get(given, port.name) {
            Some(node) => references.extend(port_references(reader, node, port)),
            None if port.optional || reader.out.misspelt(port.name, given.iter().map(|e| &*e.key), &names) => {}
            None => missing.push(port.name),
        }
    }
    if let Some(first) = missing.first() {
        let span = fields.iter().find(|f| &*f.key == "needs").map_or(entry.key_span, |f| f.key_span);
        let help = Some(format!("add `{first}: STAGE` or `{first}: STAGE.TABLE` below `needs:`"));
        let plural = if missing.len() == 1 { "" } else { "s" };
        let message = format!(
            "the stage `{}` lacks the input{plural} {}, which the kind `{kind}` needs",
            entry.key,
            list(&missing)
        );
        reader.out.error(span, message, help);
    }
    Some(references)
}

fn port_references(reader: &mut Reader, node: &Node, port: &'static Port) -> Vec<Reference> {
    let Content::List(items) = &node.content else {
        return reference(reader, node, port).into_iter().collect();
    };
    if !port.many {
        let message = format!("`{}` takes one table, not a list", port.name);
        reader.out.error(node.span, message, Some("write one `STAGE` or `STAGE.TABLE`".to_owned()));
        return Vec::new();
    }
    if items.is_empty() {
        let help = Some("name at least one `STAGE` or `STAGE.TABLE`".to_owned());
        reader.out.error(node.span, format!("`{}` is empty", port.name), help);
    }
    items.iter().filter_map(|item| reference(reader, item, port)).collect()
}

fn reference(reader: &mut Reader, node: &Node, port: &'static Port) -> Option<Reference> {
    let text = reader.text(node, port.name)?;
    let (stage, table) = match text.split_once('.') {
        Some((stage, table)) => (stage, Some(table)),
        None => (text.as_str(), None),
    };
    if stage.is_empty() || table.is_some_and(|t| t.is_empty() || t.contains('.')) {
        let help = Some("write `STAGE`, or `STAGE.TABLE` for a table other than its first".to_owned());
        reader.out.error(node.span, format!("\"{}\" names no table", shown(&text)), help);
        return None;
    }
    Some(Reference { port, span: node.span, stage: stage.to_owned(), table: table.map(str::to_owned) })
}

fn shard_rows(reader: &mut Reader, fields: &[Entry]) -> u64 {
    let Some(node) = get(fields, "shards") else { return DEFAULT_SHARD_ROWS };
    let Some(entries) = reader.map(node, "shards", "shards: {rows: 256}") else { return DEFAULT_SHARD_ROWS };
    reader.unknown_keys(entries, &["rows"], "`shards`");
    get(entries, "rows").and_then(|n| reader.whole(n, "rows", bounds::SHARD_ROWS)).unwrap_or(DEFAULT_SHARD_ROWS)
}

fn resources(reader: &mut Reader, fields: &[Entry], around: &Surroundings<'_>, used: &mut Used) -> Resources {
    let mut resources = Resources::new("cpu", 2048);
    let Some(node) = get(fields, "resources") else { return resources };
    let Some(entries) = reader.map(node, "resources", "resources: {pool: cpu, memory_mb: 2048}") else {
        return resources;
    };
    reader.unknown_keys(entries, &["pool", "memory_mb", "gpu_memory_mb", "limits"], "`resources`");
    if let Some(node) = get(entries, "pool")
        && let Some(pool) = reader.text(node, "pool")
    {
        if !is_name(&pool) {
            let message = format!("\"{}\" can't name a pool", shown(&pool));
            reader.out.error(node.span, message, Some(name_help(&pool)));
        }
        resources.pool = pool;
    }
    if let Some(memory) = get(entries, "memory_mb").and_then(|n| reader.whole(n, "memory_mb", bounds::MEMORY_MB)) {
        (resources.memory_mb, resources.memory_written) = (memory, true);
    }
    resources.gpu_memory_mb =
        get(entries, "gpu_memory_mb").and_then(|n| reader.whole(n, "gpu_memory_mb", bounds::GPU_MEMORY_MB));
    if let Some(node) = get(entries, "limits") {
        resources.limits = limits(reader, node, around, used);
    }
    resources
}

/// The named limits of a stage, with their sizes.
fn limits(reader: &mut Reader, node: &Rc<Node>, around: &Surroundings<'_>, used: &mut Used) -> BTreeMap<String, u32> {
    let Content::List(items) = &node.content else {
        if !matches!(node.content, Content::Broken) {
            let message = format!("`limits` must be a list of names, not {}", node.describe());
            reader.out.error(node.span, message, Some("write `limits: [NAME]`".to_owned()));
        }
        return BTreeMap::new();
    };
    let names = items.iter().filter_map(|item| limit_name(reader, item, around, used));
    let names: Vec<String> = names.collect();
    around.limits.iter().filter(|(name, _)| names.contains(name)).cloned().collect()
}

fn limit_name(reader: &mut Reader, node: &Rc<Node>, around: &Surroundings<'_>, used: &mut Used) -> Option<String> {
    let name = reader.text(node, "limits")?;
    let declared = around.limit_names;
    if !declared.has(&name) {
        let names = declared.names();
        let help = match reader.out.closest(&name, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if names.is_empty() => format!("declare it at the top: `limits: {{{}: 4}}`", shown(&name)),
            None => format!("declared under `limits`: {}", list(&names)),
        };
        reader.out.error(node.span, format!("`{}` is not declared under `limits`", shown(&name)), Some(help));
    }
    used.insert(("limits", name.clone()));
    Some(name)
}

fn retry(reader: &mut Reader, fields: &[Entry]) -> Retry {
    let mut retry = Retry { max_attempts: 3, backoff_ms: 1000 };
    let Some(node) = get(fields, "retry") else { return retry };
    let Some(entries) = reader.map(node, "retry", "retry: {max_attempts: 3, backoff_ms: 1000}") else { return retry };
    reader.unknown_keys(entries, &["max_attempts", "backoff_ms"], "`retry`");
    let attempts = get(entries, "max_attempts").and_then(|n| reader.whole(n, "max_attempts", bounds::MAX_ATTEMPTS));
    if let Some(attempts) = attempts.and_then(|a| u32::try_from(a).ok()) {
        retry.max_attempts = attempts;
    }
    if let Some(wait) = get(entries, "backoff_ms").and_then(|n| reader.whole(n, "backoff_ms", bounds::BACKOFF_MS)) {
        retry.backoff_ms = wait;
    }
    retry
}
