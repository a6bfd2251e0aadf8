//! The data set's tables as plain columns.
//!
//! Names and meanings are those of `docs/artifacts.md`. Arrow stays out of this crate: the `dataset` stage turns
//! these columns into record batches.

/// One row an item, by item id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Items {
    /// Row position: 0, 1, 2 …
    pub item: Vec<i32>,
    /// Identifier in the raw files.
    pub item_id: Vec<String>,
    /// Title, with its year where the raw files have one: `Toy Story (1995)`.
    pub title: Vec<String>,
    /// First genre, empty if none.
    pub genre: Vec<String>,
    /// Every genre, in the raw files' order.
    pub genres: Vec<Vec<String>>,
    /// Year of release.
    pub year: Vec<Option<i32>>,
    /// Ratings in the training period.
    pub train_ratings: Vec<i32>,
    /// Further texts of the set, by name; empty where an item has none.
    pub further: Vec<(String, Vec<String>)>,
}

/// One row a user, by user id. A field is empty where the set has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Users {
    /// Row position: 0, 1, 2 …
    pub user: Vec<i32>,
    /// Identifier in the raw files.
    pub user_id: Vec<String>,
    /// `female` or `male`.
    pub gender: Vec<String>,
    /// Age bucket, in years: `under 18`, `18-24`, … `above 56`.
    pub age: Vec<String>,
    /// Occupation in words.
    pub job: Vec<String>,
    /// Postal code.
    pub zip: Vec<String>,
    /// Further texts of the set, by name; empty where a user has none.
    pub further: Vec<(String, Vec<String>)>,
}

/// One row a rating, by (timestamp, user id, item id); by (period, timestamp, user id, item id) where ratings were
/// shuffled into the parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Interactions {
    /// Row position of the user.
    pub user: Vec<i32>,
    /// Row position of the item.
    pub item: Vec<i32>,
    /// Stars.
    pub rating: Vec<f32>,
    /// Seconds since 1970; in a set without times, the place in a seeded shuffle of the user's ratings.
    pub timestamp: Vec<i64>,
    /// 0 training, 1 validation, 2 test.
    pub period: Vec<i8>,
}

/// One row a sample of the CTR task, in the order of the interactions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// Position among all samples of the set, whatever their split.
    pub sample: Vec<i64>,
    /// Row position of the user.
    pub user: Vec<i32>,
    /// Row position of the target item.
    pub item: Vec<i32>,
    /// Stars that the user gave the target.
    pub rating: Vec<f32>,
    /// When, in seconds since 1970.
    pub timestamp: Vec<i64>,
    /// 1 like, 0 not.
    pub label: Vec<i8>,
    /// The sample's history is the first `history_len` interactions of its user.
    pub history_len: Vec<i32>,
}

impl Samples {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.sample.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sample.is_empty()
    }
}

/// A data set, ready for every later stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// Every item of the catalogue, rated or not; after a core filter those that it kept.
    pub items: Items,
    /// Every user; after a core filter those that it kept.
    pub users: Users,
    /// Every rating.
    pub interactions: Interactions,
    /// Samples to learn from.
    pub train: Samples,
    /// Samples to choose parameters on.
    pub valid: Samples,
    /// Samples to evaluate on.
    pub test: Samples,
    /// What users do with items, for prompts.
    pub verb: String,
    /// A rating above this many stars is a like.
    pub like_above: f64,
}
