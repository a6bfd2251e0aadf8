//! What a stage is given.

use crate::{ModelCache, StageError};
use arrow_array::RecordBatch;
use burn::tensor::Device;
use rallrec_core::{
    ids::RowRange,
    models::{Precision, RemoteModel},
    task::Progress,
};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Reads a task's inputs.
pub trait InputReader: Send {
    /// Whether the input was given.
    fn has(&self, port: &str) -> bool;

    /// A table as one batch: of a `Drive` or `Aligned` input the task's own rows, of a `Whole` input all rows. It has the
    /// columns that are asked for, as far as the table has them, and no others; its metadata in any case.
    ///
    /// # Errors
    /// When the input is not there, or cannot be read or verified.
    fn table(&self, port: &str, columns: Columns<'_>) -> Result<RecordBatch, StageError>;

    /// Every table of an input that takes a list, with the name of the stage that made it, in the pipeline's order.
    ///
    /// # Errors
    /// As [`Self::table`].
    fn tables(&self, port: &str, columns: Columns<'_>) -> Result<Vec<(String, RecordBatch)>, StageError>;
}

/// What a stage wants of an input: nothing else of it is fetched, where that is less.
#[derive(Clone, Copy, Debug)]
pub enum Columns<'a> {
    /// All columns.
    All,
    /// Those of these names; none where only the number of rows, or the metadata, is wanted.
    Only(&'a [&'a str]),
}

/// Takes a task's output.
pub trait OutputWriter: Send {
    /// Adds rows to a table. All batches of a table have the same schema. A table with no rows still needs one
    /// empty batch.
    ///
    /// # Errors
    /// When the batch cannot be encoded or the disk is full.
    fn write(&mut self, table: &str, batch: RecordBatch) -> Result<(), StageError>;

    /// Puts a named number into the manifest: final loss, tokens a second.
    fn metric(&mut self, name: &str, value: f64);

    /// Records a row that failed and was let pass. Fails once there are more than the stage's `max_bad_rows`.
    ///
    /// # Errors
    /// [`StageError::Invalid`] that names the row, when there are too many.
    fn bad_row(&mut self, row: u64, reason: &str) -> Result<(), StageError>;
}

/// Hears how far a stage is.
pub trait ProgressSink: Send + Sync {
    /// Replaces what was said before.
    fn report(&self, progress: Progress);
}

/// Keeps what an unfinished task goes on from when it is attempted again.
pub trait Checkpoints: Send + Sync {
    /// What an earlier attempt saved last, if it saved something.
    ///
    /// # Errors
    /// When the store cannot be reached.
    fn latest(&self) -> Result<Option<Vec<u8>>, StageError>;

    /// Replaces what was saved before.
    ///
    /// # Errors
    /// When the store cannot be reached or is full.
    fn save(&self, state: Vec<u8>) -> Result<(), StageError>;
}

/// Checkpoints in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryCheckpoints(Mutex<Option<Vec<u8>>>);

impl Checkpoints for MemoryCheckpoints {
    fn latest(&self) -> Result<Option<Vec<u8>>, StageError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn save(&self, state: Vec<u8>) -> Result<(), StageError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        Ok(())
    }
}

/// Set when the task should stop soon. Clones are the same flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    asked: Arc<AtomicBool>,
    whole: Option<Arc<Cancel>>,
}

impl Cancel {
    /// One for a part of the work: set by itself, or with this one.
    pub fn part(&self) -> Self {
        Self { asked: Arc::default(), whole: Some(Arc::new(self.clone())) }
    }

    /// Asks the task to stop.
    pub fn set(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    pub fn is_set(&self) -> bool {
        self.asked.load(Ordering::Relaxed) || self.whole.as_ref().is_some_and(|whole| whole.is_set())
    }

    /// # Errors
    /// [`StageError::Cancelled`] when the task should stop.
    pub fn check(&self) -> Result<(), StageError> {
        if self.is_set() { Err(StageError::Cancelled) } else { Ok(()) }
    }
}

/// Everything round a task but its parameters, inputs and output.
pub struct StageContext<'a> {
    /// Seed of everything random.
    pub seed: u64,
    /// The rows to make, for row-wise stages: positions in the driving table.
    pub rows: Option<RowRange>,
    /// The model to compute with, for stages that have one.
    pub model: Option<Model>,
    /// Folder of the raw data, for stages that read it.
    pub data: Option<PathBuf>,
    /// Where to compute.
    pub device: &'a Device,
    /// Models in memory.
    pub models: &'a ModelCache,
    /// Hears how far the stage is.
    pub progress: &'a dyn ProgressSink,
    /// What an earlier attempt left.
    pub checkpoints: &'a dyn Checkpoints,
    /// Set when the task should stop.
    pub cancel: &'a Cancel,
}

/// The model of a task.
#[derive(Clone, Debug)]
pub enum Model {
    /// In files on this machine.
    Local(ModelSource),
    /// Behind a server.
    Remote(RemoteSource),
}

/// Where a model's weights lie on this machine, and how they are to be kept in memory.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// SHA-256 of its content.
    pub digest: String,
    /// Its file or folder.
    pub path: PathBuf,
    /// How the weights are kept.
    pub precision: Precision,
}

/// A server, and where its model's tokenizer lies on this machine.
#[derive(Clone, Debug)]
pub struct RemoteSource {
    /// The server.
    pub settings: RemoteModel,
    /// Digest and place of the tokenizer, if the pipeline names one.
    pub tokenizer: Option<(String, PathBuf)>,
}
