//! Tables out of Parquet files: whole parts, checked and kept on this machine's disk where there is a cache; or, where a
//! task wants few of a part's rows, only the row groups that hold them, each checked on its own.
//!
//! All columns of a row group are read: stages take whole tables, and what they leave out of one is small.

use crate::{Part, Store, StoreError, TableManifest, cache::Cache};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::{Buf, Bytes, buf::Reader};
use object_store::{ObjectStoreExt, path::Path};
use parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder,
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
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
    decoded(bytes, None, rows)
}

/// Decodes the rows of some row groups, counted from the first of them; all groups when `None`.
fn decoded<R: ChunkReader + 'static>(
    file: R,
    groups: Option<Vec<usize>>,
    rows: Option<RowRange>,
) -> Result<(SchemaRef, Vec<RecordBatch>), String> {
    let mut builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| e.to_string())?.with_batch_size(BATCH_ROWS);
    if let Some(groups) = groups {
        builder = builder.with_row_groups(groups);
    }
    if let Some(rows) = rows {
        builder = builder.with_offset(rows.start as usize).with_limit(rows.len() as usize);
    }
    // The builder's schema: the reader's has lost the metadata.
    let schema = builder.schema().clone();
    let reader = builder.build().map_err(|e| e.to_string())?;
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    Ok((schema, batches))
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
            let (found, mut rows) = self.read_part(part, RowRange { start: from, end: to.max(from) }).await?;
            schema.get_or_insert(found);
            batches.append(&mut rows);
        }
        let schema = schema.ok_or_else(|| StoreError::corrupt("the manifest", "a table has no parts"))?;
        Ok((schema, batches))
    }

    /// Some rows of a part: from the whole file when most of it is needed or it is at hand, else from its row groups.
    async fn read_part(&self, part: &Part, rows: RowRange) -> Result<(SchemaRef, Vec<RecordBatch>), StoreError> {
        let damaged = |reason| StoreError::corrupt(&part.path, reason);
        let few = Groups::holding(part, rows).filter(|groups| groups.bytes() < part.bytes / 2);
        let Some(groups) = few else {
            return parquet_batches(self.whole(part).await?, Some(rows)).map_err(damaged);
        };
        if let Some(bytes) = self.cached(part).await {
            return parquet_batches(bytes, Some(rows)).map_err(damaged);
        }
        let mut file = Sparse { bytes: part.bytes, pieces: Vec::new() };
        let footer = part.pieces.len() - 1..part.pieces.len();
        for (range, pieces) in [(&groups.range, groups.held.clone()), (&groups.footer, footer)] {
            file.pieces.push((range.start, self.piece(part, range.clone(), pieces).await?));
        }
        let local = RowRange { start: rows.start - groups.first_row, end: rows.end - groups.first_row };
        decoded(file, Some(groups.held.collect()), Some(local)).map_err(damaged)
    }

    /// Bytes of some of a part's pieces, which lie at that range; each is checked.
    async fn piece(&self, part: &Part, range: Range<u64>, pieces: Range<usize>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let bytes = match self.objects.get_range(&Path::from(part.path.as_str()), range).await {
            Ok(bytes) => bytes,
            Err(object_store::Error::NotFound { .. }) => return Err(gone(part)),
            Err(e) => return Err(StoreError::object("read", &part.path, e)),
        };
        let mut rest = bytes.clone();
        for piece in &part.pieces[pieces] {
            let length = usize::try_from(piece.bytes).unwrap_or(usize::MAX).min(rest.len());
            check(part, &rest.split_to(length), piece.bytes, &piece.sha256)?;
        }
        Ok(bytes)
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

/// The row groups of a part that hold some rows, and its footer.
struct Groups {
    /// Which.
    held: Range<usize>,
    /// Row in the part that they begin with.
    first_row: u64,
    /// Where they lie.
    range: Range<u64>,
    /// Where the footer lies.
    footer: Range<u64>,
}

impl Groups {
    /// `None` where the manifest does not tell of groups.
    fn holding(part: &Part, rows: RowRange) -> Option<Self> {
        let (footer, groups) = part.pieces.split_last()?;
        let footer = part.bytes.checked_sub(footer.bytes)?..part.bytes;
        let mut found = Self { held: 0..0, first_row: 0, range: 0..0, footer };
        let (mut row, mut at) = (0, 0);
        for (number, group) in groups.iter().enumerate() {
            let held = RowRange { start: row, end: row + group.rows };
            if held.overlaps(&rows) {
                if found.held.is_empty() {
                    found = Self { held: number..number, first_row: row, range: at..at, ..found };
                }
                (found.held.end, found.range.end) = (number + 1, at + group.bytes);
            }
            (row, at) = (held.end, at + group.bytes);
        }
        if found.held.is_empty() {
            found.first_row = rows.start;
        }
        Some(found)
    }

    fn bytes(&self) -> u64 {
        self.range.end - self.range.start + self.footer.end - self.footer.start
    }
}

/// A file of which only some pieces are here.
struct Sparse {
    bytes: u64,
    /// Where each begins.
    pieces: Vec<(u64, Bytes)>,
}

impl Sparse {
    /// What is here from there on.
    fn from(&self, start: u64) -> Result<Bytes, ParquetError> {
        let inside = |(at, bytes): &&(u64, Bytes)| (*at..*at + bytes.len() as u64).contains(&start);
        let (at, bytes) = self
            .pieces
            .iter()
            .find(inside)
            .ok_or_else(|| ParquetError::General(format!("byte {start} is in no row group that was asked for")))?;
        Ok(bytes.slice(usize::try_from(start - at).unwrap_or(0)..))
    }
}

impl Length for Sparse {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Sparse {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Reader<Bytes>, ParquetError> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let from = self.from(start)?;
        if from.len() < length {
            return Err(ParquetError::EOF(format!("{length} bytes from {start} are not in one row group")));
        }
        Ok(from.slice(..length))
    }
}
