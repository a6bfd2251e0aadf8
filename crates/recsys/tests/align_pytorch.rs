//! The alignment's steps against PyTorch's autograd: `fixtures/neural_pytorch.py` made the numbers.

use burn::tensor::Device;
use rallrec_core::params::{AlignParams, Negatives};
use rallrec_recsys::align::{Aligner, Weights, train};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Run {
    losses: Vec<f32>,
    r#final: Vec<f32>,
}

#[derive(Deserialize)]
struct Fixture {
    items: usize,
    trained: Vec<u32>,
    lr: f64,
    temperature: f64,
    text: Vec<f32>,
    colla: Vec<f32>,
    batches: Vec<Vec<u32>>,
    runs: BTreeMap<String, Run>,
    w1: Vec<f32>,
    b1: Vec<f32>,
    w2: Vec<f32>,
    b2: Vec<f32>,
}

fn close(name: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{name} differs by {worst:e}");
}

fn params(f: &Fixture, negatives: Negatives) -> AlignParams {
    AlignParams { hidden: 12, temperature: f.temperature, epochs: 30, batch_size: 7, negatives, learning_rate: f.lr }
}

#[test]
fn losses_and_embeddings_follow_pytorch() {
    let f: Fixture = serde_json::from_str(include_str!("fixtures/align.json")).expect("fixture");
    for (name, negatives) in [("in_batch", Negatives::InBatch), ("all", Negatives::All)] {
        let weights = Weights { w1: f.w1.clone(), b1: f.b1.clone(), w2: f.w2.clone(), b2: f.b2.clone() };
        let params = params(&f, negatives);
        let mut model = Aligner::new([&f.text, &f.colla], f.items, &f.trained, weights, &params, &Device::flex());
        let losses: Vec<f32> = f.batches.iter().map(|b| model.step(b).into_scalar::<f32>()).collect();
        close(&format!("{name} loss"), &losses, &f.runs[name].losses);
        close(&format!("{name} embeddings"), &model.embeddings(), &f.runs[name].r#final);
    }
}

#[test]
fn training_is_repeatable_and_gives_untrained_items_a_vector() {
    let f: Fixture = serde_json::from_str(include_str!("fixtures/align.json")).expect("fixture");
    let params = params(&f, Negatives::InBatch);
    let run = || train(f.items, &f.text, &f.colla, &params, 3, &Device::flex(), &mut |_| true).expect("trains");
    let result = run();
    assert_eq!(result, run());
    assert!(result.losses.last() < result.losses.first(), "{:?}", result.losses);
    let dim = f.b2.len();
    assert!(result.embeddings[3 * dim..4 * dim].iter().any(|&v| v != 0.0));
}
