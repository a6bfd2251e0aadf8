//! Which segment each sample's user is in.

use crate::failure::Failure;
use crate::predictions::{RunTables, column};
use arrow_array::{Int8Array, Int32Array, StringArray};
use arrow_schema::DataType;
use rallrec_core::{plan::PlannedStage, spec::gate::By};
use std::collections::BTreeMap;

/// Ratings of this period are those that training sees.
const TRAINING: i8 = 0;
/// What a user's empty value is called.
const UNKNOWN: &str = "unknown";

/// The segments of a data set's users.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Segmented {
    /// Names of the segments, in the order of their report.
    pub(super) names: Vec<String>,
    /// Segment of each user, by row position in `users`.
    of_user: BTreeMap<i32, usize>,
}

/// Why users cannot be told apart so.
pub(super) enum Unfit {
    /// The table has no such column of texts; these it has.
    Column(Vec<String>),
    /// Something else.
    Failed(Failure),
}

impl Segmented {
    /// Reads what tells the users of a data set apart.
    pub(super) async fn read(tables: &RunTables<'_>, dataset: &PlannedStage, by: &By) -> Result<Self, Unfit> {
        let found = match by {
            By::History(edges) => by_history(tables, dataset, edges).await,
            By::Column(name) => by_column(tables, dataset, name).await?,
        };
        found.map_err(Unfit::Failed)
    }

    /// Segment of a user; one that the table does not have is in none.
    pub(super) fn of(&self, user: i32) -> Option<usize> {
        self.of_user.get(&user).copied()
    }
}

async fn by_history(tables: &RunTables<'_>, dataset: &PlannedStage, edges: &[u64]) -> Result<Segmented, Failure> {
    let mut ratings: BTreeMap<i32, u64> = BTreeMap::new();
    let odd = |e: String| anyhow::anyhow!("stage {} of run {}: {e}", dataset.name, tables.run);
    for batch in tables.table(dataset, "users").await? {
        for user in column::<Int32Array>(&batch, "user").map_err(odd)?.values() {
            ratings.insert(*user, 0);
        }
    }
    for batch in tables.table(dataset, "interactions").await? {
        let (users, periods) =
            (column::<Int32Array>(&batch, "user").map_err(odd)?, column::<Int8Array>(&batch, "period").map_err(odd)?);
        for (user, _) in users.values().iter().zip(periods.values()).filter(|(_, period)| **period == TRAINING) {
            *ratings.entry(*user).or_default() += 1;
        }
    }
    let of_user = ratings.into_iter().map(|(user, n)| (user, edges.partition_point(|edge| *edge <= n))).collect();
    Ok(Segmented { names: history_names(edges), of_user })
}

fn history_names(edges: &[u64]) -> Vec<String> {
    let (Some(first), Some(last)) = (edges.first(), edges.last()) else { return Vec::new() };
    let between = edges.windows(2).map(|pair| format!("history {} to {}", pair[0], pair[1] - 1));
    std::iter::once(format!("history below {first}"))
        .chain(between)
        .chain([format!("history {last} and above")])
        .collect()
}

async fn by_column(
    tables: &RunTables<'_>,
    dataset: &PlannedStage,
    name: &str,
) -> Result<Result<Segmented, Failure>, Unfit> {
    let mut values: BTreeMap<i32, String> = BTreeMap::new();
    for batch in tables.table(dataset, "users").await.map_err(Unfit::Failed)? {
        let (Ok(users), Ok(texts)) = (column::<Int32Array>(&batch, "user"), column::<StringArray>(&batch, name)) else {
            let schema = batch.schema();
            let texts = schema.fields().iter().filter(|f| *f.data_type() == DataType::Utf8 && f.name() != "user_id");
            return Err(Unfit::Column(texts.map(|f| f.name().clone()).collect()));
        };
        let word = |row: usize| if texts.value(row).is_empty() { UNKNOWN } else { texts.value(row) };
        values.extend((0..batch.num_rows()).map(|row| (users.value(row), word(row).to_owned())));
    }
    let mut words: Vec<&String> = values.values().collect();
    words.sort();
    words.dedup();
    let place = |value: &String| words.partition_point(|word| *word < value);
    let of_user = values.iter().map(|(user, value)| (*user, place(value))).collect();
    Ok(Ok(Segmented { names: words.iter().map(|word| format!("{name} {word}")).collect(), of_user }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_are_named_by_their_bounds() {
        assert_eq!(history_names(&[20, 100]), ["history below 20", "history 20 to 99", "history 100 and above"]);
        assert_eq!(history_names(&[5]), ["history below 5", "history 5 and above"]);
    }
}
