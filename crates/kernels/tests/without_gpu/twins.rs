//! What the kernels compute, against plain loops in f64.

use crate::{
    emit::{buffer, emit},
    host::{Host, Scalar},
    values::{Float, assert_close, noise, u32_bytes},
};

const UNITS: u32 = 128;

#[test]
fn add_rms_norm() {
    const WIDTH: usize = 192;
    const ROWS: usize = 3;
    let kernels = Float::ALL.iter().flat_map(|&float| {
        [true, false].map(|add| {
            emit!(UNITS, norm::add_rms_norm::AddRmsNorm, buffer(), buffer(), buffer(), buffer(), (), WIDTH / 4, add, UNITS / 32, float.element())
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
fn swiglu_and_gather() {
    const WIDTH: usize = 40;
    const ROWS: usize = 5;
    let bf16 = Float::Bf16.element();
    let kernels = vec![
        emit!(UNITS, feed_forward::swiglu::Swiglu, buffer(), buffer(), (), WIDTH / 4, Float::F32.element()),
        emit!(UNITS, feed_forward::swiglu::Swiglu, buffer(), buffer(), (), WIDTH / 4, bf16),
        emit!(UNITS, norm::gather_rows::GatherRows, buffer(), buffer(), buffer(), WIDTH / 4, [bf16, Float::F32.element()]),
    ];
    let host = Host::new("swiglu_and_gather", kernels);
    for (index, float) in Float::ALL.into_iter().enumerate() {
        let gate_up: Vec<f32> = float.round(&noise(ROWS * 2 * WIDTH, 4)).iter().map(|x| x * 8.0).collect();
        let mut out = float.bytes(&[0.0; ROWS * WIDTH]);
        let count = (ROWS * WIDTH / 4) as u32;
        host.launch(index, [count.div_ceil(UNITS), 1], &[Scalar::U32(count)], &mut [&mut float.bytes(&gate_up), &mut out]);
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
}
