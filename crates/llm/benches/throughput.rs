//! Tokens a second of the language model: prefill of 512 tokens and decoding of 64 at batch 1, 8 and 32.
//!
//! `cargo bench --workspace --bench throughput [-- PRECISION [WHAT]]`: `auto` (the file's own, the default), `f32`,
//! `bf16`, `f16` or `int8`; only the measurements whose name contains WHAT. The peers run right after, so that they
//! see the same machine: transformers in 32 bits where `RALLREC_PEER_PYTHON` is a Python that has torch, transformers
//! and gguf, and llama.cpp on the same file where `RALLREC_LLAMA_PYTHON` is one that has llama-cpp-python.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints its measurements")]

#[path = "../tests/model/mod.rs"]
mod model;

use rallrec_core::rng::row_rng;
use rallrec_llm::{GenerateRequest, LanguageModel, Precision, Sampling};
use std::{collections::BTreeMap, ops::ControlFlow, path::Path, process::Command, time::Instant};

const PREFILL: u32 = 512;
const DECODE: usize = 64;
const ROUNDS: usize = 3;
const PEERS: [(&str, &str, &str); 2] = [
    ("transformers", "RALLREC_PEER_PYTHON", concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peer_transformers.py")),
    ("llama.cpp", "RALLREC_LLAMA_PYTHON", concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peer_llama_cpp.py")),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let precision = match arguments.first().map(String::as_str) {
        None | Some("auto") => Precision::Auto,
        Some("f32") => Precision::F32,
        Some("bf16") => Precision::Bf16,
        Some("f16") => Precision::F16,
        Some("int8") => Precision::Int8,
        Some(other) => panic!("precision {other:?} is none of auto, f32, bf16, f16, int8"),
    };
    let only = arguments.get(1).map_or("", String::as_str);
    let path = model::path();
    let began = Instant::now();
    let model = LanguageModel::load(&path, &rallrec_llm::pick_device("auto").unwrap(), precision).unwrap();
    let (seconds, megabytes) = (began.elapsed().as_secs_f64(), model.weight_bytes() as f64 / 1e6);
    println!("rallrec, {precision:?}: loaded in {seconds:.2} s, weights {megabytes:.0} MB");
    let ours = measure(&model, only);
    let peers: Vec<_> =
        PEERS.iter().filter_map(|(name, python, script)| Some((name, peer(python, script, &path)?))).collect();
    for (what, speed) in ours {
        let against = |(name, speeds): &(&&str, BTreeMap<String, f64>)| {
            speeds.get(&what).map(|theirs| format!("; {name} {theirs:.1}, ratio {:.2}", speed / theirs))
        };
        let ratios: String = peers.iter().filter_map(against).collect();
        println!("{what}: {speed:.1} tokens/s{ratios}");
    }
}

/// What was measured, and tokens a second.
fn measure(model: &LanguageModel, only: &str) -> Vec<(String, f64)> {
    let mut out = Vec::new();
    for batch in [1, 8, 32] {
        let what = format!("prefill {PREFILL} x {batch}");
        if what.contains(only) {
            let prompt = |row| (0..PREFILL).map(|i| 500 + i * 7 + row).collect();
            let prompts: Vec<Vec<u32>> = (0..batch).map(prompt).collect();
            let seconds = best(|| {
                model.score(&prompts, &[1, 2], 4096, &mut |_| ControlFlow::Continue(())).unwrap();
            });
            out.push((what, f64::from(PREFILL * batch) / seconds));
        }
    }
    for batch in [1, 8, 32] {
        let what = format!("decode, batch {batch}");
        if what.contains(only) {
            let seconds = best(|| decode(model, batch, DECODE)) - best(|| decode(model, batch, 1));
            out.push((what, (batch * (DECODE - 1)) as f64 / seconds));
        }
    }
    out
}

/// Runs a peer, which prints lines `WHAT: NUMBER tokens/s`. `None` where its Python is not given.
fn peer(python: &str, script: &str, model: &Path) -> Option<BTreeMap<String, f64>> {
    let output = Command::new(std::env::var_os(python)?).arg(script).arg(model).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let speed = |line: &str| {
        let (what, number) = line.rsplit_once(": ")?;
        Some((what.to_owned(), number.strip_suffix(" tokens/s")?.parse().ok()?))
    };
    Some(lines.lines().filter_map(speed).collect())
}

/// The shortest of some rounds, in seconds.
fn best(mut run: impl FnMut()) -> f64 {
    let round = |_| {
        let began = Instant::now();
        run();
        began.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

fn decode(model: &LanguageModel, batch: usize, max_new_tokens: usize) {
    let sampling = Sampling { temperature: 0.8, top_p: 0.9, max_new_tokens, ..Sampling::default() };
    let requests = (0..batch as u32).map(|row| GenerateRequest {
        prompt: (0..32).map(|i| 500 + i * 7 + row * 13).collect(),
        samples: vec![row_rng(1, "bench", u64::from(row), 0)],
    });
    model.generate(requests.collect(), &sampling, batch, &mut |_| ControlFlow::Continue(())).unwrap();
}
