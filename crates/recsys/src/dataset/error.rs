//! What can be wrong with a data set's raw files.

use std::path::PathBuf;

/// Why a data set cannot be read. Every message names the file (and line), what was expected, and the way out.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The folder holds no known layout.
    #[error(
        "{dir}: no known data set here; expected ratings.dat, movies.dat and users.dat (movielens-1m), u.data, u.item and \
         u.user (movielens-100k), one each of *.inter, *.item and *.user (recbole), BX-Book-Ratings.csv, BX-Books.csv and \
         BX-Users.csv (bookcrossing), or Movies_and_TV.json and meta_Movies_and_TV.json (amazon); point `data` at the folder \
         that holds these files themselves, or say by a `mapping` what its files are",
        dir = dir.display()
    )]
    UnknownLayout {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder holds several layouts.
    #[error("{dir}: files of several layouts ({found}); set `format` to the one to read", dir = dir.display())]
    AmbiguousLayout {
        /// The folder.
        dir: PathBuf,
        /// Names of the layouts.
        found: String,
    },
    /// A layout needs exactly one file with an ending, and there are none or several.
    #[error("{dir}: expected exactly one *.{ending} file, found {found}; keep the files of one data set in the folder", dir = dir.display())]
    FileCount {
        /// The folder.
        dir: PathBuf,
        /// Ending, without its dot.
        ending: &'static str,
        /// How many there are.
        found: usize,
    },
    /// A file or folder cannot be read.
    #[error("{path}: {source}; check that the file is there and readable", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line is not what its layout says.
    #[error("{file}:{line}: expected {expected}, found {found:?}; correct the line, or fetch the data set again", file = file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What should stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A value is not what its column should hold.
    #[error(
        "{file}:{line}: column {column:?}: expected {expected}, found {found:?}; correct the value, or allow bad rows by \
         `max_bad_rows`",
        file = file.display()
    )]
    Value {
        /// The file.
        file: PathBuf,
        /// The line, from 1; in Parquet files the row.
        line: usize,
        /// Name of the column.
        column: String,
        /// What should stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A Parquet file cannot be read.
    #[error("{path}: {source}; give a Parquet file that is uncompressed or compressed by Snappy", path = path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the library says.
        source: parquet::errors::ParquetError,
    },
    /// A quoted value has no end.
    #[error(
        "{file}:{line}: a quoted value goes on for {lines} lines, so a quote is missing, or it is none; correct the line, \
         or set `quote` (\"\" for none) and `escape`",
        file = file.display()
    )]
    OpenQuote {
        /// The file.
        file: PathBuf,
        /// The line on which the row begins, from 1.
        line: usize,
        /// Lines of the row.
        lines: usize,
    },
    /// An atomic file lacks a column.
    #[error("{file}:1: no column {column:?} (found {found}); add it to the header and to every line, or fetch the data set again", file = file.display())]
    MissingColumn {
        /// The file.
        file: PathBuf,
        /// Name of the column.
        column: &'static str,
        /// The columns that are there.
        found: String,
    },
    /// A file lacks a column that its mapping names.
    #[error("{file}:1: no column {column:?} (found {found}); name another below `mapping`, or give the file's own by `columns`", file = file.display())]
    UnmappedColumn {
        /// The file.
        file: PathBuf,
        /// Name of the column.
        column: String,
        /// The columns that are there.
        found: String,
    },
    /// A rating names a user or item that its catalogue file lacks.
    #[error(
        "{file}:{line}: {what} {id:?} is not in {catalogue}; add it there, or remove the rating",
        file = file.display(),
        catalogue = catalogue.display()
    )]
    UnknownId {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// `user` or `item`.
        what: &'static str,
        /// Its identifier.
        id: String,
        /// The file that should have it.
        catalogue: PathBuf,
    },
    /// A user, an item or a rating comes twice.
    #[error("{file}:{line}: {what} is already on line {first}; remove one of the two", file = file.display())]
    Duplicate {
        /// The file.
        file: PathBuf,
        /// The later line, from 1.
        line: usize,
        /// What comes twice, with its identifiers.
        what: String,
        /// The earlier line.
        first: usize,
    },
    /// Parameters that exclude one another.
    #[error("valid_fraction {valid} and test_fraction {test} leave no training samples; make their sum less than 1")]
    Fractions {
        /// Fraction for validation.
        valid: f64,
        /// Fraction for the test.
        test: f64,
    },
    /// No rating has enough history.
    #[error(
        "none of the {ratings} ratings has {min_history} earlier ratings of its user; lower `min_history`, or give a larger data set"
    )]
    NoSamples {
        /// Number of ratings.
        ratings: usize,
        /// Earlier ratings that a sample needs.
        min_history: u32,
    },
    /// The set is larger than its column types.
    #[error("{file}: {count} {what}, more than the {max} that fit; split the data set", file = file.display(), max = i32::MAX)]
    TooMany {
        /// The file.
        file: PathBuf,
        /// `users` or `items`.
        what: &'static str,
        /// How many there are.
        count: usize,
    },
    /// Too few ratings for the paper's rule.
    #[error(
        "{file}: by the paper's rule nothing is left of its {ratings} ratings; give the whole data set, or read these files \
         by a `mapping`",
        file = file.display()
    )]
    NoCore {
        /// The file of ratings.
        file: PathBuf,
        /// Number of ratings.
        ratings: usize,
    },
    /// The core filter leaves nothing.
    #[error(
        "the core filter leaves none of the {ratings} ratings; lower `min_user_ratings` or `min_item_ratings`, or raise \
         `max_user_ratings` or `max_item_ratings`"
    )]
    NothingKept {
        /// Number of ratings.
        ratings: usize,
    },
    /// A split goes by time, and the set has no times.
    #[error("{file}: these ratings have no times; set `split` to shuffled_users or shuffled_ratings", file = file.display())]
    NoTimes {
        /// The file of ratings.
        file: PathBuf,
    },
    /// A rating of a later part reaches a sample of an earlier one.
    #[error(
        "sample {sample} is for {part}, but {what}: this is a bug in the split, please report it with the parameters of \
         the `dataset` stage"
    )]
    LeakedSample {
        /// Position among all samples.
        sample: i64,
        /// Training, validation or test.
        part: &'static str,
        /// What it would learn from.
        what: &'static str,
    },
    /// A rating is in the training period and in a later one.
    #[error(
        "user row {user} has rated item row {item} in the training period and after it, so training would see what is \
         predicted: this is a bug in the split, please report it with the parameters of the `dataset` stage"
    )]
    LeakedPair {
        /// Row of the user.
        user: i32,
        /// Row of the item.
        item: i32,
    },
    /// A training rating is not before the first validation sample.
    #[error(
        "rating {row} in time order counts as training but the first evaluated sample is rating {first}: this is a bug in the \
         split, please report it with the parameters of the `dataset` stage"
    )]
    Leak {
        /// Position of the rating.
        row: usize,
        /// Position of the first validation (or test) sample.
        first: usize,
    },
}

impl DatasetError {
    /// The line (or row) of a row that could be left out; `None` where the set as a whole cannot be read.
    pub fn bad_row(&self) -> Option<u64> {
        match self {
            Self::Malformed { line, .. }
            | Self::Value { line, .. }
            | Self::UnknownId { line, .. }
            | Self::Duplicate { line, .. } => Some(*line as u64),
            _ => None,
        }
    }
}
