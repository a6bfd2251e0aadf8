//! MovieLens-1M: `movies.dat`, `users.dat`, `ratings.dat`, fields separated by `::`, ISO-8859-1.

use super::{
    DatasetError,
    raw::{Item, Raw, User, age_bucket, gender, job_of_code, title, year_of_title},
    source::{Catalogue, Encoding, Entry, Line, Source, Tolerance},
};
use std::path::Path;

/// The files, ratings first.
pub(super) const FILES: [&str; 3] = ["ratings.dat", "movies.dat", "users.dat"];

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
        line.rating(line.fields("::", "UserID::MovieID::Rating::Timestamp")?)
    })
}

fn item(line: &Line<'_>) -> Result<Entry<Item>, DatasetError> {
    let [id, name, genres] = line.fields("::", "MovieID::Title::Genre|Genre")?;
    let title = title(name, line)?;
    let genres = genres.split('|').filter(|g| !g.is_empty()).map(String::from).collect();
    let year = year_of_title(&title);
    Entry::new(line, id, "a MovieID", Item { title, genres, year, further: Vec::new() })
}

fn user(line: &Line<'_>) -> Result<Entry<User>, DatasetError> {
    let [id, sex, age, job, zip] = line.fields("::", "UserID::Gender::Age::Occupation::Zip-code")?;
    let (gender, age, job) = (gender(sex, line)?, age_bucket(age, line)?, job_of_code(job, line)?);
    Entry::new(line, id, "a UserID", User { gender, age, job, zip: zip.into(), further: Vec::new() })
}
