//! Templates with `{placeholders}`: one grammar for those who check a pipeline and those who fill its templates.
//!
//! `{word}` is a placeholder, `{{` and `}}` stand for braces, any other brace is a mistake. What fills a placeholder is
//! never interpreted.

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text as it stands; escaped braces are braces.
    Text(&'a str),
    /// The word of a placeholder, known or not.
    Placeholder(&'a str),
    /// A brace without its partner, at this byte. What follows is not read.
    UnmatchedBrace(usize),
}

/// The pieces of a template, in order.
pub fn pieces(text: &str) -> Vec<Piece<'_>> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some(brace) = rest.find(['{', '}']) {
        let (before, tail) = rest.split_at(brace);
        if !before.is_empty() {
            pieces.push(Piece::Text(before));
        }
        if tail.starts_with("{{") || tail.starts_with("}}") {
            pieces.push(Piece::Text(&tail[..1]));
            rest = &tail[2..];
            continue;
        }
        let placeholder =
            tail.strip_prefix('{').and_then(|t| t.split_once('}')).filter(|(word, _)| !word.contains('{'));
        let Some((word, after)) = placeholder else {
            pieces.push(Piece::UnmatchedBrace(text.len() - tail.len()));
            return pieces;
        };
        pieces.push(Piece::Placeholder(word));
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::{Piece::*, pieces};

    #[test]
    fn braces_are_placeholders_escapes_or_mistakes() {
        assert_eq!(pieces("a {b} c"), [Text("a "), Placeholder("b"), Text(" c")]);
        assert_eq!(pieces("{{b}} {c}"), [Text("{"), Text("b"), Text("}"), Text(" "), Placeholder("c")]);
        assert_eq!(pieces("{\"a\":1}"), [Placeholder("\"a\":1")]);
        assert_eq!(pieces("a } b"), [Text("a "), UnmatchedBrace(2)]);
        assert_eq!(pieces("a {b {c}"), [Text("a "), UnmatchedBrace(2)]);
        assert_eq!(pieces(""), []);
    }
}
