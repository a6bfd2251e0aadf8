//! `index`: one vector an item, to be searched by dot product (eq. 7).

use crate::{
    Columns, InputReader, OutputWriter, Stage, StageContext, StageError,
    columns::{Table, TableBuilder},
    predictions::same_rows,
};
use arrow_array::RecordBatch;
use rallrec_core::{params::IndexParams, task::Progress};
use rallrec_recsys::index::{Parts, build};

impl Stage for IndexParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let read = |port: &str, vector: &str| match inputs.has(port) {
            true => inputs.table(port, Columns::Only(&["item", vector])).map(Some),
            false => Ok(None),
        };
        let text = read("text", "e_text")?;
        let (collaborative, aligned) = (read("collaborative", "embedding")?, read("aligned", "embedding")?);
        let given = [("text", &text), ("collaborative", &collaborative), ("aligned", &aligned)];
        let (port, batch) = given
            .into_iter()
            .find_map(|(port, batch)| batch.as_ref().map(|b| (port, b)))
            .ok_or_else(|| StageError::Invalid("index needs at least one of text, collaborative, aligned".into()))?;
        let item = Table::new(port, batch).i32("item")?.to_vec();
        let parts = Parts {
            text: part((port, &item), "text", &text, "e_text")?,
            collaborative: part((port, &item), "collaborative", &collaborative, "embedding")?,
            aligned: part((port, &item), "aligned", &aligned, "embedding")?,
        };
        let index = build(item.len(), parts, self).map_err(|e| StageError::Invalid(e.to_string()))?;
        let rows = item.len() as u64;
        let table = TableBuilder::default().i32("item", "Row position in items.", item).vectors(
            "vector",
            "Compared by dot product.",
            index.dim,
            index.vectors,
        )?;
        context.progress.report(Progress { done: rows, total: rows, ..Progress::default() });
        output.write("index", table.finish()?)
    }
}

/// The vectors of an input, if it was given; of the same items as the first input.
fn part<'a>(
    first: (&str, &[i32]),
    port: &'a str,
    batch: &'a Option<RecordBatch>,
    column: &str,
) -> Result<Option<&'a [f32]>, StageError> {
    let Some(batch) = batch else { return Ok(None) };
    let table = Table::new(port, batch);
    same_rows("item", first, (port, table.i32("item")?))?;
    Ok(Some(table.vectors(column)?.0))
}
