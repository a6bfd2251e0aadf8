//! What a kind of device does between the matrix products: two traits, each with two implementations.
//!
//! | | in host memory, rayon | CUDA, own kernels |
//! |---|---|---|
//! | [`Operations`] | [`crate::host::Host`] | `cuda::Cuda` |
//! | [`Cache`] | [`crate::host_cache::HostCache`] | `cuda::cache::CudaCache` |
//!
//! Products are [`crate::matrix`]'s. Which pages a sequence has is counted in [`crate::kv`], whatever the device.

use crate::{
    config::ModelConfig,
    kv::{Keep, PageId},
    sampler::Drawn,
};
use burn::tensor::{Device, Tensor, TensorData};

/// The operations on one device. Tensors are \[rows, width\]; the residual stream is in 32 bits, activations are of the
/// type that the products take.
pub(crate) trait Operations: Send + Sync {
    /// Memory for keys and values.
    fn cache(&self, config: &ModelConfig) -> Box<dyn Cache>;

    /// What a call may take of the device's memory where its caller does not say, in bytes.
    fn default_bytes(&self) -> u64;

    /// Tokens of a forward pass from which on more of them make it no faster.
    fn most_tokens(&self) -> usize;

    /// The tokens' embeddings, the beginning of the residual stream.
    fn embed(&self, tokens: &[u32], width: usize, device: &Device) -> Tensor<2>;

    /// Adds `delta` to the residual stream and normalizes: x' = x + delta and x' / sqrt(mean(x'^2) + epsilon) * w.
    fn add_rms_norm(
        &self,
        residual: Tensor<2>,
        delta: Option<Tensor<2>>,
        weight: &Vector,
        epsilon: f32,
    ) -> (Tensor<2>, Tensor<2>);

    /// silu(gate) * up, from \[rows, 2 width\] with the gates in the first half of each row to \[rows, width\].
    fn swiglu(&self, gate_up: Tensor<2>) -> Tensor<2>;

    /// Some rows.
    fn pick(&self, x: Tensor<2>, rows: &[usize]) -> Tensor<2>;

    /// Whether [`Self::draw`] works. Where logits are in host memory anyway, the sampler there draws.
    fn draws(&self) -> bool;

    /// The next token of every row of logits \[rows, vocabulary\]; `None` where a logit is not a number or infinite, or
    /// all are minus infinity.
    fn draw(&self, logits: Tensor<2>, draws: &[Draw]) -> Vec<Option<Drawn>>;
}

/// How a token is drawn, without a repetition penalty. The order and the meaning of the filters are the sampler's.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "a device reads them"))]
pub(crate) struct Draw {
    /// 0 takes the largest logit.
    pub(crate) temperature: f32,
    /// 0 for all.
    pub(crate) top_k: usize,
    /// 1 for all.
    pub(crate) top_p: f32,
    /// 0 for all.
    pub(crate) min_p: f32,
    /// Drawn from 0 to 1, without 1.
    pub(crate) uniform: f64,
}

#[cfg(any(test, feature = "cuda"))]
impl Draw {
    /// The kernel's shape of a distribution, see `rallrec_kernels::sample`.
    pub(crate) fn shape(&self) -> [f32; 2] {
        let scale = 1.0 / self.temperature;
        [if scale.is_finite() { scale } else { 0.0 }, self.min_p]
    }

    /// The kernel's limits of a distribution.
    pub(crate) fn limits(&self) -> [u32; 3] {
        let fraction = |x: f64| (x * (1_u64 << 32) as f64) as u32;
        let top_p = if self.top_p < 1.0 { fraction(self.top_p.into()).max(1) } else { 0 };
        [u32::try_from(self.top_k).unwrap_or(0), top_p, fraction(self.uniform)]
    }
}

/// The numbers of a pool's pages, and the attention over them.
pub(crate) trait Cache: Send {
    /// One more page: its number is the number of pages before.
    fn add(&mut self, keep: Keep);

    /// Copies all layers of a page.
    fn copy(&mut self, from: PageId, to: PageId);

    /// Bytes of a page of all layers.
    fn page_bytes(&self) -> u64;

    /// Readies what is the same for all layers of a forward pass.
    fn step<'a>(&'a mut self, segments: &'a [Segment<'a>]) -> Box<dyn StepAttention + 'a>;
}

/// The attention of one forward pass.
pub(crate) trait StepAttention {
    /// Adds biases, normalizes and rotates queries and keys, stores keys and values, and attends: from the projections
    /// \[tokens, queries + keys + values\] to \[tokens, heads * head width\].
    fn attend(&mut self, projections: Tensor<2>, layer: usize, heads: &HeadWeights) -> Tensor<2>;
}

/// New tokens of one sequence in a batch.
pub(crate) struct Segment<'a> {
    /// The sequence's pages, those of the new tokens included.
    pub(crate) pages: &'a [PageId],
    /// Position of the first new token.
    pub(crate) start: usize,
    /// New tokens.
    pub(crate) count: usize,
}

/// What is done to a layer's queries, keys and values before the rotary embedding; empty where the model has none.
#[derive(Clone)]
pub(crate) struct HeadWeights {
    /// Added to queries, keys and values beside one another.
    pub(crate) bias: Vector,
    /// RMSNorm of each query head, \[head width\].
    pub(crate) query_norm: Vector,
    /// RMSNorm of each key head, \[head width\].
    pub(crate) key_norm: Vector,
}

/// A vector of weights, in host memory and on the device.
#[derive(Clone)]
pub(crate) struct Vector {
    values: Vec<f32>,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the host reads the values"))]
    tensor: Tensor<1>,
}

impl Vector {
    pub(crate) fn new(values: Vec<f32>, device: &Device) -> Self {
        // No device has a buffer of no bytes.
        let stored = if values.is_empty() { vec![0.0] } else { values.clone() };
        let length = stored.len();
        let data = TensorData::new(stored, [length]);
        Self { tensor: Tensor::from_data(data, (device, burn::tensor::DType::F32)), values }
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// On the device, in 32 bits.
    #[cfg(feature = "cuda")]
    pub(crate) fn tensor(&self) -> Tensor<1> {
        self.tensor.clone()
    }
}
