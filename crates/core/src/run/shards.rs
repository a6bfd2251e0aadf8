//! Arithmetic of row ranges: which shards of one stage hold the rows of a shard of another.
//!
//! Ranges are computed, never stored, so that a stage of a million shards costs nothing here.

use crate::{ids::RowRange, plan::PlannedStage};
use std::ops::Range;

/// Most shards of a stage. More would mean artifacts of a few rows each; `shards.rows` should be raised instead.
pub const MAX_SHARDS: u64 = 10_000_000;

/// How a stage is cut into tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shards {
    /// One task that makes whole tables.
    Single,
    /// One task per row range; the same ranges as [`PlannedStage::shards`].
    Rows {
        /// Rows of the stage.
        rows: u64,
        /// Rows of each shard but the last.
        step: u64,
    },
}

impl Shards {
    /// The shards of a row-wise stage with `rows` rows.
    pub fn of_rows(stage: &PlannedStage, rows: u64) -> Self {
        Self::Rows { rows, step: stage.shard_rows.unwrap_or(rows).max(1) }
    }

    /// How many there are; at least one, so that an empty stage has an artifact.
    pub fn count(&self) -> u64 {
        match *self {
            Self::Single => 1,
            Self::Rows { rows, step } => rows.div_ceil(step).max(1),
        }
    }

    /// Rows of a shard; `None` for the one task of a single-task stage.
    pub fn range(&self, shard: u32) -> Option<RowRange> {
        match *self {
            Self::Single => None,
            Self::Rows { rows, step } => {
                let start = u64::from(shard) * step;
                Some(RowRange { start, end: (start + step).min(rows) })
            }
        }
    }

    /// Rows in all; `None` for a single-task stage.
    pub fn rows(&self) -> Option<u64> {
        match *self {
            Self::Single => None,
            Self::Rows { rows, .. } => Some(rows),
        }
    }

    /// The shards that a reader of `range` needs, in order. An empty range needs the first one, for its schema.
    /// Rows past the end are held by none.
    pub fn covering(&self, range: RowRange) -> Range<u32> {
        match *self {
            Self::Single => 0..1,
            Self::Rows { .. } if range.is_empty() => 0..1,
            Self::Rows { rows, step } => {
                let end = range.end.min(rows);
                if range.start >= end { 0..0 } else { narrow(range.start / step)..narrow(end.div_ceil(step)) }
            }
        }
    }

    /// The shards that read rows of shard `source` of stage `from`: the inverse of [`Self::covering`].
    pub fn readers(&self, from: &Shards, source: u32) -> Range<u32> {
        let all = 0..narrow(self.count());
        match (*self, from.range(source)) {
            (Self::Single, _) | (_, None) => all,
            (Self::Rows { rows: 0, .. }, Some(_)) => {
                if source == 0 {
                    all
                } else {
                    0..0
                }
            }
            (Self::Rows { .. }, Some(range)) if range.is_empty() => 0..0,
            (Self::Rows { .. }, Some(range)) => self.covering(range),
        }
    }
}

/// Shard numbers fit: no stage is cut into more than [`MAX_SHARDS`].
pub(super) fn narrow(shard: u64) -> u32 {
    u32::try_from(shard).unwrap_or(u32::MAX)
}
