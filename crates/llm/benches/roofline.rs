//! What the language model reaches of a CUDA device, against what the device does in the same run.
//!
//! `cargo bench --workspace --features rallrec/cuda --bench roofline -- [--device cuda:0] [--precision bf16|int8]
//! [--model FILE]...`. First two ceilings are measured with Burn: bytes a second of a large copy, and floating-point
//! operations a second of a large product in bf16 (`peer_cuda.py` has PyTorch's). Then for each model (SmolLM2 where none
//! is given) prefill and decoding, each with its share of the ceiling: of prefill 2 operations for every weight of the
//! matrices and token, of decoding one reading of all weights, in the bytes that they have, and of the sequences' keys
//! and values a step. `peer_cuda.py` measures the same with transformers.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints its measurements")]

#[path = "../tests/model/mod.rs"]
mod model;

use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use rallrec_core::rng::row_rng;
use rallrec_llm::{GenerateRequest, LanguageModel, Precision, Sampling, config::ModelConfig, pick_device};
use std::{ops::ControlFlow, path::PathBuf, time::Instant};

const ROUNDS: usize = 3;
/// Prompt of the decoding measurements, and tokens drawn.
const PROMPT: usize = 512;
const DECODE: usize = 64;
const SAMPLES: usize = 6;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (mut name, mut precision, mut models) = ("cuda:0".to_owned(), Precision::Bf16, Vec::<PathBuf>::new());
    while let Some(option) = arguments.next() {
        let value = arguments.next().unwrap_or_else(|| panic!("{option} has no value"));
        match option.as_str() {
            "--device" => name = value,
            "--model" => models.push(value.into()),
            "--precision" if value == "int8" => precision = Precision::Int8,
            "--precision" if value == "bf16" => precision = Precision::Bf16,
            _ => panic!("{option} {value} is none of --device NAME, --precision bf16|int8, --model FILE"),
        }
    }
    let device = match pick_device(&name) {
        Ok(device) => device,
        Err(error) => return println!("not measured: {error}"),
    };
    if models.is_empty() {
        models.push(model::path());
    }
    let ceilings = Ceilings::measure(&device);
    println!("ceilings: copy {:.0} GB/s, product {:.1} TFLOP/s", ceilings.bytes / 1e9, ceilings.operations / 1e12);
    for path in models {
        println!("{}", path.display());
        let began = Instant::now();
        let model = LanguageModel::load(&path, &device, precision).unwrap();
        println!(
            "  {precision:?}, loaded in {:.1} s, {:.2} GB",
            began.elapsed().as_secs_f64(),
            model.weight_bytes() as f64 / 1e9
        );
        measure(&model, &ceilings);
    }
}

/// What the device does in a second.
struct Ceilings {
    bytes: f64,
    operations: f64,
}

impl Ceilings {
    fn measure(device: &Device) -> Self {
        let size = if *device == Device::flex() { 512 } else { 8192 };
        let uniform = || Tensor::<2>::random([size, size], Distribution::Uniform(-1.0, 1.0), device);
        let (a, b) = (uniform().cast(FloatDType::BF16), uniform().cast(FloatDType::BF16));
        const TIMES: usize = 10;
        let seconds = |run: &dyn Fn()| {
            best(|| {
                (0..TIMES).for_each(|_| run());
                device.sync().unwrap();
            }) / TIMES as f64
        };
        let product = seconds(&|| drop(a.clone().matmul(b.clone())));
        let copy = seconds(&|| drop(a.clone() * 2.0));
        let numbers = (size * size) as f64;
        Self { bytes: 2.0 * 2.0 * numbers / copy, operations: 2.0 * numbers * size as f64 / product }
    }
}

/// Weights that every token is multiplied with: all matrices but the embedding and the head.
fn matrix_weights(config: &ModelConfig) -> f64 {
    let attention = config.hidden * 2 * (config.query_width() + config.kv_width());
    (config.layers * (attention + 3 * config.hidden * config.feed_forward)) as f64
}

fn measure(model: &LanguageModel, ceilings: &Ceilings) {
    let config = model.config();
    let mut go_on = |_| ControlFlow::Continue(());
    for (batch, length) in [(1, 512), (8, 512), (32, 650), (8, 2000)] {
        let prompts: Vec<Vec<u32>> = (0..batch).map(|row| prompt(row, length, config)).collect();
        let seconds = best(|| drop(model.score(&prompts, &[1, 2], 16_384, &mut go_on).unwrap()));
        let speed = (batch * length) as f64 / seconds;
        let share = speed * 2.0 * matrix_weights(config) / ceilings.operations;
        println!("  prefill {length} x {batch}: {speed:.0} tokens/s, {:.1} % of the product's ceiling", 100.0 * share);
    }
    let head = config.vocabulary * config.hidden;
    let embedding = if config.tied_head { 0.0 } else { head as f64 };
    let read_weights = matrix_weights(config) + head as f64;
    // A weight's bytes, with its part of a scale.
    let weights = model.weight_bytes() as f64 / (read_weights + embedding) * read_weights;
    let kv = (2 * 2 * config.layers * config.kv_width()) as f64;
    for (batch, samples) in [(1, 1), (8, 1), (32, 1), (256, 1), (256, SAMPLES)] {
        let timed = |tokens| best(|| decode(model, batch, samples, tokens));
        let step = (timed(DECODE) - timed(1)) / (DECODE - 1) as f64;
        // A prompt's keys and values once for its samples, and half of the answer on average.
        let read = weights + kv * (batch.div_ceil(samples) * PROMPT + batch * DECODE / 2) as f64;
        let share = read / step / ceilings.bytes;
        println!(
            "  decode, batch {batch}, {samples} a prompt: {:.0} tokens/s, {:.2} ms a step, {:.1} % of the copy's ceiling",
            batch as f64 / step,
            1e3 * step,
            100.0 * share
        );
    }
}

fn prompt(row: usize, length: usize, config: &ModelConfig) -> Vec<u32> {
    (0..length).map(|i| ((500 + i * 7 + row * 131) % config.vocabulary) as u32).collect()
}

fn decode(model: &LanguageModel, batch: usize, samples: usize, max_new_tokens: usize) {
    let sampling = Sampling { temperature: 0.8, top_p: 0.9, max_new_tokens, ..Sampling::default() };
    let requests = (0..batch).step_by(samples).map(|row| GenerateRequest {
        prompt: prompt(row, PROMPT, model.config()),
        samples: (row..batch.min(row + samples)).map(|sample| row_rng(1, "bench", row as u64, sample as u64)).collect(),
    });
    drop(model.generate(requests.collect(), &sampling, batch, &mut |_| ControlFlow::Continue(())).unwrap());
}

/// The shortest of some rounds, in seconds, after one that is not counted: it tunes and compiles.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let mut round = || {
        let began = Instant::now();
        run();
        began.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}
