//! What happens to queries, keys and values between their projection and the attention, in one launch.

use crate::{PAGE, PLANE};
use cubecl::prelude::*;

/// Sizes of the attention and what the model does to its queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads.
    pub keys: usize,
    /// Width of a head; a multiple of 32.
    pub width: usize,
    /// Whether the projections have a bias.
    pub bias: bool,
    /// Whether queries and keys are normalized by head.
    pub norm: bool,
}

/// Where a page's part of one layer lies: pages of all layers have a part for each, in a row; others one for all.
#[cube]
pub(crate) fn layer_part(code: u32, layer: u32) -> usize {
    ((code >> 1u32) + layer * (code & 1u32)) as usize
}

/// Adds the bias, normalizes queries and keys by head, turns them by their position, and writes keys and values to
/// the cache. One cube a token; a plane takes one head after another.
///
/// * `projected` \[tokens, queries + 2 keys, width\]; `bias` the same of one token; `query_norm` and `key_norm` \[width\]
/// * `rotation` \[positions, width\]: `width / 2` cosines, then as many sines. The pair (i, i + width / 2) is turned.
/// * `places` \[tokens, 2\]: position, and the code of its page: twice the number of the page's first part, plus 1 when
///   it has a part for every layer
/// * `queries` \[tokens, queries, width\]; `keys` and `values` \[parts, keys, [`PAGE`], width\]
///
/// Places have 64 bits: a cache of 8.6 GB of keys in 16 bits has more numbers than 32 bits count.
#[cube(launch_unchecked, address_type = "u64")]
pub fn rotate_and_store<F: Float>(
    projected: &[F],
    bias: &[f32],
    query_norm: &[f32],
    key_norm: &[f32],
    rotation: &[f32],
    places: &[u32],
    queries: &mut [F],
    keys: &mut [F],
    values: &mut [F],
    layer: u32,
    epsilon: f32,
    #[comptime] heads: Heads,
    #[comptime] planes: u32,
    #[define(F)] _activations: ElemType,
) {
    let width = comptime!(heads.width);
    let half = comptime!(heads.width / 2);
    let all = comptime!(heads.queries + 2 * heads.keys);
    let pairs = comptime!(half.div_ceil(PLANE as usize));
    let token = CUBE_POS_X as usize;
    let lane = UNIT_POS_PLANE as usize;
    let position = places[2 * token] as usize;
    let part = layer_part(places[2 * token + 1], layer);
    let slot = position % PAGE;
    let mut head = PLANE_POS as usize;
    while head < all {
        let from = (token * all + head) * width;
        let mut low = Array::<f32>::new(pairs);
        let mut high = Array::<f32>::new(pairs);
        let mut squares = 0.0f32;
        #[unroll]
        for p in 0..pairs {
            let i = lane + p * PLANE as usize;
            low[p] = 0.0f32;
            high[p] = 0.0f32;
            if i < half {
                low[p] = f32::cast_from(projected[from + i]);
                high[p] = f32::cast_from(projected[from + half + i]);
                if comptime!(heads.bias) {
                    low[p] += bias[head * width + i];
                    high[p] += bias[head * width + half + i];
                }
            }
            squares += low[p] * low[p] + high[p] * high[p];
        }
        let is_query = head < comptime!(heads.queries);
        let is_value = head >= comptime!(heads.queries + heads.keys);
        if comptime!(heads.norm) {
            let mean = plane_sum(squares) / width as f32;
            let scale = 1.0f32 / f32::sqrt(mean + epsilon);
            if !is_value {
                #[unroll]
                for p in 0..pairs {
                    let i = lane + p * PLANE as usize;
                    if i < half {
                        if is_query {
                            low[p] = low[p] * scale * query_norm[i];
                            high[p] = high[p] * scale * query_norm[half + i];
                        } else {
                            low[p] = low[p] * scale * key_norm[i];
                            high[p] = high[p] * scale * key_norm[half + i];
                        }
                    }
                }
            }
        }
        #[unroll]
        for p in 0..pairs {
            let i = lane + p * PLANE as usize;
            if i < half {
                if is_value {
                    let kv = head - comptime!(heads.queries + heads.keys);
                    let to = ((part * comptime!(heads.keys) + kv) * PAGE + slot) * width;
                    values[to + i] = F::cast_from(low[p]);
                    values[to + half + i] = F::cast_from(high[p]);
                } else {
                    let cos = rotation[position * width + i];
                    let sin = rotation[position * width + half + i];
                    let a = low[p] * cos - high[p] * sin;
                    let b = high[p] * cos + low[p] * sin;
                    if is_query {
                        let to = (token * comptime!(heads.queries) + head) * width;
                        queries[to + i] = F::cast_from(a);
                        queries[to + half + i] = F::cast_from(b);
                    } else {
                        let kv = head - comptime!(heads.queries);
                        let to = ((part * comptime!(heads.keys) + kv) * PAGE + slot) * width;
                        keys[to + i] = F::cast_from(a);
                        keys[to + half + i] = F::cast_from(b);
                    }
                }
            }
        }
        head += planes as usize;
    }
}
