//! Draws from a seeded generator. Written out, because a library may change its algorithm between releases, and every
//! draw is part of an adapter. Generators come from `rallrec_core::rng::row_rng`.

use rand_chacha::{ChaCha8Rng, rand_core::Rng as _};

/// A number uniform in [-`bound`, `bound`), with 24 random bits.
pub(crate) fn symmetric(rng: &mut ChaCha8Rng, bound: f32) -> f32 {
    let unit = (rng.next_u32() >> 8) as f32 / (1_u32 << 24) as f32;
    (2.0 * unit - 1.0) * bound
}

/// The numbers below `count` in a random order, all orders equally likely (Fisher and Yates).
pub(crate) fn permutation(rng: &mut ChaCha8Rng, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        let other = ((u128::from(rng.next_u64()) * (last + 1) as u128) >> 64) as usize;
        order.swap(last, other);
    }
    order
}

/// Sets each value to 0 with the probability `dropout` (in steps of 2^-16), and divides the others by 1 - dropout.
pub(crate) fn drop_some(rng: &mut ChaCha8Rng, dropout: f64, values: &mut [f32]) {
    let dropped = (dropout * 65536.0).round() as u32;
    let scale = (1.0 / (1.0 - dropout)) as f32;
    for pair in values.chunks_mut(2) {
        let bits = rng.next_u32();
        for (value, bits) in pair.iter_mut().zip([bits & 0xFFFF, bits >> 16]) {
            *value *= if bits < dropped { 0.0 } else { scale };
        }
    }
}
