//! GGML's block formats as 32-bit floats.
//!
//! Values are computed in the order and precision of the reference (`gguf` on PyPI), so that they are equal to the
//! bit: no fused multiply-add. Formats beyond those that the supported models use are named and refused.

use half::f16;

/// Values in a block of the quantized formats.
const BLOCK: usize = 32;

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Blocks of 32: f16 scale `d`, 16 bytes of two 4-bit `q`; the value is `d (q - 8)`.
    Q4_0,
    /// Blocks of 32: f16 scale `d`, f16 minimum `m`, 16 bytes of two 4-bit `q`; the value is `d q + m`.
    Q4_1,
    /// Blocks of 32: f16 scale `d`, 32 signed bytes `q`; the value is `d q`.
    Q8_0,
}

impl Format {
    /// Format of a GGML type number, `None` when it is not supported.
    pub fn of_ggml_type(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            _ => return None,
        })
    }

    /// Values that share a scale and a minimum.
    pub(crate) fn group(self) -> usize {
        BLOCK
    }

    /// Values in a block, and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 => (1, 2),
            Self::Q4_0 => (BLOCK, 2 + BLOCK / 2),
            Self::Q4_1 => (BLOCK, 4 + BLOCK / 2),
            Self::Q8_0 => (BLOCK, 2 + BLOCK),
        }
    }
}

/// Fills `values` from `bytes`. Both hold the same number of whole blocks of `format`; bytes beyond are not read.
pub fn dequantize(format: Format, bytes: &[u8], values: &mut [f32]) {
    let (block_values, block_bytes) = format.block();
    for (block, out) in bytes.chunks_exact(block_bytes).zip(values.chunks_exact_mut(block_values)) {
        match format {
            Format::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Format::F16 => out[0] = half_at(block, 0),
            Format::Q4_0 => {
                let scale = half_at(block, 0);
                nibbles(&block[2..], out, |q| scale * (f32::from(q) - 8.0));
            }
            Format::Q4_1 => {
                let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
                nibbles(&block[4..], out, |q| scale * f32::from(q) + minimum);
            }
            Format::Q8_0 => {
                let scale = half_at(block, 0);
                for (value, &q) in out.iter_mut().zip(&block[2..]) {
                    *value = scale * f32::from(q.cast_signed());
                }
            }
        }
    }
}

/// A block of a quantized format as integers with a scale and a minimum a group: value = scale q + minimum, exactly.
///
/// # Panics
/// For formats of floats.
pub(crate) fn unpack(format: Format, block: &[u8], q: &mut [i8], scale: &mut [f32], minimum: &mut [f32]) {
    let split = |packed: &[u8], q: &mut [i8]| {
        let (low, high) = q.split_at_mut(BLOCK / 2);
        for ((&byte, low), high) in packed.iter().zip(low).zip(high) {
            *low = (byte & 0x0F).cast_signed();
            *high = (byte >> 4).cast_signed();
        }
    };
    scale[0] = half_at(block, 0);
    minimum[0] = 0.0;
    match format {
        Format::Q4_0 => {
            minimum[0] = -8.0 * scale[0];
            split(&block[2..], q);
        }
        Format::Q4_1 => {
            minimum[0] = half_at(block, 2);
            split(&block[4..], q);
        }
        Format::Q8_0 => q.iter_mut().zip(&block[2..]).for_each(|(to, &byte)| *to = byte.cast_signed()),
        Format::F32 | Format::F16 => unreachable!("floats have no scales"),
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low halves of the bytes are the block's first 16 values, the high halves its last 16.
fn nibbles(packed: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((&byte, low), high) in packed.iter().zip(low).zip(high) {
        *low = value(byte & 0x0F);
        *high = value(byte >> 4);
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
}
