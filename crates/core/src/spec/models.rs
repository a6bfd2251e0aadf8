//! The `models:` section: each entry read by the table of its form, local or remote, and what a kind may do with it.
//!
//! A key pasted where its variable's name belongs is told without being shown: neither message nor source line has it.

use super::{
    diagnostics::{Span, shown},
    lower::{Declared, declared, named},
    node::{Content, Entry, Node},
    values::{Expected, Reader, get},
};
use crate::{
    field::Field,
    kind::StageKind,
    models::{LocalModel, Model, ModelPlace, RemoteModel},
};
use serde_json::{Map, Value};
use std::rc::Rc;

/// A catalogue name for examples.
const EXAMPLE: &str = "smollm2-135m-instruct";
/// Forms of a source other than a catalogue name.
const FORMS: &str = "`file:PATH`, `hf:OWNER/REPO` or `s3://BUCKET/PATH`";

/// The declared models.
pub(super) fn read(reader: &mut Reader, entries: &[Entry]) -> (Declared, Vec<Model>) {
    declared(reader, entries, "models", EXAMPLE, model)
}

fn model(reader: &mut Reader, entry: &Entry) -> Option<Model> {
    named(reader, entry, "models");
    let fields = reader.map(&entry.value, &entry.key, &format!("{}: {{source: {EXAMPLE}}}", entry.key))?;
    let remote = ["provider", "url", "model"].iter().any(|key| get(fields, key).is_some());
    let place = if remote { remote_model(reader, entry, fields) } else { local_model(reader, entry, fields) };
    Some(Model { name: entry.key.to_string(), place: place? })
}

fn local_model(reader: &mut Reader, entry: &Entry, fields: &[Entry]) -> Option<ModelPlace> {
    let table = LocalModel::fields();
    let mut known: Vec<&str> = table.iter().map(|f| f.name).collect();
    known.push("provider");
    reader.unknown_keys(fields, &known, &format!("`models.{}`", entry.key));
    let Some(node) = get(fields, "source") else {
        if !matches!(entry.value.content, Content::Broken) {
            let help = Some(format!("write `source: {EXAMPLE}`, or `source: file:PATH`"));
            reader.out.error(entry.key_span, format!("`models.{}` has no `source`", entry.key), help);
        }
        return None;
    };
    let source = source(reader, node, "source");
    let sha256 = get(fields, "sha256").map(|node| sha256(reader, node, source.as_deref()));
    // Wrong texts are told above, by rules of their own: once is enough.
    let wrong = source.is_none() || sha256 == Some(None);
    let rest: Vec<Field> = table.into_iter().filter(|f| !wrong || !["source", "sha256"].contains(&f.name)).collect();
    let values = values(reader, fields, &rest)?;
    if wrong {
        return None;
    }
    Some(ModelPlace::Local(typed(reader, entry, values)?))
}

fn remote_model(reader: &mut Reader, entry: &Entry, fields: &[Entry]) -> Option<ModelPlace> {
    let table = RemoteModel::fields();
    let known: Vec<&str> = table.iter().map(|f| f.name).collect();
    for field in fields.iter().filter(|f| !known.contains(&&*f.key)) {
        let secret = ["key", "token", "secret", "password", "auth"];
        if secret.iter().any(|word| field.key.to_lowercase().contains(word)) {
            reader.out.hide(field.value.span);
        }
        if let "source" | "sha256" | "precision" = &*field.key {
            let message =
                format!("`{}` is for models in files, and `models.{}` is behind a server", field.key, entry.key);
            let help = match &*field.key {
                "precision" => "remove it: the server decides; say what it runs in `revision`",
                _ => "remove it, or remove `provider`, `url` and `model`",
            };
            reader.out.error(field.key_span, message, Some(help.to_owned()));
            continue;
        }
        let help = reader.out.did_you_mean(&field.key, known.iter().copied(), "known keys");
        let place = format!("the remote model `models.{}`", entry.key);
        reader.out.error(field.key_span, format!("unknown key `{}` in {place}", shown(&field.key)), help);
    }
    let mut complete = true;
    for (key, example) in [("provider", "openai"), ("url", "http://localhost:8000/v1"), ("model", "NAME")] {
        if get(fields, key).is_none() && !reader.out.misspelt(key, fields.iter().map(|f| &*f.key), &known) {
            let message = format!("the remote model `models.{}` has no `{key}`", entry.key);
            reader.out.error(entry.key_span, message, Some(format!("write `{key}: {example}`")));
            complete = false;
        }
    }
    let mut check = |key, rule: fn(&mut Reader, &Node) -> Option<()>| {
        complete &= get(fields, key).is_none_or(|node| rule(reader, node).is_some());
    };
    check("api_key_env", variable);
    check("url", address);
    check("model", |reader, node| reader.text(node, "model").map(drop));
    check("tokenizer", |reader, node| match &node.content {
        // Written to undo one that is merged in.
        Content::Scalar { text, plain: false } if text.is_empty() => Some(()),
        _ => source(reader, node, "tokenizer").map(drop),
    });
    // As for a local model: wrong texts are told above.
    let rest: Vec<Field> = table
        .into_iter()
        .filter(|f| complete || !["url", "model", "api_key_env", "tokenizer"].contains(&f.name))
        .collect();
    let values = values(reader, fields, &rest)?;
    if !complete {
        return None;
    }
    let mut remote: RemoteModel = typed(reader, entry, values)?;
    remote.url = remote.url.trim_end_matches('/').to_owned();
    Some(ModelPlace::Remote(remote))
}

/// Every field of a table, given or by default; `None` after reporting what is wrong.
fn values(reader: &mut Reader, fields: &[Entry], table: &[Field]) -> Option<Map<String, Value>> {
    let mut complete = true;
    let mut values = Map::new();
    for field in table {
        let value = match get(fields, field.name) {
            Some(node) => {
                reader.typed(node, &Expected { name: field.name, kind: &field.kind, range: field.range, empty: true })
            }
            None => Some(field.default.clone()),
        };
        complete &= value.is_some();
        values.insert(field.name.to_owned(), value.unwrap_or_default());
    }
    complete.then_some(values)
}

fn typed<T: serde::de::DeserializeOwned>(reader: &mut Reader, entry: &Entry, values: Map<String, Value>) -> Option<T> {
    serde_json::from_value(Value::Object(values))
        .map_err(|error| {
            // The table and the struct come from one declaration, so this is a bug; say so rather than stop.
            let help = Some("please report this: a setting's table and type disagree".to_owned());
            reader.out.error(entry.key_span, format!("the settings of `{}` do not fit: {error}", entry.key), help);
        })
        .ok()
}

/// A source as written: a catalogue name, or one of the forms.
pub(super) fn source(reader: &mut Reader, node: &Node, key: &str) -> Option<String> {
    let source = reader.text(node, key)?;
    let right = match source.split_once(':') {
        Some(("file", path)) => !path.is_empty(),
        Some(("hf", repository)) => hugging_face(repository),
        Some(("s3", place)) => bucket(place),
        _ => super::lower::is_catalogue_name(&source),
    };
    if right {
        return Some(source);
    }
    if source.contains("://") && source.contains(['?', '@']) {
        reader.out.hide(node.span);
        let message = "an address with a `?` or an `@` is no source (it is not shown, lest a key be in it)";
        reader.out.error(node.span, message, Some(format!("write a catalogue name such as `{EXAMPLE}`, {FORMS}")));
        return None;
    }
    let help = match source.split_once(':') {
        Some(("hf", _)) => "write `hf:OWNER/REPO`, `hf:OWNER/REPO@REVISION` or `hf:OWNER/REPO/FILE`".to_owned(),
        Some(("s3", _)) => "write `s3://BUCKET/PATH`, where PATH is a .gguf file or the folder of a model".to_owned(),
        Some(("http" | "https", _)) => {
            format!("for a server write `provider: openai`, `url` and `model`; else a catalogue name, {FORMS}")
        }
        _ if source.contains("://") => format!("write a catalogue name such as `{EXAMPLE}`, {FORMS}"),
        _ if source.contains(['/', '\\']) => {
            format!("for a file or folder of your own, write `{key}: file:{}`", shown(&source))
        }
        _ => format!("write a catalogue name such as `{EXAMPLE}`, {FORMS}"),
    };
    reader.out.error(node.span, format!("\"{}\" is no source", shown(&source)), Some(help));
    None
}

/// Whether `OWNER/REPO[@REVISION][/FILE]` is one.
fn hugging_face(text: &str) -> bool {
    let word = |w: &str| {
        !w.is_empty()
            && !w.starts_with('.')
            && w.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let mut parts = text.split('/');
    let (owner, repository) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (name, revision) = repository.split_once('@').unwrap_or((repository, "main"));
    word(owner) && word(name) && word(revision) && parts.all(word)
}

/// Whether `//BUCKET[/PATH]` is one. A `?` would begin a signature, which is a secret.
fn bucket(text: &str) -> bool {
    let Some(place) = text.strip_prefix("//") else { return false };
    let (bucket, path) = place.split_once('/').unwrap_or((place, ""));
    let path = path.strip_suffix('/').unwrap_or(path);
    (3..=63).contains(&bucket.len())
        && bucket.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !path.contains(|c: char| c.is_control() || matches!(c, '?' | '#' | '\\'))
        && (path.is_empty() || path.split('/').all(|name| !matches!(name, "" | "." | "..")))
}

fn sha256(reader: &mut Reader, node: &Node, source: Option<&str>) -> Option<()> {
    let text = reader.text(node, "sha256")?;
    if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        let message = format!("`sha256` must be 64 hexadecimal digits in lower case, not \"{}\"", shown(&text));
        reader.out.error(node.span, message, Some("`sha256sum FILE` prints it".to_owned()));
        return None;
    }
    if source.is_some_and(super::lower::is_catalogue_name) {
        let help = Some("remove it".to_owned());
        reader.out.error(node.span, "`sha256` has no effect here: the catalogue pins its sources itself", help);
        return None;
    }
    Some(())
}

fn address(reader: &mut Reader, node: &Node) -> Option<()> {
    let url = reader.text(node, "url")?;
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let host = rest.map(|rest| rest.split('/').next().unwrap_or_default());
    let message = match host {
        None => format!("`url` must begin with http:// or https://, and \"{}\" does not", shown(&url)),
        Some("") => "`url` names no host".to_owned(),
        Some(host) if host.contains('@') => {
            reader.out.hide(node.span);
            "`url` must not hold a user name or password".to_owned()
        }
        Some(_) if url.contains(['?', '#']) || url.contains(char::is_whitespace) => {
            reader.out.hide(node.span);
            "`url` must end with its path: no `?`, `#` or spaces".to_owned()
        }
        Some(_) => return Some(()),
    };
    let help = "for example `url: http://localhost:8000/v1`; a key goes into the variable that `api_key_env` names";
    reader.out.error(node.span, message, Some(help.to_owned()));
    None
}

/// The name of an environment variable. Anything else may be the key itself, so it is not shown.
fn variable(reader: &mut Reader, node: &Node) -> Option<()> {
    let name = match &node.content {
        Content::Scalar { text, .. } if text.is_empty() => return Some(()),
        Content::Scalar { text, .. } if !text.contains("${") => text.clone(),
        Content::Scalar { .. } => reader.text(node, "api_key_env")?,
        _ => return Some(()),
    };
    // Names of variables are upper case by custom, and keys hardly ever are.
    let named = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    if named {
        return Some(());
    }
    reader.out.hide(node.span);
    let help = "put the key into a variable and write its name: capital letters, digits, `_`; for example \
                `api_key_env: LLM_API_KEY`";
    reader.out.error(
        node.span,
        "`api_key_env` must be the name of an environment variable (what stands there is not shown, lest it be a key)",
        Some(help.to_owned()),
    );
    None
}

/// Whether a kind of stage can use a model.
pub(super) fn check_use(reader: &mut Reader, span: Span, kind: StageKind, model: &Model) {
    let ModelPlace::Remote(remote) = &model.place else { return };
    match kind {
        StageKind::Describe | StageKind::Embed | StageKind::Score => {}
        StageKind::Reason if !remote.tokenizer.is_empty() => {}
        StageKind::Reason => {
            let message = format!("`reason` needs the tokenizer of the remote model `{}`", model.name);
            let help = format!(
                "add `tokenizer: SOURCE` to `models.{}`: each trace is read again for its answer, as text in the \
                 model's own chat format",
                model.name
            );
            reader.out.error(span, message, Some(help));
        }
        kind => {
            let message = format!("`{kind}` needs the weights, and the model `{}` is behind a server", model.name);
            reader.out.error(span, message, Some("declare one with `source:` and name it here".to_owned()));
        }
    }
}

/// Whether a model can take the adapter that its stage is given.
pub(super) fn check_adapter(reader: &mut Reader, needs: Option<&Rc<Node>>, model: &Model) {
    let (ModelPlace::Remote(_), Some(Content::Map(inputs))) = (&model.place, needs.map(|node| &node.content)) else {
        return;
    };
    if let Some(adapter) = inputs.iter().find(|input| &*input.key == "adapter") {
        let message = format!("the model `{}` is behind a server, and takes no adapter from here", model.name);
        let help = "let the server load the adapter, and declare that as a model of its own";
        reader.out.error(adapter.key_span, message, Some(help.to_owned()));
    }
}
