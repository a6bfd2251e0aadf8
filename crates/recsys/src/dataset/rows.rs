//! Rows of a user's own files: the values of the columns that a mapping names, whatever the format.
//!
//! CSV, JSON and Parquet are taken apart by their libraries. What a value means is decided by [`super::mapped`]; here it is only
//! text, a list of texts, or missing.

use super::{
    DatasetError, columnar,
    source::{Tolerance, latin1},
};
use rallrec_core::mapping::{FileFormat, Layout, TextEncoding};
use serde_json::{Map, Value as Json};
use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

/// Lines after which a quoted value is taken for one whose end is missing.
const LONGEST_VALUE_LINES: u64 = 1000;
/// Longest piece of a row in a message, in characters.
const SHOWN: usize = 120;

/// A value of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// None, or one of the texts that mean none.
    Missing,
    /// A text, or a number as text.
    Text(String),
    /// A list of texts.
    List(Vec<String>),
}

/// The wanted values of one row, and its place.
pub(super) struct Row<'a> {
    pub(super) file: &'a Path,
    pub(super) line: usize,
    columns: &'a [&'a str],
    values: Vec<Value>,
}

impl Row<'_> {
    /// The text of the wanted column `at`.
    pub(super) fn text(&self, at: usize) -> Result<&str, DatasetError> {
        self.optional(at)?.ok_or_else(|| self.wrong(at, "a value"))
    }

    /// As [`Self::text`]; `None` where the value is missing or the column is not mapped.
    pub(super) fn optional(&self, at: usize) -> Result<Option<&str>, DatasetError> {
        match &self.values[at] {
            Value::Missing => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            Value::List(_) => Err(self.wrong(at, "one value")),
        }
    }

    /// The parts of a text between separators, or the list that stands there; without blanks round each, or empty ones.
    pub(super) fn list(&self, at: usize, separator: &str) -> Vec<String> {
        let clean = |parts: &mut dyn Iterator<Item = &str>| {
            parts.map(str::trim).filter(|part| !part.is_empty()).map(String::from).collect()
        };
        match &self.values[at] {
            Value::Missing => Vec::new(),
            Value::Text(text) if separator.is_empty() => clean(&mut std::iter::once(text.as_str())),
            Value::Text(text) => clean(&mut text.split(separator)),
            Value::List(parts) => clean(&mut parts.iter().map(String::as_str)),
        }
    }

    /// That the value of the wanted column `at` is not what it should be.
    pub(super) fn wrong(&self, at: usize, expected: &str) -> DatasetError {
        DatasetError::Value {
            file: self.file.into(),
            line: self.line,
            column: self.columns[at].into(),
            expected: expected.into(),
            found: match &self.values[at] {
                Value::Missing => String::new(),
                Value::Text(text) => shown(text),
                Value::List(parts) => shown(&parts.join(", ")),
            },
        }
    }
}

/// Reads the rows of a table. `wanted` names columns; an empty name is one that is not mapped.
pub(super) fn read(
    dir: &Path,
    layout: &Layout<'_>,
    wanted: &[&str],
    tolerance: &mut Tolerance<'_>,
    each: &mut dyn FnMut(&Row<'_>) -> Result<(), DatasetError>,
) -> Result<PathBuf, DatasetError> {
    let path = dir.join(layout.file);
    let table = Reading { path: &path, layout, wanted };
    match layout.resolved() {
        Some(FileFormat::JsonLines) => table.json_lines(tolerance, each)?,
        Some(FileFormat::Parquet) => table.parquet(tolerance, each)?,
        _ => table.csv(tolerance, each)?,
    }
    Ok(path)
}

/// One table that is read.
struct Reading<'a> {
    path: &'a Path,
    layout: &'a Layout<'a>,
    wanted: &'a [&'a str],
}

type Each<'a> = dyn FnMut(&Row<'_>) -> Result<(), DatasetError> + 'a;

impl Reading<'_> {
    fn csv(&self, tolerance: &mut Tolerance<'_>, each: &mut Each<'_>) -> Result<(), DatasetError> {
        let mut reader = self.csv_reader()?;
        let mut record = csv::ByteRecord::new();
        let mut names = self.layout.columns.to_vec();
        if names.is_empty() {
            reader.read_byte_record(&mut record).map_err(|e| self.csv_error(e))?;
            names = record
                .iter()
                .map(|name| self.decoded(name).map(|name| name.trim().to_owned()).unwrap_or_default())
                .collect();
        }
        let positions = self.positions(&names)?;
        while reader.read_byte_record(&mut record).map_err(|e| self.csv_error(e))? {
            // The reader counts the blank lines before a record as the record's.
            let within = record.as_slice().iter().filter(|b| **b == b'\n').count() as u64;
            let (begun, next) = (record.position().map_or(0, csv::Position::line), reader.position().line());
            let line = begun.max(next.saturating_sub(within + 1)) as usize;
            let lines = within + 1;
            if lines > LONGEST_VALUE_LINES {
                return Err(DatasetError::OpenQuote { file: self.path.into(), line, lines: lines as usize });
            }
            if record.len() == 1 && matches!(&record[0], b"" | b"\r") {
                continue;
            }
            let row = self.csv_row(&record, line, &names, &positions);
            tolerance.keep(row.and_then(|row| each(&row)))?;
        }
        Ok(())
    }

    fn csv_reader(&self) -> Result<csv::Reader<File>, DatasetError> {
        let mark = |text: &str| text.bytes().next();
        let quote = mark(self.layout.quote);
        Ok(csv::ReaderBuilder::new()
            .delimiter(self.layout.separator())
            .quoting(quote.is_some())
            .quote(quote.unwrap_or(b'"'))
            .escape(mark(self.layout.escape))
            .double_quote(self.layout.escape.is_empty())
            // Only so do the reader's lines count right where lines end with \r\n; the \r is taken off below.
            .terminator(csv::Terminator::Any(b'\n'))
            .has_headers(false)
            .flexible(true)
            .from_reader(self.open()?))
    }

    fn csv_row(
        &self,
        record: &csv::ByteRecord,
        line: usize,
        names: &[String],
        positions: &[Option<usize>],
    ) -> Result<Row<'_>, DatasetError> {
        if record.len() != names.len() {
            let found = record.iter().map(|f| String::from_utf8_lossy(f)).collect::<Vec<_>>();
            return Err(DatasetError::Malformed {
                file: self.path.into(),
                line,
                expected: format!("{} values ({})", names.len(), names.join(", ")),
                found: shown(&found.join(&char::from(self.layout.separator()).to_string())),
            });
        }
        let mut row = Row { file: self.path, line, columns: self.wanted, values: Vec::with_capacity(positions.len()) };
        let last = record.len().checked_sub(1);
        for (at, position) in positions.iter().enumerate() {
            let value = match position.and_then(|p| record.get(p)) {
                None => Value::Missing,
                Some(bytes) => match self.decoded(if position == &last { without_cr(bytes) } else { bytes }) {
                    Some(text) => self.text(text),
                    None => {
                        row.values.resize(self.wanted.len(), Value::Missing);
                        row.values[at] = Value::Text(String::from_utf8_lossy(bytes).into_owned());
                        return Err(row.wrong(at, "UTF-8 text (or set `encoding`)"));
                    }
                },
            };
            row.values.push(value);
        }
        Ok(row)
    }

    /// Where the wanted columns stand.
    fn positions(&self, names: &[String]) -> Result<Vec<Option<usize>>, DatasetError> {
        let position = |column: &&str| match names.iter().position(|name| name == column) {
            Some(position) => Ok(Some(position)),
            None if column.is_empty() => Ok(None),
            None => Err(DatasetError::UnmappedColumn {
                file: self.path.into(),
                column: (*column).into(),
                found: names.join(", "),
            }),
        };
        self.wanted.iter().map(position).collect()
    }

    fn parquet(&self, tolerance: &mut Tolerance<'_>, each: &mut Each<'_>) -> Result<(), DatasetError> {
        columnar::read(self.path, self.open()?, self.wanted, &mut |line, values| {
            let wrong = values.iter().position(Option::is_none);
            let values = values.into_iter().map(|value| match value {
                Some(Value::Text(text)) => self.text(text),
                value => value.unwrap_or(Value::Missing),
            });
            let row = Row { file: self.path, line, columns: self.wanted, values: values.collect() };
            let read = match wrong {
                Some(at) => Err(row.wrong(at, "a text, a number, a date, or a list of them")),
                None => each(&row),
            };
            tolerance.keep(read).map(|_| ())
        })
    }

    fn json_lines(&self, tolerance: &mut Tolerance<'_>, each: &mut Each<'_>) -> Result<(), DatasetError> {
        for (number, line) in (1..).zip(BufReader::new(self.open()?).split(b'\n')) {
            let line = line.map_err(|e| self.io(e))?;
            let text = if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line };
            if text.trim_ascii().is_empty() {
                continue;
            }
            let row = self.json_row(text, number);
            tolerance.keep(row.and_then(|row| each(&row)))?;
        }
        Ok(())
    }

    fn json_row(&self, text: &[u8], line: usize) -> Result<Row<'_>, DatasetError> {
        let object: Map<String, Json> = serde_json::from_slice(text).map_err(|e| DatasetError::Malformed {
            file: self.path.into(),
            line,
            expected: format!("one JSON object ({e})"),
            found: shown(&String::from_utf8_lossy(text)),
        })?;
        let mut row =
            Row { file: self.path, line, columns: self.wanted, values: Vec::with_capacity(self.wanted.len()) };
        for (at, column) in self.wanted.iter().enumerate() {
            let value = if column.is_empty() { Some(Value::Missing) } else { self.json_value(object.get(*column)) };
            let Some(value) = value else {
                row.values.resize(self.wanted.len(), Value::Missing);
                row.values[at] = Value::Text(object.get(*column).map(Json::to_string).unwrap_or_default());
                return Err(row.wrong(at, "a text, a number, or a list of them"));
            };
            row.values.push(value);
        }
        Ok(row)
    }

    fn json_value(&self, value: Option<&Json>) -> Option<Value> {
        match value {
            None | Some(Json::Null) => Some(Value::Missing),
            Some(Json::Array(parts)) => parts.iter().map(scalar).collect::<Option<_>>().map(Value::List),
            Some(value) => scalar(value).map(|text| self.text(text)),
        }
    }

    /// A text, or missing where it means that.
    fn text(&self, text: String) -> Value {
        if text.is_empty() || self.layout.missing.contains(&text) { Value::Missing } else { Value::Text(text) }
    }

    fn decoded(&self, bytes: &[u8]) -> Option<String> {
        match self.layout.encoding {
            TextEncoding::Utf8 => std::str::from_utf8(bytes).ok().map(String::from),
            TextEncoding::Latin1 => Some(latin1(bytes)),
            TextEncoding::Cp1252 => Some(bytes.iter().map(|b| cp1252(*b)).collect()),
        }
    }

    fn open(&self) -> Result<File, DatasetError> {
        File::open(self.path).map_err(|e| self.io(e))
    }

    fn io(&self, source: std::io::Error) -> DatasetError {
        DatasetError::Io { path: self.path.into(), source }
    }

    fn csv_error(&self, error: csv::Error) -> DatasetError {
        self.io(error.into())
    }
}

fn without_cr(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

fn scalar(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        Json::Bool(word) => Some(word.to_string()),
        _ => None,
    }
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

/// Windows-1252: ISO-8859-1 but for 0x80 to 0x9f, of which five stand for nothing and stay control characters.
fn cp1252(byte: u8) -> char {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘',
        '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    match byte {
        0x80..=0x9f => HIGH[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}
