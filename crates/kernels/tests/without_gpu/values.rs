//! Buffers of numbers, and how far two lists of them differ.

use cubecl::ir::{ElemType, FloatKind};

/// Type of activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Float {
    F32,
    Bf16,
    /// Compiled, not run: the host's stand-in for CUDA has no such type.
    F16,
}

impl Float {
    pub(crate) const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    pub(crate) fn element(self) -> ElemType {
        ElemType::Float(match self {
            Self::F32 => FloatKind::F32,
            Self::Bf16 => FloatKind::BF16,
            Self::F16 => FloatKind::F16,
        })
    }

    /// The buffer of some values, rounded to the type.
    pub(crate) fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        }
    }

    pub(crate) fn values(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Self::Bf16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Self::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        }
    }

    pub(crate) fn round(self, values: &[f32]) -> Vec<f32> {
        self.values(&self.bytes(values))
    }

    /// Largest error allowed, relative to the largest value: of bf16 half a unit of its 8 bits, and a little for sums
    /// that fall on another side.
    pub(crate) fn tolerance(self) -> f32 {
        match self {
            Self::F32 => 1e-5,
            Self::Bf16 => 1.0 / 256.0,
            Self::F16 => 1.0 / 2048.0,
        }
    }
}

pub(crate) fn u32_bytes(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub(crate) fn u32_values(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Numbers between -1 and 1 that look random, from a seed.
pub(crate) fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) ^ 0x85eb_ca6b;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Fails when a value is further than `tolerance` times the largest wanted value from what is wanted.
pub(crate) fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
    let mut worst = (0.0_f32, 0);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let difference = (got - want).abs() / size;
        assert!(!difference.is_nan(), "{what}: value {i} is {got}, wanted {want}");
        if difference > worst.0 {
            worst = (difference, i);
        }
    }
    let (difference, i) = worst;
    assert!(difference <= tolerance, "{what}: value {i} is {}, wanted {}: {difference} of {size}", got[i], want[i]);
    println!("{what}: largest difference {difference:.2e} of {size:.3}");
}
