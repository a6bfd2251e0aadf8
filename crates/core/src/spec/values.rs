//! Scalars to typed values: YAML 1.2's core schema, `${name}`, types and ranges.

use super::{
    diagnostics::{Collector, Span, list, shown},
    files::Files,
    node::{Content, Entry, Node},
};
use crate::field::{Field, ValueKind};
use serde_json::{Map, Number, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// A parameter of the pipeline, under `params:`.
#[derive(Clone, Debug)]
pub(super) struct Param {
    /// Its value, after `--set`.
    pub(super) value: Value,
    /// Where it is declared.
    pub(super) span: Span,
    /// Whether `--set` gave the value.
    pub(super) overridden: bool,
}

/// Reads values and collects what is wrong with them.
pub(super) struct Reader {
    /// The findings.
    pub(super) out: Collector,
    /// Declared parameters.
    pub(super) params: BTreeMap<String, Param>,
    /// Whether `params:` could be read, so that a missing one is an error.
    pub(super) params_known: bool,
    /// Names that `${…}` used.
    pub(super) used: BTreeSet<String>,
    /// Files that the places are in.
    pub(super) files: Files,
}

/// What a value must be.
pub(super) struct Expected<'a> {
    /// Name in messages.
    pub(super) name: &'a str,
    /// Type.
    pub(super) kind: &'a ValueKind,
    /// Smallest and largest number, both allowed.
    pub(super) range: Option<(f64, f64)>,
    /// Whether a text may be empty.
    pub(super) empty: bool,
}

impl Reader {
    /// A reader of one file without parameters.
    pub(super) fn new(out: Collector) -> Self {
        Self { out, params: BTreeMap::new(), params_known: true, used: BTreeSet::new(), files: Files::default() }
    }

    /// The entries of a mapping; nothing (`key:` alone) is an empty one.
    pub(super) fn map<'n>(&mut self, node: &'n Node, name: &str, example: &str) -> Option<&'n [Entry]> {
        match &node.content {
            Content::Map(entries) => Some(entries),
            Content::Broken => None,
            Content::Scalar { text, plain: true } if is_null(text) => Some(&[]),
            _ => {
                let message = format!("`{name}` must be a mapping, not {}", node.describe());
                self.out.error(node.span, message, Some(format!("write `{example}`")));
                None
            }
        }
    }

    /// Reports the keys that are not among `known`.
    pub(super) fn unknown_keys(&mut self, entries: &[Entry], known: &[&str], place: &str) {
        for entry in entries.iter().filter(|e| !known.contains(&&*e.key)) {
            let help = self.out.did_you_mean(&entry.key, known.iter().copied(), "known keys");
            self.out.error(entry.key_span, format!("unknown key `{}` in {place}", shown(&entry.key)), help);
        }
    }

    /// A value of the expected type, as JSON; `None` after reporting what is wrong.
    pub(super) fn typed(&mut self, node: &Node, expected: &Expected<'_>) -> Option<Value> {
        match expected.kind {
            ValueKind::List(element) => return self.typed_list(node, expected, element),
            ValueKind::Map(element) => return self.typed_map(node, expected, element),
            ValueKind::Record(fields) => return self.typed_record(node, expected, fields),
            _ => {}
        }
        if let Content::List(_) | Content::Map(_) = node.content {
            self.mismatch(node, None, expected, None);
            return None;
        }
        let value = self.scalar(node)?;
        let typed = match (expected.kind, &value) {
            (ValueKind::Int, Value::Number(n)) if n.is_u64() || n.is_i64() => value.clone(),
            (ValueKind::Float, Value::Number(n)) => Value::from(n.as_f64()? + 0.0),
            (ValueKind::Bool, Value::Bool(_)) | (ValueKind::Text, Value::String(_)) => value.clone(),
            (ValueKind::Choice(words), Value::String(word)) if words.contains(&word.as_str()) => value.clone(),
            _ => {
                let help = self.type_help(node, &value, expected);
                self.mismatch(node, Some(&value), expected, help);
                return None;
            }
        };
        let out_of_range = |v: f64| expected.range.is_some_and(|(lo, hi)| v < lo || v > hi);
        if typed.as_f64().is_some_and(out_of_range) {
            self.mismatch(node, Some(&value), expected, None);
            return None;
        }
        Some(typed)
    }

    fn typed_list(&mut self, node: &Node, expected: &Expected<'_>, element: &ValueKind) -> Option<Value> {
        match &node.content {
            Content::Broken => None,
            Content::List(items) => {
                let mut read = |(i, item): (usize, &Rc<Node>)| {
                    let name = format!("{}[{i}]", expected.name);
                    self.typed(item, &Expected { name: &name, kind: element, ..*expected })
                };
                let values: Vec<Option<Value>> = items.iter().enumerate().map(&mut read).collect();
                values.into_iter().collect::<Option<Vec<Value>>>().map(Value::from)
            }
            _ => {
                self.mismatch(node, None, expected, Some("write `[a, b]`".to_owned()));
                None
            }
        }
    }

    /// Values by names of the user's own.
    fn typed_map(&mut self, node: &Node, expected: &Expected<'_>, element: &ValueKind) -> Option<Value> {
        let entries = self.map(node, expected.name, &format!("{}: {{NAME: VALUE}}", last(expected.name)))?;
        let mut read = |entry: &Entry| {
            let name = format!("{}.{}", expected.name, shown(&entry.key));
            let value = self.typed(&entry.value, &Expected { name: &name, kind: element, ..*expected })?;
            Some((entry.key.to_string(), value))
        };
        let values: Vec<Option<(String, Value)>> = entries.iter().map(&mut read).collect();
        values.into_iter().collect::<Option<Map<String, Value>>>().map(Value::from)
    }

    /// Parameters below a parameter, complete with their defaults.
    fn typed_record(&mut self, node: &Node, expected: &Expected<'_>, fields: &[Field]) -> Option<Value> {
        let entries = self.map(node, expected.name, &format!("{}: {{KEY: VALUE}}", last(expected.name)))?;
        let known: Vec<&str> = fields.iter().map(|f| f.name).collect();
        self.unknown_keys(entries, &known, &format!("`{}`", expected.name));
        let mut read = |field: &Field| {
            let name = format!("{}.{}", expected.name, field.name);
            let value = match get(entries, field.name) {
                Some(node) => {
                    self.typed(node, &Expected { name: &name, kind: &field.kind, range: field.range, empty: true })?
                }
                None => field.default.clone(),
            };
            Some((field.name.to_owned(), value))
        };
        let values: Vec<Option<(String, Value)>> = fields.iter().map(&mut read).collect();
        values.into_iter().collect::<Option<Map<String, Value>>>().map(Value::from)
    }

    /// A whole number, within a range.
    pub(super) fn whole(&mut self, node: &Node, name: &str, range: (f64, f64)) -> Option<u64> {
        self.typed(node, &Expected { name, kind: &ValueKind::Int, range: Some(range), empty: false })?.as_u64()
    }

    /// A number, within a range.
    pub(super) fn float(&mut self, node: &Node, name: &str, range: (f64, f64)) -> Option<f64> {
        self.typed(node, &Expected { name, kind: &ValueKind::Float, range: Some(range), empty: false })?.as_f64()
    }

    /// One of some words.
    pub(super) fn word(&mut self, node: &Node, name: &str, words: &'static [&'static str]) -> Option<String> {
        let kind = ValueKind::Choice(words);
        let value = self.typed(node, &Expected { name, kind: &kind, range: None, empty: false })?;
        value.as_str().map(str::to_owned)
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, node: &Node, name: &str) -> Option<String> {
        match self.typed(node, &Expected { name, kind: &ValueKind::Text, range: None, empty: false })? {
            Value::String(text) if text.is_empty() => {
                self.out.error(node.span, format!("`{name}` must not be empty"), None);
                None
            }
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// A number, a text, `true` or `false`.
    pub(super) fn any(&mut self, node: &Node, name: &str) -> Option<Value> {
        let value = self.scalar(node);
        if matches!(node.content, Content::Scalar { .. }) && value.as_ref().is_none_or(|v| !v.is_null()) {
            return value;
        }
        if !matches!(node.content, Content::Broken) {
            let message = format!("`{name}` must be a number, a text, `true` or `false`, not {}", node.describe());
            self.out.error(node.span, message, None);
        }
        None
    }

    /// A scalar with its `${…}` filled in.
    fn scalar(&mut self, node: &Node) -> Option<Value> {
        let Content::Scalar { text, plain } = &node.content else { return None };
        if text.contains("${") {
            return self.substitute(node, text);
        }
        Some(if *plain { resolve(text) } else { Value::from(text.as_str()) })
    }

    /// Fills in `${name}`: alone it keeps the parameter's type, within a text it becomes text. `$${` is a plain `${`.
    fn substitute(&mut self, node: &Node, text: &str) -> Option<Value> {
        if let Some(name) = text.strip_prefix("${").and_then(|t| t.strip_suffix('}'))
            && !name.contains(['{', '}', '$'])
        {
            return self.param(node, name).map(|p| p.value);
        }
        let mut filled = String::new();
        let mut rest = text;
        let mut complete = true;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            if let Some(before) = before.strip_suffix('$') {
                filled.push_str(before);
                filled.push_str("${");
                rest = from.get(2..).unwrap_or_default();
                continue;
            }
            filled.push_str(before);
            let Some(end) = from.find('}') else {
                let message = "`${` without its `}`".to_owned();
                self.out.error(node.span, message, Some("write `${name}`, or `$${` for the text itself".to_owned()));
                return None;
            };
            match self.param(node, from.get(2..end).unwrap_or_default()) {
                Some(Param { value: Value::String(text), .. }) => filled.push_str(&text),
                Some(param) => filled.push_str(&param.value.to_string()),
                None => complete = false,
            }
            rest = from.get(end + 1..).unwrap_or_default();
        }
        filled.push_str(rest);
        complete.then_some(Value::from(filled))
    }

    fn param(&mut self, node: &Node, name: &str) -> Option<Param> {
        if let Some(param) = self.params.get(name) {
            let param = param.clone();
            self.used.insert(name.to_owned());
            return Some(param);
        }
        if self.params_known {
            let help = self
                .out
                .did_you_mean(name, self.params.keys().map(String::as_str), "declared parameters")
                .or_else(|| Some(format!("declare it at the top: `params: {{{}: …}}`", shown(name))));
            self.out.error(node.span, format!("`${{{}}}` is not declared under `params`", shown(name)), help);
        }
        None
    }

    fn mismatch(&mut self, node: &Node, value: Option<&Value>, expected: &Expected<'_>, help: Option<String>) {
        let found = self.found(node, value);
        let message = format!("`{}` must be {}, not {found}", expected.name, requirement(expected));
        self.out.error(node.span, message, help);
    }

    /// What stands there, and for a `${…}` where its value comes from.
    fn found(&self, node: &Node, value: Option<&Value>) -> String {
        if let (Content::Scalar { text, .. }, Some(value)) = (&node.content, value)
            && text.contains("${")
        {
            let origin = text
                .strip_prefix("${")
                .and_then(|t| t.strip_suffix('}'))
                .and_then(|name| self.params.get(name))
                .map(|p| {
                    if p.overridden { " from --set".to_owned() } else { format!(" from {}", self.files.line(p.span)) }
                });
            return format!("{}{}", describe(value), origin.unwrap_or_default());
        }
        node.describe()
    }

    fn type_help(&self, node: &Node, value: &Value, expected: &Expected<'_>) -> Option<String> {
        let quoted = matches!(&node.content, Content::Scalar { plain: false, .. });
        match (expected.kind, value) {
            (ValueKind::Text, Value::Null) if expected.empty => Some("write \"\" for an empty text".to_owned()),
            (ValueKind::Text, Value::Number(_) | Value::Bool(_)) => {
                Some(format!("put it in quotes: \"{}\"", plain_text(value)))
            }
            (_, Value::Null) => Some("write a value, or remove the key".to_owned()),
            (ValueKind::Int | ValueKind::Float, Value::String(text)) => {
                let digits: String = text.chars().filter(|c| !matches!(c, '_' | ',' | ' ')).collect();
                match resolve(&digits) {
                    Value::Number(_) if quoted => Some(format!("remove the quotes: {digits}")),
                    Value::Number(n) => Some(format!("write {n}")),
                    _ if expected.name.ends_with("_ms") || expected.name.ends_with("_mb") => {
                        Some("write a bare number: the unit is in the name".to_owned())
                    }
                    _ => None,
                }
            }
            (ValueKind::Int, Value::Number(n)) => {
                n.as_f64().filter(|v| v.fract() == 0.0 && v.abs() < 1e15).map(|v| format!("write {v:.0}"))
            }
            (ValueKind::Bool, Value::String(text)) => match text.to_lowercase().as_str() {
                "yes" | "on" | "y" | "true" => Some("write `true`".to_owned()),
                "no" | "off" | "n" | "false" => Some("write `false`".to_owned()),
                _ => None,
            },
            (ValueKind::Choice(words), Value::String(word)) => self
                .out
                .closest(&word.to_lowercase(), words.iter().copied())
                .map(|near| format!("did you mean `{near}`?")),
            _ => None,
        }
    }
}

/// What a type and its range ask for, in words.
pub(super) fn requirement(expected: &Expected<'_>) -> String {
    let range = |lo: f64, hi: f64| format!(" from {} to {}", number(lo), number(hi));
    let bounds = expected.range.map_or(String::new(), |(lo, hi)| range(lo, hi));
    match expected.kind {
        ValueKind::Int => format!("a whole number{bounds}"),
        ValueKind::Float => format!("a number{bounds}"),
        ValueKind::Bool => "`true` or `false`".to_owned(),
        ValueKind::Text => "a text".to_owned(),
        ValueKind::Choice(words) => format!("one of {}", list(words)),
        ValueKind::List(element) => {
            let element = Expected { name: "", kind: element, ..*expected };
            format!("a list, each entry {}", requirement(&element))
        }
        ValueKind::Map(_) | ValueKind::Record(_) => "a mapping".to_owned(),
    }
}

/// The last part of a name with dots.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// A bound as people write it.
pub(crate) fn number(value: f64) -> String {
    if value != 0.0 && (value.abs() < 1e-4 || value.abs() >= 1e18) { format!("{value:e}") } else { format!("{value}") }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => format!("the text \"{}\"", shown(text)),
        other => format!("`{other}`"),
    }
}

fn plain_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// A scalar without quotes, by YAML 1.2's core schema. Infinities and NaN stay text: no parameter may have them.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        _ if is_null(text) => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with('+'));
    if let Some(value) = text.strip_prefix("0x").and_then(|d| radix(d, 16)) {
        return value.into();
    }
    if let Some(value) = text.strip_prefix("0o").and_then(|d| radix(d, 8)) {
        return value.into();
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit()) {
        if let Ok(value) = text.strip_prefix('+').unwrap_or(text).parse::<u64>() {
            return value.into();
        }
        if let Ok(value) = text.parse::<i64>() {
            return value.into();
        }
    }
    let numeric = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    match text.parse::<f64>().ok().filter(|v| numeric && v.is_finite()).and_then(Number::from_f64) {
        Some(value) => Value::Number(value),
        None => Value::from(text),
    }
}

/// The value of a key.
pub(super) fn get<'n>(entries: &'n [Entry], key: &str) -> Option<&'n Rc<Node>> {
    entries.iter().find(|e| &*e.key == key).map(|e| &e.value)
}

/// Whether a name may be used for stages, models, data sets, parameters and pipelines.
pub(super) fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
}

/// The help for a name that [`is_name`] refuses.
pub(super) fn name_help(text: &str) -> String {
    let fixed: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' })
        .skip_while(|c| !c.is_ascii_lowercase())
        .take(64)
        .collect();
    let fixed = fixed.trim_end_matches(['_', '-']);
    let rule = "names begin with a lower-case letter and go on with lower-case letters, digits, `_` or `-`, 64 at most";
    if is_name(fixed) { format!("{rule}: for example `{fixed}`") } else { rule.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        for (text, value) in [
            ("", Value::Null),
            ("~", Value::Null),
            ("true", json!(true)),
            ("yes", json!("yes")),
            ("No", json!("No")),
            ("12", json!(12)),
            ("+12", json!(12)),
            ("-3", json!(-3)),
            ("0x1F", json!(31)),
            ("0o17", json!(15)),
            ("0.5", json!(0.5)),
            (".5", json!(0.5)),
            ("1e-3", json!(0.001)),
            ("1.", json!(1.0)),
            ("1_000", json!("1_000")),
            (".inf", json!(".inf")),
            (".nan", json!(".nan")),
            ("18446744073709551615", json!(u64::MAX)),
            ("e5", json!("e5")),
            ("-", json!("-")),
            (".", json!(".")),
            ("0x", json!("0x")),
            ("0x+1", json!("0x+1")),
            ("1.2.3", json!("1.2.3")),
        ] {
            assert_eq!(resolve(text), value, "{text:?}");
        }
    }
}
