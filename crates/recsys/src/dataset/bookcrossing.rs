//! BookCrossing: `BX-Book-Ratings.csv`, `BX-Books.csv`, `BX-Users.csv` (`;`, quoted, Windows-1252).
//!
//! Which books and users belong to the set is the paper's rule (METHOD section 1), applied here: books that stay in a
//! core of active users, then all ratings of these books, then users with at least five of them. Implicit ratings, which
//! are 0, count as any other. There are no times. What is left to the pipeline: the split, the length of histories, and
//! what a like is.

use super::{
    DatasetError,
    filter::{self, Bounds},
    mapped,
    raw::{Item, Raw, User, age_bucket_of},
    rows,
    source::Tolerance,
};
use rallrec_core::mapping::{BOOK_FIELDS, ItemsTable, Mapping, RatingsTable, TextEncoding, UsersTable};
use std::{collections::HashMap, path::Path};

/// The files, ratings first.
pub(super) const FILES: [&str; 3] = ["BX-Book-Ratings.csv", "BX-Books.csv", "BX-Users.csv"];

/// Ratings of a user, and of a book, in the core that decides which books are kept.
const CORE_USERS: Bounds = Bounds { least: 11, most: 200 };
const CORE_BOOKS: Bounds = Bounds { least: 10, most: 0 };
/// Ratings of kept books that a user must have.
const USERS: Bounds = Bounds { least: 5, most: 0 };
const ANY: Bounds = Bounds { least: 0, most: 0 };

pub(super) fn read(dir: &Path, tolerance: &mut Tolerance<'_>) -> Result<Raw, DatasetError> {
    let mut books = books(dir, tolerance)?;
    let mut people = people(dir, tolerance)?;
    let mut raw = mapped::read(dir, &ratings(), tolerance)?;
    let all = raw.ratings.clone();
    filter::core(&mut raw, CORE_USERS, CORE_BOOKS);
    let mut kept = vec![false; raw.items.entries.len()];
    for rating in &raw.ratings {
        kept[rating.item as usize] = books.contains_key(&raw.items.entries[rating.item as usize].id);
    }
    raw.ratings = all;
    let ratings = raw.ratings.len();
    raw.ratings.retain(|r| kept[r.item as usize]);
    filter::core(&mut raw, USERS, ANY);
    if raw.ratings.is_empty() {
        return Err(DatasetError::NoCore { file: raw.ratings_file, ratings });
    }
    filter::only_rated(&mut raw);
    for entry in &mut raw.items.entries {
        if let Some(book) = books.remove(&entry.id) {
            entry.value = book;
        }
    }
    for entry in &mut raw.users.entries {
        // A user who is not in the file is one of whom nothing is known.
        entry.value = people.remove(&entry.id).unwrap_or_else(unknown);
    }
    raw.item_fields = BOOK_FIELDS.map(String::from).to_vec();
    raw.user_fields = vec!["country".into()];
    Ok(raw)
}

fn ratings() -> Mapping {
    let ratings = RatingsTable {
        file: FILES[0].into(),
        separator: ";".into(),
        escape: "\\".into(),
        encoding: TextEncoding::Cp1252,
        user: "User-ID".into(),
        item: "ISBN".into(),
        rating: "Book-Rating".into(),
        ..RatingsTable::default()
    };
    Mapping { ratings, verb: "read".into(), ..Mapping::default() }
}

fn books(dir: &Path, tolerance: &mut Tolerance<'_>) -> Result<HashMap<String, Item>, DatasetError> {
    const COLUMNS: [&str; 5] = ["ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", "Publisher"];
    let table = ItemsTable {
        file: FILES[1].into(),
        separator: ";".into(),
        escape: "\\".into(),
        encoding: TextEncoding::Cp1252,
        ..ItemsTable::default()
    };
    let mut books = HashMap::new();
    rows::read(dir, &table.layout(), &COLUMNS, tolerance, &mut |row| {
        let (isbn, title) = (row.text(0)?, row.text(1)?);
        let year = row.optional(3)?.and_then(|year| year.trim().parse().ok()).filter(|year| (1..=9999).contains(year));
        let word = |at| row.optional(at).map(|text| text.unwrap_or_default().trim().to_owned());
        let further = vec![word(2)?, word(4)?, isbn.into()];
        let book = Item { title: title.trim().into(), genres: Vec::new(), year, further };
        books.entry(isbn.to_owned()).or_insert(book);
        Ok(())
    })?;
    Ok(books)
}

fn people(dir: &Path, tolerance: &mut Tolerance<'_>) -> Result<HashMap<String, User>, DatasetError> {
    let table = UsersTable {
        file: FILES[2].into(),
        separator: ";".into(),
        escape: "\\".into(),
        encoding: TextEncoding::Cp1252,
        missing: vec!["NULL".into()],
        ..UsersTable::default()
    };
    let mut people = HashMap::new();
    rows::read(dir, &table.layout(), &["User-ID", "Location", "Age"], tolerance, &mut |row| {
        let location = row.optional(1)?.unwrap_or_default();
        // Ages of 0 and of more than any human's stand there, too: nobody's age.
        let age = row.optional(2)?.and_then(|age| age.trim().parse::<u32>().ok()).filter(|age| (1..=130).contains(age));
        let age = age.map_or(String::new(), |age| age_bucket_of(age).into());
        people.insert(row.text(0)?.to_owned(), User { age, further: vec![country(location)], ..User::default() });
        Ok(())
    })?;
    Ok(people)
}

fn unknown() -> User {
    User { further: vec![String::new()], ..User::default() }
}

/// The last part of `city, region, country`.
fn country(location: &str) -> String {
    let last = location.rsplit(',').next().unwrap_or_default();
    match last.trim().trim_end_matches('.') {
        "n/a" => String::new(),
        country => country.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::country;

    #[test]
    fn a_country_is_the_last_part() {
        assert_eq!(
            ["timmins, ontario, canada", "rome, , italy.", "x, n/a, n/a", "", "a,b,"].map(country),
            ["canada", "italy", "", "", ""]
        );
    }
}
