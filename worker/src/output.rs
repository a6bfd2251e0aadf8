//! A task's output, written to the store.

use crate::task::{from_store, now, program};
use arrow_array::RecordBatch;
use rallrec_core::{
    ids::{RowRange, TimeMs},
    task::TaskOffer,
};
use rallrec_stages::{OutputWriter, StageError};
use rallrec_store::{ArtifactWriter, Committed, Producer, Store};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::runtime::Handle;

/// Bad rows of a task that are logged: enough to see what is wrong, and no more of them than of anything else.
const LOGGED_BAD_ROWS: u64 = 10;

/// Collects what the stage writes, on the stage's thread.
pub(crate) struct TaskOutput {
    handle: Handle,
    writer: ArtifactWriter,
    max_bad_rows: u64,
    stage: String,
    outputs: &'static [(&'static str, rallrec_core::kind::TableKind)],
    /// Rows to make, for row-wise stages.
    range: Option<RowRange>,
    /// Rows written to each table.
    written: BTreeMap<String, u64>,
}

impl TaskOutput {
    pub(crate) fn new(store: Store, handle: Handle, offer: TaskOffer) -> Self {
        let (max_bad_rows, stage, outputs) = (offer.max_bad_rows, offer.stage.to_string(), offer.kind.info().outputs);
        let range = offer.rows;
        let writer = ArtifactWriter::new(store, Producer { offer, program: program(), writer: writer_name() });
        Self { handle, writer, max_bad_rows, stage, outputs, range, written: BTreeMap::new() }
    }

    /// Commits; fails when a table of the kind was not written, or not with one row for each row to make.
    pub(crate) fn commit(self, seconds: f64, now: TimeMs) -> Result<Committed, StageError> {
        if let Some(wrong) = self.outputs.iter().find_map(|(table, _)| self.wrong_rows(table)) {
            let error = StageError::Invalid(format!("stage {} {wrong}, which is a bug in rallrec", self.stage));
            self.discard();
            return Err(error);
        }
        self.handle.block_on(self.writer.commit(seconds, now)).map_err(from_store)
    }

    fn wrong_rows(&self, table: &str) -> Option<String> {
        match (self.written.get(table), self.range) {
            (None, _) => Some(format!("did not write its table {table}")),
            (Some(rows), Some(range)) if *rows != range.len() => {
                Some(format!("wrote {rows} rows of {table} for the rows {range}"))
            }
            _ => None,
        }
    }

    pub(crate) fn discard(mut self) {
        self.handle.block_on(self.writer.discard());
    }
}

impl OutputWriter for TaskOutput {
    fn write(&mut self, table: &str, batch: RecordBatch) -> Result<(), StageError> {
        *self.written.entry(table.to_owned()).or_default() += batch.num_rows() as u64;
        self.handle.block_on(self.writer.write(table, &batch)).map_err(from_store)
    }

    fn metric(&mut self, name: &str, value: f64) {
        self.writer.metric(name, value);
    }

    fn bad_row(&mut self, row: u64, reason: &str) -> Result<(), StageError> {
        let count = self.writer.bad_row(row, reason);
        match count {
            0..=LOGGED_BAD_ROWS => tracing::warn!(stage = self.stage, row, reason, "bad row"),
            _ if count == LOGGED_BAD_ROWS + 1 => {
                tracing::warn!(stage = self.stage, "more bad rows: the artifact's manifest has them all");
            }
            _ => {}
        }
        if count <= self.max_bad_rows {
            return Ok(());
        }
        Err(StageError::Invalid(format!(
            "row {row}: {reason} (bad row {count} of this task, and max_bad_rows is {}; mend the row, or allow more)",
            self.max_bad_rows
        )))
    }
}

/// A name that no other writer has: the process, when it is, and a count within the process.
fn writer_name() -> String {
    static WRITERS: AtomicU64 = AtomicU64::new(0);
    format!("{:x}-{:x}-{:x}", std::process::id(), now().0, WRITERS.fetch_add(1, Ordering::Relaxed))
}
