//! A baseline as one file: what every system of a run predicted, to keep where CI keeps files. It is Parquet, so that other
//! programs can read it; which run it is of stands in its metadata.

use crate::predictions::{Predictions, RunTables, System, column};
use crate::{failure::Failure, home::write_atomically};
use arrow_array::{ArrayRef, Float32Array, Int8Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};
use rallrec_core::key::Key;
use rallrec_store::parquet_batches;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Key of the record in the file's schema metadata.
const RECORD: &str = "rallrec.baseline";
/// Format of the file.
const VERSION: u32 = 1;

/// A kept baseline.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Baseline {
    /// The run that it is of.
    pub(super) run: String,
    /// That run's pipeline.
    pub(super) pipeline: String,
    /// Its systems.
    pub(super) systems: BTreeMap<String, System>,
}

/// What the file's metadata tells.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    run: String,
    pipeline: String,
    systems: BTreeMap<String, SystemRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SystemRecord {
    key: Key,
    data: String,
}

impl Baseline {
    /// All systems of a run.
    ///
    /// # Errors
    /// [`Failure::Invalid`] when the run has none, or has not finished one.
    pub(super) async fn of(tables: &RunTables<'_>) -> Result<Self, Failure> {
        let mut systems = BTreeMap::new();
        for stage in tables.systems() {
            systems.insert(stage.name.to_string(), tables.system(stage).await?);
        }
        if systems.is_empty() {
            let name = &tables.plan.pipeline;
            return Err(Failure::Invalid(format!("pipeline `{name}` of run {} predicts nothing", tables.run)));
        }
        Ok(Self { run: tables.run.to_string(), pipeline: tables.plan.pipeline.clone(), systems })
    }

    /// Writes the file; a reader sees the old or the new one, whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, path: &Path) -> Result<(), Failure> {
        let bytes = self.encode().map_err(anyhow::Error::from)?;
        write_atomically(path, &bytes).map_err(|e| Failure::Unreachable(format!("{}: {e}", path.display())))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] when it cannot be read, [`Failure::Invalid`] when it is not such a file.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let bytes = std::fs::read(path).map_err(|e| Failure::Unreachable(format!("{}: {e}", path.display())))?;
        Self::decode(bytes).map_err(|why| {
            let way = "make one with `rallrec compare RUN --save FILE`";
            Failure::Invalid(format!("{}: this is no baseline: {why}; {way}", path.display()))
        })
    }

    fn encode(&self) -> Result<Vec<u8>, parquet::errors::ParquetError> {
        let record = |system: &System| SystemRecord { key: system.key.clone(), data: system.data.clone() };
        let record = Record {
            version: VERSION,
            run: self.run.clone(),
            pipeline: self.pipeline.clone(),
            systems: self.systems.iter().map(|(name, system)| (name.clone(), record(system))).collect(),
        };
        let record =
            serde_json::to_string(&record).map_err(|e| parquet::errors::ParquetError::General(e.to_string()))?;
        let columns = [
            ("system", DataType::Utf8, false),
            ("sample", DataType::Int64, false),
            ("user", DataType::Int32, false),
            ("item", DataType::Int32, false),
            ("label", DataType::Int8, false),
            ("p", DataType::Float32, true),
        ];
        let fields: Vec<Field> = columns.into_iter().map(|(name, kind, null)| Field::new(name, kind, null)).collect();
        let schema = Arc::new(Schema::new(fields).with_metadata([(RECORD.to_owned(), record)]));
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let mut writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))?;
        for (name, system) in &self.systems {
            let rows = system.predictions.clone();
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from(vec![name.as_str(); rows.sample.len()])),
                Arc::new(Int64Array::from(rows.sample)),
                Arc::new(Int32Array::from(rows.user)),
                Arc::new(Int32Array::from(rows.item)),
                Arc::new(Int8Array::from(rows.label)),
                Arc::new(Float32Array::from(rows.p)),
            ];
            writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
        }
        writer.into_inner()
    }

    fn decode(bytes: Vec<u8>) -> Result<Self, String> {
        let (schema, batches) = parquet_batches(bytes.into(), None)?;
        let record = schema.metadata().get(RECORD).ok_or("it has none of rallrec's metadata")?;
        let record: Record = serde_json::from_str(record).map_err(|e| format!("another version wrote it ({e})"))?;
        if record.version != VERSION {
            return Err(format!("it has format version {}, this program reads {VERSION}", record.version));
        }
        let empty =
            |system: SystemRecord| System { key: system.key, data: system.data, predictions: Predictions::default() };
        let mut systems: BTreeMap<String, System> =
            record.systems.into_iter().map(|(name, system)| (name, empty(system))).collect();
        for batch in &batches {
            let names = column::<StringArray>(batch, "system")?;
            let mut start = 0;
            for end in 1..=batch.num_rows() {
                if end < batch.num_rows() && names.value(end) == names.value(start) {
                    continue;
                }
                let name = names.value(start);
                let system = systems.get_mut(name).ok_or_else(|| format!("its metadata does not name `{name}`"))?;
                system.predictions.add(&batch.slice(start, end - start))?;
                start = end;
            }
        }
        Ok(Self { run: record.run, pipeline: record.pipeline, systems })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline() -> Baseline {
        let system = |p: Vec<Option<f32>>| System {
            key: Key("k".into()),
            data: "d".into(),
            predictions: Predictions {
                sample: (5..).take(p.len()).collect(),
                user: vec![1; p.len()],
                item: vec![2; p.len()],
                label: vec![1; p.len()],
                p,
            },
        };
        let systems = [("ctr", vec![]), ("merge", vec![Some(0.25), None]), ("score", vec![Some(0.1), Some(1.0), None])];
        let systems = systems.into_iter().map(|(name, p)| (name.to_owned(), system(p))).collect();
        Baseline { run: "20261123-1".into(), pipeline: "tiny".into(), systems }
    }

    #[test]
    fn a_baseline_comes_back_as_it_went() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.parquet");
        baseline().write(&path).unwrap();
        assert_eq!(Baseline::read(&path).unwrap(), baseline());
    }

    #[test]
    fn what_is_no_baseline_is_told_from_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.parquet");
        assert_eq!(Baseline::read(&path).unwrap_err().exit_code(), 3);
        std::fs::write(&path, "metrics").unwrap();
        let refused = Baseline::read(&path).unwrap_err();
        assert!(refused.exit_code() == 2 && refused.to_string().contains("--save FILE"), "{refused}");
    }
}
