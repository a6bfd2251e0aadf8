//! `align`: text embeddings mapped onto collaborative ones (eq. 5, 6).

use crate::{
    Columns, InputReader, OutputWriter, Stage, StageContext, StageError,
    columns::{Table, TableBuilder},
    predictions::same_rows,
    training,
};
use rallrec_core::params::AlignParams;
use rallrec_recsys::align;

impl Stage for AlignParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let text = inputs.table("text", Columns::Only(&["item", "e_text"]))?;
        let collaborative = inputs.table("collaborative", Columns::Only(&["item", "embedding"]))?;
        let (text, collaborative) = (Table::new("text", &text), Table::new("collaborative", &collaborative));
        let item = text.i32("item")?;
        same_rows("item", ("text", item), ("collaborative", collaborative.i32("item")?))?;
        let (e_text, _) = text.vectors("e_text")?;
        let (e_colla, dim) = collaborative.vectors("embedding")?;
        let heard = &mut training::watch(context);
        let aligned = align::train(item.len(), e_text, e_colla, self, context.seed, context.device, heard)?;
        training::record_losses(output, &aligned.losses);
        let table = TableBuilder::default().i32("item", "Row position in items.", item.to_vec()).vectors(
            "embedding",
            "e_ssl: the text embedding in the collaborative space.",
            dim,
            aligned.embeddings,
        )?;
        output.write("embeddings", table.finish()?)
    }
}
