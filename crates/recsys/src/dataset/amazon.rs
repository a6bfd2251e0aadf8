//! Amazon Movies & TV: `Movies_and_TV.json` (reviews) and `meta_Movies_and_TV.json`, one JSON object a line, as the
//! release of 2018 has them.
//!
//! Which items and users belong to the set is the paper's rule (METHOD section 1), applied here: items whose `category`
//! has exactly three levels, of which the third is the genre; a core of users and items; the 5,000 most rated items. A
//! review of an item that is not among them is no bad row. The text of reviews is not read.

use super::{
    DatasetError,
    filter::{self, Bounds},
    mapped::Ids,
    raw::{Item, Rating, Raw, User},
    rows::{self, Row},
    source::{Tolerance, whole_seconds},
};
use rallrec_core::mapping::{FileFormat, ItemsTable};
use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

/// The files, reviews first.
pub(super) const FILES: [&str; 2] = ["Movies_and_TV.json", "meta_Movies_and_TV.json"];

/// Levels of a category that names a genre.
const LEVELS: usize = 3;
const CORE_USERS: Bounds = Bounds { least: 11, most: 200 };
const CORE_ITEMS: Bounds = Bounds { least: 10, most: 200 };
const MOST_RATED: usize = 5_000;

pub(super) fn read(dir: &Path, tolerance: &mut Tolerance<'_>) -> Result<Raw, DatasetError> {
    let mut films = films(dir, tolerance)?;
    let (mut users, mut items): (Ids<User>, Ids<Item>) = (Ids::empty(), Ids::empty());
    let mut ratings = Vec::new();
    let wanted = ["reviewerID", "asin", "overall", "unixReviewTime"];
    let file = rows::read(dir, &table(FILES[0]).layout(), &wanted, tolerance, &mut |row| {
        ratings.extend(review(row, &films, &mut users, &mut items)?);
        Ok(())
    })?;
    let (items, item_rows) =
        items.finish(&file, "item", |id| films.remove(id).unwrap_or_else(|| untitled(id)), tolerance)?;
    let (users, user_rows) = users.finish(&file, "user", |_| User::default(), tolerance)?;
    for rating in &mut ratings {
        (rating.user, rating.item) = (user_rows[rating.user as usize], item_rows[rating.item as usize]);
    }
    let mut raw = Raw {
        items,
        users,
        ratings: first_of_each_pair(ratings),
        ratings_file: file,
        timed: true,
        item_fields: Vec::new(),
        user_fields: Vec::new(),
        verb: "watched".into(),
    };
    let ratings = raw.ratings.len();
    filter::core(&mut raw, CORE_USERS, CORE_ITEMS);
    filter::most_rated(&mut raw, MOST_RATED);
    if raw.ratings.is_empty() {
        return Err(DatasetError::NoCore { file: raw.ratings_file, ratings });
    }
    filter::only_rated(&mut raw);
    Ok(raw)
}

fn table(file: &str) -> ItemsTable {
    ItemsTable { file: file.into(), format: FileFormat::JsonLines, ..ItemsTable::default() }
}

/// A rating of one of the films; nothing for one of another item.
fn review(
    row: &Row<'_>,
    films: &HashMap<String, Item>,
    users: &mut Ids<User>,
    items: &mut Ids<Item>,
) -> Result<Option<Rating>, DatasetError> {
    let (user, item) = (row.text(0)?, row.text(1)?);
    let rating = row.text(2)?.parse::<f32>().ok().filter(|r| *r > 0.0 && *r <= 5.0);
    let rating = rating.ok_or_else(|| row.wrong(2, "a rating above 0 and up to 5 stars"))?;
    let timestamp = whole_seconds(row.text(3)?).ok_or_else(|| row.wrong(3, "whole seconds since 1970"))?;
    if !films.contains_key(item) {
        return Ok(None);
    }
    let line = u32::try_from(row.line).map_err(|_| row.wrong(0, "fewer than 2^32 lines"))?;
    Ok(Some(Rating { user: users.row(user, row)?, item: items.row(item, row)?, rating, timestamp, line }))
}

/// Items of three levels. One that comes again, as some do, is the same item.
fn films(dir: &Path, tolerance: &mut Tolerance<'_>) -> Result<HashMap<String, Item>, DatasetError> {
    let mut films = HashMap::new();
    rows::read(dir, &table(FILES[1]).layout(), &["asin", "title", "category"], tolerance, &mut |row| {
        let asin = row.text(0)?;
        let mut levels = row.list(2, "");
        if levels.len() != LEVELS {
            return Ok(());
        }
        let title = row.optional(1)?.map(str::trim).filter(|title| !title.is_empty());
        let genres = levels.pop().into_iter().collect();
        let film = Item { title: title.unwrap_or(asin).into(), genres, ..untitled(asin) };
        films.entry(asin.to_owned()).or_insert(film);
        Ok(())
    })?;
    Ok(films)
}

fn untitled(asin: &str) -> Item {
    Item { title: asin.into(), genres: Vec::new(), year: None, further: Vec::new() }
}

/// Of several reviews of one item by one user, the earliest: the same pair must not be learned from and predicted.
fn first_of_each_pair(mut ratings: Vec<Rating>) -> Vec<Rating> {
    let all = ratings.len();
    ratings.sort_unstable_by_key(|r| (r.timestamp, r.line));
    let mut seen = HashSet::with_capacity(all);
    ratings.retain(|r| seen.insert((r.user, r.item)));
    if ratings.len() < all {
        tracing::info!(left_out = all - ratings.len(), "reviews of an item that their user had reviewed before");
    }
    ratings
}
