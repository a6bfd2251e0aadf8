//! Planted leaks: a test-period rating that reaches training is found, whatever the split.

use rallrec_core::params::{DatasetParams, Split};
use rallrec_recsys::dataset::{Dataset, DatasetError, Interactions, Items, Samples, Users, check_leaks, load};
use std::path::Path;

const SPLITS: [Split; 4] = [Split::Time, Split::LeaveLastOut, Split::ShuffledUsers, Split::ShuffledRatings];

fn sets() -> impl Iterator<Item = (Split, Dataset)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-1m");
    SPLITS.into_iter().map(move |split| {
        let params = DatasetParams { split, min_history: 1, ..DatasetParams::default() };
        (split, load(&folder, &params).expect("the fixture loads"))
    })
}

/// The row of a test sample's rating.
fn test_row(set: &Dataset, at: usize) -> usize {
    let (user, item) = (set.test.user[at], set.test.item[at]);
    (0..set.interactions.user.len())
        .find(|row| set.interactions.user[*row] == user && set.interactions.item[*row] == item)
        .expect("the user rated the item")
}

#[test]
fn no_split_leaks() {
    for (split, set) in sets() {
        assert!(!set.test.is_empty() && check_leaks(&set).is_ok(), "{split:?}");
    }
}

#[test]
fn a_test_rating_in_the_training_period_is_found_in_every_split() {
    for (split, mut set) in sets() {
        let row = test_row(&set, set.test.len() / 2);
        set.interactions.period[row] = 0;
        let error = check_leaks(&set).unwrap_err();
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
        let error = check_leaks(&set).unwrap_err();
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
        let error = check_leaks(&set).unwrap_err();
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
    let mut set = Dataset {
        items: Items::default(),
        users: Users { user: vec![0], ..Users::default() },
        interactions,
        train: sample(1, 2, 2),
        valid: Samples::default(),
        test: sample(0, 1, 1),
        verb: "watched".into(),
        like_above: 3.0,
    };
    let error = check_leaks(&set).unwrap_err().to_string();
    assert!(error.contains("its history has a rating of a later part"), "{error}");
    set.train = Samples::default();
    assert!(check_leaks(&set).is_ok());
}
