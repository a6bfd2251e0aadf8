//! What each precision of the weights costs: memory, perplexity on our own documents, and p(Yes) of some prompts.
//!
//! `cargo bench --workspace --bench precision`. Everything is compared with 32-bit weights of the same file, in one run.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints its measurements")]

#[path = "../tests/model/mod.rs"]
mod model;

use rallrec_llm::{LanguageModel, Message, Precision};
use std::{ops::ControlFlow, path::Path};

/// Tokens of a stretch of text whose perplexity is measured.
const STRETCH: usize = 256;
const STRETCHES: usize = 24;
const PROMPTS: usize = 60;

fn main() {
    let device = rallrec_llm::pick_device("auto").unwrap();
    let path = model::path();
    let mut exact: Option<Vec<f64>> = None;
    for precision in [Precision::F32, Precision::Auto, Precision::Bf16, Precision::F16, Precision::Int8] {
        let model = LanguageModel::load(&path, &device, precision).unwrap();
        let (perplexity, p) = (perplexity(&model), p_yes(&model));
        let exact = exact.get_or_insert_with(|| p.clone());
        let off: Vec<f64> = p.iter().zip(&*exact).map(|(a, b)| (a - b).abs()).collect();
        println!(
            "{precision:?}: {:.0} MB, perplexity {perplexity:.4}, p(Yes) off by {:.5} on average and {:.5} at most",
            model.weight_bytes() as f64 / 1e6,
            off.iter().sum::<f64>() / off.len() as f64,
            off.iter().copied().fold(0.0, f64::max),
        );
    }
}

fn root(file: &str) -> String {
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file)).unwrap();
    // MovieLens files are ISO-8859-1.
    String::from_utf8_lossy(&bytes).into_owned()
}

/// e to the mean negative log-probability of each next token.
fn perplexity(model: &LanguageModel) -> f64 {
    let text = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/pipeline.md"].map(root).join("\n");
    let tokens = model.encode(&text).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for stretch in tokens.chunks_exact(STRETCH).take(STRETCHES) {
        let trace = model.trace(stretch, usize::MAX).unwrap();
        for (position, &next) in trace.iter().zip(&stretch[1..]) {
            let largest = position.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = position.logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
            sum += total.ln() - f64::from(position.logits[next as usize] - largest);
            count += 1;
        }
    }
    (sum / f64::from(count)).exp()
}

fn p_yes(model: &LanguageModel) -> Vec<f64> {
    let films = root("tests/fixtures/tiny-1m/movies.dat");
    let titles: Vec<&str> = films.lines().filter_map(|line| line.split("::").nth(1)).collect();
    let prompt = |i: usize| {
        let title = |j: usize| titles[(i * 7 + j * 3) % titles.len()];
        let rated: Vec<String> = (0..8).map(|j| format!("{} ({} stars)", title(j), 1 + (i + j * j) % 5)).collect();
        let asked = format!(
            "The user rated: {}. Will the user like ***{}***? Answer only Yes or No.",
            rated.join(", "),
            title(9)
        );
        model.encode(&model.chat(&[Message::new("user", asked)], true).unwrap()).unwrap()
    };
    let prompts: Vec<_> = (0..PROMPTS).map(prompt).collect();
    let answers = ["Yes", "No"].map(|answer| model.tokenizer().token(answer).unwrap());
    let rows = model.score(&prompts, &answers, 4096, &mut |_| ControlFlow::Continue(())).unwrap();
    rows.into_iter()
        .map(|row| {
            let logits = row.unwrap();
            1.0 / (1.0 + f64::from(logits[1] - logits[0]).exp())
        })
        .collect()
}
