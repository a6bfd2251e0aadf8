//! The commit protocol: parts under a name unique to the attempt, then the manifest by create-if-absent. The first
//! writer wins; a late one discards its parts. Nothing is ever visible half-written.

use crate::{
    BadRow, Manifest, Part, Store, StoreError, TableManifest,
    part::{Encoded, PartWriter},
    put::{CHUNK_BYTES, Upload},
};
use arrow_array::RecordBatch;
use bytes::Bytes;
use object_store::{ObjectStoreExt, path::Path};
use rallrec_core::{ids::TimeMs, key::Key, task::TaskOffer};
use std::collections::BTreeMap;

pub(crate) fn manifest_path(key: &Key) -> Path {
    folder(key).join("manifest.json")
}

fn folder(key: &Key) -> Path {
    Path::from_iter(["artifacts", key.0.get(..2).unwrap_or("00"), key.0.as_str()])
}

/// A part up to this size is in the manifest: it costs its bytes there, and saves a file and a request.
const WITHIN_BYTES: usize = 2048;

/// The facts about an attempt that the manifest records.
#[derive(Clone, Debug)]
pub struct Producer {
    /// The attempt.
    pub offer: TaskOffer,
    /// Program and version.
    pub program: String,
    /// Unique to this writer: a message that is delivered twice makes two writers of one attempt.
    pub writer: String,
}

/// How a commit ended.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The manifest that stands, this attempt's or an earlier one's.
    pub manifest: Manifest,
    /// Whether it is this attempt's.
    pub first: bool,
}

/// A table that is being written.
struct OpenTable {
    writer: PartWriter,
    /// Bytes of the open part that were not put yet; too few to go up on their own.
    waiting: Vec<Bytes>,
    /// The open part on its way, once it is large.
    upload: Option<Upload>,
}

impl OpenTable {
    fn new(writer: PartWriter) -> Self {
        Self { writer, waiting: Vec::new(), upload: None }
    }

    fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(Bytes::len).sum()
    }
}

/// Collects an attempt's output and commits it.
pub struct ArtifactWriter {
    store: Store,
    producer: Producer,
    folder: Path,
    open: BTreeMap<String, OpenTable>,
    tables: BTreeMap<String, TableManifest>,
    metrics: BTreeMap<String, f64>,
    bad_rows: Vec<BadRow>,
}

impl ArtifactWriter {
    /// A writer for one attempt.
    pub fn new(store: Store, producer: Producer) -> Self {
        let offer = &producer.offer;
        let task = offer.task.to_string().replace('/', "-");
        let attempt = format!("{}-{task}-{}-{}", offer.run, offer.attempt, producer.writer);
        let folder = folder(&offer.key).join(attempt.as_str());
        Self {
            store,
            folder,
            producer,
            open: BTreeMap::new(),
            tables: BTreeMap::new(),
            metrics: BTreeMap::new(),
            bad_rows: Vec::new(),
        }
    }

    /// Adds rows to a table. What makes a row group goes to the store; no more than that is held.
    ///
    /// # Errors
    /// When the batch cannot be encoded, or its bytes cannot be put.
    pub async fn write(&mut self, table: &str, batch: &RecordBatch) -> Result<(), StoreError> {
        if !self.open.contains_key(table) {
            let schema = batch.schema();
            let columns = schema.fields().iter().map(|f| format!("{}: {}", f.name(), f.data_type())).collect();
            self.tables.insert(table.to_owned(), TableManifest { rows: 0, columns, parts: Vec::new() });
            let writer = PartWriter::new(table, schema, self.file_metadata());
            self.open.insert(table.to_owned(), OpenTable::new(writer));
        }
        for slice in PartWriter::slices(batch) {
            let Some(open) = self.open.get_mut(table) else { continue };
            let file = open.writer.file();
            let encoded = open.writer.write(&slice)?;
            self.put(table, &file, encoded).await?;
        }
        Ok(())
    }

    /// Puts a named number into the manifest. What is not finite is left out: JSON has no word for it.
    pub fn metric(&mut self, name: &str, value: f64) {
        if value.is_finite() {
            self.metrics.insert(name.to_owned(), value);
        }
    }

    /// Records a row that failed. Gives how many there are now.
    pub fn bad_row(&mut self, row: u64, reason: &str) -> u64 {
        self.bad_rows.push(BadRow { row, reason: reason.to_owned() });
        self.bad_rows.len() as u64
    }

    /// Puts what is left and the manifest. When another attempt was first, this one's parts are removed.
    ///
    /// # Errors
    /// When the store cannot be reached or is full. Parts that were put are removed, unless it is unclear whether the
    /// manifest reached the store.
    pub async fn commit(mut self, seconds: f64, now: TimeMs) -> Result<Committed, StoreError> {
        if let Err(failed) = self.put_rest().await {
            self.discard().await;
            return Err(failed);
        }
        let manifest = self.manifest(seconds, now);
        let path = manifest_path(&manifest.key);
        let bytes = manifest.encode().map_err(|e| StoreError::corrupt(path.as_ref(), e.0.to_string()))?;
        match self.store.create(&path, bytes).await {
            Ok(()) => Ok(Committed { manifest, first: true }),
            // Another writer's: it names its writer, so ours would have been the same bytes.
            Err(StoreError::Conflict { .. }) => {
                let standing = self.store.manifest(&manifest.key).await?;
                let standing = standing.ok_or_else(|| StoreError::corrupt(path.as_ref(), "it came and went"))?;
                self.discard().await;
                Ok(Committed { manifest: standing, first: false })
            }
            Err(e) => Err(e),
        }
    }

    /// Removes the parts that were put. What cannot be removed is left for `gc`: no manifest names it.
    pub async fn discard(&mut self) {
        for upload in self.open.values_mut().filter_map(|open| open.upload.take()) {
            upload.abort().await;
        }
        for part in self.tables.values().flat_map(|t| &t.parts).filter(|part| part.content.is_none()) {
            if let Err(e) = self.store.objects.delete(&Path::from(part.path.as_str())).await {
                tracing::warn!(path = part.path, error = %e, "cannot remove a part that nothing names");
            }
        }
    }

    async fn put_rest(&mut self) -> Result<(), StoreError> {
        let names: Vec<_> = self.open.keys().cloned().collect();
        for name in names {
            let Some(open) = self.open.get_mut(&name) else { continue };
            let file = open.writer.file();
            let encoded = open.writer.finish()?;
            self.put(&name, &file, encoded).await?;
        }
        Ok(())
    }

    /// Takes what came of some rows: a small part is put whole when it ends, a large one as it grows.
    async fn put(&mut self, table: &str, file: &str, encoded: Vec<Encoded>) -> Result<(), StoreError> {
        let path = self.folder.clone().join(file);
        let Some(open) = self.open.get_mut(table) else { return Ok(()) };
        for encoded in encoded {
            match encoded {
                Encoded::Bytes(bytes) => {
                    open.waiting.push(bytes);
                    if open.upload.is_none() && open.waiting_bytes() > CHUNK_BYTES {
                        open.upload = Some(Upload::begin(&self.store, path.clone()).await?);
                    }
                    if let Some(upload) = &mut open.upload {
                        for bytes in open.waiting.drain(..) {
                            upload.write(bytes).await?;
                        }
                    }
                }
                Encoded::End(part) => {
                    let placed;
                    match open.upload.take() {
                        Some(upload) => {
                            upload.finish(&self.store).await?;
                            placed = Part { path: path.to_string(), ..part };
                        }
                        None => {
                            let bytes: Vec<u8> = std::mem::take(&mut open.waiting).concat();
                            if bytes.len() <= WITHIN_BYTES {
                                placed = Part { content: Some(bytes.into()), ..part };
                            } else {
                                self.store.create(&path, bytes).await?;
                                placed = Part { path: path.to_string(), ..part };
                            }
                        }
                    }
                    if let Some(table) = self.tables.get_mut(table) {
                        table.rows += placed.rows;
                        table.parts.push(placed);
                    }
                }
            }
        }
        Ok(())
    }

    fn manifest(&self, seconds: f64, now: TimeMs) -> Manifest {
        let offer = &self.producer.offer;
        Manifest {
            version: Manifest::VERSION,
            key: offer.key.clone(),
            kind: offer.kind,
            stage: offer.stage.clone(),
            rows: offer.rows,
            run: offer.run.clone(),
            attempt: offer.attempt,
            producer: self.producer.program.clone(),
            writer: self.producer.writer.clone(),
            committed_at_ms: now,
            seconds,
            fields: offer.fields.clone(),
            tables: self.tables.clone(),
            metrics: self.metrics.clone(),
            bad_rows: self.bad_rows.clone(),
        }
    }

    fn file_metadata(&self) -> Vec<(String, String)> {
        let offer = &self.producer.offer;
        [
            ("rallrec.key", offer.key.to_string()),
            ("rallrec.stage", offer.stage.to_string()),
            ("rallrec.kind", offer.kind.to_string()),
            ("rallrec.version", offer.kind.info().version.to_string()),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .to_vec()
    }
}
