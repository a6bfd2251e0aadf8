//! RecBole atomic files of MovieLens: `*.inter`, `*.item`, `*.user`; UTF-8, tabs, a header of `name:type`.
//!
//! Columns are found by name, in any order, and others are let be. Titles lack the year there, so it is put back
//! (`Toy Story (1995)`), and a set reads the same as from its raw layout.

use super::{
    DatasetError,
    raw::{Item, Raw, User, age_bucket, four_digits, gender, job_of_code, title, year_of_title},
    source::{Catalogue, Encoding, Entry, Line, Source, Tolerance},
};
use std::path::{Path, PathBuf};

/// Endings of the files, ratings first.
pub(super) const ENDINGS: [&str; 3] = ["inter", "item", "user"];

pub(super) fn read(dir: &Path, tolerance: &mut Tolerance<'_>) -> Result<Raw, DatasetError> {
    let [ratings, items, users] = ENDINGS;
    let items = Table::read(dir, items)?;
    let items = items.catalogue("item", item, tolerance)?;
    let users = Table::read(dir, users)?;
    let users = users.catalogue("user", user, tolerance)?;
    let ratings = Table::read(dir, ratings)?;
    let columns = [
        ratings.column("user_id")?,
        ratings.column("item_id")?,
        ratings.column("rating")?,
        ratings.column("timestamp")?,
    ];
    Raw::new(items, users, &ratings.source, 1, tolerance, |line| {
        let mut fields = [""; 4];
        ratings.check(line)?;
        // Lines have few columns: walking them beats collecting a million lists.
        for (i, value) in line.text.split('\t').enumerate() {
            for (slot, column) in fields.iter_mut().zip(columns) {
                if i == column {
                    *slot = value;
                }
            }
        }
        line.rating(fields)
    })
}

fn item(table: &Table, line: &Line<'_>) -> Result<Entry<Item>, DatasetError> {
    let name = title(table.value(line, "movie_title")?, line)?;
    let year = four_digits(table.value(line, "release_year")?);
    // `class` in RecBole's ml-100k, `genre` in its ml-1m.
    let genres =
        if table.column("class").is_ok() { table.value(line, "class")? } else { table.value(line, "genre")? };
    let genres = genres.split(' ').filter(|g| !g.is_empty() && *g != "unknown").map(String::from).collect();
    let title = match year {
        Some(year) if year_of_title(&name) != Some(year) => format!("{name} ({year})"),
        _ => name,
    };
    let year = year_of_title(&title);
    Entry::new(line, table.value(line, "item_id")?, "an item_id", Item { title, genres, year, further: Vec::new() })
}

fn user(table: &Table, line: &Line<'_>) -> Result<Entry<User>, DatasetError> {
    let (gender, age) = (gender(table.value(line, "gender")?, line)?, age_bucket(table.value(line, "age")?, line)?);
    // Words in ml-100k, codes in ml-1m.
    let job = table.value(line, "occupation")?;
    let job = if job.bytes().all(|b| b.is_ascii_digit()) { job_of_code(job, line)? } else { job.into() };
    let zip = table.value(line, "zip_code")?.into();
    Entry::new(line, table.value(line, "user_id")?, "a user_id", User { gender, age, job, zip, further: Vec::new() })
}

/// One atomic file.
struct Table {
    source: Source,
    columns: Vec<String>,
}

impl Table {
    fn read(dir: &Path, ending: &'static str) -> Result<Self, DatasetError> {
        let mut paths = files_ending(dir, ending)?;
        let (Some(path), true) = (paths.pop(), paths.is_empty()) else {
            return Err(DatasetError::FileCount { dir: dir.into(), ending, found: files_ending(dir, ending)?.len() });
        };
        let source = Source::read(path, Encoding::Utf8)?;
        let columns = source.lines().next().map(|line| line.text.split('\t').map(column_name).collect());
        Ok(Self { columns: columns.unwrap_or_default(), source })
    }

    fn catalogue<T>(
        &self,
        what: &'static str,
        entry: impl Fn(&Self, &Line<'_>) -> Result<Entry<T>, DatasetError>,
        tolerance: &mut Tolerance<'_>,
    ) -> Result<Catalogue<T>, DatasetError> {
        let entries = self.source.lines().skip(1).map(|line| {
            self.check(&line)?;
            entry(self, &line)
        });
        Catalogue::new(self.source.path.clone(), what, tolerance.keep_all(entries)?, tolerance)
    }

    fn check(&self, line: &Line<'_>) -> Result<(), DatasetError> {
        if line.text.split('\t').count() == self.columns.len() {
            return Ok(());
        }
        Err(line.malformed(
            format!("{} fields separated by tabs ({})", self.columns.len(), self.columns.join(", ")),
            line.text,
        ))
    }

    fn column(&self, column: &'static str) -> Result<usize, DatasetError> {
        self.columns.iter().position(|c| c == column).ok_or_else(|| DatasetError::MissingColumn {
            file: self.source.path.clone(),
            column,
            found: self.columns.join(", "),
        })
    }

    fn value<'a>(&self, line: &Line<'a>, column: &'static str) -> Result<&'a str, DatasetError> {
        let position = self.column(column)?;
        Ok(line.text.split('\t').nth(position).unwrap_or_default())
    }
}

fn column_name(header: &str) -> String {
    header.split_once(':').map_or(header, |(name, _)| name).into()
}

/// Files of `dir` with an ending, by name.
pub(super) fn files_ending(dir: &Path, ending: &str) -> Result<Vec<PathBuf>, DatasetError> {
    let io = |source| DatasetError::Io { path: dir.into(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == ending) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
