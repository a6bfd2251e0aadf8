//! `include:` puts other files' parameters, models, data sets, limits and stages below those of a pipeline.
//!
//! Files are merged as trees, before anything is checked, so that a pipeline of pieces means just what the same text in
//! one file would. This module asks for the files' texts and never opens one. What an included file says of itself
//! (`name`, `seed`, `sweep`) is left out, and so are its stages that nothing in the pipeline's own file needs.

use super::{
    diagnostics::{Collector, Span, shown},
    files::Files,
    node::{Content, Entry, MAX_BYTES, Node},
    recover::{self, Recovered},
    values::{get, is_name},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Component, Path, PathBuf},
    rc::Rc,
};

/// Most files of a pipeline.
const MAX_FILES: usize = 64;
/// Sections whose entries are merged.
const SECTIONS: &[&str] = &["params", "models", "data", "limits", "stages"];

/// Gives the text of an included file, or why it cannot.
pub type ReadFile<'a> = dyn Fn(&Path) -> Result<String, String> + 'a;

/// A pipeline with all that it includes, as one tree.
pub(super) struct Whole {
    /// The merged tree, and what could not be read.
    pub(super) file: Recovered,
    /// Outer levels of the included files, each for its own checks.
    pub(super) included: Vec<Rc<Node>>,
    /// Parameters that paths of files use.
    pub(super) used: BTreeSet<String>,
}

/// Reads `text`, which is already among `files`, and all that it includes. `None` when nothing can be said about it.
pub(super) fn read(
    files: &mut Files,
    overrides: &[(String, String)],
    read_file: &ReadFile<'_>,
    out: &mut Collector,
) -> Option<Whole> {
    let (name, text) = files.main();
    let own = recover::read(&text, out)?;
    let Some(root) = own.root.clone().filter(|root| matches!(root.content, Content::Map(_))) else {
        return Some(Whole { file: own, included: Vec::new(), used: BTreeSet::new() });
    };
    let mut reader = IncludeReader {
        files,
        read_file,
        out,
        params: given_params(&root, overrides),
        used: BTreeSet::new(),
        seen: BTreeSet::from([lexical(Path::new(&*name))]),
        lost_names: own.lost_names,
        included: Vec::new(),
    };
    let below = reader.all_of(&root, &lexical(Path::new(&*name)));
    let IncludeReader { used, lost_names, included, .. } = reader;
    let root = match below {
        Some(below) => only_needed(&merged(&root, &below), &root),
        None => root,
    };
    Some(Whole { file: Recovered { root: Some(root), lost_names }, included, used })
}

/// Values that paths may use: the parameters of the pipeline's own file, or the `--set` of a command line.
fn given_params(root: &Node, overrides: &[(String, String)]) -> BTreeMap<String, String> {
    let mut params = BTreeMap::new();
    for entry in section(root, "params") {
        if let Content::Scalar { text, .. } = &entry.value.content {
            params.insert(entry.key.to_string(), text.clone());
        }
    }
    params.extend(overrides.iter().cloned());
    params
}

struct IncludeReader<'a, 'f> {
    files: &'a mut Files,
    read_file: &'a ReadFile<'f>,
    out: &'a mut Collector,
    params: BTreeMap<String, String>,
    used: BTreeSet<String>,
    /// Files that are in already.
    seen: BTreeSet<PathBuf>,
    lost_names: HashSet<String>,
    included: Vec<Rc<Node>>,
}

impl IncludeReader<'_, '_> {
    /// What a file includes, as one tree; later files stand above earlier ones.
    fn all_of(&mut self, root: &Rc<Node>, path: &Path) -> Option<Rc<Node>> {
        let Content::Map(entries) = &root.content else { return None };
        let node = get(entries, "include")?;
        let mut whole: Option<Rc<Node>> = None;
        for entry in self.paths(node) {
            let Some(found) = self.one(&entry, path) else { continue };
            whole = Some(match whole {
                Some(below) => merged(&found, &below),
                None => found,
            });
        }
        whole
    }

    /// The entries of `include:`.
    fn paths(&mut self, node: &Rc<Node>) -> Vec<Rc<Node>> {
        match &node.content {
            Content::List(list) => list.clone(),
            Content::Scalar { text, .. } if !text.is_empty() => vec![Rc::clone(node)],
            Content::Broken => Vec::new(),
            _ => {
                let message = format!("`include` must be a list of files, not {}", node.describe());
                self.out.error(node.span, message, Some("for example `include: [parts/items.yaml]`".to_owned()));
                Vec::new()
            }
        }
    }

    /// One file with all that it includes; `None` when it is in already, or after reporting.
    fn one(&mut self, node: &Rc<Node>, from: &Path) -> Option<Rc<Node>> {
        let text = match &node.content {
            Content::Scalar { text, .. } if !text.is_empty() => text,
            Content::Broken => return None,
            _ => {
                let message = format!("a path of a file must stand here, not {}", node.describe());
                self.out.error(node.span, message, Some("for example `parts/items.yaml`".to_owned()));
                return None;
            }
        };
        let path = lexical(&from.parent().unwrap_or(Path::new("")).join(self.filled(text, node.span)?));
        if !self.seen.insert(path.clone()) {
            return None;
        }
        let name = path.display().to_string();
        if self.files.count() == MAX_FILES {
            let message = format!("`{}` is one file too many: a pipeline has {MAX_FILES} at most", shown(&name));
            self.out.error(node.span, message, Some("join some of them".to_owned()));
            return None;
        }
        let text = self.text(&path, node.span)?;
        let before = self.files.add(&name, &text);
        let mut own = Collector::default();
        let found = recover::read(&text, &mut own);
        self.out.absorb(own.moved(before));
        let found = found?;
        self.lost_names.extend(found.lost_names);
        let root = found.root?.moved(before);
        if !matches!(root.content, Content::Map(_)) {
            let message = format!("a file that is included must be a mapping, not {}", root.describe());
            self.out.error(root.span, message, Some("begin it with `rallrec: 1` and `stages:`".to_owned()));
            return None;
        }
        self.included.push(Rc::clone(&root));
        Some(match self.all_of(&root, &path) {
            Some(below) => merged(&root, &below),
            None => root,
        })
    }

    fn text(&mut self, path: &Path, span: Span) -> Option<String> {
        match (self.read_file)(path) {
            Ok(text) if text.len() <= MAX_BYTES => Some(text),
            Ok(text) => {
                let message = format!("{} has {} bytes; a file has {MAX_BYTES} at most", path.display(), text.len());
                self.out.error(span, message, Some("split it".to_owned()));
                None
            }
            Err(reason) => {
                let message = format!("{} cannot be read: {reason}", path.display());
                let help = "paths are seen from the folder of the file that includes; correct the path";
                self.out.error(span, message, Some(help.to_owned()));
                None
            }
        }
    }

    /// A path with its `${…}` filled in.
    fn filled(&mut self, text: &str, span: Span) -> Option<String> {
        let (mut filled, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once("${") {
            let name = after.split_once('}').map(|(name, _)| name).filter(|name| is_name(name));
            let value = name.and_then(|name| Some((name, self.params.get(name)?.clone())));
            let Some((name, value)) = value else {
                let message = match name {
                    Some(name) => format!("`{name}` is not declared under `params` of the pipeline's own file"),
                    None => "a `${` without its name and `}`".to_owned(),
                };
                let known: Vec<&str> = self.params.keys().map(String::as_str).collect();
                let help = name.and_then(|name| self.out.did_you_mean(name, known, "its parameters"));
                self.out.error(span, message, help.or_else(|| Some("declare it there, or write the path out".into())));
                return None;
            };
            filled.push_str(before);
            filled.push_str(&value);
            rest = after.split_at(name.len() + 1).1;
            self.used.insert(name.to_owned());
        }
        filled.push_str(rest);
        Some(filled)
    }
}

/// `a/b/../c` as `a/c`: one name for each file, as far as names tell.
fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// The entries of a section of a file.
fn section<'n>(root: &'n Node, name: &str) -> &'n [Entry] {
    match &root.content {
        Content::Map(entries) => match get(entries, name).map(|node| &node.content) {
            Some(Content::Map(entries)) => entries,
            _ => &[],
        },
        _ => &[],
    }
}

/// Two files as one: entries of a section that both have are `above`'s, stages key by key. All else is `above`'s.
fn merged(above: &Rc<Node>, below: &Rc<Node>) -> Rc<Node> {
    let (Content::Map(own), Content::Map(others)) = (&above.content, &below.content) else { return Rc::clone(above) };
    let mut entries = Vec::with_capacity(own.len());
    for name in SECTIONS {
        let of = |entries: &[Entry]| entries.iter().find(|e| &*e.key == *name).cloned();
        let levels = if *name == "stages" { 3 } else { 1 };
        match (of(own), of(others)) {
            (Some(own), Some(other)) => {
                let value = deep(&own.value, &other.value, levels);
                entries.push(Entry { value, ..own });
            }
            (own, other) => entries.extend(own.or(other)),
        }
    }
    entries.extend(own.iter().filter(|e| !SECTIONS.contains(&&*e.key)).cloned());
    Node::leaf(above.span, Content::Map(entries))
}

/// Mappings merged down to some levels below; anything else, and what lies deeper, is `above`'s.
fn deep(above: &Rc<Node>, below: &Rc<Node>, levels: usize) -> Rc<Node> {
    if matches!(below.content, Content::Broken) && levels > 0 {
        return Rc::clone(below);
    }
    let (Content::Map(own), Content::Map(others)) = (&above.content, &below.content) else { return Rc::clone(above) };
    if levels == 0 {
        return Rc::clone(above);
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(own.len() + others.len());
    for other in others {
        match own.iter().find(|e| e.key == other.key) {
            Some(own) => {
                entries.push(Entry { value: deep(&own.value, &other.value, levels - 1), ..own.clone() });
            }
            None => entries.push(other.clone()),
        }
    }
    let new = own.iter().filter(|e| others.iter().all(|other| other.key != e.key));
    entries.extend(new.cloned());
    Node::leaf(above.span, Content::Map(entries))
}

/// Without the stages that neither stand in the pipeline's own file nor are needed by one that does.
fn only_needed(whole: &Rc<Node>, own: &Node) -> Rc<Node> {
    let stages = section(whole, "stages");
    let by_name: BTreeMap<&str, &Entry> = stages.iter().map(|e| (&*e.key, e)).collect();
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    let mut open: Vec<&str> = section(own, "stages").iter().map(|e| &*e.key).collect();
    while let Some(name) = open.pop() {
        let Some((name, entry)) = by_name.get_key_value(name) else { continue };
        if wanted.insert(name) {
            open.extend(needs_of(&entry.value));
        }
    }
    let Content::Map(entries) = &whole.content else { return Rc::clone(whole) };
    let kept = |entry: &Entry| match &entry.value.content {
        Content::Map(stages) if &*entry.key == "stages" => {
            let stages = stages.iter().filter(|e| wanted.contains(&*e.key)).cloned().collect();
            Entry { value: Node::leaf(entry.value.span, Content::Map(stages)), ..entry.clone() }
        }
        _ => entry.clone(),
    };
    let has_stages = matches!(&own.content, Content::Map(entries) if get(entries, "stages").is_some());
    // A file without stages of its own is told so, and not that what it includes has none.
    let entries = entries.iter().filter(|entry| has_stages || &*entry.key != "stages");
    Node::leaf(whole.span, Content::Map(entries.map(kept).collect()))
}

/// Names of the stages that a stage reads.
fn needs_of(stage: &Node) -> Vec<&str> {
    let mut names = Vec::new();
    let mut open: Vec<&Node> = section(stage, "needs").iter().map(|e| &*e.value).collect();
    while let Some(node) = open.pop() {
        match &node.content {
            Content::Scalar { text, .. } => names.push(text.split('.').next().unwrap_or(text)),
            Content::List(list) => open.extend(list.iter().map(|n| &**n)),
            _ => {}
        }
    }
    names
}
