//! Seconds of one LoRA step, 4 prompts of 512 tokens, loss on the answer alone: gradients, clipping and AdamW.
//!
//! `cargo bench --workspace --bench tune`. With `RALLREC_PEER_PYTHON` set to a Python that has torch, transformers,
//! peft and gguf, the same is measured there right after (`benches/tune_peer.py`), so that both see the same machine.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints its measurements")]

#[path = "../tests/model/mod.rs"]
mod model;

use rallrec_llm::{
    AdapterSettings, LanguageModel, Precision, Target, TuneHooks, TuneProgress, TuneSample, TuneSettings,
};
use std::{ops::ControlFlow, process::Command, time::Instant};

const SAMPLES: u32 = 4;
const TOKENS: u32 = 512;
const STEPS: u64 = 4;

/// Notes when each step ends.
struct Times(Vec<Instant>);

impl TuneHooks for Times {
    fn progress(&mut self, _: TuneProgress) -> ControlFlow<()> {
        self.0.push(Instant::now());
        ControlFlow::Continue(())
    }

    fn validate(&mut self, _: &LanguageModel) -> ControlFlow<(), Option<f64>> {
        ControlFlow::Continue(None)
    }

    fn wants_state(&mut self) -> bool {
        false
    }

    fn save(&mut self, _: Vec<u8>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

fn main() {
    let path = model::path();
    let model = LanguageModel::load(&path, &rallrec_llm::pick_device("auto").unwrap(), Precision::Auto).unwrap();
    let samples: Vec<TuneSample> = (0..SAMPLES)
        .map(|row| TuneSample {
            id: u64::from(row),
            tokens: (0..TOKENS).map(|i| 500 + i * 7 + row).collect(),
            answer: 10 + row % 2,
        })
        .collect();
    let mut ours = Vec::new();
    for (what, memory_bytes) in [("all kept", usize::MAX), ("all computed twice", 0)] {
        let (seconds, losses) = measure(&model, &samples, memory_bytes);
        println!("rallrec, {what}: {seconds:.2} s a step; losses {losses:.4?}");
        ours.push((what, seconds));
    }
    let Some(python) = std::env::var_os("RALLREC_PEER_PYTHON") else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/tune_peer.py");
    let output = Command::new(python).arg(script).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    print!("{text}");
    let theirs: f64 = text.split_whitespace().find_map(|word| word.parse().ok()).unwrap(); // "PEFT: N s …"
    for (what, seconds) in ours {
        println!("rallrec, {what}, against PEFT: {:.2} times as fast", theirs / seconds);
    }
}

fn measure(model: &LanguageModel, samples: &[TuneSample], memory_bytes: usize) -> (f64, Vec<f64>) {
    let targets = vec![Target::Query, Target::Value];
    let settings = TuneSettings {
        adapter: AdapterSettings { rank: 8, alpha: 16.0, dropout: 0.05, targets },
        learning_rate: 1e-3,
        warmup_steps: 0,
        weight_decay: 0.01,
        clip: 1.0,
        epochs: STEPS,
        batch_size: samples.len(),
        eval_steps: 0,
        patience: 0,
        seed: 1,
        micro_tokens: (SAMPLES * TOKENS) as usize,
        memory_bytes,
    };
    let mut times = Times(Vec::new());
    let tuned = model.tune(samples, &settings, None, None, &mut times).unwrap();
    let seconds = times.0.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).fold(f64::INFINITY, f64::min);
    (seconds, tuned.history.iter().map(|record| record.loss).collect())
}
