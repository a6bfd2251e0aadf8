//! Products in 32 bits.
//!
//! On tensor cores, where a library's product of 32-bit floats may run, they have 11 bits of precision. This one has all:
//! every output is one chain of fused multiply-adds in the order of the inputs, which is what the CPU computes, to the
//! bit. It is for comparing devices, not for speed.

use cubecl::prelude::*;

/// Rows, and outputs, of a cube.
pub const SIDE: usize = 64;
/// Units of a cube: each has 4 x 4 outputs.
pub const UNITS: usize = SIDE * SIDE / 16;
/// Inputs that are read at a time.
const DEPTH: usize = 16;

/// `out = x w`: `x` \[rows, inputs\], `w` \[inputs, outputs\], `out` \[rows, outputs\]; cubes (outputs / [`SIDE`], rows /
/// [`SIDE`]), both rounded up, of [`UNITS`] units.
#[cube(launch_unchecked)]
pub fn product(x: &[f32], w: &[f32], out: &mut [f32], rows: u32, outputs: u32, #[comptime] inputs: usize) {
    let rows = rows as usize;
    let outputs = outputs as usize;
    let unit = UNIT_POS as usize;
    let first_row = CUBE_POS_Y as usize * SIDE;
    let first_output = CUBE_POS_X as usize * SIDE;
    let mut left = Shared::<[f32]>::new_slice(DEPTH * SIDE);
    let mut right = Shared::<[f32]>::new_slice(DEPTH * SIDE);
    let mut sums = Array::<f32>::new(16usize);
    #[unroll]
    for s in 0..16usize {
        sums[s] = 0.0f32;
    }
    let mut first = 0usize;
    while first < inputs {
        sync_cube();
        let mut i = unit;
        while i < DEPTH * SIDE {
            // Inputs side by side in `x`, outputs in `w`. What is beyond adds 0.
            let (row, input) = (first_row + i / DEPTH, first + i % DEPTH);
            let mut value = 0.0f32;
            if row < rows && input < inputs {
                value = x[row * inputs + input];
            }
            left[i % DEPTH * SIDE + i / DEPTH] = value;
            let (input, output) = (first + i / SIDE, first_output + i % SIDE);
            let mut value = 0.0f32;
            if input < inputs && output < outputs {
                value = w[input * outputs + output];
            }
            right[i] = value;
            i += UNITS;
        }
        sync_cube();
        for d in 0..DEPTH {
            #[unroll]
            for r in 0..4usize {
                let a = left[d * SIDE + unit / 16 * 4 + r];
                #[unroll]
                for c in 0..4usize {
                    let b = right[d * SIDE + unit % 16 + 16 * c];
                    sums[4 * r + c] = fma(a, b, sums[4 * r + c]);
                }
            }
        }
        first += DEPTH;
    }
    #[unroll]
    for r in 0..4usize {
        let row = first_row + unit / 16 * 4 + r;
        #[unroll]
        for c in 0..4usize {
            let output = first_output + unit % 16 + 16 * c;
            if row < rows && output < outputs {
                out[row * outputs + output] = sums[4 * r + c];
            }
        }
    }
}
