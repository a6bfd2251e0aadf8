//! `lightgcn`: collaborative embeddings from the training period's graph (eq. 4).

use crate::{
    Columns, InputReader, OutputWriter, Stage, StageContext, StageError,
    columns::{Table, TableBuilder},
    training,
};
use rallrec_core::params::LightGcnParams;
use rallrec_recsys::{graph::Graph, lightgcn};

impl Stage for LightGcnParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let graph = training_graph(self, inputs)?;
        output.metric("edges", graph.edges().len() as f64);
        let trained = lightgcn::train(
            &graph,
            self,
            context.seed,
            context.device,
            &mut training::watch(context),
            &mut training::Kept::new(context),
        )?;
        training::record_losses(output, &trained.losses);
        let dim = self.dim as usize;
        let rows = |count: usize| (0..count as i32).collect::<Vec<_>>();
        let doc = "Collaborative embedding; zeros without a training edge.";
        let users = TableBuilder::default().i32("user", "Row position in users.", rows(graph.users())).vectors(
            "embedding",
            doc,
            dim,
            trained.users,
        )?;
        let items = TableBuilder::default().i32("item", "Row position in items.", rows(graph.items())).vectors(
            "embedding",
            doc,
            dim,
            trained.items,
        )?;
        output.write("users", users.finish()?)?;
        output.write("items", items.finish()?)
    }
}

/// The graph of the interactions whose period is training; no later rating is seen.
fn training_graph(params: &LightGcnParams, inputs: &dyn InputReader) -> Result<Graph, StageError> {
    let interactions = inputs.table("interactions", Columns::Only(&["user", "item", "rating", "period"]))?;
    // Of the others only how many there are, and what the data set says of itself.
    let (items, users) = (inputs.table("items", Columns::Only(&[]))?, inputs.table("users", Columns::Only(&[]))?);
    let items = Table::new("items", &items);
    let table = Table::new("interactions", &interactions);
    let like_above = items.metadata("rallrec.like_above")?;
    let like_above =
        like_above.parse().map_err(|e| StageError::Invalid(format!("input items: like_above {like_above}: {e}")))?;
    let training: Vec<usize> =
        (0..table.rows()).zip(table.i8("period")?).filter(|(_, p)| **p == 0).map(|(row, _)| row).collect();
    let (user, item, stars) = (table.i32("user")?, table.i32("item")?, table.f32("rating")?);
    Graph::from_ratings(
        (users.num_rows(), items.rows()),
        &training.iter().map(|&r| user[r]).collect::<Vec<_>>(),
        &training.iter().map(|&r| item[r]).collect::<Vec<_>>(),
        &training.iter().map(|&r| stars[r]).collect::<Vec<_>>(),
        params.edges,
        like_above,
    )
    .map_err(|e| StageError::Invalid(format!("input interactions: {e}")))
}
