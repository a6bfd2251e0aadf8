//! `dataset`: raw files to items, users, interactions and samples (METHOD section 1).

use crate::{InputReader, OutputWriter, Stage, StageContext, StageError, columns::TableBuilder};
use arrow_array::RecordBatch;
use rallrec_core::{params::DatasetParams, task::Progress};
use rallrec_recsys::dataset::{self, Dataset, Interactions, Items, Samples, Users};
use std::path::Path;

impl Stage for DatasetParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        _inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let folder =
            context.data.as_deref().ok_or_else(|| StageError::Invalid("a dataset stage needs `data`".into()))?;
        let set = read(folder, self, output)?;
        context.cancel.check()?;
        let ratings = set.interactions.user.len() as u64;
        let Dataset { items, users, interactions, train, valid, test, verb, like_above } = set;
        output.write("items", items_table(items, &verb, like_above)?)?;
        output.write("users", users_table(users)?)?;
        output.write("interactions", interactions_table(interactions)?)?;
        for (name, samples) in [("train", train), ("valid", valid), ("test", test)] {
            output.metric(&format!("{name}_samples"), samples.len() as f64);
            output.write(name, samples_table(samples)?)?;
        }
        context.progress.report(Progress { done: ratings, total: ratings, ..Progress::default() });
        Ok(())
    }
}

/// Reads the set. A bad row is left out as long as the output takes it.
fn read(folder: &Path, params: &DatasetParams, output: &mut dyn OutputWriter) -> Result<Dataset, StageError> {
    let mut refused = None;
    let read = dataset::load_with(folder, params, &mut |bad| match output
        .bad_row(bad.bad_row().unwrap_or_default(), &bad.to_string())
    {
        Ok(()) => true,
        Err(error) => {
            refused = Some(error);
            false
        }
    });
    read.map_err(|error| refused.unwrap_or_else(|| StageError::Invalid(error.to_string())))
}

fn items_table(items: Items, verb: &str, like_above: f64) -> Result<RecordBatch, StageError> {
    let table = TableBuilder::default()
        .i32("item", "Row position.", items.item)
        .text("item_id", "Identifier in the raw files.", items.item_id)
        .text("title", "Title with year.", items.title)
        .text("genre", "First genre, empty if none.", items.genre)
        .text_lists("genres", "Every genre.", items.genres)
        .i32_opt("year", "Year of release.", items.year)
        .i32("train_ratings", "Ratings in the training period.", items.train_ratings)
        .metadata("rallrec.verb", verb)
        .metadata("rallrec.like_above", like_above);
    further(table, items.further).finish()
}

fn users_table(users: Users) -> Result<RecordBatch, StageError> {
    let table = TableBuilder::default()
        .i32("user", "Row position.", users.user)
        .text("user_id", "Identifier in the raw files.", users.user_id)
        .text("gender", "Empty if unknown.", users.gender)
        .text("age", "Age bucket, in years.", users.age)
        .text("job", "Occupation.", users.job)
        .text("zip", "Postal code.", users.zip);
    further(table, users.further).finish()
}

/// Further texts of the set, after the columns that every set has.
fn further(table: TableBuilder, texts: Vec<(String, Vec<String>)>) -> TableBuilder {
    texts.into_iter().fold(table, |table, (name, texts)| table.text(&name, "Empty if unknown.", texts))
}

fn interactions_table(interactions: Interactions) -> Result<RecordBatch, StageError> {
    TableBuilder::default()
        .i32("user", "Row position in users.", interactions.user)
        .i32("item", "Row position in items.", interactions.item)
        .f32("rating", "Stars.", interactions.rating)
        .i64("timestamp", "Seconds since 1970.", interactions.timestamp)
        .i8("period", "0 training, 1 validation, 2 test.", interactions.period)
        .finish()
}

fn samples_table(samples: Samples) -> Result<RecordBatch, StageError> {
    TableBuilder::default()
        .i64("sample", "Position among all samples.", samples.sample)
        .i32("user", "Row position in users.", samples.user)
        .i32("item", "Row position in items.", samples.item)
        .f32("rating", "Stars.", samples.rating)
        .i64("timestamp", "Seconds since 1970.", samples.timestamp)
        .i8("label", "1 like, 0 not.", samples.label)
        .i32("history_len", "How many of the user's first interactions are the sample's history.", samples.history_len)
        .finish()
}
