//! Grouped-query attention over paged keys and values, for prefill and for decoding.
//!
//! The work is cut into items: some tokens that see the same pages, each up to a position of its own. A prefill item is
//! a few consecutive tokens of one sequence and all of their pages. In decoding an item is a chunk of pages and every
//! sequence that has them: the pages of a prompt are read once for all its samples. [`combine`] then puts each token's
//! chunks together. Who makes up the items decides nothing about a token's result as long as the chunks begin at the
//! same positions: the softmax runs over a token's pages in order, and no token meets another.

use crate::{PAGE, PLANE, rotary::layer_part};
use cubecl::prelude::*;

/// Numbers that describe an item in `items`.
pub const ITEM: usize = 5;
/// Numbers that describe a token of an item in `tokens`.
pub const TOKEN: usize = 3;
/// Numbers that describe a token in `combine`'s list.
pub const RANGE: usize = 3;
/// Score of a position that is not seen: finite, so that no infinity is subtracted from another.
pub(crate) const UNSEEN: f32 = -1e30;

/// Sizes of the attention and of a cube's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads.
    pub keys: usize,
    /// Width of a head; a multiple of 32.
    pub width: usize,
    /// Planes of a cube.
    pub planes: usize,
    /// Query rows (token and head) that a plane computes.
    pub rows: usize,
    /// Whether an item has all pages of its tokens: results are then final, and there is nothing to combine.
    pub whole: bool,
}

impl Tile {
    /// Tokens that fit into an item.
    pub fn tokens(&self) -> usize {
        self.planes * self.rows / (self.queries / self.keys)
    }

    /// Bytes of shared memory that a cube takes.
    pub fn shared_bytes(&self) -> usize {
        let rows = self.planes * self.rows;
        4 * (rows * self.width + PAGE * (self.width + 4) + PAGE * self.width + rows * PAGE)
    }
}

/// Attention of every item's tokens, for one key head: cubes (items, keys).
///
/// * `queries` and `out` \[tokens, queries, width\]; `keys` and `values` \[parts, keys, [`PAGE`], width\]
/// * `items` \[items, [`ITEM`]\]: first entry and number of entries in `tokens`; first entry and number of entries in
///   `pages`; position of the first of these pages
/// * `tokens` \[entries, [`TOKEN`]\]: row of the token, last position that it sees, row in `sums`
/// * `pages`: codes, see [`crate::rotary::rotate_and_store`]
/// * `sums` \[any, queries, width\] and `stats` \[any, queries, 2\]: weighted sums of the values, and the maximum and the sum
///   of their weights, where results are not final
/// * a token at position p sees positions above p - `window` only; 0 for all
#[cube(launch_unchecked)]
pub fn attend<F: Float>(
    queries: &[Vector<F, Const<4>>],
    keys: &[Vector<F, Const<4>>],
    values: &[Vector<F, Const<4>>],
    items: &[u32],
    tokens: &[u32],
    pages: &[u32],
    out: &mut [F],
    sums: &mut [f32],
    stats: &mut [f32],
    layer: u32,
    scale: f32,
    window: u32,
    #[comptime] tile: Tile,
    #[define(F)] _activations: ElemType,
) {
    let width = comptime!(tile.width);
    let vectors = comptime!(tile.width / 4);
    let group = comptime!(tile.queries / tile.keys);
    let rows = comptime!(tile.planes * tile.rows);
    let columns = comptime!(tile.width / PLANE as usize);
    let units = comptime!(tile.planes * PLANE as usize);
    let item = CUBE_POS_X as usize * ITEM;
    let kv = CUBE_POS_Y as usize;
    let first_token = items[item] as usize;
    let valid = items[item + 1] as usize * group;
    let first_page = items[item + 2] as usize;
    let page_count = items[item + 3];
    let unit = UNIT_POS as usize;
    let lane = UNIT_POS_PLANE as usize;
    let plane_row = PLANE_POS as usize * comptime!(tile.rows);

    let mut q = Shared::<[Vector<f32, Const<4>>]>::new_slice(rows * vectors);
    // One vector of padding a row: 32 rows are read side by side without meeting in a bank.
    let mut k = Shared::<[Vector<f32, Const<4>>]>::new_slice(PAGE * (vectors + 1));
    let mut v = Shared::<[f32]>::new_slice(PAGE * width);
    let mut weights = Shared::<[f32]>::new_slice(rows * PAGE);

    let mut i = unit;
    while i < rows * vectors {
        let row = i / vectors;
        let mut query = Vector::<f32, Const<4>>::new(0.0f32);
        if row < valid {
            let token = tokens[(first_token + row / group) * TOKEN] as usize;
            let head = kv * group + row % group;
            let at = (token * comptime!(tile.queries) + head) * vectors + i % vectors;
            query = Vector::<f32, Const<4>>::cast_from(queries[at]) * Vector::<f32, Const<4>>::new(scale);
        }
        q[i] = query;
        i += units;
    }
    let mut last = Array::<u32>::new(tile.rows);
    let mut max = Array::<f32>::new(tile.rows);
    let mut sum = Array::<f32>::new(tile.rows);
    let mut result = Array::<f32>::new(comptime!(tile.rows * columns));
    #[unroll]
    for r in 0..tile.rows {
        last[r] = 0u32;
        if plane_row + r < valid {
            last[r] = tokens[(first_token + (plane_row + r) / group) * TOKEN + 1];
        }
        max[r] = UNSEEN;
        sum[r] = 0.0f32;
        #[unroll]
        for c in 0..columns {
            result[r * columns + c] = 0.0f32;
        }
    }
    let mut position = items[item + 4] + UNIT_POS_PLANE;
    for page in 0..page_count {
        let part = layer_part(pages[first_page + page as usize], layer);
        let from = (part * comptime!(tile.keys) + kv) * PAGE * vectors;
        // The units that are still at the page before read what is replaced here.
        sync_cube();
        let mut i = unit;
        while i < PAGE * vectors {
            k[i / vectors * (vectors + 1) + i % vectors] = Vector::cast_from(keys[from + i]);
            let value = Vector::<f32, Const<4>>::cast_from(values[from + i]);
            #[unroll]
            for c in 0..4usize {
                v[4 * i + c] = value.extract(c);
            }
            i += units;
        }
        sync_cube();
        let mut scores = Array::<f32>::new(tile.rows);
        #[unroll]
        for r in 0..tile.rows {
            scores[r] = 0.0f32;
        }
        for d in 0..vectors {
            let key = k[lane * (vectors + 1) + d];
            #[unroll]
            for r in 0..tile.rows {
                let query = q[(plane_row + r) * vectors + d];
                let mut score = scores[r];
                #[unroll]
                for c in 0..4usize {
                    score = fma(query.extract(c), key.extract(c), score);
                }
                scores[r] = score;
            }
        }
        #[unroll]
        for r in 0..tile.rows {
            let seen = position <= last[r] && (window == 0 || position + window > last[r]);
            let score = select(seen, scores[r], UNSEEN);
            let new_max = max_of(max[r], plane_max(score));
            let weight = select(seen, f32::exp(score - new_max), 0.0f32);
            let correction = f32::exp(max[r] - new_max);
            sum[r] = sum[r] * correction + plane_sum(weight);
            max[r] = new_max;
            weights[(plane_row + r) * PAGE + lane] = weight;
            #[unroll]
            for c in 0..columns {
                result[r * columns + c] *= correction;
            }
        }
        sync_plane();
        for j in 0..PAGE {
            #[unroll]
            for c in 0..columns {
                let value = v[j * width + c * PLANE as usize + lane];
                #[unroll]
                for r in 0..tile.rows {
                    let weight = weights[(plane_row + r) * PAGE + j];
                    result[r * columns + c] = fma(weight, value, result[r * columns + c]);
                }
            }
        }
        position += PAGE as u32;
    }
    #[unroll]
    for r in 0..tile.rows {
        let row = plane_row + r;
        if row < valid {
            let entry = (first_token + row / group) * TOKEN;
            let head = kv * group + row % group;
            if comptime!(tile.whole) {
                let at = (tokens[entry] as usize * comptime!(tile.queries) + head) * width;
                #[unroll]
                for c in 0..columns {
                    out[at + c * PLANE as usize + lane] = F::cast_from(result[r * columns + c] / sum[r]);
                }
            } else {
                let at = tokens[entry + 2] as usize * comptime!(tile.queries) + head;
                #[unroll]
                for c in 0..columns {
                    sums[at * width + c * PLANE as usize + lane] = result[r * columns + c];
                }
                if lane == 0 {
                    stats[2 * at] = max[r];
                    stats[2 * at + 1] = sum[r];
                }
            }
        }
    }
}

#[cube]
pub(crate) fn max_of(a: f32, b: f32) -> f32 {
    select(a > b, a, b)
}

/// Puts the chunks of [`attend`] together: cubes (entries, queries) of `width` units.
///
/// `ranges` is \[entries, [`RANGE`]\]: row of the token in `out`, its first row in `sums` and their number; the others are
/// as in [`attend`].
#[cube(launch_unchecked)]
pub fn combine<F: Float>(
    sums: &[f32],
    stats: &[f32],
    ranges: &[u32],
    out: &mut [F],
    #[comptime] queries: usize,
    #[comptime] width: usize,
    #[define(F)] _activations: ElemType,
) {
    let entry = CUBE_POS_X as usize * RANGE;
    let head = CUBE_POS_Y as usize;
    let first = ranges[entry + 1] as usize;
    let count = ranges[entry + 2] as usize;
    let column = UNIT_POS as usize;
    let mut max = f32::new(UNSEEN);
    for chunk in first..first + count {
        max = max_of(max, stats[2 * (chunk * queries + head)]);
    }
    let mut total = 0.0f32;
    let mut sum = 0.0f32;
    for chunk in first..first + count {
        let at = chunk * queries + head;
        let weight = f32::exp(stats[2 * at] - max);
        total = fma(weight, stats[2 * at + 1], total);
        sum = fma(weight, sums[at * width + column], sum);
    }
    out[(ranges[entry] as usize * queries + head) * width + column] = F::cast_from(sum / total);
}

/// Copies parts of a cache: `data` is \[parts, 4 vectors\]; one cube a part, from `from` and on to `to` and on.
#[cube(launch_unchecked)]
pub fn copy_parts<F: Float>(
    data: &mut [Vector<F, Const<4>>],
    from: u32,
    to: u32,
    #[comptime] vectors: usize,
    #[define(F)] _activations: ElemType,
) {
    let from = (from + CUBE_POS_X) as usize * vectors;
    let to = (to + CUBE_POS_X) as usize * vectors;
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let value = data[from + i];
        data[to + i] = value;
        i += CUBE_DIM as usize;
    }
}
