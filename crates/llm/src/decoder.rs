//! A Llama-family decoder: weights and the forward pass over a batch of sequences without padding.
//!
//! x = E\[token\]; in each block x += O attend(rope(Q n1(x)), rope(K n1(x)), V n1(x)) and x += D (silu(G n2(x)) * U n2(x))
//! with RMSNorm n1, n2. The output head is applied by [`Decoder::logits`] to the rows that the caller wants, never to
//! all positions. The products are in [`crate::matrix`], what lies between them in [`crate::ops`], by device.
//!
//! On the CPU a row's result does not depend on the other rows, to the bit: every kernel computes each row by itself
//! and sums in one order.

use crate::{
    LlmError,
    adapter::{Adapter, LowRanks, Product},
    checkpoint::{Checkpoint, HEAD, Stored},
    config::ModelConfig,
    host::{Host, RopeTable, floats, matrix, read},
    kv::{KvPool, Sequence},
    matrix::{Matrix, Precision, TooLarge},
    memory,
    ops::{Draw, HeadWeights, Operations, Segment, Vector},
    sampler::Drawn,
};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use rayon::prelude::*;
use std::sync::Arc;

/// One block's weights.
pub(crate) struct Block {
    pub(crate) attention_norm: Vector,
    /// Queries, keys and values beside one another.
    pub(crate) qkv: Matrix,
    pub(crate) heads: HeadWeights,
    pub(crate) output: Matrix,
    pub(crate) feed_norm: Vector,
    /// Gates, then ups.
    pub(crate) gate_up: Matrix,
    pub(crate) down: Matrix,
}

/// All weights, on one device, and perhaps an adapter. A clone shares the weights.
#[derive(Clone)]
pub(crate) struct Decoder {
    pub(crate) config: ModelConfig,
    device: Device,
    /// Outputs are tokens: output t of the matrix is the embedding of token t.
    embedding: Arc<Matrix>,
    blocks: Arc<Vec<Block>>,
    norm: Arc<Vector>,
    /// The embedding where both are tied.
    head: Arc<Matrix>,
    rope: Arc<RopeTable>,
    adapter: Option<Arc<LowRanks>>,
    ops: Arc<dyn Operations>,
}

/// The residual stream after the last block, \[tokens, hidden\], and what is still to be added to it.
pub(crate) struct Stream {
    residual: Tensor<2>,
    delta: Option<Tensor<2>>,
}

/// Tokens to compute next in a sequence.
pub(crate) struct Step<'a> {
    pub(crate) sequence: &'a mut Sequence,
    pub(crate) tokens: &'a [u32],
}

impl Decoder {
    pub(crate) fn load(weights: &dyn Checkpoint, device: &Device, precision: Precision) -> Result<Self, LlmError> {
        let config = weights.config().clone();
        #[cfg(feature = "cuda")]
        let precision =
            if *device == Device::flex() { precision } else { crate::cuda::resolve(precision, &config, device) };
        let (hidden, vocabulary) = (config.hidden, config.vocabulary);
        let tokens = |name: &str, load: LoadMatrix| -> Result<Arc<Matrix>, LlmError> {
            let part = [(name.to_owned(), vocabulary)];
            Ok(Arc::new(load_matrix(weights, &part, hidden, load, precision, device)?))
        };
        let load_embedding = if config.tied_head { Matrix::load } else { Matrix::load_table };
        let embedding = tokens("model.embed_tokens.weight", load_embedding)?;
        let head = if config.tied_head { embedding.clone() } else { tokens(HEAD, Matrix::load)? };
        let rope = Arc::new(RopeTable::new(config.rope_frequencies(), config.context));
        let ops = operations(&config, embedding.clone(), rope.clone(), device)?;
        let load = |index| Block::load(weights, index, device, precision);
        let blocks = if *device == Device::flex() {
            (0..config.layers).into_par_iter().map(load).collect::<Result<_, _>>()?
        } else {
            // One after another: what a device does for a thread has its own order and its own pools of memory there,
            // and host memory holds one matrix at a time.
            (0..config.layers).map(load).collect::<Result<_, _>>()?
        };
        Ok(Self {
            norm: Arc::new(Vector::new(weights.vector("model.norm.weight", hidden)?, device)),
            embedding,
            head,
            device: device.clone(),
            blocks: Arc::new(blocks),
            rope,
            adapter: None,
            ops,
            config,
        })
    }

    /// Computes the steps' tokens, all of them in the vocabulary, one step's rows after another's, and keeps their
    /// keys and values.
    pub(crate) fn forward(&self, pool: &mut KvPool, steps: &mut [Step<'_>]) -> Stream {
        let mut tokens = Vec::new();
        for step in steps.iter_mut() {
            tokens.extend_from_slice(step.tokens);
            pool.extend(step.sequence, step.tokens.len());
        }
        let segments: Vec<Segment<'_>> = steps
            .iter()
            .map(|step| Segment {
                pages: step.sequence.pages(),
                start: step.sequence.len() - step.tokens.len(),
                count: step.tokens.len(),
            })
            .collect();
        let mut attention = pool.cache().step(&segments);
        let mut residual = self.embed(&tokens);
        let mut delta = None;
        let (ops, epsilon) = (&self.ops, self.config.norm_epsilon);
        for (layer, block) in self.blocks.iter().enumerate() {
            let (sum, normed) = ops.add_rms_norm(residual, delta, &block.attention_norm, epsilon);
            let qkv = self.product(layer, Product::Qkv, normed, &block.qkv);
            let attended = attention.attend(qkv, layer, &block.heads);
            let attended = self.product(layer, Product::Output, attended, &block.output);
            let (sum, normed) = ops.add_rms_norm(sum, Some(attended), &block.feed_norm, epsilon);
            let fed = ops.swiglu(self.product(layer, Product::GateUp, normed, &block.gate_up));
            delta = Some(self.product(layer, Product::Down, fed, &block.down));
            residual = sum;
        }
        Stream { residual, delta }
    }

    /// What a call may take of the device's memory where its caller does not say, in bytes.
    pub(crate) fn default_bytes(&self) -> u64 {
        self.ops.default_bytes()
    }

    /// Tokens of one forward pass: `tokens` at most, fewer where more bring nothing or do not fit into so many bytes.
    pub(crate) fn tokens_at_once(&self, tokens: usize, bytes: u64) -> usize {
        memory::tokens_that_fit(&self.config, tokens.min(self.ops.most_tokens()), bytes)
    }

    /// Room for the keys and values of a batch's sequences, on the device.
    pub(crate) fn pool(&self) -> KvPool {
        KvPool::new(self.ops.cache(&self.config))
    }

    /// A block's product, with the adapter's part if there is one.
    fn product(&self, layer: usize, product: Product, x: Tensor<2>, weights: &Matrix) -> Tensor<2> {
        let Some(adapter) = &self.adapter else { return weights.apply(x) };
        let y = weights.apply(x.clone());
        adapter.add(layer, product, x, y)
    }

    /// The same weights with an adapter, in place of the one that it may have.
    pub(crate) fn with_adapter(&self, adapter: &Adapter) -> Result<Self, LlmError> {
        adapter.check(&self.config)?;
        let low_ranks = LowRanks::new(adapter, &self.config, &self.device);
        Ok(Self { adapter: Some(Arc::new(low_ranks)), ..self.clone() })
    }

    /// The hidden states that the head reads: the given rows of [`Self::forward`]'s result after the final norm.
    pub(crate) fn finish(&self, x: Stream, rows: &[usize]) -> Vec<Vec<f32>> {
        let states = read(self.states(x, rows).cast(FloatDType::F32));
        floats(&states).chunks_exact(self.config.hidden).map(<[f32]>::to_vec).collect()
    }

    /// Whether [`Self::draw`] works: on devices with memory of their own.
    pub(crate) fn draws(&self) -> bool {
        self.ops.draws()
    }

    /// The next tokens after the given rows of [`Self::forward`]'s result; `None` where the logits are no numbers.
    pub(crate) fn draw(&self, x: Stream, rows: &[usize], draws: &[Draw]) -> Vec<Option<Drawn>> {
        self.ops.draw(self.head.apply(self.states(x, rows)), draws)
    }

    /// [`Self::finish`] on the device, \[rows, hidden\].
    fn states(&self, x: Stream, rows: &[usize]) -> Tensor<2> {
        let delta = x.delta.map(|delta| self.ops.pick(delta, rows));
        let residual = self.ops.pick(x.residual, rows);
        self.ops.add_rms_norm(residual, delta, &self.norm, self.config.norm_epsilon).1
    }

    /// Logits over the whole vocabulary for finished hidden states, \[states, vocabulary\].
    pub(crate) fn logits(&self, states: &[Vec<f32>]) -> TensorData {
        read(self.head.apply(matrix(states.concat(), states.len(), &self.device)).cast(FloatDType::F32))
    }

    /// The head's weights of some tokens, each \[hidden\].
    pub(crate) fn head_columns(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let column = |&token: &u32| {
            let mut out = vec![0.0; self.config.hidden];
            self.head.output(token as usize, &mut out);
            out
        };
        tokens.iter().map(column).collect()
    }

    /// The tokens' embeddings, \[tokens, hidden\].
    pub(crate) fn embed(&self, tokens: &[u32]) -> Tensor<2> {
        self.ops.embed(tokens, self.config.hidden, &self.device)
    }

    /// A block's weights, as training reads them.
    pub(crate) fn block(&self, layer: usize) -> &Block {
        &self.blocks[layer]
    }

    /// The final norm's weights, and the head.
    pub(crate) fn norm_and_head(&self) -> (&[f32], &Matrix) {
        (self.norm.values(), &self.head)
    }

    pub(crate) fn rope(&self) -> &RopeTable {
        &self.rope
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of the matrices in memory.
    pub(crate) fn weight_bytes(&self) -> usize {
        let blocks = self.blocks.iter().flat_map(|block| [&block.qkv, &block.output, &block.gate_up, &block.down]);
        let tokens = [&self.embedding, &self.head].into_iter().take(if Arc::ptr_eq(&self.embedding, &self.head) {
            1
        } else {
            2
        });
        blocks.chain(tokens.map(AsRef::as_ref)).map(Matrix::bytes).sum()
    }
}

impl Block {
    fn load(weights: &dyn Checkpoint, index: usize, device: &Device, precision: Precision) -> Result<Self, LlmError> {
        let config = weights.config();
        let (hidden, feed) = (config.hidden, config.feed_forward);
        let (query, kv) = (config.query_width(), config.kv_width());
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let vector = |part: &str, length| weights.vector(&name(part), length);
        let matrix = |modules: &[(&str, usize)], inputs| {
            let parts = modules.iter().map(|(module, outputs)| (name(&format!("{module}.weight")), *outputs));
            load_matrix(weights, &parts.collect::<Vec<_>>(), inputs, Matrix::load, precision, device)
        };
        let bias = if config.qkv_bias {
            let parts = [("q", query), ("k", kv), ("v", kv)];
            let parts = parts.map(|(part, length)| vector(&format!("self_attn.{part}_proj.bias"), length));
            parts.into_iter().collect::<Result<Vec<_>, _>>()?.concat()
        } else {
            Vec::new()
        };
        let norm = |part: &str| if config.qk_norm { vector(part, config.head_width) } else { Ok(Vec::new()) };
        Ok(Self {
            attention_norm: Vector::new(vector("input_layernorm.weight", hidden)?, device),
            qkv: matrix(&[("self_attn.q_proj", query), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)], hidden)?,
            heads: HeadWeights {
                bias: Vector::new(bias, device),
                query_norm: Vector::new(norm("self_attn.q_norm.weight")?, device),
                key_norm: Vector::new(norm("self_attn.k_norm.weight")?, device),
            },
            output: matrix(&[("self_attn.o_proj", hidden)], query)?,
            feed_norm: Vector::new(vector("post_attention_layernorm.weight", hidden)?, device),
            gate_up: matrix(&[("mlp.gate_proj", feed), ("mlp.up_proj", feed)], hidden)?,
            down: matrix(&[("mlp.down_proj", hidden)], feed)?,
        })
    }
}

/// [`Matrix::load`] or [`Matrix::load_table`].
type LoadMatrix = fn(&[Stored<'_>], Precision, &Device) -> Result<Matrix, TooLarge>;

/// Matrices with the same inputs beside one another, each given by its name and its outputs.
fn load_matrix(
    weights: &dyn Checkpoint,
    parts: &[(String, usize)],
    inputs: usize,
    load: LoadMatrix,
    precision: Precision,
    device: &Device,
) -> Result<Matrix, LlmError> {
    let stored = parts.iter().map(|(name, outputs)| weights.matrix(name, *outputs, inputs));
    load(&stored.collect::<Result<Vec<_>, _>>()?, precision, device).map_err(|TooLarge { part }| {
        let limit = if precision == Precision::F16 { "f16, which ends at 65,504" } else { "bf16" };
        weights
            .error(&parts[part].0, &format!("has weights too large for {limit}; take the precision auto, f32 or int8"))
    })
}

/// The operations on a device.
fn operations(
    config: &ModelConfig,
    embedding: Arc<Matrix>,
    rope: Arc<RopeTable>,
    device: &Device,
) -> Result<Arc<dyn Operations>, LlmError> {
    #[cfg(feature = "cuda")]
    if *device != Device::flex() {
        return Ok(Arc::new(crate::cuda::Cuda::new(config, &embedding, &rope, device)?));
    }
    let _ = (config, device);
    Ok(Arc::new(Host { embedding, rope }))
}
