//! Raw rating files to items, users, interactions and samples (METHOD section 1).
//!
//! Three layouts of MovieLens are read: MovieLens-1M, MovieLens-100k, and RecBole's atomic files. Everything that
//! a later stage learns from or is evaluated on is decided here, once: the global order of ratings, which of them
//! are samples, and the period of each.
//!
//! Deliberately nothing is repaired, guessed or dropped: a line that is not as its layout says ends the reading
//! with its file and line. Nothing is downloaded here either, and nothing is random.

mod error;
mod movielens_100k;
mod movielens_1m;
mod raw;
mod recbole;
mod source;
mod split;
mod tables;

pub use error::DatasetError;
pub use tables::{Dataset, Interactions, Items, Samples, Users};

use rallrec_core::params::{DatasetFormat, DatasetParams};
use raw::{Item, User};
use source::Catalogue;
use std::path::Path;

/// Reads the data set whose files lie in `dir`.
///
/// Items and users are in the order of their identifiers (as numbers when all are numbers), interactions by
/// (timestamp, user id, item id). A sample is a rating with at least `min_history` earlier ratings of its user in
/// that order; its label is 1 above `like_above` stars.
///
/// With [`Split::Time`](rallrec_core::params::Split::Time) the first floor((1 - valid - test) n) of n samples are
/// for training, the next floor(valid n) for validation and the rest for the test; a rating's period is that of
/// its position in the order, so no training rating is at or after the first validation sample. With
/// [`Split::LeaveLastOut`](rallrec_core::params::Split::LeaveLastOut) each user's last rating is the test, the one
/// before validation, all others (and all of users with fewer than three ratings) training; the fractions are not
/// used.
///
/// # Errors
/// [`DatasetError`] with file and line for anything malformed, unknown or double; never a partial set.
pub fn load(dir: &Path, params: &DatasetParams) -> Result<Dataset, DatasetError> {
    let raw = match detect(dir, params.format)? {
        Layout::MovieLens1m => movielens_1m::read(dir)?,
        Layout::MovieLens100k => movielens_100k::read(dir)?,
        Layout::RecBole => recbole::read(dir)?,
    };
    let parts = split::split(raw.ratings, raw.users.entries.len(), params)?;
    Ok(Dataset {
        items: items(raw.items, &parts.interactions),
        users: users(raw.users),
        interactions: parts.interactions,
        train: parts.train,
        valid: parts.valid,
        test: parts.test,
        verb: "watched",
        like_above: params.like_above,
    })
}

/// A layout that was asked for or found.
enum Layout {
    MovieLens1m,
    MovieLens100k,
    RecBole,
}

/// The layout of `dir`, told by its file of ratings.
fn detect(dir: &Path, format: DatasetFormat) -> Result<Layout, DatasetError> {
    let layout = match format {
        DatasetFormat::MovieLens1m => Layout::MovieLens1m,
        DatasetFormat::MovieLens100k => Layout::MovieLens100k,
        DatasetFormat::RecBole => Layout::RecBole,
        DatasetFormat::Auto => {
            let mut found = Vec::new();
            if dir.join(movielens_1m::FILES[0]).exists() {
                found.push((Layout::MovieLens1m, "movielens-1m"));
            }
            if dir.join(movielens_100k::FILES[0]).exists() {
                found.push((Layout::MovieLens100k, "movielens-100k"));
            }
            if !recbole::files_ending(dir, recbole::ENDINGS[0])?.is_empty() {
                found.push((Layout::RecBole, "recbole"));
            }
            if found.len() > 1 {
                let found: Vec<_> = found.iter().map(|(_, name)| *name).collect();
                return Err(DatasetError::AmbiguousLayout { dir: dir.into(), found: found.join(", ") });
            }
            found.pop().ok_or_else(|| DatasetError::UnknownLayout { dir: dir.into() })?.0
        }
    };
    Ok(layout)
}

fn items(catalogue: Catalogue<Item>, interactions: &Interactions) -> Items {
    let mut items = Items { train_ratings: vec![0; catalogue.entries.len()], ..Items::default() };
    for (item, period) in interactions.item.iter().zip(&interactions.period) {
        items.train_ratings[*item as usize] += i32::from(*period == 0);
    }
    for (row, entry) in (0..).zip(catalogue.entries) {
        items.item.push(row);
        items.item_id.push(entry.id);
        items.title.push(entry.value.title);
        items.genre.push(entry.value.genres.first().cloned().unwrap_or_default());
        items.genres.push(entry.value.genres);
        items.year.push(entry.value.year);
    }
    items
}

fn users(catalogue: Catalogue<User>) -> Users {
    let mut users = Users::default();
    for (row, entry) in (0..).zip(catalogue.entries) {
        users.user.push(row);
        users.user_id.push(entry.id);
        users.gender.push(entry.value.gender);
        users.age.push(entry.value.age);
        users.job.push(entry.value.job);
        users.zip.push(entry.value.zip);
    }
    users
}
