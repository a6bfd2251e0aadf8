//! Tables to and from Parquet.

use crate::{Part, Store, StoreError, TableManifest};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use object_store::path::Path;
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::Compression,
    file::{metadata::KeyValue, properties::WriterProperties},
};
use rallrec_core::{ids::RowRange, key::hex};
use sha2::{Digest, Sha256};

/// Encoded bytes after which a table goes on in another part: small enough to hold in memory, large enough to scan fast.
const PART_BYTES: usize = 64 << 20;

/// Encodes the rows of one table, part by part.
pub(crate) struct TableWriter {
    name: String,
    file_metadata: Vec<(String, String)>,
    schema: SchemaRef,
    open: Option<ArrowWriter<Vec<u8>>>,
    open_rows: u64,
    parts: usize,
}

/// A part that is ready to be put.
pub(crate) struct EncodedPart {
    pub(crate) file: String,
    pub(crate) rows: u64,
    pub(crate) bytes: Vec<u8>,
}

impl TableWriter {
    pub(crate) fn new(name: &str, schema: SchemaRef, file_metadata: Vec<(String, String)>) -> Self {
        Self { name: name.to_owned(), file_metadata, schema, open: None, open_rows: 0, parts: 0 }
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Adds rows; gives a part back when one is full.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<Option<EncodedPart>, StoreError> {
        if *batch.schema() != *self.schema {
            return Err(self.failed("a batch has another schema than the first"));
        }
        if self.open.is_none() {
            self.open = Some(self.start()?);
        }
        let failed = |e: parquet::errors::ParquetError| encode_error(&self.name, e);
        let Some(writer) = self.open.as_mut() else { return Ok(None) };
        writer.write(batch).map_err(failed)?;
        self.open_rows += batch.num_rows() as u64;
        if writer.bytes_written() + writer.in_progress_size() < PART_BYTES { Ok(None) } else { self.finish() }
    }

    /// Closes the open part, if there is one.
    pub(crate) fn finish(&mut self) -> Result<Option<EncodedPart>, StoreError> {
        let Some(writer) = self.open.take() else { return Ok(None) };
        let bytes = writer.into_inner().map_err(|e| encode_error(&self.name, e))?;
        let file = format!("{}-{:05}.parquet", self.name, self.parts);
        self.parts += 1;
        Ok(Some(EncodedPart { file, rows: std::mem::take(&mut self.open_rows), bytes }))
    }

    fn start(&self) -> Result<ArrowWriter<Vec<u8>>, StoreError> {
        let metadata = self.file_metadata.iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone())).collect();
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(concat!("rallrec ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(metadata))
            .build();
        ArrowWriter::try_new(Vec::new(), self.schema.clone(), Some(properties)).map_err(|e| encode_error(&self.name, e))
    }

    fn failed(&self, reason: &str) -> StoreError {
        StoreError::Encode { table: self.name.clone(), reason: reason.to_owned() }
    }
}

fn encode_error(table: &str, e: parquet::errors::ParquetError) -> StoreError {
    StoreError::Encode { table: table.to_owned(), reason: e.to_string() }
}

/// Decodes a Parquet file: its schema, and the rows of `rows` (positions in the file; all when `None`).
///
/// # Errors
/// A sentence when the bytes are not Parquet.
pub fn parquet_batches(bytes: Bytes, rows: Option<RowRange>) -> Result<(SchemaRef, Vec<RecordBatch>), String> {
    let mut builder =
        ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| e.to_string())?.with_batch_size(65536);
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
    /// Rows of a table, as batches with one schema. `rows` are positions in the table; `None` reads all. Every file
    /// that is read is checked against its checksum.
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
            let bytes = self.verified(part).await?;
            let range = RowRange { start: from, end: to.max(from) };
            let (found, mut rows) =
                parquet_batches(bytes, Some(range)).map_err(|reason| StoreError::corrupt(&part.path, reason))?;
            schema.get_or_insert(found);
            batches.append(&mut rows);
        }
        let schema = schema.ok_or_else(|| StoreError::corrupt("the manifest", "a table has no parts"))?;
        Ok((schema, batches))
    }

    async fn verified(&self, part: &Part) -> Result<Bytes, StoreError> {
        let path = Path::from(part.path.as_str());
        let bytes = self.get(&path).await?.ok_or_else(|| StoreError::corrupt(&part.path, "the file is gone"))?;
        if bytes.len() as u64 != part.bytes || hex(&Sha256::digest(&bytes)) != part.sha256 {
            return Err(StoreError::corrupt(&part.path, "its checksum is not the manifest's"));
        }
        Ok(Bytes::from(bytes))
    }
}
