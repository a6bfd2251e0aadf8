//! What the kernels compute, against plain loops in f64.

use crate::{
    emit::{buffer, emit},
    host::{Host, Scalar},
    values::{Float, assert_close, noise, u32_bytes},
};

use rallrec_kernels::{
    PAGE,
    attention::{ITEM, Tile},
    rotary::Heads,
};

const UNITS: u32 = 128;

#[test]
fn add_rms_norm() {
    const WIDTH: usize = 192;
    const ROWS: usize = 3;
    let kernels = Float::ALL.iter().flat_map(|&float| {
        [true, false].map(|add| {
            emit!(
                UNITS,
                norm::add_rms_norm::AddRmsNorm,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                (),
                WIDTH / 4,
                add,
                UNITS / 32,
                float.element()
            )
        })
    });
    let host = Host::new("add_rms_norm", kernels.collect());
    for (index, float) in Float::ALL.into_iter().enumerate() {
        for (variant, add) in [true, false].into_iter().enumerate() {
            let (x, delta) = (noise(ROWS * WIDTH, 1), float.round(&noise(ROWS * WIDTH, 2)));
            let weight = noise(WIDTH, 3);
            let mut stream = Float::F32.bytes(&x);
            let mut out = float.bytes(&vec![0.0; ROWS * WIDTH]);
            host.launch(
                2 * index + variant,
                [ROWS as u32, 1],
                &[Scalar::F32(1e-5)],
                &mut [&mut stream, &mut float.bytes(&delta), &mut Float::F32.bytes(&weight), &mut out],
            );
            let sum: Vec<f32> = x.iter().zip(&delta).map(|(x, d)| if add { x + d } else { *x }).collect();
            let normed = sum.chunks(WIDTH).flat_map(|row| {
                let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / WIDTH as f64;
                let scale = 1.0 / (mean + f64::from(1e-5_f32)).sqrt();
                row.iter().zip(&weight).map(move |(&x, &w)| (f64::from(x) * scale * f64::from(w)) as f32)
            });
            assert_close("stream", &Float::F32.values(&stream), &sum, 1e-6);
            assert_close("norm", &float.values(&out), &normed.collect::<Vec<_>>(), float.tolerance());
        }
    }
}

#[test]
fn swiglu_gather_and_copy() {
    const WIDTH: usize = 40;
    const ROWS: usize = 5;
    let bf16 = Float::Bf16.element();
    let kernels = vec![
        emit!(UNITS, feed_forward::swiglu::Swiglu, buffer(), buffer(), (), WIDTH / 4, Float::F32.element()),
        emit!(UNITS, feed_forward::swiglu::Swiglu, buffer(), buffer(), (), WIDTH / 4, bf16),
        emit!(
            UNITS,
            norm::gather_rows::GatherRows,
            buffer(),
            buffer(),
            buffer(),
            WIDTH / 4,
            [bf16, Float::F32.element()]
        ),
        emit!(UNITS, attention::copy_parts::CopyParts, buffer(), (), (), WIDTH / 4, bf16),
    ];
    let host = Host::new("swiglu_gather_and_copy", kernels);
    for (index, float) in Float::ALL.into_iter().enumerate() {
        let gate_up: Vec<f32> = float.round(&noise(ROWS * 2 * WIDTH, 4)).iter().map(|x| x * 8.0).collect();
        let mut out = float.bytes(&[0.0; ROWS * WIDTH]);
        let count = (ROWS * WIDTH / 4) as u32;
        host.launch(
            index,
            [count.div_ceil(UNITS), 1],
            &[Scalar::U32(count)],
            &mut [&mut float.bytes(&gate_up), &mut out],
        );
        let want = gate_up.chunks(2 * WIDTH).flat_map(|row| {
            let (gate, up) = row.split_at(WIDTH);
            gate.iter().zip(up).map(|(&g, &u)| (f64::from(g) / (1.0 + f64::from(-g).exp()) * f64::from(u)) as f32)
        });
        assert_close("swiglu", &float.values(&out), &want.collect::<Vec<_>>(), float.tolerance());
    }
    let table = Float::Bf16.round(&noise(7 * WIDTH, 5));
    let ids = [6, 0, 6, 3];
    let mut out = Float::F32.bytes(&[0.0; 4 * WIDTH]);
    host.launch(2, [4, 1], &[], &mut [&mut Float::Bf16.bytes(&table), &mut u32_bytes(&ids), &mut out]);
    let want: Vec<f32> = ids.iter().flat_map(|&id| table[id as usize * WIDTH..][..WIDTH].to_vec()).collect();
    assert_eq!(Float::F32.values(&out), want);
    let mut parts = Float::Bf16.bytes(&table);
    host.launch(3, [2, 1], &[Scalar::U32(1), Scalar::U32(4)], &mut [&mut parts]);
    let want = [&table[..4 * WIDTH], &table[WIDTH..3 * WIDTH], &table[6 * WIDTH..]].concat();
    assert_eq!(Float::Bf16.values(&parts), want);
}

/// What `rotate_and_store` makes of one head, in f64.
fn rotated(head: &[f64], norm: Option<&[f32]>, rotation: &[f32], epsilon: f64) -> Vec<f32> {
    let width = head.len();
    let mean = head.iter().map(|x| x * x).sum::<f64>() / width as f64;
    let scale = 1.0 / (mean + epsilon).sqrt();
    let normed: Vec<f64> = match norm {
        Some(norm) => head.iter().zip(norm).map(|(x, &w)| x * scale * f64::from(w)).collect(),
        None => head.to_vec(),
    };
    let half = width / 2;
    let (cos, sin) = rotation.split_at(half);
    let turn = |i: usize| {
        let j = i % half;
        let (c, s) = (f64::from(cos[j]), f64::from(sin[j]));
        let (low, high) = (normed[j], normed[j + half]);
        (if i < half { low * c - high * s } else { high * c + low * s }) as f32
    };
    (0..width).map(turn).collect()
}

#[test]
fn rotate_and_store() {
    const PARTS: usize = 8;
    const LAYER: u32 = 1;
    let all = [(2, 1, 64, false, false), (4, 2, 96, true, true)];
    let shapes = all.map(|(queries, keys, width, bias, norm)| Heads { queries, keys, width, bias, norm });
    let kernels = shapes.iter().flat_map(|&heads| {
        Float::ALL.map(|float| {
            emit!(
                UNITS,
                rotary::rotate_and_store::RotateAndStore,
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
                heads,
                UNITS / 32,
                float.element()
            )
        })
    });
    let host = Host::new("rotate_and_store", kernels.collect());
    for (shape, heads) in shapes.into_iter().enumerate() {
        for (variant, float) in Float::ALL.into_iter().enumerate() {
            let Heads { queries, keys, width, .. } = heads;
            let row = (queries + 2 * keys) * width;
            // The page of all layers begins at part 4, the passing one is part 2.
            let places = [(33_u32, 4 * 2 + 1), (0, 4 * 2 + 1), (70, 2 * 2)];
            let projected = float.round(&noise(places.len() * row, 6));
            let (bias, norms) = (noise(row, 7), noise(2 * width, 8));
            let rotation = noise(80 * width, 9);
            let cache = PARTS * keys * PAGE * width;
            let mut out = float.bytes(&vec![9.0; places.len() * queries * width]);
            let (mut k, mut v) = (float.bytes(&vec![9.0; cache]), float.bytes(&vec![9.0; cache]));
            host.launch(
                2 * shape + variant,
                [places.len() as u32, 1],
                &[Scalar::U32(LAYER), Scalar::F32(1e-5)],
                &mut [
                    &mut float.bytes(&projected),
                    &mut Float::F32.bytes(&bias),
                    &mut Float::F32.bytes(&norms[..width]),
                    &mut Float::F32.bytes(&norms[width..]),
                    &mut Float::F32.bytes(&rotation),
                    &mut u32_bytes(&places.map(|(position, code)| [position, code]).concat()),
                    &mut out,
                    &mut k,
                    &mut v,
                ],
            );
            let mut want = [Vec::new(), vec![9.0; cache], vec![9.0; cache]];
            for (token, &(position, code)) in places.iter().enumerate() {
                let part = (code >> 1) as usize + (LAYER * (code & 1)) as usize;
                for head in 0..queries + 2 * keys {
                    let at = head * width;
                    let values = projected[token * row + at..][..width].iter().zip(&bias[at..]);
                    let values: Vec<f64> =
                        values.map(|(&x, &b)| f64::from(x) + if heads.bias { f64::from(b) } else { 0.0 }).collect();
                    let turn = &rotation[position as usize * width..][..width];
                    let norm = |at: usize| heads.norm.then_some(&norms[at..at + width]);
                    let slot = |kv: usize| ((part * keys + kv) * PAGE + position as usize % PAGE) * width;
                    if head < queries {
                        want[0].extend(rotated(&values, norm(0), turn, f64::from(1e-5_f32)));
                    } else if head < queries + keys {
                        let to = slot(head - queries);
                        let key = rotated(&values, norm(width), turn, f64::from(1e-5_f32));
                        want[1][to..to + width].copy_from_slice(&key);
                    } else {
                        let to = slot(head - queries - keys);
                        want[2][to..to + width].copy_from_slice(&values.iter().map(|&x| x as f32).collect::<Vec<_>>());
                    }
                }
            }
            for (what, got, want) in [("queries", &out, &want[0]), ("keys", &k, &want[1]), ("values", &v, &want[2])] {
                assert_close(&format!("{heads:?} {float:?} {what}"), &float.values(got), want, float.tolerance());
            }
        }
    }
}

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
            let tokens = tile(shape, true).tokens();
            let mut plan = AttentionPlan::default();
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

#[test]
fn answer_logits_and_int8_products() {
    const INPUTS: usize = 576;
    const OUTPUTS: usize = 7;
    const ROWS: usize = 3;
    let kernels = Float::ALL.iter().flat_map(|&float| {
        let f = float.element();
        [
            emit!(
                UNITS,
                answers::answer_logits::AnswerLogits,
                buffer(),
                buffer(),
                buffer(),
                (),
                INPUTS / 4,
                UNITS / 32,
                f
            ),
            emit!(
                UNITS,
                int8::matrix_vector_int8::MatrixVectorInt8,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                (),
                INPUTS,
                32,
                ROWS,
                UNITS / 32,
                f
            ),
            emit!(
                UNITS,
                int8::matrix_vector_int8::MatrixVectorInt8,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                (),
                INPUTS,
                INPUTS,
                ROWS,
                UNITS / 32,
                f
            ),
            emit!(UNITS, int8::dequantize_int8::DequantizeInt8, buffer(), buffer(), buffer(), (), 32, f),
        ]
    });
    let host = Host::new("answer_logits_and_int8", kernels.collect());
    let weights: Vec<i8> = noise(OUTPUTS * INPUTS, 14).iter().map(|x| (x * 127.0) as i8).collect();
    for (index, float) in Float::ALL.into_iter().enumerate() {
        let x = float.round(&noise(ROWS * INPUTS, 15));
        let columns = float.round(&noise(OUTPUTS * INPUTS, 16));
        let products = |matrix: &dyn Fn(usize) -> f64| {
            let dot = |r: usize, o: usize| {
                (0..INPUTS).map(|i| f64::from(x[r * INPUTS + i]) * matrix(o * INPUTS + i)).sum::<f64>()
            };
            (0..ROWS).flat_map(|r| (0..OUTPUTS).map(move |o| (r, o))).map(|(r, o)| dot(r, o) as f32).collect::<Vec<_>>()
        };
        let mut out = Float::F32.bytes(&[0.0; ROWS * OUTPUTS]);
        host.launch(
            4 * index,
            [ROWS as u32, 1],
            &[Scalar::U32(OUTPUTS as u32)],
            &mut [&mut float.bytes(&x), &mut float.bytes(&columns), &mut out],
        );
        let want = products(&|at| f64::from(columns[at]));
        assert_close("answers", &Float::F32.values(&out), &want, 1e-5);
        let mut bytes: Vec<u8> = weights.iter().map(|w| w.cast_unsigned()).collect();
        for (kernel, block) in [(1, 32), (2, INPUTS)] {
            let scales = noise(OUTPUTS * INPUTS / block, 17);
            let mut out = float.bytes(&[0.0; ROWS * OUTPUTS]);
            host.launch(
                4 * index + kernel,
                [OUTPUTS.div_ceil(4) as u32, 1],
                &[Scalar::U32(OUTPUTS as u32)],
                &mut [&mut float.bytes(&x), &mut bytes, &mut Float::F32.bytes(&scales), &mut out],
            );
            let want = products(&|at| f64::from(scales[at / block]) * f64::from(weights[at]));
            assert_close(&format!("int8, blocks of {block}"), &float.values(&out), &want, float.tolerance());
        }
        let scales = noise(OUTPUTS * INPUTS / 32, 17);
        let mut out = float.bytes(&[0.0; OUTPUTS * INPUTS]);
        let count = (OUTPUTS * INPUTS / 16) as u32;
        host.launch(
            4 * index + 3,
            [count.div_ceil(UNITS), 1],
            &[Scalar::U32(count)],
            &mut [&mut bytes, &mut Float::F32.bytes(&scales), &mut out],
        );
        let want: Vec<f32> = weights.iter().enumerate().map(|(i, &w)| f32::from(w) * scales[i / 32]).collect();
        assert_close("dequantized", &float.values(&out), &want, float.tolerance());
    }
}
