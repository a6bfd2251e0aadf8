//! Newtypes for every identifier, so that none can stand in for another.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Name of a stage in its pipeline: lower-case letters, digits, `_` and `-`. In a sweep `@` and a number may follow, which
/// tell the variants of a stage apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StageName(pub String);

/// Identifier of one run. Sorts by start time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub String);

/// Identifier of one worker process or slot, for reports and journals.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub String);

/// A task of a run: the position of its stage in the plan, and of its shard in the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskId {
    /// Position of the stage in [`crate::plan::Plan::stages`].
    pub stage: u32,
    /// Position of the shard in its stage, from 0.
    pub shard: u32,
}

/// Number of one try at a task, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

/// Milliseconds since the Unix epoch, as told by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimeMs(pub u64);

impl StageName {
    /// The variant of a sweep's stage that is first needed by the point of this number.
    #[must_use]
    pub fn variant(&self, point: usize) -> Self {
        Self(format!("{}@{point}", self.0))
    }

    /// The name in the pipeline file. It is what stands in outputs, so that a variant makes what its stage alone would.
    #[must_use]
    pub fn in_file(&self) -> Self {
        Self(self.0.split('@').next().unwrap_or_default().to_owned())
    }
}

/// Half-open range of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RowRange {
    /// First row.
    pub start: u64,
    /// One past the last row.
    pub end: u64,
}

impl RowRange {
    /// Number of rows.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether no row lies in the range.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// Whether the two ranges share a row.
    pub fn overlaps(&self, other: &RowRange) -> bool {
        self.start < other.end && other.start < self.end
    }
}

macro_rules! display_as_inner {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_as_inner!(StageName, RunId, WorkerId, Attempt);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.stage, self.shard)
    }
}

impl fmt::Display for RowRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}
