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
    adapter::{Adapter, LowRanks, Product},
    attention::{Segment, attend},
    config::ModelConfig,
    gguf::GgufFile,
    host::{RopeTable, add_rms_norm, floats, matrix, read, swiglu},
    kv::{KvPool, Sequence},
};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rayon::prelude::*;
use std::sync::Arc;

/// Rows of a product at least: one row alone takes another kernel with another order of summation.
const MIN_ROWS: usize = 2;
/// Output rows that are transposed together.
const TRANSPOSE_ROWS: usize = 32;

/// One block's weights. Matrices are \[inputs, outputs\], the layout that the products read fastest.
struct Block {
    attention_norm: Vec<f32>,
    /// Queries, keys and values beside one another.
    qkv: Tensor<2>,
    output: Tensor<2>,
    feed_norm: Vec<f32>,
    /// Gates, then ups.
    gate_up: Tensor<2>,
    down: Tensor<2>,
}

/// All weights, on one device, and perhaps an adapter. A clone shares the weights.
#[derive(Clone)]
pub(crate) struct Decoder {
    pub(crate) config: ModelConfig,
    device: Device,
    embedding: Tensor<2>,
    blocks: Arc<Vec<Block>>,
    norm: Vec<f32>,
    /// \[hidden, vocabulary\]
    head: Tensor<2>,
    rope: Arc<RopeTable>,
    adapter: Option<Arc<LowRanks>>,
}

/// One block's weights as training reads them: matrices \[inputs, outputs\], in 32-bit floats or narrower.
pub(crate) struct DenseBlock {
    pub(crate) attention_norm: Vec<f32>,
    /// Queries, keys and values beside one another.
    pub(crate) qkv: Tensor<2>,
    pub(crate) output: Tensor<2>,
    pub(crate) feed_norm: Vec<f32>,
    /// Gates, then ups.
    pub(crate) gate_up: Tensor<2>,
    pub(crate) down: Tensor<2>,
}

/// Tokens to compute next in a sequence.
pub(crate) struct Step<'a> {
    pub(crate) sequence: &'a mut Sequence,
    pub(crate) tokens: &'a [u32],
}

impl Decoder {
    pub(crate) fn load(file: &GgufFile, device: &Device) -> Result<Self, LlmError> {
        let config = ModelConfig::from_gguf(file)?;
        let (hidden, vocabulary) = (config.hidden, config.vocabulary);
        let embedding = file.values("token_embd.weight", &[vocabulary, hidden])?;
        let head = if file.tensor("output.weight").is_some() {
            columns(&[&file.values("output.weight", &[vocabulary, hidden])?], hidden)
        } else {
            columns(&[&embedding], hidden)
        };
        let factors = match file.tensor("rope_freqs.weight") {
            Some(_) => Some(file.values("rope_freqs.weight", &[config.head_width / 2])?),
            None => None,
        };
        let rope = RopeTable::new(config.rope_base, config.head_width, config.context, factors.as_deref());
        let load = |index| Block::load(file, &config, index, device);
        let blocks = (0..config.layers).into_par_iter().map(load).collect::<Result<_, _>>()?;
        Ok(Self {
            norm: file.values("output_norm.weight", &[hidden])?,
            embedding: matrix(embedding, vocabulary, device),
            head: matrix(head, hidden, device),
            device: device.clone(),
            blocks: Arc::new(blocks),
            rope: Arc::new(rope),
            adapter: None,
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
            let qkv = self.product(layer, Product::Qkv, normed, &block.qkv);
            let attended = attend(qkv, &segments, layer, &self.config, &self.rope, pool);
            let attended = self.product(layer, Product::Output, attended, &block.output);
            let (sum, normed) = add_rms_norm(sum, Some(attended), &block.feed_norm, epsilon);
            let fed = swiglu(self.product(layer, Product::GateUp, normed, &block.gate_up));
            delta = Some(self.product(layer, Product::Down, fed, &block.down));
            x = sum;
        }
        delta.map_or(x.clone(), |delta| x + delta)
    }

    /// A block's product, with the adapter's part if there is one.
    fn product(&self, layer: usize, product: Product, x: Tensor<2>, weights: &Tensor<2>) -> Tensor<2> {
        let Some(adapter) = &self.adapter else { return x.matmul(weights.clone()) };
        adapter.add(layer, product, x.clone(), x.matmul(weights.clone()))
    }

    /// The same weights with an adapter, in place of the one that it may have.
    pub(crate) fn with_adapter(&self, adapter: &Adapter) -> Result<Self, LlmError> {
        adapter.check(&self.config)?;
        let low_ranks = LowRanks::new(adapter, &self.config, &self.device);
        Ok(Self { adapter: Some(Arc::new(low_ranks)), ..self.clone() })
    }

    /// The embeddings of some tokens, \[tokens, hidden\]: what the first block reads.
    pub(crate) fn embed(&self, tokens: &[u32]) -> Tensor<2> {
        let ids: Vec<i32> = tokens.iter().map(|&token| token.cast_signed()).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [tokens.len()]), &self.device);
        self.embedding.clone().select(0, ids)
    }

    /// A block's weights for training; taken when they are needed, and dropped.
    pub(crate) fn dense_block(&self, layer: usize) -> DenseBlock {
        let block = &self.blocks[layer];
        DenseBlock {
            attention_norm: block.attention_norm.clone(),
            qkv: block.qkv.clone(),
            output: block.output.clone(),
            feed_norm: block.feed_norm.clone(),
            gate_up: block.gate_up.clone(),
            down: block.down.clone(),
        }
    }

    /// The final norm's weights, and the head \[hidden, vocabulary\].
    pub(crate) fn dense_head(&self) -> (&[f32], Tensor<2>) {
        (&self.norm, self.head.clone())
    }

    pub(crate) fn rope(&self) -> &RopeTable {
        &self.rope
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
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
    fn load(file: &GgufFile, config: &ModelConfig, index: usize, device: &Device) -> Result<Self, LlmError> {
        let (hidden, feed) = (config.hidden, config.feed_forward);
        let (query, kv, width) = (config.query_width(), config.kv_width(), config.head_width);
        let get = |name: &str, shape: &[usize]| file.values(&format!("blk.{index}.{name}.weight"), shape);
        for bias in ["attn_q.bias", "attn_k.bias", "attn_v.bias"] {
            if file.tensor(&format!("blk.{index}.{bias}")).is_some() {
                return Err(file.error(format!("tensor blk.{index}.{bias}: biases are not supported")));
            }
        }
        let q = halves_together(&get("attn_q", &[query, hidden])?, width, hidden);
        let k = halves_together(&get("attn_k", &[kv, hidden])?, width, hidden);
        let v = get("attn_v", &[kv, hidden])?;
        let (gate, up) = (get("ffn_gate", &[feed, hidden])?, get("ffn_up", &[feed, hidden])?);
        Ok(Self {
            attention_norm: get("attn_norm", &[hidden])?,
            qkv: matrix(columns(&[&q, &k, &v], hidden), hidden, device),
            output: matrix(columns(&[&get("attn_output", &[hidden, query])?], query), query, device),
            feed_norm: get("ffn_norm", &[hidden])?,
            gate_up: matrix(columns(&[&gate, &up], hidden), hidden, device),
            down: matrix(columns(&[&get("ffn_down", &[hidden, feed])?], feed), feed, device),
        })
    }
}

/// Undoes llama.cpp's order of the query and key rows: within a head it stores rows 0, half, 1, half + 1, …, here the
/// two halves follow one another, as the rotary embedding of [`RopeTable::rotate`] pairs them.
fn halves_together(rows: &[f32], head_width: usize, row_width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_width * row_width) {
        for parity in 0..2 {
            for row in head.chunks_exact(row_width).skip(parity).step_by(2) {
                out.extend_from_slice(row);
            }
        }
    }
    out
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
    fn rows_of_a_head_are_sorted_into_halves() {
        // Two heads of width 4, rows of width 1, named by what they are: head, half, index.
        let stored = [0.00, 0.10, 0.01, 0.11, 1.00, 1.10, 1.01, 1.11];
        assert_eq!(halves_together(&stored, 4, 1), [0.00, 0.01, 0.10, 0.11, 1.00, 1.01, 1.10, 1.11]);
    }

    #[test]
    fn matrices_are_stacked_and_transposed() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0]);
        assert_eq!(columns(&[&a, &b], 2), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
    }
}
