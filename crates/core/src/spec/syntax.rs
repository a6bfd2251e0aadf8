//! What the parser's errors mean to someone who writes pipelines, and where the slip really is.

use super::{
    diagnostics::Span,
    node::{MAX_DEPTH, SyntaxError},
};
use serde_saphyr::granit_parser::ErrorKind;

/// A syntax error, told.
pub(super) struct Told {
    /// Where the slip is, which may be before the place where the parser stumbled.
    pub(super) span: Span,
    /// What is wrong.
    pub(super) message: String,
    /// What to do.
    pub(super) help: Option<String>,
}

/// Tells an error.
pub(super) fn explain(error: &SyntaxError, text: &str) -> Told {
    let (span, message, help): (Span, String, &str) = match &error.kind {
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabInPlainScalar
        | ErrorKind::TabAtBlockScalarStart => {
            (tab(error.span, text), "a tab stands where YAML wants spaces".into(), "indent with spaces, two a level")
        }
        ErrorKind::MappingValueNotAllowed => return colon(error.span, text),
        kind => {
            let (message, help) = plain(kind, line(text, error.span.line));
            let Some(help) = help else { return Told { span: error.span, message, help: None } };
            (error.span, message, help)
        }
    };
    Told { span, message, help: Some(help.to_owned()) }
}

fn plain(kind: &ErrorKind, line: &str) -> (String, Option<&'static str>) {
    let (message, help): (&str, &str) = match kind {
        ErrorKind::UnclosedFlowCollection { open } => {
            return (format!("this `{open}` is never closed"), Some("add the closing bracket"));
        }
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            let message = format!("this `{open}` is closed by a `{close}`");
            return (message, Some("use the same kind of bracket on both sides"));
        }
        ErrorKind::RecursionLimitExceeded => {
            let message = format!("values are nested more than {MAX_DEPTH} levels deep here");
            return (message, Some("a pipeline needs six levels"));
        }
        ErrorKind::UnexpectedCharacter { character } if character.is_control() => {
            let message = format!("the control character `{}` can't stand in YAML", character.escape_default());
            return (message, Some("remove it, or write it as an escape in double quotes"));
        }
        ErrorKind::UnexpectedCharacter { character } => {
            let message = format!("no value can begin with `{}`", character.escape_default());
            return (message, Some("put the value in quotes"));
        }
        ErrorKind::MisplacedFlowCollectionEnd => ("this bracket closes nothing", "remove it, or open it before"),
        ErrorKind::UnclosedQuotedScalar => ("this quote is never closed", "add the closing quote"),
        ErrorKind::DocumentIndicatorInQuotedScalar => {
            ("this quoted text runs into a `---`", "add the closing quote before it")
        }
        ErrorKind::InvalidColonPlacement => ("a `:` can't stand here", "put a value with `:` in it in quotes"),
        ErrorKind::ExpectedBlockMappingKey | ErrorKind::InvalidIndentation => (
            "this line stands at an indentation that belongs to nothing above it",
            "put it in line with its siblings: children of one key all start in the same column",
        ),
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => {
            ("a key without its `:`", "write `key: value`, with a space after the `:`")
        }
        ErrorKind::ExpectedFlowMappingSeparator | ErrorKind::ExpectedFlowSequenceSeparator if line.contains("${") => {
            ("`${…}` needs quotes inside `{ }` and `[ ]`", "write \"${name}\"; its value keeps its type")
        }
        ErrorKind::ExpectedFlowMappingSeparator => {
            ("`,` or `}` expected here", "separate the pairs by `, ` and close the mapping by `}`")
        }
        ErrorKind::ExpectedFlowSequenceSeparator => {
            ("`,` or `]` expected here", "separate the values by `, ` and close the list by `]`")
        }
        ErrorKind::BlockSequenceEntryNotAllowed | ErrorKind::ExpectedBlockSequenceEntry => {
            ("a list entry `- ` can't stand here", "start the list on its own line, below its key")
        }
        ErrorKind::UnknownQuotedScalarEscape => {
            ("unknown escape after `\\`", "write `\\\\` for a backslash, or use single quotes")
        }
        other => return (format!("this is not YAML: {other}"), None),
    };
    (message.to_owned(), Some(help))
}

fn line(text: &str, number: u32) -> &str {
    text.lines().nth((number as usize).saturating_sub(1)).unwrap_or_default()
}

/// The tab itself: the parser may have stopped after it, or at the end of the line before.
fn tab(span: Span, text: &str) -> Span {
    let indented_by_tab = |number: u32| {
        let line = line(text, number);
        let indentation = line.len() - line.trim_start().len();
        line.get(..indentation)?.chars().position(|c| c == '\t')
    };
    [span.line, span.line + 1]
        .into_iter()
        .find_map(|line| Some(Span { line, column: u32::try_from(indented_by_tab(line)?).ok()? + 1, width: 1 }))
        .unwrap_or(span)
}

/// A `:` where no key can be: two on one line, a line above without its own, or a line too deep.
fn colon(span: Span, text: &str) -> Told {
    let here = line(text, span.line);
    let before: String = here.chars().take(span.column as usize - 1).collect();
    if before.contains(": ") {
        return Told {
            span,
            message: "a second `: ` on this line".to_owned(),
            help: Some("put a value with `: ` in it in quotes, or start a new line before the second key".to_owned()),
        };
    }
    let above = (1..span.line).rev().find(|n| !matches!(line(text, *n).trim().chars().next(), None | Some('#')));
    let above_text = line(text, above.unwrap_or(1));
    let indentation = |l: &str| l.chars().count() - l.trim_start().chars().count();
    let start = |number: u32, l: &str| Span {
        line: number,
        column: u32::try_from(indentation(l)).unwrap_or(0) + 1,
        width: u32::try_from(l.trim().chars().count()).unwrap_or(1).max(1),
    };
    if above_text.contains(": ") || above_text.trim_end().ends_with(':') {
        return Told {
            span: Span { width: 1, ..start(span.line, here) },
            message: "this line stands deeper than the one above, which has its value already".to_owned(),
            help: Some("put it in line with its siblings: children of one key all start in the same column".to_owned()),
        };
    }
    Told {
        span: above.map_or(span, |number| start(number, above_text)),
        message: "this line has no `: ` between a key and a value".to_owned(),
        help: Some("write `key: value`, with a space after the `:`".to_owned()),
    }
}
