//! Products with weights of 8 bits: value = scale * weight, one scale for `block` consecutive inputs of an output.

use crate::PLANE;
use cubecl::prelude::*;

/// Weights that a unit reads at once.
pub const LOAD: usize = 16;

/// `out[r, o] = sum over i of x[r, i] * scale[o, i / block] * weights[o, i]`; a plane an output, for up to a few rows.
///
/// `x` is \[rows, inputs\], `weights` \[outputs, inputs\], `scales` \[outputs, inputs / block\], `out` \[rows, outputs\]; inputs
/// and `block` are multiples of [`LOAD`]. Meant for decoding few sequences: the weights are read once for all rows.
#[cube(launch_unchecked)]
pub fn matrix_vector_int8<F: Float>(
    x: &[Vector<F, Const<4>>],
    weights: &[Vector<i8, Const<16>>],
    scales: &[f32],
    out: &mut [F],
    outputs: u32,
    #[comptime] inputs: usize,
    #[comptime] block: usize,
    #[comptime] rows: usize,
    #[comptime] planes: u32,
    #[define(F)] _activations: ElemType,
) {
    let output = (CUBE_POS_X * planes + PLANE_POS) as usize;
    let loads = comptime!(inputs / LOAD);
    if output < outputs as usize {
        let mut sums = Array::<f32>::new(rows);
        #[unroll]
        for r in 0..rows {
            sums[r] = 0.0f32;
        }
        let mut i = UNIT_POS_PLANE as usize;
        while i < loads {
            let w = Vector::<f32, Const<16>>::cast_from(weights[output * loads + i]);
            let scale = scales[output * comptime!(inputs / block) + i / comptime!(block / LOAD)];
            #[unroll]
            for r in 0..rows {
                let mut sum = 0.0f32;
                #[unroll]
                for part in 0..4usize {
                    let v = Vector::<f32, Const<4>>::cast_from(x[r * comptime!(inputs / 4) + i * 4 + part]);
                    #[unroll]
                    for c in 0..4usize {
                        sum = fma(v.extract(c), w.extract(part * 4 + c), sum);
                    }
                }
                sums[r] = fma(scale, sum, sums[r]);
            }
            i += PLANE as usize;
        }
        #[unroll]
        for r in 0..rows {
            let total = plane_sum(sums[r]);
            if UNIT_POS_PLANE == 0 {
                out[r * outputs as usize + output] = F::cast_from(total);
            }
        }
    }
}

/// `out[o, i] = scale[o, i / block] * weights[o, i]`, for products of many rows; one unit for [`LOAD`] values.
///
/// `count` is outputs times inputs divided by [`LOAD`]; the rest is as in [`matrix_vector_int8`].
#[cube(launch_unchecked)]
pub fn dequantize_int8<F: Float>(
    weights: &[Vector<i8, Const<16>>],
    scales: &[f32],
    out: &mut [Vector<F, Const<4>>],
    count: u32,
    #[comptime] block: usize,
    #[define(F)] _activations: ElemType,
) {
    if ABSOLUTE_POS < count as usize {
        let w = Vector::<f32, Const<16>>::cast_from(weights[ABSOLUTE_POS]);
        let scale = scales[ABSOLUTE_POS / comptime!(block / LOAD)];
        #[unroll]
        for part in 0..4usize {
            let mut v = Vector::<f32, Const<4>>::new(0.0f32);
            #[unroll]
            for c in 0..4usize {
                v.insert(c, scale * w.extract(part * 4 + c));
            }
            out[ABSOLUTE_POS * 4 + part] = Vector::cast_from(v);
        }
    }
}
