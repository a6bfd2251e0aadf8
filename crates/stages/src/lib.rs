//! The stages: what each task of a pipeline computes.
//!
//! A stage is synchronous and runs on its own thread. It sees inputs, an output, a seed, progress, a cancel flag,
//! a device and a model cache, and deliberately nothing of queues, stores, attempts or runs: those are the
//! worker's. Adding a kind is one variant in `core`, one file here and one line in [`stage`].

mod adapter;
mod align;
mod columns;
mod context;
mod ctr;
mod dataset;
mod describe;
mod embed;
mod error;
mod evaluate;
mod index;
mod item_text;
mod language;
mod lightgcn;
mod merge;
mod meter;
mod models;
mod predictions;
mod reason;
mod remote;
mod report;
mod retrieve;
mod rows;
mod sample;
mod score;
mod training;
mod tune;
mod wait;

pub use burn::tensor::Device;
pub use context::{
    Cancel, Checkpoints, Columns, InputReader, MemoryCheckpoints, Model, ModelSource, OutputWriter, ProgressSink,
    RemoteSource, StageContext,
};
pub use error::StageError;
pub use models::ModelCache;

use rallrec_core::params::StageParams;

/// What a task of one kind computes.
pub trait Stage: Send + Sync {
    /// Reads the inputs, computes, and writes every table of the kind.
    ///
    /// # Errors
    /// [`StageError`], by what should happen next. Whatever was written is then thrown away.
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError>;
}

/// The stage with these parameters.
pub fn stage(params: StageParams) -> Box<dyn Stage> {
    match params {
        StageParams::Dataset(p) => Box::new(p),
        StageParams::Describe(p) => Box::new(p),
        StageParams::Embed(p) => Box::new(p),
        StageParams::LightGcn(p) => Box::new(p),
        StageParams::Align(p) => Box::new(p),
        StageParams::Index(p) => Box::new(p),
        StageParams::Sample(p) => Box::new(p),
        StageParams::Retrieve(p) => Box::new(p),
        StageParams::Tune(p) => Box::new(p),
        StageParams::Score(p) => Box::new(p),
        StageParams::Reason(p) => Box::new(p),
        StageParams::Merge(p) => Box::new(p),
        StageParams::Ctr(p) => Box::new(p),
        StageParams::Evaluate(p) => Box::new(p),
        StageParams::Report(p) => Box::new(p),
        StageParams::Rows(p) => Box::new(p),
        StageParams::Wait(p) => Box::new(p),
    }
}
