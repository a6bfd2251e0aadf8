//! YAML text to a tree in which every key and value knows its place.
//!
//! The events come from serde-saphyr's own parser. Its deserializer is not used: it stops at the first error and
//! cannot say where a key stands. Limits are set here on purpose: a file of 20,000 stages passes, an anchor bomb does
//! not, because aliases are charged with everything that they stand for.

use super::diagnostics::{Collector, Span, shown};
use serde_saphyr::granit_parser::{self as granit, ErrorKind, Event, Marker, Options, Parser, ScalarStyle, ScanError};
use std::{collections::HashMap, rc::Rc};

/// Largest file.
pub(super) const MAX_BYTES: usize = 16 << 20;
/// Most nodes of a file, its aliases written out.
const MAX_NODES: usize = 2_000_000;
/// Deepest nesting, aliases written out; the language itself needs six levels.
pub(super) const MAX_DEPTH: usize = 64;

/// A node of the file.
#[derive(Debug)]
pub(super) struct Node {
    /// Where it begins.
    pub(super) span: Span,
    /// What it is.
    pub(super) content: Content,
    /// Nodes in it, itself and written-out aliases included.
    weight: usize,
    /// Levels in it, itself included.
    depth: usize,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Content {
    /// Text, and whether it was written without quotes (so that `5` is a number and `"5"` is not).
    Scalar { text: String, plain: bool },
    /// `[a, b]`.
    List(Vec<Rc<Node>>),
    /// `{a: b}`, in the order of the file, merge keys applied.
    Map(Vec<Entry>),
    /// Was reported already: to be taken as right by everything that follows.
    Broken,
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The key's text.
    pub(super) key: Rc<str>,
    /// Where the key stands.
    pub(super) key_span: Span,
    /// The value.
    pub(super) value: Rc<Node>,
}

impl Node {
    /// A leaf that was not in the file, or could not be read.
    pub(super) fn leaf(span: Span, content: Content) -> Rc<Node> {
        Rc::new(Node { span, content, weight: 1, depth: 1 })
    }

    /// The same with every place some lines further down: where the file stands after others.
    pub(super) fn moved(self: &Rc<Self>, lines: u32) -> Rc<Node> {
        moved(self, lines, &mut HashMap::new())
    }

    /// Kind of node, for messages.
    pub(super) fn describe(&self) -> String {
        match &self.content {
            Content::Scalar { text, plain: true } if text.is_empty() || text == "~" || text == "null" => {
                "nothing".into()
            }
            Content::Scalar { text, plain: true } => format!("`{}`", shown(text)),
            Content::Scalar { text, plain: false } => format!("the text \"{}\"", shown(text)),
            Content::List(_) => "a list".into(),
            Content::Map(_) => "a mapping".into(),
            Content::Broken => "something unreadable".into(),
        }
    }
}

/// [`Node::moved`], with what is moved already by its address, so that aliases stay one node.
fn moved(node: &Rc<Node>, lines: u32, done: &mut HashMap<*const Node, Rc<Node>>) -> Rc<Node> {
    if let Some(done) = done.get(&Rc::as_ptr(node)) {
        return Rc::clone(done);
    }
    let content = match &node.content {
        Content::Scalar { text, plain } => Content::Scalar { text: text.clone(), plain: *plain },
        Content::List(list) => Content::List(list.iter().map(|node| moved(node, lines, done)).collect()),
        Content::Map(entries) => Content::Map(
            entries
                .iter()
                .map(|entry| Entry {
                    key: Rc::clone(&entry.key),
                    key_span: entry.key_span.moved(lines),
                    value: moved(&entry.value, lines, done),
                })
                .collect(),
        ),
        Content::Broken => Content::Broken,
    };
    let out = Rc::new(Node { span: node.span.moved(lines), content, weight: node.weight, depth: node.depth });
    done.insert(Rc::as_ptr(node), Rc::clone(&out));
    out
}

/// A YAML error with its place, in the file's lines.
#[derive(Debug)]
pub(super) struct SyntaxError {
    /// Where.
    pub(super) span: Span,
    /// What.
    pub(super) kind: ErrorKind,
}

/// A collection that is still open.
struct Frame {
    span: Span,
    anchor: usize,
    list: Option<Vec<Rc<Node>>>,
    entries: Vec<Entry>,
    merges: Vec<Rc<Node>>,
    key: Option<Option<(Rc<str>, Span)>>,
    seen: HashMap<Rc<str>, Span>,
    weight: usize,
    depth: usize,
}

/// Builds the tree of one document.
struct Builder<'a> {
    text: &'a str,
    out: &'a mut Collector,
    frames: Vec<Frame>,
    anchors: HashMap<usize, Option<Rc<Node>>>,
    total: usize,
    root: Option<Rc<Node>>,
}

/// Why building stopped.
pub(super) enum Stopped {
    /// The text is not YAML.
    Syntax(SyntaxError),
    /// A limit was passed; already reported.
    Refused,
}

/// Reads the one document of `text`. Errors that do not stop reading go to `out`.
///
/// # Errors
/// When the text is not YAML, or passes a limit.
pub(super) fn parse(text: &str, out: &mut Collector) -> Result<Option<Rc<Node>>, Stopped> {
    let mut builder = Builder { text, out, frames: Vec::new(), anchors: HashMap::new(), total: 0, root: None };
    let mut documents = 0;
    for event in Parser::new_from_str_with_options(text, options()) {
        let (event, span) = event.map_err(|e| Stopped::Syntax(syntax_error(&e)))?;
        if matches!(event, Event::DocumentStart(..)) {
            documents += 1;
            if documents > 1 {
                let message = "a second document begins here, but a file holds one pipeline";
                builder.out.error(point(span.start, 3), message, Some("put it into a file of its own".to_owned()));
                break;
            }
        }
        builder.event(event, span)?;
    }
    Ok(builder.root)
}

/// The first syntax error of a piece of text, if there is one.
pub(super) fn first_syntax_error(text: &str) -> Option<SyntaxError> {
    Parser::new_from_str_with_options(text, options()).find_map(|event| event.err().map(|e| syntax_error(&e)))
}

fn options() -> Options {
    granit::options! {
        emit_unresolved_aliases: true,
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    }
}

fn syntax_error(error: &ScanError) -> SyntaxError {
    SyntaxError { span: point(*error.marker(), 1), kind: error.kind().clone() }
}

fn point(mark: Marker, width: usize) -> Span {
    let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Span { line: narrow(mark.line()).max(1), column: narrow(mark.col()).saturating_add(1), width: narrow(width.max(1)) }
}

fn place(span: granit::Span) -> Span {
    // A collection or a block of text is marked at its beginning only.
    let width = if span.start.line() == span.end.line() { span.end.col().saturating_sub(span.start.col()) } else { 1 };
    point(span.start, width)
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: granit::Span) -> Result<(), Stopped> {
        let at = place(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let text_tag = tag.as_ref().is_some_and(|t| t.is_yaml_core_schema_tag("str"));
                if let (Some(tag), false) = (&tag, text_tag) {
                    self.tag_error(&tag.original(), span);
                }
                let plain = style == ScalarStyle::Plain && !text_tag;
                self.charge(1, at)?;
                let node = Node::leaf(at, Content::Scalar { text: text.into_owned(), plain });
                self.define(anchor, &node);
                self.value(node)
            }
            Event::SequenceStart(_, anchor, tag) => self.open(at, anchor, Some(Vec::new()), tag.as_deref(), span),
            Event::MappingStart(_, anchor, tag) => self.open(at, anchor, None, tag.as_deref(), span),
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(id) => match self.anchors.get(&id).cloned().flatten() {
                Some(node) => {
                    self.charge(node.weight, at)?;
                    self.value(node)
                }
                None => {
                    let name = self.slice(span).to_owned();
                    self.out.error(
                        at,
                        format!("`{name}` stands inside what it stands for"),
                        Some("a value can't contain itself: write it out, or move the anchor".to_owned()),
                    );
                    self.value(Node::leaf(at, Content::Broken))
                }
            },
            Event::UnresolvedAlias(name) => {
                self.out.error(
                    at,
                    format!("there is no anchor `&{}` before this alias", shown(&name)),
                    Some(format!(
                        "write `&{0}` before the value that `*{0}` repeats; quote a text that begins with `*`",
                        shown(&name)
                    )),
                );
                self.value(Node::leaf(at, Content::Broken))
            }
            _ => Ok(()),
        }
    }

    fn slice(&self, span: granit::Span) -> &str {
        span.slice(self.text).unwrap_or("an alias")
    }

    fn tag_error(&mut self, tag: &str, span: granit::Span) {
        let start = span.tag_start().unwrap_or(span.start);
        self.out.error(
            point(start, tag.chars().count()),
            format!("the tag `{}` has no meaning here", shown(tag)),
            Some("remove it; to make a number or a word a text, put it in quotes".to_owned()),
        );
    }

    /// Counts nodes, aliases written out.
    fn charge(&mut self, weight: usize, at: Span) -> Result<(), Stopped> {
        self.total = self.total.saturating_add(weight);
        if self.total <= MAX_NODES {
            return Ok(());
        }
        self.out.error(
            at,
            format!("with its aliases written out, the file has more than {MAX_NODES} values by here"),
            Some("use fewer aliases (`*name`), or split the pipeline".to_owned()),
        );
        Err(Stopped::Refused)
    }

    fn define(&mut self, anchor: usize, node: &Rc<Node>) {
        if anchor != 0 {
            self.anchors.insert(anchor, Some(Rc::clone(node)));
        }
    }

    fn open(
        &mut self,
        at: Span,
        anchor: usize,
        list: Option<Vec<Rc<Node>>>,
        tag: Option<&granit::Tag>,
        span: granit::Span,
    ) -> Result<(), Stopped> {
        if let Some(tag) = tag {
            self.tag_error(&tag.original(), span);
        }
        self.charge(1, at)?;
        if anchor != 0 {
            self.anchors.insert(anchor, None);
        }
        self.frames.push(Frame {
            span: at,
            anchor,
            list,
            entries: Vec::new(),
            merges: Vec::new(),
            key: None,
            seen: HashMap::new(),
            weight: 1,
            depth: 1,
        });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Stopped> {
        let Some(mut frame) = self.frames.pop() else { return Ok(()) };
        for source in std::mem::take(&mut frame.merges) {
            self.merge(&mut frame, &source)?;
        }
        let content = match frame.list {
            Some(list) => Content::List(list),
            None => Content::Map(frame.entries),
        };
        let node = Rc::new(Node { span: frame.span, content, weight: frame.weight, depth: frame.depth });
        self.define(frame.anchor, &node);
        self.value(node)
    }

    /// A finished node, as a root, an element, a key or a value.
    fn value(&mut self, node: Rc<Node>) -> Result<(), Stopped> {
        let Some(frame) = self.frames.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        frame.weight = frame.weight.saturating_add(node.weight);
        frame.depth = frame.depth.max(node.depth + 1);
        if frame.depth > MAX_DEPTH {
            self.out.error(
                node.span,
                format!("values are nested more than {MAX_DEPTH} levels deep here"),
                Some("a pipeline needs six levels: look for aliases of aliases".to_owned()),
            );
            return Err(Stopped::Refused);
        }
        if let Some(list) = &mut frame.list {
            list.push(node);
            return Ok(());
        }
        match frame.key.take() {
            None => self.key(&node),
            Some(None) => {}
            Some(Some((key, _))) if &*key == "<<" => frame.merges.push(node),
            Some(Some((key, key_span))) => frame.entries.push(Entry { key, key_span, value: node }),
        }
        Ok(())
    }

    /// Takes a node as a key; a key that is no text, or not the first of its name, is reported and its value dropped.
    fn key(&mut self, node: &Rc<Node>) {
        let Some(frame) = self.frames.last_mut() else { return };
        let text = match &node.content {
            Content::Scalar { text, .. } if !text.is_empty() => Rc::<str>::from(text.as_str()),
            Content::Broken => {
                frame.key = Some(None);
                return;
            }
            _ => {
                self.out.error(
                    node.span,
                    format!("a key must be a word, not {}", node.describe()),
                    Some("write `name: value`".to_owned()),
                );
                frame.key = Some(None);
                return;
            }
        };
        if let Some(first) = frame.seen.get(&text).filter(|_| &*text != "<<") {
            self.out.error(
                node.span,
                format!("`{}` stands here twice; the first is on line {}", shown(&text), first.line),
                Some("remove or rename one of the two".to_owned()),
            );
            frame.key = Some(None);
            return;
        }
        frame.seen.insert(Rc::clone(&text), node.span);
        frame.key = Some(Some((text, node.span)));
    }

    /// Applies one `<<`: keys that the mapping does not have itself.
    fn merge(&mut self, frame: &mut Frame, source: &Rc<Node>) -> Result<(), Stopped> {
        match &source.content {
            Content::Map(entries) => {
                self.charge(entries.len(), source.span)?;
                for entry in entries {
                    if !frame.seen.contains_key(&entry.key) {
                        frame.seen.insert(Rc::clone(&entry.key), entry.key_span);
                        frame.entries.push(entry.clone());
                    }
                }
                frame.weight = frame.weight.saturating_add(source.weight);
            }
            Content::List(sources)
                if sources.iter().all(|s| matches!(s.content, Content::Map(_) | Content::Broken)) =>
            {
                for source in sources {
                    self.merge(frame, source)?;
                }
            }
            Content::Broken => {}
            _ => self.out.error(
                source.span,
                format!("`<<` merges a mapping, or a list of mappings, not {}", source.describe()),
                Some("write `<<: *name`, where `&name` stands before a mapping".to_owned()),
            ),
        }
        Ok(())
    }
}
