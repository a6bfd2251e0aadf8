//! Attention of prompts on tensor cores: what [`crate::attention::attend`] does for items that have all of their pages,
//! in 16-bit floats.
//!
//! Scores and weighted sums are products of 16 x 16 fragments with sums in f32; the softmax between them runs in f32,
//! and its weights are rounded to the activations' type. How a fragment lies in registers is the hardware's affair, so
//! rows are not scaled by their running maximum at every page: each row has a reference, and only where a score exceeds
//! it by [`SLACK`] are the row's sums scaled, through shared memory. That happens seldom after the first pages, and a row
//! decides for itself: its result does not depend on the rows beside it.

use crate::{
    PAGE, PLANE,
    attention::{ITEM, TOKEN, Tile, UNSEEN, max_of},
    rotary::layer_part,
};
use cubecl::prelude::*;

/// Query rows of a plane: those of a fragment.
pub const ROWS: usize = 16;
/// Side of a fragment.
const SIDE: usize = 16;
/// By how much a score may exceed its row's reference: weights stay below e^5.
const SLACK: f32 = 5.0;
/// Above the score of a position that is not seen, below all others.
const HIDDEN: f32 = -1e29;
/// Vectors of a row of scores (of 4) and of weights (of 8), one more than they need: rows do not meet in a bank.
const SCORE_ROW: usize = PAGE / 4 + 1;
const WEIGHT_ROW: usize = PAGE / 8 + 1;

/// Bytes of shared memory that a cube takes.
pub fn shared_bytes(tile: &Tile) -> usize {
    2 * (2 * PAGE * (tile.width + 8)) + tile.planes * ROWS * (16 * SCORE_ROW + 16 * WEIGHT_ROW)
}

/// Attention of every item's tokens, for one key head: cubes (items, keys).
///
/// Arguments are those of [`crate::attention::attend`] for whole items; `tile.rows` is [`ROWS`], and the heads' width a
/// multiple of 16.
#[cube(launch_unchecked)]
pub fn attend_tiles<F: Float>(
    queries: &[Vector<F, Const<8>>],
    keys: &[Vector<F, Const<8>>],
    values: &[Vector<F, Const<8>>],
    items: &[u32],
    tokens: &[u32],
    pages: &[u32],
    out: &mut [Vector<F, Const<8>>],
    layer: u32,
    scale: f32,
    window: u32,
    #[comptime] tile: Tile,
    #[define(F)] _activations: ElemType,
) {
    let vectors = comptime!(tile.width / 8);
    // A vector of padding a row, as above.
    let stride = comptime!(tile.width / 8 + 1);
    let numbers = comptime!((tile.width + 8) as u32);
    let parts = comptime!(tile.width / SIDE);
    let group = comptime!(tile.queries / tile.keys);
    let units = comptime!(tile.planes * PLANE as usize);
    let item = CUBE_POS_X as usize * ITEM;
    let kv = CUBE_POS_Y as usize;
    let first_token = items[item] as usize;
    let valid = items[item + 1] as usize * group;
    let first_page = items[item + 2] as usize;
    let page_count = items[item + 3];
    let unit = UNIT_POS as usize;
    // Two units have a row.
    let in_plane = UNIT_POS_PLANE as usize / 2;
    let half = UNIT_POS_PLANE as usize % 2;
    let row = PLANE_POS as usize * ROWS + in_plane;

    let mut k = Shared::<[Vector<F, Const<8>>]>::new_slice(PAGE * stride);
    let mut v = Shared::<[Vector<F, Const<8>>]>::new_slice(PAGE * stride);
    let mut scores = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(tile.planes * ROWS * SCORE_ROW));
    let mut weights = Shared::<[Vector<F, Const<8>>]>::new_slice(comptime!(tile.planes * ROWS * WEIGHT_ROW));
    let score_from = PLANE_POS as usize * comptime!(ROWS * SCORE_ROW);
    let score_end = score_from + comptime!(ROWS * SCORE_ROW);
    let weight_from = PLANE_POS as usize * comptime!(ROWS * WEIGHT_ROW);
    let weight_end = weight_from + comptime!(ROWS * WEIGHT_ROW);
    let my_scores = score_from + in_plane * SCORE_ROW;
    let my_weights = weight_from + in_plane * WEIGHT_ROW;

    // Where the row's query lies and its result goes; rows beyond the item's compute what nobody reads.
    let mut head = 0usize;
    let mut last = 0u32;
    if row < valid {
        let token = (first_token + row / group) * TOKEN;
        head = tokens[token] as usize * comptime!(tile.queries) + kv * group + row % group;
        last = tokens[token + 1];
    }
    let mut q = Sequence::<cmma::Matrix<Vector<F, Const<8>>>>::new();
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for d in 0..parts {
        weights[my_weights + half] = queries[head * vectors + d * 2 + half];
        sync_plane();
        q.push(cmma::Matrix::<Vector<F, Const<8>>>::from_slice(
            cmma::MatrixIdent::A,
            SIDE,
            SIDE,
            SIDE,
            cmma::MatrixLayout::RowMajor,
            &weights[weight_from..weight_end],
            comptime!(WEIGHT_ROW as u32 * 8),
        ));
        sync_plane();
        sums.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            SIDE,
            SIDE,
            SIDE,
            cmma::MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    let mut reference = f32::new(UNSEEN);
    let mut sum = 0.0f32;
    let mut position = items[item + 4] + half as u32 * SIDE as u32;
    for page in 0..page_count {
        let part = layer_part(pages[first_page + page as usize], layer);
        let from = (part * comptime!(tile.keys) + kv) * PAGE * vectors;
        // The units that are still at the page before read what is replaced here.
        sync_cube();
        let mut i = unit;
        while i < PAGE * vectors {
            let to = i / vectors * stride + i % vectors;
            k[to] = keys[from + i];
            v[to] = values[from + i];
            i += units;
        }
        sync_cube();
        #[unroll]
        for n in 0..PAGE / SIDE {
            let product = cmma::Matrix::<f32>::from_value(
                cmma::MatrixIdent::Accumulator,
                SIDE,
                SIDE,
                SIDE,
                cmma::MatrixLayout::Undefined,
                0.0f32,
            );
            #[unroll]
            for d in 0..parts {
                let key = cmma::Matrix::<Vector<F, Const<8>>>::from_slice(
                    cmma::MatrixIdent::B,
                    SIDE,
                    SIDE,
                    SIDE,
                    cmma::MatrixLayout::ColMajor,
                    &k[n * SIDE * stride + d * 2..PAGE * stride],
                    numbers,
                );
                cmma::execute(&q[d], &key, &product, &product);
            }
            cmma::store(
                &mut scores[score_from + n * 4..score_end],
                &product,
                comptime!(SCORE_ROW as u32 * 4),
                cmma::MatrixLayout::RowMajor,
            );
        }
        sync_plane();
        let mut score = Array::<f32>::new(SIDE);
        let mut largest = f32::new(UNSEEN);
        #[unroll]
        for j in 0..SIDE / 4 {
            let four = scores[my_scores + half * 4 + j];
            #[unroll]
            for c in 0..4usize {
                let at = position + comptime!((4 * j + c) as u32);
                let seen = at <= last && (window == 0 || at + window > last);
                let value = select(seen, four.extract(c) * scale, UNSEEN);
                score[4 * j + c] = value;
                largest = max_of(largest, value);
            }
        }
        let largest = max_of(largest, plane_shuffle_xor(largest, 1u32));
        let mut correction = 1.0f32;
        if largest > reference + SLACK {
            // Before the first position that is seen there are no sums yet.
            if reference > HIDDEN {
                correction = f32::exp(reference - largest);
            }
            reference = largest;
        }
        let mut added = 0.0f32;
        #[unroll]
        for j in 0..SIDE / 8 {
            let mut eight = Vector::<F, Const<8>>::new(F::new(0.0));
            #[unroll]
            for c in 0..8usize {
                let value = score[8 * j + c];
                let weight = F::cast_from(select(value > HIDDEN, f32::exp(value - reference), 0.0f32));
                added += f32::cast_from(weight);
                eight.insert(c, weight);
            }
            weights[my_weights + half * 2 + j] = eight;
        }
        sum = fma(sum, correction, added);
        if plane_any(correction < 1.0f32) {
            #[unroll]
            for n in 0..parts {
                sync_plane();
                cmma::store(
                    &mut scores[score_from..score_end],
                    &sums[n],
                    comptime!(SCORE_ROW as u32 * 4),
                    cmma::MatrixLayout::RowMajor,
                );
                sync_plane();
                #[unroll]
                for j in 0..2usize {
                    let scaled = scores[my_scores + half * 2 + j] * Vector::<f32, Const<4>>::new(correction);
                    scores[my_scores + half * 2 + j] = scaled;
                }
                sync_plane();
                cmma::load_with_layout(
                    sums.index_mut(n),
                    &scores[score_from..score_end],
                    comptime!(SCORE_ROW as u32 * 4),
                    cmma::MatrixLayout::RowMajor,
                );
            }
        }
        sync_plane();
        #[unroll]
        for j in 0..PAGE / SIDE {
            let weight = cmma::Matrix::<Vector<F, Const<8>>>::from_slice(
                cmma::MatrixIdent::A,
                SIDE,
                SIDE,
                SIDE,
                cmma::MatrixLayout::RowMajor,
                &weights[weight_from + j * 2..weight_end],
                comptime!(WEIGHT_ROW as u32 * 8),
            );
            #[unroll]
            for n in 0..parts {
                let value = cmma::Matrix::<Vector<F, Const<8>>>::from_slice(
                    cmma::MatrixIdent::B,
                    SIDE,
                    SIDE,
                    SIDE,
                    cmma::MatrixLayout::RowMajor,
                    &v[j * SIDE * stride + n * 2..PAGE * stride],
                    numbers,
                );
                cmma::execute(&weight, &value, &sums[n], &sums[n]);
            }
        }
        position += PAGE as u32;
    }
    let total = sum + plane_shuffle_xor(sum, 1u32);
    #[unroll]
    for n in 0..parts {
        sync_plane();
        cmma::store(
            &mut scores[score_from..score_end],
            &sums[n],
            comptime!(SCORE_ROW as u32 * 4),
            cmma::MatrixLayout::RowMajor,
        );
        sync_plane();
        if row < valid {
            let mut eight = Vector::<F, Const<8>>::new(F::new(0.0));
            #[unroll]
            for j in 0..2usize {
                let four = scores[my_scores + half * 2 + j];
                #[unroll]
                for c in 0..4usize {
                    eight.insert(4 * j + c, F::cast_from(four.extract(c) / total));
                }
            }
            out[head * vectors + n * 2 + half] = eight;
        }
    }
}
