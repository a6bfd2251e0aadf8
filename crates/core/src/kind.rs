//! The kinds of stages: what each reads, what it writes, and how it may be cut into shards.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Type of a table: what its columns mean. Columns are listed in `docs/artifacts.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    /// One row an item.
    Items,
    /// One row a user.
    Users,
    /// One row a rating, by (timestamp, user, item).
    Interactions,
    /// One row a sample of the CTR task.
    Samples,
    /// One row an item, with its text.
    Descriptions,
    /// One row an item, with its text embedding.
    TextEmbeddings,
    /// One row an item, with a vector of the collaborative dimension.
    ItemEmbeddings,
    /// One row a user, with its collaborative embedding.
    UserEmbeddings,
    /// One row an item, with the vector that is searched.
    Index,
    /// One row a sample, with its prompt.
    Prompts,
    /// One row a sample, with the predicted probability of a like.
    Predictions,
    /// One row a sample, with its reasoning traces.
    Traces,
    /// One row a file of a low-rank adapter.
    Adapter,
    /// One row a step of tuning.
    TuningSteps,
    /// One row a metric of a system.
    Metrics,
    /// One row a line of Markdown.
    Report,
    /// One row a number.
    Rows,
}

/// How a stage reads an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Its rows are the stage's rows: a shard reads its own row range, and output row i belongs to input row i.
    Drive,
    /// Row i belongs to row i of the driving table; a shard reads its own row range.
    Aligned,
    /// Every shard reads the whole table.
    Whole,
}

/// A named input of a stage kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name under `needs:`.
    pub name: &'static str,
    /// Type of table that it takes.
    pub table: TableKind,
    /// How it is read.
    pub mode: Mode,
    /// Whether it may be left out.
    pub optional: bool,
    /// Whether it takes a list of tables.
    pub many: bool,
}

/// What a kind of stage is, apart from its parameters.
#[derive(Clone, Copy, Debug)]
pub struct KindInfo {
    /// Word under `kind:`.
    pub name: &'static str,
    /// One line for people.
    pub doc: &'static str,
    /// Raised whenever the code's output changes for the same inputs.
    pub version: u32,
    /// What it reads.
    pub inputs: &'static [Port],
    /// What it writes; the first is what a reference without a table name means.
    pub outputs: &'static [(&'static str, TableKind)],
    /// Whether it needs `data:`.
    pub data: bool,
    /// Whether it needs `model:`.
    pub model: bool,
    /// Whether it draws random numbers, so that `seed` is part of its key.
    pub random: bool,
    /// Whether it leaves rows out that it cannot read, although it is one task.
    pub skips: bool,
}

impl KindInfo {
    /// The driving input of a row-wise kind; `None` for kinds that are one task.
    pub fn drive(&self) -> Option<&'static Port> {
        self.inputs.iter().find(|p| p.mode == Drive)
    }

    /// Whether rows can be bad without the stage failing, so that `max_bad_rows` has a meaning.
    pub fn has_bad_rows(&self) -> bool {
        self.skips || self.drive().is_some()
    }
}

const fn port(name: &'static str, table: TableKind, mode: Mode) -> Port {
    Port { name, table, mode, optional: false, many: false }
}

const fn optional(port: Port) -> Port {
    Port { optional: true, ..port }
}

const fn many(port: Port) -> Port {
    Port { many: true, ..port }
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal { version: $version:literal, inputs: [$($input:expr),*], outputs: [$($out:literal: $table:ident),*] $(, $flag:ident)* };)*) => {
        /// A kind of stage.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum StageKind { $($(#[doc = $doc])* #[serde(rename = $name)] $variant),* }

        impl StageKind {
            /// Every kind, in the order of a pipeline.
            pub const ALL: &'static [StageKind] = &[$(Self::$variant),*];

            /// What the kind is.
            pub fn info(self) -> KindInfo {
                match self {
                    $(Self::$variant => KindInfo {
                        name: $name,
                        doc: concat!($($doc),*).trim_ascii(),
                        version: $version,
                        inputs: const { &[$($input),*] },
                        outputs: &[$(($out, TableKind::$table)),*],
                        data: flags!(data; $($flag)*),
                        model: flags!(model; $($flag)*),
                        random: flags!(random; $($flag)*),
                        skips: flags!(skips; $($flag)*),
                    }),*
                }
            }
        }
    };
}
macro_rules! flags {
    (data; data $($rest:ident)*) => { true };
    (model; model $($rest:ident)*) => { true };
    (random; random $($rest:ident)*) => { true };
    (skips; skips $($rest:ident)*) => { true };
    ($want:ident; $other:ident $($rest:ident)*) => { flags!($want; $($rest)*) };
    ($want:ident;) => { false };
}

use Mode::{Aligned, Drive, Whole};
use TableKind as T;

kinds! {
    /// Raw files to items, users, interactions and samples.
    Dataset = "dataset" { version: 1, inputs: [], outputs: ["items": Items, "users": Users, "interactions": Interactions, "train": Samples, "valid": Samples, "test": Samples], data, skips };
    /// A language model's description of each item.
    Describe = "describe" { version: 1, inputs: [port("items", T::Items, Drive)], outputs: ["descriptions": Descriptions], model, random };
    /// Text embeddings of titles and descriptions.
    Embed = "embed" { version: 1, inputs: [port("items", T::Items, Drive), optional(port("descriptions", T::Descriptions, Aligned))], outputs: ["embeddings": TextEmbeddings], model };
    /// Collaborative embeddings.
    LightGcn = "lightgcn" { version: 1, inputs: [port("interactions", T::Interactions, Whole), port("items", T::Items, Whole), port("users", T::Users, Whole)], outputs: ["items": ItemEmbeddings, "users": UserEmbeddings], random };
    /// Text embeddings mapped onto collaborative ones.
    Align = "align" { version: 1, inputs: [port("text", T::TextEmbeddings, Whole), port("collaborative", T::ItemEmbeddings, Whole)], outputs: ["embeddings": ItemEmbeddings], random };
    /// The vector of each item that is searched.
    Index = "index" { version: 1, inputs: [optional(port("text", T::TextEmbeddings, Whole)), optional(port("collaborative", T::ItemEmbeddings, Whole)), optional(port("aligned", T::ItemEmbeddings, Whole))], outputs: ["index": Index] };
    /// Some samples at random.
    Sample = "sample" { version: 1, inputs: [port("samples", T::Samples, Whole)], outputs: ["samples": Samples], random };
    /// Each sample's history and prompt.
    Retrieve = "retrieve" { version: 1, inputs: [port("samples", T::Samples, Drive), port("items", T::Items, Whole), port("users", T::Users, Whole), port("interactions", T::Interactions, Whole), optional(port("index", T::Index, Whole)), optional(port("other_index", T::Index, Whole))], outputs: ["prompts": Prompts] };
    /// A low-rank adapter of a language model.
    Tune = "tune" { version: 1, inputs: [many(port("prompts", T::Prompts, Whole)), optional(port("valid", T::Prompts, Whole))], outputs: ["adapter": Adapter, "steps": TuningSteps], model, random, skips };
    /// Probability of yes at the answer position.
    Score = "score" { version: 1, inputs: [port("prompts", T::Prompts, Drive), optional(port("adapter", T::Adapter, Whole))], outputs: ["predictions": Predictions], model };
    /// Sampled reasoning traces.
    Reason = "reason" { version: 2, inputs: [port("prompts", T::Prompts, Drive), optional(port("predictions", T::Predictions, Aligned)), optional(port("adapter", T::Adapter, Whole))], outputs: ["traces": Traces], model, random };
    /// Tuned and reasoning predictions merged.
    Merge = "merge" { version: 1, inputs: [many(port("predictions", T::Predictions, Whole)), port("traces", T::Traces, Whole)], outputs: ["predictions": Predictions] };
    /// A click-through-rate baseline.
    Ctr = "ctr" { version: 1, inputs: [port("train", T::Samples, Whole), port("valid", T::Samples, Whole), port("test", T::Samples, Whole), port("items", T::Items, Whole), port("users", T::Users, Whole)], outputs: ["predictions": Predictions], random };
    /// Metrics with intervals.
    Evaluate = "evaluate" { version: 1, inputs: [many(port("predictions", T::Predictions, Whole))], outputs: ["metrics": Metrics], random };
    /// The metrics as Markdown.
    Report = "report" { version: 1, inputs: [many(port("metrics", T::Metrics, Whole))], outputs: ["report": Report] };
    /// Numbered rows, for trying and measuring a cluster; may wait for others first.
    Rows = "rows" { version: 1, inputs: [optional(many(port("after", T::Rows, Whole)))], outputs: ["rows": Rows] };
    /// Passes rows on after a while, for trying and measuring a cluster.
    Wait = "wait" { version: 1, inputs: [port("rows", T::Rows, Drive)], outputs: ["rows": Rows] };
}

impl fmt::Display for StageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().name)
    }
}
