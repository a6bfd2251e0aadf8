//! The CUDA kernels against the loops that compute the same on the CPU, on the same inputs: the two implementations
//! behind [`crate::ops`], less the launches. No GPU is needed: the kernels' CUDA C++ runs on the host, as in the tests of
//! `rallrec-kernels` (which compare it with the definitions in 64 bits). With `RALLREC_KERNELS_ON=cuda` it runs on the
//! machine's CUDA device.

mod attention;
mod emit;
#[path = "../../../kernels/tests/without_gpu/host.rs"]
mod host;
#[path = "../../../kernels/tests/without_gpu/twin_shapes.rs"]
mod shapes;

use crate::{
    checkpoint::Stored,
    host::{Host, RopeTable, floats, matrix, read},
    matrix::{
        Matrix, Precision,
        tests::{le_bytes, stored, uniform},
        upload::ByteRows,
    },
    ops::{Draw, Operations, Vector},
    quants::Format,
    sampler::{Sampler, Sampling},
};
use burn::tensor::Device;
use host::{Host as Emitted, Scalar};
use rallrec_core::rng::row_rng;
use rand_chacha::rand_core::Rng;
use shapes::{BYTE_INPUTS, FEED, FEW, HIDDEN, LAYOUTS, UNITS, VOCABULARY};
use std::sync::Arc;

fn emitted(program: &str, names: &[&str]) -> Emitted {
    Emitted::new(program, emit::kernels(names))
}

fn values(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Fails when a value is further than `bound` times the largest value from its twin.
fn assert_close(what: &str, kernel: &[f32], cpu: &[f32], bound: f32) {
    assert_eq!(kernel.len(), cpu.len(), "{what}");
    let size = cpu.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
    for (i, (a, b)) in kernel.iter().zip(cpu).enumerate() {
        assert!((a - b).abs() <= bound * size, "{what}: value {i} is {a} of the kernel and {b} on the CPU");
    }
}

/// The operations in host memory, with an embedding of [`VOCABULARY`] tokens.
fn on_cpu(device: &Device) -> (Host, Vec<f32>) {
    let table = uniform(VOCABULARY * HIDDEN, 1);
    let bytes = le_bytes(&table);
    let embedding = Stored { format: Format::F32, bytes: &bytes, rows: VOCABULARY, columns: HIDDEN, interleaved: None };
    let embedding = Arc::new(Matrix::load(&[embedding], Precision::F32, device).unwrap());
    (Host { embedding, rope: Arc::new(RopeTable::new(vec![1.0], 1)) }, table)
}

#[test]
fn rows_are_looked_up_normalized_and_gated() {
    const ROWS: usize = 5;
    let device = Device::flex();
    let (cpu, table) = on_cpu(&device);
    let kernels = emitted("twins_rows", &["gather_rows", "rms_norm", "add_rms_norm", "swiglu"]);

    let ids = [7, 0, 999, 7, 31];
    let mut x = le_bytes(&[f32::NAN; ROWS * HIDDEN]);
    kernels.launch(0, [ROWS as u32, 1], &[], &mut [&mut le_bytes(&table), &mut words(&ids), &mut x]);
    let mut stream = cpu.embed(&ids, HIDDEN, &device);
    assert_eq!(values(&x), floats(&read(stream.clone())));

    let weight = uniform(HIDDEN, 3);
    let norm = Vector::new(weight.clone(), &device);
    for (kernel, delta) in [(1, None), (2, Some(uniform(ROWS * HIDDEN, 4)))] {
        let mut out = le_bytes(&[f32::NAN; ROWS * HIDDEN]);
        let mut added = le_bytes(delta.as_deref().unwrap_or(&[0.0]));
        let buffers = &mut [&mut x, &mut added, &mut le_bytes(&weight), &mut out];
        kernels.launch(kernel, [ROWS as u32, 1], &[Scalar::F32(1e-5)], buffers);
        let normed;
        (stream, normed) = cpu.add_rms_norm(stream, delta.map(|delta| matrix(delta, ROWS, &device)), &norm, 1e-5);
        assert_eq!(values(&x), floats(&read(stream.clone())), "the stream");
        assert_close("the norm", &values(&out), floats(&read(normed)), 1e-6);
    }

    let gate_up: Vec<f32> = uniform(ROWS * 2 * FEED, 5).iter().map(|x| 20.0 * x).collect();
    let mut out = le_bytes(&[f32::NAN; ROWS * FEED]);
    let count = (ROWS * FEED / 4) as u32;
    let buffers = &mut [&mut le_bytes(&gate_up), &mut out];
    kernels.launch(3, [count.div_ceil(UNITS), 1], &[Scalar::U32(count)], buffers);
    let gated = read(cpu.swiglu(matrix(gate_up, ROWS, &device)));
    assert_close("the gated", &values(&out), floats(&gated), 1e-6);
}

#[test]
fn products_in_32_bits() {
    const OUTPUTS: usize = 75;
    let device = Device::flex();
    let kernels = emitted("twins_product", &["product"]);
    let weights = uniform(OUTPUTS * HIDDEN, 9);
    let bytes = le_bytes(&weights);
    let part = Stored { format: Format::F32, bytes: &bytes, rows: OUTPUTS, columns: HIDDEN, interleaved: None };
    let cpu = Matrix::load(&[part], Precision::F32, &device).unwrap();
    for rows in [1, 67] {
        let x = uniform(rows * HIDDEN, 10);
        let mut out = le_bytes(&vec![f32::NAN; rows * OUTPUTS]);
        let grid = [OUTPUTS.div_ceil(64) as u32, rows.div_ceil(64) as u32];
        let scalars = [Scalar::U32(rows as u32), Scalar::U32(OUTPUTS as u32)];
        let dense = read(cpu.dense(&device));
        kernels.launch(0, grid, &scalars, &mut [&mut le_bytes(&x), &mut le_bytes(floats(&dense)), &mut out]);
        // To the bit: on both sides a sum is one chain of fused multiply-adds in the order of the inputs.
        assert_eq!(values(&out), floats(&read(cpu.apply(matrix(x, rows, &device)))), "{rows} rows");
    }
}

/// Matrices whose bytes have each of the layouts.
fn matrices() -> [(Precision, Vec<(Format, usize)>); 3] {
    [
        (Precision::Int8, vec![(Format::F32, 40), (Format::F32, 31)]),
        (Precision::Auto, vec![(Format::Q4K, 40), (Format::Q6K, 31)]),
        (Precision::Auto, vec![(Format::Q8_0, 40), (Format::Q4_1, 31)]),
    ]
}

#[test]
fn products_with_bytes() {
    let device = Device::flex();
    let names: Vec<String> = (0..LAYOUTS.len())
        .flat_map(|number| ["few_0", "few_1", "widen", "gather"].map(|name| format!("int8_{number}_{name}")))
        .collect();
    let kernels = emitted("twins_int8", &names.iter().map(String::as_str).collect::<Vec<_>>());
    for (number, (precision, parts)) in matrices().into_iter().enumerate() {
        let kept: Vec<_> =
            parts.into_iter().map(|(format, rows)| (format, rows, stored(format, rows, BYTE_INPUTS))).collect();
        let parts = kept.iter().map(|(format, rows, bytes)| Stored {
            format: *format,
            bytes,
            rows: *rows,
            columns: BYTE_INPUTS,
            interleaved: None,
        });
        let parts: Vec<_> = parts.collect();
        let cpu = Matrix::load(&parts, precision, &device).unwrap();
        assert!(ByteRows::fit(&parts, precision));
        let rows = ByteRows::pack(&parts, precision);
        let outputs = rows.outputs;
        assert_eq!((rows.group, !rows.minimum.is_empty()), LAYOUTS[number]);
        let mut q: Vec<u8> = rows.q.iter().map(|q| q.cast_unsigned()).collect();
        let (mut scale, mut minimum) = (le_bytes(&rows.scale), le_bytes(&rows.minimum));

        // Written out, and single rows: the same numbers to the bit.
        let mut out = le_bytes(&vec![f32::NAN; outputs * BYTE_INPUTS]);
        let buffers = &mut [&mut q, &mut scale, &mut minimum, &mut out];
        let grid = [outputs.div_ceil(64) as u32, BYTE_INPUTS.div_ceil(64) as u32];
        kernels.launch(4 * number + 2, grid, &[Scalar::U32(outputs as u32)], buffers);
        assert_eq!(values(&out), floats(&read(cpu.dense(&device))), "layout {number}");
        let mut out = le_bytes(&[f32::NAN; BYTE_INPUTS]);
        for output in [0, 45, 70] {
            let buffers = &mut [&mut q, &mut scale, &mut minimum, &mut words(&[output]), &mut out];
            kernels.launch(4 * number + 3, [1, 1], &[], buffers);
            let mut row = vec![0.0; BYTE_INPUTS];
            cpu.output(output as usize, &mut row);
            assert_eq!(values(&out), row, "layout {number}, output {output}");
        }

        for count in [1, 3, 5] {
            let x = uniform(count * BYTE_INPUTS, 6);
            let want = read(cpu.apply(matrix(x.clone(), count, &device)));
            for (few, (rows, of_plane, planes)) in FEW.into_iter().enumerate() {
                let mut out = le_bytes(&vec![f32::NAN; count * outputs]);
                let buffers = &mut [&mut le_bytes(&x), &mut q, &mut scale, &mut minimum, &mut out];
                let grid = [outputs.div_ceil(planes * of_plane) as u32, count.div_ceil(rows) as u32];
                let scalars = [Scalar::U32(count as u32), Scalar::U32(outputs as u32)];
                kernels.launch(4 * number + few, grid, &scalars, buffers);
                assert_close(&format!("layout {number}, {count} rows"), &values(&out), floats(&want), 2e-6);
            }
        }
    }
}

#[test]
fn samplers_draw_the_same_tokens() {
    let kernels = emitted("twins_sample", &["sample"]);
    let mut settings = Vec::new();
    let filters =
        [(0, 1.0, 0.0), (0, 0.9, 0.0), (7, 1.0, 0.0), (0, 1.0, 0.05), (40, 0.8, 0.0), (300, 0.95, 0.02), (9, 0.3, 0.5)];
    for (top_k, top_p, min_p) in filters {
        for temperature in [0.0, 0.6, 1.0, 1.7] {
            settings.push(Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() });
        }
    }
    const DRAWS: usize = 4;
    let rows: Vec<_> = (0..settings.len() * DRAWS).collect();
    let logits: Vec<f32> = uniform(rows.len() * VOCABULARY, 8).iter().map(|x| 20.0 * x).collect();
    let generator = |row: usize| row_rng(5, "test.twins", row as u64, 0);
    let draws = rows.iter().map(|&row| {
        let Sampling { temperature, top_k, top_p, min_p, .. } = settings[row / DRAWS];
        let uniform = (generator(row).next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        Draw { temperature, top_k, top_p, min_p, uniform }
    });
    let draws: Vec<_> = draws.collect();
    let mut tokens = words(&vec![0; rows.len()]);
    let mut log_probabilities = le_bytes(&vec![f32::NAN; rows.len()]);
    kernels.launch(
        0,
        [rows.len() as u32, 1],
        &[],
        &mut [
            &mut le_bytes(&logits),
            &mut le_bytes(&draws.iter().flat_map(Draw::shape).collect::<Vec<_>>()),
            &mut words(&draws.iter().flat_map(Draw::limits).collect::<Vec<_>>()),
            &mut tokens,
            &mut log_probabilities,
        ],
    );
    let mut sampler = Sampler::default();
    let drawn = tokens.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    for ((row, token), log_probability) in rows.into_iter().zip(drawn).zip(values(&log_probabilities)) {
        let (logits, settings) = (&logits[row * VOCABULARY..][..VOCABULARY], &settings[row / DRAWS]);
        let want = sampler.draw(logits, settings, [], &mut generator(row)).unwrap();
        assert_eq!(token, want.token, "{settings:?}, {:?}", draws[row]);
        assert!((log_probability - want.log_probability).abs() < 1e-5, "{log_probability} for {want:?}");
    }
}
