//! Weights as a device with memory of its own takes them: rows of outputs one after another, made straight from a file's
//! rows, so that host memory holds one matrix at a time, in its final size. Nothing here touches a device.

use super::{
    Precision, TooLarge,
    panels::{GROUP, quantize},
};
use crate::{
    checkpoint::Stored,
    quants::{Format, unpack},
};
use rayon::prelude::*;

/// Rows \[outputs, inputs\] of all parts, each number as `narrow` makes it.
///
/// # Errors
/// [`TooLarge`] where it makes none.
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "floats are compared elsewhere"))]
pub(crate) fn rows<T: Clone + Default + Send>(
    parts: &[Stored<'_>],
    narrow: impl Fn(f32) -> Option<T> + Sync,
) -> Result<Vec<T>, TooLarge> {
    let inputs = parts[0].columns;
    let mut all = vec![T::default(); parts.iter().map(|part| part.rows * inputs).sum()];
    let mut rest = &mut all[..];
    for (number, part) in parts.iter().enumerate() {
        let (to, later) = rest.split_at_mut(part.rows * inputs);
        let row = |wide: &mut Vec<f32>, (row, to): (usize, &mut [T])| {
            part.row(row, wide);
            to.iter_mut().zip(wide).try_for_each(|(to, &mut x)| narrow(x).map(|x| *to = x))
        };
        let rows = to.par_chunks_exact_mut(inputs).enumerate();
        rows.map_init(|| vec![0.0; inputs], row).collect::<Option<()>>().ok_or(TooLarge { part: number })?;
        rest = later;
    }
    Ok(all)
}

/// Rows of bytes: value = scale * q + minimum, a scale and a minimum for each group of inputs of an output.
pub(crate) struct ByteRows {
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the test knows it"))]
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Inputs that share a scale and a minimum.
    pub(crate) group: usize,
    /// \[outputs, inputs\]
    pub(crate) q: Vec<i8>,
    /// \[outputs, inputs / group\]
    pub(crate) scale: Vec<f32>,
    /// As `scale`, or empty where all are 0.
    pub(crate) minimum: Vec<f32>,
}

impl ByteRows {
    /// Whether matrices can stay bytes: quantized here ([`Precision::Int8`]), or all in formats of blocks
    /// ([`Precision::Auto`]), which keep their own scales; and the inputs are whole groups.
    pub(crate) fn fit(parts: &[Stored<'_>], precision: Precision) -> bool {
        let blocks = || parts.iter().all(|part| part.format.group() > 1);
        let bytes = precision == Precision::Int8 || (precision == Precision::Auto && blocks());
        bytes && parts[0].columns.is_multiple_of(GROUP)
    }

    /// The rows of matrices that [`Self::fit`].
    pub(crate) fn pack(parts: &[Stored<'_>], precision: Precision) -> Self {
        let own = precision == Precision::Auto;
        let inputs = parts[0].columns;
        // Formats may differ: the smallest group serves all.
        let group = if own { parts.iter().map(|part| part.format.group()).min().unwrap_or(GROUP) } else { GROUP };
        let outputs = parts.iter().map(|part| part.rows).sum::<usize>();
        let groups = inputs / group;
        let has_minimum = own && parts.iter().any(|part| has_minimum(part.format));
        let (mut q, mut scale) = (vec![0; outputs * inputs], vec![0.0; outputs * groups]);
        let mut minimum = vec![0.0; if has_minimum { outputs * groups } else { 0 }];
        let mut first = 0;
        for part in parts {
            let of = |width: usize| first * width..(first + part.rows) * width;
            let none = &mut vec![0.0; if has_minimum { 0 } else { part.rows }];
            let minima = if has_minimum { &mut minimum[of(groups)] } else { &mut none[..] };
            let minima = minima.par_chunks_exact_mut(if has_minimum { groups } else { 1 });
            let rows = q[of(inputs)].par_chunks_exact_mut(inputs).zip(scale[of(groups)].par_chunks_exact_mut(groups));
            rows.zip(minima).enumerate().for_each(|(row, ((q, scale), minimum))| {
                if own {
                    unpack_row(part, row, group, q, scale, has_minimum.then_some(minimum));
                } else {
                    quantize_row(part, row, q, scale);
                }
            });
            first += part.rows;
        }
        Self { inputs, outputs, group, q, scale, minimum }
    }
}

fn has_minimum(format: Format) -> bool {
    matches!(format, Format::Q4_1 | Format::Q5_1 | Format::Q2K | Format::Q4K | Format::Q5K)
}

fn quantize_row(part: &Stored<'_>, row: usize, q: &mut [i8], scale: &mut [f32]) {
    let mut values = vec![0.0; q.len()];
    part.row(row, &mut values);
    for ((values, q), scale) in values.chunks(GROUP).zip(q.chunks_mut(GROUP)).zip(scale) {
        *scale = quantize(values, q.iter_mut());
    }
}

fn unpack_row(
    part: &Stored<'_>,
    row: usize,
    group: usize,
    q: &mut [i8],
    scale: &mut [f32],
    mut minimum: Option<&mut [f32]>,
) {
    let (values, bytes) = part.format.block();
    let groups = values / part.format.group();
    let (mut scales, mut minima) = (vec![0.0; groups], vec![0.0; groups]);
    // Each of the format's groups is as many of ours.
    let times = part.format.group() / group;
    for (index, (block, q)) in part.row_bytes(row).chunks_exact(bytes).zip(q.chunks_exact_mut(values)).enumerate() {
        unpack(part.format, block, q, &mut scales, &mut minima);
        for at in 0..groups * times {
            scale[index * groups * times + at] = scales[at / times];
            if let Some(minimum) = minimum.as_deref_mut() {
                minimum[index * groups * times + at] = minima[at / times];
            }
        }
    }
}
