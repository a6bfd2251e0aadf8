//! Pipeline files: YAML text to a typed, validated [`Pipeline`], or everything that is wrong with it.
//!
//! [`compile`] is the only way in. It reads text, never files, and knows nothing of digests, stores or machines:
//! what a run would reuse is [`crate::plan`]'s to say. The language is described in `docs/pipeline.md`, and every
//! table that it is checked against lives in [`crate::kind`] and [`crate::params`].
//!
//! The way of a file: `node` (text to a tree with places), `syntax` and `recover` (tell a syntax error and go on), `include` (several files as
//! one tree), `values` (scalars,
//! `${…}`, types, ranges), `lower`, `models`, `stage` and `sweep` (keys), `rules` (what fields mean together), `graph` (references
//! between stages). All of them report to one `diagnostics` collector and go on. [`gate`] reads the gate files of `compare` by the same means.

mod diagnostics;
mod files;
pub mod gate;
mod graph;
mod include;
mod lower;
mod mapping;
mod models;
mod node;
mod recover;
mod rules;
mod stage;
mod sweep;
mod syntax;
mod values;

pub use diagnostics::{Diagnostic, Diagnostics, Severity, Span};
pub use include::ReadFile;

use crate::{
    ids::StageName,
    kind::StageKind,
    models::Model,
    params::StageParams,
    plan::{Resources, Retry},
    sweep::Sweep,
};
use diagnostics::Collector;
use files::Files;

/// The format version that this program reads.
pub const FORMAT_VERSION: u64 = 1;
/// Rows a shard where a file does not say.
pub const DEFAULT_SHARD_ROWS: u64 = 1024;
/// Seed where a file does not say.
pub const DEFAULT_SEED: u64 = 42;

/// Bounds of the settings that every kind of stage has, as `(smallest, largest)`.
pub(crate) mod bounds {
    pub(crate) const SEED: (f64, f64) = (0.0, 9_007_199_254_740_992.0);
    pub(crate) const SHARD_ROWS: (f64, f64) = (1.0, 1e9);
    pub(crate) const MEMORY_MB: (f64, f64) = (1.0, 16_777_216.0);
    /// 0 says that the stage needs none, whatever its model seems to take.
    pub(crate) const GPU_MEMORY_MB: (f64, f64) = (0.0, 16_777_216.0);
    pub(crate) const LIMIT: (f64, f64) = (1.0, 1_000_000.0);
    pub(crate) const MAX_ATTEMPTS: (f64, f64) = (1.0, 100.0);
    pub(crate) const BACKOFF_MS: (f64, f64) = (0.0, 300_000.0);
    pub(crate) const BAD_ROWS: (f64, f64) = (0.0, 1e12);
}

/// A valid pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// Its name.
    pub name: String,
    /// Language models, in the order of the file.
    pub models: Vec<Model>,
    /// Data sets, in the order of the file.
    pub data: Vec<Source>,
    /// Stages, in the order of the file, which need not be an order in which they can run.
    pub stages: Vec<Stage>,
    /// What to try, for `rallrec sweep`; `run` takes the parameters as the file has them.
    pub sweep: Option<Sweep>,
    /// What the file says without effect.
    pub warnings: Diagnostics,
}

/// A declared data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name in the pipeline.
    pub name: String,
    /// Where it comes from: a catalogue name, or `file:PATH`.
    pub source: String,
}

/// A valid stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its name.
    pub name: StageName,
    /// Its parameters, which tell its kind.
    pub params: StageParams,
    /// What it reads, in the order of its kind's ports; the entries of a list in their order.
    pub needs: Vec<Input>,
    /// Name of its model.
    pub model: Option<String>,
    /// Name of its data set.
    pub data: Option<String>,
    /// Rows a shard; `None` for kinds that are one task.
    pub shard_rows: Option<u64>,
    /// What a task needs of its machine.
    pub resources: Resources,
    /// When a failed task is tried again.
    pub retry: Retry,
    /// Seed of everything random.
    pub seed: u64,
    /// Rows that may fail before the stage does.
    pub max_bad_rows: u64,
}

impl Stage {
    /// Its kind.
    pub fn kind(&self) -> StageKind {
        self.params.kind()
    }
}

/// One input of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Name of the port.
    pub port: &'static str,
    /// Position of the stage that makes the table, in [`Pipeline::stages`].
    pub stage: usize,
    /// Name of the table.
    pub table: &'static str,
}

/// Reads a pipeline file that includes no other. `file_name` is only for messages; `overrides` are the `--set NAME=VALUE`,
/// the last of a name counts.
///
/// # Errors
/// Every error of the file, sorted by place, each with what to do about it.
pub fn compile(file_name: &str, text: &str, overrides: &[(String, String)]) -> Result<Pipeline, Diagnostics> {
    compile_whole(file_name, text, overrides, &|_| Err("no other file is at hand".to_owned()))
}

/// Reads a pipeline file and all that it includes: `read_file` is asked for the text of each, by its path as seen from
/// where `file_name` is seen from.
///
/// # Errors
/// As [`compile`]; a finding names the file that it is in.
pub fn compile_whole(
    file_name: &str,
    text: &str,
    overrides: &[(String, String)],
    read_file: &ReadFile<'_>,
) -> Result<Pipeline, Diagnostics> {
    let mut out = Collector::default();
    let mut files = Files::of(file_name, text);
    if text.len() > node::MAX_BYTES {
        out.error(
            Span { line: 1, column: 1, width: 1 },
            format!("the file has {} bytes; a pipeline has {} at most", text.len(), node::MAX_BYTES),
            Some("split the pipeline".to_owned()),
        );
        return Err(out.finish(&Files::of(file_name, "")));
    }
    let Some(whole) = include::read(&mut files, overrides, read_file, &mut out) else {
        return Err(out.finish(&files));
    };
    let (pipeline, out) = lower::lower(whole, files.clone(), overrides, out);
    let refused = out.has_errors();
    let mut findings = out.finish(&files);
    if refused {
        // What has no effect in a wrong file says little: the mistake may be the reason.
        findings.items.retain(|d| d.severity == Severity::Error);
    }
    match pipeline {
        Some(pipeline) if !refused => Ok(Pipeline { warnings: findings, ..pipeline }),
        _ => Err(findings),
    }
}
