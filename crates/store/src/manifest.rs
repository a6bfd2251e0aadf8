//! The manifest: the record that makes an artifact exist.

use rallrec_core::{
    ids::{Attempt, RowRange, RunId, StageName, TimeMs},
    key::{Key, KeyFields},
    kind::StageKind,
    task::ArtifactSummary,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Format of the record written by this version.
const VERSION: u32 = 1;

/// One Parquet file of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Path in the store.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
    /// Where it has several row groups: each of them, and lastly the footer, which has no rows. Together they are the
    /// whole file, in order.
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
        if manifest.version != VERSION {
            return Err(format!("manifest version {}, this program reads {VERSION}", manifest.version));
        }
        Ok(manifest)
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, StoreEncode> {
        serde_json::to_vec_pretty(self).map_err(StoreEncode)
    }
}

/// A manifest that is not representable as JSON (a metric that is not finite is refused earlier).
#[derive(Debug)]
pub(crate) struct StoreEncode(pub(crate) serde_json::Error);
