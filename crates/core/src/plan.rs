//! The plan: a validated pipeline as a graph of stages with keys, and the arithmetic of its shards.
//!
//! A plan is all that a run is made of: it is journalled, and nothing of the pipeline file is looked up again. It
//! deliberately does not say what is in the store already; that is asked key by key.
//!
//! # Keys
//! [`PlannedStage::fields`] holds everything that decides what a stage's *rows* are: `kind`, `version`, `with.NAME` for
//! each keyed parameter (compact JSON, so floats in their shortest form; one that was added later only where it is not its default), `seed` for kinds that draw, `model.digest` and `model.precision`
//! (of a remote model `model.provider`, `model.model`, `model.revision` and `model.tokenizer`), `data.digest`, and for each input `needs.PORT` = `KEY#TABLE`. An input that takes a list has `needs.PORT.I` =
//! `STAGE=KEY#TABLE`: the stage's name stands in the output, as the system's name (of a variant in a sweep, the name alone). [`PlannedStage::row_key`] is their hash.
//!
//! [`PlannedStage::stage_key`] tells whole tables apart: rows, and how many of them. A row-wise stage hashes `row_key`,
//! its `scope` parameters (limits) and the stage key of its driving input; for a kind that is one task it *is* the row
//! key. An input that is read row by row enters by its row key, one that is read whole by its stage key. So a
//! larger limit leaves every full shard of every row-wise stage behind it reusable, and changes what reads whole tables.
//!
//! Not in any key: names of stages, models and data sets, shard size (a shard's key adds its row range), resources,
//! retries, `max_bad_rows`, and parameters marked free.

mod build;
mod explain;
mod join;
mod learn;

pub(crate) use build::topological;
pub use build::{Pins, PlanError};
pub use explain::{FieldChange, why_changed};
pub use join::Joined;
pub use learn::{GPU_HELD, HOST_PEAK, Measured};

use crate::{
    ids::{RowRange, RunId, StageName},
    key::{Key, KeyFields},
    kind::{Mode, StageKind},
    models::PinnedModel,
    params::StageParams,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A named source with the digest of its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedSource {
    /// Name under `models:` or `data:`.
    pub name: String,
    /// What the pipeline asked for: a catalogue name, or `file:PATH`.
    pub source: String,
    /// SHA-256 of the content, hexadecimal.
    pub digest: String,
}

/// One input of a planned stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// Name of the input.
    pub port: String,
    /// Position of the stage that makes it, always before this one.
    pub stage: u32,
    /// Name of its table.
    pub table: String,
    /// How it is read.
    pub mode: Mode,
}

/// What a task needs of its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Pool of workers.
    pub pool: String,
    /// Host memory, in MiB.
    pub memory_mb: u64,
    /// Whether the pipeline says so; else it is what every stage is thought to need.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub memory_written: bool,
    /// Memory of the accelerator, in MiB; `None` where the pipeline does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory_mb: Option<u64>,
    /// What the stage's model takes of the accelerator, as far as its size is known: [`gpu_estimate_mb`]. A wish, not a
    /// demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_estimate_mb: Option<u64>,
    /// What tasks of an earlier run took of the host, where the pipeline does not say. A wish, not a demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_estimate_mb: Option<u64>,
    /// The run whose tasks measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_measured_in: Option<RunId>,
    /// The run whose tasks measured `gpu_estimate_mb`; `None` where it follows from the model's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_measured_in: Option<RunId>,
    /// Named limits: of each, how many tasks of stages that name it are handed out at once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, u32>,
}

impl Resources {
    /// A pool, and memory of the host in MiB.
    pub fn new(pool: impl Into<String>, memory_mb: u64) -> Self {
        Self {
            pool: pool.into(),
            memory_mb,
            memory_written: false,
            gpu_memory_mb: None,
            gpu_estimate_mb: None,
            host_estimate_mb: None,
            host_measured_in: None,
            gpu_measured_in: None,
            limits: BTreeMap::new(),
        }
    }
}

/// What a model of so many bytes takes of an accelerator, in MiB: its files, a quarter more for what is computed at once,
/// and 2 GiB for caches and the driver. Rough: files of quantized weights grow when they are loaded.
pub fn gpu_estimate_mb(model_bytes: u64) -> u64 {
    model_bytes.div_ceil(1 << 20).saturating_mul(5) / 4 + 2048
}

/// When and how often a failed task is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Most attempts that end in the task's own failure.
    pub max_attempts: u32,
    /// Wait before the second attempt; doubles with each, up to 5 minutes.
    pub backoff_ms: u64,
}

/// A stage of the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedStage {
    /// Its name.
    pub name: StageName,
    /// Its kind.
    pub kind: StageKind,
    /// Its parameters, complete.
    pub params: serde_json::Value,
    /// What it reads.
    pub needs: Vec<Need>,
    /// The model that it computes with.
    pub model: Option<PinnedModel>,
    /// The raw data that it reads.
    pub data: Option<PinnedSource>,
    /// Rows a shard; `None` makes it one task.
    pub shard_rows: Option<u64>,
    /// What a task needs of its machine.
    pub resources: Resources,
    /// When a failed task is tried again.
    pub retry: Retry,
    /// Seed of everything random.
    pub seed: u64,
    /// Rows that may fail before the stage does.
    pub max_bad_rows: u64,
    /// What decides the content of its rows, under readable names.
    pub fields: KeyFields,
    /// Hash of `fields`: the identity of its rows.
    pub row_key: Key,
    /// Identity of its whole tables: `row_key` and how many rows are made.
    pub stage_key: Key,
}

impl PlannedStage {
    /// The typed parameters.
    ///
    /// # Errors
    /// When `params` was not written by this version.
    pub fn params(&self) -> Result<StageParams, serde_json::Error> {
        StageParams::from_json(self.kind, self.params.clone())
    }

    /// The input whose rows are this stage's rows, for row-wise stages.
    pub fn drive(&self) -> Option<&Need> {
        self.needs.iter().find(|n| n.mode == Mode::Drive)
    }

    /// Row ranges of the stage's shards, when its driving table has `rows` rows (after the stage's own limit).
    /// A stage with no rows still is one shard, so that it has an artifact.
    pub fn shards(&self, rows: u64) -> Vec<RowRange> {
        let step = self.shard_rows.unwrap_or(rows).max(1);
        if rows == 0 {
            return vec![RowRange { start: 0, end: 0 }];
        }
        (0..rows.div_ceil(step)).map(|i| RowRange { start: i * step, end: ((i + 1) * step).min(rows) }).collect()
    }

    /// Key of a task: of its row range for row-wise stages, of the stage otherwise.
    pub fn task_key(&self, rows: Option<RowRange>) -> Key {
        match rows {
            Some(rows) => self.row_key.shard(rows),
            None => self.stage_key.clone(),
        }
    }
}

/// A pipeline, ready to run: stages in an order in which each comes after what it needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Format of this record.
    pub version: u32,
    /// The pipeline's name.
    pub pipeline: String,
    /// Its stages.
    pub stages: Vec<PlannedStage>,
}
