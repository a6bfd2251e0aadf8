//! Turns a conversation into a prompt with the model's own chat template.
//!
//! Templates see no clock: `strftime_now` is deliberately not defined, so a template that writes today's date takes
//! its fixed default, and the same conversation gives the same prompt every day.

use crate::LlmError;
use minijinja::{Environment, Error, ErrorKind, Value, context, syntax::SyntaxConfig};
use serde::{Deserialize, Serialize};

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
        environment.set_unknown_method_callback(|_, value, method, arguments| string_method(value, method, arguments));
        environment.add_template_owned("chat", source.to_owned()).map_err(|error| template_error(&error))?;
        Ok(Self { environment, begin, end })
    }

    /// The prompt of a conversation; `add_generation_prompt` opens the assistant's turn at its end.
    ///
    /// # Errors
    /// [`LlmError::Template`] when the template refuses the conversation or cannot be rendered.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, LlmError> {
        let turn = |message: &Message| context! { role => message.role.as_str(), content => message.content.as_str() };
        let messages: Value = messages.iter().map(turn).collect::<Vec<_>>().into();
        let values = context! { messages, add_generation_prompt, bos_token => self.begin.as_str(), eos_token => self.end.as_str() };
        let template = self.environment.get_template("chat").map_err(|error| template_error(&error))?;
        template.render(values).map_err(|error| template_error(&error))
    }
}

fn template_error(error: &Error) -> LlmError {
    LlmError::Template(error.to_string())
}

/// Python's methods of strings that templates call.
fn string_method(value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let unknown = || Error::new(ErrorKind::UnknownMethod, format!("strings have no method {method} here"));
    let text = value.as_str().ok_or_else(unknown)?;
    let argument = arguments.first().and_then(Value::as_str);
    Ok(match (method, argument) {
        ("strip", None) => text.trim().into(),
        ("lstrip", None) => text.trim_start().into(),
        ("rstrip", None) => text.trim_end().into(),
        ("upper", None) => text.to_uppercase().into(),
        ("lower", None) => text.to_lowercase().into(),
        ("startswith", Some(prefix)) => text.starts_with(prefix).into(),
        ("endswith", Some(suffix)) => text.ends_with(suffix).into(),
        ("split", Some(separator)) => text.split(separator).map(str::to_owned).collect::<Vec<_>>().into(),
        _ => return Err(unknown()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
