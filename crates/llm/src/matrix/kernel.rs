//! Products of a few or many rows with packed weights, in vector registers.
//!
//! Every output is one chain of fused multiply-adds over the inputs in their order, starting from 0. Neither the
//! number of rows, nor where a chunk or a tile ends, nor the width of the vectors, nor how the weights are stored
//! shows in the result: that is what keeps results independent of the batch. Weights are widened to 32 bits a chunk
//! at a time, in the first-level cache, and there is no copy of a whole matrix.

use super::panels::{CHUNK, Panels, Values, WIDTH};
use pulp::Simd;
use std::sync::OnceLock;

/// What the kernels need of a set of vector instructions beyond arithmetic: widening stored weights.
///
/// Each function gives `2 * F32_LANES` consecutive values.
pub(super) trait Widen: Simd {
    /// Rows that are computed side by side, so that their sums fill the registers.
    const TILE: usize;
    /// Of signed bytes.
    fn bytes(self, from: &[i8]) -> [Self::f32s; 2];
    /// Of one panel row of nibbles (16 bytes: low halves are columns 0 to 15), from a column on.
    fn nibbles(self, from: &[u8], column: usize) -> [Self::f32s; 2];
    /// Of bfloat16.
    fn bf16(self, from: &[u16]) -> [Self::f32s; 2];
    /// Of half precision.
    fn f16(self, from: &[u16]) -> [Self::f32s; 2];
}

impl Widen for pulp::Scalar {
    const TILE: usize = 4;

    #[inline(always)]
    fn bytes(self, from: &[i8]) -> [f32; 2] {
        [f32::from(from[0]), f32::from(from[1])]
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8], column: usize) -> [f32; 2] {
        let shift = column / 16 * 4;
        [0, 1].map(|i| f32::from(from[column % 16 + i] >> shift & 15))
    }

    #[inline(always)]
    fn bf16(self, from: &[u16]) -> [f32; 2] {
        [0, 1].map(|i| half::bf16::from_bits(from[i]).to_f32())
    }

    #[inline(always)]
    fn f16(self, from: &[u16]) -> [f32; 2] {
        [0, 1].map(|i| half::f16::from_bits(from[i]).to_f32())
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Widen;
    use pulp::{
        Simd,
        bytemuck::cast_slice,
        cast, f32x8, f32x16,
        x86::{V3, V4},
    };

    impl Widen for V4 {
        const TILE: usize = 12;

        #[inline(always)]
        fn bytes(self, from: &[i8]) -> [f32x16; 2] {
            let halves: &[pulp::i8x16] = cast_slice(from);
            let widen = |half| cast(self.avx512f._mm512_cvtepi32_ps(self.avx512f._mm512_cvtepi8_epi32(cast(half))));
            [widen(halves[0]), widen(halves[1])]
        }

        #[inline(always)]
        fn nibbles(self, from: &[u8], _column: usize) -> [f32x16; 2] {
            let packed: &[pulp::u8x16] = cast_slice(from);
            let wide = self.avx512f._mm512_cvtepu8_epi32(cast(packed[0]));
            let low = self.avx512f._mm512_and_si512(wide, self.avx512f._mm512_set1_epi32(15));
            let high = self.avx512f._mm512_srli_epi32::<4>(wide);
            [cast(self.avx512f._mm512_cvtepi32_ps(low)), cast(self.avx512f._mm512_cvtepi32_ps(high))]
        }

        #[inline(always)]
        fn bf16(self, from: &[u16]) -> [f32x16; 2] {
            let halves: &[pulp::u16x16] = cast_slice(from);
            let widen = |half| {
                cast(
                    self.avx512f
                        ._mm512_slli_epi32::<16>(self.avx512f._mm512_cvtepu16_epi32(cast::<pulp::u16x16, _>(half))),
                )
            };
            [widen(halves[0]), widen(halves[1])]
        }

        #[inline(always)]
        fn f16(self, from: &[u16]) -> [f32x16; 2] {
            let halves: &[pulp::u16x16] = cast_slice(from);
            let widen = |half| cast(self.avx512f._mm512_cvtph_ps(cast::<pulp::u16x16, _>(half)));
            [widen(halves[0]), widen(halves[1])]
        }
    }

    impl Widen for V3 {
        const TILE: usize = 6;

        #[inline(always)]
        fn bytes(self, from: &[i8]) -> [f32x8; 2] {
            let both: &[pulp::i8x16] = cast_slice(from);
            let low = cast::<pulp::i8x16, _>(both[0]);
            let high = self.sse2._mm_srli_si128::<8>(low);
            [low, high].map(|eight| cast(self.avx._mm256_cvtepi32_ps(self.avx2._mm256_cvtepi8_epi32(eight))))
        }

        #[inline(always)]
        fn nibbles(self, from: &[u8], column: usize) -> [f32x8; 2] {
            let both: &[pulp::u8x16] = cast_slice(from);
            let low = cast::<pulp::u8x16, _>(both[0]);
            let high = self.sse2._mm_srli_si128::<8>(low);
            let mask = self.avx._mm256_set1_epi32(15);
            [low, high].map(|eight| {
                let wide = self.avx2._mm256_cvtepu8_epi32(eight);
                let four = if column == 0 {
                    self.avx2._mm256_and_si256(wide, mask)
                } else {
                    self.avx2._mm256_srli_epi32::<4>(wide)
                };
                cast(self.avx._mm256_cvtepi32_ps(four))
            })
        }

        #[inline(always)]
        fn bf16(self, from: &[u16]) -> [f32x8; 2] {
            let halves: &[pulp::u16x8] = cast_slice(from);
            [halves[0], halves[1]].map(|half| {
                cast(self.avx2._mm256_slli_epi32::<16>(self.avx2._mm256_cvtepu16_epi32(cast::<pulp::u16x8, _>(half))))
            })
        }

        #[inline(always)]
        fn f16(self, from: &[u16]) -> [f32x8; 2] {
            // Exponent and fraction moved to their places read as the value times 2^-112, subnormal ones too. Infinities
            // would become numbers: packing lets none in.
            let halves: &[pulp::u16x8] = cast_slice(from);
            [halves[0], halves[1]].map(|half| {
                let wide = self.avx2._mm256_cvtepu16_epi32(cast::<pulp::u16x8, _>(half));
                let size = self.avx2._mm256_and_si256(wide, self.avx._mm256_set1_epi32(0x7FFF));
                let size = cast(self.avx2._mm256_slli_epi32::<13>(size));
                let size = self.mul_f32s(size, self.splat_f32s(f32::from_bits((127 + 112) << 23)));
                let sign = self.avx2._mm256_slli_epi32::<31>(self.avx2._mm256_srli_epi32::<15>(wide));
                cast(self.avx._mm256_or_ps(cast(size), cast(sign)))
            })
        }
    }
}

/// A strip of the product: some panels for some rows.
pub(super) struct Strip<'a> {
    pub(super) panels: &'a Panels,
    pub(super) first_panel: usize,
    /// Inputs of the rows, in tiles of [`Vectors::tile_rows`] rows: for each tile \[inputs, rows of the tile\].
    pub(super) x: &'a [f32],
    /// Each row's part of the output.
    pub(super) rows: Vec<&'a mut [f32]>,
}

/// A set of vector instructions that this CPU has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Vectors {
    #[cfg(target_arch = "x86_64")]
    V4(pulp::x86::V4),
    #[cfg(target_arch = "x86_64")]
    V3(pulp::x86::V3),
    Scalar(pulp::Scalar),
}

impl Vectors {
    /// All that this CPU has, widest first.
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(pulp::x86::V4::try_new().map(Self::V4));
            all.extend(pulp::x86::V3::try_new().map(Self::V3));
        }
        all.push(Self::Scalar(pulp::Scalar::new()));
        all
    }

    /// The widest.
    pub(super) fn widest() -> Self {
        static WIDEST: OnceLock<Vectors> = OnceLock::new();
        *WIDEST.get_or_init(|| Self::all()[0])
    }

    /// Rows that are computed side by side.
    pub(super) fn tile_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::V4(_) => pulp::x86::V4::TILE,
            #[cfg(target_arch = "x86_64")]
            Self::V3(_) => pulp::x86::V3::TILE,
            Self::Scalar(_) => pulp::Scalar::TILE,
        }
    }

    /// Runs `op` with these instructions.
    pub(super) fn run(self, op: impl WithWiden) {
        struct Call<S, O>(S, O);
        impl<S: Widen, O: WithWiden> pulp::NullaryFnOnce for Call<S, O> {
            type Output = ();

            #[inline(always)]
            fn call(self) {
                self.1.run(self.0);
            }
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::V4(simd) => simd.vectorize(Call(simd, op)),
            #[cfg(target_arch = "x86_64")]
            Self::V3(simd) => simd.vectorize(Call(simd, op)),
            Self::Scalar(simd) => op.run(simd),
        }
    }
}

/// Code that is compiled for every set of vector instructions.
pub(super) trait WithWiden {
    fn run<S: Widen>(self, simd: S);
}

impl WithWiden for Strip<'_> {
    #[inline(always)]
    fn run<S: Widen>(mut self, simd: S) {
        let inputs = self.panels.inputs;
        let width = self.rows.first().map_or(0, |row| row.len());
        let mut room = [0.0; CHUNK * WIDTH];
        let mut spare = Vec::new();
        for panel in 0..width.div_ceil(WIDTH) {
            let columns = panel * WIDTH..width.min((panel + 1) * WIDTH);
            let narrow = columns.len() < WIDTH;
            if let ([row], false) = (&mut self.rows[..], narrow)
                && one_row(simd, self.panels, self.first_panel + panel, self.x, &mut row[columns.clone()])
            {
                continue;
            }
            if narrow {
                spare.resize(self.rows.len() * WIDTH, 0.0);
            }
            for first in (0..inputs).step_by(CHUNK) {
                let count = CHUNK.min(inputs - first);
                let weights = chunk(simd, self.panels, self.first_panel + panel, first, count, &mut room);
                let mut tiles = self.rows.chunks_mut(S::TILE);
                let mut done = 0;
                for spare in spare.chunks_mut(S::TILE * WIDTH).map(Some).chain(std::iter::repeat_with(|| None)) {
                    let Some(tile) = tiles.next() else { break };
                    let x = &self.x[done * inputs + first * tile.len()..][..count * tile.len()];
                    done += tile.len();
                    match spare {
                        Some(spare) => {
                            let mut tile: Vec<&mut [f32]> = spare.chunks_mut(WIDTH).collect();
                            add_tile(simd, x, weights, &mut tile, 0, first == 0);
                        }
                        None => add_tile(simd, x, weights, tile, columns.start, first == 0),
                    }
                }
            }
            if narrow {
                for (row, spare) in self.rows.iter_mut().zip(spare.chunks_exact(WIDTH)) {
                    row[columns.clone()].copy_from_slice(&spare[..columns.len()]);
                }
            }
        }
    }
}

/// `count` rows of a panel from input `first` on as 32-bit floats: the stored ones, or widened into `room`.
#[inline(always)]
pub(super) fn chunk<'a, S: Widen>(
    simd: S,
    panels: &'a Panels,
    panel: usize,
    first: usize,
    count: usize,
    room: &'a mut [f32; CHUNK * WIDTH],
) -> &'a [f32] {
    let start = (panel * panels.stored_inputs() + first) * WIDTH;
    let values = start..start + count * WIDTH;
    let room = &mut room[..count * WIDTH];
    match &panels.values {
        Values::F32(weights) => return &weights[values],
        Values::Bf16(weights) => widen(simd, &weights[values], room, WIDTH, |simd, row, c| simd.bf16(&row[c..])),
        Values::F16(weights) => widen(simd, &weights[values], room, WIDTH, |simd, row, c| simd.f16(&row[c..])),
        Values::Bytes { q, scale, minimum } => {
            let q = &q[values];
            scaled(simd, panels.group, start, scale, minimum, room, |simd, row, c| simd.bytes(&q[row * WIDTH + c..]));
        }
        Values::Nibbles { q, scale, minimum } => {
            let q = &q[start / 2..(start + count * WIDTH) / 2];
            let half = WIDTH / 2;
            scaled(simd, panels.group, start, scale, minimum, room, |simd, row, c| {
                simd.nibbles(&q[row * half..(row + 1) * half], c)
            });
        }
    }
    room
}

#[inline(always)]
fn widen<S: Widen, T>(simd: S, from: &[T], to: &mut [f32], row: usize, get: impl Fn(S, &[T], usize) -> [S::f32s; 2]) {
    let block = 2 * S::F32_LANES;
    for (from, to) in from.chunks_exact(row).zip(to.chunks_exact_mut(WIDTH)) {
        for (column, to) in (0..WIDTH).step_by(block).zip(to.chunks_exact_mut(block)) {
            S::as_mut_simd_f32s(to).0.copy_from_slice(&get(simd, &from[..row], column));
        }
    }
}

/// scale * q + minimum, with one scale and minimum a column and `group` inputs.
#[inline(always)]
fn scaled<S: Widen>(
    simd: S,
    group: usize,
    start: usize,
    scale: &[f32],
    minimum: &[f32],
    to: &mut [f32],
    get: impl Fn(S, usize, usize) -> [S::f32s; 2],
) {
    let block = 2 * S::F32_LANES;
    for (index, to) in to.chunks_mut(group * WIDTH).enumerate() {
        let at = start / group + index * WIDTH;
        let scale = &scale[at..at + WIDTH];
        let minimum = minimum.get(at..at + WIDTH);
        for column in (0..WIDTH).step_by(block) {
            let end = column + block;
            let scale = S::as_simd_f32s(&scale[column..end]).0;
            let rows = to.chunks_exact_mut(WIDTH).enumerate();
            if let Some(minimum) = minimum {
                let minimum = S::as_simd_f32s(&minimum[column..end]).0;
                for (row, to) in rows {
                    let q = get(simd, index * group + row, column);
                    let to = S::as_mut_simd_f32s(&mut to[column..end]).0;
                    to[0] = simd.mul_add_f32s(q[0], scale[0], minimum[0]);
                    to[1] = simd.mul_add_f32s(q[1], scale[1], minimum[1]);
                }
            } else {
                for (row, to) in rows {
                    let q = get(simd, index * group + row, column);
                    let to = S::as_mut_simd_f32s(&mut to[column..end]).0;
                    to[0] = simd.mul_f32s(q[0], scale[0]);
                    to[1] = simd.mul_f32s(q[1], scale[1]);
                }
            }
        }
    }
}

/// A panel's product with one row, where weights have scales: they go from storage into the sums without a detour
/// through memory, the same operations in the same order. `false` for other weights: nothing is computed.
#[inline(always)]
fn one_row<S: Widen>(simd: S, panels: &Panels, panel: usize, x: &[f32], out: &mut [f32]) -> bool {
    let start = panel * panels.stored_inputs() * WIDTH;
    match &panels.values {
        Values::F32(_) | Values::Bf16(_) | Values::F16(_) => return false,
        Values::Bytes { q, scale, minimum } => {
            let q = &q[start..];
            one_scaled_row(simd, panels.group, (start, scale, minimum), x, out, |simd, input, column| {
                simd.bytes(&q[input * WIDTH + column..][..2 * S::F32_LANES])
            });
        }
        Values::Nibbles { q, scale, minimum } => {
            let q = &q[start / 2..];
            one_scaled_row(simd, panels.group, (start, scale, minimum), x, out, |simd, input, column| {
                simd.nibbles(&q[input * (WIDTH / 2)..][..WIDTH / 2], column)
            });
        }
    }
    true
}

#[inline(always)]
fn one_scaled_row<S: Widen>(
    simd: S,
    group: usize,
    (start, scale, minimum): (usize, &[f32], &[f32]),
    x: &[f32],
    out: &mut [f32],
    get: impl Fn(S, usize, usize) -> [S::f32s; 2],
) {
    let block = 2 * S::F32_LANES;
    for (column, out) in (0..WIDTH).step_by(block).zip(out.chunks_exact_mut(block)) {
        let mut sums = [simd.splat_f32s(0.0); 2];
        for (index, x) in x.chunks(group).enumerate() {
            let at = start / group + index * WIDTH + column;
            let scale = S::as_simd_f32s(&scale[at..at + block]).0;
            let inputs = x.iter().zip(index * group..);
            if minimum.is_empty() {
                for (&x, input) in inputs {
                    let (q, x) = (get(simd, input, column), simd.splat_f32s(x));
                    let weight = [simd.mul_f32s(q[0], scale[0]), simd.mul_f32s(q[1], scale[1])];
                    sums = [simd.mul_add_f32s(x, weight[0], sums[0]), simd.mul_add_f32s(x, weight[1], sums[1])];
                }
            } else {
                let minimum = S::as_simd_f32s(&minimum[at..at + block]).0;
                for (&x, input) in inputs {
                    let (q, x) = (get(simd, input, column), simd.splat_f32s(x));
                    let weight =
                        [simd.mul_add_f32s(q[0], scale[0], minimum[0]), simd.mul_add_f32s(q[1], scale[1], minimum[1])];
                    sums = [simd.mul_add_f32s(x, weight[0], sums[0]), simd.mul_add_f32s(x, weight[1], sums[1])];
                }
            }
        }
        S::as_mut_simd_f32s(out).0.copy_from_slice(&sums);
    }
}

/// Adds a chunk of inputs to a tile of sums, or begins them.
#[inline(always)]
fn add_tile<S: Widen>(simd: S, x: &[f32], weights: &[f32], rows: &mut [&mut [f32]], column: usize, begin: bool) {
    macro_rules! tiles {
        ($($count:literal)*) => {
            match rows.len() {
                $($count if $count <= S::TILE => add_rows::<S, $count>(simd, x, weights, rows, column, begin),)*
                _ => unreachable!("a tile has at most {} rows", S::TILE),
            }
        };
    }
    tiles!(1 2 3 4 5 6 7 8 9 10 11 12);
}

#[inline(always)]
fn add_rows<S: Widen, const R: usize>(
    simd: S,
    x: &[f32],
    weights: &[f32],
    rows: &mut [&mut [f32]],
    column: usize,
    begin: bool,
) {
    let block = 2 * S::F32_LANES;
    for first in (0..WIDTH).step_by(block) {
        let at = column + first..column + first + block;
        let mut sums = [[simd.splat_f32s(0.0); 2]; R];
        if !begin {
            for (sum, row) in sums.iter_mut().zip(&*rows) {
                sum.copy_from_slice(S::as_simd_f32s(&row[at.clone()]).0);
            }
        }
        for (x, weight) in x.chunks_exact(R).zip(weights.chunks_exact(WIDTH)) {
            let weight = S::as_simd_f32s(&weight[first..first + block]).0;
            for r in 0..R {
                let x = simd.splat_f32s(x[r]);
                sums[r] = [simd.mul_add_f32s(x, weight[0], sums[r][0]), simd.mul_add_f32s(x, weight[1], sums[r][1])];
            }
        }
        for (sum, row) in sums.iter().zip(rows.iter_mut()) {
            S::as_mut_simd_f32s(&mut row[at.clone()]).0.copy_from_slice(sum);
        }
    }
}
