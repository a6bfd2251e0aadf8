//! Ratings to samples, and samples to training, validation and test (METHOD section 1).

use super::{
    DatasetError,
    raw::Rating,
    tables::{Interactions, Samples},
};
use rallrec_core::params::{DatasetParams, Split};

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

pub(super) fn split(mut ratings: Vec<Rating>, users: usize, params: &DatasetParams) -> Result<Parts, DatasetError> {
    // Rows are in the order of identifiers, so this is (timestamp, user id, item id).
    ratings.sort_unstable_by_key(|r| (r.timestamp, r.user, r.item));
    let mut seen = vec![0_u32; users];
    let mut samples = Vec::with_capacity(ratings.len());
    for (row, rating) in ratings.iter().enumerate() {
        let count = &mut seen[rating.user as usize];
        if *count >= params.min_history {
            samples.push(Sample { row, history_len: *count as i32 });
        }
        *count += 1;
    }
    if samples.is_empty() {
        return Err(DatasetError::NoSamples { ratings: ratings.len(), min_history: params.min_history });
    }
    let period = match params.split {
        Split::Time => by_time(&samples, ratings.len(), params)?,
        Split::LeaveLastOut => leave_last_out(&ratings, &seen),
    };
    let mut parts = [Samples::default(), Samples::default(), Samples::default()];
    for (position, sample) in (0_i64..).zip(&samples) {
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
    Ok(Parts { interactions, train, valid, test })
}

/// Periods when the samples are cut by time: of n samples the first floor((1 - valid - test) n) are for training,
/// the next floor(valid n) for validation, the rest for the test. Ratings that are no samples belong to the period
/// in which they lie.
fn by_time(samples: &[Sample], ratings: usize, params: &DatasetParams) -> Result<Vec<i8>, DatasetError> {
    let (valid, test) = (params.valid_fraction, params.test_fraction);
    if valid + test >= 1.0 {
        return Err(DatasetError::Fractions { valid, test });
    }
    let train_count = share(1.0 - valid - test, samples.len());
    let valid_count = share(valid, samples.len());
    let row_of = |sample: usize| samples.get(sample).map_or(ratings, |s| s.row);
    let (first_valid, first_test) = (row_of(train_count), row_of(train_count + valid_count));
    let period: Vec<i8> = (0..ratings).map(|row| i8::from(row >= first_valid) + i8::from(row >= first_test)).collect();
    check_no_leak(&period, first_valid)?;
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
