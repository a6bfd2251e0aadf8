//! The files of a pipeline as one text: lines are counted through all of them, and told by file.

use super::diagnostics::Span;
use std::rc::Rc;

/// A pipeline's own file, then what it includes.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    files: Vec<File>,
}

#[derive(Clone, Debug)]
struct File {
    name: Rc<str>,
    text: Rc<str>,
    /// Lines of the files before it.
    before: u32,
}

impl Files {
    /// A file that includes nothing.
    pub(super) fn of(name: &str, text: &str) -> Self {
        Self { files: vec![File { name: name.into(), text: text.into(), before: 0 }] }
    }

    /// Adds a file. Gives the lines before its first.
    pub(super) fn add(&mut self, name: &str, text: &str) -> u32 {
        // One line more than it has: what is missing may be told at its end.
        let lines = |file: &File| u32::try_from(file.text.lines().count()).unwrap_or(u32::MAX).saturating_add(1);
        let before = self.files.last().map_or(0, |last| last.before.saturating_add(lines(last)));
        self.files.push(File { name: name.into(), text: text.into(), before });
        before
    }

    /// How many.
    pub(super) fn count(&self) -> usize {
        self.files.len()
    }

    /// Name and text of the pipeline's own file.
    pub(super) fn main(&self) -> (Rc<str>, Rc<str>) {
        self.files.first().map_or_else(Default::default, |main| (Rc::clone(&main.name), Rc::clone(&main.text)))
    }

    /// Whether a place is in the pipeline's own file.
    pub(super) fn is_main(&self, span: Span) -> bool {
        self.files.get(1).is_none_or(|second| span.line <= second.before)
    }

    /// A place in words: `line 5`, or `line 5 of parts/items.yaml`.
    pub(super) fn line(&self, span: Span) -> String {
        let (file, local) = self.place(span);
        if self.is_main(span) { format!("line {}", local.line) } else { format!("line {} of {file}", local.line) }
    }

    /// The file of a place, and the place in it.
    pub(super) fn place(&self, span: Span) -> (&str, Span) {
        let at = self.files.partition_point(|file| file.before < span.line).saturating_sub(1);
        let Some(file) = self.files.get(at) else { return ("", span) };
        (&file.name, Span { line: span.line - file.before, ..span })
    }

    /// The files' names, texts and the lines before each.
    pub(super) fn each(&self) -> impl Iterator<Item = (&str, &str, u32)> {
        self.files.iter().map(|file| (&*file.name, &*file.text, file.before))
    }
}
