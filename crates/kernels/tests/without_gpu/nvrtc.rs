//! Compiles every kernel with NVRTC, in the types and shapes that models use.

use crate::{
    emit::{Kernel, buffer, emit},
    values::Float,
};
use rallrec_kernels::{
    attention::Tile,
    int8::{Few, Layout},
    product,
    rotary::Heads,
    tiles,
};
use std::{path::Path, process::Command};

/// A100, H100 (with the instructions of that chip alone), RTX 50 and its kin.
const ARCHITECTURES: &str = "sm_80,sm_90a,sm_120";

struct Model {
    hidden: usize,
    feed_forward: usize,
    vocabulary: usize,
    heads: Heads,
}

const MODELS: [Model; 2] = [
    // SmolLM2-135M
    Model {
        hidden: 576,
        feed_forward: 1536,
        vocabulary: 49_152,
        heads: Heads { queries: 9, keys: 3, width: 64, bias: false, norm: false },
    },
    // Llama-3.1-8B, with the biases of Qwen2 and the norms of Qwen3
    Model {
        hidden: 4096,
        feed_forward: 14_336,
        vocabulary: 128_256,
        heads: Heads { queries: 32, keys: 8, width: 128, bias: true, norm: true },
    },
];

fn kernels(model: &Model, float: Float) -> Vec<Kernel> {
    let f = float.element();
    let f32 = Float::F32.element();
    let vectors = model.hidden / 4;
    let Heads { queries, keys, width, .. } = model.heads;
    let tile = |planes, rows, whole| Tile { queries, keys, width, planes, rows, whole };
    let attend = |tile: Tile| {
        emit!(
            tile.planes as u32 * 32,
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
            tile,
            f
        )
    };
    let layout = |minimum| Layout { inputs: model.hidden, group: if minimum { 16 } else { 32 }, minimum };
    let few = |few: Few, minimum| {
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
            layout(minimum),
            few,
            f
        )
    };
    let on_tensor_cores = || {
        emit!(
            128,
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
            tile(4, tiles::ROWS, true),
            f
        )
    };
    let mut all = vec![
        emit!(128, norm::gather_rows::GatherRows, buffer(), buffer(), buffer(), vectors, [f, f32]),
        emit!(256, norm::add_rms_norm::AddRmsNorm, buffer(), buffer(), buffer(), buffer(), (), vectors, true, 8, f),
        emit!(256, norm::add_rms_norm::AddRmsNorm, buffer(), buffer(), buffer(), buffer(), (), vectors, false, 8, f),
        emit!(128, feed_forward::swiglu::Swiglu, buffer(), buffer(), (), model.feed_forward / 4, f),
        emit!(
            wide 128,
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
            model.heads,
            4,
            f
        ),
        attend(tile(8, 8, true)),
        attend(tile(4, 2, false)),
        attend(tile(4, 8, false)),
        emit!(width as u32, attention::combine::Combine, buffer(), buffer(), buffer(), buffer(), queries, width, f),
        emit!(128, attention::copy_parts::CopyParts, buffer(), (), (), keys * 32 * width / 4, f),
        few(Few { rows: 1, outputs: 2, planes: 4 }, false),
        few(Few { rows: 8, outputs: 4, planes: 4 }, true),
        emit!(256, int8::widen_int8::WidenInt8, buffer(), buffer(), buffer(), buffer(), (), layout(true), f),
        emit!(
            256,
            int8::gather_rows_int8::GatherRowsInt8,
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            layout(false)
        ),
        emit!(product::UNITS as u32, product::product::Product, buffer(), buffer(), buffer(), (), (), model.hidden),
        emit!(1024, sample::sample::Sample, buffer(), buffer(), buffer(), buffer(), buffer(), model.vocabulary, 32, f),
    ];
    // Fragments of 32-bit floats lose half of their bits.
    if float != Float::F32 {
        all.push(on_tensor_cores());
    }
    all
}

#[test]
fn nvrtc_compiles_every_kernel() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut sources = Vec::new();
    for (index, model) in MODELS.iter().enumerate() {
        for float in [Float::F32, Float::Bf16, Float::F16] {
            for (number, kernel) in kernels(model, float).into_iter().enumerate() {
                assert!(kernel.shared_bytes <= 99 * 1024, "{} wants {} bytes", kernel.symbol, kernel.shared_bytes);
                let path = folder.join(format!("{index}-{float:?}-{number}.cu"));
                std::fs::write(&path, kernel.source).expect("the target folder can be written");
                sources.push(path);
            }
        }
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/without_gpu/nvrtc.py");
    let mut python = Command::new("python3");
    let output = python
        .arg(script)
        .arg(folder.join("nvrtc-wheels"))
        .arg(ARCHITECTURES)
        .args(&sources)
        .output()
        .expect("python3 is installed");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    println!("{text}");
}
