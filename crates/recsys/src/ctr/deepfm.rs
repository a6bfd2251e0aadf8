//! DeepFM (arXiv 1703.04247): first-order weights, second-order products of field embeddings, and a deep part that
//! shares the embeddings.
//!
//! `logit = bias + sum w_f + sum over pairs of fields <v_f, v_g> + MLP(v_1 ‖ … ‖ v_F)`. Embeddings are looked up by
//! the product with a sparse selection, whose gradient is a sum in a fixed order: a scatter would depend on threads
//! on some devices. No batch normalisation.

use super::FIELDS;
use crate::{
    draw,
    spmm::{HostCsr, spmm},
    training::{Adam, values},
};
use burn::tensor::{Device, Tensor, TensorData, activation};
use rallrec_core::{params::CtrParams, rng::row_rng};
use rand_chacha::ChaCha8Rng;

/// Standard deviation of the first embeddings.
const EMBEDDING_STD: f64 = 0.01;

/// Samples of a forward pass without gradient.
const PREDICT_BATCH: usize = 8192;

/// Weights in host memory, matrices row after row.
#[derive(Clone, Debug, PartialEq)]
pub struct DeepFmWeights {
    /// First-order weight of each feature [features].
    pub first: Vec<f32>,
    /// Embedding of each feature [features, dim].
    pub embedding: Vec<f32>,
    /// The deep part's layers, the last one with a single output: weight [inputs, outputs] and bias [outputs].
    pub layers: Vec<(Vec<f32>, Vec<f32>)>,
    /// The global bias.
    pub bias: f32,
}

impl DeepFmWeights {
    /// First weights: normal embeddings, zero first-order weights and biases, Xavier uniform layers.
    pub fn initial(features: usize, params: &CtrParams, seed: u64) -> Self {
        let dim = params.embedding_dim as usize;
        let mut embedding = Vec::with_capacity(features * dim);
        for feature in 0..features {
            draw::normal(&mut row_rng(seed, "ctr.embedding", feature as u64, 0), EMBEDDING_STD, dim, &mut embedding);
        }
        let mut inputs = FIELDS.len() * dim;
        let mut layers = Vec::new();
        for (number, outputs) in params.hidden.iter().map(|&h| h as usize).chain([1]).enumerate() {
            let mut weight = Vec::with_capacity(inputs * outputs);
            let bound = (6.0 / (inputs + outputs) as f32).sqrt();
            draw::symmetric(&mut row_rng(seed, "ctr.layer", number as u64, 0), bound, inputs * outputs, &mut weight);
            layers.push((weight, vec![0.0; outputs]));
            inputs = outputs;
        }
        Self { first: vec![0.0; features], embedding, layers, bias: 0.0 }
    }
}

/// The model, in training or trained.
pub struct DeepFm {
    /// `first` [features, 1], `embedding` [features, dim], then weight and bias [1, outputs] of each layer, then the
    /// global bias [1, 1].
    parameters: Vec<Tensor<2>>,
    optimisers: Vec<Adam<2>>,
    dropout: f32,
    learning_rate: f64,
    l2: f64,
    device: Device,
}

impl DeepFm {
    /// A model with these weights.
    ///
    /// # Panics
    /// When the weights' sizes do not belong together.
    pub fn new(weights: DeepFmWeights, params: &CtrParams, device: &Device) -> Self {
        let matrix = |v: Vec<f32>, columns: usize| {
            let shape = [v.len() / columns, columns];
            Tensor::<2>::from_data(TensorData::new(v, shape), device)
        };
        let mut parameters = vec![matrix(weights.first, 1), matrix(weights.embedding, params.embedding_dim as usize)];
        for (weight, bias) in weights.layers {
            let outputs = bias.len();
            parameters.extend([matrix(weight, outputs), matrix(bias, outputs)]);
        }
        parameters.push(matrix(vec![weights.bias], 1));
        Self {
            optimisers: parameters.iter().map(Adam::new).collect(),
            parameters,
            dropout: params.dropout as f32,
            learning_rate: params.learning_rate,
            l2: params.l2,
            device: device.clone(),
        }
    }

    /// The weights, copied to host memory.
    pub fn weights(&self) -> DeepFmWeights {
        let host: Vec<Vec<f32>> = self.parameters.iter().cloned().map(values).collect();
        let last = host.len() - 1;
        DeepFmWeights {
            first: host[0].clone(),
            embedding: host[1].clone(),
            layers: host[2..last].chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect(),
            bias: host[last][0],
        }
    }

    /// Takes these weights; the optimiser keeps its moments.
    ///
    /// # Panics
    /// When the weights are not of this model's shape.
    pub fn restore(&mut self, weights: DeepFmWeights) {
        let layers = weights.layers.into_iter().flat_map(|(weight, bias)| [weight, bias]);
        let host = [weights.first, weights.embedding].into_iter().chain(layers).chain([vec![weights.bias]]);
        for (parameter, host) in self.parameters.iter_mut().zip(host) {
            *parameter = Tensor::from_data(TensorData::new(host, parameter.dims()), &self.device);
        }
    }

    /// One step of Adam on encoded samples; gives the loss before the step: mean binary cross-entropy plus
    /// `l2 / 2 x (squares of the samples' embeddings and first-order weights) / samples`. `masks` draws the dropout.
    pub fn step(&mut self, features: &[u32], labels: &[i8], masks: &mut ChaCha8Rng) -> f32 {
        let samples = labels.len();
        let device = self.device.clone().autodiff();
        let parameters: Vec<Tensor<2>> =
            self.parameters.iter().map(|p| Tensor::from_inner(p.clone()).require_grad()).collect();
        let dropout = (self.dropout > 0.0).then_some((self.dropout, masks));
        let (logit, squares) = forward(&parameters, features, &device, dropout);
        let labels: Vec<f32> = labels.iter().map(|&l| f32::from(l)).collect();
        let labels = Tensor::<2>::from_data(TensorData::new(labels, [samples, 1]), &device);
        // -log p where liked, -log (1 - p) where not, as softplus(logit) - label x logit.
        let entropy = (activation::softplus(logit.clone(), 1.0) - labels * logit).mean();
        let loss = entropy + squares * (self.l2 / 2.0 / samples as f64);
        let gradients = loss.backward();
        for ((own, optimiser), parameter) in self.parameters.iter_mut().zip(&mut self.optimisers).zip(&parameters) {
            let gradient = parameter.grad(&gradients).expect("the loss depends on every weight");
            *own = optimiser.step(own.clone(), gradient, self.learning_rate);
        }
        loss.into_scalar::<f32>()
    }

    /// Probability of a like for each encoded sample.
    pub fn predict(&self, features: &[u32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(features.len() / FIELDS.len());
        for batch in features.chunks(PREDICT_BATCH * FIELDS.len()) {
            let (logit, _) = forward(&self.parameters, batch, &self.device, None);
            out.extend(values(activation::sigmoid(logit)));
        }
        out
    }
}

/// Logits [samples, 1] of encoded samples, and the sum of squares of what was looked up [1].
fn forward(
    parameters: &[Tensor<2>],
    features: &[u32],
    device: &Device,
    mut dropout: Option<(f32, &mut ChaCha8Rng)>,
) -> (Tensor<2>, Tensor<1>) {
    let fields = FIELDS.len();
    let samples = features.len() / fields;
    let [total, dim] = parameters[1].dims();
    let selection = HostCsr::selection(features, total);
    let (at, a) = (selection.transposed().to_device(device), selection.to_device(device));
    let first = spmm(&a, &at, parameters[0].clone());
    let embedded = spmm(&a, &at, parameters[1].clone());
    let squares_each = embedded.clone() * embedded.clone();
    let squares = squares_each.clone().sum() + (first.clone() * first.clone()).sum();

    // Pairs: half of (square of the sum) - (sum of the squares).
    let by_field = embedded.clone().reshape([samples, fields, dim]);
    let sum = by_field.sum_dim(1).reshape([samples, dim]);
    let pairs = (sum.clone() * sum).sum_dim(1) - squares_each.reshape([samples, fields * dim]).sum_dim(1);

    let mut hidden = embedded.reshape([samples, fields * dim]);
    let (layers, bias) = parameters[2..].split_at(parameters.len() - 3);
    for (number, layer) in layers.chunks_exact(2).enumerate() {
        hidden = hidden.matmul(layer[0].clone()) + layer[1].clone();
        if 2 * (number + 1) < layers.len() {
            hidden = activation::relu(hidden);
            if let Some((rate, rng)) = &mut dropout {
                hidden = hidden.clone() * mask(hidden.dims(), *rate, rng, device);
            }
        }
    }
    let first = first.reshape([samples, fields]).sum_dim(1);
    (first + pairs / 2.0 + hidden + bias[0].clone(), squares)
}

/// 0 with probability `rate`, else 1 / (1 - rate).
fn mask(shape: [usize; 2], rate: f32, rng: &mut ChaCha8Rng, device: &Device) -> Tensor<2> {
    let keep = 1.0 / (1.0 - rate);
    let drawn = (0..shape[0] * shape[1]).map(|_| if draw::unit(rng) < rate { 0.0 } else { keep }).collect::<Vec<f32>>();
    Tensor::from_data(TensorData::new(drawn, shape), device)
}
