//! One decoder block while its adapter is trained: forward, and backward by hand.
//!
//! The gradients are written out, and not left to automatic differentiation, because only the residual stream's and
//! the adapter's are wanted: nothing is kept for the frozen weights, and what is cheap to compute again (norms, the
//! gated product, attention weights) is.

use super::{
    attention::{Attention, Heads},
    lora::{Draws, Projection, Sequence, TrainedProduct},
    rows::{Rows, rms_norm, rms_norm_backward, swiglu, swiglu_backward},
};
use crate::{
    adapter::{Adapter, Product},
    config::ModelConfig,
    decoder::Decoder,
    host::RopeTable,
    matrix::Matrix,
    ops::HeadWeights,
};
use burn::tensor::Device;
use std::ops::Range;

/// A block, and the batch that goes through it.
pub(crate) struct Block<'a> {
    config: &'a ModelConfig,
    rope: &'a RopeTable,
    heads: &'a HeadWeights,
    attention_norm: &'a [f32],
    feed_norm: &'a [f32],
    qkv: Projection<'a>,
    output: Projection<'a>,
    gate_up: Projection<'a>,
    down: Projection<'a>,
    epsilon: f32,
    device: &'a Device,
    sequences: &'a [Sequence],
    spans: Vec<Range<usize>>,
}

/// What a block's backward pass needs of its forward pass, and the result follows from.
pub(crate) struct Kept {
    /// The residual stream before the block.
    x: Rows,
    heads: Vec<Heads>,
    /// What the heads gave, if the projection behind them has an adapter.
    attended: Option<Rows>,
    /// The residual stream between attention and feed-forward layer.
    middle: Rows,
    gate_up: Rows,
}

impl Kept {
    /// The residual stream before the block; all else is dropped.
    pub(crate) fn into_input(self) -> Rows {
        self.x
    }
}

impl<'a> Block<'a> {
    /// Block `layer` of a decoder.
    pub(crate) fn new(
        decoder: &'a Decoder,
        adapter: &'a Adapter,
        layer: usize,
        draws: Draws,
        sequences: &'a [Sequence],
    ) -> Self {
        let (weights, config, device) = (decoder.block(layer), &decoder.config, decoder.device());
        let projection = |weights: &'a Matrix, product| Projection {
            weights,
            trained: TrainedProduct::new(adapter, config, layer, product, draws, device),
        };
        Self {
            config,
            rope: decoder.rope(),
            heads: &weights.heads,
            attention_norm: weights.attention_norm.values(),
            feed_norm: weights.feed_norm.values(),
            qkv: projection(&weights.qkv, Product::Qkv),
            output: projection(&weights.output, Product::Output),
            gate_up: projection(&weights.gate_up, Product::GateUp),
            down: projection(&weights.down, Product::Down),
            epsilon: config.norm_epsilon,
            device,
            sequences,
            spans: sequences.iter().map(|sequence| sequence.rows.clone()).collect(),
        }
    }

    /// Floats that [`Kept`] holds for each token.
    pub(crate) fn kept_floats(decoder: &Decoder) -> usize {
        let config = &decoder.config;
        2 * config.hidden + 3 * config.query_width() + 3 * config.kv_width() + 2 * config.feed_forward
    }

    fn attention(&self) -> Attention<'_> {
        Attention { config: self.config, weights: self.heads, rope: self.rope, device: self.device }
    }

    /// All of the block but its last product.
    pub(crate) fn keep(&self, x: Rows) -> Kept {
        let normed = rms_norm(&x, self.attention_norm, self.epsilon);
        let qkv = Rows::of(self.qkv.forward(normed, self.sequences, self.device));
        let (heads, attended) = self.attention().forward(&qkv, &self.spans);
        drop(qkv);
        let attended = Rows::of(attended);
        let kept = self.output.is_trained().then(|| attended.clone());
        let middle = x.plus(self.output.forward(attended, self.sequences, self.device));
        let normed = rms_norm(&middle, self.feed_norm, self.epsilon);
        let gate_up = Rows::of(self.gate_up.forward(normed, self.sequences, self.device));
        Kept { x, heads, attended: kept, middle, gate_up }
    }

    /// The residual stream after the block.
    pub(crate) fn finish(&self, kept: &Kept) -> Rows {
        let fed = swiglu(&kept.gate_up);
        kept.middle.plus(self.down.forward(fed, self.sequences, self.device))
    }

    /// From the gradient of the residual stream after the block to that before it, where it is wanted; the adapter's
    /// gradients are added to `gradients`.
    pub(crate) fn backward(&self, kept: Kept, gradient: Rows, gradients: &mut [f32], wants_x: bool) -> Option<Rows> {
        let Kept { x, heads, attended, middle, gate_up } = kept;
        let sequences = self.sequences;
        let always = "the gradient of the inputs is wanted";
        let dy = gradient.into_tensor(self.device);
        let d_fed = self.down.backward(|| swiglu(&gate_up), dy.clone(), sequences, gradients, true).expect(always);
        let d_gate_up = swiglu_backward(gate_up, d_fed).into_tensor(self.device);
        let normed = || rms_norm(&middle, self.feed_norm, self.epsilon);
        let d_normed = self.gate_up.backward(normed, d_gate_up, sequences, gradients, true).expect(always);
        let dy = rms_norm_backward(&middle, self.feed_norm, self.epsilon, d_normed, Rows::of(dy));
        drop(middle);
        let dy = dy.into_tensor(self.device);
        let attended = || attended.expect("kept where the projection has an adapter");
        let d_attended = self.output.backward(attended, dy.clone(), sequences, gradients, true).expect(always);
        let d_qkv = self.attention().backward(&heads, d_attended, &self.spans);
        drop(heads);
        let normed = || rms_norm(&x, self.attention_norm, self.epsilon);
        let d_normed = self.qkv.backward(normed, d_qkv, sequences, gradients, wants_x)?;
        Some(rms_norm_backward(&x, self.attention_norm, self.epsilon, d_normed, Rows::of(dy)))
    }
}
