//! `rows`: numbered rows, for trying and measuring a cluster.

use crate::{Columns, InputReader, OutputWriter, Stage, StageContext, StageError};
use arrow_array::{Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use rallrec_core::params::RowsParams;
use std::sync::Arc;

impl Stage for RowsParams {
    fn run(
        &self,
        _context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        // What it waits for is read, as a stage that gathers would.
        inputs.tables("after", Columns::All)?;
        let schema = Arc::new(Schema::new(vec![Field::new("row", DataType::Int64, false)]));
        let rows = Arc::new(Int64Array::from_iter_values(0..i64::from(self.count)));
        let batch = RecordBatch::try_new(schema, vec![rows]).map_err(|e| StageError::Invalid(e.to_string()))?;
        output.write("rows", batch)
    }
}
