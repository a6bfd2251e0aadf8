//! Ratings to samples, and samples to training, validation and test (METHOD section 1).

use super::{
    DatasetError, leak,
    raw::{Rating, Raw},
    tables::{Interactions, Samples},
};
use crate::draw::shuffle;
use rallrec_core::{
    params::{DatasetParams, Split},
    rng::row_rng,
};

/// Interactions with their periods, and the three tables of samples.
pub(super) struct Parts {
    pub(super) interactions: Interactions,
    pub(super) train: Samples,
    pub(super) valid: Samples,
    pub(super) test: Samples,
}

/// A rating that is a sample.
struct Sample {
    row: usize,
    history_len: i32,
}

/// Splits the ratings, which are taken out of `raw`.
pub(super) fn split(raw: &mut Raw, params: &DatasetParams) -> Result<Parts, DatasetError> {
    let users = raw.users.entries.len();
    let mut ratings = std::mem::take(&mut raw.ratings);
    if !raw.timed {
        if matches!(params.split, Split::Time | Split::LeaveLastOut) {
            return Err(DatasetError::NoTimes { file: raw.ratings_file.clone() });
        }
        shuffle_within_users(&mut ratings, users, params);
    }
    // Rows are in the order of identifiers, so this is (timestamp, user id, item id).
    ratings.sort_unstable_by_key(|r| (r.timestamp, r.user, r.item));
    let shuffled = match params.split {
        Split::ShuffledRatings => Some(shuffle_ratings(&mut ratings, params)?),
        _ => None,
    };
    let mut seen = vec![0_u32; users];
    let mut samples = Vec::with_capacity(ratings.len());
    for (row, rating) in ratings.iter().enumerate() {
        let count = &mut seen[rating.user as usize];
        if *count >= params.min_history {
            samples.push(Sample { row, history_len: *count as i32 });
        }
        *count += 1;
    }
    if params.split == Split::ShuffledUsers {
        samples.retain(|s| s.history_len as u32 + 1 == seen[ratings[s.row].user as usize]);
    }
    if samples.is_empty() {
        return Err(DatasetError::NoSamples { ratings: ratings.len(), min_history: params.min_history });
    }
    let period = match (shuffled, params.split) {
        (Some(period), _) => period,
        (None, Split::LeaveLastOut) => leave_last_out(&ratings, &seen),
        (None, Split::ShuffledUsers) => shuffled_users(&samples, ratings.len(), params)?,
        (None, _) => by_time(&samples, ratings.len(), params)?,
    };
    let parts = tables(&ratings, &samples, period, params);
    leak::check(&parts.interactions, [&parts.train, &parts.valid, &parts.test], users)?;
    Ok(parts)
}

fn tables(ratings: &[Rating], samples: &[Sample], period: Vec<i8>, params: &DatasetParams) -> Parts {
    let mut parts = [Samples::default(), Samples::default(), Samples::default()];
    for (position, sample) in (0_i64..).zip(samples) {
        let rating = ratings[sample.row];
        let part = &mut parts[period[sample.row] as usize];
        part.sample.push(position);
        part.user.push(rating.user);
        part.item.push(rating.item);
        part.rating.push(rating.rating);
        part.timestamp.push(rating.timestamp);
        part.label.push(i8::from(f64::from(rating.rating) > params.like_above));
        part.history_len.push(sample.history_len);
    }
    let interactions = Interactions {
        user: ratings.iter().map(|r| r.user).collect(),
        item: ratings.iter().map(|r| r.item).collect(),
        rating: ratings.iter().map(|r| r.rating).collect(),
        timestamp: ratings.iter().map(|r| r.timestamp).collect(),
        period,
    };
    let [train, valid, test] = parts;
    Parts { interactions, train, valid, test }
}

/// Periods when the samples are cut by time: of n samples the first floor((1 - valid - test) n) are for training,
/// the next floor(valid n) for validation, the rest for the test. Ratings that are no samples belong to the period
/// in which they lie.
fn by_time(samples: &[Sample], ratings: usize, params: &DatasetParams) -> Result<Vec<i8>, DatasetError> {
    let [train_count, valid_count] = shares(samples.len(), params)?;
    let row_of = |sample: usize| samples.get(sample).map_or(ratings, |s| s.row);
    let (first_valid, first_test) = (row_of(train_count), row_of(train_count + valid_count));
    let period: Vec<i8> = (0..ratings).map(|row| i8::from(row >= first_valid) + i8::from(row >= first_test)).collect();
    check_no_leak(&period, first_valid)?;
    Ok(period)
}

/// How many of `count` are for training and for validation; the rest is for the test.
fn shares(count: usize, params: &DatasetParams) -> Result<[usize; 2], DatasetError> {
    let (valid, test) = (params.valid_fraction, params.test_fraction);
    if valid + test >= 1.0 {
        return Err(DatasetError::Fractions { valid, test });
    }
    Ok([share(1.0 - valid - test, count), share(valid, count)])
}

/// Cuts 0..count, shuffled, into the three parts: the period of each.
fn shuffled_periods(count: usize, stream: &str, params: &DatasetParams) -> Result<Vec<i8>, DatasetError> {
    let [train, valid] = shares(count, params)?;
    let mut order: Vec<usize> = (0..count).collect();
    shuffle(&mut row_rng(params.split_seed.into(), stream, 0, 0), &mut order);
    let mut period = vec![0; count];
    for (place, at) in order.into_iter().enumerate() {
        period[at] = i8::from(place >= train) + i8::from(place >= train + valid);
    }
    Ok(period)
}

/// Ratings that have no time get one: their place in a shuffle of their user's ratings.
fn shuffle_within_users(ratings: &mut [Rating], users: usize, params: &DatasetParams) {
    ratings.sort_unstable_by_key(|r| (r.user, r.item));
    let mut rest = ratings;
    for user in 0..users {
        let count = rest.iter().take_while(|r| r.user as usize == user).count();
        let (own, others) = rest.split_at_mut(count);
        shuffle(&mut row_rng(params.split_seed.into(), "dataset.order", user as u64, 0), own);
        (0..).zip(own).for_each(|(place, rating)| rating.timestamp = place);
        rest = others;
    }
}

/// Periods of shuffled ratings. They are put in the order of their periods, so that no training rating has a later part
/// in its history.
fn shuffle_ratings(ratings: &mut Vec<Rating>, params: &DatasetParams) -> Result<Vec<i8>, DatasetError> {
    let period = shuffled_periods(ratings.len(), "dataset.ratings", params)?;
    let mut pairs: Vec<(i8, Rating)> = period.into_iter().zip(ratings.drain(..)).collect();
    // Stable: within a period they stay as they are.
    pairs.sort_by_key(|(period, _)| *period);
    let (period, sorted): (Vec<i8>, Vec<Rating>) = pairs.into_iter().unzip();
    *ratings = sorted;
    Ok(period)
}

/// Periods when users, of whom each has one sample, are shuffled. What a user rated before is known when the sample is
/// predicted, whatever its part.
fn shuffled_users(samples: &[Sample], ratings: usize, params: &DatasetParams) -> Result<Vec<i8>, DatasetError> {
    let mut period = vec![0; ratings];
    for (sample, of) in samples.iter().zip(shuffled_periods(samples.len(), "dataset.users", params)?) {
        period[sample.row] = of;
    }
    Ok(period)
}

/// floor(fraction * count), where a product that is whole but for rounding (0.7 * 10) counts as whole.
fn share(fraction: f64, count: usize) -> usize {
    ((fraction * count as f64 + 1e-6) as usize).min(count)
}

/// Nothing that is learned from may be at or after the first evaluated sample (METHOD section 1, Leakage).
fn check_no_leak(period: &[i8], first: usize) -> Result<(), DatasetError> {
    match period.iter().rposition(|p| *p == 0) {
        Some(row) if row >= first => Err(DatasetError::Leak { row, first }),
        _ => Ok(()),
    }
}

/// Periods by each user's own order: the last rating is the test, the one before it validation, all others training.
/// A user with fewer than three ratings has only training ratings. One user's training ratings may lie after another
/// user's test rating: that is the leak.
fn leave_last_out(ratings: &[Rating], counts: &[u32]) -> Vec<i8> {
    let mut left = counts.to_vec();
    let periods = ratings.iter().map(|rating| {
        let user = rating.user as usize;
        left[user] -= 1;
        match (counts[user], left[user]) {
            (..3, _) => 0,
            (_, 0) => 2,
            (_, 1) => 1,
            _ => 0,
        }
    });
    periods.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_floors() {
        assert_eq!([share(0.8, 970_009), share(0.1, 970_009)], [776_007, 97_000]);
        assert_eq!(
            [share(1.0 - 0.1 - 0.1, 970_009), share(1.0 - 0.2 - 0.1, 10), share(1.0 - 0.6 - 0.1, 10)],
            [776_007, 7, 3]
        );
        assert_eq!([share(0.5, 3), share(0.0, 3), share(0.9, 0)], [1, 0, 0]);
    }

    #[test]
    fn a_late_training_rating_is_a_leak() {
        assert!(check_no_leak(&[0, 0, 1, 2], 2).is_ok());
        assert!(check_no_leak(&[], 0).is_ok());
        let error = check_no_leak(&[0, 1, 0, 2], 1).unwrap_err();
        assert!(matches!(error, DatasetError::Leak { row: 2, first: 1 }), "{error}");
    }
}
