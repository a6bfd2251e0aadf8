//! JSON Schema of pipeline files, from the tables that [`crate::spec`] checks by, so that editors complete and check.
//!
//! A schema can't follow references or add up fractions: what passes here can still be refused by
//! [`crate::spec::compile`]. What is refused here is always refused there.

use crate::{
    field::{Field, ValueKind},
    kind::{KindInfo, StageKind},
    models::{LocalModel, RemoteModel},
    params::StageParams,
    spec::{DEFAULT_SEED, DEFAULT_SHARD_ROWS, FORMAT_VERSION, bounds},
};
use serde_json::{Map, Value, json};

const NAME: &str = "^[a-z][a-z0-9_-]{0,63}$";

/// JSON Schema (draft 2020-12) of a pipeline file.
pub fn json_schema() -> Value {
    let kinds: Vec<KindInfo> = StageKind::ALL.iter().map(|k| k.info()).collect();
    let mut defs = Map::new();
    defs.insert("placeholder".into(), json!({ "type": "string", "pattern": "\\$\\{", "description": "The value of a parameter, or a text with some." }));
    defs.insert("reference".into(), json!({ "type": "string", "description": "A stage (its first table), or STAGE.TABLE.", "pattern": "^[^.]+(\\.[^.]+)?$" }));
    defs.insert("source".into(), source());
    defs.insert("model".into(), model());
    defs.insert("stage".into(), stage(&kinds));
    for kind in StageKind::ALL {
        defs.insert(format!("stage_{kind}"), stage_of(*kind));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rallrec pipeline",
        "type": "object",
        "required": ["rallrec", "name", "stages"],
        "additionalProperties": false,
        "patternProperties": { "^x-": { "description": "Ignored: a place for anchors." } },
        "properties": {
            "rallrec": { "const": FORMAT_VERSION, "description": "Version of the file format." },
            "name": { "anyOf": [{ "type": "string", "pattern": NAME }, placeholder()], "description": "Name of the pipeline." },
            "seed": number("integer", bounds::SEED, DEFAULT_SEED, "Seed of everything random."),
            "params": {
                "type": ["object", "null"],
                "description": "Values that ${NAME} stands for and --set NAME=VALUE changes.",
                "propertyNames": { "pattern": NAME },
                "additionalProperties": { "type": ["string", "number", "boolean", "null"] }
            },
            "models": sources("Language models, by name.", "model"),
            "data": sources("Data sets, by name.", "source"),
            "limits": {
                "type": ["object", "null"],
                "description": "Named limits: how many tasks of stages that name one are handed out at once.",
                "propertyNames": { "pattern": NAME },
                "additionalProperties": { "anyOf": [{ "type": "integer", "minimum": bound(bounds::LIMIT.0), "maximum": bound(bounds::LIMIT.1) }, placeholder()] }
            },
            "include": {
                "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
                "description": "Files whose parameters, models, data sets, limits and stages are put below this file's; paths are seen from this file's folder."
            },
            "stages": {
                "type": "object",
                "description": "The stages, by name.",
                "minProperties": 1,
                "propertyNames": { "pattern": NAME },
                "additionalProperties": { "$ref": "#/$defs/stage" }
            },
            "sweep": sweep()
        },
        "$defs": defs
    })
}

/// What `rallrec sweep` tries.
fn sweep() -> Value {
    let scalar = json!({ "type": ["string", "number", "boolean"] });
    let values = json!({ "type": "array", "minItems": 1, "items": scalar });
    let between = |more: Value| {
        let mut properties = json!({
            "from": { "anyOf": [{ "type": "number" }, placeholder()], "description": "Smallest." },
            "to": { "anyOf": [{ "type": "number" }, placeholder()], "description": "Largest." },
            "scale": { "enum": ["linear", "log"], "default": "linear", "description": "Evenly by the number, or by its logarithm." }
        });
        if let (Some(all), Value::Object(more)) = (properties.as_object_mut(), more) {
            all.extend(more);
        }
        json!({ "type": "object", "required": ["from", "to"], "additionalProperties": false, "properties": properties })
    };
    let steps = between(json!({ "points": number("integer", (1.0, 1000.0), 5, "How many values.") }));
    let drawn =
        between(json!({ "whole": { "type": "boolean", "default": false, "description": "Whole numbers only." } }));
    let point = json!({ "type": "object", "propertyNames": { "pattern": NAME }, "additionalProperties": scalar });
    json!({
        "type": "object",
        "description": "Values of parameters that `rallrec sweep` tries; `run` leaves it out.",
        "additionalProperties": false,
        "properties": {
            "grid": { "type": "object", "description": "Axes: every combination of their values.", "propertyNames": { "pattern": NAME }, "additionalProperties": { "anyOf": [values, steps] } },
            "list": { "type": "array", "minItems": 1, "items": point, "description": "Points written out, each combined with every point of the grid." },
            "random": {
                "type": "object",
                "description": "Values that are drawn.",
                "required": ["draws", "axes"],
                "additionalProperties": false,
                "properties": {
                    "draws": number("integer", (1.0, 10_000.0), 10, "Draws for each point of list and grid."),
                    "seed": number("integer", bounds::SEED, DEFAULT_SEED, "Seed of the draws."),
                    "axes": { "type": "object", "propertyNames": { "pattern": NAME }, "additionalProperties": { "anyOf": [values, drawn] } }
                }
            },
            "when": {
                "type": "object",
                "description": "Axes that count only where another parameter has one of some values.",
                "propertyNames": { "pattern": NAME },
                "additionalProperties": { "type": "object", "propertyNames": { "pattern": NAME }, "additionalProperties": { "anyOf": [scalar, values] } }
            },
            "best": {
                "type": "object",
                "description": "Which point is best.",
                "required": ["system"],
                "additionalProperties": false,
                "properties": {
                    "stage": { "type": "string", "description": "The `evaluate` stage; needed where there are several." },
                    "system": { "type": "string", "description": "The stage that predicts." },
                    "metric": { "enum": ["auc", "accuracy", "logloss"], "default": "auc" },
                    "then": { "enum": ["nothing", "whole"], "default": "nothing", "description": "`whole`: points run only what `stage` needs, and the best one then the whole pipeline." }
                }
            },
            "halving": {
                "type": "object",
                "description": "Successive halving: all points with the first value, the best of them with the next.",
                "required": ["param", "values"],
                "additionalProperties": false,
                "properties": {
                    "param": { "type": "string" },
                    "values": values,
                    "keep": { "type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.5 }
                }
            }
        }
    })
}

fn placeholder() -> Value {
    json!({ "$ref": "#/$defs/placeholder" })
}

fn number(kind: &str, (lo, hi): (f64, f64), default: u64, doc: &str) -> Value {
    let bounds = json!({ "type": kind, "minimum": bound(lo), "maximum": bound(hi) });
    json!({ "anyOf": [bounds, placeholder()], "default": default, "description": doc })
}

/// A bound as an integer where it is one.
fn bound(value: f64) -> Value {
    format!("{value}").parse::<u64>().map_or_else(|_| json!(value), |whole| json!(whole))
}

fn sources(doc: &str, entry: &str) -> Value {
    json!({
        "type": ["object", "null"],
        "description": doc,
        "propertyNames": { "pattern": NAME },
        "additionalProperties": { "$ref": format!("#/$defs/{entry}") }
    })
}

fn source() -> Value {
    json!({
        "type": "object",
        "required": ["source"],
        "additionalProperties": false,
        "properties": { "source": { "type": "string", "description": "A name of the catalogue, or file:PATH." } }
    })
}

/// A model in files, or one behind a server.
fn model() -> Value {
    let form = |fields: Vec<Field>, required: &[&str], doc: &str| {
        let properties: Map<String, Value> = fields.iter().map(|f| (f.name.to_owned(), field_schema(f))).collect();
        json!({ "type": "object", "description": doc, "required": required, "additionalProperties": false, "properties": properties })
    };
    let local = form(LocalModel::fields(), &["source"], "A model in files.");
    let remote = form(RemoteModel::fields(), &["provider", "url", "model"], "A model behind an HTTP server.");
    json!({ "if": { "anyOf": [{ "required": ["provider"] }, { "required": ["url"] }, { "required": ["model"] }] }, "then": remote, "else": local })
}

/// Any stage: what all kinds share, then the rules of its own kind.
fn stage(kinds: &[KindInfo]) -> Value {
    let mut choices: Vec<Value> = kinds.iter().map(|k| json!({ "const": k.name, "description": k.doc })).collect();
    choices.push(placeholder());
    let by_kind: Vec<Value> = kinds
        .iter()
        .map(|k| {
            json!({
                "if": { "required": ["kind"], "properties": { "kind": { "const": k.name } } },
                "then": { "$ref": format!("#/$defs/stage_{}", k.name) }
            })
        })
        .collect();
    json!({
        "type": "object",
        "required": ["kind"],
        "properties": {
            "kind": { "anyOf": choices, "description": "What the stage does." },
            "resources": {
                "type": ["object", "null"],
                "description": "What a task needs of its machine.",
                "additionalProperties": false,
                "properties": {
                    "pool": { "anyOf": [{ "type": "string", "pattern": NAME }, placeholder()], "default": "cpu", "description": "Pool of workers." },
                    "memory_mb": number("integer", bounds::MEMORY_MB, 2048, "Host memory, in MiB."),
                    "gpu_memory_mb": {
                        "anyOf": [{ "type": "integer", "minimum": bound(bounds::GPU_MEMORY_MB.0), "maximum": bound(bounds::GPU_MEMORY_MB.1) }, placeholder()],
                        "description": "Memory of the accelerator, in MiB; without it, an estimate from the model's size is preferred and not demanded."
                    },
                    "limits": { "type": "array", "items": { "type": "string" }, "description": "Names under `limits`." }
                }
            },
            "retry": {
                "type": ["object", "null"],
                "description": "When and how often a failed task is tried again.",
                "additionalProperties": false,
                "properties": {
                    "max_attempts": number("integer", bounds::MAX_ATTEMPTS, 3, "Most attempts that end in the task's own failure."),
                    "backoff_ms": number("integer", bounds::BACKOFF_MS, 1000, "Wait before the second attempt; doubles with each.")
                }
            },
            "seed": number("integer", bounds::SEED, DEFAULT_SEED, "Seed of everything random; the pipeline's where it is left out.")
        },
        "allOf": by_kind
    })
}

/// The rules of one kind.
fn stage_of(kind: StageKind) -> Value {
    let info = kind.info();
    let mut properties = Map::new();
    let mut required = vec!["kind"];
    for key in ["kind", "resources", "retry", "seed"] {
        properties.insert(key.into(), json!(true));
    }
    let text = json!({ "type": "string" });
    for (needed, key, doc) in [
        (info.data, "data", "Name of a data set under `data`."),
        (info.model, "model", "Name of a model under `models`."),
    ] {
        if needed {
            required.push(key);
            properties.insert(key.into(), with_doc(text.clone(), doc));
        }
    }
    if info.drive().is_some() {
        let rows = number("integer", bounds::SHARD_ROWS, DEFAULT_SHARD_ROWS, "Rows a shard.");
        let shards =
            json!({ "type": ["object", "null"], "additionalProperties": false, "properties": { "rows": rows } });
        properties.insert("shards".into(), with_doc(shards, "How the stage is cut."));
    }
    if info.has_bad_rows() {
        let bad_rows = number("integer", bounds::BAD_ROWS, 0, "Rows that may fail before the stage does.");
        properties.insert("max_bad_rows".into(), bad_rows);
    }
    if !info.inputs.is_empty() {
        properties.insert("needs".into(), needs(&info));
        if info.inputs.iter().any(|p| !p.optional) {
            required.push("needs");
        }
    }
    let fields = StageParams::fields(kind);
    let with: Map<String, Value> = fields.iter().map(|f| (f.name.to_owned(), field_schema(f))).collect();
    properties.insert("with".into(), json!({ "type": ["object", "null"], "description": "Parameters.", "additionalProperties": false, "properties": with }));
    json!({ "description": info.doc, "required": required, "additionalProperties": false, "properties": properties })
}

fn needs(info: &KindInfo) -> Value {
    let reference = json!({ "$ref": "#/$defs/reference" });
    let ports: Map<String, Value> = info
        .inputs
        .iter()
        .map(|port| {
            let one_or_more = json!({ "anyOf": [reference, { "type": "array", "minItems": 1, "uniqueItems": true, "items": reference }] });
            (port.name.to_owned(), if port.many { one_or_more } else { reference.clone() })
        })
        .collect();
    let required: Vec<&str> = info.inputs.iter().filter(|p| !p.optional).map(|p| p.name).collect();
    let kind = if required.is_empty() { json!(["object", "null"]) } else { json!("object") };
    json!({ "type": kind, "description": "Inputs.", "additionalProperties": false, "required": required, "properties": ports })
}

fn with_doc(mut schema: Value, doc: &str) -> Value {
    if let Value::Object(map) = &mut schema {
        map.insert("description".into(), doc.into());
    }
    schema
}

fn field_schema(field: &Field) -> Value {
    let mut schema = with_doc(value_schema(&field.kind, field.range), &one_line(field.doc));
    if let Value::Object(map) = &mut schema {
        map.insert("default".into(), field.default.clone());
    }
    schema
}

/// A parameter's documentation without its line breaks.
pub(crate) fn one_line(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn value_schema(kind: &ValueKind, range: Option<(f64, f64)>) -> Value {
    let plain = match kind {
        ValueKind::Int | ValueKind::Float => {
            let mut schema = json!({ "type": if *kind == ValueKind::Int { "integer" } else { "number" } });
            if let (Value::Object(map), Some((lo, hi))) = (&mut schema, range) {
                map.insert("minimum".into(), bound(lo));
                map.insert("maximum".into(), bound(hi));
            }
            schema
        }
        ValueKind::Bool => json!({ "type": "boolean" }),
        // A text may hold `${…}` anywhere.
        ValueKind::Text => return json!({ "type": "string" }),
        ValueKind::Choice(words) => json!({ "enum": words }),
        ValueKind::List(element) => return json!({ "type": "array", "items": value_schema(element, range) }),
        ValueKind::Map(element) => {
            return json!({ "type": ["object", "null"], "additionalProperties": value_schema(element, range) });
        }
        ValueKind::Record(fields) => {
            let fields: Map<String, Value> = fields.iter().map(|f| (f.name.to_owned(), field_schema(f))).collect();
            return json!({ "type": ["object", "null"], "additionalProperties": false, "properties": fields });
        }
    };
    json!({ "anyOf": [plain, placeholder()] })
}
