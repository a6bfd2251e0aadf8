//! A task's inputs, read from the store.

use crate::{
    tables::{Decoded, TableCache},
    task::from_store,
};
use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;
use futures::{StreamExt, TryStreamExt, stream};
use rallrec_core::{
    ids::RowRange,
    kind::Mode,
    task::{InputShard, InputShards, TaskInput, TaskOffer},
};
use rallrec_stages::{Columns, InputReader, StageError};
use rallrec_store::{Store, TableManifest};
use std::sync::Arc;
use tokio::runtime::Handle;

/// Shards that are read at once: enough to hide an object store's latency. All of them are held together anyway.
const READS_AT_ONCE: usize = 8;

/// Of a table up to this size all is read and kept, though a task wants some rows: other tasks want the others.
const SMALL_BYTES: u64 = 4 << 20;

/// Reads from the shards that the offer names, on the stage's thread.
pub(crate) struct TaskInputs {
    store: Store,
    tables: Arc<TableCache>,
    handle: Handle,
    inputs: Vec<TaskInput>,
    rows: Option<RowRange>,
}

impl TaskInputs {
    pub(crate) fn new(store: Store, tables: Arc<TableCache>, handle: Handle, offer: &TaskOffer) -> Self {
        Self { store, tables, handle, inputs: offer.inputs.clone(), rows: offer.rows }
    }

    fn read(&self, input: &TaskInput, columns: Columns<'_>) -> Result<RecordBatch, StageError> {
        let wanted = Cut { rows: if input.mode == Mode::Whole { None } else { self.rows }, columns };
        let (mut schema, mut batches) = (None, Vec::new());
        // One task that gathers the shards of another stage reads each of them once.
        let keep = self.rows.is_some() || matches!(input.shards, InputShards::One(_));
        let read = |shard| async move { self.shard(input, &shard, wanted, keep).await };
        let reads = stream::iter(input.shards.iter()).map(read).buffered(READS_AT_ONCE);
        for (found, mut rows) in self.handle.block_on(reads.try_collect::<Vec<_>>())? {
            schema.get_or_insert(found);
            batches.append(&mut rows);
        }
        let failed = |reason: String| {
            StageError::Invalid(format!("input {} ({}.{}): {reason}", input.port, input.stage, input.table))
        };
        let schema = schema.ok_or_else(|| failed("it has no shards".into()))?;
        let batch = concat_batches(&schema, &batches).map_err(|e| failed(e.to_string()))?;
        match wanted.rows {
            Some(wanted) if wanted.len() != batch.num_rows() as u64 => {
                Err(failed(format!("rows {wanted} were asked for and {} are there", batch.num_rows())))
            }
            _ => Ok(batch),
        }
    }

    /// What is wanted of a shard.
    async fn shard(
        &self,
        input: &TaskInput,
        shard: &InputShard,
        Cut { rows: wanted, columns }: Cut<'_>,
        keep: bool,
    ) -> Result<Decoded, StageError> {
        let columns = match columns {
            Columns::All => None,
            Columns::Only(names) => Some(names),
        };
        let inside = |held: RowRange| {
            let wanted = wanted?;
            let clamped = |row: u64| row.clamp(held.start, held.end) - held.start;
            Some(RowRange { start: clamped(wanted.start), end: clamped(wanted.end) })
        };
        // Rows that nobody else reads are not kept.
        let own = shard
            .rows
            .is_some_and(|held| wanted.is_some_and(|wanted| wanted.start <= held.start && held.end <= wanted.end));
        if !keep || own {
            let table = self.manifest(input, shard).await?;
            let held = shard.rows.unwrap_or(RowRange { start: 0, end: table.rows });
            return self.store.read_columns(&table, inside(held), columns).await.map_err(from_store);
        }
        let load = async {
            let table = self.manifest(input, shard).await?;
            let bytes: u64 = table.parts.iter().map(|part| part.bytes).sum();
            if wanted.is_some() && bytes > SMALL_BYTES {
                return Err(Unkept::Large(table));
            }
            self.store.read_columns(&table, None, columns).await.map_err(|e| Unkept::Failed(from_store(e)))
        };
        let named = columns.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        match self.tables.get((shard.key.clone(), input.table.clone(), named), load).await {
            Ok((schema, batches)) => {
                let rows = batches.iter().map(RecordBatch::num_rows).sum::<usize>() as u64;
                let local = inside(shard.rows.unwrap_or(RowRange { start: 0, end: rows }));
                Ok((schema, slice(batches, local)))
            }
            Err(Unkept::Large(table)) => {
                let held = shard.rows.unwrap_or(RowRange { start: 0, end: table.rows });
                self.store.read_columns(&table, inside(held), columns).await.map_err(from_store)
            }
            Err(Unkept::Failed(error)) => Err(error),
        }
    }

    async fn manifest(&self, input: &TaskInput, shard: &InputShard) -> Result<TableManifest, StageError> {
        let manifest = self.store.manifest(&shard.key).await.map_err(from_store)?;
        let mut manifest = manifest.ok_or_else(|| {
            StageError::Transient(format!(
                "artifact {} of {} is gone from the store; run again to have it made anew",
                shard.key.short(),
                input.stage
            ))
        })?;
        manifest.tables.remove(&input.table).ok_or_else(|| {
            StageError::Invalid(format!(
                "artifact {} of {} has no table {}",
                shard.key.short(),
                input.stage,
                input.table
            ))
        })
    }
}

/// What a task wants of an input.
#[derive(Clone, Copy)]
struct Cut<'a> {
    /// All with `None`.
    rows: Option<RowRange>,
    columns: Columns<'a>,
}

/// Why a table is not in memory.
enum Unkept {
    /// It is large, and few of its rows are wanted.
    Large(TableManifest),
    Failed(StageError),
}

impl From<StageError> for Unkept {
    fn from(error: StageError) -> Self {
        Self::Failed(error)
    }
}

/// Some of the batches' rows; all with `None`.
fn slice(batches: Vec<RecordBatch>, rows: Option<RowRange>) -> Vec<RecordBatch> {
    let Some(rows) = rows else { return batches };
    let mut start = 0;
    let part = |batch: RecordBatch| {
        let held = RowRange { start, end: start + batch.num_rows() as u64 };
        start = held.end;
        let from = rows.start.clamp(held.start, held.end) - held.start;
        let to = rows.end.clamp(held.start, held.end) - held.start;
        (to > from).then(|| batch.slice(from as usize, (to - from) as usize))
    };
    batches.into_iter().filter_map(part).collect()
}

impl InputReader for TaskInputs {
    fn has(&self, port: &str) -> bool {
        self.inputs.iter().any(|i| i.port == port)
    }

    fn table(&self, port: &str, columns: Columns<'_>) -> Result<RecordBatch, StageError> {
        let found = self.inputs.iter().find(|i| i.port == port);
        self.read(found.ok_or_else(|| StageError::Invalid(format!("the stage has no input {port}")))?, columns)
    }

    fn tables(&self, port: &str, columns: Columns<'_>) -> Result<Vec<(String, RecordBatch)>, StageError> {
        let found = self.inputs.iter().filter(|i| i.port == port);
        found.map(|input| Ok((input.stage.0.clone(), self.read(input, columns)?))).collect()
    }
}
