//! What every training has in common: how it reports, how it stops, how it fails, and the optimiser.
//!
//! The optimiser is written on plain tensors because the hand-derived gradients of [`crate::lightgcn`] have no
//! autodiff graph to read them from. It keeps no learning-rate schedule and no weight decay: the method uses none.

use crate::metrics::MetricsError;
use burn::tensor::{Tensor, TensorData};

/// How far a training is. Given to the callback after every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainProgress {
    /// Epoch in work, from 1.
    pub epoch: u32,
    /// Epochs at most.
    pub epochs: u32,
    /// Steps done in this epoch.
    pub step: usize,
    /// Steps in an epoch.
    pub steps: usize,
    /// Mean loss of the last complete epoch, if there is one.
    pub loss: Option<f64>,
}

/// Hears how far a training is and says whether it should go on.
pub type OnProgress<'a> = dyn FnMut(&TrainProgress) -> bool + 'a;

/// Keeps a training's whole state, so that one that was interrupted goes on as if it had not been.
pub trait Checkpoints {
    /// The state that an earlier attempt left.
    fn latest(&mut self) -> Option<Vec<u8>>;
    /// Whether a state should be kept after this step; asked after each.
    fn is_due(&mut self) -> bool;
    /// Keeps a state in place of the one before.
    fn save(&mut self, state: Vec<u8>);
}

/// Keeps nothing.
pub struct NoCheckpoints;

impl Checkpoints for NoCheckpoints {
    fn latest(&mut self) -> Option<Vec<u8>> {
        None
    }
    fn is_due(&mut self) -> bool {
        false
    }
    fn save(&mut self, _state: Vec<u8>) {}
}

/// Why a training gave no result.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum TrainError {
    /// The callback said stop.
    #[error("training was stopped in epoch {epoch}")]
    Stopped {
        /// Epoch that was in work.
        epoch: u32,
    },
    /// The loss is not a number any more.
    #[error("the {model} loss became {loss} in epoch {epoch}; lower learning_rate")]
    Diverged {
        /// Which model.
        model: &'static str,
        /// Epoch after which it was seen.
        epoch: u32,
        /// The loss.
        loss: f64,
    },
    /// There is nothing to learn from.
    #[error("{model} has nothing to train on: {reason}")]
    Empty {
        /// Which model.
        model: &'static str,
        /// What is missing and how to get it.
        reason: String,
    },
    /// The validation samples cannot be measured.
    #[error("validation during training: {0}")]
    Validation(#[from] MetricsError),
    /// Inputs that do not belong together.
    #[error("{what} has {found} values, expected {expected}")]
    Length {
        /// Which input.
        what: &'static str,
        /// Values that it has.
        found: usize,
        /// Values that it should have.
        expected: usize,
    },
}

impl TrainError {
    /// Fails unless an input has as many values as it should.
    pub(crate) fn check_len(what: &'static str, found: usize, expected: usize) -> Result<(), Self> {
        if found == expected { Ok(()) } else { Err(Self::Length { what, found, expected }) }
    }
}

/// Adam (arXiv 1412.6980) with PyTorch's conventions: beta 0.9 and 0.999, epsilon 1e-8 added to the corrected root.
#[derive(Clone, Debug)]
pub struct Adam<const D: usize> {
    mean: Tensor<D>,
    square: Tensor<D>,
    step: i32,
}

impl<const D: usize> Adam<D> {
    const BETA1: f64 = 0.9;
    const BETA2: f64 = 0.999;
    const EPSILON: f64 = 1e-8;

    /// Zero moments for a parameter, on its device.
    pub fn new(parameter: &Tensor<D>) -> Self {
        let zeros = Tensor::zeros(parameter.dims(), &parameter.device());
        Self { mean: zeros.clone(), square: zeros, step: 0 }
    }

    /// Both moments, row after row, and the steps made.
    pub(crate) fn state(&self) -> (Vec<f32>, Vec<f32>, i32) {
        (values(self.mean.clone()), values(self.square.clone()), self.step)
    }

    /// An optimiser with this [`Self::state`]; the moments have the shape of the parameter.
    pub(crate) fn restored(parameter: &Tensor<D>, (mean, square, step): (Vec<f32>, Vec<f32>, i32)) -> Self {
        let moment = |v: Vec<f32>| Tensor::from_data(TensorData::new(v, parameter.dims()), &parameter.device());
        Self { mean: moment(mean), square: moment(square), step }
    }

    /// The parameter after one step. Neither tensor may carry an autodiff graph.
    pub fn step(&mut self, parameter: Tensor<D>, gradient: Tensor<D>, learning_rate: f64) -> Tensor<D> {
        self.step += 1;
        let correction1 = 1.0 - Self::BETA1.powi(self.step);
        let correction2 = 1.0 - Self::BETA2.powi(self.step);
        let mean = std::mem::replace(&mut self.mean, gradient.clone());
        let square = std::mem::replace(&mut self.square, gradient.clone());
        self.mean = mean * Self::BETA1 + gradient.clone() * (1.0 - Self::BETA1);
        self.square = square * Self::BETA2 + gradient.clone() * gradient * (1.0 - Self::BETA2);
        let root = self.square.clone().sqrt() / correction2.sqrt() + Self::EPSILON;
        parameter - self.mean.clone() / root * (learning_rate / correction1)
    }
}

/// The values of a float tensor, row after row.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("converted to f32 on the line before")
}
