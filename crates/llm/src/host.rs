//! The decoder's loops between its matrix products, for tensors in host memory: RMSNorm, SwiGLU, rotary embedding.
//!
//! Burn composes each of these from several passes over memory on one thread; here each is one pass over all threads.
//! Every row is computed by itself, in an order of operations that the width of the CPU's vectors and the number of
//! rows do not change: that is what makes results independent of the batch. Products with weights are
//! [`crate::matrix`]'s, and attention is [`crate::attention`]'s.

use crate::{
    config::ModelConfig,
    host_cache::HostCache,
    matrix::Matrix,
    memory,
    ops::{Cache, Draw, Operations, Vector},
    sampler::Drawn,
};
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// Tokens of a forward pass at most: the activations of some thousands leave the CPU's caches (SmolLM2-135M, 2 cores, prefill
/// of 512 x 8: 742 tokens/s by 512 tokens, 715 by 1,024, 590 by 4,096), and most prompts are to be whole.
const MOST_TOKENS: usize = 1024;

/// The operations in host memory.
pub(crate) struct Host {
    /// Output t is the embedding of token t.
    pub(crate) embedding: Arc<Matrix>,
    pub(crate) rope: Arc<RopeTable>,
}

impl Operations for Host {
    fn cache(&self, config: &ModelConfig) -> Box<dyn Cache> {
        Box::new(HostCache::new(config.clone(), self.rope.clone()))
    }

    fn default_bytes(&self) -> u64 {
        memory::default_bytes()
    }

    fn most_tokens(&self) -> usize {
        MOST_TOKENS
    }

    fn embed(&self, tokens: &[u32], width: usize, device: &Device) -> Tensor<2> {
        let mut out = vec![0.0; tokens.len() * width];
        out.par_chunks_mut(width).zip(tokens).for_each(|(to, &token)| self.embedding.output(token as usize, to));
        matrix(out, tokens.len(), device)
    }

    fn add_rms_norm(
        &self,
        residual: Tensor<2>,
        delta: Option<Tensor<2>>,
        weight: &Vector,
        epsilon: f32,
    ) -> (Tensor<2>, Tensor<2>) {
        add_rms_norm(residual, delta, weight.values(), epsilon)
    }

    fn swiglu(&self, gate_up: Tensor<2>) -> Tensor<2> {
        swiglu(gate_up)
    }

    fn pick(&self, x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
        let device = x.device();
        let [_, width] = x.dims();
        let data = read(x);
        let picked = rows.iter().flat_map(|&row| &floats(&data)[row * width..(row + 1) * width]);
        matrix(picked.copied().collect(), rows.len(), &device)
    }

    fn draws(&self) -> bool {
        false
    }

    fn draw(&self, _logits: Tensor<2>, draws: &[Draw]) -> Vec<Option<Drawn>> {
        unreachable!("{} draws: see Self::draws", draws.len())
    }
}

/// Floats that are computed side by side. Sums are kept in as many parts, so a sum is the same on every CPU.
pub(crate) const PAGE_LANES: usize = 32;
/// Below this many floats, starting threads costs more than it gains.
const PARALLEL_FLOATS: usize = 1 << 15;

/// Runs `op` with the widest vectors that this CPU has.
#[inline(always)]
pub(crate) fn vectorized<F: pulp::WithSimd>(op: F) -> F::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = pulp::x86::V4::try_new() {
            return pulp::Simd::vectorize(simd, op);
        }
        if let Some(simd) = pulp::x86::V3::try_new() {
            return pulp::Simd::vectorize(simd, op);
        }
    }
    pulp::Simd::vectorize(pulp::Scalar::new(), op)
}

/// Sum of the lanes, always in the same order.
#[inline(always)]
pub(crate) fn lane_sum(mut lanes: [f32; PAGE_LANES]) -> f32 {
    let mut half = PAGE_LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Largest of the lanes.
#[inline(always)]
pub(crate) fn lane_max(mut lanes: [f32; PAGE_LANES]) -> f32 {
    let mut half = PAGE_LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = if lanes[i + half] > lanes[i] { lanes[i + half] } else { lanes[i] };
        }
        half /= 2;
    }
    lanes[0]
}

/// e^x within 2 units in the last place, for x <= 88; below -87 it is about 1e-38. Written so that it vectorizes.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // e^x = 2^n e^r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    // The exponential series to r^7 / 7!: its remainder is below 2^-26 on this interval.
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, c);
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    p * f32::from_bits(exponent.wrapping_add(127) << 23)
}

/// A tensor's values, without a copy where it is the only owner and lives in host memory.
pub(crate) fn read<const D: usize>(tensor: Tensor<D>) -> TensorData {
    tensor.into_data()
}

/// The floats of a tensor's values.
pub(crate) fn floats(data: &TensorData) -> &[f32] {
    data.as_slice().expect("activations are 32-bit floats")
}

/// The floats of a tensor's values, to change them in place.
pub(crate) fn floats_mut(data: &mut TensorData) -> &mut [f32] {
    data.as_mut_slice().expect("activations are 32-bit floats")
}

/// A matrix on a device.
pub(crate) fn matrix(values: Vec<f32>, rows: usize, device: &Device) -> Tensor<2> {
    let columns = values.len() / rows;
    Tensor::from_data(TensorData::new(values, [rows, columns]), device)
}

/// Adds `delta` to the residual stream and normalizes: returns x' = x + delta and x' / sqrt(mean(x'^2) + epsilon) * w,
/// each \[rows, hidden\].
pub(crate) fn add_rms_norm(
    residual: Tensor<2>,
    delta: Option<Tensor<2>>,
    weight: &[f32],
    epsilon: f32,
) -> (Tensor<2>, Tensor<2>) {
    let device = residual.device();
    let [rows, hidden] = residual.dims();
    let mut x = read(residual);
    let delta = delta.map(read);
    let mut normed = vec![0.0; rows * hidden];
    let rows_a_task = task_rows(rows, hidden);
    let task = |(index, (x, out)): (usize, (&mut [f32], &mut [f32]))| {
        let start = index * rows_a_task * hidden;
        let delta = delta.as_ref().map(|delta| &floats(delta)[start..start + x.len()]);
        vectorized(AddNorm { x, delta, out, weight, epsilon });
    };
    let size = rows_a_task * hidden;
    let x_chunks = floats_mut(&mut x).par_chunks_mut(size);
    x_chunks.zip(normed.par_chunks_mut(size)).enumerate().for_each(task);
    (Tensor::from_data(x, &device), matrix(normed, rows, &device))
}

/// Rows that one task takes: all of them when there is little to do.
fn task_rows(rows: usize, width: usize) -> usize {
    if rows * width < PARALLEL_FLOATS { rows } else { (PARALLEL_FLOATS / 4 / width).max(1) }
}

struct AddNorm<'a> {
    x: &'a mut [f32],
    delta: Option<&'a [f32]>,
    out: &'a mut [f32],
    weight: &'a [f32],
    epsilon: f32,
}

impl pulp::NullaryFnOnce for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        if let Some(delta) = self.delta {
            for (x, d) in self.x.iter_mut().zip(delta) {
                *x += d;
            }
        }
        pulp::NullaryFnOnce::call(Norm { x: self.x, out: self.out, weight: self.weight, epsilon: self.epsilon });
    }
}

/// RMSNorm of some rows: x / sqrt(mean(x^2) + epsilon) * weight.
pub(crate) struct Norm<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) out: &'a mut [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) epsilon: f32,
}

impl pulp::NullaryFnOnce for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let scale = inverse_root(x, self.epsilon);
            for ((out, &x), &w) in out.iter_mut().zip(x).zip(self.weight) {
                *out = x * scale * w;
            }
        }
    }
}

/// 1 / sqrt(mean(x^2) + epsilon).
#[inline(always)]
pub(crate) fn inverse_root(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt()
}

/// The inner product of two rows, always summed in the same order.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; PAGE_LANES];
    let (a, b) = (a.chunks_exact(PAGE_LANES), b.chunks_exact(PAGE_LANES));
    for ((sum, &a), &b) in sums.iter_mut().zip(a.remainder()).zip(b.remainder()) {
        *sum = a * b;
    }
    for (a, b) in a.zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum = a.mul_add(b, *sum);
        }
    }
    lane_sum(sums)
}

/// silu(gate) * up, from \[rows, 2 width\] with the gates in the first half of each row to \[rows, width\].
pub(crate) fn swiglu(gate_up: Tensor<2>) -> Tensor<2> {
    let device = gate_up.device();
    let [rows, both] = gate_up.dims();
    let width = both / 2;
    let data = read(gate_up);
    let mut out = vec![0.0; rows * width];
    let size = task_rows(rows, both);
    let inputs = floats(&data).par_chunks(size * both);
    out.par_chunks_mut(size * width).zip(inputs).for_each(|(out, gate_up)| vectorized(SwiGlu { gate_up, out, width }));
    matrix(out, rows, &device)
}

/// silu(gate) * up of some rows.
pub(crate) struct SwiGlu<'a> {
    pub(crate) gate_up: &'a [f32],
    pub(crate) out: &'a mut [f32],
    pub(crate) width: usize,
}

impl pulp::NullaryFnOnce for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (row, out) in self.gate_up.chunks_exact(2 * self.width).zip(self.out.chunks_exact_mut(self.width)) {
            let (gate, up) = row.split_at(self.width);
            for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + exp(-gate)) * up;
            }
        }
    }
}

/// Cosines and sines of the rotary position embedding. Made for some positions at a time, when one of them is first
/// asked for: models allow contexts that are far longer than most prompts.
pub(crate) struct RopeTable {
    /// Radians from a position to the next, \[head width / 2\].
    frequencies: Vec<f32>,
    /// Of [`BLOCK`] positions each: for every position its cosines, then its sines.
    blocks: Vec<OnceLock<Vec<f32>>>,
}

/// Positions whose angles are made together.
const BLOCK: usize = 512;

impl RopeTable {
    /// Angles `position * frequency`. Computed in 32 bits, as transformers does: with long contexts the rounding of the
    /// angles is visible.
    pub(crate) fn new(frequencies: Vec<f32>, context: usize) -> Self {
        Self { frequencies, blocks: (0..context.div_ceil(BLOCK)).map(|_| OnceLock::new()).collect() }
    }

    /// For each position its cosines, then its sines.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn rows(&self, positions: usize) -> impl Iterator<Item = f32> {
        (0..positions).flat_map(|position| self.row(position))
    }

    fn row(&self, position: usize) -> impl Iterator<Item = f32> {
        let angles = move || self.frequencies.iter().map(move |frequency| position as f32 * frequency);
        angles().map(f32::cos).chain(angles().map(f32::sin))
    }

    /// Cosines and sines of a position, `head_width / 2` each.
    pub(crate) fn angles(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.frequencies.len();
        let (block, at) = (position / BLOCK, position % BLOCK * 2 * half);
        let positions = block * BLOCK..(block + 1) * BLOCK;
        let angles = self.blocks[block].get_or_init(|| positions.flat_map(|position| self.row(position)).collect());
        angles[at..at + 2 * half].split_at(half)
    }

    /// Rotates the first `heads` heads of a row in place: the pair (i, i + half) by the position's i-th angle.
    pub(crate) fn rotate(&self, row: &mut [f32], heads: usize, position: usize) {
        self.turn::<false>(row, heads, position);
    }

    /// Undoes [`Self::rotate`]: the gradient of rotated values becomes that of the values.
    pub(crate) fn rotate_back(&self, row: &mut [f32], heads: usize, position: usize) {
        self.turn::<true>(row, heads, position);
    }

    fn turn<const BACK: bool>(&self, row: &mut [f32], heads: usize, position: usize) {
        let (cos, sin) = self.angles(position);
        for head in row.chunks_exact_mut(2 * cos.len()).take(heads) {
            let (low, high) = head.split_at_mut(cos.len());
            for (((a, b), c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let s = if BACK { -s } else { s };
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 2.0 * f64::from(f32::EPSILON), "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn norm_and_swiglu_of_hand_computed_rows() {
        let device = Device::flex();
        let x = matrix(vec![3.0, 4.0, 1.0, 1.0], 2, &device);
        let delta = matrix(vec![0.0, 0.0, -2.0, 0.0], 2, &device);
        let (x, normed) = add_rms_norm(x, Some(delta), &[1.0, 2.0], 0.0);
        assert_eq!(floats(&read(x)), [3.0, 4.0, -1.0, 1.0]);
        let root = 12.5_f32.sqrt();
        let close = |got: &TensorData, want: &[f32]| floats(got).iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&read(normed), &[3.0 / root, 8.0 / root, -1.0, 2.0]));
        let out = read(swiglu(matrix(vec![0.0, 1.0, 5.0, 3.0], 1, &device)));
        assert!(close(&out, &[0.0, 3.0 / (1.0 + (-1.0_f32).exp())]), "{out:?}");
    }

    #[test]
    fn rope_turns_by_the_position() {
        let table = RopeTable::new(vec![1.0, 0.1], 3);
        let mut row = [1.0, 0.0, 0.0, 1.0, 7.0, 7.0, 7.0, 7.0];
        table.rotate(&mut row, 1, 2);
        let want = [2.0_f32.cos(), -0.2_f32.sin(), 2.0_f32.sin(), 0.2_f32.cos(), 7.0, 7.0, 7.0, 7.0];
        assert!(row.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{row:?}");
        table.rotate_back(&mut row, 1, 2);
        let before = [1.0, 0.0, 0.0, 1.0, 7.0, 7.0, 7.0, 7.0];
        assert!(row.iter().zip(before).all(|(a, b)| (a - b).abs() < 1e-6), "{row:?}");
    }

    #[test]
    fn of_a_long_context_only_the_angles_that_are_asked_for_are_made() {
        let frequencies: Vec<f32> = (0..64).map(|i| 10_000_f32.powf(-(i as f32) / 64.0)).collect();
        let table = RopeTable::new(frequencies.clone(), 1 << 20);
        for position in [0, BLOCK - 1, BLOCK, 3 * BLOCK + 7, (1 << 20) - 1] {
            let (cos, sin) = table.angles(position);
            let angles = frequencies.iter().map(|frequency| position as f32 * frequency);
            assert!(cos.iter().zip(sin).zip(angles).all(|((c, s), angle)| (*c, *s) == (angle.cos(), angle.sin())));
            assert!(table.rows(position + 1).skip(position * 128).eq(cos.iter().chain(sin).copied()), "{position}");
        }
        assert_eq!(table.blocks.iter().filter(|block| block.get().is_some()).count(), 4);
    }
}
