//! Weights of 8 bits: value = scale * weight + minimum, one scale (and one minimum, if any) for a group of consecutive
//! inputs of an output.
//!
//! Few rows are multiplied with the bytes themselves ([`matrix_vector_int8`]), which is what decoding few sequences
//! waits for. For many rows [`widen_int8`] writes a matrix out for a product on tensor cores. Both round a value to the
//! type of the activations, so that how many rows there are decides about the order of sums and about nothing else.

use crate::PLANE;
use cubecl::prelude::*;

/// Weights that a unit reads at once.
pub const LOAD: usize = 16;
/// Outputs, and inputs, that a cube of [`widen_int8`] writes.
pub const WIDEN: usize = 64;
/// Units of a cube of [`widen_int8`].
pub const WIDEN_UNITS: usize = WIDEN * WIDEN / LOAD;

/// How a matrix of bytes lies.
///
/// Weights are \[outputs, inputs\], scales and minima \[outputs, inputs / group\].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Inputs; a multiple of `group`.
    pub inputs: usize,
    /// Inputs that share a scale and a minimum; a multiple of [`LOAD`].
    pub group: usize,
    /// Whether there are minima; without them their buffer is not read.
    pub minimum: bool,
}

/// What a cube of [`matrix_vector_int8`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Few {
    /// Rows of the activations.
    pub rows: usize,
    /// Outputs of a plane: what it reads of the activations serves them all.
    pub outputs: usize,
    /// Planes.
    pub planes: usize,
}

/// Weights `16 at ..` as they lie, in the type of the activations.
#[cube]
fn load<F: Float>(
    weights: &[Vector<i8, Const<16>>],
    scales: &[f32],
    minima: &[f32],
    at: usize,
    #[comptime] layout: Layout,
) -> Array<f32> {
    let read = Vector::<f32, Const<16>>::cast_from(weights[at]);
    let group = at / comptime!(layout.group / LOAD);
    let scale = scales[group];
    let mut minimum = 0.0f32;
    if comptime!(layout.minimum) {
        minimum = minima[group];
    }
    let mut values = Array::<f32>::new(LOAD);
    #[unroll]
    for c in 0..LOAD {
        let value = fma(scale, read.extract(c), minimum);
        values[c] = f32::cast_from(F::cast_from(value));
    }
    values
}

/// `out[r, o] = sum over i of x[r, i] * value[o, i]`: cubes (outputs / (planes * outputs of a plane), rows / rows of a
/// cube), both rounded up.
///
/// `x` is \[rows, inputs\], `out` \[rows, outputs\]. A row's sums have one order, whatever the other rows.
#[cube(launch_unchecked)]
pub fn matrix_vector_int8<F: Float>(
    x: &[Vector<F, Const<4>>],
    weights: &[Vector<i8, Const<16>>],
    scales: &[f32],
    minima: &[f32],
    out: &mut [F],
    rows: u32,
    outputs: u32,
    #[comptime] layout: Layout,
    #[comptime] few: Few,
    #[define(F)] _activations: ElemType,
) {
    let loads = comptime!(layout.inputs / LOAD);
    let first = (CUBE_POS_X as usize * few.planes + PLANE_POS as usize) * few.outputs;
    let first_row = CUBE_POS_Y as usize * few.rows;
    let outputs = outputs as usize;
    let rows = rows as usize;
    if first < outputs {
        let mut sums = Array::<f32>::new(comptime!(few.rows * few.outputs));
        #[unroll]
        for s in 0..comptime!(few.rows * few.outputs) {
            sums[s] = 0.0f32;
        }
        let mut i = UNIT_POS_PLANE as usize;
        while i < loads {
            let mut values = Array::<f32>::new(comptime!(few.outputs * LOAD));
            #[unroll]
            for o in 0..few.outputs {
                // Beyond the last output the last is computed again, and not written.
                let output = least(first + o, outputs - 1);
                let read = load::<F>(weights, scales, minima, output * loads + i, layout);
                #[unroll]
                for c in 0..LOAD {
                    values[o * LOAD + c] = read[c];
                }
            }
            #[unroll]
            for r in 0..few.rows {
                let row = least(first_row + r, rows - 1);
                #[unroll]
                for part in 0..4usize {
                    let v = Vector::<f32, Const<4>>::cast_from(x[row * comptime!(layout.inputs / 4) + i * 4 + part]);
                    #[unroll]
                    for o in 0..few.outputs {
                        let mut sum = sums[r * few.outputs + o];
                        #[unroll]
                        for c in 0..4usize {
                            sum = fma(v.extract(c), values[o * LOAD + part * 4 + c], sum);
                        }
                        sums[r * few.outputs + o] = sum;
                    }
                }
            }
            i += PLANE as usize;
        }
        #[unroll]
        for r in 0..few.rows {
            #[unroll]
            for o in 0..few.outputs {
                let total = plane_sum(sums[r * few.outputs + o]);
                if UNIT_POS_PLANE == 0 && first_row + r < rows && first + o < outputs {
                    out[(first_row + r) * outputs + first + o] = F::cast_from(total);
                }
            }
        }
    }
}

#[cube]
fn least(a: usize, b: usize) -> usize {
    select(a < b, a, b)
}

/// Values by input, as products want them: `out` is \[inputs, outputs\]; cubes (outputs / [`WIDEN`], inputs / [`WIDEN`]),
/// both rounded up, of [`WIDEN_UNITS`] units.
#[cube(launch_unchecked)]
pub fn widen_int8<F: Float>(
    weights: &[Vector<i8, Const<16>>],
    scales: &[f32],
    minima: &[f32],
    out: &mut [F],
    outputs: u32,
    #[comptime] layout: Layout,
    #[define(F)] _activations: ElemType,
) {
    // A column of padding: units that write one after another do not meet in a bank.
    let row = comptime!(WIDEN + 1);
    let loads = comptime!(layout.inputs / LOAD);
    let outputs = outputs as usize;
    let unit = UNIT_POS as usize;
    let mut tile = Shared::<[f32]>::new_slice(WIDEN * row);
    let per = comptime!(WIDEN / LOAD);
    let output = CUBE_POS_X as usize * WIDEN + unit / per;
    let part = CUBE_POS_Y as usize * per + unit % per;
    if output < outputs && part < loads {
        let values = load::<F>(weights, scales, minima, output * loads + part, layout);
        #[unroll]
        for c in 0..LOAD {
            tile[(unit % per * LOAD + c) * row + unit / per] = values[c];
        }
    }
    sync_cube();
    let output = CUBE_POS_X as usize * WIDEN + unit % WIDEN;
    let mut i = unit / WIDEN;
    while i < WIDEN {
        let input = CUBE_POS_Y as usize * WIDEN + i;
        if output < outputs && input < layout.inputs {
            out[input * outputs + output] = F::cast_from(tile[i * row + unit % WIDEN]);
        }
        i += comptime!(WIDEN_UNITS / WIDEN);
    }
}

/// `out[r]` = the values of output `ids[r]`, in f32: of a matrix whose outputs are tokens, their embeddings. One cube a
/// row; `out` is \[ids, inputs\].
#[cube(launch_unchecked)]
pub fn gather_rows_int8(
    weights: &[Vector<i8, Const<16>>],
    scales: &[f32],
    minima: &[f32],
    ids: &[u32],
    out: &mut [Vector<f32, Const<4>>],
    #[comptime] layout: Layout,
) {
    let loads = comptime!(layout.inputs / LOAD);
    let row = CUBE_POS_X as usize;
    let from = ids[row] as usize * loads;
    let mut i = UNIT_POS as usize;
    while i < loads {
        let values = load::<f32>(weights, scales, minima, from + i, layout);
        #[unroll]
        for part in 0..4usize {
            let mut v = Vector::<f32, Const<4>>::new(0.0f32);
            #[unroll]
            for c in 0..4usize {
                v.insert(c, values[part * 4 + c]);
            }
            out[(row * loads + i) * 4 + part] = v;
        }
        i += CUBE_DIM as usize;
    }
}
