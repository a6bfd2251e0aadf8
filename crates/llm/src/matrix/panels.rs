//! Weights packed for [`super::kernel`]: in panels of 32 outputs, inputs one after another, in their own precision.
//!
//! Panels are made straight from a file's rows, one panel at a time, so there is never a second copy of a matrix in
//! memory. A format of blocks keeps its integers, in 4 bits each where they fit and in 8 otherwise, and each group's
//! scale and minimum, in 32: widened to 32 bits it gives the very floats that dequantizing the file gives.

use super::{
    Precision,
    kernel::{self, Vectors, Widen, WithWiden},
};
use crate::{
    checkpoint::Stored,
    quants::{Format, unpack},
};
use half::{bf16, f16};
use rayon::prelude::*;

/// Outputs of a panel.
pub(super) const WIDTH: usize = 32;
/// Inputs that are widened together: a multiple of every group, and 16 KiB as floats, so that they stay in the cache.
pub(super) const CHUNK: usize = 128;
/// Inputs that share a scale where we choose it.
pub(super) const GROUP: usize = 32;

/// Packed weights of one matrix.
pub(super) struct Panels {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Inputs that share a scale and a minimum.
    pub(super) group: usize,
    pub(super) values: Values,
}

/// Weights by panel, input, output. Scales and minima by panel, group of inputs, output; no minima where all are 0.
pub(super) enum Values {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    F16(Vec<u16>),
    Bytes { q: Vec<i8>, scale: Vec<f32>, minimum: Vec<f32> },
    Nibbles { q: Vec<u8>, scale: Vec<f32>, minimum: Vec<f32> },
}

/// How a matrix is kept.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    F32,
    Bf16,
    F16,
    /// Quantized here.
    Int8,
    /// As in the file.
    Bytes {
        minimum: bool,
    },
    /// As in the file, less the lowest of the stored integers.
    Nibbles {
        lowest: i8,
    },
}

impl Kind {
    fn of(precision: Precision, format: Format) -> Self {
        match (precision, format) {
            (Precision::F32, _) | (Precision::Auto, Format::F32) => Self::F32,
            (Precision::Bf16, _) => Self::Bf16,
            (Precision::F16, _) | (Precision::Auto, Format::F16) => Self::F16,
            (Precision::Int8, _) => Self::Int8,
            (Precision::Auto, Format::BF16) => Self::Bf16,
            (Precision::Auto, Format::Q2K | Format::Q4_1 | Format::Q4K) => Self::Nibbles { lowest: 0 },
            (Precision::Auto, Format::Q3K) => Self::Nibbles { lowest: -4 },
            (Precision::Auto, Format::Q4_0) => Self::Nibbles { lowest: -8 },
            (Precision::Auto, Format::Q5_1 | Format::Q5K) => Self::Bytes { minimum: true },
            (Precision::Auto, Format::Q5_0 | Format::Q6K | Format::Q8_0) => Self::Bytes { minimum: false },
        }
    }
}

impl Panels {
    /// Packs a stored matrix \[outputs, inputs\]; `None` when a weight is larger than the precision holds.
    pub(super) fn pack(stored: &Stored<'_>, precision: Precision) -> Option<Self> {
        let (inputs, outputs) = (stored.columns, stored.rows);
        let kind = Kind::of(precision, stored.format);
        let group =
            if matches!(kind, Kind::Bytes { .. } | Kind::Nibbles { .. }) { stored.format.group() } else { GROUP };
        let count = outputs.div_ceil(WIDTH);
        let padded = inputs.next_multiple_of(GROUP);
        let (size, scales) = (padded * WIDTH, padded / group * WIDTH);
        let source = Source { stored, kind, group };
        let each = (0..count).into_par_iter();
        let floats = |panel: usize| source.floats(panel);
        let values = match kind {
            Kind::F32 => {
                let mut values = vec![0.0; count * size];
                values.par_chunks_mut(size).zip(each).for_each(|(to, panel)| to.copy_from_slice(&floats(panel)));
                Values::F32(values)
            }
            Kind::Bf16 | Kind::F16 => {
                let narrow = |x: f32| match kind {
                    Kind::F16 => Some(f16::from_f32(x)).filter(|x| x.is_finite()).map(f16::to_bits),
                    _ => Some(bf16::from_f32(x)).filter(|x| x.is_finite()).map(bf16::to_bits),
                };
                let mut values = vec![0; count * size];
                values.par_chunks_mut(size).zip(each).try_for_each(|(to, panel)| {
                    to.iter_mut().zip(floats(panel)).try_for_each(|(to, x)| narrow(x).map(|x| *to = x))
                })?;
                if kind == Kind::F16 { Values::F16(values) } else { Values::Bf16(values) }
            }
            Kind::Int8 | Kind::Bytes { .. } => {
                let (mut q, mut scale) = (vec![0_i8; count * size], vec![0.0; count * scales]);
                let has_minimum = kind == Kind::Bytes { minimum: true };
                let mut minimum = vec![0.0; if has_minimum { count * scales } else { 0 }];
                let none = if has_minimum { 0 } else { count };
                let minima =
                    minimum.par_chunks_mut(scales).map(Some).chain(rayon::iter::repeat_n((), none).map(|()| None));
                let parts = q.par_chunks_mut(size).zip(scale.par_chunks_mut(scales)).zip(minima);
                parts.zip(each).for_each(|(((q, scale), minimum), panel)| source.quantized(panel, q, scale, minimum));
                Values::Bytes { q, scale, minimum }
            }
            Kind::Nibbles { lowest } => {
                let (mut q, mut scale) = (vec![0_u8; count * size / 2], vec![0.0; count * scales]);
                let mut minimum = vec![0.0; count * scales];
                let parts =
                    q.par_chunks_mut(size / 2).zip(scale.par_chunks_mut(scales)).zip(minimum.par_chunks_mut(scales));
                parts.zip(each).for_each(|(((q, scale), minimum), panel)| {
                    let mut wide = vec![0_i8; size];
                    source.quantized(panel, &mut wide, scale, Some(&mut *minimum));
                    for (minimum, scale) in minimum.iter_mut().zip(scale) {
                        *minimum += f32::from(lowest) * *scale;
                    }
                    for (row, q) in wide.chunks_exact(WIDTH).zip(q.chunks_exact_mut(WIDTH / 2)) {
                        let (low, high) = row.split_at(WIDTH / 2);
                        for ((q, low), high) in q.iter_mut().zip(low).zip(high) {
                            *q = (low - lowest).cast_unsigned() | (high - lowest).cast_unsigned() << 4;
                        }
                    }
                });
                Values::Nibbles { q, scale, minimum }
            }
        };
        Some(Self { inputs, outputs, group, values })
    }

    /// Inputs with those that fill up the last group.
    pub(super) fn stored_inputs(&self) -> usize {
        self.inputs.next_multiple_of(GROUP)
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(values) => 4 * values.len(),
            Values::Bf16(values) | Values::F16(values) => 2 * values.len(),
            Values::Bytes { q, scale, minimum } => q.len() + 4 * (scale.len() + minimum.len()),
            Values::Nibbles { q, scale, minimum } => q.len() + 4 * (scale.len() + minimum.len()),
        }
    }

    /// The weights of one output: its row in the file, \[inputs\].
    pub(super) fn output(&self, output: usize, to: &mut [f32]) {
        let (panel, lane) = (output / WIDTH, output % WIDTH);
        let start = panel * self.stored_inputs() * WIDTH;
        let group = |input: usize| (start / self.group) + input / self.group * WIDTH + lane;
        let scaled = |q: f32, input: usize, scale: &[f32], minimum: &[f32]| {
            let at = group(input);
            q.mul_add(scale[at], minimum.get(at).copied().unwrap_or(0.0))
        };
        for (input, to) in to.iter_mut().enumerate() {
            let at = start + input * WIDTH + lane;
            *to = match &self.values {
                Values::F32(values) => values[at],
                Values::Bf16(values) => bf16::from_bits(values[at]).to_f32(),
                Values::F16(values) => f16::from_bits(values[at]).to_f32(),
                Values::Bytes { q, scale, minimum } => scaled(f32::from(q[at]), input, scale, minimum),
                Values::Nibbles { q, scale, minimum } => {
                    let byte = q[(start + input * WIDTH) / 2 + lane % (WIDTH / 2)];
                    scaled(f32::from(byte >> (lane / (WIDTH / 2) * 4) & 15), input, scale, minimum)
                }
            };
        }
    }

    /// Writes all weights into columns `first..` of a matrix \[inputs, width\].
    pub(super) fn dense(&self, to: &mut [f32], width: usize, first: usize) {
        to.par_chunks_mut(CHUNK * width).enumerate().for_each(|(index, rows)| {
            Vectors::widest().run(Dense { panels: self, first_input: index * CHUNK, rows, width, first });
        });
    }
}

/// Some inputs' weights of all outputs, written out.
struct Dense<'a> {
    panels: &'a Panels,
    first_input: usize,
    rows: &'a mut [f32],
    width: usize,
    first: usize,
}

impl WithWiden for Dense<'_> {
    #[inline(always)]
    fn run<S: Widen>(self, simd: S) {
        let mut room = [0.0; CHUNK * WIDTH];
        let count = self.rows.len() / self.width;
        for panel in 0..self.panels.outputs.div_ceil(WIDTH) {
            let weights = kernel::chunk(simd, self.panels, panel, self.first_input, count, &mut room);
            let columns = WIDTH.min(self.panels.outputs - panel * WIDTH);
            let first = self.first + panel * WIDTH;
            for (row, weights) in self.rows.chunks_exact_mut(self.width).zip(weights.chunks_exact(WIDTH)) {
                row[first..first + columns].copy_from_slice(&weights[..columns]);
            }
        }
    }
}

/// Reads a panel from the stored rows.
struct Source<'a> {
    stored: &'a Stored<'a>,
    kind: Kind,
    group: usize,
}

impl Source<'_> {
    /// The panel's rows in the file, with the lane of each.
    fn rows(&self, panel: usize) -> impl Iterator<Item = (usize, usize)> {
        (panel * WIDTH..self.stored.rows.min((panel + 1) * WIDTH)).enumerate()
    }

    /// A panel as 32-bit floats; outputs and inputs beyond the matrix are 0.
    fn floats(&self, panel: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.stored.columns.next_multiple_of(GROUP) * WIDTH];
        let mut row = vec![0.0; self.stored.columns];
        for (lane, output) in self.rows(panel) {
            self.stored.row(output, &mut row);
            for (to, &x) in out[lane..].iter_mut().step_by(WIDTH).zip(&row) {
                *to = x;
            }
        }
        out
    }

    /// A panel as integers with scales and minima.
    fn quantized(&self, panel: usize, q: &mut [i8], scale: &mut [f32], mut minimum: Option<&mut [f32]>) {
        let (block_values, block_bytes) = self.stored.format.block();
        let mut row = vec![0.0; self.stored.columns];
        let groups = block_values / self.group.min(block_values);
        let (mut ints, mut scales, mut minima) = (vec![0_i8; block_values], vec![0.0; groups], vec![0.0; groups]);
        for (lane, output) in self.rows(panel) {
            if self.kind == Kind::Int8 {
                self.stored.row(output, &mut row);
                for (index, values) in row.chunks(GROUP).enumerate() {
                    let to = q[index * GROUP * WIDTH + lane..].iter_mut().step_by(WIDTH);
                    scale[index * WIDTH + lane] = quantize(values, to);
                }
                continue;
            }
            for (index, block) in self.stored.row_bytes(output).chunks_exact(block_bytes).enumerate() {
                unpack(self.stored.format, block, &mut ints, &mut scales, &mut minima);
                let first = index * block_values;
                for (&value, q) in ints.iter().zip(q[first * WIDTH + lane..].iter_mut().step_by(WIDTH)) {
                    *q = value;
                }
                for group in 0..groups {
                    let at = (first / self.group + group) * WIDTH + lane;
                    scale[at] = scales[group];
                    if let Some(minimum) = minimum.as_deref_mut() {
                        minimum[at] = minima[group];
                    }
                }
            }
        }
    }
}

/// A group's values as integers; returns their scale.
pub(super) fn quantize<'a>(values: &[f32], to: impl Iterator<Item = &'a mut i8>) -> f32 {
    let largest = values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let step = largest / 127.0;
    for (x, q) in values.iter().zip(to) {
        *q = if step > 0.0 { (x / step).round() as i8 } else { 0 };
    }
    step
}
