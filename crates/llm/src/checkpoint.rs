//! How model files look to the decoder, whatever their format.

use crate::quants::{Format, dequantize};

/// A tensor as it lies in a file: a matrix \[rows, columns\], rows one after another; a vector is one row.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    /// How values are stored.
    pub(crate) format: Format,
    /// All rows.
    pub(crate) bytes: &'a [u8],
    /// Outputs of a matrix.
    pub(crate) rows: usize,
    /// Inputs of a matrix.
    pub(crate) columns: usize,
    /// Head width where rows stand in llama.cpp's order for rotary embedding: within a head rows 0, half, 1, half + 1, …
    pub(crate) interleaved: Option<usize>,
}

impl Stored<'_> {
    /// The bytes of a row, in the order that the rotary embedding pairs: the two halves of a head one after another.
    pub(crate) fn row_bytes(&self, row: usize) -> &[u8] {
        let row = match self.interleaved {
            None => row,
            Some(width) => {
                let (head, in_head) = (row / width, row % width);
                let half = width / 2;
                head * width + in_head % half * 2 + in_head / half
            }
        };
        let (values, bytes) = self.format.block();
        let size = self.columns / values * bytes;
        &self.bytes[row * size..(row + 1) * size]
    }

    /// A row as 32-bit floats.
    pub(crate) fn row(&self, row: usize, to: &mut [f32]) {
        dequantize(self.format, self.row_bytes(row), to);
    }

    /// All rows as 32-bit floats.
    pub(crate) fn values(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.columns];
        for (row, to) in out.chunks_exact_mut(self.columns).enumerate() {
            self.row(row, to);
        }
        out
    }
}
