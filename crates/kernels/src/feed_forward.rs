//! SwiGLU.

use cubecl::prelude::*;

/// `out = silu(gate) * up`; one unit for 4 outputs.
///
/// `gate_up` is \[rows, 2, 4 vectors\], gates first, `out` \[rows, 4 vectors\]; `count` is rows times `vectors`.
#[cube(launch_unchecked)]
pub fn swiglu<F: Float>(
    gate_up: &[Vector<F, Const<4>>],
    out: &mut [Vector<F, Const<4>>],
    count: u32,
    #[comptime] vectors: usize,
    #[define(F)] _activations: ElemType,
) {
    if ABSOLUTE_POS < count as usize {
        let at = ABSOLUTE_POS / vectors * 2 * vectors + ABSOLUTE_POS % vectors;
        let gate = Vector::<f32, Const<4>>::cast_from(gate_up[at]);
        let up = Vector::<f32, Const<4>>::cast_from(gate_up[at + vectors]);
        let one = Vector::<f32, Const<4>>::new(1.0f32);
        out[ABSOLUTE_POS] = Vector::cast_from(gate / (one + Vector::exp(-gate)) * up);
    }
}
