//! Tables out of Parquet files: whole parts, checked and kept on this machine's disk where there is a cache; or, where a
//! task wants few of a part's rows or columns, only the bytes that hold them, each row group or column of one checked on
//! its own.
//!
//! Such bytes are not kept on disk: what many tasks of a machine read is read whole, or held decoded by the worker.

use crate::{
    Part, READS_AT_ONCE, Store, StoreError, TableManifest,
    cache::Cache,
    cut::{Bit, Cut, Sparse},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStoreExt, path::Path};
use parquet::{
    arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder},
    file::reader::ChunkReader,
};
use rallrec_core::{ids::RowRange, key::hex};
use sha2::{Digest, Sha256};
use std::{ops::Range, sync::Arc};

/// Rows of a batch that is read.
const BATCH_ROWS: usize = 65536;

/// Decodes a Parquet file: its schema, and the rows of `rows` (positions in the file; all when `None`).
///
/// # Errors
/// A sentence when the bytes are not Parquet.
pub fn parquet_batches(bytes: Bytes, rows: Option<RowRange>) -> Result<(SchemaRef, Vec<RecordBatch>), String> {
    Wanted { rows, ..Wanted::default() }.decoded(bytes)
}

/// What is wanted of a Parquet file.
#[derive(Default)]
struct Wanted<'a> {
    /// The row groups to read; all with `None`.
    groups: Option<Range<usize>>,
    /// Rows, counted from the first of these groups; all with `None`.
    rows: Option<RowRange>,
    /// Positions of columns, ascending; all with `None`.
    columns: Option<&'a [usize]>,
}

impl Wanted<'_> {
    fn decoded<R: ChunkReader + 'static>(self, file: R) -> Result<(SchemaRef, Vec<RecordBatch>), String> {
        let mut builder =
            ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| e.to_string())?.with_batch_size(BATCH_ROWS);
        // The builder's schema: the reader's has lost the metadata.
        let mut schema = builder.schema().clone();
        if let Some(columns) = self.columns {
            schema = Arc::new(schema.project(columns).map_err(|e| e.to_string())?);
            let mask = ProjectionMask::roots(builder.parquet_schema(), columns.iter().copied());
            builder = builder.with_projection(mask);
        }
        if let Some(groups) = self.groups {
            builder = builder.with_row_groups(groups.collect());
        }
        if let Some(rows) = self.rows {
            builder = builder.with_offset(rows.start as usize).with_limit(rows.len() as usize);
        }
        let reader = builder.build().map_err(|e| e.to_string())?;
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
        Ok((schema, batches))
    }
}

impl Store {
    /// Rows of a table, as batches with one schema. `rows` are positions in the table; `None` reads all. Everything that
    /// is read is checked against its checksum.
    ///
    /// # Errors
    /// When the store cannot be reached, or a file is not what the manifest says.
    pub async fn read_table(
        &self,
        table: &TableManifest,
        rows: Option<RowRange>,
    ) -> Result<(SchemaRef, Vec<RecordBatch>), StoreError> {
        self.read_columns(table, rows, None).await
    }

    /// Some columns of a table's rows, in the table's order, as [`Self::read_table`]; all with `None`. Names that the
    /// table has no column of are left out. Where a part is large and they are less than half of it, only their bytes are
    /// fetched.
    ///
    /// # Errors
    /// As [`Self::read_table`].
    pub async fn read_columns(
        &self,
        table: &TableManifest,
        rows: Option<RowRange>,
        columns: Option<&[&str]>,
    ) -> Result<(SchemaRef, Vec<RecordBatch>), StoreError> {
        let columns = columns.map(|names| table.positions(names));
        let wanted = rows.unwrap_or(RowRange { start: 0, end: table.rows });
        let (mut schema, mut batches, mut start) = (None, Vec::new(), 0);
        for (i, part) in table.parts.iter().enumerate() {
            let held = RowRange { start, end: start + part.rows };
            start = held.end;
            let last = i + 1 == table.parts.len();
            let needed = held.overlaps(&wanted) || (last && schema.is_none());
            if !needed {
                continue;
            }
            let from = wanted.start.clamp(held.start, held.end) - held.start;
            let to = wanted.end.clamp(held.start, held.end) - held.start;
            let (found, mut rows) =
                self.read_part(part, RowRange { start: from, end: to.max(from) }, columns.as_deref()).await?;
            schema.get_or_insert(found);
            batches.append(&mut rows);
        }
        let schema = schema.ok_or_else(|| StoreError::corrupt("the manifest", "a table has no parts"))?;
        Ok((schema, batches))
    }

    /// Some rows of a part: from the whole file when most of it is needed or it is at hand, else from their bytes.
    async fn read_part(
        &self,
        part: &Part,
        rows: RowRange,
        columns: Option<&[usize]>,
    ) -> Result<(SchemaRef, Vec<RecordBatch>), StoreError> {
        let damaged = |reason| StoreError::corrupt(&part.path, reason);
        let of_whole = || Wanted { groups: None, rows: Some(rows), columns };
        let little = Cut::of(part, rows, columns).filter(|cut| cut.bytes() < part.bytes / 2);
        let Some(cut) = little else {
            return of_whole().decoded(self.whole(part).await?).map_err(damaged);
        };
        if let Some(bytes) = self.cached(part).await {
            return of_whole().decoded(bytes).map_err(damaged);
        }
        let reads: Vec<_> = cut.runs().map(|run| self.run(part, run)).collect();
        let runs = stream::iter(reads).buffered(READS_AT_ONCE).try_collect().await?;
        let file = Sparse { bytes: part.bytes, runs };
        let local = RowRange { start: rows.start - cut.first_row, end: rows.end - cut.first_row };
        Wanted { groups: Some(cut.groups), rows: Some(local), columns }.decoded(file).map_err(damaged)
    }

    /// Bits of a part that lie side by side, and where they begin; each is checked.
    async fn run(&self, part: &Part, bits: &[Bit<'_>]) -> Result<(u64, Bytes), StoreError> {
        let start = bits.first().map_or(0, |bit| bit.range.start);
        let end = bits.last().map_or(start, |bit| bit.range.end);
        let bytes = match self.objects.get_range(&Path::from(part.path.as_str()), start..end).await {
            Ok(bytes) => bytes,
            Err(object_store::Error::NotFound { .. }) => return Err(gone(part)),
            Err(e) => return Err(StoreError::object("read", &part.path, e)),
        };
        let mut rest = bytes.clone();
        for bit in bits {
            let length = bit.range.end - bit.range.start;
            let here = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
            check(part, &rest.split_to(here), length, bit.sha256)?;
        }
        Ok((start, bytes))
    }

    /// A whole part, from this machine's disk if it is there, and kept there.
    async fn whole(&self, part: &Part) -> Result<Bytes, StoreError> {
        let Some(cache) = self.cache.as_ref().filter(|_| part.content.is_none()) else {
            return self.fetched(part).await;
        };
        if let Some(bytes) = self.cached(part).await {
            return Ok(bytes);
        }
        let turn = with_cache(cache, &part.sha256, |cache, sha256| cache.turn(sha256)).await;
        // Whoever had the turn before has perhaps fetched it.
        if let Some(bytes) = self.cached(part).await {
            return Ok(bytes);
        }
        let bytes = self.fetched(part).await?;
        let kept = bytes.clone();
        with_cache(cache, &part.sha256, move |cache, sha256| cache.put(sha256, &kept)).await;
        drop(turn);
        Ok(bytes)
    }

    async fn cached(&self, part: &Part) -> Option<Bytes> {
        let cache = self.cache.as_ref()?;
        with_cache(cache, &part.sha256, |cache, sha256| Ok(cache.get(sha256))).await.flatten()
    }

    async fn fetched(&self, part: &Part) -> Result<Bytes, StoreError> {
        if let Some(content) = &part.content {
            check(part, content, part.bytes, &part.sha256)?;
            return Ok(content.clone());
        }
        let bytes = self.get(&Path::from(part.path.as_str())).await?.ok_or_else(|| gone(part))?;
        check(part, &bytes, part.bytes, &part.sha256)?;
        Ok(bytes)
    }
}

/// Asks the cache on a thread that may block. A cache that fails is none: what it would have kept is fetched.
async fn with_cache<T: Send + 'static>(
    cache: &Arc<Cache>,
    sha256: &str,
    ask: impl FnOnce(&Cache, &str) -> std::io::Result<T> + Send + 'static,
) -> Option<T> {
    let (cache, sha256) = (Arc::clone(cache), sha256.to_owned());
    match tokio::task::spawn_blocking(move || ask(&cache, &sha256)).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the cache of artifacts cannot be used");
            None
        }
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn gone(part: &Part) -> StoreError {
    StoreError::corrupt(&part.path, "the file is gone")
}

fn check(part: &Part, bytes: &Bytes, length: u64, sha256: &str) -> Result<(), StoreError> {
    if bytes.len() as u64 != length || hex(&Sha256::digest(bytes)) != sha256 {
        return Err(StoreError::corrupt(&part.path, "its checksum is not the manifest's"));
    }
    Ok(())
}
