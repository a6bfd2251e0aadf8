//! `embed`: text embeddings of titles and descriptions (eq. 2, 3).

use crate::{
    Columns, InputReader, OutputWriter, Stage, StageContext, StageError,
    columns::{Table, TableBuilder},
    item_text::ItemTexts,
    language::{self, RowResults, Written},
    meter::Meter,
    predictions::same_rows,
};
use rallrec_core::params::{EmbedParams, Pooling};

impl Stage for EmbedParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let model = language::model(context)?;
        let batch = inputs.table("items", Columns::All)?;
        let items = Table::new("items", &batch);
        let titles = ItemTexts::new("title_template", &self.title_template, &items)?;
        let descriptions = if inputs.has("descriptions") {
            let batch = inputs.table("descriptions", Columns::Only(&["item", "description"]))?;
            let table = Table::new("descriptions", &batch);
            same_rows("item", ("items", items.i32("item")?), ("descriptions", table.i32("item")?))?;
            table.text("description")?.into_iter().map(str::to_owned).collect()
        } else {
            vec![String::new(); items.rows()]
        };
        // An item without a description is embedded by its title alone: both halves are the title's.
        let described: Vec<usize> = (0..items.rows()).filter(|&row| !descriptions[row].is_empty()).collect();
        let texts =
            (0..items.rows()).map(|row| titles.of(row)).chain(described.iter().map(|&row| descriptions[row].clone()));
        let prompts = language::encode_all(&model, texts.map(|text| Ok(Written::Text(text))), usize::MAX);
        let total = prompts.len();
        let pooling = match self.pooling {
            Pooling::Mean => rallrec_llm::Pooling::Mean,
            Pooling::Last => rallrec_llm::Pooling::Last,
        };
        let mut meter = Meter::new(context);
        let embedded = RowResults::of(prompts, |prompts| {
            model.embed(prompts, pooling, self.batch_tokens as usize, &mut meter.watch(total))
        })?;
        let first = context.rows.map_or(0, |r| r.start);
        let width = model.width(&embedded.values)?;
        model.account(&meter, output);
        let mut vectors = Vec::with_capacity(items.rows() * 2 * width);
        for row in 0..items.rows() {
            let title = &embedded.values[row];
            let description = described.binary_search(&row).map_or(title, |at| &embedded.values[items.rows() + at]);
            for half in [title, description] {
                match half {
                    Some(vector) => vectors.extend_from_slice(vector),
                    None => vectors.resize(vectors.len() + width, 0.0),
                }
            }
        }
        // A row fails once, be it for its title, its description or both.
        let mut errors = embedded.errors[..items.rows()].to_vec();
        for (&row, error) in described.iter().zip(&embedded.errors[items.rows()..]) {
            errors[row] = errors[row].take().or_else(|| error.clone());
        }
        for (row, error) in (first..).zip(&errors) {
            if let Some(reason) = error {
                output.bad_row(row, reason)?;
            }
        }
        let table = TableBuilder::default()
            .i32("item", "Row position in items.", items.i32("item")?.to_vec())
            .vectors("e_text", "Title's embedding, then the description's; zeros for a bad row.", 2 * width, vectors)?
            .text_opt("error", "Why the row failed.", errors);
        output.write("embeddings", table.finish()?)
    }
}
