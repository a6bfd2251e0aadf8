//! Attention, with and without tensor cores, against its definition in f64.

use crate::{
    emit::{buffer, emit},
    host::{Host, Scalar},
    values::{Float, assert_close, noise, u32_bytes},
};
use rallrec_kernels::{
    PAGE,
    attention::{ITEM, Tile},
    tiles,
};

/// A paged cache, the sequences in it, and their queries.
struct Batch {
    queries: usize,
    keys: usize,
    width: usize,
    /// (pages, first new position, new tokens)
    sequences: Vec<(Vec<u32>, usize, usize)>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    window: usize,
}

impl Batch {
    /// Attention by the definition, in f64.
    fn attention(&self) -> Vec<f32> {
        let mut out = Vec::new();
        let mut row = 0;
        for (pages, start, count) in &self.sequences {
            for position in *start..start + count {
                for head in 0..self.queries {
                    let kv = head / (self.queries / self.keys);
                    let q = &self.q[(row * self.queries + head) * self.width..][..self.width];
                    let at = |p: usize| {
                        let part = (pages[p / PAGE] >> 1) as usize + (pages[p / PAGE] & 1) as usize;
                        ((part * self.keys + kv) * PAGE + p % PAGE) * self.width
                    };
                    let first = if self.window == 0 { 0 } else { (position + 1).saturating_sub(self.window) };
                    let score = |p: usize| {
                        let key = &self.k[at(p)..][..self.width];
                        let dot: f64 = q.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                        dot / (self.width as f64).sqrt()
                    };
                    let scores: Vec<f64> = (first..=position).map(score).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for d in 0..self.width {
                        let sum: f64 = weights.iter().zip(first..).map(|(w, p)| w * f64::from(self.v[at(p) + d])).sum();
                        out.push((sum / total) as f32);
                    }
                }
                row += 1;
            }
        }
        out
    }
}

#[test]
fn attention_of_prefill_and_of_decoding_with_a_shared_prompt() {
    const LAYER: u32 = 1;
    let shapes = [(6, 2, 64, 0), (4, 4, 96, 40)];
    let tile = |(queries, keys, width, _), whole| Tile { queries, keys, width, planes: 2, rows: 3, whole };
    let kernels = shapes.iter().flat_map(|&shape| {
        Float::ALL.into_iter().flat_map(move |float| {
            let attend = |whole| {
                emit!(
                    64,
                    attention::attend::Attend,
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    (),
                    (),
                    (),
                    tile(shape, whole),
                    float.element()
                )
            };
            let (queries, _, width, _) = shape;
            let combine = emit!(
                width as u32,
                attention::combine::Combine,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                queries,
                width,
                float.element()
            );
            [attend(true), attend(false), combine]
        })
    });
    let host = Host::new("attention", kernels.collect());
    for (index, &shape) in shapes.iter().enumerate() {
        let (queries, keys, width, window) = shape;
        for (variant, float) in Float::ALL.into_iter().enumerate() {
            let kernel = 3 * (2 * index + variant);
            let cache = 20 * keys * PAGE * width;
            let values = |count, seed| float.round(&noise(count, seed));
            let mut batch = Batch {
                queries,
                keys,
                width,
                window,
                // A prompt of its own, and a continued one whose first page is shared.
                sequences: vec![(vec![2 * 3 + 1, 2 * 9], 0, 37), (vec![2 * 3 + 1, 2 * 5 + 1], 33, 4)],
                q: values(41 * queries * width, 10),
                k: values(cache, 11),
                v: values(cache, 12),
            };
            let scale = Scalar::F32(1.0 / (width as f32).sqrt());
            let launch = |kernel,
                          batch: &Batch,
                          plan: &mut AttentionPlan,
                          out: &mut Vec<u8>,
                          sums: &mut Vec<u8>,
                          stats: &mut Vec<u8>| {
                let items = plan.items.len() / ITEM;
                host.launch(
                    kernel,
                    [items as u32, keys as u32],
                    &[Scalar::U32(LAYER), scale, Scalar::U32(window as u32)],
                    &mut [
                        &mut float.bytes(&batch.q),
                        &mut float.bytes(&batch.k),
                        &mut float.bytes(&batch.v),
                        &mut u32_bytes(&plan.items),
                        &mut u32_bytes(&plan.tokens),
                        &mut u32_bytes(&plan.pages),
                        out,
                        sums,
                        stats,
                    ],
                );
            };
            let mut plan = AttentionPlan::of_prompts(&batch, tile(shape, true).tokens());
            let mut out = float.bytes(&vec![0.0; batch.q.len()]);
            launch(kernel, &batch, &mut plan, &mut out, &mut vec![0; 4], &mut vec![0; 4]);
            let what = format!("prefill {shape:?} {float:?}");
            assert_close(&what, &float.values(&out), &batch.attention(), float.tolerance());

            // Three sequences after a shared prompt of two pages, each with an own end, in chunks of one page.
            // Twice the first part, and 1 for pages of all layers: parts 1, 2, 7 and 11.
            let own = [(vec![3, 4], 99), (vec![14], 64), (vec![23], 95)];
            let shared = [2 * 3 + 1, 2 * 5 + 1];
            batch.sequences =
                own.iter().map(|(pages, position)| ([&shared[..], pages].concat(), *position, 1)).collect();
            batch.q = values(3 * queries * width, 13);
            let mut plan = AttentionPlan::default();
            let firsts = [0_u32, 4, 7];
            let token = |row: usize, chunk: u32| [row as u32, own[row].1 as u32, firsts[row] + chunk];
            for (chunk, &page) in shared.iter().enumerate() {
                // As many sequences an item as fit.
                for rows in [0, 1, 2].chunks(tile(shape, false).tokens()) {
                    let rows: Vec<[u32; 3]> = rows.iter().map(|&row| token(row, chunk as u32)).collect();
                    plan.add(&rows, &[page], (chunk * PAGE) as u32);
                }
            }
            for (row, (pages, _)) in own.iter().enumerate() {
                for (chunk, &page) in (2..).zip(pages) {
                    plan.add(&[token(row, chunk)], &[page], chunk * PAGE as u32);
                }
            }
            let mut sums = Float::F32.bytes(&vec![0.0; 10 * queries * width]);
            let mut stats = Float::F32.bytes(&vec![0.0; 10 * queries * 2]);
            let mut out = float.bytes(&vec![0.0; batch.q.len()]);
            launch(kernel + 1, &batch, &mut plan, &mut vec![0; 4], &mut sums, &mut stats);
            let ranges = [0, 0, 4, 1, 4, 3, 2, 7, 3];
            host.launch(
                kernel + 2,
                [3, queries as u32],
                &[],
                &mut [&mut sums, &mut stats, &mut u32_bytes(&ranges), &mut out],
            );
            let what = format!("decoding {shape:?} {float:?}");
            assert_close(&what, &float.values(&out), &batch.attention(), float.tolerance());
        }
    }
}

/// The tables of `attend`.
#[derive(Default)]
struct AttentionPlan {
    items: Vec<u32>,
    tokens: Vec<u32>,
    pages: Vec<u32>,
}

impl AttentionPlan {
    /// Every sequence in runs of some tokens.
    fn of_prompts(batch: &Batch, tokens: usize) -> Self {
        let mut plan = Self::default();
        let mut row = 0;
        for (pages, start, count) in &batch.sequences {
            for first in (0..*count).step_by(tokens) {
                let here = tokens.min(count - first);
                let used = (start + first + here).div_ceil(PAGE);
                let rows: Vec<[u32; 3]> =
                    (first..first + here).map(|i| [(row + i) as u32, (start + i) as u32, 0]).collect();
                plan.add(&rows, &pages[..used], 0);
            }
            row += count;
        }
        plan
    }

    fn add(&mut self, tokens: &[[u32; 3]], pages: &[u32], first_position: u32) {
        let entry = self.tokens.len() / 3;
        self.items.extend([
            entry as u32,
            tokens.len() as u32,
            self.pages.len() as u32,
            pages.len() as u32,
            first_position,
        ]);
        self.tokens.extend(tokens.concat());
        self.pages.extend(pages);
    }
}

/// Rows whose scores grow from page to page, so that their sums have to be scaled anew; a window that hides whole pages;
/// heads that leave rows of a cube over; runs that begin in the middle of a page.
#[test]
fn attention_of_prompts_on_tensor_cores() {
    const LAYER: u32 = 1;
    let shapes = [(6, 2, 64, 0, 1.0), (4, 4, 96, 40, 1.0), (7, 1, 32, 0, 12.0), (2, 1, 128, 33, 6.0)];
    let tile = |(queries, keys, width, ..): (usize, usize, usize, usize, f32)| Tile {
        queries,
        keys,
        width,
        planes: 2,
        rows: tiles::ROWS,
        whole: true,
    };
    let kernels = shapes.map(|shape| {
        emit!(
            64,
            tiles::attend_tiles::AttendTiles,
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            (),
            (),
            (),
            tile(shape),
            Float::Bf16.element()
        )
    });
    for (kernel, shape) in kernels.iter().zip(shapes) {
        assert_eq!(kernel.shared_bytes, tiles::shared_bytes(&tile(shape)), "{shape:?}");
    }
    let host = Host::new("attention_tiles", kernels.into());
    for (kernel, shape) in shapes.into_iter().enumerate() {
        let (queries, keys, width, window, size) = shape;
        let cache = 20 * keys * PAGE * width;
        let values = |count, seed, size| {
            let values: Vec<f32> = noise(count, seed).iter().map(|x| x * size).collect();
            Float::Bf16.round(&values)
        };
        let mut batch = Batch {
            queries,
            keys,
            width,
            window,
            sequences: vec![(vec![2 * 3 + 1, 2 * 9, 2 * 14 + 1], 0, 77), (vec![2 * 3 + 1, 2 * 5 + 1], 33, 4)],
            q: values(81 * queries * width, 10, size),
            k: values(cache, 11, 1.0),
            v: values(cache, 12, 1.0),
        };
        // Keys of later pages point along the queries of a head: their scores are larger.
        for (page, part) in [(1, 9), (2, 15)] {
            for slot in 0..PAGE * keys {
                let to = (part * keys * PAGE + slot) * width;
                for d in 0..width {
                    batch.k[to + d] = batch.q[d] * 0.25 * (page as f32) / size;
                }
            }
        }
        let mut plan = AttentionPlan::of_prompts(&batch, tile(shape).tokens());
        let mut out = Float::Bf16.bytes(&vec![0.0; batch.q.len()]);
        let items = plan.items.len() / ITEM;
        let scale = Scalar::F32(1.0 / (width as f32).sqrt());
        host.launch(
            kernel,
            [items as u32, keys as u32],
            &[Scalar::U32(LAYER), scale, Scalar::U32(window as u32)],
            &mut [
                &mut Float::Bf16.bytes(&batch.q),
                &mut Float::Bf16.bytes(&batch.k),
                &mut Float::Bf16.bytes(&batch.v),
                &mut u32_bytes(&plan.items),
                &mut u32_bytes(&plan.tokens),
                &mut u32_bytes(&plan.pages),
                &mut out,
            ],
        );
        plan.items.clear();
        let (got, want) = (Float::Bf16.values(&out), batch.attention());
        assert_close(&format!("tensor cores {shape:?}"), &got, &want, Float::Bf16.tolerance());
    }
}
