//! The commit protocol: parts under a name unique to the attempt, then the manifest by create-if-absent. The first
//! writer wins; a late one discards its parts. Nothing is ever visible half-written.

use crate::{
    BadRow, Manifest, Part, Store, StoreError, TableManifest,
    table::{EncodedPart, TableWriter},
};
use arrow_array::RecordBatch;
use object_store::{ObjectStoreExt, path::Path};
use rallrec_core::{
    ids::TimeMs,
    key::{Key, hex},
    task::TaskOffer,
};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

pub(crate) fn manifest_path(key: &Key) -> Path {
    folder(key).join("manifest.json")
}

fn folder(key: &Key) -> Path {
    Path::from_iter(["artifacts", key.0.get(..2).unwrap_or("00"), key.0.as_str()])
}

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

/// Collects an attempt's output and commits it.
pub struct ArtifactWriter {
    store: Store,
    producer: Producer,
    folder: Path,
    writers: BTreeMap<String, TableWriter>,
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
            writers: BTreeMap::new(),
            tables: BTreeMap::new(),
            metrics: BTreeMap::new(),
            bad_rows: Vec::new(),
        }
    }

    /// Adds rows to a table.
    ///
    /// # Errors
    /// When the batch cannot be encoded, or a full part cannot be put.
    pub async fn write(&mut self, table: &str, batch: &RecordBatch) -> Result<(), StoreError> {
        if !self.writers.contains_key(table) {
            let schema = batch.schema();
            let columns = schema.fields().iter().map(|f| format!("{}: {}", f.name(), f.data_type())).collect();
            self.tables.insert(table.to_owned(), TableManifest { rows: 0, columns, parts: Vec::new() });
            self.writers.insert(table.to_owned(), TableWriter::new(table, schema, self.file_metadata()));
        }
        let full = match self.writers.get_mut(table) {
            Some(writer) => {
                debug_assert_eq!(writer.schema().fields().len(), batch.num_columns());
                writer.write(batch)?
            }
            None => None,
        };
        match full {
            Some(part) => self.put(table, part).await,
            None => Ok(()),
        }
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
        let written = self.store.create(&path, bytes).await;
        // A failed put may still have reached the store: what stands there decides, whatever the put said.
        match (written, self.store.manifest(&manifest.key).await) {
            (Ok(()), _) => Ok(Committed { manifest, first: true }),
            (Err(_), Ok(Some(standing))) => {
                // The parts' paths name the attempt.
                let first = standing.tables == manifest.tables;
                if !first {
                    self.discard().await;
                }
                Ok(Committed { manifest: standing, first })
            }
            (Err(e), _) => Err(e),
        }
    }

    /// Removes the parts that were put. What cannot be removed is left for `gc`: no manifest names it.
    pub async fn discard(&self) {
        for part in self.tables.values().flat_map(|t| &t.parts) {
            if let Err(e) = self.store.objects.delete(&Path::from(part.path.as_str())).await {
                tracing::warn!(path = part.path, error = %e, "cannot remove a part that nothing names");
            }
        }
    }

    async fn put_rest(&mut self) -> Result<(), StoreError> {
        let names: Vec<_> = self.writers.keys().cloned().collect();
        for name in names {
            if let Some(part) = self.writers.get_mut(&name).map(TableWriter::finish).transpose()?.flatten() {
                self.put(&name, part).await?;
            }
        }
        Ok(())
    }

    async fn put(&mut self, table: &str, part: EncodedPart) -> Result<(), StoreError> {
        let path = self.folder.clone().join(part.file.as_str());
        let entry = Part {
            path: path.to_string(),
            rows: part.rows,
            bytes: part.bytes.len() as u64,
            sha256: hex(&Sha256::digest(&part.bytes)),
        };
        match self.store.create(&path, part.bytes).await {
            // Nobody else writes under this name, so what is there is this put, tried again.
            Ok(()) | Err(StoreError::Conflict { .. }) => {}
            Err(failed) => return Err(failed),
        }
        if let Some(table) = self.tables.get_mut(table) {
            table.rows += entry.rows;
            table.parts.push(entry);
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
