//! What is wrong with a pipeline file, where, and what to do about it.
//!
//! Diagnostics are collected, never thrown at the first one, and printed as `FILE:LINE:COL: error: …`, the form that
//! editors and CI systems link. No colours here: the terminal belongs to the command line.

use super::files::Files;
use serde::Serialize;
use std::{borrow::Cow, collections::BTreeSet, fmt};

/// Longest piece of a source line that is shown, in characters.
const SHOWN_WIDTH: usize = 100;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is accepted, but something in it has no effect.
    Warning,
}

/// A piece of the file on one line, counted from 1, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Span {
    /// Line.
    pub line: u32,
    /// First column.
    pub column: u32,
    /// Columns marked, at least one.
    pub width: u32,
}

impl Span {
    /// The same place, so many lines further down.
    pub(super) fn moved(self, lines: u32) -> Self {
        Self { line: self.line.saturating_add(lines), ..self }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The included file that it is in; `None` for the pipeline's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub included: Option<String>,
    /// Where; `None` for a `--set`, which has no place in the file.
    pub span: Option<Span>,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// The line at fault, without its line break.
    pub source: Option<String>,
}

/// All findings of one file, in the order of their places.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diagnostics {
    /// Name of the file, as the user gave it.
    pub file: String,
    /// The findings.
    pub items: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Number of findings that refuse the file.
    pub fn errors(&self) -> usize {
        self.items.iter().filter(|d| d.severity == Severity::Error).count()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

impl std::error::Error for Diagnostics {}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.items.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            item.write(f, &self.file)?;
        }
        Ok(())
    }
}

impl Diagnostic {
    fn write(&self, f: &mut fmt::Formatter<'_>, file: &str) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        match self.span {
            Some(span) => {
                let file = self.included.as_deref().unwrap_or(file);
                writeln!(f, "{file}:{}:{}: {severity}: {}", span.line, span.column, self.message)?;
            }
            None => writeln!(f, "--set: {severity}: {}", self.message)?,
        }
        let gutter = self.span.map_or(0, |s| s.line.to_string().len());
        if let (Some(span), Some(source)) = (self.span, &self.source) {
            let (shown, before, marked) = excerpt(source, span);
            writeln!(f, "{:gutter$} | {shown}", span.line)?;
            writeln!(f, "{:gutter$} | {:before$}{}", "", "", "^".repeat(marked))?;
        }
        if let Some(help) = &self.help {
            writeln!(f, "{:gutter$} = help: {help}", "")?;
        }
        Ok(())
    }
}

/// The part of a line around a span, and the span's place in it, in terminal cells.
fn excerpt(source: &str, span: Span) -> (String, usize, usize) {
    let chars: Vec<char> = source
        .chars()
        .map(|c| {
            if c == '\t' {
                '→'
            } else if c.is_control() {
                ' '
            } else {
                c
            }
        })
        .collect();
    let at = (span.column as usize).saturating_sub(1).min(chars.len());
    let skip = if at + (span.width as usize).min(40) > SHOWN_WIDTH { at.saturating_sub(SHOWN_WIDTH / 2) } else { 0 };
    let end = (skip + SHOWN_WIDTH).min(chars.len());
    let marked_end = (at + span.width.max(1) as usize).min(end.max(at + 1));
    let lead = if skip > 0 { "… " } else { "" };
    let tail = if end < chars.len() { " …" } else { "" };
    let before = lead.chars().count() + cells(chars.get(skip..at).unwrap_or_default());
    let marked = cells(chars.get(at..marked_end.min(chars.len())).unwrap_or_default()).max(1);
    let shown: String = chars.get(skip..end).unwrap_or_default().iter().collect();
    (format!("{lead}{}{tail}", shown.trim_end()), before, marked)
}

/// Cells that a terminal uses: East Asian wide characters and emoji take two.
fn cells(chars: &[char]) -> usize {
    let wide = |c: char| {
        matches!(c, '\u{1100}'..='\u{115F}' | '\u{2E80}'..='\u{A4CF}' | '\u{AC00}'..='\u{D7A3}' | '\u{F900}'..='\u{FAFF}'
            | '\u{FE30}'..='\u{FE6F}' | '\u{FF00}'..='\u{FF60}' | '\u{FFE0}'..='\u{FFE6}' | '\u{1F300}'..='\u{1FAFF}'
            | '\u{20000}'..='\u{3FFFD}')
    };
    chars.iter().map(|&c| if wide(c) { 2 } else { 1 }).sum()
}

/// Collects findings and turns them into [`Diagnostics`].
#[derive(Debug, Default)]
pub(super) struct Collector {
    items: Vec<Diagnostic>,
    /// Edit-distance cells still to be spent on suggestions, so that a hostile file can't make them slow.
    suggestion_budget: std::cell::Cell<Option<u64>>,
    /// Lines that may hold a secret, and are not shown.
    hidden: BTreeSet<u32>,
}

impl Collector {
    /// Records an error at a place.
    pub(super) fn error(&mut self, span: Span, message: impl Into<String>, help: Option<String>) {
        self.push(Some(span), Severity::Error, message.into(), help);
    }

    /// Records a warning at a place.
    pub(super) fn warning(&mut self, span: Span, message: impl Into<String>, help: Option<String>) {
        self.push(Some(span), Severity::Warning, message.into(), help);
    }

    /// Records an error in a `--set`.
    pub(super) fn override_error(&mut self, message: impl Into<String>, help: Option<String>) {
        self.push(None, Severity::Error, message.into(), help);
    }

    /// Keeps a place's line out of what is printed: it may hold a secret.
    pub(super) fn hide(&mut self, span: Span) {
        self.hidden.insert(span.line);
    }

    fn push(&mut self, span: Option<Span>, severity: Severity, message: String, help: Option<String>) {
        self.items.push(Diagnostic { included: None, span, severity, message, help, source: None });
    }

    /// Takes over the findings of another collector.
    pub(super) fn absorb(&mut self, other: Collector) {
        self.items.extend(other.items);
        self.hidden.extend(other.hidden);
    }

    /// The same findings, so many lines further down.
    pub(super) fn moved(mut self, lines: u32) -> Self {
        self.items.iter_mut().for_each(|item| item.span = item.span.map(|span| span.moved(lines)));
        self.hidden = self.hidden.into_iter().map(|line| line.saturating_add(lines)).collect();
        self
    }

    /// Whether an error was recorded.
    pub(super) fn has_errors(&self) -> bool {
        self.items.iter().any(|d| d.severity == Severity::Error)
    }

    /// The candidate nearest to `word`, upper and lower case alike, if it is near enough to be a slip of the pen.
    pub(super) fn closest<'a>(&self, word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
        let mut budget = self.suggestion_budget.take().unwrap_or(50_000_000);
        let word: Vec<char> = word.chars().take(64).flat_map(char::to_lowercase).collect();
        let limit = (word.len() / 3).clamp(1, 4);
        let mut best: Option<(usize, &str)> = None;
        for candidate in candidates {
            let length = candidate.chars().count();
            let cost = (word.len() * length.min(64)) as u64 + 8;
            if budget < cost {
                break;
            }
            budget -= cost;
            if length.abs_diff(word.len()) > limit {
                continue;
            }
            let other: Vec<char> = candidate.chars().flat_map(char::to_lowercase).collect();
            let distance = edit_distance(&word, &other);
            if distance <= limit && best.is_none_or(|(d, _)| distance < d) {
                best = Some((distance, candidate));
            }
        }
        self.suggestion_budget.set(Some(budget));
        best.map(|(_, candidate)| candidate)
    }

    /// Whether one of the words that are not among `known` looks like a slip for `wanted`.
    pub(super) fn misspelt<'a>(&self, wanted: &str, words: impl IntoIterator<Item = &'a str>, known: &[&str]) -> bool {
        let unknown = words.into_iter().filter(|word| !known.contains(word));
        unknown.into_iter().any(|word| self.closest(word, known.iter().copied()) == Some(wanted))
    }

    /// Help for an unknown word: the nearest candidate, or all of them when they are few.
    pub(super) fn did_you_mean<'a>(
        &self,
        word: &str,
        candidates: impl IntoIterator<Item = &'a str> + Clone,
        what: &str,
    ) -> Option<String> {
        if let Some(near) = self.closest(word, candidates.clone()) {
            return Some(format!("did you mean `{near}`?"));
        }
        let all: Vec<&str> = candidates.into_iter().take(31).collect();
        match all.len() {
            0 | 31 => None,
            _ => Some(format!("{what}: {}", list(&all))),
        }
    }

    /// Sorts, drops repetitions (an alias is checked wherever it is used), and adds the source lines.
    pub(super) fn finish(self, files: &Files) -> Diagnostics {
        let mut items = self.items;
        items.sort_by(|a, b| {
            (a.span.map_or((0, 0), |s| (s.line, s.column)), a.severity, &a.message).cmp(&(
                b.span.map_or((0, 0), |s| (s.line, s.column)),
                b.severity,
                &b.message,
            ))
        });
        items.dedup();
        let lines = files.each().flat_map(|(_, text, before)| (before + 1..).zip(text.lines()));
        let mut wanted = items.iter_mut().peekable();
        for (number, line) in lines {
            while wanted.peek().is_some_and(|d| d.span.is_none_or(|s| s.line <= number)) {
                if let Some(item) = wanted.next()
                    && item.span.is_some_and(|s| s.line == number)
                    && !line.trim().is_empty()
                    && !self.hidden.contains(&number)
                {
                    item.source = Some(line.to_owned());
                }
            }
            if wanted.peek().is_none() {
                break;
            }
        }
        for item in &mut items {
            let Some(span) = item.span else { continue };
            let (file, local) = files.place(span);
            item.included = (!files.is_main(span)).then(|| file.to_owned());
            item.span = Some(local);
        }
        Diagnostics { file: files.main().0.to_string(), items }
    }
}

/// Words in backticks, with commas.
pub(super) fn list<S: AsRef<str>>(words: &[S]) -> String {
    words.iter().map(|w| format!("`{}`", w.as_ref())).collect::<Vec<_>>().join(", ")
}

/// Text for a message: shortened, without control characters.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    if text.chars().count() <= 60 && !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut short: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() > 60 {
        short.push('…');
    }
    Cow::Owned(short)
}

/// Insertions, deletions, replacements, and swaps of neighbours that turn `a` into `b`.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let width = b.len() + 1;
    let mut before_last = vec![0; width];
    let mut last: Vec<usize> = (0..width).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1; width];
        for (j, y) in b.iter().enumerate() {
            let mut cost = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                cost = cost.min(before_last[j - 1] + 1);
            }
            row[j + 1] = cost;
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_near_and_first_wins() {
        let collector = Collector::default();
        assert_eq!(collector.closest("neds", ["kind", "needs", "seed"]), Some("needs"));
        assert_eq!(collector.closest("knid", ["kind", "needs"]), Some("kind"), "a swap is one step");
        assert_eq!(collector.closest("banana", ["kind", "needs"]), None);
        let distance = |a: &str, b: &str| edit_distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!((distance("", "abc"), distance("kitten", "sitting"), distance("ab", "ba")), (3, 3, 1));
    }

    #[test]
    fn long_and_wide_lines_keep_the_caret_in_place() {
        let span = Span { line: 1, column: 3, width: 2 };
        assert_eq!(excerpt("日本ab", span), ("日本ab".into(), 4, 2));
        let long = "x".repeat(500);
        let (shown, before, marked) = excerpt(&long, Span { line: 1, column: 300, width: 3 });
        assert!(shown.starts_with("… x") && shown.ends_with("x …"));
        assert_eq!((before, marked), (52, 3));
    }
}
