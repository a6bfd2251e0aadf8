//! Writes kernels as CUDA C++ into a folder, for the tests of `rallrec-llm`, which compare them with the loops that
//! compute the same on the CPU, and which do not build CubeCL.
//!
//! usage: `cargo run --release -p rallrec-kernels --features emit --example emit -- FOLDER`. A file's first line is a comment
//! with the function's name, the units of a cube, and its bytes of shared memory.

#[path = "../tests/without_gpu/emit.rs"]
mod emit;
#[path = "../tests/without_gpu/twin_shapes.rs"]
mod shapes;

use cubecl::ir::{ElemType, FloatKind};
use emit::{Kernel, buffer, emit};
use rallrec_kernels::{
    attention::Tile,
    int8::{Few, Layout, WIDEN_UNITS},
    product,
    rotary::Heads,
};
use shapes::{BYTE_INPUTS, CHUNKS, FEED, FEW, HIDDEN, KEYS, LAYOUTS, QUERIES, TILES, UNITS, VOCABULARY, WHOLE, WIDTH};
use std::{error::Error, path::Path};

const F32: ElemType = ElemType::Float(FloatKind::F32);
const BF16: ElemType = ElemType::Float(FloatKind::BF16);

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: emit FOLDER")?;
    std::fs::create_dir_all(&folder)?;
    for (name, Kernel { symbol, units, shared_bytes, source }) in kernels() {
        // Under another name first: tests that run side by side write the same files.
        let path = Path::new(&folder).join(format!("{name}.cu"));
        let new = path.with_extension(format!("{}.new", std::process::id()));
        std::fs::write(&new, format!("// {symbol} {units} {shared_bytes}\n{source}"))?;
        std::fs::rename(new, path)?;
    }
    Ok(())
}

fn kernels() -> Vec<(String, Kernel)> {
    let mut all = rows();
    for (suffix, float) in [("f32", F32), ("bf16", BF16)] {
        all.extend(attention(float).into_iter().map(|(name, kernel)| (format!("{name}_{suffix}"), kernel)));
    }
    all.push(("attend_tiles_bf16".into(), tiles()));
    for (number, (group, minimum)) in LAYOUTS.into_iter().enumerate() {
        all.extend(bytes(number, Layout { inputs: BYTE_INPUTS, group, minimum }));
    }
    all
}

/// What is done to rows.
fn rows() -> Vec<(String, Kernel)> {
    let planes = UNITS / 32;
    let norm = |add| {
        emit!(
            UNITS,
            norm::add_rms_norm::AddRmsNorm,
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            (),
            HIDDEN / 4,
            add,
            planes,
            F32
        )
    };
    let sample =
        emit!(256, sample::sample::Sample, buffer(), buffer(), buffer(), buffer(), buffer(), VOCABULARY, 8, F32);
    vec![
        (
            "gather_rows".into(),
            emit!(UNITS, norm::gather_rows::GatherRows, buffer(), buffer(), buffer(), HIDDEN / 4, [F32; 2]),
        ),
        ("add_rms_norm".into(), norm(true)),
        ("rms_norm".into(), norm(false)),
        ("swiglu".into(), emit!(UNITS, feed_forward::swiglu::Swiglu, buffer(), buffer(), (), FEED / 4, F32)),
        ("sample".into(), sample),
        (
            "product".into(),
            emit!(product::UNITS as u32, product::product::Product, buffer(), buffer(), buffer(), (), (), HIDDEN),
        ),
    ]
}

fn attention(float: ElemType) -> Vec<(String, Kernel)> {
    let heads = |bias, norm| Heads { queries: QUERIES, keys: KEYS, width: WIDTH, bias, norm };
    let rotate = |heads| {
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
            float
        )
    };
    let attend = |(planes, rows), whole| {
        emit!(
            planes as u32 * 32,
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
            Tile { queries: QUERIES, keys: KEYS, width: WIDTH, planes, rows, whole },
            float
        )
    };
    let combine =
        emit!(WIDTH as u32, attention::combine::Combine, buffer(), buffer(), buffer(), buffer(), QUERIES, WIDTH, float);
    vec![
        ("rotate_plain".into(), rotate(heads(false, false))),
        ("rotate_bias_norm".into(), rotate(heads(true, true))),
        ("attend_whole".into(), attend(WHOLE, true)),
        ("attend_chunks".into(), attend(CHUNKS, false)),
        ("combine".into(), combine),
        (
            "copy_parts".into(),
            emit!(UNITS, attention::copy_parts::CopyParts, buffer(), (), (), KEYS * 32 * WIDTH / 4, float),
        ),
    ]
}

fn tiles() -> Kernel {
    let (planes, rows) = TILES;
    emit!(
        planes as u32 * 32,
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
        Tile { queries: QUERIES, keys: KEYS, width: WIDTH, planes, rows, whole: true },
        BF16
    )
}

/// Products with bytes, and the bytes written out.
fn bytes(number: usize, layout: Layout) -> Vec<(String, Kernel)> {
    let multiply = |(rows, outputs, planes): (usize, usize, usize)| {
        emit!(
            planes as u32 * 32,
            int8::matrix_vector_int8::MatrixVectorInt8,
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            (),
            (),
            layout,
            Few { rows, outputs, planes },
            F32
        )
    };
    let products =
        FEW.into_iter().enumerate().map(|(few, shape)| (format!("int8_{number}_few_{few}"), multiply(shape)));
    let widen =
        emit!(WIDEN_UNITS as u32, int8::widen_int8::WidenInt8, buffer(), buffer(), buffer(), buffer(), (), layout, F32);
    let gather =
        emit!(UNITS, int8::gather_rows_int8::GatherRowsInt8, buffer(), buffer(), buffer(), buffer(), buffer(), layout);
    products.chain([(format!("int8_{number}_widen"), widen), (format!("int8_{number}_gather"), gather)]).collect()
}
