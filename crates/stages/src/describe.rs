//! `describe`: a language model writes a description of each item (eq. 1).

use crate::{
    Columns, InputReader, OutputWriter, Stage, StageContext, StageError,
    columns::{Table, TableBuilder},
    item_text::ItemTexts,
    language::{self, Prompt, Request, RowResults},
    meter::Meter,
};
use rallrec_core::{params::DescribeParams, rng::row_rng};
use rallrec_recsys::prompt::clean_description;

impl Stage for DescribeParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let model = language::model(context)?;
        let batch = inputs.table("items", Columns::All)?;
        let items = Table::new("items", &batch);
        let (item, ratings) = (items.i32("item")?, items.i32("train_ratings")?);
        let requests = ItemTexts::new("template", &self.template, &items)?;
        let chosen: Vec<usize> = (0..items.rows()).filter(|&row| ratings[row] as u32 >= self.min_ratings).collect();
        let texts = chosen.iter().map(|&row| language::chat(&model, "", &requests.of(row)));
        let prompts = language::encode_all(&model, texts, usize::MAX);
        let sampling = language::sampling!(self, &model);
        // Rows that cannot be encoded are left out of the call, so generators are drawn for those that can.
        let good: Vec<usize> = chosen.iter().zip(&prompts).filter(|(_, p)| p.is_ok()).map(|(row, _)| *row).collect();
        let (slots, mut meter) = (language::slots(self.batch_size, self.kv_bytes), Meter::new(context));
        let written = RowResults::of(prompts, |prompts| {
            let request = |(prompt, row): (Prompt, &usize)| Request {
                prompt,
                samples: vec![row_rng(context.seed, "describe", item[*row] as u64, 0)],
            };
            let requests = prompts.into_iter().zip(&good).map(request).collect();
            model.generate(requests, &sampling, slots, None, &mut meter.watch(chosen.len()))
        })?;
        let mut out = Descriptions::empty(items.rows());
        for ((&row, value), error) in chosen.iter().zip(&written.values).zip(&written.errors) {
            if let Some([answer, ..]) = value.as_deref() {
                out.text[row] = clean_description(&answer.text);
                out.tokens[row] = answer.tokens as i32;
            }
            if let Some(reason) = error {
                out.error[row] = Some(reason.clone());
                output.bad_row(context.rows.map_or(0, |r| r.start) + row as u64, reason)?;
            }
        }
        model.account(&meter, output);
        let table = TableBuilder::default()
            .i32("item", "Row position in items.", item.to_vec())
            .text("description", "Empty if not described.", out.text)
            .i32("tokens", "Tokens written.", out.tokens)
            .text_opt("error", "Why the row failed.", out.error);
        output.write("descriptions", table.finish()?)
    }
}

struct Descriptions {
    text: Vec<String>,
    tokens: Vec<i32>,
    error: Vec<Option<String>>,
}

impl Descriptions {
    fn empty(rows: usize) -> Self {
        Self { text: vec![String::new(); rows], tokens: vec![0; rows], error: vec![None; rows] }
    }
}
