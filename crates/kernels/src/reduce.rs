//! Sums and maxima over a cube, always in the same order.

use crate::PLANE;
use cubecl::prelude::*;

/// Sum over all units of the cube; every unit gets it.
#[cube]
pub(crate) fn cube_sum(value: f32, #[comptime] planes: u32) -> f32 {
    let mut parts = Shared::<[f32]>::new_slice(PLANE as usize);
    let part = plane_sum(value);
    if UNIT_POS_PLANE == 0 {
        parts[PLANE_POS as usize] = part;
    }
    sync_cube();
    let mut total = 0.0f32;
    for plane in 0..planes {
        total += parts[plane as usize];
    }
    sync_cube();
    total
}

/// As [`cube_sum`], of integers: exact in any order.
#[cube]
pub(crate) fn cube_sum_u64(value: u64, #[comptime] planes: u32) -> u64 {
    let mut parts = Shared::<[u64]>::new_slice(PLANE as usize);
    let part = plane_sum(value);
    if UNIT_POS_PLANE == 0 {
        parts[PLANE_POS as usize] = part;
    }
    sync_cube();
    let mut total = 0u64;
    for plane in 0..planes {
        total += parts[plane as usize];
    }
    sync_cube();
    total
}
