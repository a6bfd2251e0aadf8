//! Turns a conversation into a prompt with the model's own chat template.
//!
//! Templates see no clock: `strftime_now` is deliberately not defined, so a template that writes today's date takes
//! its fixed default, and the same conversation gives the same prompt every day.

use crate::{LlmError, tokenizer::TextTokenizer};
use minijinja::{
    Environment, Error, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, ValueKind},
};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};
use std::io;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
}

impl ChatTemplate {
    /// Compiles a template. `begin` and `end` are the texts of the tokens that begin a text and end a turn.
    ///
    /// # Errors
    /// [`LlmError::Template`] when the template is malformed.
    pub fn new(source: &str, begin: String, end: String) -> Result<Self, LlmError> {
        let mut environment = Environment::new();
        // As transformers renders templates.
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(|error| template_error(&error))?,
        );
        environment.add_function("raise_exception", |message: String| -> Result<(), Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", python_json);
        environment.set_unknown_method_callback(|_, value, method, arguments| python_method(value, method, arguments));
        environment.add_template_owned("chat", source.to_owned()).map_err(|error| template_error(&error))?;
        Ok(Self { environment, begin, end })
    }

    /// Compiles a template of a model with this tokenizer.
    ///
    /// # Errors
    /// [`LlmError::Template`] when the template is malformed.
    pub(crate) fn of_tokenizer(source: &str, tokenizer: &TextTokenizer) -> Result<Self, LlmError> {
        let text = |token: Option<u32>| token.and_then(|token| tokenizer.token_text(token)).unwrap_or_default();
        Self::new(source, text(tokenizer.begin()), text(tokenizer.end()))
    }

    /// The prompt of a conversation; `add_generation_prompt` opens the assistant's turn at its end. The template sees
    /// neither tools nor documents.
    ///
    /// # Errors
    /// [`LlmError::Template`] when the template refuses the conversation or cannot be rendered.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, LlmError> {
        let turn = |message: &Message| context! { role => message.role.as_str(), content => message.content.as_str() };
        let messages: Value = messages.iter().map(turn).collect::<Vec<_>>().into();
        // Templates tell none, which tools and documents are, from what is not defined.
        let values = context! {
            messages, add_generation_prompt, bos_token => self.begin.as_str(), eos_token => self.end.as_str(),
            tools => Value::from(()), documents => Value::from(()),
        };
        let template = self.environment.get_template("chat").map_err(|error| template_error(&error))?;
        template.render(values).map_err(|error| template_error(&error))
    }
}

fn template_error(error: &Error) -> LlmError {
    LlmError::Template(error.to_string())
}

/// JSON as Python's `json.dumps` writes it: a space after each comma and colon, or lines with an indent; nothing is
/// escaped for HTML.
fn python_json(value: Value, options: Kwargs) -> Result<String, Error> {
    struct Spaced;
    impl Formatter for Spaced {
        fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { out.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { out.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
            out.write_all(b": ")
        }
    }
    let failed = |what: String| Error::new(ErrorKind::BadSerialization, what);
    let mut out = Vec::new();
    let written = match options.get::<Option<usize>>("indent")? {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
        Some(width) => {
            let indent = " ".repeat(width);
            let pretty = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
    };
    written.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(out).map_err(|error| failed(error.to_string()))
}

/// Python's methods of strings and dictionaries that templates call.
fn python_method(value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let unknown = || Error::new(ErrorKind::UnknownMethod, format!("no method {method} here"));
    let Some(text) = value.as_str() else { return map_method(value, method, arguments).ok_or_else(unknown) };
    let argument = arguments.first().and_then(Value::as_str);
    let stripped = |c: char| argument.map_or(c.is_whitespace(), |characters| characters.contains(c));
    Ok(match (method, argument) {
        ("strip", _) => text.trim_matches(stripped).into(),
        ("lstrip", _) => text.trim_start_matches(stripped).into(),
        ("rstrip", _) => text.trim_end_matches(stripped).into(),
        ("upper", None) => text.to_uppercase().into(),
        ("lower", None) => text.to_lowercase().into(),
        ("title", None) => title(text).into(),
        ("capitalize", None) => title_word(text).into(),
        ("startswith", Some(prefix)) => text.starts_with(prefix).into(),
        ("endswith", Some(suffix)) => text.ends_with(suffix).into(),
        ("split", None) => text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().into(),
        ("split", Some(separator)) => {
            let times = arguments.get(1).and_then(Value::as_usize).map_or(usize::MAX, |times| times + 1);
            text.splitn(times, separator).map(str::to_owned).collect::<Vec<_>>().into()
        }
        ("replace", Some(old)) => {
            let new = arguments.get(1).and_then(Value::as_str).ok_or_else(unknown)?;
            text.replace(old, new).into()
        }
        ("count", Some(part)) => text.matches(part).count().into(),
        _ => return Err(unknown()),
    })
}

/// Methods of dictionaries; `None` for one that is not known.
fn map_method(value: &Value, method: &str, arguments: &[Value]) -> Option<Value> {
    if value.kind() != ValueKind::Map {
        return None;
    }
    let keys = || value.try_iter().ok();
    let get = |key: &Value| value.get_item(key).unwrap_or_default();
    Some(match method {
        "keys" => keys()?.collect(),
        "values" => keys()?.map(|key| get(&key)).collect(),
        "items" => keys()?.map(|key| Value::from(vec![key.clone(), get(&key)])).collect(),
        "get" => {
            let found = get(arguments.first()?);
            if found.is_undefined() { arguments.get(1).cloned().unwrap_or_else(|| Value::from(())) } else { found }
        }
        _ => return None,
    })
}

fn title(text: &str) -> String {
    text.split_inclusive(|c: char| !c.is_alphabetic()).map(title_word).collect()
}

fn title_word(word: &str) -> String {
    let mut characters = word.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_uppercase().collect::<String>() + &characters.as_str().to_lowercase()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_methods_of_python() {
        let cases = [
            (
                "' ab '.strip() ~ '|' ~ 'xxaxx'.strip('x') ~ '|' ~ 'xa'.lstrip('x') ~ '|' ~ 'a\n'.rstrip('\n')",
                "ab|a|a|a",
            ),
            ("'a b'.title() ~ 'aB'.capitalize() ~ 'aB'.upper() ~ 'aB'.lower()", "A BAbABab"),
            ("'a-b-c'.split('-', 1)[-1] ~ 'a  b'.split()[1] ~ 'aa'.replace('a', 'b') ~ 'aba'.count('a')", "b-cbbb2"),
            ("{'a': [1, '<é>']} | tojson", r#"{"a": [1, "<é>"]}"#),
            ("[1] | tojson(indent=2)", "[\n  1\n]"),
            ("{'a': 1}.get('b', 2) ~ ({'a': 1}.get('b') is none) ~ {'a': 1}.get('a')", "2True1"),
            ("{'a': 1}.items() | list ~ {'a': 1}.keys() | list", "[['a', 1]]['a']"),
            ("'abc'.startswith('a') and 'abc'.endswith('c')", "True"),
        ];
        for (expression, expected) in cases {
            let template = ChatTemplate::new(&format!("{{{{ {expression} }}}}"), String::new(), String::new()).unwrap();
            let rendered = template.render(&[], false).unwrap();
            assert_eq!(rendered.to_lowercase(), expected.to_lowercase(), "{expression}");
        }
        let unknown = ChatTemplate::new("{{ 'a'.zfill(3) }}", String::new(), String::new()).unwrap();
        let message = unknown.render(&[], false).unwrap_err().to_string();
        assert!(message.contains("no method zfill"), "{message}");
    }

    #[test]
    fn templates_have_what_they_call() {
        let source = "{% for m in messages %}\n{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n\
            [{{ m.role }}] {{ m.content.strip() }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}>{% endif %}\
            {% if strftime_now is defined %}{{ strftime_now('%d') }}{% endif %}";
        let template = ChatTemplate::new(source, "<s>".into(), "</s>".into()).unwrap();
        let text = template.render(&[Message::new("user", " hi ")], true).unwrap();
        assert_eq!(text, "[user] hi</s>>");
        let error = template.render(&[Message::new("tool", "")], true).unwrap_err().to_string();
        assert!(error.contains("no tools"), "{error}");
    }
}
