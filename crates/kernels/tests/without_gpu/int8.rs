//! Products in 32 bits, and with bytes, against their definition.

use crate::{
    emit::{buffer, emit},
    host::{Host, Scalar},
    values::{Float, assert_close, noise, u32_bytes},
};
use rallrec_kernels::{
    int8::{Few, Layout, WIDEN, WIDEN_UNITS},
    product,
};

const INPUTS: usize = 144;
const OUTPUTS: usize = 71;
const LAYOUTS: [Layout; 3] = [
    Layout { inputs: INPUTS, group: 16, minimum: true },
    Layout { inputs: INPUTS, group: 48, minimum: false },
    Layout { inputs: INPUTS, group: INPUTS, minimum: true },
];
const FEW: [Few; 3] = [
    Few { rows: 1, outputs: 2, planes: 4 },
    Few { rows: 4, outputs: 4, planes: 2 },
    Few { rows: 8, outputs: 1, planes: 4 },
];

/// A matrix of bytes as buffers, and its values in the activations' type.
struct Matrix {
    q: Vec<u8>,
    scale: Vec<u8>,
    minimum: Vec<u8>,
    values: Vec<f32>,
}

impl Matrix {
    fn new(layout: Layout, float: Float) -> Self {
        let q: Vec<i8> = noise(OUTPUTS * INPUTS, 14).iter().map(|x| (x * 127.0) as i8).collect();
        let groups = OUTPUTS * INPUTS / layout.group;
        let (scale, minimum) = (noise(groups, 17), noise(groups, 18));
        let value = |(at, &q): (usize, &i8)| {
            let group = at / layout.group;
            let minimum = if layout.minimum { minimum[group] } else { 0.0 };
            scale[group].mul_add(f32::from(q), minimum)
        };
        Self {
            values: float.round(&q.iter().enumerate().map(value).collect::<Vec<_>>()),
            q: q.iter().map(|q| q.cast_unsigned()).collect(),
            // Without minima their buffer is not read: it may be any.
            minimum: Float::F32.bytes(if layout.minimum { &minimum } else { &[0.0] }),
            scale: Float::F32.bytes(&scale),
        }
    }
}

#[test]
fn products_of_few_rows_with_bytes() {
    let kernels = Float::ALL.into_iter().flat_map(|float| {
        LAYOUTS.into_iter().flat_map(move |layout| {
            FEW.map(|few| {
                emit!(
                    few.planes as u32 * 32,
                    int8::matrix_vector_int8::MatrixVectorInt8,
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    (),
                    (),
                    layout,
                    few,
                    float.element()
                )
            })
        })
    });
    let host = Host::new("int8_products", kernels.collect());
    let mut kernel = 0;
    for float in Float::ALL {
        for layout in LAYOUTS {
            let mut matrix = Matrix::new(layout, float);
            // Rows of a longer product are the same to the bit, however many rows its cubes have.
            let x = float.round(&noise(9 * INPUTS, 15));
            let mut one = Vec::new();
            for few in FEW {
                for rows in [1, 3, 9] {
                    let x = &x[..rows * INPUTS];
                    let mut out = float.bytes(&vec![f32::NAN; rows * OUTPUTS]);
                    host.launch(
                        kernel,
                        [OUTPUTS.div_ceil(few.planes * few.outputs) as u32, rows.div_ceil(few.rows) as u32],
                        &[Scalar::U32(rows as u32), Scalar::U32(OUTPUTS as u32)],
                        &mut [&mut float.bytes(x), &mut matrix.q, &mut matrix.scale, &mut matrix.minimum, &mut out],
                    );
                    let dot = |x: &[f32], w: &[f32]| {
                        x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>() as f32
                    };
                    let want = x.chunks(INPUTS).flat_map(|x| matrix.values.chunks(INPUTS).map(move |w| dot(x, w)));
                    let what = format!("{layout:?} {few:?}, {rows} rows");
                    assert_close(&what, &float.values(&out), &want.collect::<Vec<_>>(), float.tolerance());
                    out.truncate(out.len() / rows);
                    if one.is_empty() {
                        one.clone_from(&out);
                    }
                    assert!(out == one, "{what}: the first row differs from the one alone");
                }
                kernel += 1;
            }
        }
    }
}

#[test]
fn bytes_are_written_out() {
    let kernels = Float::ALL.into_iter().flat_map(|float| {
        LAYOUTS.map(|layout| {
            emit!(
                WIDEN_UNITS as u32,
                int8::widen_int8::WidenInt8,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                (),
                layout,
                float.element()
            )
        })
    });
    let host = Host::new("int8_written_out", kernels.collect());
    let matrices = Float::ALL.into_iter().flat_map(|float| LAYOUTS.map(|layout| (float, layout)));
    for (kernel, (float, layout)) in matrices.enumerate() {
        let mut matrix = Matrix::new(layout, float);
        let mut out = float.bytes(&[f32::NAN; OUTPUTS * INPUTS]);
        host.launch(
            kernel,
            [OUTPUTS.div_ceil(WIDEN) as u32, INPUTS.div_ceil(WIDEN) as u32],
            &[Scalar::U32(OUTPUTS as u32)],
            &mut [&mut matrix.q, &mut matrix.scale, &mut matrix.minimum, &mut out],
        );
        let turned = (0..INPUTS).flat_map(|i| matrix.values.iter().skip(i).step_by(INPUTS).copied());
        assert_eq!(float.values(&out), turned.collect::<Vec<_>>(), "{layout:?} {float:?}");
    }
}

#[test]
fn rows_of_bytes_are_gathered() {
    let kernels = LAYOUTS.map(|layout| {
        emit!(64, int8::gather_rows_int8::GatherRowsInt8, buffer(), buffer(), buffer(), buffer(), buffer(), layout)
    });
    let host = Host::new("int8_gathered", kernels.into());
    for (kernel, layout) in LAYOUTS.into_iter().enumerate() {
        let mut matrix = Matrix::new(layout, Float::F32);
        let ids = [70, 0, 33, 33];
        let mut out = Float::F32.bytes(&[f32::NAN; 4 * INPUTS]);
        host.launch(
            kernel,
            [ids.len() as u32, 1],
            &[],
            &mut [&mut matrix.q, &mut matrix.scale, &mut matrix.minimum, &mut u32_bytes(&ids), &mut out],
        );
        let rows = ids.iter().flat_map(|&id| &matrix.values[id as usize * INPUTS..][..INPUTS]);
        assert_eq!(Float::F32.values(&out), rows.copied().collect::<Vec<_>>(), "{layout:?}");
    }
}

#[test]
fn products_in_32_bits_are_chains_in_the_order_of_the_inputs() {
    let kernel = emit!(product::UNITS as u32, product::product::Product, buffer(), buffer(), buffer(), (), (), INPUTS);
    let host = Host::new("product", vec![kernel]);
    let w = noise(INPUTS * OUTPUTS, 21);
    for rows in [1, 5, 70] {
        let x = noise(rows * INPUTS, 22);
        let mut out = Float::F32.bytes(&vec![f32::NAN; rows * OUTPUTS]);
        host.launch(
            0,
            [OUTPUTS.div_ceil(product::SIDE) as u32, rows.div_ceil(product::SIDE) as u32],
            &[Scalar::U32(rows as u32), Scalar::U32(OUTPUTS as u32)],
            &mut [&mut Float::F32.bytes(&x), &mut Float::F32.bytes(&w), &mut out],
        );
        let chain = |x: &[f32], output: usize| {
            x.iter().zip(w[output..].iter().step_by(OUTPUTS)).fold(0.0_f32, |sum, (x, w)| x.mul_add(*w, sum))
        };
        let want = x.chunks(INPUTS).flat_map(|x| (0..OUTPUTS).map(move |output| chain(x, output)));
        assert_eq!(Float::F32.values(&out), want.collect::<Vec<_>>(), "{rows} rows");
    }
}
