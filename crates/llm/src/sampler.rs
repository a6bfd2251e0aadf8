//! Draws the next token from logits: temperature, then the nucleus of top-p.
//!
//! The vocabulary is never sorted as a whole: only the tokens that can be in the nucleus are, largest first, as many
//! as it takes. All sums are in 64 bits and in a fixed order.

use crate::host::{exp, vectorized};
use rand_chacha::{ChaCha8Rng, rand_core::Rng};

/// Tokens that are sorted at first; the number is doubled until the nucleus is complete.
const FIRST_SORTED: usize = 64;

/// The next token, or `None` when no logit is finite.
///
/// With a temperature of 0 it is the largest logit's, the first of equals; nothing is drawn. Otherwise the
/// probabilities are softmax(logits / temperature), restricted to the smallest set of most probable tokens whose sum
/// reaches `top_p` (1 for all), and one number of 53 bits is drawn. Of equally probable tokens the smaller id counts
/// as the more probable.
pub fn next_token(logits: &[f32], temperature: f32, top_p: f32, rng: &mut ChaCha8Rng) -> Option<u32> {
    let best = largest(logits)?;
    if temperature == 0.0 {
        return Some(best as u32);
    }
    let mut weights = vec![0.0; logits.len()];
    let total = vectorized(Weights { logits, max: logits[best], scale: 1.0 / temperature, weights: &mut weights });
    let uniform = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
    if top_p >= 1.0 {
        return Some(pick(weights.iter().copied().enumerate(), uniform * total).unwrap_or(best) as u32);
    }
    let (nucleus, mass) = nucleus(&weights, total, f64::from(top_p));
    let tokens = nucleus.iter().map(|&token| (token, weights[token]));
    Some(pick(tokens, uniform * mass).unwrap_or(best) as u32)
}

/// Position of the largest finite value, the first of equals.
fn largest(logits: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (token, logit) in logits.iter().enumerate() {
        if logit.is_finite() && best.is_none_or(|best| *logit > logits[best]) {
            best = Some(token);
        }
    }
    best
}

/// The smallest set of heaviest tokens that weighs at least `top_p * total`, heaviest first, and its weight.
fn nucleus(weights: &[f32], total: f64, top_p: f64) -> (Vec<usize>, f64) {
    // All tokens below this weight together weigh less than what the nucleus leaves out, so none of them is in it.
    let negligible = (1.0 - top_p) * total / weights.len() as f64;
    let mut candidates: Vec<usize> =
        (0..weights.len()).filter(|&token| f64::from(weights[token]) >= negligible).collect();
    let heavier = |a: &usize, b: &usize| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b));
    let mut sorted = 0;
    let mut mass = 0.0;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let count = FIRST_SORTED.max(sorted).min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count, heavier);
        }
        rest[..count].sort_unstable_by(heavier);
        for index in sorted..sorted + count {
            mass += f64::from(weights[candidates[index]]);
            if mass >= top_p * total {
                candidates.truncate(index + 1);
                return (candidates, mass);
            }
        }
        sorted += count;
    }
    (candidates, mass)
}

/// The token in whose share of the summed weights `target` falls.
fn pick(tokens: impl Iterator<Item = (usize, f32)>, target: f64) -> Option<usize> {
    let mut sum = 0.0;
    let mut last = None;
    for (token, weight) in tokens {
        if weight > 0.0 {
            sum += f64::from(weight);
            last = Some(token);
            if sum > target {
                break;
            }
        }
    }
    last
}

struct Weights<'a> {
    logits: &'a [f32],
    max: f32,
    scale: f32,
    weights: &'a mut [f32],
}

impl pulp::NullaryFnOnce for Weights<'_> {
    /// The sum.
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        for (weight, &logit) in self.weights.iter_mut().zip(self.logits) {
            let e = exp((logit - self.max) * self.scale);
            *weight = if logit.is_finite() { e } else { 0.0 };
        }
        let mut sums = [0.0_f64; 16];
        for chunk in self.weights.chunks(sums.len()) {
            for (sum, &weight) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(weight);
            }
        }
        sums.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::rng::row_rng;

    fn logits(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = row_rng(seed, "test.logits", 0, 0);
        let mut uniform = || f64::from(rng.next_u32()) / f64::from(u32::MAX);
        // Sums of uniforms: peaked, with ties after rounding.
        (0..count).map(|_| ((0..4).map(|_| uniform()).sum::<f64>() * 60.0).round() as f32 / 8.0).collect()
    }

    /// Less peaked, so that a nucleus has many tokens.
    fn gentle(count: usize, seed: u64) -> Vec<f32> {
        logits(count, seed).into_iter().map(|x| x / 6.0).collect()
    }

    fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let e: Vec<f64> = logits.iter().map(|&x| (f64::from(x - max) / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|x| x / sum).collect()
    }

    /// Draws fit the distribution: chi-square below the 0.999 quantile (Wilson-Hilferty).
    fn fits(probabilities: &[f64], logits: &[f32], temperature: f32, top_p: f32) {
        const DRAWS: usize = 40_000;
        let mut counts = vec![0_usize; probabilities.len()];
        for sample in 0..DRAWS as u64 {
            let mut rng = row_rng(7, "test.draw", 0, sample);
            counts[next_token(logits, temperature, top_p, &mut rng).unwrap() as usize] += 1;
        }
        let (mut chi_square, mut bins, mut rare) = (0.0, 0.0, (0.0, 0.0));
        let mut add = |observed: f64, expected: f64| {
            chi_square += (observed - expected).powi(2) / expected;
            bins += 1.0;
        };
        for (&p, &count) in probabilities.iter().zip(&counts) {
            let expected = p * DRAWS as f64;
            if p == 0.0 {
                assert_eq!(count, 0, "a token outside of the nucleus was drawn");
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
        let limit = freedom * (1.0 - h + 3.09 * h.sqrt()).powi(3);
        assert!(chi_square < limit, "chi-square {chi_square:.1} of {freedom} degrees of freedom, limit {limit:.1}");
    }

    /// Top-p by sorting everything.
    fn sorted_nucleus(probabilities: &[f64], top_p: f64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..probabilities.len()).collect();
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
        let mut sum = 0.0;
        let end = order.iter().position(|&token| {
            sum += probabilities[token];
            sum >= top_p
        });
        order.truncate(end.map_or(order.len(), |end| end + 1));
        order
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = gentle(40, 1);
        for temperature in [0.6, 1.0, 2.5] {
            fits(&softmax(&logits, f64::from(temperature)), &logits, temperature, 1.0);
        }
    }

    #[test]
    fn draws_follow_the_renormalized_nucleus() {
        let logits = gentle(40, 2);
        let mut probabilities = softmax(&logits, f64::from(0.8_f32));
        let kept = sorted_nucleus(&probabilities, f64::from(0.9_f32));
        let mass: f64 = kept.iter().map(|&token| probabilities[token]).sum();
        for (token, p) in probabilities.iter_mut().enumerate() {
            *p = if kept.contains(&token) { *p / mass } else { 0.0 };
        }
        fits(&probabilities, &logits, 0.8, 0.9);
    }

    #[test]
    fn the_nucleus_is_that_of_a_full_sort() {
        for seed in 0..40 {
            let logits = logits([3, 65, 700, 5000][seed as usize % 4], seed);
            let temperature = [0.3, 1.0, 4.0, 50.0][(seed / 4) as usize % 4];
            for top_p in [0.05, 0.5, 0.9, 0.999] {
                let mut weights = vec![0.0; logits.len()];
                let max = logits[largest(&logits).unwrap()];
                let total =
                    vectorized(Weights { logits: &logits, max, scale: 1.0 / temperature, weights: &mut weights });
                let exact: Vec<f64> = weights.iter().map(|&w| f64::from(w) / total).collect();
                let (got, mass) = nucleus(&weights, total, top_p);
                assert_eq!(got, sorted_nucleus(&exact, top_p), "seed {seed}, top-p {top_p}");
                let sum: f64 = got.iter().map(|&token| f64::from(weights[token])).sum();
                assert!((sum - mass).abs() < 1e-9 * total);
            }
        }
    }

    #[test]
    fn temperature_0_takes_the_first_largest_and_draws_nothing() {
        let mut rng = row_rng(1, "test", 0, 0);
        let mut untouched = rng.clone();
        assert_eq!(next_token(&[1.0, 3.0, f32::NAN, 3.0], 0.0, 0.9, &mut rng), Some(1));
        assert_eq!(rng.next_u64(), untouched.next_u64());
        assert_eq!(next_token(&[f32::NAN, f32::NEG_INFINITY], 0.0, 0.9, &mut rng), None);
    }
}
