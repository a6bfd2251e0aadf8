//! Which bytes of a part hold some rows of some columns, and a file of which only those bytes are here.
//!
//! It rests on the manifest alone: what it names has a checksum of its own, and nothing else of the part is fetched. Where
//! it names no columns (a small part, or an older program's) all columns of a row group are taken; where it names no row
//! groups there is no cut, and the part is read whole.

use crate::{Part, Piece};
use bytes::{Buf, Bytes, buf::Reader};
use parquet::{
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};
use rallrec_core::ids::RowRange;
use std::ops::Range;

/// Some bytes of a part, with their checksum.
pub(crate) struct Bit<'a> {
    /// Where they lie.
    pub(crate) range: Range<u64>,
    /// Their SHA-256, hexadecimal.
    pub(crate) sha256: &'a str,
}

/// The bits of a part that some rows of some columns need, and its footer.
pub(crate) struct Cut<'a> {
    /// The row groups that hold the rows.
    pub(crate) groups: Range<usize>,
    /// Row in the part that they begin with.
    pub(crate) first_row: u64,
    /// In order; the footer last.
    bits: Vec<Bit<'a>>,
}

impl<'a> Cut<'a> {
    /// `columns` are positions in the table, ascending; all with `None`. `None` where the manifest does not tell.
    pub(crate) fn of(part: &'a Part, rows: RowRange, columns: Option<&[usize]>) -> Option<Self> {
        let (footer, groups) = part.pieces.split_last()?;
        let mut cut = Self { groups: 0..0, first_row: rows.start, bits: Vec::new() };
        let (mut row, mut at) = (0, 0);
        for (number, group) in groups.iter().enumerate() {
            let held = RowRange { start: row, end: row + group.rows };
            if held.overlaps(&rows) {
                if cut.groups.is_empty() {
                    (cut.groups.start, cut.first_row) = (number, row);
                }
                cut.groups.end = number + 1;
                cut.take(group, at, columns);
            }
            (row, at) = (held.end, at + group.bytes);
        }
        let footer_at = part.bytes.checked_sub(footer.bytes)?;
        cut.bits.push(Bit { range: footer_at..part.bytes, sha256: &footer.sha256 });
        Some(cut)
    }

    /// Takes the columns of a row group that begins there.
    fn take(&mut self, group: &'a Piece, mut at: u64, columns: Option<&[usize]>) {
        let Some(columns) = columns.filter(|columns| !group.columns.is_empty() && columns.len() < group.columns.len())
        else {
            self.bits.push(Bit { range: at..at + group.bytes, sha256: &group.sha256 });
            return;
        };
        for (position, chunk) in group.columns.iter().enumerate() {
            if columns.contains(&position) {
                self.bits.push(Bit { range: at..at + chunk.bytes, sha256: &chunk.sha256 });
            }
            at += chunk.bytes;
        }
    }

    /// How much there is to fetch.
    pub(crate) fn bytes(&self) -> u64 {
        self.bits.iter().map(|bit| bit.range.end - bit.range.start).sum()
    }

    /// The bits that lie side by side, which one request fetches.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &[Bit<'a>]> {
        self.bits.chunk_by(|a, b| a.range.end == b.range.start)
    }
}

/// A file of which only some bytes are here.
pub(crate) struct Sparse {
    /// Its length.
    pub(crate) bytes: u64,
    /// What is here, and where it begins.
    pub(crate) runs: Vec<(u64, Bytes)>,
}

impl Sparse {
    /// What is here from there on.
    fn from(&self, start: u64) -> Result<Bytes, ParquetError> {
        let inside = |(at, bytes): &&(u64, Bytes)| (*at..*at + bytes.len() as u64).contains(&start);
        let (at, bytes) = self
            .runs
            .iter()
            .find(inside)
            .ok_or_else(|| ParquetError::General(format!("byte {start} is in nothing that was asked for")))?;
        Ok(bytes.slice(usize::try_from(start - at).unwrap_or(0)..))
    }
}

impl Length for Sparse {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Sparse {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Reader<Bytes>, ParquetError> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let from = self.from(start)?;
        if from.len() < length {
            return Err(ParquetError::EOF(format!("{length} bytes from {start} are not in what was asked for")));
        }
        Ok(from.slice(..length))
    }
}
