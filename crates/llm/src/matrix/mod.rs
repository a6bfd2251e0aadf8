//! A layer's weights, kept in their own precision, and their product with activations.
//!
//! On the CPU weights are packed once for our own kernel ([`kernel`]): Burn's product there wants 32-bit floats and
//! sums in an order that depends on the number of rows. On CUDA they are a tensor and the product is Burn's, or bytes
//! (`crate::cuda::Weights`). There is no gradient through this: training computes with it on the way forward, and takes
//! [`Matrix::dense`] for the way back.

mod kernel;
mod panels;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod upload;

use crate::{
    checkpoint::Stored,
    host::{floats, matrix, read},
};
use burn::tensor::{Device, Tensor};
use kernel::{Strip, Vectors};
use panels::{Panels, WIDTH};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How weights are kept in memory. Activations and sums are 32-bit floats on the CPU, whatever the weights are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As in the file: exactly the values that dequantizing gives. Floats take as many bits as in the file; quantized
    /// ones 4 (formats of 2 to 4 bits) or 8, and a scale, and where it needs one a minimum, of 32 bits a group. On CUDA
    /// their values in bfloat16; where that would take more than half of the device's memory, quantized weights of all
    /// formats 8 bits with their own scales and minima.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16: 8 bits of precision, the range of 32-bit floats.
    Bf16,
    /// Half precision: 11 bits of precision, up to 65,504. Models with larger weights are refused.
    F16,
    /// Bytes with a scale for every 32 inputs of an output: largest magnitude / 127. On CUDA matrices whose inputs are no
    /// multiple of 32 are in bfloat16.
    Int8,
}

/// Strips of the output a thread, so that all end together.
const STRIPS_A_THREAD: usize = 4;

/// Matrices with the same inputs, their outputs beside one another.
pub(crate) struct Matrix {
    inputs: usize,
    outputs: usize,
    storage: Storage,
}

enum Storage {
    /// One a stored matrix: formats may differ.
    Host(Vec<Panels>),
    #[cfg(feature = "cuda")]
    Device(crate::cuda::Weights),
}

/// A matrix has a weight that is larger than the precision holds.
#[derive(Debug)]
pub(crate) struct TooLarge {
    /// Its place among the matrices that were to be loaded.
    pub(crate) part: usize,
}

impl Matrix {
    /// Loads matrices \[outputs, inputs\] with the same inputs.
    ///
    /// # Errors
    /// [`TooLarge`] for a weight that would become infinite.
    ///
    /// # Panics
    /// When the inputs differ: the caller has checked shapes.
    pub(crate) fn load(parts: &[Stored<'_>], precision: Precision, device: &Device) -> Result<Self, TooLarge> {
        Self::load_as(parts, precision, device, false)
    }

    /// As [`Self::load`], for a matrix of which only single outputs are read: a device keeps its rows as they lie.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn load_table(parts: &[Stored<'_>], precision: Precision, device: &Device) -> Result<Self, TooLarge> {
        Self::load_as(parts, precision, device, true)
    }

    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there is no other device"))]
    fn load_as(parts: &[Stored<'_>], precision: Precision, device: &Device, table: bool) -> Result<Self, TooLarge> {
        let inputs = parts[0].columns;
        assert!(parts.iter().all(|part| part.columns == inputs), "matrices side by side have the same inputs");
        let outputs = parts.iter().map(|part| part.rows).sum();
        #[cfg(feature = "cuda")]
        if *device != Device::flex() {
            let weights = crate::cuda::Weights::load(parts, precision, device, table)?;
            return Ok(Self { inputs, outputs, storage: Storage::Device(weights) });
        }
        let pack = |(part, stored)| Panels::pack(stored, precision).ok_or(TooLarge { part });
        let panels = parts.iter().enumerate().map(pack).collect::<Result<_, _>>()?;
        Ok(Self { inputs, outputs, storage: Storage::Host(panels) })
    }

    /// Bytes of the weights in memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.storage {
            Storage::Host(parts) => parts.iter().map(Panels::bytes).sum(),
            #[cfg(feature = "cuda")]
            Storage::Device(weights) => weights.bytes(),
        }
    }

    /// The weights, where they are not in host memory.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_device(&self) -> Option<&crate::cuda::Weights> {
        match &self.storage {
            Storage::Host(_) => None,
            Storage::Device(weights) => Some(weights),
        }
    }

    /// The product, \[rows, outputs\], with `x` \[rows, inputs\].
    pub(crate) fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.storage {
            #[cfg(feature = "cuda")]
            Storage::Device(weights) => weights.apply(x),
            Storage::Host(parts) => {
                let device = x.device();
                let [rows, _] = x.dims();
                let x = read(x);
                matrix(self.product(Vectors::widest(), parts, floats(&x)), rows, &device)
            }
        }
    }

    /// The weights of one output, \[inputs\]: of a tied head, a token's embedding.
    pub(crate) fn output(&self, output: usize, to: &mut [f32]) {
        match &self.storage {
            Storage::Host(parts) => {
                let mut output = output;
                for part in parts {
                    if output < part.outputs {
                        return part.output(output, to);
                    }
                    output -= part.outputs;
                }
            }
            #[cfg(feature = "cuda")]
            Storage::Device(weights) => weights.output(output, to),
        }
    }

    /// All weights as a tensor \[inputs, outputs\], as training and other devices want them.
    pub(crate) fn dense(&self, device: &Device) -> Tensor<2> {
        match &self.storage {
            #[cfg(feature = "cuda")]
            Storage::Device(weights) => weights.dense(),
            Storage::Host(parts) => {
                let mut out = vec![0.0; self.inputs * self.outputs];
                let mut first = 0;
                for part in parts {
                    part.dense(&mut out, self.outputs, first);
                    first += part.outputs;
                }
                matrix(out, self.inputs, device)
            }
        }
    }

    fn product(&self, vectors: Vectors, parts: &[Panels], x: &[f32]) -> Vec<f32> {
        let tile = vectors.tile_rows();
        let rows = x.len() / self.inputs;
        let tiled;
        let x = if rows == 1 {
            x
        } else {
            tiled = in_tiles(x, self.inputs, tile);
            &tiled
        };
        let threads = rayon::current_num_threads();
        let tiles = rows.div_ceil(tile);
        let block_rows = tiles.div_ceil(tiles.min(threads).max(1)) * tile;
        let blocks = rows.div_ceil(block_rows).max(1);
        let panels = self.outputs.div_ceil(WIDTH);
        let strip_panels = panels.div_ceil((threads * STRIPS_A_THREAD).div_ceil(blocks)).max(1);
        let mut out = vec![0.0; rows * self.outputs];
        let mut strips = Vec::new();
        for (index, block) in out.chunks_mut(block_rows * self.outputs).enumerate() {
            let count = block.len() / self.outputs;
            let x = &x[index * block_rows * self.inputs..][..count * self.inputs];
            let begin = strips.len();
            for panels in parts {
                let firsts = (0..panels.outputs.div_ceil(WIDTH)).step_by(strip_panels);
                strips.extend(firsts.map(|first_panel| Strip {
                    panels,
                    first_panel,
                    x,
                    rows: Vec::with_capacity(count),
                }));
            }
            for mut row in block.chunks_mut(self.outputs) {
                for strip in &mut strips[begin..] {
                    let width = (strip.panels.outputs - strip.first_panel * WIDTH).min(strip_panels * WIDTH);
                    let (piece, rest) = row.split_at_mut(width);
                    strip.rows.push(piece);
                    row = rest;
                }
            }
        }
        strips.into_par_iter().for_each(|strip| vectors.run(strip));
        out
    }
}

/// Rows \[rows, inputs\] in tiles: for each tile \[inputs, rows of the tile\], so that the kernel reads forward.
fn in_tiles(x: &[f32], inputs: usize, tile: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(tile * inputs).zip(x.par_chunks(tile * inputs)).for_each(|(out, x)| {
        let rows = x.len() / inputs;
        for (row, x) in x.chunks_exact(inputs).enumerate() {
            for (out, &x) in out[row..].iter_mut().step_by(rows).zip(x) {
                *out = x;
            }
        }
    });
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::quants::Format;
    use rallrec_core::rng::row_rng;
    use rand_chacha::rand_core::Rng;

    pub(crate) fn uniform(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = row_rng(seed, "test.matrix", 0, 0);
        (0..count).map(|_| (f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.5) as f32).collect()
    }

    pub(crate) fn le_bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    /// Random blocks with sane scales, whose outputs x inputs values are known from dequantizing.
    pub(crate) fn stored(format: Format, outputs: usize, inputs: usize) -> Vec<u8> {
        if format == Format::F32 {
            return le_bytes(&uniform(outputs * inputs, 7));
        }
        let (values, bytes) = format.block();
        let mut rng = row_rng(3, "test.matrix.bytes", 0, 0);
        let mut out: Vec<u8> = (0..outputs * inputs / values * bytes).map(|_| rng.next_u32() as u8).collect();
        // High bytes of 16-bit floats: exponents near 2^-8.
        let halves: &[usize] = match format {
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[1, 3],
            Format::Q2K => &[81, 83],
            Format::Q3K => &[109],
            Format::Q6K => &[209],
            _ => &[1],
        };
        let exponent = if format == Format::BF16 { 0x3B } else { 0x1C };
        for block in out.chunks_exact_mut(bytes) {
            for &at in halves {
                block[at] = exponent | block[at] & 0x83;
            }
        }
        out
    }

    fn reference(weights: &[f32], x: &[f32], inputs: usize) -> Vec<f32> {
        let one = |x: &[f32], w: &[f32]| x.iter().zip(w).fold(0.0_f32, |sum, (x, w)| x.mul_add(*w, sum));
        x.chunks_exact(inputs).flat_map(|x| weights.chunks_exact(inputs).map(move |w| one(x, w))).collect()
    }

    const FORMATS: [Format; 13] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
    ];

    /// Every output is one chain of fused multiply-adds in the order of the inputs, to the bit: for all formats, for
    /// any number of rows, with panels and chunks that are not full.
    #[test]
    fn products_are_chains_in_the_order_of_the_inputs() {
        let device = Device::flex();
        for (outputs, inputs) in [(32, 32), (100, 160), (7, 256), (3, 768)] {
            for format in FORMATS.into_iter().filter(|format| inputs % format.block().0 == 0) {
                let bytes = stored(format, outputs, inputs);
                let stored = Stored { format, bytes: &bytes, rows: outputs, columns: inputs, interleaved: None };
                let weights = stored.values();
                let kept = Matrix::load(&[stored], Precision::Auto, &device).unwrap();
                let plain = Matrix::load(&[stored], Precision::F32, &device).unwrap();
                for rows in [1, 2, 5, 12, 13, 40] {
                    let x = uniform(rows * inputs, rows as u64);
                    let want = reference(&weights, &x, inputs);
                    for matrix_ in [&kept, &plain] {
                        #[cfg_attr(
                            not(feature = "cuda"),
                            expect(irrefutable_let_patterns, reason = "there is no other")
                        )]
                        let Storage::Host(parts) = &matrix_.storage else { panic!("on the CPU") };
                        for vectors in Vectors::all() {
                            let got = matrix_.product(vectors, parts, &x);
                            assert!(got == want, "{format:?}, {rows} rows of {inputs} to {outputs}, {vectors:?}");
                        }
                    }
                }
                let dense = read(kept.dense(&device));
                let mut output = vec![0.0; inputs];
                for (row, weights) in weights.chunks_exact(inputs).enumerate() {
                    kept.output(row, &mut output);
                    assert_eq!(output, weights, "{format:?}");
                    assert!(floats(&dense)[row..].iter().step_by(outputs).eq(weights), "{format:?}");
                }
            }
        }
    }

    #[test]
    fn matrices_of_different_formats_stand_side_by_side() {
        let device = Device::flex();
        let (a, b) = (stored(Format::Q8_0, 64, 64), stored(Format::Q4_1, 40, 64));
        let a = Stored { format: Format::Q8_0, bytes: &a, rows: 64, columns: 64, interleaved: None };
        let b = Stored { format: Format::Q4_1, bytes: &b, rows: 40, columns: 64, interleaved: None };
        let both = Matrix::load(&[a, b], Precision::Auto, &device).unwrap();
        let x = uniform(3 * 64, 1);
        let got = read(both.apply(matrix(x.clone(), 3, &device)));
        assert_eq!(floats(&got), reference(&[a.values(), b.values()].concat(), &x, 64));
        // A byte and an eighth a weight, and three quarters.
        assert_eq!(both.bytes(), 64 * 64 * 9 / 8 + 64 * 64 * 3 / 4);
    }

    #[test]
    fn a_weight_that_would_become_infinite_is_refused() {
        let load = |largest: f32, precision| {
            let values = [&[1.0; 70], &[largest][..], &[1.0; 25]].concat();
            let (good, bad) = (le_bytes(&[1.0; 96]), le_bytes(&values));
            let part = |bytes| Stored { format: Format::F32, bytes, rows: 3, columns: 32, interleaved: None };
            Matrix::load(&[part(&good), part(&bad)], precision, &Device::flex()).map_err(|error| error.part).err()
        };
        assert_eq!([65_504.0, 65_520.0, -7e4].map(|x| load(x, Precision::F16)), [None, Some(1), Some(1)]);
        assert_eq!([7e4, f32::MAX].map(|x| load(x, Precision::Bf16)), [None, Some(1)]);
        assert_eq!([Precision::Auto, Precision::F32, Precision::Int8].map(|kept| load(f32::MAX, kept)), [None; 3]);
    }

    #[test]
    fn narrow_precisions_round_the_weights_and_nothing_else() {
        let device = Device::flex();
        let values = uniform(64 * 64, 2);
        let bytes = le_bytes(&values);
        let stored = Stored { format: Format::F32, bytes: &bytes, rows: 64, columns: 64, interleaved: None };
        for (precision, error) in [(Precision::Bf16, 2e-3), (Precision::F16, 3e-4), (Precision::Int8, 2.1e-3)] {
            let narrow = Matrix::load(&[stored], precision, &device).unwrap();
            let mut kept = vec![0.0; 64 * 64];
            for (row, kept) in kept.chunks_exact_mut(64).enumerate() {
                narrow.output(row, kept);
            }
            let worst = kept.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst > 0.0 && worst < error, "{precision:?} is off by {worst}");
            let x = uniform(5 * 64, 9);
            let got = read(narrow.apply(matrix(x.clone(), 5, &device)));
            assert_eq!(floats(&got), reference(&kept, &x, 64), "{precision:?}");
        }
    }
}
