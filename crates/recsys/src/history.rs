//! Interactions grouped by user, so that a sample's history is a slice.
//!
//! A sample stores only `history_len`: its history is the first `history_len` interactions of its user, in time
//! order. Nothing is copied a second time for each sample.

/// Interactions of every user, each user's in the order of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct UserHistories {
    /// User u's interactions are `offsets[u]..offsets[u + 1]`.
    offsets: Vec<usize>,
    items: Vec<i32>,
    stars: Vec<f32>,
}

/// A user's earliest interactions, oldest first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct History<'a> {
    /// Row positions of the items.
    pub items: &'a [i32],
    /// Stars, one an item.
    pub stars: &'a [f32],
}

/// Why interactions or a sample do not fit together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// Columns of the interactions have different lengths.
    #[error(
        "interactions have {users} users, {items} items and {stars} ratings; the columns of one table must be equally long"
    )]
    Columns {
        /// Rows of `user`.
        users: usize,
        /// Rows of `item`.
        items: usize,
        /// Rows of `rating`.
        stars: usize,
    },
    /// A user is not in `users`.
    #[error("user {user} is not a row of the {users} users; give `users` and `interactions` of the same dataset stage")]
    UnknownUser {
        /// Row position.
        user: i32,
        /// Number of users.
        users: usize,
    },
    /// A sample's history is longer than what there is of its user.
    #[error(
        "a history of {wanted} was asked for user {user}, who has {there} interactions; give samples and `interactions` of the same dataset stage"
    )]
    TooLong {
        /// Row position.
        user: i32,
        /// `history_len`.
        wanted: i32,
        /// Interactions of the user.
        there: usize,
    },
}

impl UserHistories {
    /// Groups the columns of `interactions` (`user`, `item`, `rating`), which are in time order, by user.
    ///
    /// # Errors
    /// When the columns differ in length, or a user is not in `0..users`.
    pub fn new(user: &[i32], item: &[i32], rating: &[f32], users: usize) -> Result<Self, HistoryError> {
        if user.len() != item.len() || user.len() != rating.len() {
            return Err(HistoryError::Columns { users: user.len(), items: item.len(), stars: rating.len() });
        }
        let mut offsets = vec![0; users + 1];
        for &u in user {
            let row = row(u, users)?;
            offsets[row + 1] += 1;
        }
        for u in 0..users {
            offsets[u + 1] += offsets[u];
        }
        let mut next = offsets.clone();
        let (mut items, mut stars) = (vec![0; item.len()], vec![0.0; item.len()]);
        for ((&u, &item), &rating) in user.iter().zip(item).zip(rating) {
            let slot = &mut next[row(u, users)?];
            items[*slot] = item;
            stars[*slot] = rating;
            *slot += 1;
        }
        Ok(Self { offsets, items, stars })
    }

    /// The first `history_len` interactions of a user.
    ///
    /// # Errors
    /// When there is no such user, or it has fewer interactions.
    pub fn of(&self, user: i32, history_len: i32) -> Result<History<'_>, HistoryError> {
        let row = row(user, self.offsets.len() - 1)?;
        let (start, end) = (self.offsets[row], self.offsets[row + 1]);
        let len = usize::try_from(history_len).ok().filter(|len| *len <= end - start);
        let len = len.ok_or(HistoryError::TooLong { user, wanted: history_len, there: end - start })?;
        Ok(History { items: &self.items[start..start + len], stars: &self.stars[start..start + len] })
    }
}

fn row(user: i32, users: usize) -> Result<usize, HistoryError> {
    usize::try_from(user).ok().filter(|row| *row < users).ok_or(HistoryError::UnknownUser { user, users })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_keep_the_order_of_the_table() {
        let histories = UserHistories::new(&[2, 0, 2, 2, 0], &[7, 8, 9, 7, 6], &[1.0, 2.0, 3.0, 4.0, 5.0], 3).unwrap();
        assert_eq!(histories.of(2, 2), Ok(History { items: &[7, 9], stars: &[1.0, 3.0] }));
        assert_eq!(histories.of(0, 2), Ok(History { items: &[8, 6], stars: &[2.0, 5.0] }));
        assert_eq!(histories.of(1, 0), Ok(History { items: &[], stars: &[] }));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let histories = UserHistories::new(&[0], &[7], &[1.0], 1).unwrap();
        assert_eq!(histories.of(0, 2), Err(HistoryError::TooLong { user: 0, wanted: 2, there: 1 }));
        assert_eq!(histories.of(0, -1), Err(HistoryError::TooLong { user: 0, wanted: -1, there: 1 }));
        assert_eq!(histories.of(1, 0), Err(HistoryError::UnknownUser { user: 1, users: 1 }));
        assert_eq!(UserHistories::new(&[-1], &[0], &[1.0], 1), Err(HistoryError::UnknownUser { user: -1, users: 1 }));
        assert!(matches!(UserHistories::new(&[0], &[], &[1.0], 1), Err(HistoryError::Columns { .. })));
    }
}
