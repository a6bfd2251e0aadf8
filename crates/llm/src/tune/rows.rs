//! What lies between a block's matrix products while tuning: RMSNorm, SwiGLU, sums, dropout, and their gradients.
//!
//! Each exists twice: as one pass over host memory on all threads, and composed of Burn's operations for a device with
//! memory of its own. A test holds them to each other. Activations are 32-bit floats everywhere; where the weights are
//! narrower, [`product`] rounds to them and back.
//!
//! A row's result does not depend on the other rows, to the bit, so that gradients do not depend on how samples are
//! put together (see [`crate::decoder`]).

use crate::{
    host::{Norm, SwiGlu, dot, exp, floats, floats_mut, inverse_root, matrix, read, vectorized},
    matrix::Matrix,
};
use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use rayon::prelude::*;

/// Rows that one task takes.
pub(crate) const TASK_ROWS: usize = 32;
/// Products of no more results than this take a kernel of their own on the CPU.
const SMALL_PRODUCT: usize = 256;
/// Terms that the CPU's kernel sums in one order whatever the number of rows.
const PART: usize = 512;
/// Sums of a row are kept in as many parts, so that they are the same on every CPU.
const LANES: usize = 32;

/// A matrix of activations, \[rows, width\], that the loops here can read without copying it.
#[derive(Clone)]
pub(crate) enum Rows {
    Host(HostRows),
    Device(Tensor<2>),
}

/// A matrix in host memory, row after row.
#[derive(Clone)]
pub(crate) struct HostRows {
    data: TensorData,
    width: usize,
}

impl HostRows {
    pub(crate) fn new(values: Vec<f32>, width: usize) -> Self {
        let rows = values.len() / width;
        Self { data: TensorData::new(values, [rows, width]), width }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn values(&self) -> &[f32] {
        floats(&self.data)
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        floats_mut(&mut self.data)
    }

    /// Its rows in the parts that one task takes.
    fn parts(&self) -> rayon::slice::Chunks<'_, f32> {
        self.values().par_chunks(TASK_ROWS * self.width)
    }

    fn parts_mut(&mut self) -> rayon::slice::ChunksMut<'_, f32> {
        let size = TASK_ROWS * self.width;
        self.values_mut().par_chunks_mut(size)
    }

    fn add(&mut self, other: &Self) {
        self.parts_mut().zip(other.parts()).for_each(|(to, from)| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        });
    }
}

impl Rows {
    /// Takes a tensor over.
    pub(crate) fn of(tensor: Tensor<2>) -> Self {
        let width = tensor.dims()[1];
        if on_host(&tensor.device()) {
            Self::Host(HostRows { data: read(tensor), width })
        } else {
            Self::Device(tensor)
        }
    }

    /// New rows from host memory.
    pub(crate) fn new(values: Vec<f32>, width: usize, device: &Device) -> Self {
        if on_host(device) {
            Self::Host(HostRows::new(values, width))
        } else {
            let rows = values.len() / width;
            Self::Device(matrix(values, rows, device))
        }
    }

    pub(crate) fn into_tensor(self, device: &Device) -> Tensor<2> {
        match self {
            Self::Host(rows) => Tensor::from_data(rows.data, device),
            Self::Device(tensor) => tensor,
        }
    }

    /// Adds a tensor to it.
    pub(crate) fn add(self, other: Tensor<2>) -> Self {
        match self {
            Self::Host(mut rows) => {
                rows.add(&HostRows { data: read(other), width: rows.width });
                Self::Host(rows)
            }
            Self::Device(tensor) => Self::Device(tensor + other),
        }
    }

    /// The sum of both, which leaves this one as it is.
    pub(crate) fn plus(&self, other: Tensor<2>) -> Self {
        match self {
            Self::Host(rows) => {
                let mut sum = HostRows { data: read(other), width: rows.width };
                sum.add(rows);
                Self::Host(sum)
            }
            Self::Device(tensor) => Self::Device(tensor.clone() + other),
        }
    }

    /// Some of its rows.
    pub(crate) fn select(&self, rows: &[usize], device: &Device) -> Tensor<2> {
        match self {
            Self::Host(host) => {
                let picked = rows.iter().flat_map(|row| &host.values()[row * host.width..(row + 1) * host.width]);
                matrix(picked.copied().collect(), rows.len(), device)
            }
            Self::Device(tensor) => {
                let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
                tensor.clone().select(0, Tensor::from_data(rows.as_slice(), device))
            }
        }
    }
}

/// Whether a device's tensors lie in host memory, where loops are faster than Burn's operations.
pub(crate) fn on_host(device: &Device) -> bool {
    #[cfg(test)]
    if AS_ON_A_DEVICE.get() {
        return false;
    }
    *device == Device::flex()
}

#[cfg(test)]
thread_local! {
    /// Makes this thread compute on the host as on a device with memory of its own, to compare both.
    static AS_ON_A_DEVICE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

#[cfg(test)]
pub(crate) fn compute_as_on_a_device(yes: bool) {
    AS_ON_A_DEVICE.set(yes);
}

/// x W in the precision of the weights; the result is in 32 bits.
pub(crate) fn product(x: Tensor<2>, weights: &Matrix) -> Tensor<2> {
    wide(weights.apply(x))
}

/// x W^T for the W of [`product`] as a tensor, which is not copied.
pub(crate) fn product_back(x: Tensor<2>, weights: Tensor<2>) -> Tensor<2> {
    let [rows, inputs] = x.dims();
    let outputs = weights.dims()[0];
    let matmul = |x: Tensor<2>| match weights.dtype() {
        DType::F32 => x.matmul(weights.clone().transpose()),
        narrow => wide(x.cast(narrow).matmul(weights.clone().transpose())),
    };
    if rows > 1 && rows * outputs > SMALL_PRODUCT {
        return matmul(x);
    }
    // One row, or few of a narrow product, would take another kernel on the CPU, with another order of summation.
    let idle = Tensor::zeros([SMALL_PRODUCT / outputs + 1, inputs], &x.device());
    matmul(Tensor::cat(vec![x, idle], 0)).slice([0..rows, 0..outputs])
}

fn wide(x: Tensor<2>) -> Tensor<2> {
    if x.dtype() == DType::F32 { x } else { x.cast(DType::F32) }
}

/// x W for a W of few columns, whose rows follow one another. Summed in parts, because the CPU's kernel sums more than
/// [`PART`] terms in an order that depends on the number of rows when there are few columns.
pub(crate) fn narrow_product(x: Tensor<2>, weights: Tensor<2>) -> Tensor<2> {
    let ([_, inputs], outputs) = (x.dims(), weights.dims()[1]);
    of_two_rows(x, |x| {
        let rows = x.dims()[0];
        let parts = (0..inputs).step_by(PART).map(|first| {
            let part = first..inputs.min(first + PART);
            x.clone().slice([0..rows, part.clone()]).matmul(weights.clone().slice([part, 0..outputs]))
        });
        parts.reduce(|sum, part| sum + part).expect("a product has inputs")
    })
}

/// x W for a W of few rows.
pub(crate) fn short_product(x: Tensor<2>, weights: Tensor<2>) -> Tensor<2> {
    of_two_rows(x, |x| x.matmul(weights))
}

/// A product with at least two rows: one alone would take another kernel on the CPU, with another order of summation.
fn of_two_rows(x: Tensor<2>, product: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
    if x.dims()[0] > 1 {
        return product(x);
    }
    let twice = product(Tensor::cat(vec![x.clone(), x], 0));
    let outputs = twice.dims()[1];
    twice.slice([0..1, 0..outputs])
}

/// x / sqrt(mean(x^2) + epsilon) * w.
pub(crate) fn rms_norm(x: &Rows, weight: &[f32], epsilon: f32) -> Rows {
    match x {
        Rows::Host(x) => {
            let mut out = vec![0.0; x.values().len()];
            let parts = out.par_chunks_mut(TASK_ROWS * x.width).zip(x.parts());
            parts.for_each(|(out, x)| vectorized(Norm { x, out, weight, epsilon }));
            Rows::Host(HostRows::new(out, x.width))
        }
        Rows::Device(x) => {
            let weight = vector(weight, &x.device());
            let scale = (x.clone() * x.clone()).mean_dim(1).add_scalar(epsilon).sqrt().recip();
            Rows::Device(x.clone() * scale * weight)
        }
    }
}

/// Adds to `dx` the gradient of [`rms_norm`]: with r = 1 / sqrt(mean(x^2) + epsilon),
/// r w dn - x r^3 mean(x w dn).
pub(crate) fn rms_norm_backward(x: &Rows, weight: &[f32], epsilon: f32, gradient: Tensor<2>, dx: Rows) -> Rows {
    match (x, dx) {
        (Rows::Host(x), Rows::Host(mut dx)) => {
            let gradient = HostRows { data: read(gradient), width: x.width };
            dx.parts_mut().zip(x.parts().zip(gradient.parts())).for_each(|(dx, (x, gradient))| {
                vectorized(NormBackward { x, gradient, dx, weight, epsilon });
            });
            Rows::Host(dx)
        }
        (x, dx) => {
            let device = gradient.device();
            let (x, dx) = (x.clone().into_tensor(&device), dx.into_tensor(&device));
            let gradient = gradient * vector(weight, &device);
            let scale = (x.clone() * x.clone()).mean_dim(1).add_scalar(epsilon).sqrt().recip();
            let inner = (x.clone() * gradient.clone()).mean_dim(1);
            let cubed = scale.clone() * scale.clone() * scale.clone();
            Rows::Device(dx + gradient * scale - x * (inner * cubed))
        }
    }
}

fn vector(values: &[f32], device: &Device) -> Tensor<2> {
    matrix(values.to_vec(), 1, device)
}

/// silu(gate) * up, from \[rows, 2 width\] with the gates in the first half of each row to \[rows, width\].
pub(crate) fn swiglu(gate_up: &Rows) -> Rows {
    match gate_up {
        Rows::Host(gate_up) => {
            let width = gate_up.width / 2;
            let mut out = vec![0.0; gate_up.values().len() / 2];
            let parts = out.par_chunks_mut(TASK_ROWS * width).zip(gate_up.parts());
            parts.for_each(|(out, gate_up)| vectorized(SwiGlu { gate_up, out, width }));
            Rows::Host(HostRows::new(out, width))
        }
        Rows::Device(tensor) => {
            let [rows, both] = tensor.dims();
            let gate = tensor.clone().slice([0..rows, 0..both / 2]);
            let up = tensor.clone().slice([0..rows, both / 2..both]);
            Rows::Device(activation::silu(gate) * up)
        }
    }
}

/// The gradient of [`swiglu`], in place of its input.
pub(crate) fn swiglu_backward(gate_up: Rows, gradient: Tensor<2>) -> Rows {
    match gate_up {
        Rows::Host(mut rows) => {
            let width = rows.width / 2;
            let gradient = HostRows { data: read(gradient), width };
            let parts = rows.parts_mut().zip(gradient.parts());
            parts.for_each(|(gate_up, gradient)| vectorized(SwiGluBackward { gate_up, gradient, width }));
            Rows::Host(rows)
        }
        Rows::Device(tensor) => {
            let [rows, both] = tensor.dims();
            let gate = tensor.clone().slice([0..rows, 0..both / 2]);
            let up = tensor.slice([0..rows, both / 2..both]);
            let sigmoid = activation::sigmoid(gate.clone());
            let slope = sigmoid.clone() * (gate.clone() * (-sigmoid.clone() + 1.0) + 1.0);
            Rows::Device(Tensor::cat(vec![gradient.clone() * up * slope, gradient * gate * sigmoid], 1))
        }
    }
}

struct NormBackward<'a> {
    x: &'a [f32],
    gradient: &'a [f32],
    dx: &'a mut [f32],
    weight: &'a [f32],
    epsilon: f32,
}

impl pulp::NullaryFnOnce for NormBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.weight.len();
        let rows = self.x.chunks_exact(width).zip(self.gradient.chunks_exact(width));
        let mut weighted = vec![0.0; width];
        for (dx, (x, gradient)) in self.dx.chunks_exact_mut(width).zip(rows) {
            for ((out, &g), &w) in weighted.iter_mut().zip(gradient).zip(self.weight) {
                *out = g * w;
            }
            let scale = inverse_root(x, self.epsilon);
            let inner = dot(x, &weighted) / width as f32 * scale * scale * scale;
            for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(&weighted) {
                *dx += g * scale - x * inner;
            }
        }
    }
}

struct SwiGluBackward<'a> {
    gate_up: &'a mut [f32],
    gradient: &'a [f32],
    width: usize,
}

impl pulp::NullaryFnOnce for SwiGluBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let rows = self.gate_up.chunks_exact_mut(2 * self.width);
        for (row, gradient) in rows.zip(self.gradient.chunks_exact(self.width)) {
            let (gate, up) = row.split_at_mut(self.width);
            for ((gate, up), &g) in gate.iter_mut().zip(up).zip(gradient) {
                let sigmoid = 1.0 / (1.0 + exp(-*gate));
                let silu = *gate * sigmoid;
                let d_gate = g * *up * (sigmoid + silu * (1.0 - sigmoid));
                *up = g * silu;
                *gate = d_gate;
            }
        }
    }
}

/// The sum of a row, always in the same order.
#[inline(always)]
pub(crate) fn sum(row: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let chunks = row.chunks_exact(LANES);
    for (sum, &x) in sums.iter_mut().zip(chunks.remainder()) {
        *sum = x;
    }
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    crate::host::lane_sum(sums)
}

/// The largest value of a row that is not empty.
#[inline(always)]
pub(crate) fn largest(row: &[f32]) -> f32 {
    let mut lanes = [row[0]; LANES];
    for chunk in row.chunks(LANES) {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    crate::host::lane_max(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that need all their bits.
    fn some(count: usize, seed: u32) -> Vec<f32> {
        (0..count as u32)
            .map(|i| (((i.wrapping_mul(2_654_435_761) ^ seed) >> 8) as f32 / 8_388_608.0 - 1.0) / 3.0)
            .collect()
    }

    #[test]
    fn a_row_of_a_product_does_not_depend_on_the_others() {
        let device = Device::flex();
        type Product = fn(Tensor<2>, Tensor<2>) -> Tensor<2>;
        let check = |name: &str, product: Product, shapes: &[(usize, usize)]| {
            for &(inputs, outputs) in shapes {
                let x = some(200 * inputs, 3);
                let of = |rows: usize| {
                    let x = matrix(x[..rows * inputs].to_vec(), rows, &device);
                    let weights = some(inputs * outputs, 7);
                    let weights = matrix(weights, if name == "back" { outputs } else { inputs }, &device);
                    floats(&read(product(x, weights)))[..rows.min(2) * outputs].to_vec()
                };
                let all = of(200);
                for rows in [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33, 64, 65, 100] {
                    let got = of(rows);
                    assert!(got == all[..got.len()], "{rows} rows, {inputs} to {outputs}, {name}");
                }
            }
        };
        let wide = [(32, 32), (64, 128), (576, 960), (1536, 576), (5000, 128)];
        let (down, up) = ([(576, 8), (1536, 16), (576, 1)], [(8, 576), (3, 64), (1, 576), (2, 64), (24, 1152)]);
        check("back", product_back, &[&wide[..], &up].concat());
        check("narrow", narrow_product, &[&wide[..], &down].concat());
        check("short", short_product, &up);
    }
}
