//! Goes on after a syntax error, so that one missing bracket does not hide the other mistakes of a file.
//!
//! The text is cut at its top-level keys, and below a bare header at the keys one level in; each piece is read alone.
//! A piece that is no YAML is reported and set aside: its name stays known, its content counts as right. When all
//! pieces are fine by themselves, the error lies between them, and only that one is reported.

use super::{
    diagnostics::{Collector, Span},
    node::{Content, Entry, Node, Stopped, SyntaxError, first_syntax_error, parse},
    syntax::explain,
};
use std::{collections::HashSet, rc::Rc};

/// A file as far as it could be read.
pub(super) struct Recovered {
    /// The root; `None` for an empty file.
    pub(super) root: Option<Rc<Node>>,
    /// Words that stand as keys in the unreadable pieces: names that may exist.
    pub(super) lost_names: HashSet<String>,
}

/// Lines `start..end`, counted from 0, of one piece.
struct Piece {
    start: usize,
    end: usize,
    indent: usize,
}

/// Reads `text`, reporting its syntax errors; `None` when nothing can be said about the rest.
pub(super) fn read(text: &str, out: &mut Collector) -> Option<Recovered> {
    let mut quiet = Collector::default();
    match parse(text, &mut quiet) {
        Ok(root) => {
            out.absorb(quiet);
            Some(Recovered { root, lost_names: HashSet::new() })
        }
        Err(Stopped::Refused) => {
            out.absorb(quiet);
            None
        }
        Err(Stopped::Syntax(error)) => read_pieces(text, &error, out),
    }
}

fn read_pieces(text: &str, whole: &SyntaxError, out: &mut Collector) -> Option<Recovered> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut repaired: Vec<String> = Vec::with_capacity(lines.len());
    let mut lost_names = HashSet::new();
    let mut lost_lines = HashSet::new();
    let pieces = pieces(&lines);
    for piece in &pieces {
        repaired.extend(lines.get(repaired.len()..piece.start)?.iter().map(|l| (*l).to_owned()));
        let body = lines.get(piece.start..piece.end)?;
        let Some(error) = first_syntax_error(&body.concat()) else {
            repaired.extend(body.iter().map(|l| (*l).to_owned()));
            continue;
        };
        let line = error.span.line + u32::try_from(piece.start).ok()?;
        let error = SyntaxError { span: Span { line, ..error.span }, kind: error.kind };
        report(&error, text, out);
        lost_names.extend(body.iter().filter_map(|l| key_of(l)).map(|(_, key)| key.to_owned()));
        lost_lines.insert(u32::try_from(piece.start).ok()? + 1);
        let (_, key) = key_of(body.first()?)?;
        repaired.push(format!("{:width$}{key}:\n", "", width = piece.indent));
        repaired.extend(body.iter().skip(1).map(|_| "\n".to_owned()));
    }
    if lost_lines.is_empty() {
        report(whole, text, out);
        return None;
    }
    repaired.extend(lines.get(repaired.len()..)?.iter().map(|l| (*l).to_owned()));
    let mut quiet = Collector::default();
    match parse(&repaired.concat(), &mut quiet) {
        Ok(root) => {
            out.absorb(quiet);
            Some(Recovered { root: root.map(|r| set_aside(&r, &lost_lines, 2)), lost_names })
        }
        Err(_) => None,
    }
}

fn report(error: &SyntaxError, text: &str, out: &mut Collector) {
    let told = explain(error, text);
    out.error(told.span, told.message, told.help);
}

/// Cuts a block-style file into its top-level blocks, and those with a bare header into their children.
fn pieces(lines: &[&str]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let tops = heads(lines, 0, lines.len(), 0);
    for (i, &start) in tops.iter().enumerate() {
        let end = tops.get(i + 1).copied().unwrap_or(lines.len());
        let bare = lines.get(start).is_some_and(|l| {
            let after = l.split_once(':').map_or("", |(_, after)| after).trim();
            after.is_empty() || after.starts_with('#')
        });
        let indent = lines.iter().take(end).skip(start + 1).find_map(|l| key_of(l)).map(|(indent, _)| indent);
        match indent {
            Some(indent) if bare && indent > 0 => {
                let children = heads(lines, start + 1, end, indent);
                for (j, &child) in children.iter().enumerate() {
                    let end = children.get(j + 1).copied().unwrap_or(end);
                    pieces.push(Piece { start: child, end, indent });
                }
            }
            _ => pieces.push(Piece { start, end, indent: 0 }),
        }
    }
    pieces
}

/// Lines between `from` and `to` that are keys at this indentation.
fn heads(lines: &[&str], from: usize, to: usize, indent: usize) -> Vec<usize> {
    (from..to).filter(|&i| lines.get(i).and_then(|l| key_of(l)).is_some_and(|(at, _)| at == indent)).collect()
}

/// Indentation and key of a line that begins with a plain word and a colon.
fn key_of(line: &str) -> Option<(usize, &str)> {
    let body = line.trim_start_matches(' ');
    let (key, after) = body.split_once(':')?;
    let word = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
    (word && (after.is_empty() || after.starts_with(char::is_whitespace))).then_some((line.len() - body.len(), key))
}

/// Replaces the values whose key stands on a lost line, at the two outer levels.
fn set_aside(node: &Rc<Node>, lost_lines: &HashSet<u32>, levels: usize) -> Rc<Node> {
    let Content::Map(entries) = &node.content else { return Rc::clone(node) };
    let entries = entries.iter().map(|entry| {
        let value = if lost_lines.contains(&entry.key_span.line) {
            Node::leaf(entry.value.span, Content::Broken)
        } else if levels > 1 {
            set_aside(&entry.value, lost_lines, levels - 1)
        } else {
            Rc::clone(&entry.value)
        };
        Entry { value, ..entry.clone() }
    });
    Node::leaf(node.span, Content::Map(entries.collect()))
}
