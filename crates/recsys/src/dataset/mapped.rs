//! A user's own files, as a mapping describes them (`rallrec_core::mapping`).
//!
//! Without a table of items or users, they are those that the ratings name. A rating that names one that its table
//! lacks is a bad row: nothing is made up for it.

use super::{
    DatasetError,
    raw::{Item, Rating, Raw, User, age_bucket_of, year_of_title},
    rows::{self, Row},
    source::{Catalogue, Entry, Tolerance, whole_seconds},
};
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use rallrec_core::mapping::{ItemsTable, Mapping, RatingsTable, TimeFormat, UsersTable};
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

/// The end of the year 9999.
const LAST_SECOND: i64 = 253_402_300_799;

pub(super) fn read(dir: &Path, mapping: &Mapping, tolerance: &mut Tolerance<'_>) -> Result<Raw, DatasetError> {
    let mut items = match &mapping.items {
        Some(table) => Ids::Known(items(dir, table, tolerance)?),
        None => Ids::empty(),
    };
    let mut users = match &mapping.users {
        Some(table) => Ids::Known(users(dir, table, tolerance)?),
        None => Ids::empty(),
    };
    let mut ratings = Vec::new();
    let file = read_ratings(dir, &mapping.ratings, &mut users, &mut items, &mut ratings, tolerance)?;
    let names = |fields: Option<&BTreeMap<String, String>>| fields.map_or(Vec::new(), |f| f.keys().cloned().collect());
    let title_only = |id: &str| Item { title: id.into(), genres: Vec::new(), year: None, further: Vec::new() };
    let (items, item_rows) = items.finish(&file, "item", title_only, tolerance)?;
    let (users, user_rows) = users.finish(&file, "user", |_| User::default(), tolerance)?;
    for rating in &mut ratings {
        rating.item = item_rows.get(rating.item as usize).copied().unwrap_or(rating.item);
        rating.user = user_rows.get(rating.user as usize).copied().unwrap_or(rating.user);
    }
    let mut raw = Raw {
        items,
        users,
        ratings,
        ratings_file: file,
        timed: !mapping.ratings.time.is_empty(),
        item_fields: names(mapping.items.as_ref().map(|t| &t.fields)),
        user_fields: names(mapping.users.as_ref().map(|t| &t.fields)),
        verb: mapping.verb.clone(),
    };
    raw.single_pairs(tolerance)?;
    Ok(raw)
}

fn read_ratings(
    dir: &Path,
    table: &RatingsTable,
    users: &mut Ids<User>,
    items: &mut Ids<Item>,
    ratings: &mut Vec<Rating>,
    tolerance: &mut Tolerance<'_>,
) -> Result<PathBuf, DatasetError> {
    const USER: usize = 0;
    const ITEM: usize = 1;
    const RATING: usize = 2;
    const TIME: usize = 3;
    let wanted = [table.user.as_str(), &table.item, &table.rating, &table.time];
    rows::read(dir, &table.layout(), &wanted, tolerance, &mut |row| {
        let (user, item) = (row.text(USER)?, row.text(ITEM)?);
        let rating = row.text(RATING)?.trim().parse::<f32>().ok().filter(|r| r.is_finite());
        let rating = rating.ok_or_else(|| row.wrong(RATING, "a number"))?;
        let timestamp = if table.time.is_empty() { 0 } else { time(row, TIME, table.time_format)? };
        let line = u32::try_from(row.line).map_err(|_| row.wrong(USER, "fewer than 2^32 lines"))?;
        // Both are looked up before either is noted: a bad row must not leave a user or an item behind.
        users.check(user, row)?;
        items.check(item, row)?;
        ratings.push(Rating { user: users.row(user, row)?, item: items.row(item, row)?, rating, timestamp, line });
        Ok(())
    })
}

/// Seconds since 1970.
fn time(row: &Row<'_>, at: usize, format: TimeFormat) -> Result<i64, DatasetError> {
    let text = row.text(at)?.trim();
    let (seconds, expected) = match format {
        TimeFormat::Seconds => (whole_seconds(text), "whole seconds since 1970"),
        TimeFormat::Milliseconds => (whole_seconds(text).map(|ms| ms / 1000), "whole milliseconds since 1970"),
        TimeFormat::Iso => (iso_seconds(text), "a date like 2024-03-01 or 2024-03-01T10:30:00Z, not before 1970"),
    };
    // A later time is one in another unit.
    seconds.filter(|seconds| *seconds <= LAST_SECOND).ok_or_else(|| row.wrong(at, expected))
}

fn iso_seconds(text: &str) -> Option<i64> {
    let local = |format| NaiveDateTime::parse_from_str(text, format).ok().map(|time| time.and_utc().timestamp());
    let seconds = DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|time| time.timestamp())
        .or_else(|| local("%Y-%m-%dT%H:%M:%S%.f"))
        .or_else(|| local("%Y-%m-%d %H:%M:%S%.f"))
        .or_else(|| local("%Y-%m-%dT%H:%M"))
        .or_else(|| local("%Y-%m-%d %H:%M"))
        .or_else(|| {
            let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
            Some(date.and_hms_opt(0, 0, 0)?.and_utc().timestamp())
        });
    seconds.filter(|s| *s >= 0)
}

fn items(dir: &Path, table: &ItemsTable, tolerance: &mut Tolerance<'_>) -> Result<Catalogue<Item>, DatasetError> {
    const ID: usize = 0;
    const TITLE: usize = 1;
    const GENRES: usize = 2;
    const YEAR: usize = 3;
    const FURTHER: usize = 4;
    let mut wanted = vec![table.id.as_str(), &table.title, &table.genres, &table.year];
    wanted.extend(table.fields.values().map(String::as_str));
    let mut entries = Vec::new();
    let file = rows::read(dir, &table.layout(), &wanted, tolerance, &mut |row| {
        let id = row.text(ID)?;
        let title = if table.title.is_empty() { id } else { row.text(TITLE)?.trim() };
        if title.is_empty() {
            return Err(row.wrong(TITLE, "a title"));
        }
        let year = if table.year.is_empty() { year_of_title(title) } else { year(row, YEAR)? };
        let genres = row.list(GENRES, &table.genre_separator);
        let value = Item { title: title.into(), genres, year, further: further(row, FURTHER, wanted.len())? };
        entries.push(Entry { id: id.into(), line: row.line, value });
        Ok(())
    })?;
    Catalogue::new(file, "item", entries, tolerance)
}

/// A year, `None` where it is missing or 0.
fn year(row: &Row<'_>, at: usize) -> Result<Option<i32>, DatasetError> {
    let Some(text) = row.optional(at)? else { return Ok(None) };
    let year = text.trim().parse::<i32>().ok().filter(|year| (0..=9999).contains(year));
    year.ok_or_else(|| row.wrong(at, "a year, or 0 for none")).map(|year| Some(year).filter(|year| *year > 0))
}

fn users(dir: &Path, table: &UsersTable, tolerance: &mut Tolerance<'_>) -> Result<Catalogue<User>, DatasetError> {
    const ID: usize = 0;
    const GENDER: usize = 1;
    const AGE: usize = 2;
    const JOB: usize = 3;
    const ZIP: usize = 4;
    const FURTHER: usize = 5;
    let mut wanted = vec![table.id.as_str(), &table.gender, &table.age, &table.job, &table.zip];
    wanted.extend(table.fields.values().map(String::as_str));
    let mut entries = Vec::new();
    let file = rows::read(dir, &table.layout(), &wanted, tolerance, &mut |row| {
        let word = |at| row.optional(at).map(|text| text.unwrap_or_default().trim().to_owned());
        let gender = match word(GENDER)?.as_str() {
            "F" | "f" => "female".into(),
            "M" | "m" => "male".into(),
            other => other.into(),
        };
        let value = User {
            gender,
            age: age(row, AGE)?,
            job: word(JOB)?,
            zip: word(ZIP)?,
            further: further(row, FURTHER, wanted.len())?,
        };
        entries.push(Entry { id: row.text(ID)?.into(), line: row.line, value });
        Ok(())
    })?;
    Catalogue::new(file, "user", entries, tolerance)
}

/// The bucket of an age in years; other words as they are.
fn age(row: &Row<'_>, at: usize) -> Result<String, DatasetError> {
    let text = row.optional(at)?.unwrap_or_default().trim();
    match text.parse::<f64>() {
        Err(_) => Ok(text.into()),
        Ok(years) if years.fract() == 0.0 && (0.0..=130.0).contains(&years) => Ok(age_bucket_of(years as u32).into()),
        Ok(_) => Err(row.wrong(at, "an age in years, at most 130")),
    }
}

/// The texts of the wanted columns from `from`.
fn further(row: &Row<'_>, from: usize, to: usize) -> Result<Vec<String>, DatasetError> {
    (from..to).map(|at| Ok(row.list(at, "").join(", "))).collect()
}

/// Rows for identifiers: of a table, or as the ratings name them.
pub(super) enum Ids<T> {
    Known(Catalogue<T>),
    Found(Found),
}

/// Identifiers in the order in which they came, each with the line of the first.
#[derive(Default)]
pub(super) struct Found {
    rows: HashMap<String, i32>,
    ids: Vec<(String, usize)>,
}

impl<T> Ids<T> {
    /// Of no table.
    pub(super) fn empty() -> Self {
        Self::Found(Found::default())
    }

    fn check(&self, id: &str, row: &Row<'_>) -> Result<(), DatasetError> {
        match self {
            Self::Known(catalogue) => catalogue.row(id, row.file, row.line).map(|_| ()),
            Self::Found(_) => Ok(()),
        }
    }

    pub(super) fn row(&mut self, id: &str, row: &Row<'_>) -> Result<i32, DatasetError> {
        let found = match self {
            Self::Known(catalogue) => return catalogue.row(id, row.file, row.line),
            Self::Found(found) => found,
        };
        if let Some(known) = found.rows.get(id) {
            return Ok(*known);
        }
        let next = i32::try_from(found.ids.len()).map_err(|_| DatasetError::TooMany {
            file: row.file.into(),
            what: "users or items",
            count: found.ids.len(),
        })?;
        found.rows.insert(id.into(), next);
        found.ids.push((id.into(), row.line));
        Ok(next)
    }

    /// The catalogue, and for rows in the order in which they were found those in its order.
    pub(super) fn finish(
        self,
        file: &Path,
        what: &'static str,
        mut value: impl FnMut(&str) -> T,
        tolerance: &mut Tolerance<'_>,
    ) -> Result<(Catalogue<T>, Vec<i32>), DatasetError> {
        let found = match self {
            Self::Known(catalogue) => return Ok((catalogue, Vec::new())),
            Self::Found(found) => found,
        };
        let entry = |(id, line): &(String, usize)| Entry { id: id.clone(), line: *line, value: value(id) };
        let catalogue = Catalogue::new(file.into(), what, found.ids.iter().map(entry).collect(), tolerance)?;
        let rows = found.ids.iter().map(|(id, line)| catalogue.row(id, file, *line)).collect::<Result<_, _>>()?;
        Ok((catalogue, rows))
    }
}

#[cfg(test)]
mod tests {
    use super::iso_seconds;

    #[test]
    fn dates_are_seconds_in_utc() {
        assert_eq!(iso_seconds("1970-01-02"), Some(86_400));
        assert_eq!(iso_seconds("2001-09-09T01:46:40Z"), Some(1_000_000_000));
        assert_eq!(iso_seconds("2001-09-09 01:46:40"), Some(1_000_000_000));
        assert_eq!(iso_seconds("2001-09-09T03:46:40.75+02:00"), Some(1_000_000_000));
        assert_eq!(iso_seconds("2001-09-09 01:46"), Some(999_999_960));
        for wrong in ["1969-12-31", "2001-02-29", "09.09.2001", "2001-09-09T25:00:00Z", "1000000000", ""] {
            assert_eq!(iso_seconds(wrong), None, "{wrong}");
        }
    }
}
