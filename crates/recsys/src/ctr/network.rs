//! What all CTR models share: named weights, looked-up embeddings, the deep part, the loss and its steps.
//!
//! A model is two functions of its submodule: `draft` lists its first weights, `logits` takes them in that order and
//! gives one logit a sample. Embeddings are looked up by the product with a sparse selection, whose gradient is a sum
//! in a fixed order: a scatter would depend on threads on some devices. No batch normalisation.

use super::{FIELDS, autoint, dcn, deepfm, xdeepfm};
use crate::{
    draw,
    spmm::{Csr, HostCsr, spmm},
    training::{Adam, values},
};
use burn::tensor::{Device, Tensor, TensorData, activation};
use rallrec_core::{
    params::{CtrModel, CtrParams},
    rng::row_rng,
};
use rand_chacha::ChaCha8Rng;

/// Standard deviation of the first embeddings.
const EMBEDDING_STD: f64 = 0.01;

/// Samples of a forward pass without gradient.
const PREDICT_BATCH: usize = 8192;

/// One matrix of a model's weights, in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// What it is, as its model lists it.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Its values, row after row.
    pub values: Vec<f32>,
}

/// First weights of the model that `params` names, for so many features: normal embeddings, zero first-order weights
/// and biases, Xavier uniform for all others.
pub fn initial(features: usize, params: &CtrParams, seed: u64) -> Vec<Matrix> {
    let mut draft = Draft { seed, matrices: Vec::new() };
    match params.model {
        CtrModel::DeepFm => deepfm::draft(&mut draft, features, params),
        CtrModel::XDeepFm => xdeepfm::draft(&mut draft, features, params),
        CtrModel::Dcn => dcn::draft(&mut draft, features, params),
        CtrModel::AutoInt => autoint::draft(&mut draft, features, params),
    }
    draft.matrices
}

/// A model, in training or trained.
pub struct CtrNetwork {
    params: CtrParams,
    names: Vec<String>,
    parameters: Vec<Tensor<2>>,
    optimisers: Vec<Adam<2>>,
    device: Device,
}

impl CtrNetwork {
    /// The model that `params` names with these weights, in the order of [`initial`].
    ///
    /// # Panics
    /// When a matrix has not as many values as its shape says.
    pub fn new(weights: Vec<Matrix>, params: &CtrParams, device: &Device) -> Self {
        let (names, parameters): (Vec<_>, Vec<_>) = weights
            .into_iter()
            .map(|m| (m.name, Tensor::<2>::from_data(TensorData::new(m.values, m.shape), device)))
            .unzip();
        let optimisers = parameters.iter().map(Adam::new).collect();
        Self { params: params.clone(), names, parameters, optimisers, device: device.clone() }
    }

    /// The weights, copied to host memory.
    pub fn weights(&self) -> Vec<Matrix> {
        let copy = |(name, p): (&String, &Tensor<2>)| Matrix {
            name: name.clone(),
            shape: p.dims(),
            values: values(p.clone()),
        };
        self.names.iter().zip(&self.parameters).map(copy).collect()
    }

    /// Takes these weights, in the order of [`CtrNetwork::weights`]; the optimiser keeps its moments.
    ///
    /// # Panics
    /// When a matrix has not as many values as its shape says.
    pub fn restore(&mut self, weights: Vec<Matrix>) {
        for (parameter, m) in self.parameters.iter_mut().zip(weights) {
            *parameter = Tensor::from_data(TensorData::new(m.values, m.shape), &self.device);
        }
    }

    /// One step of Adam on encoded samples; gives the loss before the step: mean binary cross-entropy plus
    /// `l2 / 2 x (squares of the samples' embeddings and first-order weights) / samples`. `masks` draws the dropout.
    pub fn step(&mut self, features: &[u32], labels: &[i8], masks: &mut ChaCha8Rng) -> f32 {
        let samples = labels.len();
        let device = self.device.clone().autodiff();
        let parameters: Vec<Tensor<2>> =
            self.parameters.iter().map(|p| Tensor::from_inner(p.clone()).require_grad()).collect();
        let rate = self.params.dropout as f32;
        let (logit, squares) =
            forward(&self.params, &parameters, features, &device, (rate > 0.0).then_some((rate, masks)));
        let labels: Vec<f32> = labels.iter().map(|&l| f32::from(l)).collect();
        let labels = Tensor::<2>::from_data(TensorData::new(labels, [samples, 1]), &device);
        // -log p where liked, -log (1 - p) where not, as softplus(logit) - label x logit.
        let entropy = (activation::softplus(logit.clone(), 1.0) - labels * logit).mean();
        let loss = entropy + squares * (self.params.l2 / 2.0 / samples as f64);
        let gradients = loss.backward();
        for ((own, optimiser), parameter) in self.parameters.iter_mut().zip(&mut self.optimisers).zip(&parameters) {
            let gradient = parameter.grad(&gradients).expect("the loss depends on every weight");
            *own = optimiser.step(own.clone(), gradient, self.params.learning_rate);
        }
        loss.into_scalar::<f32>()
    }

    /// Probability of a like for each encoded sample.
    pub fn predict(&self, features: &[u32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(features.len() / FIELDS.len());
        for batch in features.chunks(PREDICT_BATCH * FIELDS.len()) {
            let (logit, _) = forward(&self.params, &self.parameters, batch, &self.device, None);
            out.extend(values(activation::sigmoid(logit)));
        }
        out
    }
}

/// Logits [samples, 1] of encoded samples, and the sum of squares of what was looked up [1].
fn forward(
    params: &CtrParams,
    parameters: &[Tensor<2>],
    features: &[u32],
    device: &Device,
    dropout: Option<(f32, &mut ChaCha8Rng)>,
) -> (Tensor<2>, Tensor<1>) {
    let mut pass = Pass { params, left: parameters.iter(), batch: Batch::new(features, parameters, device), dropout };
    let Looked { logit, squares } = match params.model {
        CtrModel::DeepFm => deepfm::logits(&mut pass),
        CtrModel::XDeepFm => xdeepfm::logits(&mut pass),
        CtrModel::Dcn => dcn::logits(&mut pass),
        CtrModel::AutoInt => autoint::logits(&mut pass),
    };
    (logit, squares)
}

/// What a model makes of a batch.
pub(super) struct Looked {
    /// One a sample [samples, 1].
    pub(super) logit: Tensor<2>,
    /// Sum of the squares of all that was looked up [1].
    pub(super) squares: Tensor<1>,
}

/// The features of a batch, as the selection of rows of a table.
struct Batch<'a> {
    samples: usize,
    selection: Csr,
    transposed: Csr,
    device: &'a Device,
}

impl<'a> Batch<'a> {
    fn new(features: &[u32], parameters: &[Tensor<2>], device: &'a Device) -> Self {
        // Every model's first matrix is a table with a row a feature.
        let [total, _] = parameters[0].dims();
        let selection = HostCsr::selection(features, total);
        let transposed = selection.transposed().to_device(device);
        Self { samples: features.len() / FIELDS.len(), selection: selection.to_device(device), transposed, device }
    }
}

/// One forward pass: hands out the weights in their order.
pub(super) struct Pass<'a> {
    pub(super) params: &'a CtrParams,
    left: std::slice::Iter<'a, Tensor<2>>,
    batch: Batch<'a>,
    dropout: Option<(f32, &'a mut ChaCha8Rng)>,
}

impl Pass<'_> {
    /// Samples in the batch.
    pub(super) fn samples(&self) -> usize {
        self.batch.samples
    }

    /// The next matrix of the model.
    pub(super) fn take(&mut self) -> Tensor<2> {
        self.left.next().expect("as many matrices as the model lists").clone()
    }

    /// The rows of the next matrix that the batch's features name [samples x fields, columns].
    pub(super) fn look_up(&mut self) -> Tensor<2> {
        let table = self.take();
        spmm(&self.batch.selection, &self.batch.transposed, table)
    }

    /// Layers of the next matrices, with ReLU and dropout between: [samples, inputs] to [samples, 1].
    pub(super) fn deep(&mut self, inputs: Tensor<2>) -> Tensor<2> {
        let mut hidden = inputs;
        for number in 0..=self.params.hidden.len() {
            let (weight, bias) = (self.take(), self.take());
            hidden = hidden.matmul(weight) + bias;
            if number < self.params.hidden.len() {
                hidden = activation::relu(hidden);
                if let Some((rate, rng)) = &mut self.dropout {
                    hidden = hidden.clone() * mask(hidden.dims(), *rate, rng, self.batch.device);
                }
            }
        }
        hidden
    }
}

/// 0 with probability `rate`, else 1 / (1 - rate).
fn mask(shape: [usize; 2], rate: f32, rng: &mut ChaCha8Rng, device: &Device) -> Tensor<2> {
    let keep = 1.0 / (1.0 - rate);
    let drawn = (0..shape[0] * shape[1]).map(|_| if draw::unit(rng) < rate { 0.0 } else { keep }).collect::<Vec<f32>>();
    Tensor::from_data(TensorData::new(drawn, shape), device)
}

/// First weights, as a model lists them.
pub(super) struct Draft {
    seed: u64,
    matrices: Vec<Matrix>,
}

impl Draft {
    /// Zeros.
    pub(super) fn zeros(&mut self, name: impl Into<String>, shape: [usize; 2]) {
        self.matrices.push(Matrix { name: name.into(), shape, values: vec![0.0; shape[0] * shape[1]] });
    }

    /// The table of embeddings, `embedding`; a feature's row depends on its number alone.
    pub(super) fn embedding(&mut self, features: usize, dim: usize) {
        let mut values = Vec::with_capacity(features * dim);
        for feature in 0..features {
            draw::normal(&mut row_rng(self.seed, "ctr.embedding", feature as u64, 0), EMBEDDING_STD, dim, &mut values);
        }
        self.matrices.push(Matrix { name: "embedding".into(), shape: [features, dim], values });
    }

    /// Xavier uniform, drawn from `stream` as its matrix `number`.
    pub(super) fn xavier(&mut self, name: impl Into<String>, stream: &'static str, number: u64, shape: [usize; 2]) {
        let mut values = Vec::with_capacity(shape[0] * shape[1]);
        let bound = (6.0 / (shape[0] + shape[1]) as f32).sqrt();
        draw::symmetric(&mut row_rng(self.seed, stream, number, 0), bound, shape[0] * shape[1], &mut values);
        self.matrices.push(Matrix { name: name.into(), shape, values });
    }

    /// The deep part, `layer.N.weight` and `layer.N.bias`: its hidden layers, and one with a single output.
    pub(super) fn deep(&mut self, mut inputs: usize, hidden: &[u32]) {
        for (number, outputs) in hidden.iter().map(|&h| h as usize).chain([1]).enumerate() {
            self.xavier(format!("layer.{number}.weight"), "ctr.layer", number as u64, [inputs, outputs]);
            self.zeros(format!("layer.{number}.bias"), [1, outputs]);
            inputs = outputs;
        }
    }
}
