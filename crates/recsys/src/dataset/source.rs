//! Raw files as numbered lines, and identifiers as row positions.
//!
//! Deliberately strict: a blank line or a field that does not parse is an error with its place, and whoever reads the
//! set decides by [`Tolerance`] whether its row may be left out. A data set that is silently repaired gives counts that
//! nobody can compare.

use super::DatasetError;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// How a file's bytes stand for characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// ISO-8859-1: byte n is the character U+00nn.
    Latin1,
    /// UTF-8.
    Utf8,
}

/// Decides about bad rows: each goes to the function, which says whether it may be left out.
pub(super) struct Tolerance<'a>(pub(super) &'a mut dyn FnMut(&DatasetError) -> bool);

impl Tolerance<'_> {
    /// The value, nothing for a bad row that is left out, or the error.
    pub(super) fn keep<T>(&mut self, result: Result<T, DatasetError>) -> Result<Option<T>, DatasetError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.bad_row().is_some() && (self.0)(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The values without those of bad rows.
    pub(super) fn keep_all<T>(
        &mut self,
        results: impl IntoIterator<Item = Result<T, DatasetError>>,
    ) -> Result<Vec<T>, DatasetError> {
        let mut kept = Vec::new();
        for result in results {
            kept.extend(self.keep(result)?);
        }
        Ok(kept)
    }
}

/// A file in memory.
pub(super) struct Source {
    pub(super) path: PathBuf,
    text: String,
}

impl Source {
    pub(super) fn read(path: PathBuf, encoding: Encoding) -> Result<Self, DatasetError> {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) => return Err(DatasetError::Io { path, source }),
        };
        let text = match String::from_utf8(bytes) {
            Ok(text) if encoding == Encoding::Utf8 || text.is_ascii() => text,
            Ok(text) => latin1(text.as_bytes()),
            Err(e) if encoding == Encoding::Latin1 => latin1(e.as_bytes()),
            Err(e) => {
                let valid = e.utf8_error().valid_up_to();
                let line = 1 + e.as_bytes()[..valid].iter().filter(|b| **b == b'\n').count();
                let found = format!("byte 0x{:02x}", e.as_bytes()[valid]);
                return Err(DatasetError::Malformed { file: path, line, expected: "UTF-8 text".into(), found });
            }
        };
        Ok(Self { path, text })
    }

    /// The lines, without their ends. A last line end does not begin another line.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.text.lines().enumerate().map(|(i, text)| Line { file: &self.path, number: i + 1, text })
    }

    /// About how many lines there are, to reserve memory.
    pub(super) fn line_estimate(&self) -> usize {
        self.text.len() / 16
    }
}

pub(super) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

/// One line and its place.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) file: &'a Path,
    pub(super) number: usize,
    pub(super) text: &'a str,
}

impl<'a> Line<'a> {
    /// The line's fields; there must be exactly `N`.
    pub(super) fn fields<const N: usize>(&self, separator: &str, layout: &str) -> Result<[&'a str; N], DatasetError> {
        let mut fields = [""; N];
        let mut found = 0;
        for field in self.text.split(separator) {
            if let Some(slot) = fields.get_mut(found) {
                *slot = field;
            }
            found += 1;
        }
        if found == N { Ok(fields) } else { Err(self.malformed(layout, self.text)) }
    }

    /// A rating: two identifiers, stars, seconds.
    pub(super) fn rating(&self, [user, item, stars, seconds]: [&'a str; 4]) -> Result<RawRating<'a>, DatasetError> {
        let rating = stars.parse::<f32>().ok().filter(|r| *r > 0.0 && *r <= 5.0);
        let rating = rating.ok_or_else(|| self.malformed("a rating above 0 and up to 5 stars", stars))?;
        let timestamp =
            whole_seconds(seconds).ok_or_else(|| self.malformed("a timestamp in seconds since 1970", seconds))?;
        Ok(RawRating { user, item, rating, timestamp })
    }

    pub(super) fn malformed(&self, expected: impl Into<String>, found: &str) -> DatasetError {
        DatasetError::Malformed {
            file: self.file.into(),
            line: self.number,
            expected: expected.into(),
            found: found.into(),
        }
    }
}

/// RecBole writes whole seconds as floats at times (`978300760.0`).
pub(super) fn whole_seconds(text: &str) -> Option<i64> {
    let seconds = match text.parse::<i64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            let seconds = text.parse::<f64>().ok()?;
            // Beyond 2^53 a float no longer tells seconds apart.
            if seconds.fract() != 0.0 || seconds.abs() > 9.0e15 {
                return None;
            }
            seconds as i64
        }
    };
    (seconds >= 0).then_some(seconds)
}

/// A rating, with identifiers as written.
#[derive(Clone, Copy)]
pub(super) struct RawRating<'a> {
    pub(super) user: &'a str,
    pub(super) item: &'a str,
    pub(super) rating: f32,
    pub(super) timestamp: i64,
}

/// Something that its file identifies: a user or an item.
pub(super) struct Entry<T> {
    pub(super) id: String,
    pub(super) line: usize,
    pub(super) value: T,
}

impl<T> Entry<T> {
    /// An entry for `line`; the identifier (`what`, with its article) must not be empty.
    pub(super) fn new(line: &Line<'_>, id: &str, what: &str, value: T) -> Result<Self, DatasetError> {
        if id.is_empty() {
            return Err(line.malformed(what, line.text));
        }
        Ok(Self { id: id.into(), line: line.number, value })
    }
}

/// Entries in row order, and the way from identifiers to rows.
pub(super) struct Catalogue<T> {
    pub(super) file: PathBuf,
    what: &'static str,
    pub(super) entries: Vec<Entry<T>>,
    rows: HashMap<String, i32>,
}

impl<T> Catalogue<T> {
    /// Sorts entries by identifier: as numbers when all are numbers, else as text. So one set in two layouts gives
    /// the same rows, and ordering by row is ordering by identifier. Of two with one identifier the second is a bad row.
    pub(super) fn new(
        file: PathBuf,
        what: &'static str,
        mut entries: Vec<Entry<T>>,
        tolerance: &mut Tolerance<'_>,
    ) -> Result<Self, DatasetError> {
        if i32::try_from(entries.len()).is_err() {
            return Err(DatasetError::TooMany { file, what, count: entries.len() });
        }
        if entries.iter().all(|e| e.id.parse::<u64>().is_ok()) {
            entries.sort_by_cached_key(|e| (e.id.parse::<u64>().unwrap_or(u64::MAX), e.id.clone()));
        } else {
            entries.sort_by(|a, b| a.id.cmp(&b.id));
        }
        let mut kept: Vec<Entry<T>> = Vec::with_capacity(entries.len());
        // Sorting is stable: entries of one identifier are neighbours, in the order of their lines.
        for entry in entries {
            let first = kept.last().filter(|last| last.id == entry.id).map(|last| last.line);
            let entry = match first {
                None => Ok(entry),
                Some(first) => Err(DatasetError::Duplicate {
                    file: file.clone(),
                    line: entry.line,
                    what: format!("{what} {:?}", entry.id),
                    first,
                }),
            };
            kept.extend(tolerance.keep(entry)?);
        }
        Ok(Self::sorted(file, what, kept))
    }

    /// Entries that are in order, each identifier once.
    fn sorted(file: PathBuf, what: &'static str, entries: Vec<Entry<T>>) -> Self {
        let rows = (0_i32..).zip(&entries).map(|(row, entry)| (entry.id.clone(), row)).collect();
        Self { file, what, entries, rows }
    }

    /// Keeps the entries for which `keep` is true, in their order. For each old row its new one.
    pub(super) fn keep_only(&mut self, keep: &[bool]) -> Vec<Option<i32>> {
        let mut next = 0..;
        let moved = keep.iter().map(|keep| if *keep { next.next() } else { None }).collect();
        let old = std::mem::take(&mut self.entries);
        let entries = old.into_iter().zip(keep).filter_map(|(entry, keep)| keep.then_some(entry)).collect();
        *self = Self::sorted(std::mem::take(&mut self.file), self.what, entries);
        moved
    }

    /// Row of an identifier that stands on line `line` of `file`.
    pub(super) fn row(&self, id: &str, file: &Path, line: usize) -> Result<i32, DatasetError> {
        self.rows.get(id).copied().ok_or_else(|| DatasetError::UnknownId {
            file: file.into(),
            line,
            what: self.what,
            id: id.into(),
            catalogue: self.file.clone(),
        })
    }
}
