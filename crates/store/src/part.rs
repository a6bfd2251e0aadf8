//! Parts: one table's rows on their way into Parquet files, row group by row group, so that of a large table no more
//! than a row group is held.

use crate::{Chunk, Part, Piece, StoreError};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use parquet::{
    arrow::ArrowWriter,
    basic::Compression,
    errors::ParquetError,
    file::{
        metadata::{KeyValue, RowGroupMetaData},
        properties::WriterProperties,
    },
};
use rallrec_core::key::hex;
use sha2::{Digest, Sha256};

/// Encoded bytes after which a table goes on in another part: readers hold a part in memory, and caches keep or drop it.
pub(crate) const PART_BYTES: usize = 64 << 20;
/// Encoded bytes after which a row group ends: the least that a reader of a few rows fetches.
pub(crate) const GROUP_BYTES: usize = 8 << 20;
/// Encoded bytes below which a part of one row group is read whole: another request costs more than what it would save.
pub(crate) const WHOLE_BYTES: u64 = 1 << 20;
/// Rows that are encoded before it is looked whether a row group is full.
const LOOK_ROWS: usize = 8192;

/// A table's parts, encoded one after the other.
pub(crate) struct PartWriter {
    table: String,
    schema: SchemaRef,
    file_metadata: Vec<(String, String)>,
    parts: usize,
    open: Option<OpenPart>,
}

/// What has come of some rows.
pub(crate) enum Encoded {
    /// The next bytes of a part.
    Bytes(Bytes),
    /// The part that the last bytes ended.
    End(Part),
}

impl PartWriter {
    pub(crate) fn new(table: &str, schema: SchemaRef, file_metadata: Vec<(String, String)>) -> Self {
        Self { table: table.to_owned(), schema, file_metadata, parts: 0, open: None }
    }

    /// Name of the file of the part that is open, or of the next one.
    pub(crate) fn file(&self) -> String {
        format!("{}-{:05}.parquet", self.table, self.parts)
    }

    /// The pieces of a batch to encode one by one.
    pub(crate) fn slices(batch: &RecordBatch) -> impl Iterator<Item = RecordBatch> + use<'_> {
        let rows = batch.num_rows();
        // A batch without rows makes a table, too.
        (0..rows.max(1))
            .step_by(LOOK_ROWS)
            .map(move |start| batch.slice(start.min(rows), LOOK_ROWS.min(rows - start.min(rows))))
    }

    /// Encodes a slice.
    pub(crate) fn write(&mut self, slice: &RecordBatch) -> Result<Vec<Encoded>, StoreError> {
        if *slice.schema() != *self.schema {
            let reason = "a batch has another schema than the first".to_owned();
            return Err(StoreError::Encode { table: self.table.clone(), reason });
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => OpenPart::begin(self.start()?),
        };
        let bytes = open.write(slice).map_err(|e| encode_error(&self.table, e))?;
        let full = open.writer.bytes_written() + open.writer.in_progress_size() >= PART_BYTES;
        self.open = Some(open);
        let mut encoded: Vec<_> = bytes.map(Encoded::Bytes).into_iter().collect();
        if full {
            encoded.append(&mut self.finish()?);
        }
        Ok(encoded)
    }

    /// Ends the open part, if there is one.
    pub(crate) fn finish(&mut self) -> Result<Vec<Encoded>, StoreError> {
        let Some(open) = self.open.take() else { return Ok(Vec::new()) };
        let (bytes, part) = open.finish(self.file()).map_err(|e| encode_error(&self.table, e))?;
        self.parts += 1;
        Ok(vec![Encoded::Bytes(bytes), Encoded::End(part)])
    }

    fn start(&self) -> Result<ArrowWriter<Vec<u8>>, StoreError> {
        let metadata = self.file_metadata.iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone())).collect();
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(concat!("rallrec ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(metadata))
            .build();
        ArrowWriter::try_new(Vec::new(), self.schema.clone(), Some(properties))
            .map_err(|e| encode_error(&self.table, e))
    }
}

/// A part that is being encoded.
struct OpenPart {
    writer: ArrowWriter<Vec<u8>>,
    rows: u64,
    bytes: u64,
    whole: Sha256,
    pieces: Vec<Piece>,
}

impl OpenPart {
    fn begin(writer: ArrowWriter<Vec<u8>>) -> Self {
        Self { writer, rows: 0, bytes: 0, whole: Sha256::new(), pieces: Vec::new() }
    }

    /// Gives a row group's bytes once it is full.
    fn write(&mut self, slice: &RecordBatch) -> Result<Option<Bytes>, ParquetError> {
        self.writer.write(slice)?;
        self.rows += slice.num_rows() as u64;
        if self.writer.in_progress_size() < GROUP_BYTES { Ok(None) } else { self.end_group().map(Some) }
    }

    /// Ends the row group; gives what was encoded since the last one.
    fn end_group(&mut self) -> Result<Bytes, ParquetError> {
        self.writer.flush()?;
        let rows = self.rows - self.pieces.iter().map(|piece| piece.rows).sum::<u64>();
        let start = self.bytes;
        let bytes = self.take(rows)?;
        if let (Some(piece), Some(group)) = (self.pieces.last_mut(), self.writer.flushed_row_groups().last()) {
            piece.columns = chunks(group, start, &bytes);
        }
        Ok(bytes)
    }

    fn take(&mut self, rows: u64) -> Result<Bytes, ParquetError> {
        self.writer.sync()?;
        let bytes = Bytes::from(std::mem::take(self.writer.inner_mut()));
        self.bytes += bytes.len() as u64;
        self.whole.update(&bytes);
        let sha256 = hex(&Sha256::digest(&bytes));
        self.pieces.push(Piece { rows, bytes: bytes.len() as u64, sha256, columns: Vec::new() });
        Ok(bytes)
    }

    /// The bytes that are left, and what stands in the manifest.
    fn finish(mut self, file: String) -> Result<(Bytes, Part), ParquetError> {
        let group = if self.writer.in_progress_rows() > 0 { self.end_group()? } else { Bytes::new() };
        self.writer.finish()?;
        let footer = self.take(0)?;
        let pieces = if self.bytes < WHOLE_BYTES { Vec::new() } else { self.pieces };
        let sha256 = hex(&self.whole.finalize());
        let part = Part { path: file, content: None, rows: self.rows, bytes: self.bytes, sha256, pieces };
        Ok(([group, footer].concat().into(), part))
    }
}

/// The columns of a row group whose bytes these are, from that place in the part on. None where there is only one, or
/// where they would not be the whole: then it is read as one piece.
fn chunks(group: &RowGroupMetaData, start: u64, bytes: &Bytes) -> Vec<Chunk> {
    // Leaves of one column lie side by side. What stands before the first (the file's mark) goes with it.
    let mut ends: Vec<usize> = Vec::new();
    for (leaf, chunk) in group.columns().iter().enumerate() {
        let column = group.schema_descr().get_column_root_idx(leaf);
        let (at, length) = chunk.byte_range();
        let Some(end) = (at + length).checked_sub(start).and_then(|end| usize::try_from(end).ok()) else {
            return Vec::new();
        };
        // A further leaf moves its column's end.
        ends.resize(column, ends.last().copied().unwrap_or(0));
        ends.push(end);
    }
    if ends.len() < 2 || !ends.is_sorted() || ends.last() != Some(&bytes.len()) {
        return Vec::new();
    }
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let chunk = |(from, to): (usize, usize)| {
        let bytes = bytes.slice(from..to);
        Chunk { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(&bytes)) }
    };
    starts.zip(ends.iter().copied()).map(chunk).collect()
}

fn encode_error(table: &str, e: ParquetError) -> StoreError {
    StoreError::Encode { table: table.to_owned(), reason: e.to_string() }
}
