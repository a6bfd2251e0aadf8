//! From a pipeline file on disk to a validated pipeline with its sources in place and pinned.
//!
//! Paths in `file:` sources are taken from the pipeline file's folder, so that a pipeline means the same wherever it
//! is started from.

use crate::{
    console::Console,
    failure::Failure,
    home::Home,
    pull_view::PullView,
    sources::{DigestCache, PullEvent, Role, SourceError, Sources},
};
use rallrec_core::{
    plan::Pins,
    spec::{Pipeline, compile_whole},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// What a pipeline's declared models and data sets turned out to be.
#[derive(Clone, Debug, Default)]
pub struct Pinned {
    /// Digests by declared name.
    pub pins: Pins,
    /// Where the content of each digest lies: a folder, or one file.
    pub places: BTreeMap<String, PathBuf>,
}

/// A pipeline file with the files that it includes, each read once.
#[derive(Debug)]
pub struct Text {
    name: String,
    text: String,
    included: Mutex<BTreeMap<PathBuf, Result<String, String>>>,
}

impl Text {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is no text.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let bytes = fs::read(path).map_err(|e| Failure::Unreachable(format!("{name}: {e}")))?;
        let text = text(bytes).map_err(|reason| Failure::Invalid(format!("{name}: {reason}")))?;
        Ok(Self { name, text, included: Mutex::default() })
    }

    /// The pipeline with these values of its parameters.
    ///
    /// # Errors
    /// [`Failure::Pipeline`] with every finding.
    pub fn compile(&self, overrides: &[(String, String)]) -> Result<Pipeline, Failure> {
        let read = |path: &Path| self.included(path);
        compile_whole(&self.name, &self.text, overrides, &read).map_err(|found| Failure::Pipeline(found.to_string()))
    }

    /// The text of an included file: what it was when it was first asked for.
    fn included(&self, path: &Path) -> Result<String, String> {
        let mut included = self.included.lock().unwrap_or_else(PoisonError::into_inner);
        let read = || fs::read(path).map_err(|e| e.to_string()).and_then(text);
        included.entry(path.to_owned()).or_insert_with(read).clone()
    }
}

fn text(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|e| format!("not UTF-8 text (byte {})", e.utf8_error().valid_up_to()))
}

/// Reads and compiles a pipeline file. Warnings are printed.
///
/// # Errors
/// [`Failure::Pipeline`] with every finding; [`Failure::Unreachable`] when the file cannot be read.
pub fn pipeline(path: &Path, set: &[String], console: &Console) -> Result<Pipeline, Failure> {
    let overrides = overrides(set)?;
    let pipeline = Text::read(path)?.compile(&overrides)?;
    if !pipeline.warnings.is_empty() {
        console.note(pipeline.warnings.to_string().trim_end());
    }
    Ok(pipeline)
}

/// The `--set NAME=VALUE` of a command line.
///
/// # Errors
/// When one is not of that form.
pub fn overrides(set: &[String]) -> Result<Vec<(String, String)>, Failure> {
    set.iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.to_owned())),
            _ => Err(Failure::Invalid(format!("--set {text}: write NAME=VALUE, for example --set alpha=0.3"))),
        })
        .collect()
}

/// What to do about a source of the catalogue that is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Pull it.
    Pull,
    /// Fail.
    Refuse,
    /// Go on with the digest that it is expected to have: enough to plan with, not to run.
    Expect,
}

/// Checks that every catalogue name of a pipeline exists and has the right role. Touches nothing.
///
/// # Errors
/// [`Failure::Invalid`] that names every wrong source.
pub fn check_names(pipeline: &Pipeline, sources: &Sources) -> Result<(), Failure> {
    let mut wrong = Vec::new();
    for declared in declared(pipeline).filter(Declared::is_catalogued) {
        let why = match sources.entry(declared.source) {
            Ok(entry) if entry.role == declared.role => continue,
            Ok(entry) => format!("`{}` is {}, not {}", declared.source, entry.role.noun(), declared.role.noun()),
            Err(error) => error.to_string(),
        };
        wrong.push(format!("{}.{}: {why}", declared.role.command(), declared.name));
    }
    if wrong.is_empty() { Ok(()) } else { Err(Failure::Invalid(wrong.join("\n"))) }
}

/// Finds, pulls if allowed, and pins everything that a pipeline declares.
///
/// # Errors
/// See [`SourceError`].
pub fn pin(
    pipeline: &Pipeline,
    file: &Path,
    home: &Home,
    sources: &Sources,
    absent: Absent,
    on: &dyn Fn(PullEvent),
) -> Result<Pinned, Failure> {
    check_names(pipeline, sources)?;
    let base = file.parent().unwrap_or(Path::new(""));
    let mut cache = DigestCache::open(home.digests());
    let mut pinned = Pinned::default();
    for declared in declared(pipeline) {
        let (digest, place) = match declared.source.strip_prefix("file:") {
            Some(path) => {
                let path = base.join(path);
                (cache.digest(&path)?, path)
            }
            None => catalogued(declared.role, declared.source, sources, absent, on)?,
        };
        check_sha256(&declared, &digest)?;
        if let (Role::Model, Some(bytes)) = (declared.role, bytes_of(&place)) {
            pinned.pins.model_bytes.insert(declared.name.to_owned(), bytes);
        }
        pinned.places.insert(digest.clone(), place);
        let digests = match declared.role {
            Role::Model => &mut pinned.pins.models,
            Role::Data => &mut pinned.pins.data,
        };
        digests.insert(declared.name.to_owned(), digest);
    }
    cache.save();
    Ok(pinned)
}

/// Bytes of a file, or of a folder's files; `None` when they are not there to be counted.
fn bytes_of(place: &Path) -> Option<u64> {
    let there = fs::metadata(place).ok()?;
    if there.is_file() {
        return Some(there.len());
    }
    fs::read_dir(place).ok()?.try_fold(0, |bytes, entry| {
        let entry = fs::metadata(entry.ok()?.path()).ok()?;
        Some(if entry.is_file() { bytes + entry.len() } else { bytes })
    })
}

/// Holds a source against the SHA-256 that the pipeline wants it to have.
fn check_sha256(declared: &Declared<'_>, found: &str) -> Result<(), Failure> {
    match declared.sha256 {
        Some(wanted) if wanted != found => Err(Failure::Invalid(format!(
            "models.{}: {} has SHA-256 {found}, and the pipeline wants {wanted}; mend one of them",
            declared.name, declared.source
        ))),
        _ => Ok(()),
    }
}

/// Digest and place of a source of the catalogue. A source of one file is that file, as a `file:` source would be.
fn catalogued(
    role: Role,
    name: &str,
    sources: &Sources,
    absent: Absent,
    on: &dyn Fn(PullEvent),
) -> Result<(String, PathBuf), Failure> {
    let folder = sources.folder(name);
    let record = match (sources.pulled(name, false)?, absent) {
        (Some(record), _) => record,
        (None, Absent::Pull) => sources.pull(name, None, on)?,
        (None, Absent::Expect) => {
            let digest = if name.contains(':') { None } else { sources.entry(name)?.expected_digest() };
            return Ok((digest.unwrap_or_else(|| format!("{name}, not pulled yet")), folder));
        }
        (None, Absent::Refuse) => {
            return Err(SourceError::Offline { name: name.to_owned(), folder, command: role.command() }.into());
        }
    };
    let place = match record.files.as_slice() {
        [file] => folder.join(&file.name),
        _ => folder,
    };
    Ok((record.digest, place))
}

/// Pins with pulls shown on the terminal.
///
/// # Errors
/// As [`pin`].
pub fn pin_shown(
    pipeline: &Pipeline,
    file: &Path,
    home: &Home,
    sources: &Sources,
    absent: Absent,
    console: &Console,
) -> Result<Pinned, Failure> {
    let view = PullView::new(console.clone());
    pin(pipeline, file, home, sources, absent, &|event| view.show(event))
}

/// Names of the declared catalogue sources that are not here.
///
/// # Errors
/// When a source that is here cannot be read.
pub fn absent(pipeline: &Pipeline, sources: &Sources) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for declared in declared(pipeline).filter(|d| !d.source.starts_with("file:")) {
        if sources.pulled(declared.source, false)?.is_none() && !names.iter().any(|n| n == declared.source) {
            names.push(declared.source.to_owned());
        }
    }
    Ok(names)
}

/// Something that a pipeline needs on this machine.
struct Declared<'p> {
    role: Role,
    name: &'p str,
    source: &'p str,
    sha256: Option<&'p str>,
}

impl Declared<'_> {
    fn is_catalogued(&self) -> bool {
        !self.source.contains(':')
    }
}

/// Everything that must be here: models, tokenizers of models behind servers, and data.
fn declared(pipeline: &Pipeline) -> impl Iterator<Item = Declared<'_>> {
    let models = pipeline.models.iter().filter_map(|m| {
        let sha256 = m.pinned_sha256();
        Some(Declared { role: Role::Model, name: &m.name, source: m.source()?, sha256 })
    });
    let data = pipeline.data.iter();
    models.chain(data.map(|s| Declared { role: Role::Data, name: &s.name, source: &s.source, sha256: None }))
}
