//! LightGCN (arXiv 2002.02126): collaborative embeddings of users and items (eq. 4).
//!
//! The gradient is derived by hand: the propagation is a symmetric linear map, so its gradient is the propagation of
//! the gradient, and a step costs exactly two propagations without an autodiff graph. There is no edge dropout, no
//! validation and no early stopping: the method trains for a fixed number of epochs.

mod state;

use crate::{
    draw,
    graph::{Graph, Triples},
    spmm::{Csr, HostCsr, spmm},
    training::{Adam, Checkpoints, OnProgress, TrainError, TrainProgress, values},
};
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use rallrec_core::{params::LightGcnParams, rng::row_rng};

/// Standard deviation of the first embeddings.
const INIT_STD: f64 = 0.1;

/// What LightGCN learned.
#[derive(Clone, Debug, PartialEq)]
pub struct LightGcnEmbeddings {
    /// [users, dim], row after row; zeros for users without an edge.
    pub users: Vec<f32>,
    /// [items, dim], row after row; zeros for items without an edge.
    pub items: Vec<f32>,
    /// Mean loss of each epoch: BPR and L2 together.
    pub losses: Vec<f64>,
}

/// Trains on a graph, from first embeddings and triples drawn with `seed`. The callback is asked after every step. A training
/// that is stopped leaves a checkpoint, and one that finds a checkpoint of the same graph, parameters and seed goes on from it
/// to the same bytes.
///
/// # Errors
/// When the graph has no edge to learn from, the loss diverges, or the callback says stop.
pub fn train(
    graph: &Graph,
    params: &LightGcnParams,
    seed: u64,
    device: &Device,
    on_progress: &mut OnProgress<'_>,
    checkpoints: &mut dyn Checkpoints,
) -> Result<LightGcnEmbeddings, TrainError> {
    let mut model = LightGcn::new(graph, params, &initial(graph.nodes(), params.dim as usize, seed), device);
    let batch = params.batch_size as usize;
    let mut at = Position { epoch: 1, step: 0, total: 0.0, losses: Vec::with_capacity(params.epochs as usize) };
    if let Some(saved) = checkpoints.latest() {
        match state::read(&saved, &mut model) {
            Some(found) => at = found,
            None => tracing::warn!("a checkpoint of LightGCN cannot be used; the training begins again"),
        }
    }
    let Position { epoch: first, step: mut done, total: mut so_far, mut losses } = at;
    for epoch in first..=params.epochs {
        let triples = graph.sample_epoch(seed, u64::from(epoch));
        if triples.is_empty() {
            let reason = "no rating of the training period is an edge; lower like_above or set edges: all".to_owned();
            return Err(TrainError::Empty { model: "LightGCN", reason });
        }
        let steps = triples.len().div_ceil(batch);
        let mut total = Tensor::<1>::from_floats([so_far], device);
        for step in done..steps {
            let range = step * batch..triples.len().min((step + 1) * batch);
            total = total + model.step(&triples, range.clone()) * range.len() as f64;
            let loss = losses.last().copied();
            let go_on = on_progress(&TrainProgress { epoch, epochs: params.epochs, step: step + 1, steps, loss });
            if checkpoints.is_due() || !go_on {
                let total = total.clone().into_scalar::<f32>();
                checkpoints
                    .save(state::write(&Position { epoch, step: step + 1, total, losses: losses.clone() }, &model));
            }
            if !go_on {
                return Err(TrainError::Stopped { epoch });
            }
        }
        (done, so_far) = (0, 0.0);
        let loss = f64::from(total.into_scalar::<f32>()) / triples.len() as f64;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { model: "LightGCN", epoch, loss });
        }
        losses.push(loss);
    }
    let (users, items) = model.embeddings();
    Ok(LightGcnEmbeddings { users, items, losses })
}

/// How far a training is.
struct Position {
    /// Epoch in work, from 1.
    epoch: u32,
    /// Its steps that are made.
    step: usize,
    /// Sum of the losses of their triples.
    total: f32,
    /// Mean losses of the epochs before.
    losses: Vec<f64>,
}

/// First embeddings [nodes, dim]: normal values, drawn by node.
fn initial(nodes: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut out = Vec::with_capacity(nodes * dim);
    for node in 0..nodes {
        draw::normal(&mut row_rng(seed, "lightgcn.init", node as u64, 0), INIT_STD, dim, &mut out);
    }
    out
}

/// The model in training.
pub struct LightGcn {
    users: usize,
    adjacency: Csr,
    /// Embeddings of layer 0 [nodes, dim].
    base: Tensor<2>,
    /// Whether each node has an edge, 1 or 0 [nodes, 1].
    has_edge: Tensor<2>,
    optimiser: Adam<2>,
    layers: u32,
    learning_rate: f64,
    l2: f64,
    device: Device,
}

impl LightGcn {
    /// A model on `graph` with layer-0 embeddings `base` [nodes, dim] (users, then items), row after row.
    ///
    /// # Panics
    /// When `base` does not have nodes x dim values.
    pub fn new(graph: &Graph, params: &LightGcnParams, base: &[f32], device: &Device) -> Self {
        let adjacency = graph.adjacency();
        let has_edge: Vec<f32> = adjacency.row_counts().map(|n| if n > 0 { 1.0 } else { 0.0 }).collect();
        let base = Tensor::from_data(TensorData::new(base.to_vec(), [graph.nodes(), params.dim as usize]), device);
        Self {
            users: graph.users(),
            adjacency: adjacency.to_device(device),
            optimiser: Adam::new(&base),
            base,
            has_edge: Tensor::from_data(TensorData::new(has_edge, [graph.nodes(), 1]), device),
            layers: params.layers,
            learning_rate: params.learning_rate,
            l2: params.l2,
            device: device.clone(),
        }
    }

    /// One step of Adam on these triples. Gives the loss before the step [1], left on the device:
    /// `mean softplus(s(u, neg) - s(u, pos)) + l2 / 2 x (squares of the triples' layer-0 embeddings) / triples`.
    pub fn step(&mut self, triples: &Triples, range: std::ops::Range<usize>) -> Tensor<1> {
        let count = range.len();
        let picks = self.picked_nodes(triples, range);
        let nodes = self.base.dims()[0];
        // The gradient of row r of `picked` is added to node picks[r]: the transposed selection.
        let scatter = HostCsr::selection(&picks, nodes).transposed();
        let times_picked: Vec<f32> = scatter.row_counts().map(|n| n as f32).collect();
        let times_picked = Tensor::<2>::from_data(TensorData::new(times_picked, [nodes, 1]), &self.device);
        let scatter = scatter.to_device(&self.device);
        let picks: Vec<i32> = picks.into_iter().map(|p| p as i32).collect();
        let picks = Tensor::<1, Int>::from_data(TensorData::new(picks, [3 * count]), &self.device);

        let picked = self.propagate(self.base.clone()).select(0, picks);
        let part = |i: usize| picked.clone().narrow(0, i * count, count);
        let (user, positive, negative) = (part(0), part(1), part(2));
        let away = negative - positive;
        let margin = (user.clone() * away.clone()).sum_dim(1);
        // By rows first: a flat sum over millions of values may be split by threads.
        let weighted_squares = (self.base.clone() * self.base.clone()).sum_dim(1) * times_picked.clone();
        let weighted_squares = weighted_squares.sum();
        let loss = activation::softplus(margin.clone(), 1.0).mean() + weighted_squares * (self.l2 / 2.0 / count as f64);

        let slope = activation::sigmoid(margin) / count as f64;
        let toward = slope.clone() * user;
        let picked_gradient = Tensor::cat(vec![slope * away, -toward.clone(), toward], 0);
        // No gradient flows through the picks, so the selection's own transpose is never read.
        let gradient = self.propagate(spmm(&scatter, &scatter, picked_gradient));
        let gradient = gradient + self.base.clone() * times_picked * (self.l2 / count as f64);
        let base = std::mem::replace(&mut self.base, Tensor::zeros([1, 1], &self.device));
        self.base = self.optimiser.step(base, gradient, self.learning_rate);
        loss
    }

    /// The final embeddings of users and items, row after row; zeros for nodes without an edge.
    pub fn embeddings(&self) -> (Vec<f32>, Vec<f32>) {
        let dim = self.base.dims()[1];
        let mut users = values(self.propagate(self.base.clone()) * self.has_edge.clone());
        let items = users.split_off(self.users * dim);
        (users, items)
    }

    /// Mean of layers 0 to L, as e + A (e + A (e + …)).
    fn propagate(&self, base: Tensor<2>) -> Tensor<2> {
        let mut sum = base.clone();
        for _ in 0..self.layers {
            sum = base.clone() + spmm(&self.adjacency, &self.adjacency, sum);
        }
        sum / f64::from(self.layers + 1)
    }

    /// Nodes of the triples: users, liked items, other items.
    fn picked_nodes(&self, triples: &Triples, range: std::ops::Range<usize>) -> Vec<u32> {
        let item = |&i: &u32| i + self.users as u32;
        let users = triples.user[range.clone()].iter().copied();
        let positives = triples.positive[range.clone()].iter().map(item);
        users.chain(positives).chain(triples.negative[range].iter().map(item)).collect()
    }
}
