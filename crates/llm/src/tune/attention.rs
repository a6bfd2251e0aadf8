//! Causal grouped-query attention of whole sequences and its gradient, for tuning.
//!
//! A batch's sequences lie one after another without padding; each attends to itself alone. Scores are made for some
//! positions at a time, against the positions up to them only, and are never kept: the backward pass makes them again
//! from queries and keys. Products are Burn's; rotation, softmax and copying are loops on the host, or Burn's
//! operations elsewhere (see [`super::rows`]). How a sequence is cut does not depend on the batch, so neither do
//! results.

use super::rows::{Rows, TASK_ROWS, largest, on_host, rms_norm, rms_norm_backward, sum};
use crate::{
    config::ModelConfig,
    host::{RopeTable, dot, exp, floats, floats_mut, read, vectorized},
    ops::HeadWeights,
};
use burn::tensor::{Device, Tensor, TensorData, activation};
use rayon::prelude::*;
use std::ops::Range;

/// Positions whose scores are made together: few, so that little is computed above the diagonal; enough to fill the
/// products' kernels.
const CHUNK: usize = 128;

/// What attention computes with.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) weights: &'a HeadWeights,
    pub(crate) rope: &'a RopeTable,
    pub(crate) device: &'a Device,
}

/// One sequence's queries, keys and values, as its backward pass needs them too.
pub(crate) struct Heads {
    /// Rotated, over the root of the head width; a position's heads of one group beside one another:
    /// \[key heads, positions * group, head width\].
    queries: Tensor<3>,
    /// Rotated, \[key heads, positions, head width\].
    keys: Tensor<3>,
    /// \[key heads, positions, head width\]
    values: Tensor<3>,
    /// Queries and keys before their norms, a head of a position a row, where the model has such norms.
    unnormed: Option<[Rows; 2]>,
}

/// Rows of a joined matrix that one tensor \[key heads, positions * group, head width\] fills.
struct Part {
    first_row: usize,
    heads: Tensor<3>,
}

/// Some positions of a sequence, and their rows among the queries.
struct Chunk {
    positions: Range<usize>,
    rows: Range<usize>,
}

impl Attention<'_> {
    /// From projections \[rows, queries + keys + values\] to \[rows, heads * head width\], and what the way back needs.
    pub(crate) fn forward(&self, projections: &Rows, spans: &[Range<usize>]) -> (Vec<Heads>, Tensor<2>) {
        let heads: Vec<Heads> = spans.iter().map(|span| self.split(projections, span)).collect();
        let mut parts = Vec::new();
        for (heads, span) in heads.iter().zip(spans) {
            for chunk in self.chunks(span.len()) {
                let weights = self.attention_weights(heads, &chunk);
                let attended = weights.matmul(narrow(&heads.values, 0..chunk.positions.end));
                parts.push(Part { first_row: span.start + chunk.positions.start, heads: attended });
            }
        }
        let rows = spans.last().map_or(0, |span| span.end);
        (heads, self.join(rows, vec![parts]))
    }

    /// The gradient of the projections from that of the result.
    pub(crate) fn backward(&self, heads: &[Heads], gradient: Tensor<2>, spans: &[Range<usize>]) -> Tensor<2> {
        let gradient = Rows::of(gradient);
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (heads, span) in heads.iter().zip(spans) {
            let gradient = self.split_columns(&gradient, span, 0, self.config.group());
            let (mut d_keys, mut d_values) = (Sum::zeros(&heads.keys), Sum::zeros(&heads.values));
            let mut d_queries = Vec::new();
            for chunk in self.chunks(span.len()) {
                let weights = self.attention_weights(heads, &chunk);
                let d_out = narrow(&gradient, chunk.rows.clone());
                let seen = 0..chunk.positions.end;
                let d_weights = d_out.clone().matmul(narrow(&heads.values, seen.clone()).swap_dims(1, 2));
                d_values.add(weights.clone().swap_dims(1, 2).matmul(d_out));
                let d_scores = softmax_backward(weights, d_weights);
                d_keys.add(d_scores.clone().swap_dims(1, 2).matmul(narrow(&heads.queries, chunk.rows.clone())));
                d_queries.push(d_scores.matmul(narrow(&heads.keys, seen)));
            }
            let [unnormed_queries, unnormed_keys] = match &heads.unnormed {
                Some([queries, keys]) => [Some(queries), Some(keys)],
                None => [None, None],
            };
            let d_queries = self.turned(Tensor::cat(d_queries, 1), self.config.group(), self.scale(), true);
            let d_queries = self.through_norm(d_queries, unnormed_queries, self.weights.query_norm.values());
            let d_keys = self.turned(d_keys.into_tensor(self.device), 1, 1.0, true);
            let d_keys = self.through_norm(d_keys, unnormed_keys, self.weights.key_norm.values());
            let part = |heads| Part { first_row: span.start, heads };
            queries.push(part(d_queries));
            keys.push(part(d_keys));
            values.push(part(d_values.into_tensor(self.device)));
        }
        let rows = spans.last().map_or(0, |span| span.end);
        self.join(rows, vec![queries, keys, values])
    }

    fn scale(&self) -> f32 {
        1.0 / (self.config.head_width as f32).sqrt()
    }

    fn chunks(&self, positions: usize) -> impl Iterator<Item = Chunk> + use<> {
        let group = self.config.group();
        (0..positions).step_by(CHUNK).map(move |first| {
            let positions = first..positions.min(first + CHUNK);
            Chunk { rows: positions.start * group..positions.end * group, positions }
        })
    }

    /// Attention weights of a chunk's queries over the positions up to its end, \[key heads, rows, positions\].
    fn attention_weights(&self, heads: &Heads, chunk: &Chunk) -> Tensor<3> {
        let keys = narrow(&heads.keys, 0..chunk.positions.end).swap_dims(1, 2);
        let scores = narrow(&heads.queries, chunk.rows.clone()).matmul(keys);
        if !on_host(self.device) {
            return softmax(scores, chunk, self.config);
        }
        let width = chunk.positions.end;
        let mut data = read(scores);
        let parts = floats_mut(&mut data).par_chunks_mut(TASK_ROWS * width).enumerate();
        parts.for_each(|(part, scores)| {
            vectorized(Softmax { scores, first_row: part * TASK_ROWS, chunk, config: self.config });
        });
        Tensor::from_data(data, self.device)
    }

    /// The heads of a sequence: biases added, normed where the model does so, rotated.
    fn split(&self, projections: &Rows, span: &Range<usize>) -> Heads {
        let (query, kv, group) = (self.config.query_width(), self.config.kv_width(), self.config.group());
        let queries = self.with_bias(self.split_columns(projections, span, 0, group), 0, group);
        let keys = self.with_bias(self.split_columns(projections, span, query, 1), query, 1);
        let values = self.with_bias(self.split_columns(projections, span, query + kv, 1), query + kv, 1);
        let (queries, unnormed_queries) = self.normed(queries, self.weights.query_norm.values());
        let (keys, unnormed_keys) = self.normed(keys, self.weights.key_norm.values());
        Heads {
            queries: self.turned(queries, group, self.scale(), false),
            keys: self.turned(keys, 1, 1.0, false),
            values,
            unnormed: unnormed_queries.zip(unnormed_keys).map(|(queries, keys)| [queries, keys]),
        }
    }

    /// Adds the biases of the columns from `first` on, where the model has some.
    fn with_bias(&self, heads: Tensor<3>, first: usize, group: usize) -> Tensor<3> {
        if self.weights.bias.values().is_empty() {
            return heads;
        }
        let [kv_heads, rows, width] = heads.dims();
        let bias = self.weights.bias.values()[first..first + kv_heads * group * width].to_vec();
        let bias = Tensor::<4>::from_data(TensorData::new(bias, [kv_heads, 1, group, width]), self.device);
        (heads.reshape([kv_heads, rows / group, group, width]) + bias).reshape([kv_heads, rows, width])
    }

    /// RMSNorm of every head, and the heads before it; as they are where the model has no such norm.
    fn normed(&self, heads: Tensor<3>, weight: &[f32]) -> (Tensor<3>, Option<Rows>) {
        if weight.is_empty() {
            return (heads, None);
        }
        let [kv_heads, rows, width] = heads.dims();
        let unnormed = Rows::of(heads.reshape([kv_heads * rows, width]));
        let normed = rms_norm(&unnormed, weight, self.config.norm_epsilon).into_tensor(self.device);
        (normed.reshape([kv_heads, rows, width]), Some(unnormed))
    }

    /// The gradient of what [`Self::normed`] was given.
    fn through_norm(&self, gradient: Tensor<3>, unnormed: Option<&Rows>, weight: &[f32]) -> Tensor<3> {
        let Some(unnormed) = unnormed else { return gradient };
        let [kv_heads, rows, width] = gradient.dims();
        let gradient = gradient.reshape([kv_heads * rows, width]);
        let zeros = Rows::new(vec![0.0; kv_heads * rows * width], width, self.device);
        let before = rms_norm_backward(unnormed, weight, self.config.norm_epsilon, gradient, zeros);
        before.into_tensor(self.device).reshape([kv_heads, rows, width])
    }

    /// Some columns of a sequence's rows, from \[positions, key heads * group * head width\] to \[key heads,
    /// positions * group, head width\].
    fn split_columns(&self, joined: &Rows, span: &Range<usize>, first: usize, group: usize) -> Tensor<3> {
        let (kv_heads, width) = (self.config.kv_heads, group * self.config.head_width);
        let shape = [kv_heads, span.len() * group, self.config.head_width];
        match joined {
            Rows::Host(host) => {
                let joined_width = host.width();
                let mut out = vec![0.0; span.len() * kv_heads * width];
                out.par_chunks_mut(span.len() * width).enumerate().for_each(|(head, out)| {
                    for (out, row) in out.chunks_exact_mut(width).zip(span.clone()) {
                        let from = row * joined_width + first + head * width;
                        out.copy_from_slice(&host.values()[from..from + width]);
                    }
                });
                Tensor::from_data(TensorData::new(out, shape), self.device)
            }
            Rows::Device(tensor) => {
                let columns = tensor.clone().slice([span.clone(), first..first + kv_heads * width]);
                columns.reshape([span.len(), kv_heads, width]).swap_dims(0, 1).reshape(shape)
            }
        }
    }

    /// The inverse of [`Self::split_columns`]: the groups of parts beside one another, each group's parts below one
    /// another.
    fn join(&self, rows: usize, groups: Vec<Vec<Part>>) -> Tensor<2> {
        let kv_heads = self.config.kv_heads;
        let count = |part: &Part, next: usize| next - part.first_row;
        if !on_host(self.device) {
            let columns = groups.into_iter().map(|parts| {
                let ends: Vec<usize> = parts.iter().skip(1).map(|p| p.first_row).chain([rows]).collect();
                let parts = parts.into_iter().zip(ends).map(|(part, end)| {
                    let positions = count(&part, end);
                    let width = part.heads.dims().iter().product::<usize>() / positions / kv_heads;
                    let heads = part.heads.reshape([kv_heads, positions, width]).swap_dims(0, 1);
                    heads.reshape([positions, kv_heads * width])
                });
                Tensor::cat(parts.collect(), 0)
            });
            return Tensor::cat(columns.collect(), 1);
        }
        let (query, kv) = (self.config.query_width(), self.config.kv_width());
        let width = if groups.len() == 1 { query } else { query + 2 * kv };
        let mut out = vec![0.0; rows * width];
        for (parts, first) in groups.into_iter().zip([0, query, query + kv]) {
            let ends: Vec<usize> = parts.iter().skip(1).map(|p| p.first_row).chain([rows]).collect();
            for (part, end) in parts.into_iter().zip(ends) {
                let positions = count(&part, end);
                let data = read(part.heads);
                let from = floats(&data);
                let part_width = from.len() / positions / kv_heads;
                let to = &mut out[part.first_row * width..end * width];
                to.par_chunks_mut(width).enumerate().for_each(|(position, row)| {
                    for head in 0..kv_heads {
                        let from = &from[(head * positions + position) * part_width..][..part_width];
                        row[first + head * part_width..][..part_width].copy_from_slice(from);
                    }
                });
            }
        }
        Tensor::from_data(TensorData::new(out, [rows, width]), self.device)
    }

    /// Heads turned by their positions and multiplied with `scale`. `back` turns the other way: the gradient of what
    /// turning gave becomes that of what it was given.
    fn turned(&self, heads: Tensor<3>, group: usize, scale: f32, back: bool) -> Tensor<3> {
        let [kv_heads, rows, width] = heads.dims();
        if !on_host(self.device) {
            let heads = heads.reshape([kv_heads, rows / group, group * width]);
            return turn(heads, self.rope, group, scale, back).reshape([kv_heads, rows, width]);
        }
        let rotate = if back { RopeTable::rotate_back } else { RopeTable::rotate };
        let mut data = read(heads);
        floats_mut(&mut data).par_chunks_mut(rows * width).for_each(|head| {
            for (position, rows) in head.chunks_exact_mut(group * width).enumerate() {
                rotate(self.rope, rows, group, position);
                rows.iter_mut().for_each(|x| *x *= scale);
            }
        });
        Tensor::from_data(data, self.device)
    }
}

/// Some rows of every head.
fn narrow(heads: &Tensor<3>, rows: Range<usize>) -> Tensor<3> {
    let [count, _, width] = heads.dims();
    heads.clone().slice([0..count, rows, 0..width])
}

/// A sum over tensors that have ever more rows.
#[expect(clippy::large_enum_variant, reason = "a few live at a time, and none is moved much")]
enum Sum {
    Host { values: Vec<f32>, shape: [usize; 3] },
    Device(Tensor<3>),
}

impl Sum {
    fn zeros(like: &Tensor<3>) -> Self {
        let shape = like.dims();
        if on_host(&like.device()) {
            Self::Host { values: vec![0.0; shape.iter().product()], shape }
        } else {
            Self::Device(Tensor::zeros(shape, &like.device()))
        }
    }

    fn add(&mut self, part: Tensor<3>) {
        let [heads, rows, width] = part.dims();
        match self {
            Self::Host { values, shape } => {
                let data = read(part);
                let parts = values.par_chunks_mut(shape[1] * shape[2]).zip(floats(&data).par_chunks(rows * width));
                parts.for_each(|(to, from)| to.iter_mut().zip(from).for_each(|(to, from)| *to += from));
            }
            Self::Device(sum) => {
                let place = [0..heads, 0..rows, 0..width];
                *sum = sum.clone().slice_assign(place.clone(), sum.clone().slice(place) + part);
            }
        }
    }

    fn into_tensor(self, device: &Device) -> Tensor<3> {
        match self {
            Self::Host { values, shape } => Tensor::from_data(TensorData::new(values, shape), device),
            Self::Device(sum) => sum,
        }
    }
}

/// Turns `heads` heads beside one another in each row, \[batch, positions, heads * head width\], and scales them.
fn turn(rows: Tensor<3>, rope: &RopeTable, heads: usize, scale: f32, back: bool) -> Tensor<3> {
    let [batch, positions, width] = rows.dims();
    let (half, device) = (width / heads / 2, rows.device());
    let (cos, sin): (Vec<_>, Vec<_>) = (0..positions).map(|position| rope.angles(position)).unzip();
    let table = |rows: Vec<&[f32]>, factor: f32| {
        let values: Vec<f32> = rows.concat().into_iter().map(|x| x * factor).collect();
        Tensor::<4>::from_data(TensorData::new(values, [1, positions, 1, half]), &device)
    };
    let (cos, sin) = (table(cos, scale), table(sin, if back { -scale } else { scale }));
    let rows = rows.reshape([batch, positions, heads, 2 * half]);
    let low = rows.clone().slice([0..batch, 0..positions, 0..heads, 0..half]);
    let high = rows.slice([0..batch, 0..positions, 0..heads, half..2 * half]);
    let turned = vec![low.clone() * cos.clone() - high.clone() * sin.clone(), high * cos + low * sin];
    Tensor::cat(turned, 3).reshape([batch, positions, width])
}

/// Causal softmax by Burn's operations.
fn softmax(scores: Tensor<3>, chunk: &Chunk, config: &ModelConfig) -> Tensor<3> {
    let (rows, width, device) = (chunk.rows.len(), chunk.positions.end, scores.device());
    let mask = (0..rows).flat_map(|row| {
        let seen = seen(chunk.positions.start + row / config.group(), config);
        (0..width).map(move |position| if seen.contains(&position) { 0.0 } else { f32::NEG_INFINITY })
    });
    let mask = TensorData::new(mask.collect::<Vec<f32>>(), [1, rows, width]);
    activation::softmax(scores + Tensor::from_data(mask, &device), 2)
}

/// The positions that a position attends to.
fn seen(position: usize, config: &ModelConfig) -> Range<usize> {
    let first = (position + 1).saturating_sub(config.sliding_window.unwrap_or(usize::MAX));
    first..position + 1
}

/// The gradient of scores from the weights and their gradient: w (dw - sum(w dw)).
fn softmax_backward(weights: Tensor<3>, gradient: Tensor<3>) -> Tensor<3> {
    let device = weights.device();
    if !on_host(&device) {
        let inner = (weights.clone() * gradient.clone()).sum_dim(2);
        return weights * (gradient - inner);
    }
    let width = weights.dims()[2];
    let (weights, mut gradient) = (read(weights), read(gradient));
    let parts = floats_mut(&mut gradient).par_chunks_mut(TASK_ROWS * width);
    parts.zip(floats(&weights).par_chunks(TASK_ROWS * width)).for_each(|(gradient, weights)| {
        vectorized(SoftmaxBackward { weights, gradient, width });
    });
    Tensor::from_data(gradient, &device)
}

struct Softmax<'a> {
    scores: &'a mut [f32],
    /// Among the rows of all heads.
    first_row: usize,
    chunk: &'a Chunk,
    config: &'a ModelConfig,
}

impl pulp::NullaryFnOnce for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let rows = self.scores.chunks_exact_mut(self.chunk.positions.end);
        for (row, number) in rows.zip(self.first_row..) {
            let position = self.chunk.positions.start + number % self.chunk.rows.len() / self.config.group();
            let seen = seen(position, self.config);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let seen = &mut row[seen];
            let max = largest(seen);
            seen.iter_mut().for_each(|x| *x = exp(*x - max));
            let scale = 1.0 / sum(seen);
            seen.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

struct SoftmaxBackward<'a> {
    weights: &'a [f32],
    gradient: &'a mut [f32],
    width: usize,
}

impl pulp::NullaryFnOnce for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let rows = self.gradient.chunks_exact_mut(self.width).zip(self.weights.chunks_exact(self.width));
        for (gradient, weights) in rows {
            let inner = dot(weights, gradient);
            for (g, &w) in gradient.iter_mut().zip(weights) {
                *g = w * (*g - inner);
            }
        }
    }
}
