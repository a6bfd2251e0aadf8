//! The columns that every table of predictions shares: which sample, and what was true; and whether two tables are
//! about the same rows.

use crate::{
    StageError,
    columns::{Table, TableBuilder},
};

/// Which samples a table is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SampleColumns {
    pub(crate) sample: Vec<i64>,
    pub(crate) user: Vec<i32>,
    pub(crate) item: Vec<i32>,
    pub(crate) label: Vec<i8>,
}

impl SampleColumns {
    /// What they are called.
    pub(crate) const NAMES: [&str; 4] = ["sample", "user", "item", "label"];

    /// Their names, and that of another column.
    pub(crate) fn and(other: &str) -> [&str; 5] {
        let [sample, user, item, label] = Self::NAMES;
        [sample, user, item, label, other]
    }

    /// The columns of a table that has them.
    pub(crate) fn read(table: &Table<'_>) -> Result<Self, StageError> {
        Ok(Self {
            sample: table.i64("sample")?.to_vec(),
            user: table.i32("user")?.to_vec(),
            item: table.i32("item")?.to_vec(),
            label: table.i8("label")?.to_vec(),
        })
    }

    /// Begins a table with these columns.
    pub(crate) fn begin(self) -> TableBuilder {
        TableBuilder::default()
            .i64("sample", "Position among all samples.", self.sample)
            .i32("user", "Row position in users.", self.user)
            .i32("item", "Row position of the target in items.", self.item)
            .i8("label", "1 like, 0 not.", self.label)
    }
}

/// Fails unless both tables have the same values of an identifying column, row for row.
pub(crate) fn same_rows<T: PartialEq + std::fmt::Display>(
    what: &str,
    (a, left): (&str, &[T]),
    (b, right): (&str, &[T]),
) -> Result<(), StageError> {
    if left == right {
        return Ok(());
    }
    let row = left.iter().zip(right).position(|(l, r)| l != r).unwrap_or(left.len().min(right.len()));
    let shown = |column: &[T]| column.get(row).map_or_else(|| "no row".to_owned(), |v| format!("{what} {v}"));
    Err(StageError::Invalid(format!(
        "{a} and {b} are not about the same {what}s: row {row} is {} in {a} and {} in {b}; feed both from the same stage",
        shown(left),
        shown(right)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_rows_are_named() {
        assert!(same_rows("item", ("a", &[1, 2][..]), ("b", &[1, 2][..])).is_ok());
        let error = same_rows("item", ("a", &[1, 2][..]), ("b", &[1][..])).unwrap_err().to_string();
        assert_eq!(
            error,
            "a and b are not about the same items: row 1 is item 2 in a and no row in b; feed both from the same stage"
        );
    }
}
