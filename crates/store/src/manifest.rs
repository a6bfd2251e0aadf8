//! The manifest: the record that makes an artifact exist.

use bytes::Bytes;
use rallrec_core::{
    ids::{Attempt, RowRange, RunId, StageName, TimeMs},
    key::{Key, KeyFields},
    kind::StageKind,
    task::ArtifactSummary,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Format of the record written by this version, which reads all before it. In 1, every part was a file.
const VERSION: u32 = 2;

/// One Parquet file of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Path in the store; empty for a small part, which is in the manifest itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The file itself, where it is small: an object of its own would cost more than it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "base64_text")]
    pub content: Option<Bytes>,
    /// Rows in it.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
    /// Where it is large: each row group, and lastly the footer, which has no rows. Together they are the whole file, in
    /// order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<Piece>,
}

/// Bytes of a part that can be read and checked on their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Rows in it.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
    /// Of a row group with several columns: each of them, in the table's order. Together they are the whole piece. Older
    /// programs leave them out, and read them over: what is said of the piece holds as before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<Chunk>,
}

/// Bytes of a row group that hold one column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

/// One table of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableManifest {
    /// Rows in all parts.
    pub rows: u64,
    /// Its columns, as `name: type`.
    pub columns: Vec<String>,
    /// Its files, in row order. Never none: an empty table has one empty part.
    pub parts: Vec<Part>,
}

impl TableManifest {
    /// Positions of the columns of these names, ascending.
    pub(crate) fn positions(&self, names: &[&str]) -> Vec<usize> {
        let is = |column: &str, name: &str| column.strip_prefix(name).is_some_and(|rest| rest.starts_with(": "));
        let wanted = |column: &str| names.iter().any(|name| is(column, name));
        (0..self.columns.len()).filter(|&position| wanted(&self.columns[position])).collect()
    }
}

/// A row that failed and was let pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRow {
    /// Its position in the driving table.
    pub row: u64,
    /// Why it failed.
    pub reason: String,
}

/// What an artifact is, where its parts are, and how it came to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of this record.
    pub version: u32,
    /// The artifact's key.
    pub key: Key,
    /// Kind of the stage.
    pub kind: StageKind,
    /// Name of the stage in the run that made it.
    pub stage: StageName,
    /// Row range that it holds, for row-wise stages.
    pub rows: Option<RowRange>,
    /// The run that made it.
    pub run: RunId,
    /// The attempt that made it.
    pub attempt: Attempt,
    /// Program and version that made it.
    pub producer: String,
    /// Unique to the writer: of two manifests of one attempt, only one stands.
    #[serde(default)]
    pub writer: String,
    /// When it was committed.
    pub committed_at_ms: TimeMs,
    /// Seconds that it took to compute.
    pub seconds: f64,
    /// What decided its content: the stage's key fields.
    pub fields: KeyFields,
    /// Its tables.
    pub tables: BTreeMap<String, TableManifest>,
    /// Named numbers that the stage left: losses, tokens.
    pub metrics: BTreeMap<String, f64>,
    /// Rows that failed and were let pass.
    pub bad_rows: Vec<BadRow>,
}

impl Manifest {
    pub(crate) const VERSION: u32 = VERSION;

    /// What it holds, in short.
    pub fn summary(&self) -> ArtifactSummary {
        ArtifactSummary {
            rows: self.tables.iter().map(|(name, table)| (name.clone(), table.rows)).collect(),
            bytes: self.tables.values().flat_map(|t| &t.parts).map(|p| p.bytes).sum(),
            seconds: self.seconds,
            bad_rows: self.bad_rows.len() as u64,
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| format!("not a manifest: {e}"))?;
        if !(1..=VERSION).contains(&manifest.version) {
            return Err(format!("manifest version {}, this program reads up to {VERSION}", manifest.version));
        }
        Ok(manifest)
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, StoreEncode> {
        serde_json::to_vec_pretty(self).map_err(StoreEncode)
    }
}

/// Bytes as text.
mod base64_text {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes.as_deref().unwrap_or_default()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(|bytes| Some(bytes.into())).map_err(D::Error::custom)
    }
}

/// A manifest that is not representable as JSON (a metric that is not finite is refused earlier).
#[derive(Debug)]
pub(crate) struct StoreEncode(pub(crate) serde_json::Error);
