//! The model on a CUDA device against the same model on the CPU. Without a device each test says so and passes.
//!
//! In f32 both compute the same but for the order of sums. In bf16 activations have 8 bits: the bounds here are what
//! that makes of SmolLM2, with room for another device's kernels.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod model;

use burn::tensor::Device;
use rallrec_core::rng::row_rng;
use rallrec_llm::{GenerateRequest, LanguageModel, Pooling, Precision, Sampling, pick_device};
use std::ops::ControlFlow;

fn device() -> Option<Device> {
    let device = pick_device("cuda:0");
    if let Err(error) = &device {
        eprintln!("not tested: {error}");
    }
    device.ok()
}

/// Both models, or nothing without a device. Bytes are compared with bytes, floats of 16 bits with those of 32.
fn models(precision: Precision) -> Option<[LanguageModel; 2]> {
    let device = device()?;
    let load = |device, precision| LanguageModel::load(&model::path(), device, precision).unwrap();
    let cpu = if precision == Precision::Int8 { Precision::Int8 } else { Precision::F32 };
    let models = [load(&Device::flex(), cpu), load(&device, precision)];
    eprintln!("{precision:?}: {} bytes of weights on the device", models[1].weight_bytes());
    Some(models)
}

fn prompts() -> Vec<Vec<u32>> {
    let lengths = [5, 33, 1, 96, 200, 64];
    let prompt = |(row, length): (usize, usize)| (0..length).map(move |i| (40 + i * 7 + (i / 40) * row) as u32 % 4000);
    lengths.into_iter().enumerate().map(|pair| prompt(pair).collect()).collect()
}

/// Largest difference, relative to the largest value.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let size = b.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / size
}

fn greedy(max_new_tokens: usize) -> Sampling {
    Sampling { temperature: 0.0, max_new_tokens, ..Sampling::default() }
}

fn requests(samples: u64) -> Vec<GenerateRequest> {
    let request = |(row, prompt)| GenerateRequest {
        prompt,
        samples: (0..samples).map(|sample| row_rng(3, "test.cuda", row, sample)).collect(),
    };
    (0..).zip(prompts()).map(request).collect()
}

#[test]
fn hidden_states_logits_scores_and_embeddings_are_the_cpus() {
    for (precision, bound) in
        [(Precision::F32, 1e-3), (Precision::Bf16, 6e-2), (Precision::F16, 2e-2), (Precision::Int8, 6e-2)]
    {
        let Some([cpu, cuda]) = models(precision) else { return };
        let mut worst = 0.0_f32;
        for prompt in prompts() {
            // In one go, and in chunks from cached keys and values, of one token too.
            let want = cpu.trace(&prompt, prompt.len()).unwrap();
            for chunk in [prompt.len(), 40, 1] {
                let got = cuda.trace(&prompt, chunk).unwrap();
                for (position, (got, want)) in got.iter().zip(&want).enumerate() {
                    let (hidden, logits) = (distance(&got.hidden, &want.hidden), distance(&got.logits, &want.logits));
                    let far = hidden.max(logits);
                    worst = worst.max(far);
                    assert!(far < bound, "{precision:?}, {} tokens by {chunk}, at {position}: {far}", prompt.len());
                }
            }
        }
        eprintln!("{precision:?}: hidden states and logits within {worst:.1e}");
        let mut go_on = |_| ControlFlow::Continue(());
        let [want, got] = [&cpu, &cuda].map(|m| m.score(&prompts(), &[5, 9, 2000], 256, &mut go_on).unwrap());
        for (want, got) in want.into_iter().zip(got) {
            assert!(distance(&got.unwrap(), &want.unwrap()) < bound, "{precision:?}: scores");
        }
        let [want, got] = [&cpu, &cuda].map(|m| m.embed(&prompts(), Pooling::Mean, 256, &mut go_on).unwrap());
        for (want, got) in want.into_iter().zip(got) {
            assert!(distance(&got.unwrap(), &want.unwrap()) < bound, "{precision:?}: embeddings");
        }
    }
}

#[test]
fn greedy_answers_and_most_samples_are_the_cpus_in_32_bits() {
    let Some([cpu, cuda]) = models(Precision::F32) else { return };
    let mut go_on = |_| ControlFlow::Continue(());
    let [want, got] = [&cpu, &cuda].map(|m| m.generate(requests(1), &greedy(64), 4, &mut go_on).unwrap());
    for (want, got) in want.into_iter().zip(got) {
        assert_eq!(got.unwrap()[0].tokens, want.unwrap()[0].tokens);
    }
    // The same numbers are drawn; only one that falls beside a token's share by less than the rounding differs.
    let sampling = Sampling { temperature: 0.8, top_p: 0.9, ..greedy(32) };
    let [want, got] = [&cpu, &cuda].map(|m| m.generate(requests(4), &sampling, 24, &mut go_on).unwrap());
    let pairs = want.into_iter().zip(got).flat_map(|(want, got)| want.unwrap().into_iter().zip(got.unwrap()));
    let same = pairs.filter(|(want, got)| want.tokens == got.tokens).count();
    assert!(same >= 22, "{same} of 24 samples are the same");
}

/// Weights of 8 bits take about half of the memory, and a batch that is small enough for the product with bytes gives the
/// same text as each prompt alone: no kernel is chosen by the number of rows, but for the prompts themselves.
#[test]
fn int8_weights_stay_8_bits() {
    let Some([cpu, cuda]) = models(Precision::Int8) else { return };
    assert!(cuda.weight_bytes() <= cpu.weight_bytes(), "{} bytes", cuda.weight_bytes());
    let mut go_on = |_| ControlFlow::Continue(());
    let sampling = Sampling { temperature: 0.6, top_p: 1.0, ..greedy(24) };
    let together = cuda.generate(requests(2), &sampling, 12, &mut go_on).unwrap();
    let mut same = 0;
    for (request, together) in requests(2).into_iter().zip(together) {
        let alone = cuda.generate(vec![request], &sampling, 1, &mut go_on).unwrap().remove(0).unwrap();
        same += alone.iter().zip(together.unwrap()).filter(|(a, b)| a.tokens == b.tokens).count();
    }
    eprintln!("{same} of 12 int8 samples are the same alone and in a batch");
    assert!(same >= 9, "{same} of 12 samples are the same");
}

#[test]
fn bf16_samples_of_a_prompt_follow_its_own_scores() {
    let Some([_, cuda]) = models(Precision::Bf16) else { return };
    let mut go_on = |_| ControlFlow::Continue(());
    // Alone, and among 24 samples: products of other shapes may differ in their last bits, and nothing else does.
    let sampling = Sampling { temperature: 0.6, top_p: 1.0, ..greedy(24) };
    let together = cuda.generate(requests(4), &sampling, 24, &mut go_on).unwrap();
    let mut same = 0;
    for (request, together) in requests(4).into_iter().zip(together) {
        let alone = cuda.generate(vec![request], &sampling, 1, &mut go_on).unwrap().remove(0).unwrap();
        same += alone.iter().zip(together.unwrap()).filter(|(a, b)| a.tokens == b.tokens).count();
    }
    eprintln!("{same} of 24 bf16 samples are the same alone and in a batch");
    assert!(same >= 12, "{same} of 24 samples are the same");
}
