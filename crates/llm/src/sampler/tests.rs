use super::*;
use rallrec_core::rng::row_rng;
use safetensors::SafeTensors;
use std::path::Path;

const DRAWS: u64 = 100_000;

fn logits(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = row_rng(seed, "test.logits", 0, 0);
    let mut uniform = || f64::from(rng.next_u32()) / f64::from(u32::MAX);
    // Sums of uniforms: peaked, with ties after rounding.
    (0..count).map(|_| ((0..4).map(|_| uniform()).sum::<f64>() * 60.0).round() as f32 / 8.0).collect()
}

/// A case of the fixture that transformers has made.
struct Case {
    sampling: Sampling,
    logits: Vec<f32>,
    before: Vec<u32>,
    probabilities: Vec<f32>,
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sampler.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let settings = &header.metadata().as_ref().unwrap()["cases"];
    let settings: Vec<serde_json::Value> = serde_json::from_str(settings).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let case = |(index, case): (usize, serde_json::Value)| {
        let words = |name: &str| -> Vec<u32> {
            let tensor = tensors.tensor(&format!("{index}.{name}")).unwrap();
            tensor.data().chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
        };
        let floats = |name: &str| words(name).into_iter().map(f32::from_bits).collect();
        let number = |name: &str, neutral: f64| case.get(name).map_or(neutral, |value| value.as_f64().unwrap()) as f32;
        let sampling = Sampling {
            temperature: number("temperature", 1.0),
            top_k: number("top_k", 0.0) as usize,
            top_p: number("top_p", 1.0),
            min_p: number("min_p", 0.0),
            repetition_penalty: number("repetition_penalty", 1.0),
            ..Sampling::default()
        };
        Case { sampling, logits: floats("logits"), before: words("before"), probabilities: floats("probabilities") }
    };
    settings.into_iter().enumerate().map(case).collect()
}

/// What the sampler draws from: weights that are 0 where a filter took the token out.
fn distribution(case: &Case) -> Vec<f64> {
    let mut sampler = Sampler::default();
    sampler.draw(&case.logits, &case.sampling, &case.before, &mut row_rng(0, "test", 0, 0)).unwrap();
    let total = sampler.sums.iter().sum();
    let mut weights: Vec<f64> = sampler.weights.iter().copied().map(f64::from).collect();
    if sampler.filter(&case.sampling, total) {
        for (token, weight) in weights.iter_mut().enumerate() {
            if !sampler.kept.contains(&(token as u32)) {
                *weight = 0.0;
            }
        }
    }
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

#[test]
fn the_distribution_is_that_of_transformers() {
    for (index, case) in cases().iter().enumerate() {
        for (token, (ours, &theirs)) in distribution(case).iter().zip(&case.probabilities).enumerate() {
            assert_eq!(*ours > 0.0, theirs > 0.0, "case {index}, token {token}: {ours} and {theirs}");
            let wrong = (ours - f64::from(theirs)).abs();
            assert!(wrong < 1e-6, "case {index}, token {token}: {ours} and {theirs}");
        }
    }
}

/// Draws fit the distribution: chi-square below the 0.9999 quantile (Wilson-Hilferty); 12 cases are tried.
#[test]
fn draws_follow_the_distribution() {
    for (index, case) in cases().iter().enumerate() {
        let mut counts = vec![0_usize; case.logits.len()];
        let mut sampler = Sampler::default();
        for sample in 0..DRAWS {
            let mut rng = row_rng(7, "test.draw", index as u64, sample);
            let drawn = sampler.draw(&case.logits, &case.sampling, &case.before, &mut rng).unwrap();
            counts[drawn.token as usize] += 1;
        }
        let (mut chi_square, mut bins, mut rare) = (0.0, 0.0, (0.0, 0.0));
        let mut add = |observed: f64, expected: f64| {
            chi_square += (observed - expected).powi(2) / expected;
            bins += 1.0;
        };
        for (&p, &count) in case.probabilities.iter().zip(&counts) {
            let expected = f64::from(p) * DRAWS as f64;
            if p == 0.0 {
                assert_eq!(count, 0, "case {index}: a token that a filter takes out was drawn");
            } else if expected < 10.0 {
                rare = (rare.0 + count as f64, rare.1 + expected);
            } else {
                add(count as f64, expected);
            }
        }
        if rare.1 > 0.0 {
            add(rare.0, rare.1);
        }
        let freedom: f64 = bins - 1.0;
        let h = 2.0 / (9.0 * freedom);
        let limit = freedom * (1.0 - h + 3.72 * h.sqrt()).powi(3);
        assert!(chi_square < limit, "case {index}: chi-square {chi_square:.1}, {freedom} degrees, limit {limit:.1}");
    }
}

#[test]
fn log_probabilities_are_the_models_own() {
    for (index, case) in cases().iter().enumerate() {
        let max = case.logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = case.logits.iter().map(|&x| f64::from(x - max).exp()).sum();
        for temperature in [0.0, case.sampling.temperature] {
            let sampling = Sampling { temperature, ..case.sampling.clone() };
            let mut rng = row_rng(1, "test.draw", index as u64, 0);
            let drawn = Sampler::default().draw(&case.logits, &sampling, &case.before, &mut rng).unwrap();
            let exact = f64::from(case.logits[drawn.token as usize] - max) - sum.ln();
            let wrong = (f64::from(drawn.log_probability) - exact).abs();
            assert!(wrong < 2e-6, "case {index}: {} and {exact}", drawn.log_probability);
        }
    }
}

/// Weights as `draw` makes them, and their sum.
fn weights(logits: &[f32], scale: f32) -> (Vec<f32>, f64) {
    let (mut weights, mut sums) = (vec![0.0; logits.len()], Vec::new());
    let max = vectorized(Largest(logits));
    let total = vectorized(Weights { scores: logits, max, scale, weights: &mut weights, sums: &mut sums });
    (weights, total)
}

/// All tokens, heaviest first.
fn sorted(weights: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..weights.len() as u32).collect();
    order.sort_by(|&a, &b| weights[b as usize].total_cmp(&weights[a as usize]).then(a.cmp(&b)));
    order
}

#[test]
fn the_nucleus_and_the_top_k_are_those_of_a_full_sort() {
    for seed in 0..40 {
        let logits = logits([3, 65, 700, 5000][seed as usize % 4], seed);
        let temperature = [0.3, 1.0, 4.0, 50.0][(seed / 4) as usize % 4];
        let (weights, total) = weights(&logits, 1.0 / temperature);
        let order = sorted(&weights);
        let mut kept = Vec::new();
        for top_p in [0.05, 0.5, 0.9, 0.999] {
            nucleus(&weights, total, top_p, &mut kept);
            let end = reaching(&order, &weights, top_p * total);
            assert_eq!(kept, order[..end], "seed {seed}, top-p {top_p}");
        }
        for count in [1, 2, 50, 600, 4999].into_iter().filter(|&count| count < logits.len()) {
            heaviest(&weights, count, &mut Vec::new(), &mut kept);
            assert_eq!(kept, order[..count], "seed {seed}, top-k {count}");
        }
    }
}

#[test]
fn a_draw_finds_its_token_through_the_stretches() {
    let (weights, total) = weights(&logits(1700, 3), 0.2);
    let sums: Vec<f64> = weights.chunks(STRETCH).map(sum_of).collect();
    for step in 0..1000 {
        let target = f64::from(step) / 1000.0 * total;
        let all = weights.iter().enumerate().map(|(token, &weight)| (token as u32, f64::from(weight)));
        assert_eq!(pick(&weights, &sums, target), walk(all, 0.0, target));
    }
    assert_eq!(pick(&weights, &sums, 2.0 * total), Some(1699), "beyond the sum, by rounding: the last");
}

fn draw(logits: &[f32], temperature: f32, rng: &mut ChaCha8Rng) -> Option<u32> {
    let sampling = Sampling { temperature, ..Sampling::default() };
    Sampler::default().draw(logits, &sampling, [], rng).map(|drawn| drawn.token)
}

#[test]
fn temperature_0_takes_the_first_largest_and_draws_nothing() {
    let mut rng = row_rng(1, "test", 0, 0);
    let mut untouched = rng.clone();
    assert_eq!(draw(&[1.0, 3.0, f32::NEG_INFINITY, 3.0], 0.0, &mut rng), Some(1));
    assert_eq!(draw(&[1.0, 3.0, 2.0], 1e-44, &mut rng), Some(1), "its reciprocal is infinite");
    assert_eq!(rng.next_u64(), untouched.next_u64());
    // -4 * 2 < -5: the penalty has decided.
    let sampling = Sampling { temperature: 0.0, repetition_penalty: 2.0, ..Sampling::default() };
    let drawn = Sampler::default().draw(&[-4.0, -5.0], &sampling, &[0], &mut rng).unwrap();
    assert_eq!(drawn.token, 1);
}

#[test]
fn what_is_not_a_number_is_never_passed_over() {
    let mut rng = row_rng(1, "test", 0, 0);
    for temperature in [0.0, 0.7, 1.0] {
        for odd in [f32::NAN, f32::INFINITY] {
            assert_eq!(draw(&[1.0, odd, 2.0], temperature, &mut rng), None, "{odd} at {temperature}");
        }
        assert_eq!(draw(&[f32::NEG_INFINITY; 40], temperature, &mut rng), None);
        assert_eq!(draw(&[f32::NEG_INFINITY, 1.0], temperature, &mut rng), Some(1));
    }
}
