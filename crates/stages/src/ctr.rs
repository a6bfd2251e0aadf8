//! `ctr`: a click-through-rate baseline on ID and user fields (METHOD section 14).

use crate::{
    Columns, InputReader, OutputWriter, Stage, StageContext, StageError, columns::Table, predictions::SampleColumns,
    training,
};
use arrow_array::RecordBatch;
use rallrec_core::params::CtrParams;
use rallrec_recsys::ctr::{self, Encoded, FeatureSpace, FieldSource};

impl Stage for CtrParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let (train, valid) = (Split::read("train", inputs)?, Split::read("valid", inputs)?);
        let test = Split::read("test", inputs)?.first(self.limit as usize);
        let space = feature_space(inputs, &train.samples)?;
        output.metric("features", space.len() as f64);
        let [train, valid, test] = [train, valid, test].map(|split| split.encode(&space));
        let (train, valid, test) = (train?, valid?, test?);
        let data = [train.encoded(), valid.encoded()];
        let heard = &mut training::watch(context);
        let trained = ctr::train(&space, self, context.seed, data, context.device, heard)?;
        training::record_losses(output, &trained.losses);
        output.metric("best_epoch", f64::from(trained.best_epoch));
        if let Some(best) = trained.valid_auc.get(trained.best_epoch.saturating_sub(1) as usize) {
            output.metric("valid_auc", *best);
        }
        let p = trained.model.predict(&test.features).into_iter().map(Some).collect();
        let table = test.samples.begin().f32_opt("p", "Probability of a like.", p);
        output.write("predictions", table.finish()?)
    }
}

/// The samples of one split, with their feature numbers once encoded.
struct Split {
    samples: SampleColumns,
    features: Vec<u32>,
}

impl Split {
    fn read(port: &str, inputs: &dyn InputReader) -> Result<Self, StageError> {
        let batch = inputs.table(port, Columns::Only(&SampleColumns::NAMES))?;
        Ok(Self { samples: SampleColumns::read(&Table::new(port, &batch))?, features: Vec::new() })
    }

    /// Its first `limit` samples; 0 keeps all.
    fn first(mut self, limit: usize) -> Self {
        if limit > 0 {
            self.samples.sample.truncate(limit);
            self.samples.user.truncate(limit);
            self.samples.item.truncate(limit);
            self.samples.label.truncate(limit);
        }
        self
    }

    fn encode(mut self, space: &FeatureSpace) -> Result<Self, StageError> {
        self.features = space.encode(ctr::SampleColumns { user: &self.samples.user, item: &self.samples.item })?;
        Ok(self)
    }

    fn encoded(&self) -> Encoded<'_> {
        Encoded { features: &self.features, labels: &self.samples.label }
    }
}

/// A number for each value of each field that the training samples have.
fn feature_space(inputs: &dyn InputReader, training: &SampleColumns) -> Result<FeatureSpace, StageError> {
    let items = inputs.table("items", Columns::Only(&["genre", "year"]))?;
    let users = inputs.table("users", Columns::Only(&["gender", "age", "job", "zip"]))?;
    let text = |name: &'static str, batch: &RecordBatch, column: &str| -> Result<Vec<String>, StageError> {
        Ok(Table::new(name, batch).text(column)?.into_iter().map(str::to_owned).collect())
    };
    let source = FieldSource {
        gender: &text("users", &users, "gender")?,
        age: &text("users", &users, "age")?,
        job: &text("users", &users, "job")?,
        zip: &text("users", &users, "zip")?,
        genre: &text("items", &items, "genre")?,
        year: &Table::new("items", &items).i32_opt("year")?,
    };
    Ok(FeatureSpace::fit(source, ctr::SampleColumns { user: &training.user, item: &training.item })?)
}
