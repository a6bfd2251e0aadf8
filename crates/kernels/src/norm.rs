//! Residual stream: look-up of rows, addition and RMSNorm.

use crate::reduce::cube_sum;
use cubecl::prelude::*;

/// `out[r] = table[ids[r]]`, converted; one cube a row.
///
/// `table` is \[any, 4 vectors\], `out` \[ids, 4 vectors\].
#[cube(launch_unchecked)]
pub fn gather_rows<I: Float, O: Float>(
    table: &[Vector<I, Const<4>>],
    ids: &[u32],
    out: &mut [Vector<O, Const<4>>],
    #[comptime] vectors: usize,
    #[define(I, O)] _types: [ElemType; 2],
) {
    let row = CUBE_POS_X as usize;
    let from = ids[row] as usize * vectors;
    let mut i = UNIT_POS as usize;
    while i < vectors {
        out[row * vectors + i] = Vector::cast_from(table[from + i]);
        i += CUBE_DIM as usize;
    }
}

/// `x += delta` and `out = x / sqrt(mean(x^2) + epsilon) * weight`; one cube of `planes` planes a row.
///
/// `x`, `delta` and `out` are \[rows, 4 vectors\], `weight` is \[4 vectors\]. Without `add`, `delta` is not read. The
/// stream `x` is kept in f32: it collects two additions a layer, which bf16 would each round to 8 bits.
#[cube(launch_unchecked)]
pub fn add_rms_norm<F: Float>(
    x: &mut [Vector<f32, Const<4>>],
    delta: &[Vector<F, Const<4>>],
    weight: &[Vector<f32, Const<4>>],
    out: &mut [Vector<F, Const<4>>],
    epsilon: f32,
    #[comptime] vectors: usize,
    #[comptime] add: bool,
    #[comptime] planes: u32,
    #[define(F)] _activations: ElemType,
) {
    let start = CUBE_POS_X as usize * vectors;
    let mut squares = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let mut v = x[start + i];
        if comptime!(add) {
            v += Vector::<f32, Const<4>>::cast_from(delta[start + i]);
            x[start + i] = v;
        }
        #[unroll]
        for c in 0..4usize {
            squares = fma(v.extract(c), v.extract(c), squares);
        }
        i += CUBE_DIM as usize;
    }
    let mean = cube_sum(squares, planes) / (vectors * 4) as f32;
    let scale = 1.0f32 / f32::sqrt(mean + epsilon);
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let v = x[start + i] * Vector::<f32, Const<4>>::new(scale) * weight[i];
        out[start + i] = Vector::cast_from(v);
        i += CUBE_DIM as usize;
    }
}
