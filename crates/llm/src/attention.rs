//! Grouped-query attention over paged keys and values, for tensors in host memory.
//!
//! One routine serves prefill and decoding: a batch is a list of sequences with some new tokens each, one after
//! another without padding. The softmax runs over the pages in order (maximum and sum carried along), so a token's
//! result depends on its own sequence only, to the bit. A device with memory of its own needs another routine; the
//! decoder calls this in one place.

use crate::{
    config::ModelConfig,
    host::{RopeTable, exp, floats, floats_mut, inverse_root, lane_max, lane_sum, matrix, read, vectorized},
    kv::{KvPool, PAGE, PageId},
};
use burn::tensor::Tensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Tokens whose queries one task computes.
const TASK_TOKENS: usize = 8;
/// Query rows that the inner loop computes side by side; their sums fill the vector registers.
const TILE: usize = 4;

/// New tokens of one sequence in a batch.
pub(crate) struct Segment<'a> {
    /// The sequence's pages, those of the new tokens included.
    pub(crate) pages: &'a [PageId],
    /// Position of the first new token.
    pub(crate) start: usize,
    /// New tokens.
    pub(crate) count: usize,
}

/// What is done to a layer's queries, keys and values before the rotary embedding; empty where the model has none.
#[derive(Clone)]
pub(crate) struct HeadWeights {
    /// Added to queries, keys and values beside one another.
    pub(crate) bias: Vec<f32>,
    /// RMSNorm of each query head, \[head width\].
    pub(crate) query_norm: Vec<f32>,
    /// RMSNorm of each key head, \[head width\].
    pub(crate) key_norm: Vec<f32>,
}

/// Adds biases, normalizes and rotates queries and keys, stores keys and values, and attends: from the projections
/// \[rows, queries + keys + values\] to \[rows, heads * head width\]. Rows beyond the segments' tokens come out as 0.
pub(crate) fn attend(
    projections: Tensor<2>,
    segments: &[Segment<'_>],
    layer: usize,
    config: &ModelConfig,
    heads: &HeadWeights,
    rope: &RopeTable,
    pool: &mut KvPool,
) -> Tensor<2> {
    let device = projections.device();
    let [rows, width] = projections.dims();
    let mut data = read(projections);
    let tasks = tasks(segments);
    let qkv = floats_mut(&mut data);
    rotate(qkv, width, &tasks, config, heads, rope);
    let (query, kv) = (config.query_width(), config.kv_width());
    let mut row = qkv.chunks_exact(width);
    for segment in segments {
        for (position, row) in (segment.start..segment.start + segment.count).zip(&mut row) {
            let (key, value) = row[query..].split_at(kv);
            pool.store(segment.pages, layer, position, key, value);
        }
    }
    let mut out = vec![0.0; rows * query];
    let qkv = floats(&data);
    let pool = &*pool;
    split_rows(&mut out, &tasks, query).into_par_iter().zip(&tasks).for_each(|(out, task)| {
        let queries = &qkv[task.row * width..];
        vectorized(Attend { task, queries, width, out, layer, config, pool });
    });
    matrix(out, rows, &device)
}

/// Some consecutive tokens of one segment.
struct Task<'a> {
    pages: &'a [PageId],
    row: usize,
    start: usize,
    count: usize,
}

fn tasks<'a>(segments: &[Segment<'a>]) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    let mut row = 0;
    for segment in segments {
        for first in (0..segment.count).step_by(TASK_TOKENS) {
            let count = TASK_TOKENS.min(segment.count - first);
            tasks.push(Task { pages: segment.pages, row: row + first, start: segment.start + first, count });
        }
        row += segment.count;
    }
    tasks
}

/// Each task's own rows. Tasks follow one another without gaps.
fn split_rows<'a>(mut rows: &'a mut [f32], tasks: &[Task<'_>], width: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(tasks.len());
    for task in tasks {
        let (part, rest) = rows.split_at_mut(task.count * width);
        parts.push(part);
        rows = rest;
    }
    parts
}

fn rotate(
    qkv: &mut [f32],
    width: usize,
    tasks: &[Task<'_>],
    config: &ModelConfig,
    heads: &HeadWeights,
    rope: &RopeTable,
) {
    split_rows(qkv, tasks, width).into_par_iter().zip(tasks).for_each(|(rows, task)| {
        for (row, position) in rows.chunks_exact_mut(width).zip(task.start..) {
            for (x, bias) in row.iter_mut().zip(&heads.bias) {
                *x += bias;
            }
            if config.qk_norm {
                vectorized(NormHeads { row, config, heads });
            }
            rope.rotate(row, config.heads + config.kv_heads, position);
        }
    });
}

struct NormHeads<'a> {
    row: &'a mut [f32],
    config: &'a ModelConfig,
    heads: &'a HeadWeights,
}

impl pulp::NullaryFnOnce for NormHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.config.head_width;
        let (queries, keys) = self.row.split_at_mut(self.config.query_width());
        let keys = &mut keys[..self.config.kv_width()];
        for (part, weight) in [(queries, &self.heads.query_norm), (keys, &self.heads.key_norm)] {
            for head in part.chunks_exact_mut(width) {
                let scale = inverse_root(head, self.config.norm_epsilon);
                for (x, w) in head.iter_mut().zip(weight) {
                    *x = *x * scale * w;
                }
            }
        }
    }
}

struct Attend<'a> {
    task: &'a Task<'a>,
    /// From the task's first row on.
    queries: &'a [f32],
    width: usize,
    out: &'a mut [f32],
    layer: usize,
    config: &'a ModelConfig,
    pool: &'a KvPool,
}

/// What the running softmax knows of a query row.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
    /// First position that the row sees.
    first: usize,
    /// Last position that the row sees.
    position: usize,
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (head_width, group) = (self.config.head_width, self.config.group());
        let scale = 1.0 / (head_width as f32).sqrt();
        let rows = self.task.count * group;
        let mut queries = vec![0.0; rows * head_width];
        let mut sums = vec![0.0; rows * head_width];
        for head in 0..self.config.kv_heads {
            for (row, query) in queries.chunks_exact_mut(head_width).enumerate() {
                let from = row / group * self.width + (head * group + row % group) * head_width;
                for (q, &x) in query.iter_mut().zip(&self.queries[from..from + head_width]) {
                    *q = x * scale;
                }
            }
            sums.fill(0.0);
            // A window of n shows a token itself and the n - 1 before it.
            let first =
                |position: usize| (position + 1).saturating_sub(self.config.sliding_window.unwrap_or(usize::MAX));
            let mut running: Vec<Running> = (0..rows)
                .map(|row| self.task.start + row / group)
                .map(|position| Running { max: f32::NEG_INFINITY, sum: 0.0, first: first(position), position })
                .collect();
            let last = self.task.start + self.task.count - 1;
            let unseen = first(self.task.start) / PAGE;
            for (number, &page) in self.task.pages[..=last / PAGE].iter().enumerate().skip(unseen) {
                let (keys, values) = self.pool.head(page, self.layer, head);
                let page = Page { keys, values, first: number * PAGE };
                for first in (0..rows).step_by(TILE) {
                    let end = rows.min(first + TILE);
                    let span = first * head_width..end * head_width;
                    let (q, sums, running) = (&queries[span.clone()], &mut sums[span], &mut running[first..end]);
                    match end - first {
                        4 => page.add::<S, 4>(simd, q, running, sums),
                        3 => page.add::<S, 3>(simd, q, running, sums),
                        2 => page.add::<S, 2>(simd, q, running, sums),
                        _ => page.add::<S, 1>(simd, q, running, sums),
                    }
                }
            }
            for (row, (sums, running)) in sums.chunks_exact(head_width).zip(&running).enumerate() {
                let to = row / group * self.config.query_width() + (head * group + row % group) * head_width;
                for (out, &x) in self.out[to..to + head_width].iter_mut().zip(sums) {
                    *out = x / running.sum;
                }
            }
        }
    }
}

/// One head's part of a page.
struct Page<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    /// Position of the page's first token.
    first: usize,
}

impl Page<'_> {
    /// Adds the page to the running softmax of `R` query rows.
    #[inline(always)]
    fn add<S: Simd, const R: usize>(&self, simd: S, queries: &[f32], running: &mut [Running], sums: &mut [f32]) {
        let head_width = self.keys.len() / PAGE;
        let mut scores = [[0.0_f32; PAGE]; R];
        let mut rows = [queries; R];
        for (row, query) in rows.iter_mut().zip(queries.chunks_exact(head_width)) {
            *row = query;
        }
        // Two vectors of each row at a time: their sums stay in registers, and no lane meets another, so that the
        // width of the vectors does not show in the result.
        let block = 2 * S::F32_LANES;
        for first in (0..PAGE).step_by(block) {
            let mut total = [[simd.splat_f32s(0.0); 2]; R];
            for (d, key) in self.keys.chunks_exact(PAGE).enumerate() {
                let key = S::as_simd_f32s(&key[first..first + block]).0;
                for r in 0..R {
                    let q = simd.splat_f32s(rows[r][d]);
                    total[r] = [simd.mul_add_f32s(q, key[0], total[r][0]), simd.mul_add_f32s(q, key[1], total[r][1])];
                }
            }
            for r in 0..R {
                S::as_mut_simd_f32s(&mut scores[r][first..first + block]).0.copy_from_slice(&total[r]);
            }
        }
        let mut seen = 0;
        for r in 0..R {
            let valid = (running[r].position + 1).saturating_sub(self.first).min(PAGE);
            let hidden = running[r].first.saturating_sub(self.first).min(PAGE);
            seen = seen.max(valid);
            if hidden >= valid {
                scores[r] = [0.0; PAGE];
                continue;
            }
            let correction = soften(&mut scores[r], hidden..valid, &mut running[r]);
            for sum in &mut sums[r * head_width..(r + 1) * head_width] {
                *sum *= correction;
            }
        }
        for column in (0..head_width).step_by(block) {
            let mut total = [[simd.splat_f32s(0.0); 2]; R];
            for (r, total) in total.iter_mut().enumerate() {
                let at = r * head_width + column;
                total.copy_from_slice(S::as_simd_f32s(&sums[at..at + block]).0);
            }
            for (j, value) in self.values.chunks_exact(head_width).take(seen).enumerate() {
                let value = S::as_simd_f32s(&value[column..column + block]).0;
                for r in 0..R {
                    let p = simd.splat_f32s(scores[r][j]);
                    total[r] =
                        [simd.mul_add_f32s(p, value[0], total[r][0]), simd.mul_add_f32s(p, value[1], total[r][1])];
                }
            }
            for (r, total) in total.iter().enumerate() {
                let at = r * head_width + column;
                S::as_mut_simd_f32s(&mut sums[at..at + block]).0.copy_from_slice(total);
            }
        }
    }
}

/// Turns the `valid` scores into exponentials against the running maximum and the others into 0. Returns what earlier
/// sums are to be multiplied with.
#[inline(always)]
fn soften(scores: &mut [f32; PAGE], valid: Range<usize>, running: &mut Running) -> f32 {
    scores[..valid.start].fill(f32::NEG_INFINITY);
    scores[valid.end..].fill(f32::NEG_INFINITY);
    let max = running.max.max(lane_max(*scores));
    let correction = if running.max == f32::NEG_INFINITY { 0.0 } else { exp(running.max - max) };
    // A length that is only known at run time: the compiler makes vectors of this loop instead of unrolling it.
    for score in &mut scores[valid.clone()] {
        *score = exp(*score - max);
    }
    scores[..valid.start].fill(0.0);
    scores[valid.end..].fill(0.0);
    running.sum = running.sum.mul_add(correction, lane_sum(*scores));
    running.max = max;
    correction
}
