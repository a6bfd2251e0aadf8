//! How a user's own files become a data set: the parameters below `mapping:` of a `dataset` stage.
//!
//! Only what the files look like stands here. What the ratings mean (likes, splits, filters) is the same for every data
//! set and belongs to [`crate::params::DatasetParams`].

use crate::field::{Effect, Field, ParamValue, ValueKind, choice, params};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

choice! {
    /// How a file's rows are written.
    FileFormat {
        /// Told by the ending of its name: `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json` (one object a line) or `.parquet`.
        Auto = "auto",
        /// One row a line, its values separated by one character.
        Csv = "csv",
        /// One JSON object a line.
        JsonLines = "jsonl",
        /// Parquet.
        Parquet = "parquet",
    }
}
choice! {
    /// What a file's bytes stand for.
    TextEncoding {
        /// UTF-8.
        Utf8 = "utf-8",
        /// ISO-8859-1.
        Latin1 = "latin1",
        /// Windows-1252.
        Cp1252 = "cp1252",
    }
}
choice! {
    /// How a point in time is written.
    TimeFormat {
        /// Seconds since 1970.
        Seconds = "s",
        /// Milliseconds since 1970; what is beyond the second is cut off.
        Milliseconds = "ms",
        /// An ISO 8601 date, `2024-03-01`, or a date with a time, `2024-03-01T10:30:00Z`; UTC where no zone is given.
        Iso = "iso",
    }
}

/// Where a table's rows come from.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// File, relative to the data set's folder.
    pub file: &'a str,
    /// How rows are written.
    pub format: FileFormat,
    /// What stands between two values; empty for what the format has.
    pub separator: &'a str,
    /// What stands round a value that holds separators; empty for nothing.
    pub quote: &'a str,
    /// What stands before a quote within such a value; empty where quotes are doubled.
    pub escape: &'a str,
    /// What the bytes stand for.
    pub encoding: TextEncoding,
    /// Names of the columns where the file has no header; empty where its first line is one.
    pub columns: &'a [String],
    /// Texts that mean that there is no value.
    pub missing: &'a [String],
}

impl Layout<'_> {
    /// How the rows are written; `None` where neither the pipeline nor the file's ending says.
    pub fn resolved(&self) -> Option<FileFormat> {
        if self.format != FileFormat::Auto {
            return Some(self.format);
        }
        match self.ending().as_str() {
            "csv" | "tsv" => Some(FileFormat::Csv),
            "jsonl" | "ndjson" | "json" => Some(FileFormat::JsonLines),
            "parquet" => Some(FileFormat::Parquet),
            _ => None,
        }
    }

    /// What stands between two values of a `csv` file.
    pub fn separator(&self) -> u8 {
        match self.separator.bytes().next() {
            Some(byte) => byte,
            None if self.ending() == "tsv" => b'\t',
            None => b',',
        }
    }

    fn ending(&self) -> String {
        self.file.rsplit_once('.').map_or(String::new(), |(_, ending)| ending.to_ascii_lowercase())
    }
}

/// A table: what every file has, then the columns.
macro_rules! table {
    ($(#[doc = $doc:literal])* $name:ident { $($columns:tt)* }) => {
        params! {
            $(#[doc = $doc])*
            $name {
                /// File, relative to the data set's folder.
                file: String = "", Keyed;
                /// How its rows are written.
                format: FileFormat = FileFormat::Auto, Keyed;
                /// What stands between two values of a `csv` file, one character. Empty for a comma, or for a tab where
                /// the file's name ends with `.tsv`.
                separator: String = "", Keyed;
                /// What stands round a value of a `csv` file that holds separators, one character. Empty for nothing.
                quote: String = "\"", Keyed;
                /// What stands before a quote within a quoted value, one character. Empty where quotes are doubled.
                escape: String = "", Keyed;
                /// What the bytes of a `csv` file stand for.
                encoding: TextEncoding = TextEncoding::Utf8, Keyed;
                /// Names of a `csv` file's columns, in order, where it has no header. Empty where its first line is one.
                columns: Vec<String> = Vec::<String>::new(), Keyed;
                /// Texts that mean that there is no value, as the empty text does.
                missing: Vec<String> = Vec::<String>::new(), Keyed;
                $($columns)*
            }
        }

        impl $name {
            /// Where its rows come from.
            pub fn layout(&self) -> Layout<'_> {
                Layout {
                    file: &self.file,
                    format: self.format,
                    separator: &self.separator,
                    quote: &self.quote,
                    escape: &self.escape,
                    encoding: self.encoding,
                    columns: &self.columns,
                    missing: &self.missing,
                }
            }
        }
    };
}

table! {
    /// The ratings, one a row.
    RatingsTable {
        /// Column of the user's identifier.
        user: String = "", Keyed;
        /// Column of the item's identifier.
        item: String = "", Keyed;
        /// Column of the rating, a number.
        rating: String = "", Keyed;
        /// Column of the time. Empty where there is none: then only `split: shuffled_users` and
        /// `split: shuffled_ratings` are possible.
        time: String = "", Keyed;
        /// How the time is written.
        time_format: TimeFormat = TimeFormat::Seconds, Keyed;
    }
}
table! {
    /// The items, one a row.
    ItemsTable {
        /// Column of the identifier that the ratings name.
        id: String = "", Keyed;
        /// Column of the title. Empty where there is none: then the identifier is the title.
        title: String = "", Keyed;
        /// Column of the genres. Empty where there is none.
        genres: String = "", Keyed;
        /// What stands between two genres. Empty where the column holds one, or a list.
        genre_separator: String = "|", Keyed;
        /// Column of the year. Empty for the year in brackets at the end of the title, where there is one.
        year: String = "", Keyed;
        /// Columns of further texts, each by the name that it gets in the table of items.
        fields: BTreeMap<String, String> = BTreeMap::<String, String>::new(), Keyed;
    }
}
table! {
    /// The users, one a row.
    UsersTable {
        /// Column of the identifier that the ratings name.
        id: String = "", Keyed;
        /// Column of the gender. `F` and `M` are written out; other words are kept.
        gender: String = "", Keyed;
        /// Column of the age. A whole number of years becomes its bucket; other words are kept.
        age: String = "", Keyed;
        /// Column of the occupation.
        job: String = "", Keyed;
        /// Column of the postal code.
        zip: String = "", Keyed;
        /// Columns of further texts, each by the name that it gets in the table of users.
        fields: BTreeMap<String, String> = BTreeMap::<String, String>::new(), Keyed;
    }
}
params! {
    /// Files and their columns.
    Mapping {
        /// The ratings.
        ratings: RatingsTable = RatingsTable::default(), Keyed;
        /// The items. Without them, the items are those that are rated, and their identifiers are their titles.
        items: Option<ItemsTable> = None::<ItemsTable>, Keyed;
        /// The users. Without them, the users are those that rate.
        users: Option<UsersTable> = None::<UsersTable>, Keyed;
        /// What users do with items, in prompts.
        verb: String = "watched", Keyed;
    }
}

/// Columns of the tables of items and users that every data set has; further texts need other names.
pub const ITEM_COLUMNS: &[&str] = &["item", "item_id", "title", "genre", "genres", "year", "train_ratings"];
/// Further texts of BookCrossing's items.
pub const BOOK_FIELDS: [&str; 3] = ["author", "publisher", "isbn"];
/// As [`ITEM_COLUMNS`], of the table of users.
pub const USER_COLUMNS: &[&str] = &["user", "user_id", "gender", "age", "job", "zip"];
