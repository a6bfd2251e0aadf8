//! CTR baselines on ID and user fields (METHOD section 14): feature encoding, training with early stopping, prediction.
//!
//! Fields are user, gender, age, job, zip, item, first genre and year. The title of the paper's nine fields is left
//! out: it names the item one to one, so its embedding adds nothing that the item's cannot hold. Histories are not a
//! field. A submodule for each model; what they share is in `network`.

mod autoint;
mod dcn;
mod deepfm;
mod features;
mod network;
mod xdeepfm;

pub use features::{FIELDS, FeatureSpace, FieldSource, SampleColumns};
pub use network::{CtrNetwork, Matrix, initial};

use crate::{
    draw, metrics,
    training::{OnProgress, TrainError, TrainProgress},
};
use burn::tensor::Device;
use rallrec_core::{params::CtrParams, rng::row_rng};

/// Encoded samples: feature numbers [samples, fields], row after row, and one label a sample (1 like, 0 not).
#[derive(Clone, Copy, Debug)]
pub struct Encoded<'a> {
    /// Feature numbers, from [`FeatureSpace::encode`].
    pub features: &'a [u32],
    /// Labels.
    pub labels: &'a [i8],
}

/// A trained model and how it got there.
pub struct CtrTraining {
    /// The model with the best epoch's weights.
    pub model: CtrNetwork,
    /// Mean training loss of each epoch.
    pub losses: Vec<f64>,
    /// Validation AUC after each epoch; 0.5 where it is not defined.
    pub valid_auc: Vec<f64>,
    /// Epoch whose weights the model has, from 1.
    pub best_epoch: u32,
}

/// Trains on encoded samples until the validation AUC has not become better for `patience` epochs, and restores the
/// best epoch's weights. Without validation samples all epochs are trained and the last one counts. The
/// callback is asked after every step.
///
/// # Errors
/// When there are no training samples, columns do not fit, the loss diverges, or the callback says stop.
pub fn train(
    space: &FeatureSpace,
    params: &CtrParams,
    seed: u64,
    [training, validation]: [Encoded<'_>; 2],
    device: &Device,
    on_progress: &mut OnProgress<'_>,
) -> Result<CtrTraining, TrainError> {
    let fields = FIELDS.len();
    TrainError::check_len("the training features", training.features.len(), training.labels.len() * fields)?;
    TrainError::check_len("the validation features", validation.features.len(), validation.labels.len() * fields)?;
    if training.labels.is_empty() {
        let reason = "there are no training samples; lower min_history or the other splits' fractions".to_owned();
        return Err(TrainError::Empty { model: "CTR model", reason });
    }
    let mut model = CtrNetwork::new(initial(space.len(), params, seed), params, device);
    let (mut losses, mut valid_auc) = (Vec::new(), Vec::new());
    let (mut best_epoch, mut best_weights) = (0, model.weights());
    for epoch in 1..=params.max_epochs {
        let last = losses.last().copied();
        let loss = train_epoch(&mut model, training, params, (seed, epoch), &mut |step, steps| {
            on_progress(&TrainProgress { epoch, epochs: params.max_epochs, step, steps, loss: last })
        })?;
        losses.push(loss);
        let score = match validation.labels.len() {
            0 => f64::from(epoch),
            _ => metrics::auc(validation.labels, &model.predict(validation.features))?.unwrap_or(0.5),
        };
        if best_epoch == 0 || score > valid_auc[best_epoch as usize - 1] {
            (best_epoch, best_weights) = (epoch, model.weights());
        }
        valid_auc.push(score);
        if epoch - best_epoch >= params.patience {
            break;
        }
    }
    if validation.labels.is_empty() {
        valid_auc.clear();
    }
    model.restore(best_weights);
    Ok(CtrTraining { model, losses, valid_auc, best_epoch })
}

/// One pass over the samples in an order drawn for the epoch; gives the mean loss.
fn train_epoch(
    model: &mut CtrNetwork,
    samples: Encoded<'_>,
    params: &CtrParams,
    (seed, epoch): (u64, u32),
    go_on: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<f64, TrainError> {
    let fields = FIELDS.len();
    let mut order: Vec<u32> = (0..samples.labels.len() as u32).collect();
    draw::shuffle(&mut row_rng(seed, "ctr.order", u64::from(epoch), 0), &mut order);
    let batches = order.chunks(params.batch_size as usize);
    let steps = batches.len();
    let mut total = 0.0;
    let (mut features, mut labels) = (Vec::new(), Vec::new());
    for (step, batch) in batches.enumerate() {
        features.clear();
        labels.clear();
        for &row in batch {
            features.extend_from_slice(&samples.features[row as usize * fields..][..fields]);
            labels.push(samples.labels[row as usize]);
        }
        let mut masks = row_rng(seed, "ctr.dropout", u64::from(epoch), step as u64);
        total += f64::from(model.step(&features, &labels, &mut masks)) * batch.len() as f64;
        if !go_on(step + 1, steps) {
            return Err(TrainError::Stopped { epoch });
        }
    }
    let loss = total / samples.labels.len() as f64;
    if loss.is_finite() { Ok(loss) } else { Err(TrainError::Diverged { model: "CTR model", epoch, loss }) }
}
