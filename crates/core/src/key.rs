//! Keys: the identity of an artifact is a hash over everything that can change it (`docs/adr/0003`).
//!
//! Fields are kept beside the hash, under readable names, so that `explain` can name the field that made a miss.

use crate::ids::RowRange;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fmt};

/// SHA-256 over [`KeyFields`], as 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(pub String);

impl Key {
    /// The first 12 digits, for people.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }

    /// Key of one row range of a row-wise stage.
    pub fn shard(&self, rows: RowRange) -> Key {
        let mut fields = KeyFields::default();
        fields.set("stage", &self.0);
        fields.set("rows", rows);
        fields.key()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.short())
    }
}

/// Named values that decide an artifact's content, in one canonical order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyFields(pub BTreeMap<String, String>);

impl KeyFields {
    /// Sets a field. Values are compared as text; floats must come in their shortest form.
    pub fn set(&mut self, name: impl Into<String>, value: impl fmt::Display) {
        self.0.insert(name.into(), value.to_string());
    }

    /// The hash. Lengths are hashed too, so no two different sets of fields collide by concatenation.
    pub fn key(&self) -> Key {
        let mut hash = Sha256::new();
        for (name, value) in &self.0 {
            for part in [name, value] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part.as_bytes());
            }
        }
        Key(hex(&hash.finalize()))
    }
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
