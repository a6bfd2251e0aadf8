//! A task's inputs, read from the store.

use crate::task::from_store;
use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;
use rallrec_core::{
    ids::RowRange,
    kind::Mode,
    task::{InputShard, TaskInput, TaskOffer},
};
use rallrec_stages::{InputReader, StageError};
use rallrec_store::Store;
use tokio::runtime::Handle;

/// Reads from the shards that the offer names, on the stage's thread.
pub(crate) struct TaskInputs {
    store: Store,
    handle: Handle,
    inputs: Vec<TaskInput>,
    rows: Option<RowRange>,
}

impl TaskInputs {
    pub(crate) fn new(store: Store, handle: Handle, offer: &TaskOffer) -> Self {
        Self { store, handle, inputs: offer.inputs.clone(), rows: offer.rows }
    }

    fn read(&self, input: &TaskInput) -> Result<RecordBatch, StageError> {
        let wanted = if input.mode == Mode::Whole { None } else { self.rows };
        let (mut schema, mut batches) = (None, Vec::new());
        for shard in input.shards.iter() {
            let (found, mut rows) = self.handle.block_on(self.shard(input, &shard, wanted))?;
            schema.get_or_insert(found);
            batches.append(&mut rows);
        }
        let failed = |reason: String| {
            StageError::Invalid(format!("input {} ({}.{}): {reason}", input.port, input.stage, input.table))
        };
        let schema = schema.ok_or_else(|| failed("it has no shards".into()))?;
        let batch = concat_batches(&schema, &batches).map_err(|e| failed(e.to_string()))?;
        match wanted {
            Some(wanted) if wanted.len() != batch.num_rows() as u64 => {
                Err(failed(format!("rows {wanted} were asked for and {} are there", batch.num_rows())))
            }
            _ => Ok(batch),
        }
    }

    async fn shard(
        &self,
        input: &TaskInput,
        shard: &InputShard,
        wanted: Option<RowRange>,
    ) -> Result<(arrow_schema::SchemaRef, Vec<RecordBatch>), StageError> {
        let manifest = self.store.manifest(&shard.key).await.map_err(from_store)?;
        let manifest = manifest.ok_or_else(|| {
            StageError::Transient(format!(
                "artifact {} of {} is gone from the store; run again to have it made anew",
                shard.key.short(),
                input.stage
            ))
        })?;
        let table = manifest.tables.get(&input.table).ok_or_else(|| {
            StageError::Invalid(format!(
                "artifact {} of {} has no table {}",
                shard.key.short(),
                input.stage,
                input.table
            ))
        })?;
        let local = wanted.map(|wanted| {
            let held = shard.rows.unwrap_or(RowRange { start: 0, end: table.rows });
            let inside = |row: u64| row.clamp(held.start, held.end) - held.start;
            RowRange { start: inside(wanted.start), end: inside(wanted.end) }
        });
        self.store.read_table(table, local).await.map_err(from_store)
    }
}

impl InputReader for TaskInputs {
    fn has(&self, port: &str) -> bool {
        self.inputs.iter().any(|i| i.port == port)
    }

    fn table(&self, port: &str) -> Result<RecordBatch, StageError> {
        let found = self.inputs.iter().find(|i| i.port == port);
        self.read(found.ok_or_else(|| StageError::Invalid(format!("the stage has no input {port}")))?)
    }

    fn tables(&self, port: &str) -> Result<Vec<(String, RecordBatch)>, StageError> {
        let found = self.inputs.iter().filter(|i| i.port == port);
        found.map(|input| Ok((input.stage.0.clone(), self.read(input)?))).collect()
    }
}
