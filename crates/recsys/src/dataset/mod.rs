//! Raw rating files to items, users, interactions and samples (METHOD section 1).
//!
//! Three layouts of MovieLens are read (MovieLens-1M, MovieLens-100k, and RecBole's atomic files), BookCrossing, Amazon's
//! Movies & TV, and any files that a mapping describes. Everything that
//! a later stage learns from or is evaluated on is decided here, once: the global order of ratings, which of them
//! are samples, and the period of each.
//!
//! Deliberately nothing is repaired or guessed: a line that is not as its layout says is told with its file and line to
//! whoever reads the set, who ends the reading or has the row left out. Nothing is downloaded here either. Shuffles
//! depend on `split_seed` alone.

mod amazon;
mod bookcrossing;
mod columnar;
mod error;
mod filter;
mod leak;
mod mapped;
mod movielens_100k;
mod movielens_1m;
mod raw;
mod recbole;
mod rows;
mod source;
mod split;
mod tables;

pub use error::DatasetError;
pub use tables::{Dataset, Interactions, Items, Samples, Users};

use rallrec_core::params::{DatasetFormat, DatasetParams};
use raw::{Item, User};
use source::{Catalogue, Tolerance};
use std::path::Path;

/// Reads the data set whose files lie in `dir`; a bad row is an error.
///
/// # Errors
/// As [`load_with`].
pub fn load(dir: &Path, params: &DatasetParams) -> Result<Dataset, DatasetError> {
    load_with(dir, params, &mut |_| false)
}

/// Reads the data set whose files lie in `dir`. Each bad row ([`DatasetError::bad_row`]) is told to `may_leave_out`:
/// whether the reading goes on without it, or ends with that error.
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
/// With [`Split::ShuffledUsers`](rallrec_core::params::Split::ShuffledUsers) each user's last rating is a sample, if
/// it has enough history, and these users are shuffled and cut by the fractions; all ratings before are training ones,
/// for they are what is known of a user. With
/// [`Split::ShuffledRatings`](rallrec_core::params::Split::ShuffledRatings) the ratings are shuffled and cut by the
/// fractions, and the interactions are by (period, timestamp, user id, item id): so a training sample's history is of
/// training ratings alone.
///
/// # Errors
/// [`DatasetError`] with file and line for anything malformed, unknown or double, unless it may be left out.
pub fn load_with(
    dir: &Path,
    params: &DatasetParams,
    may_leave_out: &mut dyn FnMut(&DatasetError) -> bool,
) -> Result<Dataset, DatasetError> {
    let tolerance = &mut Tolerance(may_leave_out);
    let mut raw = match &params.mapping {
        Some(mapping) => mapped::read(dir, mapping, tolerance)?,
        None => match detect(dir, params.format)? {
            Layout::MovieLens1m => movielens_1m::read(dir, tolerance)?,
            Layout::MovieLens100k => movielens_100k::read(dir, tolerance)?,
            Layout::RecBole => recbole::read(dir, tolerance)?,
            Layout::BookCrossing => bookcrossing::read(dir, tolerance)?,
            Layout::Amazon => amazon::read(dir, tolerance)?,
        },
    };
    filter::apply(&mut raw, params)?;
    let parts = split::split(&mut raw, params)?;
    Ok(Dataset {
        items: items(raw.items, raw.item_fields, &parts.interactions),
        users: users(raw.users, raw.user_fields),
        interactions: parts.interactions,
        train: parts.train,
        valid: parts.valid,
        test: parts.test,
        verb: raw.verb,
        like_above: params.like_above,
    })
}

/// Checks that nothing of a later part reaches an earlier one, whatever the split: each sample's rating is of its part's
/// period, its history has no rating of a later one, and no (user, item) pair of the training period comes again later.
/// [`load_with`] does this itself.
///
/// # Errors
/// [`DatasetError::LeakedSample`] or [`DatasetError::LeakedPair`].
pub fn check_leaks(set: &Dataset) -> Result<(), DatasetError> {
    leak::check(&set.interactions, [&set.train, &set.valid, &set.test], set.users.user.len())
}

/// A layout that was asked for or found.
enum Layout {
    MovieLens1m,
    MovieLens100k,
    RecBole,
    BookCrossing,
    Amazon,
}

/// The layout of `dir`, told by its file of ratings.
fn detect(dir: &Path, format: DatasetFormat) -> Result<Layout, DatasetError> {
    let layout = match format {
        DatasetFormat::MovieLens1m => Layout::MovieLens1m,
        DatasetFormat::MovieLens100k => Layout::MovieLens100k,
        DatasetFormat::RecBole => Layout::RecBole,
        DatasetFormat::BookCrossing => Layout::BookCrossing,
        DatasetFormat::Amazon => Layout::Amazon,
        // A mapping says what to read; the pipeline's check sees to it that there is one.
        DatasetFormat::Mapped => return Err(DatasetError::UnknownLayout { dir: dir.into() }),
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
            if dir.join(bookcrossing::FILES[0]).exists() {
                found.push((Layout::BookCrossing, "bookcrossing"));
            }
            if dir.join(amazon::FILES[0]).exists() {
                found.push((Layout::Amazon, "amazon"));
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

fn items(catalogue: Catalogue<Item>, fields: Vec<String>, interactions: &Interactions) -> Items {
    let further = fields.into_iter().map(|name| (name, Vec::new())).collect();
    let mut items = Items { train_ratings: vec![0; catalogue.entries.len()], further, ..Items::default() };
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
        items.further.iter_mut().zip(entry.value.further).for_each(|((_, texts), text)| texts.push(text));
    }
    items
}

fn users(catalogue: Catalogue<User>, fields: Vec<String>) -> Users {
    let further = fields.into_iter().map(|name| (name, Vec::new())).collect();
    let mut users = Users { further, ..Users::default() };
    for (row, entry) in (0..).zip(catalogue.entries) {
        users.user.push(row);
        users.user_id.push(entry.id);
        users.gender.push(entry.value.gender);
        users.age.push(entry.value.age);
        users.job.push(entry.value.job);
        users.zip.push(entry.value.zip);
        users.further.iter_mut().zip(entry.value.further).for_each(|((_, texts), text)| texts.push(text));
    }
    users
}
