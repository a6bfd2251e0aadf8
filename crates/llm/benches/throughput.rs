//! Tokens a second of the language model: prefill of 512 tokens and decoding of 64 at batch 1, 8 and 32.
//!
//! `cargo bench -p rallrec-llm`. With `RALLREC_PEER_PYTHON` set to a Python that has torch, transformers and gguf, the
//! same is measured there right after (`benches/peer.py`), so that both see the same machine.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints its measurements")]

#[path = "../tests/model/mod.rs"]
mod model;

use rallrec_core::rng::row_rng;
use rallrec_llm::{GenerateRequest, LanguageModel, Precision, Sampling};
use std::{ops::ControlFlow, process::Command, time::Instant};

const PREFILL: u32 = 512;
const DECODE: usize = 64;
const ROUNDS: usize = 3;

fn main() {
    let path = model::path();
    let began = Instant::now();
    let model = LanguageModel::load(&path, &rallrec_llm::pick_device("auto").unwrap(), Precision::Auto).unwrap();
    println!("rallrec: load {:.2} s, weights {} MB", began.elapsed().as_secs_f64(), model.weight_bytes() / 1_000_000);
    let mut ours = Vec::new();
    for batch in [1, 8] {
        let prompts: Vec<Vec<u32>> = (0..batch).map(|row| (0..PREFILL).map(|i| 500 + i * 7 + row).collect()).collect();
        let seconds = best(|| {
            model.score(&prompts, &[1, 2], 4096, &mut |_| ControlFlow::Continue(())).unwrap();
        });
        ours.push((format!("prefill {PREFILL} x {batch}"), f64::from(PREFILL * batch) / seconds));
    }
    for batch in [1, 8, 32] {
        let seconds = best(|| decode(&model, batch, DECODE)) - best(|| decode(&model, batch, 1));
        ours.push((format!("decode, batch {batch}"), (batch * (DECODE - 1)) as f64 / seconds));
    }
    let peer = std::env::var_os("RALLREC_PEER_PYTHON").map(|python| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peer.py");
        let output = Command::new(python).arg(script).arg(path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    });
    for (what, speed) in ours {
        let theirs = peer.as_deref().and_then(|lines| peer_speed(lines, &what));
        let ratio = theirs.map_or(String::new(), |t| format!("; transformers {t:.1}, ratio {:.2}", speed / t));
        println!("{what}: {speed:.1} tokens/s{ratio}");
    }
}

/// The number of a line `transformers: WHAT: NUMBER tokens/s`.
fn peer_speed(lines: &str, what: &str) -> Option<f64> {
    let line = lines.lines().find_map(|l| l.strip_prefix("transformers: ")?.strip_prefix(what)?.strip_prefix(": "))?;
    line.split(' ').next()?.parse().ok()
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
    let sampling = Sampling { temperature: 0.8, top_p: 0.9, max_new_tokens, stop_tokens: vec![], stop_texts: vec![] };
    let requests = (0..batch as u32).map(|row| GenerateRequest {
        prompt: (0..32).map(|i| 500 + i * 7 + row * 13).collect(),
        samples: vec![row_rng(1, "bench", u64::from(row), 0)],
    });
    model.generate(requests.collect(), &sampling, batch, &mut |_| ControlFlow::Continue(())).unwrap();
}
