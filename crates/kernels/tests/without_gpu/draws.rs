//! What the sampling kernel draws, against the definition: everything sorted, in f64.

use crate::{
    emit::{buffer, emit},
    host::Host,
    values::{Float, noise, u32_bytes, u32_values},
};
use rallrec_kernels::sample::NO_TOKEN;

const VOCABULARY: usize = 1000;
const UNITS: u32 = 256;

#[derive(Clone, Copy, Debug)]
struct Settings {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    /// Of 2^32.
    uniform: u32,
}

const FRACTION: f64 = (1_u64 << 32) as f64;

impl Settings {
    fn shape(self) -> [f32; 2] {
        [if self.temperature == 0.0 { 0.0 } else { 1.0 / self.temperature }, self.min_p]
    }

    fn limit(self) -> [u32; 3] {
        let top_p = if self.top_p < 1.0 { (f64::from(self.top_p) * FRACTION) as u32 } else { 0 };
        [self.top_k, top_p, self.uniform]
    }
}

/// The tokens that may be drawn, in the order in which their shares follow one another, with their shares.
fn shares(logits: &[f32], settings: Settings) -> Vec<(usize, f64)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |&logit: &f32| (f64::from(logit - max) / f64::from(settings.temperature)).exp();
    let mut kept: Vec<(usize, f64)> = logits.iter().map(weight).enumerate().collect();
    let restricted = settings.top_k > 0 || settings.top_p < 1.0;
    if restricted {
        // Stable: of equal weights the smaller token comes first.
        kept.sort_by(|a, b| b.1.total_cmp(&a.1));
    }
    if settings.top_k > 0 {
        kept.truncate(settings.top_k as usize);
    }
    if settings.top_p < 1.0 {
        let total: f64 = kept.iter().map(|(_, w)| w).sum();
        let mut sum = 0.0;
        let end = kept.iter().position(|(_, weight)| {
            sum += weight;
            sum >= f64::from(settings.top_p) * total
        });
        kept.truncate(end.map_or(kept.len(), |end| end + 1));
    }
    kept.retain(|(_, weight)| *weight >= f64::from(settings.min_p));
    let total: f64 = kept.iter().map(|(_, w)| w).sum();
    kept.into_iter().map(|(token, weight)| (token, weight / total)).collect()
}

/// Fails unless the uniform number falls into the token's share, or beside it by less than the rounding of weights.
fn check(logits: &[f32], settings: Settings, token: u32, log_probability: f32) {
    let uniform = f64::from(settings.uniform) / FRACTION;
    let mut end = 0.0;
    let kept = shares(logits, settings);
    let share = kept.iter().find_map(|&(candidate, share)| {
        end += share;
        (candidate == token as usize).then_some(end - share..end)
    });
    let share = share.unwrap_or_else(|| panic!("{settings:?}: {token} may not be drawn"));
    assert!(share.start - 2e-6 < uniform && uniform < share.end + 2e-6, "{settings:?}: {token} has {share:?}");
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let want = f64::from(logits[token as usize] - max) - sum.ln();
    assert!((f64::from(log_probability) - want).abs() < 1e-5, "{settings:?}: log p {log_probability}, not {want}");
}

#[test]
fn draws_are_those_of_the_definition() {
    let kernels = Float::ALL.map(|float| {
        emit!(
            UNITS,
            sample::sample::Sample,
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            VOCABULARY,
            UNITS / 32,
            float.element()
        )
    });
    let host = Host::new("sample", kernels.into());
    let mut all = Vec::new();
    for (top_k, top_p, min_p) in [
        (0, 1.0, 0.0),
        (0, 0.9, 0.0),
        (7, 1.0, 0.0),
        (0, 1.0, 0.05),
        (40, 0.8, 0.0),
        (300, 0.95, 0.02),
        (2000, 0.3, 0.5),
    ] {
        for temperature in [0.6, 1.7] {
            for uniform in [0, 1 << 20, 0x5555_5555, 0xa000_0001, 0xf000_0000, u32::MAX] {
                all.push(Settings { temperature, top_k, top_p, min_p, uniform });
            }
        }
    }
    for (index, float) in Float::ALL.into_iter().enumerate() {
        // Rounded, so that some weights are equal.
        let logits = noise(all.len() * VOCABULARY, 18).iter().map(|x| (x * 40.0).round() / 5.0).collect::<Vec<_>>();
        let logits = float.round(&logits);
        let mut tokens = u32_bytes(&vec![0; all.len()]);
        let mut log_probabilities = Float::F32.bytes(&vec![0.0; all.len()]);
        host.launch(
            index,
            [all.len() as u32, 1],
            &[],
            &mut [
                &mut float.bytes(&logits),
                &mut Float::F32.bytes(&all.iter().flat_map(|s| s.shape()).collect::<Vec<_>>()),
                &mut u32_bytes(&all.iter().flat_map(|s| s.limit()).collect::<Vec<_>>()),
                &mut tokens,
                &mut log_probabilities,
            ],
        );
        let drawn = u32_values(&tokens).into_iter().zip(Float::F32.values(&log_probabilities));
        for ((logits, &settings), (token, log_probability)) in logits.chunks(VOCABULARY).zip(&all).zip(drawn) {
            check(logits, settings, token, log_probability);
        }
    }
}

#[test]
fn the_largest_logit_and_rows_without_one() {
    let units = 1024;
    let kernel = emit!(
        units,
        sample::sample::Sample,
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        VOCABULARY,
        units / 32,
        Float::F32.element()
    );
    let host = Host::new("sample_largest", vec![kernel]);
    let mut rows = vec![vec![f32::NEG_INFINITY; VOCABULARY]; 4];
    rows[0] = noise(VOCABULARY, 19);
    rows[0][700] = 2.0;
    rows[0][300] = 2.0;
    rows[2] = noise(VOCABULARY, 20);
    rows[2][999] = f32::NAN;
    rows[3] = noise(VOCABULARY, 21);
    rows[3][0] = f32::INFINITY;
    let mut tokens = u32_bytes(&[0; 4]);
    let mut log_probabilities = Float::F32.bytes(&[0.0; 4]);
    host.launch(
        0,
        [4, 1],
        &[],
        &mut [
            &mut Float::F32.bytes(&rows.concat()),
            &mut Float::F32.bytes(&[0.0; 8]),
            &mut u32_bytes(&[0; 12]),
            &mut tokens,
            &mut log_probabilities,
        ],
    );
    assert_eq!(u32_values(&tokens), [300, NO_TOKEN, NO_TOKEN, NO_TOKEN]);
}
