//! The check that nothing of a later part reaches an earlier one (METHOD section 1, Leakage), for every split.
//!
//! It looks at the finished tables, as the stages that learn read them, and not at how they were made: a mistake in a
//! split fails the run and does not show as a good result.

use super::{
    DatasetError,
    tables::{Interactions, Samples},
};

/// Names of the parts, by period.
const PARTS: [&str; 3] = ["training", "validation", "the test"];

/// Checks that each sample is of its part's period, that its history has no rating of a later one, and that no rating
/// of the training period comes again in a later one.
pub(super) fn check(interactions: &Interactions, parts: [&Samples; 3], users: usize) -> Result<(), DatasetError> {
    let histories = by_user(interactions, users);
    for ((period, samples), part) in (0_i8..).zip(parts).zip(PARTS) {
        for i in 0..samples.len() {
            let leak = |what| Err(DatasetError::LeakedSample { sample: samples.sample[i], part, what });
            let history = &histories[samples.user[i] as usize];
            let (before, from) = history.split_at((samples.history_len[i] as usize).min(history.len()));
            let Some(own) = from.first() else { return leak("its own rating is missing") };
            if interactions.item[own.row] != samples.item[i] || interactions.period[own.row] != period {
                return leak("its rating is of another part");
            }
            if before.last().is_some_and(|last| last.latest > period) {
                return leak("its history has a rating of a later part");
            }
        }
    }
    let mut pairs: Vec<_> = (0..interactions.user.len())
        .map(|row| (interactions.user[row], interactions.item[row], interactions.period[row]))
        .collect();
    pairs.sort_unstable();
    let leaked = pairs.windows(2).find(|w| (w[0].0, w[0].1) == (w[1].0, w[1].1) && w[0].2 == 0 && w[1].2 > 0);
    match leaked {
        Some(pair) => Err(DatasetError::LeakedPair { user: pair[0].0, item: pair[0].1 }),
        None => Ok(()),
    }
}

/// A rating of a user, and the latest period of it and those before it.
struct Seen {
    row: usize,
    latest: i8,
}

/// Each user's ratings, in the order of the table.
fn by_user(interactions: &Interactions, users: usize) -> Vec<Vec<Seen>> {
    let mut histories: Vec<Vec<Seen>> = (0..users).map(|_| Vec::new()).collect();
    for (row, (user, period)) in interactions.user.iter().zip(&interactions.period).enumerate() {
        let history = &mut histories[*user as usize];
        let latest = history.last().map_or(*period, |last| last.latest.max(*period));
        history.push(Seen { row, latest });
    }
    histories
}
