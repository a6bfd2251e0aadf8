//! What the kernels compute, against plain loops in f64.

use crate::{
    emit::{buffer, emit},
    host::{Host, Scalar},
    values::{Float, assert_close, noise, u32_bytes},
};

use rallrec_kernels::{PAGE, rotary::Heads};

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
                wide UNITS,
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
