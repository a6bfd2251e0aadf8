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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Dataset, load};
    use rallrec_core::params::{DatasetParams, Split};
    use std::path::Path;

    const SPLITS: [Split; 4] = [Split::Time, Split::LeaveLastOut, Split::ShuffledUsers, Split::ShuffledRatings];

    fn sets() -> impl Iterator<Item = (Split, Dataset)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-1m");
        SPLITS.into_iter().map(move |split| {
            let params = DatasetParams { split, min_history: 1, ..DatasetParams::default() };
            (split, load(&folder, &params).unwrap())
        })
    }

    fn verdict(set: &Dataset) -> Result<(), DatasetError> {
        check(&set.interactions, [&set.train, &set.valid, &set.test], set.users.user.len())
    }

    /// The row of a test sample's rating.
    fn test_row(set: &Dataset, at: usize) -> usize {
        let (user, item) = (set.test.user[at], set.test.item[at]);
        (0..set.interactions.user.len())
            .find(|row| set.interactions.user[*row] == user && set.interactions.item[*row] == item)
            .unwrap()
    }

    #[test]
    fn no_split_leaks() {
        for (split, set) in sets() {
            assert!(!set.test.is_empty() && verdict(&set).is_ok(), "{split:?}");
        }
    }

    #[test]
    fn a_test_rating_in_the_training_period_is_found_in_every_split() {
        for (split, mut set) in sets() {
            let row = test_row(&set, set.test.len() / 2);
            set.interactions.period[row] = 0;
            let error = verdict(&set).unwrap_err();
            assert!(matches!(error, DatasetError::LeakedSample { part: "the test", .. }), "{split:?}: {error}");
        }
    }

    #[test]
    fn a_test_rating_that_comes_again_in_the_training_period_is_found_in_every_split() {
        for (split, mut set) in sets() {
            let row = test_row(&set, 0);
            let all = &mut set.interactions;
            // After all others, so that no history moves.
            all.user.push(all.user[row]);
            all.item.push(all.item[row]);
            all.rating.push(all.rating[row]);
            all.timestamp.push(all.timestamp[row]);
            all.period.push(0);
            let error = verdict(&set).unwrap_err();
            assert!(matches!(error, DatasetError::LeakedPair { .. }), "{split:?}: {error}");
        }
    }

    #[test]
    fn a_test_sample_among_those_for_training_is_found_in_every_split() {
        for (split, mut set) in sets() {
            let (test, train) = (&set.test, &mut set.train);
            train.sample.push(test.sample[0]);
            train.user.push(test.user[0]);
            train.item.push(test.item[0]);
            train.rating.push(test.rating[0]);
            train.timestamp.push(test.timestamp[0]);
            train.label.push(test.label[0]);
            train.history_len.push(test.history_len[0]);
            let error = verdict(&set).unwrap_err();
            assert!(matches!(error, DatasetError::LeakedSample { part: "training", .. }), "{split:?}: {error}");
        }
    }

    #[test]
    fn a_test_rating_in_a_training_history_is_found() {
        // User 0 rates items 0, 1, 2; the second is for the test, and the third, a training sample, has it before it.
        let interactions = Interactions {
            user: vec![0; 3],
            item: vec![0, 1, 2],
            rating: vec![1.0; 3],
            timestamp: vec![1, 2, 3],
            period: vec![0, 2, 0],
        };
        let sample = |sample, item, history_len| Samples {
            sample: vec![sample],
            user: vec![0],
            item: vec![item],
            rating: vec![1.0],
            timestamp: vec![1],
            label: vec![0],
            history_len: vec![history_len],
        };
        let (train, none, test) = (sample(1, 2, 2), Samples::default(), sample(0, 1, 1));
        let error = check(&interactions, [&train, &none, &test], 1).unwrap_err();
        assert!(error.to_string().contains("its history has a rating of a later part"), "{error}");
        assert!(check(&interactions, [&none, &none, &test], 1).is_ok());
    }
}
