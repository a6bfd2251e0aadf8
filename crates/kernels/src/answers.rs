//! Logits of a few tokens.

use crate::PLANE;
use cubecl::prelude::*;

/// `out[r, a] = states[r] . columns[a]`; one cube a state, a plane takes one answer after another.
///
/// `states` is \[rows, 4 vectors\], `columns` \[answers, 4 vectors\], `out` \[rows, answers\].
#[cube(launch_unchecked)]
pub fn answer_logits<F: Float>(
    states: &[Vector<F, Const<4>>],
    columns: &[Vector<F, Const<4>>],
    out: &mut [f32],
    answers: u32,
    #[comptime] vectors: usize,
    #[comptime] planes: u32,
    #[define(F)] _activations: ElemType,
) {
    let row = CUBE_POS_X as usize;
    let mut answer = PLANE_POS;
    while answer < answers {
        let mut sum = 0.0f32;
        let mut i = UNIT_POS_PLANE as usize;
        while i < vectors {
            let x = Vector::<f32, Const<4>>::cast_from(states[row * vectors + i]);
            let w = Vector::<f32, Const<4>>::cast_from(columns[answer as usize * vectors + i]);
            #[unroll]
            for c in 0..4usize {
                sum = fma(x.extract(c), w.extract(c), sum);
            }
            i += PLANE as usize;
        }
        let total = plane_sum(sum);
        if UNIT_POS_PLANE == 0 {
            out[row * answers as usize + answer as usize] = total;
        }
        answer += planes;
    }
}
