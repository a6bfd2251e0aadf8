//! A Llama-family decoder: weights and the forward pass over a batch of sequences without padding.
//!
//! x = E\[token\]; in each block x += O attend(rope(Q n1(x)), rope(K n1(x)), V n1(x)) and x += D (silu(G n2(x)) * U n2(x))
//! with RMSNorm n1, n2. The output head is applied by [`Decoder::logits`] to the rows that the caller wants, never to
//! all positions. Matrix products are Burn's; what lies between them is in [`crate::host`] and [`crate::attention`].
//!
//! On the CPU a row's result does not depend on the other rows, to the bit: the products' kernels sum over the inner
//! dimension in the same order for every number of rows but one, so a single row gets an idle companion.

use crate::{
    LlmError,
    attention::{HeadWeights, Segment, attend},
    checkpoint::{Checkpoint, HEAD},
    config::ModelConfig,
    host::{RopeTable, add_rms_norm, floats, matrix, read, swiglu},
    kv::{KvPool, Sequence},
};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rayon::prelude::*;

/// Rows of a product at least: one row alone takes another kernel with another order of summation.
const MIN_ROWS: usize = 2;
/// Output rows that are transposed together.
const TRANSPOSE_ROWS: usize = 32;

/// One block's weights. Matrices are \[inputs, outputs\], the layout that the products read fastest.
struct Block {
    attention_norm: Vec<f32>,
    /// Queries, keys and values beside one another.
    qkv: Tensor<2>,
    heads: HeadWeights,
    output: Tensor<2>,
    feed_norm: Vec<f32>,
    /// Gates, then ups.
    gate_up: Tensor<2>,
    down: Tensor<2>,
}

/// All weights, on one device.
pub(crate) struct Decoder {
    pub(crate) config: ModelConfig,
    device: Device,
    embedding: Tensor<2>,
    blocks: Vec<Block>,
    norm: Vec<f32>,
    /// \[hidden, vocabulary\]
    head: Tensor<2>,
    rope: RopeTable,
}

/// Tokens to compute next in a sequence.
pub(crate) struct Step<'a> {
    pub(crate) sequence: &'a mut Sequence,
    pub(crate) tokens: &'a [u32],
}

impl Decoder {
    pub(crate) fn load(weights: &dyn Checkpoint, device: &Device) -> Result<Self, LlmError> {
        let config = weights.config().clone();
        let (hidden, vocabulary) = (config.hidden, config.vocabulary);
        let embedding = weights.matrix("model.embed_tokens.weight", vocabulary, hidden)?.values();
        let head = if config.tied_head {
            columns(&[&embedding], hidden)
        } else {
            columns(&[&weights.matrix(HEAD, vocabulary, hidden)?.values()], hidden)
        };
        let rope = RopeTable::new(&config.rope_frequencies(), config.context);
        let load = |index| Block::load(weights, index, device);
        let blocks = (0..config.layers).into_par_iter().map(load).collect::<Result<_, _>>()?;
        Ok(Self {
            norm: weights.vector("model.norm.weight", hidden)?,
            embedding: matrix(embedding, vocabulary, device),
            head: matrix(head, hidden, device),
            device: device.clone(),
            blocks,
            rope,
            config,
        })
    }

    /// Computes the steps' tokens, all of them in the vocabulary, one step's rows after another's, and keeps their
    /// keys and values. Returns the residual stream after the last block, \[tokens, hidden\] or more rows: those
    /// beyond the tokens mean nothing.
    pub(crate) fn forward(&self, pool: &mut KvPool, steps: &mut [Step<'_>]) -> Tensor<2> {
        let mut ids: Vec<i32> = Vec::new();
        for step in steps.iter_mut() {
            ids.extend(step.tokens.iter().map(|&token| token.cast_signed()));
            pool.extend(step.sequence, step.tokens.len());
        }
        ids.resize(ids.len().max(MIN_ROWS), 0);
        let segments: Vec<Segment<'_>> = steps
            .iter()
            .map(|step| Segment {
                pages: step.sequence.pages(),
                start: step.sequence.len() - step.tokens.len(),
                count: step.tokens.len(),
            })
            .collect();
        let rows = ids.len();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [rows]), &self.device);
        let mut x = self.embedding.clone().select(0, ids);
        let mut delta = None;
        let epsilon = self.config.norm_epsilon;
        for (layer, block) in self.blocks.iter().enumerate() {
            let (sum, normed) = add_rms_norm(x, delta, &block.attention_norm, epsilon);
            let qkv = normed.matmul(block.qkv.clone());
            let attended = attend(qkv, &segments, layer, &self.config, &block.heads, &self.rope, pool);
            let attended = attended.matmul(block.output.clone());
            let (sum, normed) = add_rms_norm(sum, Some(attended), &block.feed_norm, epsilon);
            let fed = swiglu(normed.matmul(block.gate_up.clone()));
            delta = Some(fed.matmul(block.down.clone()));
            x = sum;
        }
        delta.map_or(x.clone(), |delta| x + delta)
    }

    /// The hidden states that the head reads: the given rows of [`Self::forward`]'s result after the final norm.
    pub(crate) fn finish(&self, x: Tensor<2>, rows: &[usize]) -> Vec<Vec<f32>> {
        let hidden = self.config.hidden;
        let data = read(x);
        let picked = rows.iter().flat_map(|&row| &floats(&data)[row * hidden..(row + 1) * hidden]);
        let picked = matrix(picked.copied().collect(), rows.len(), &self.device);
        let normed = read(add_rms_norm(picked, None, &self.norm, self.config.norm_epsilon).1);
        floats(&normed).chunks_exact(hidden).map(<[f32]>::to_vec).collect()
    }

    /// Logits over the whole vocabulary for finished hidden states: at least as many rows as states.
    pub(crate) fn logits(&self, states: &[Vec<f32>]) -> TensorData {
        let mut rows = states.concat();
        rows.resize(rows.len().max(MIN_ROWS * self.config.hidden), 0.0);
        let count = rows.len() / self.config.hidden;
        read(matrix(rows, count, &self.device).matmul(self.head.clone()))
    }

    /// The head's columns of some tokens, each \[hidden\].
    pub(crate) fn head_columns(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let ids: Vec<i32> = tokens.iter().map(|&token| token.cast_signed()).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [tokens.len()]), &self.device);
        let picked = read(self.head.clone().select(1, ids));
        let picked = floats(&picked);
        (0..tokens.len()).map(|i| picked.iter().skip(i).step_by(tokens.len()).copied().collect()).collect()
    }
}

impl Block {
    fn load(weights: &dyn Checkpoint, index: usize, device: &Device) -> Result<Self, LlmError> {
        let config = weights.config();
        let (hidden, feed) = (config.hidden, config.feed_forward);
        let (query, kv) = (config.query_width(), config.kv_width());
        let name = |module: &str| format!("model.layers.{index}.{module}");
        let get = |module: &str, rows, inputs| {
            Ok::<_, LlmError>(weights.matrix(&name(&format!("{module}.weight")), rows, inputs)?.values())
        };
        let vector = |part: &str, length| weights.vector(&name(part), length);
        let (q, k) = (get("self_attn.q_proj", query, hidden)?, get("self_attn.k_proj", kv, hidden)?);
        let v = get("self_attn.v_proj", kv, hidden)?;
        let (gate, up) = (get("mlp.gate_proj", feed, hidden)?, get("mlp.up_proj", feed, hidden)?);
        let bias = if config.qkv_bias {
            let parts = [("q", query), ("k", kv), ("v", kv)];
            let parts = parts.map(|(part, length)| vector(&format!("self_attn.{part}_proj.bias"), length));
            parts.into_iter().collect::<Result<Vec<_>, _>>()?.concat()
        } else {
            Vec::new()
        };
        let norm = |part: &str| match config.qk_norm {
            true => vector(part, config.head_width),
            false => Ok(Vec::new()),
        };
        Ok(Self {
            attention_norm: vector("input_layernorm.weight", hidden)?,
            qkv: matrix(columns(&[&q, &k, &v], hidden), hidden, device),
            heads: HeadWeights {
                bias,
                query_norm: norm("self_attn.q_norm.weight")?,
                key_norm: norm("self_attn.k_norm.weight")?,
            },
            output: matrix(columns(&[&get("self_attn.o_proj", hidden, query)?], query), query, device),
            feed_norm: vector("post_attention_layernorm.weight", hidden)?,
            gate_up: matrix(columns(&[&gate, &up], hidden), hidden, device),
            down: matrix(columns(&[&get("mlp.down_proj", hidden, feed)?], feed), feed, device),
        })
    }
}

/// Matrices \[outputs, inputs\], stacked and transposed: \[inputs, all outputs\].
fn columns(matrices: &[&[f32]], inputs: usize) -> Vec<f32> {
    let total = matrices.iter().map(|matrix| matrix.len()).sum::<usize>();
    let outputs = total / inputs;
    let mut out = vec![0.0; total];
    let mut first = 0;
    for matrix in matrices {
        for rows in matrix.chunks(TRANSPOSE_ROWS * inputs) {
            let count = rows.len() / inputs;
            for input in 0..inputs {
                let to = &mut out[input * outputs + first..][..count];
                for (to, row) in to.iter_mut().zip(rows.chunks_exact(inputs)) {
                    *to = row[input];
                }
            }
            first += count;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_stacked_and_transposed() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0]);
        assert_eq!(columns(&[&a, &b], 2), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
    }
}
