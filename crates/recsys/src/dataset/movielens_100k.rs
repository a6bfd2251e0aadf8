//! MovieLens-100k: `u.data` (tabs), `u.item` and `u.user` (`|`), ISO-8859-1.
//!
//! `u.genre` is not read: the meaning of the 19 genre flags is part of the layout.

use super::{
    DatasetError,
    raw::{Item, Raw, User, age_bucket, gender, title, year_of_title},
    source::{Catalogue, Encoding, Entry, Line, Source, Tolerance},
};
use std::path::Path;

/// The files, ratings first.
pub(super) const FILES: [&str; 3] = ["u.data", "u.item", "u.user"];

/// Fields of `u.item` before the flags: id, title, release date, video release date, address.
const BEFORE_FLAGS: usize = 5;

/// Meaning of the flags. The first, `unknown`, says that there is no genre.
const GENRES: [&str; 19] = [
    "",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
];

pub(super) fn read(dir: &Path, tolerance: &mut Tolerance<'_>) -> Result<Raw, DatasetError> {
    let [ratings, movies, users] = FILES;
    let movies = Source::read(dir.join(movies), Encoding::Latin1)?;
    let items = tolerance.keep_all(movies.lines().map(|line| item(&line)))?;
    let items = Catalogue::new(movies.path, "item", items, tolerance)?;
    let people = Source::read(dir.join(users), Encoding::Latin1)?;
    let users = tolerance.keep_all(people.lines().map(|line| user(&line)))?;
    let users = Catalogue::new(people.path, "user", users, tolerance)?;
    let ratings = Source::read(dir.join(ratings), Encoding::Latin1)?;
    Raw::new(items, users, &ratings, 0, tolerance, |line| {
        line.rating(line.fields("\t", "user id, item id, rating and timestamp, separated by tabs")?)
    })
}

fn item(line: &Line<'_>) -> Result<Entry<Item>, DatasetError> {
    const LAYOUT: &str = "movie id|title|release date|video release date|address|19 genre flags";
    let fields: [&str; BEFORE_FLAGS + GENRES.len()] = line.fields("|", LAYOUT)?;
    let title = title(fields[1], line)?;
    let mut genres = Vec::new();
    for (flag, genre) in fields[BEFORE_FLAGS..].iter().zip(GENRES) {
        match *flag {
            "1" if !genre.is_empty() => genres.push(genre.into()),
            "0" | "1" => {}
            other => return Err(line.malformed("genre flag 0 or 1", other)),
        }
    }
    let year = year_of_title(&title);
    Entry::new(line, fields[0], "a movie id", Item { title, genres, year, further: Vec::new() })
}

fn user(line: &Line<'_>) -> Result<Entry<User>, DatasetError> {
    let [id, age, sex, job, zip] = line.fields("|", "user id|age|gender|occupation|zip code")?;
    let (gender, age) = (gender(sex, line)?, age_bucket(age, line)?);
    Entry::new(line, id, "a user id", User { gender, age, job: job.into(), zip: zip.into(), further: Vec::new() })
}
