//! The core filter: users and items with too few or too many ratings are left out, until none are left.

use super::{DatasetError, raw::Raw};
use rallrec_core::params::DatasetParams;
use std::cmp::Reverse;

/// Bounds of a number of ratings, both allowed.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) least: u32,
    /// 0 for any number.
    pub(super) most: u32,
}

impl Bounds {
    fn hold(self, count: u32) -> bool {
        count >= self.least && (self.most == 0 || count <= self.most)
    }
}

/// Applies the filter of the parameters. Users and items without ratings stay only where nothing was asked for.
///
/// Each round counts the ratings that the last one left, and removes those whose user or item is out of bounds. With
/// upper bounds the result depends on this order: a user above its bound is out, though later rounds could have brought
/// it within.
pub(super) fn apply(raw: &mut Raw, params: &DatasetParams) -> Result<(), DatasetError> {
    let users = Bounds { least: params.min_user_ratings, most: params.max_user_ratings };
    let items = Bounds { least: params.min_item_ratings, most: params.max_item_ratings };
    let bounds = [users.least, users.most, items.least, items.most, params.top_items];
    if bounds.iter().all(|bound| *bound == 0) {
        return Ok(());
    }
    let ratings = raw.ratings.len();
    core(raw, users, items);
    if params.top_items > 0 {
        most_rated(raw, params.top_items as usize);
    }
    if raw.ratings.is_empty() {
        return Err(DatasetError::NothingKept { ratings });
    }
    only_rated(raw);
    Ok(())
}

/// Removes ratings until every user and item that has some has as many as its bounds say.
pub(super) fn core(raw: &mut Raw, users: Bounds, items: Bounds) {
    loop {
        let (by_user, by_item) = counts(raw);
        let before = raw.ratings.len();
        raw.ratings.retain(|r| users.hold(by_user[r.user as usize]) && items.hold(by_item[r.item as usize]));
        if raw.ratings.len() == before {
            return;
        }
    }
}

/// Keeps the ratings of so many most rated items; of equally often rated ones, those with the smaller identifiers.
pub(super) fn most_rated(raw: &mut Raw, count: usize) {
    let (_, by_item) = counts(raw);
    let mut order: Vec<usize> = (0..by_item.len()).collect();
    order.sort_by_key(|item| Reverse(by_item[*item]));
    let mut keep = vec![false; by_item.len()];
    order.iter().take(count).for_each(|item| keep[*item] = true);
    raw.ratings.retain(|r| keep[r.item as usize]);
}

/// Leaves out users and items without ratings.
pub(super) fn only_rated(raw: &mut Raw) {
    let (by_user, by_item) = counts(raw);
    let rated = |counts: &[u32]| counts.iter().map(|count| *count > 0).collect::<Vec<_>>();
    let users = raw.users.keep_only(&rated(&by_user));
    let items = raw.items.keep_only(&rated(&by_item));
    for rating in &mut raw.ratings {
        rating.user = users[rating.user as usize].unwrap_or(rating.user);
        rating.item = items[rating.item as usize].unwrap_or(rating.item);
    }
}

/// Ratings by user and by item.
fn counts(raw: &Raw) -> (Vec<u32>, Vec<u32>) {
    let (mut users, mut items) = (vec![0; raw.users.entries.len()], vec![0; raw.items.entries.len()]);
    for rating in &raw.ratings {
        users[rating.user as usize] += 1;
        items[rating.item as usize] += 1;
    }
    (users, items)
}
