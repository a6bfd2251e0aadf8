//! How weights are stored: floats, and GGML's block formats of small integers with scales.
//!
//! Every block format is values `scale * q + minimum` in groups; [`unpack`] gives the three apart and [`dequantize`]
//! multiplies them out. Both compute in the order and precision of the reference (`gguf` on PyPI), so that values are
//! equal to the bit: no fused multiply-add. Formats that no file of a supported model uses are refused by their reader.

use half::{bf16, f16};

/// Values in a block of the plain quantized formats.
const BLOCK: usize = 32;
/// Values in a block of the K formats.
const SUPER_BLOCK: usize = 256;
/// Groups in a block at most.
pub(crate) const MAX_GROUPS: usize = SUPER_BLOCK / 16;
/// Adding it changes nothing, not even the sign of a zero: the minimum of formats that have none.
const NOTHING: f32 = -0.0;

/// How a tensor's values are stored. `q` are the stored integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 16-bit floats with the exponents of 32-bit ones.
    BF16,
    /// Blocks of 32: f16 scale `d`, 16 bytes of two 4-bit `q`; the value is `d (q - 8)`.
    Q4_0,
    /// Blocks of 32: f16 scale `d`, f16 minimum `m`, 16 bytes of two 4-bit `q`; the value is `d q + m`.
    Q4_1,
    /// As `Q4_0`, with a fifth bit of each `q` in 4 bytes before them; the value is `d (q - 16)`.
    Q5_0,
    /// As `Q4_1`, with a fifth bit of each `q` in 4 bytes before them; the value is `d q + m`.
    Q5_1,
    /// Blocks of 32: f16 scale `d`, 32 signed bytes `q`; the value is `d q`.
    Q8_0,
    /// Blocks of 256, groups of 16 with 4-bit scale `s` and minimum `m`; the value is `d s q - e m`, `q` of 2 bits.
    Q2K,
    /// Blocks of 256, groups of 16 with 6-bit scale `s`; the value is `d (s - 32) (q - 4)`, `q` of 3 bits.
    Q3K,
    /// Blocks of 256, groups of 32 with 6-bit scale `s` and minimum `m`; the value is `d s q - e m`, `q` of 4 bits.
    Q4K,
    /// As `Q4K` with `q` of 5 bits.
    Q5K,
    /// Blocks of 256, groups of 16 with signed 8-bit scale `s`; the value is `d s (q - 32)`, `q` of 6 bits.
    Q6K,
}

impl Format {
    /// Format of a GGML type number, `None` when it is not supported.
    pub fn of_ggml_type(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// Values in a block, and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (BLOCK, 2 + BLOCK / 2),
            Self::Q4_1 => (BLOCK, 4 + BLOCK / 2),
            Self::Q5_0 => (BLOCK, 2 + 4 + BLOCK / 2),
            Self::Q5_1 => (BLOCK, 4 + 4 + BLOCK / 2),
            Self::Q8_0 => (BLOCK, 2 + BLOCK),
            Self::Q2K => (SUPER_BLOCK, 16 + 64 + 4),
            Self::Q3K => (SUPER_BLOCK, 32 + 64 + 12 + 2),
            Self::Q4K => (SUPER_BLOCK, 4 + 12 + 128),
            Self::Q5K => (SUPER_BLOCK, 4 + 12 + 32 + 128),
            Self::Q6K => (SUPER_BLOCK, 128 + 64 + 16 + 2),
        }
    }

    /// Consecutive values of a block that have one scale and one minimum; 1 for formats that are not of blocks.
    pub fn group(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q2K | Self::Q3K | Self::Q6K => 16,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Q4K | Self::Q5K => 32,
        }
    }

    /// Whether every value in `bytes`, whole blocks of this format, is a finite number. Reads only the scales of
    /// blocks: they are 16-bit floats, whose products with stored integers cannot overflow.
    pub(crate) fn is_finite(self, bytes: &[u8]) -> bool {
        let halves = |at: &'static [usize]| {
            let finite = |block: &[u8]| at.iter().all(|&at| block[at + 1] & 0x7C != 0x7C);
            bytes.chunks_exact(self.block().1).all(finite)
        };
        match self {
            Self::F32 => bytes.chunks_exact(4).all(|v| v[3] & 0x7F != 0x7F || v[2] & 0x80 == 0),
            Self::BF16 => bytes.chunks_exact(2).all(|v| v[1] & 0x7F != 0x7F || v[0] & 0x80 == 0),
            Self::F16 | Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => halves(&[0]),
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => halves(&[0, 2]),
            Self::Q2K => halves(&[80, 82]),
            Self::Q3K => halves(&[108]),
            Self::Q6K => halves(&[208]),
        }
    }
}

/// Fills `values` from `bytes`. Both hold the same number of whole blocks of `format`; bytes beyond are not read.
pub fn dequantize(format: Format, bytes: &[u8], values: &mut [f32]) {
    let (block_values, block_bytes) = format.block();
    match format {
        Format::F32 => {
            for (value, v) in values.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([v[0], v[1], v[2], v[3]]);
            }
        }
        Format::F16 => {
            for (value, v) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = half_at(v, 0);
            }
        }
        Format::BF16 => {
            for (value, v) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = bf16::from_le_bytes([v[0], v[1]]).to_f32();
            }
        }
        _ => {
            let mut q = [0_i8; SUPER_BLOCK];
            let (mut scale, mut minimum) = ([0.0; MAX_GROUPS], [0.0; MAX_GROUPS]);
            for (block, out) in bytes.chunks_exact(block_bytes).zip(values.chunks_exact_mut(block_values)) {
                unpack(format, block, &mut q[..block_values], &mut scale, &mut minimum);
                let groups = out.chunks_exact_mut(format.group()).zip(q.chunks_exact(format.group()));
                for ((out, q), (scale, minimum)) in groups.zip(scale.iter().zip(&minimum)) {
                    for (value, &q) in out.iter_mut().zip(q) {
                        *value = scale * f32::from(q) + minimum;
                    }
                }
            }
        }
    }
}

/// Takes one block of a block format apart: `value[i] = scale[i / group] * q[i] + minimum[i / group]`, to the bit as
/// [`dequantize`] has it when the product is rounded before the sum. `q` has the block's length; `scale` and `minimum`
/// at least one value a group. Formats without a minimum give -0. Nothing is written for formats that are not of blocks.
pub(crate) fn unpack(format: Format, block: &[u8], q: &mut [i8], scale: &mut [f32], minimum: &mut [f32]) {
    minimum.fill(NOTHING);
    match format {
        Format::F32 | Format::F16 | Format::BF16 => {}
        Format::Q4_0 => {
            scale[0] = half_at(block, 0);
            nibbles(&block[2..], &[0; 4], q, 8);
        }
        Format::Q4_1 => {
            (scale[0], minimum[0]) = (half_at(block, 0), half_at(block, 2));
            nibbles(&block[4..], &[0; 4], q, 0);
        }
        Format::Q5_0 => {
            scale[0] = half_at(block, 0);
            nibbles(&block[6..], &block[2..6], q, 16);
        }
        Format::Q5_1 => {
            (scale[0], minimum[0]) = (half_at(block, 0), half_at(block, 2));
            nibbles(&block[8..], &block[4..8], q, 0);
        }
        Format::Q8_0 => {
            scale[0] = half_at(block, 0);
            for (q, &byte) in q.iter_mut().zip(&block[2..]) {
                *q = byte.cast_signed();
            }
        }
        Format::Q2K => unpack_2k(block, q, scale, minimum),
        Format::Q3K => unpack_3k(block, q, scale),
        Format::Q4K => {
            scales_of_six_bits(block, scale, minimum);
            for (q, bytes) in q.chunks_exact_mut(64).zip(block[16..].chunks_exact(32)) {
                for (i, &byte) in bytes.iter().enumerate() {
                    (q[i], q[32 + i]) = ((byte & 0x0F).cast_signed(), (byte >> 4).cast_signed());
                }
            }
        }
        Format::Q5K => {
            scales_of_six_bits(block, scale, minimum);
            let (high, low) = block[16..].split_at(32);
            for (pair, (q, bytes)) in q.chunks_exact_mut(64).zip(low.chunks_exact(32)).enumerate() {
                for (i, &byte) in bytes.iter().enumerate() {
                    let bits = high[i] >> (2 * pair);
                    q[i] = (byte & 0x0F | (bits & 1) << 4).cast_signed();
                    q[32 + i] = (byte >> 4 | (bits >> 1 & 1) << 4).cast_signed();
                }
            }
        }
        Format::Q6K => unpack_6k(block, q, scale),
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low halves of the bytes are the block's first 16 values, the high halves its last 16; bit `i` of `fifth` is the
/// fifth bit of value `i`. All less `offset`.
fn nibbles(packed: &[u8], fifth: &[u8], out: &mut [i8], offset: i8) {
    let fifth = u32::from_le_bytes([fifth[0], fifth[1], fifth[2], fifth[3]]);
    let bit = |i: usize| ((fifth >> i & 1) as u8) << 4;
    for (i, &byte) in packed[..BLOCK / 2].iter().enumerate() {
        out[i] = (byte & 0x0F | bit(i)).cast_signed() - offset;
        out[BLOCK / 2 + i] = (byte >> 4 | bit(BLOCK / 2 + i)).cast_signed() - offset;
    }
}

/// The 8 scales and minimums of `Q4K` and `Q5K`: 6 bits each in 12 bytes after the two factors `d` and `e`. The first
/// four of each are the low 6 bits of bytes 0 to 3 and 4 to 7, whose top 2 bits are those of the last four.
fn scales_of_six_bits(block: &[u8], scale: &mut [f32], minimum: &mut [f32]) {
    let (d, e, packed) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    for i in 0..4 {
        let (s, m, rest) = (packed[i], packed[4 + i], packed[8 + i]);
        scale[i] = d * f32::from(s & 0x3F);
        minimum[i] = -(e * f32::from(m & 0x3F));
        scale[4 + i] = d * f32::from(rest & 0x0F | s >> 2 & 0x30);
        minimum[4 + i] = -(e * f32::from(rest >> 4 | m >> 2 & 0x30));
    }
}

fn unpack_2k(block: &[u8], q: &mut [i8], scale: &mut [f32], minimum: &mut [f32]) {
    let (d, e) = (half_at(block, 80), half_at(block, 82));
    for (i, &byte) in block[..16].iter().enumerate() {
        scale[i] = d * f32::from(byte & 0x0F);
        minimum[i] = -(e * f32::from(byte >> 4));
    }
    for (half, bytes) in q.chunks_exact_mut(128).zip(block[16..80].chunks_exact(32)) {
        for (shift, q) in half.chunks_exact_mut(32).enumerate() {
            for (q, &byte) in q.iter_mut().zip(bytes) {
                *q = (byte >> (2 * shift) & 3).cast_signed();
            }
        }
    }
}

fn unpack_3k(block: &[u8], q: &mut [i8], scale: &mut [f32]) {
    let (high, packed, d) = (&block[..32], &block[96..108], half_at(block, 108));
    for (i, scale) in scale.iter_mut().take(16).enumerate() {
        let low = if i < 8 { packed[i] & 0x0F } else { packed[i - 8] >> 4 };
        let s = low | (packed[8 + i % 4] >> (2 * (i / 4)) & 3) << 4;
        *scale = d * f32::from(s.cast_signed() - 32);
    }
    for (half, (values, bytes)) in q.chunks_exact_mut(128).zip(block[32..96].chunks_exact(32)).enumerate() {
        for (shift, q) in values.chunks_exact_mut(32).enumerate() {
            for (i, q) in q.iter_mut().enumerate() {
                let third = high[i] >> (4 * half + shift) & 1;
                *q = (bytes[i] >> (2 * shift) & 3 | third << 2).cast_signed() - 4;
            }
        }
    }
}

fn unpack_6k(block: &[u8], q: &mut [i8], scale: &mut [f32]) {
    let d = half_at(block, 208);
    for (scale, &s) in scale.iter_mut().zip(&block[192..208]) {
        *scale = d * f32::from(s.cast_signed());
    }
    let halves = block[..128].chunks_exact(64).zip(block[128..192].chunks_exact(32));
    for (values, (low, high)) in q.chunks_exact_mut(128).zip(halves) {
        for (part, q) in values.chunks_exact_mut(32).enumerate() {
            for (i, q) in q.iter_mut().enumerate() {
                let low = low[32 * (part % 2) + i] >> (4 * (part / 2)) & 0x0F;
                *q = (low | (high[i] >> (2 * part) & 3) << 4).cast_signed() - 32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_computed_blocks() {
        let half = |x: f32| f16::from_f32(x).to_le_bytes();
        let mut block = [half(0.5).as_slice(), &half(-1.0)].concat();
        block.extend((0..16).map(|i| i | (15 - i) << 4));
        let mut values = [0.0; 32];
        dequantize(Format::Q4_1, &block, &mut values);
        assert_eq!((values[0], values[3], values[16], values[31]), (-1.0, 0.5, 6.5, -1.0));
        block.drain(2..4);
        dequantize(Format::Q4_0, &block, &mut values);
        assert_eq!((values[0], values[3], values[16], values[31]), (-4.0, -2.5, 3.5, -4.0));
        let mut block = half(0.25).to_vec();
        block.extend((0..32).map(|i: i8| (i - 16).cast_unsigned()));
        dequantize(Format::Q8_0, &block, &mut values);
        assert_eq!((values[0], values[31]), (-4.0, 3.75));
    }

    #[test]
    fn numbers_that_are_not_finite_are_found() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let words = [f32::MAX, -0.0, 1e-45, bad];
            let bytes: Vec<u8> = words.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert!(Format::F32.is_finite(&bytes[..12]) && !Format::F32.is_finite(&bytes));
            let bytes: Vec<u8> = [bf16::MAX, bf16::from_f32(bad)].iter().flat_map(|v| v.to_le_bytes()).collect();
            assert!(Format::BF16.is_finite(&bytes[..2]) && !Format::BF16.is_finite(&bytes));
            let bytes: Vec<u8> = [f16::MIN, f16::from_f32(bad)].iter().flat_map(|v| v.to_le_bytes()).collect();
            assert!(Format::F16.is_finite(&bytes[..2]) && !Format::F16.is_finite(&bytes));
        }
        let places = [
            (Format::Q4_0, &[0][..]),
            (Format::Q5_1, &[0, 2]),
            (Format::Q8_0, &[0]),
            (Format::Q2K, &[80, 82]),
            (Format::Q3K, &[108]),
            (Format::Q4K, &[0, 2]),
            (Format::Q6K, &[208]),
        ];
        for (format, places) in places {
            let bytes = vec![0x55; format.block().1];
            assert!(format.is_finite(&bytes));
            for &at in places {
                let mut bytes = bytes.clone();
                bytes[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
                assert!(!format.is_finite(&bytes), "{format:?}");
                let mut values = vec![0.0; format.block().0];
                dequantize(format, &bytes, &mut values);
                assert!(values.iter().any(|v| v.is_nan()), "{format:?}");
            }
        }
    }

    #[test]
    fn a_block_taken_apart_has_the_same_values() {
        use Format::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        for format in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
            let (length, size) = format.block();
            let bytes: Vec<u8> = (0..size).map(|i| (i * 89 + 41) as u8 & 0xBF).collect();
            let mut values = vec![0.0; length];
            dequantize(format, &bytes, &mut values);
            let groups = length / format.group();
            let (mut q, mut scale, mut minimum) = (vec![0; length], vec![0.0; groups], vec![0.0; groups]);
            unpack(format, &bytes, &mut q, &mut scale, &mut minimum);
            for (i, value) in values.iter().enumerate() {
                let group = i / format.group();
                let got = scale[group] * f32::from(q[i]) + minimum[group];
                assert_eq!(got.to_bits(), value.to_bits(), "{format:?} value {i}");
            }
        }
    }
}
