//! Draws from a seeded generator: indices, normal values, permutations.
//!
//! Written out here, and not taken from a distribution library, because a library may change its algorithm between
//! releases, and every draw is part of a stage's output. Generators come from [`rallrec_core::rng::row_rng`]; this
//! module never makes one.

use rand_chacha::{ChaCha8Rng, rand_core::Rng};

/// A whole number below `n`, all equally likely (bias below `n` / 2^64).
///
/// # Panics
/// When `n` is 0: there is nothing to draw from.
pub fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    assert!(n > 0, "drawing from nothing");
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// A number in [0, 1), with 24 random bits.
pub fn unit(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32
}

/// Shuffles in place; all orders equally likely (Fisher and Yates).
pub fn shuffle<T>(rng: &mut ChaCha8Rng, values: &mut [T]) {
    for last in (1..values.len()).rev() {
        values.swap(last, below(rng, last + 1));
    }
}

/// Appends `count` normal values with mean 0 and standard deviation `std` (Box and Muller).
pub fn normal(rng: &mut ChaCha8Rng, std: f64, count: usize, out: &mut Vec<f32>) {
    let end = out.len() + count;
    while out.len() < end {
        // 53 random bits each; the radius' argument must not be 0.
        let a = ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let b = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let radius = std * (-2.0 * a.ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * b).sin_cos();
        out.push((radius * cos) as f32);
        if out.len() < end {
            out.push((radius * sin) as f32);
        }
    }
}

/// Appends `count` values uniform in [-`bound`, `bound`).
pub fn symmetric(rng: &mut ChaCha8Rng, bound: f32, count: usize, out: &mut Vec<f32>) {
    out.extend((0..count).map(|_| (2.0 * unit(rng) - 1.0) * bound));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::rng::row_rng;

    #[test]
    fn draws_have_their_moments() {
        let mut rng = row_rng(7, "draw", 0, 0);
        let mut values = Vec::new();
        normal(&mut rng, 0.5, 100_001, &mut values);
        assert_eq!(values.len(), 100_001);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.01 && (variance - 0.25).abs() < 0.01, "mean {mean}, variance {variance}");

        let mut counts = [0u32; 5];
        (0..50_000).for_each(|_| counts[below(&mut rng, 5)] += 1);
        assert!(counts.iter().all(|&n| n.abs_diff(10_000) < 500), "{counts:?}");
    }

    #[test]
    fn shuffling_keeps_every_value() {
        let mut values: Vec<u32> = (0..1000).collect();
        shuffle(&mut row_rng(7, "draw", 1, 0), &mut values);
        assert_ne!(values, (0..1000).collect::<Vec<_>>());
        values.sort_unstable();
        assert_eq!(values, (0..1000).collect::<Vec<_>>());
    }
}
