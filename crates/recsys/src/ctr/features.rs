//! From columns of users, items and samples to feature numbers.
//!
//! Each field has its own run of numbers; the first of a run stands for every value that no training sample has, so
//! that a new user or item is encoded, and not refused. No field is continuous: the year is a category.

use crate::training::TrainError;
use std::collections::HashMap;

/// Names of the fields, in the order of an encoded sample.
pub const FIELDS: [&str; 8] = ["user", "gender", "age", "job", "zip", "item", "genre", "year"];

/// Attributes of users and items by row position. Empty text is a value like any other.
#[derive(Clone, Copy, Debug)]
pub struct FieldSource<'a> {
    /// Of each user.
    pub gender: &'a [String],
    /// Of each user: the bucket.
    pub age: &'a [String],
    /// Of each user.
    pub job: &'a [String],
    /// Of each user.
    pub zip: &'a [String],
    /// Of each item: the first genre.
    pub genre: &'a [String],
    /// Of each item.
    pub year: &'a [Option<i32>],
}

/// Users and items of samples, as row positions.
#[derive(Clone, Copy, Debug)]
pub struct SampleColumns<'a> {
    /// Users.
    pub user: &'a [i32],
    /// Items.
    pub item: &'a [i32],
}

/// A number for each value of each field.
#[derive(Clone, Debug)]
pub struct FeatureSpace {
    /// Feature numbers of each user: its own, gender, age, job, zip.
    user: Vec<[u32; 5]>,
    /// Feature numbers of each item: its own, first genre, year.
    item: Vec<[u32; 3]>,
    len: usize,
}

impl FeatureSpace {
    /// The space of the training samples' values, numbered in the order in which they first appear.
    ///
    /// # Errors
    /// When a column is too short for the users and items of the samples, or columns differ in length.
    pub fn fit(source: FieldSource<'_>, training: SampleColumns<'_>) -> Result<Self, TrainError> {
        let (users, items) = (source.gender.len(), source.genre.len());
        for (what, column) in [("age", source.age), ("job", source.job), ("zip", source.zip)] {
            TrainError::check_len(what, column.len(), users)?;
        }
        TrainError::check_len("year", source.year.len(), items)?;
        check(training, users, items)?;
        let mut seen_user = vec![false; users];
        let mut seen_item = vec![false; items];
        training.user.iter().for_each(|&u| seen_user[u as usize] = true);
        training.item.iter().for_each(|&i| seen_item[i as usize] = true);

        let mut next = 0;
        let mut user = vec![[0; 5]; users];
        number(&mut next, users, &seen_user, |u| u, |u, n| user[u][0] = n);
        for (at, column) in [source.gender, source.age, source.job, source.zip].into_iter().enumerate() {
            number(&mut next, users, &seen_user, |u| column[u].as_str(), |u, n| user[u][at + 1] = n);
        }
        let mut item = vec![[0; 3]; items];
        number(&mut next, items, &seen_item, |i| i, |i, n| item[i][0] = n);
        number(&mut next, items, &seen_item, |i| source.genre[i].as_str(), |i, n| item[i][1] = n);
        number(&mut next, items, &seen_item, |i| source.year[i], |i, n| item[i][2] = n);
        Ok(Self { user, item, len: next as usize })
    }

    /// Feature numbers [samples, fields], row after row, in the order of [`FIELDS`].
    ///
    /// # Errors
    /// When a sample names a user or item that the space was not fitted with, or columns differ in length.
    pub fn encode(&self, samples: SampleColumns<'_>) -> Result<Vec<u32>, TrainError> {
        check(samples, self.user.len(), self.item.len())?;
        let mut out = Vec::with_capacity(samples.user.len() * FIELDS.len());
        for (&u, &i) in samples.user.iter().zip(samples.item) {
            out.extend(self.user[u as usize]);
            out.extend(self.item[i as usize]);
        }
        Ok(out)
    }

    /// Features of all fields together, the unknown ones counted.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none; never, as each field has its unknown value.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

fn check(samples: SampleColumns<'_>, users: usize, items: usize) -> Result<(), TrainError> {
    TrainError::check_len("the samples' item column", samples.item.len(), samples.user.len())?;
    let fits = |column: &[i32], count: usize| column.iter().all(|&v| usize::try_from(v).is_ok_and(|v| v < count));
    let largest = |column: &[i32]| column.iter().max().map_or(0, |&v| v.max(0) as usize + 1);
    if !fits(samples.user, users) {
        return Err(TrainError::Length { what: "the users table", found: users, expected: largest(samples.user) });
    }
    if !fits(samples.item, items) {
        return Err(TrainError::Length { what: "the items table", found: items, expected: largest(samples.item) });
    }
    Ok(())
}

/// Numbers one field's values from `next` on: first the unknown value, then those of the `seen` rows by row.
fn number<V: std::hash::Hash + Eq>(
    next: &mut u32,
    rows: usize,
    seen: &[bool],
    value: impl Fn(usize) -> V,
    mut assign: impl FnMut(usize, u32),
) {
    let unknown = *next;
    *next += 1;
    let mut numbers = HashMap::new();
    for row in (0..rows).filter(|&r| seen[r]) {
        numbers.entry(value(row)).or_insert_with(|| {
            *next += 1;
            *next - 1
        });
    }
    (0..rows).for_each(|row| assign(row, numbers.get(&value(row)).copied().unwrap_or(unknown)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(values: &[&str]) -> Vec<String> {
        values.iter().map(|&v| v.to_owned()).collect()
    }

    #[test]
    fn values_without_a_training_sample_are_unknown() {
        let (gender, age, same) = (text(&["F", "M", "F"]), text(&["a", "b", "c"]), text(&["x", "x", "x"]));
        let genre = text(&["Drama", "War"]);
        let source = FieldSource {
            gender: &gender,
            age: &age,
            job: &same,
            zip: &same,
            genre: &genre,
            year: &[Some(1999), None],
        };
        let space = FeatureSpace::fit(source, SampleColumns { user: &[1, 0], item: &[1, 1] }).expect("consistent");
        // user 0..=2, gender 3..=5, age 6..=8, job 9..=10, zip 11..=12, item 13..=14, genre 15..=16, year 17..=18.
        assert_eq!(space.len(), 19);
        let rows = space.encode(SampleColumns { user: &[0, 2], item: &[1, 0] }).expect("in range");
        assert_eq!(rows, [1, 4, 7, 10, 12, 14, 16, 18, 0, 4, 6, 10, 12, 13, 15, 17]);
        assert!(space.encode(SampleColumns { user: &[3], item: &[0] }).is_err());
    }
}
