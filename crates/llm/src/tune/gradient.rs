//! Loss and gradients of some samples: forward through all blocks, the head at the answer positions, and back.
//!
//! As many blocks as fit into the memory that is allowed keep what their backward pass needs; the others keep the
//! residual stream before them and are computed a second time. Neither that nor which samples are computed together
//! changes a bit of the result on the CPU.

use super::{
    TuneSample,
    block::{Block, Kept},
    lora::{Draws, Sequence},
    rows::{Rows, product, product_back, rms_norm, rms_norm_backward},
};
use crate::{
    adapter::Adapter,
    decoder::Decoder,
    host::{floats, matrix, read},
};

/// What gradients are computed with.
pub(crate) struct Gradient<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) adapter: &'a Adapter,
    pub(crate) draws: Draws,
    /// Bytes that blocks may keep for the way back.
    pub(crate) memory_bytes: usize,
    /// What every sample's loss is multiplied with in the sum that is differentiated.
    pub(crate) weight: f64,
}

#[expect(clippy::large_enum_variant, reason = "one a layer")]
enum Saved {
    All(Kept),
    Input(Rows),
}

impl Gradient<'_> {
    /// Adds the gradients of the samples' losses to `gradients`. Gives each sample's loss, not weighted: the cross
    /// entropy of its answer over the vocabulary.
    pub(crate) fn add(&self, samples: &[&TuneSample], gradients: &mut [f32]) -> Vec<f64> {
        let mut end = 0;
        let place = |sample: &&TuneSample| {
            let rows = end..end + sample.tokens.len();
            end = rows.end;
            Sequence { sample: sample.id, rows }
        };
        let sequences: Vec<Sequence> = samples.iter().map(place).collect();
        let tokens: Vec<u32> = samples.iter().flat_map(|sample| &sample.tokens).copied().collect();
        let layers = self.decoder.config.layers;
        let block = |layer| Block::new(self.decoder, self.adapter, layer, self.draws, &sequences);
        let kept_layers = self.memory_bytes / (size_of::<f32>() * Block::kept_floats(self.decoder) * tokens.len());
        let mut saved = Vec::with_capacity(layers);
        let mut x = Rows::of(self.decoder.embed(&tokens));
        for layer in 0..layers {
            let block = block(layer);
            let kept = block.keep(x);
            x = block.finish(&kept);
            // The last blocks come first on the way back, and free their memory soonest.
            saved.push(if layers - layer <= kept_layers { Saved::All(kept) } else { Saved::Input(kept.into_input()) });
        }
        let (losses, mut gradient) = self.head(&x, samples, &sequences);
        drop(x);
        for (layer, saved) in saved.into_iter().enumerate().rev() {
            let block = block(layer);
            let kept = match saved {
                Saved::All(kept) => kept,
                Saved::Input(x) => block.keep(x),
            };
            match block.backward(kept, gradient, gradients, layer > 0) {
                Some(before) => gradient = before,
                None => break,
            }
        }
        losses
    }

    /// Each sample's loss, and the gradient of the residual stream after the last block.
    fn head(&self, x: &Rows, samples: &[&TuneSample], sequences: &[Sequence]) -> (Vec<f64>, Rows) {
        let (config, device) = (&self.decoder.config, self.decoder.device());
        let (norm, head) = self.decoder.norm_and_head();
        let last: Vec<usize> = sequences.iter().map(|sequence| sequence.rows.end - 1).collect();
        let states = Rows::of(x.select(&last, device));
        let normed = rms_norm(&states, norm, config.norm_epsilon).into_tensor(device);
        let logits = read(product(normed, head));
        let mut losses = Vec::with_capacity(samples.len());
        let mut d_logits = vec![0.0; last.len() * config.vocabulary];
        let rows = floats(&logits).chunks_exact(config.vocabulary).zip(d_logits.chunks_exact_mut(config.vocabulary));
        for (sample, (logits, d_logits)) in samples.iter().zip(rows) {
            losses.push(cross_entropy(logits, sample.answer as usize, self.weight, d_logits));
        }
        let d_logits = matrix(d_logits, last.len(), device);
        let d_normed = product_back(d_logits, head.dense(device));
        let zeros = Rows::new(vec![0.0; last.len() * config.hidden], config.hidden, device);
        let d_states = read(rms_norm_backward(&states, norm, config.norm_epsilon, d_normed, zeros).into_tensor(device));
        let rows = sequences.last().map_or(0, |sequence| sequence.rows.end);
        let mut gradient = vec![0.0; rows * config.hidden];
        for (row, d_state) in last.iter().zip(floats(&d_states).chunks_exact(config.hidden)) {
            gradient[row * config.hidden..][..config.hidden].copy_from_slice(d_state);
        }
        (losses, Rows::new(gradient, config.hidden, device))
    }
}

/// -log softmax(logits)\[answer\], and its gradient times `weight`.
fn cross_entropy(logits: &[f32], answer: usize, weight: f64, gradient: &mut [f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for (out, &logit) in gradient.iter_mut().zip(logits) {
        *out = (logit - max).exp();
        sum += f64::from(*out);
    }
    let scale = weight / sum;
    gradient.iter_mut().for_each(|out| *out = (f64::from(*out) * scale) as f32);
    gradient[answer] -= weight as f32;
    sum.ln() - f64::from(logits[answer] - max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdapterSettings, LanguageModel, Precision, Target, tune::rows::compute_as_on_a_device};
    use burn::tensor::Device;
    use std::path::Path;

    /// The loops on the host and Burn's operations give the same gradients, with dropout and on all projections.
    #[test]
    fn host_and_device_agree() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tune_gqa.gguf");
        let model = LanguageModel::load(&file, &Device::flex(), Precision::F32).unwrap();
        let settings = AdapterSettings { rank: 3, alpha: 6.0, dropout: 0.1, targets: Target::ALL.to_vec() };
        let adapter = Adapter::new(model.config(), settings, 1, None).unwrap();
        // Not 0 in B either, so that every gradient has something to flow through.
        let values = adapter.values().iter().enumerate().map(|(i, x)| x + 0.1 * (i as f32).sin()).collect();
        let adapter = adapter.with_values(values).unwrap();
        let sample = |id: u64, count: u32| TuneSample {
            id,
            tokens: (0..count).map(|i| (i * 37 + id as u32) % 256).collect(),
            answer: 11,
        };
        let samples = [sample(1, 150), sample(2, 5), sample(3, 40)];
        let compute = |memory_bytes| {
            let draws = Draws { seed: 5, epoch: 2 };
            let gradient = Gradient { decoder: &model.decoder, adapter: &adapter, draws, memory_bytes, weight: 0.5 };
            let mut gradients = vec![0.0; adapter.values().len()];
            let losses = gradient.add(&samples.iter().collect::<Vec<_>>(), &mut gradients);
            (losses, gradients)
        };
        let host = compute(0);
        compute_as_on_a_device(true);
        let device = compute(usize::MAX);
        compute_as_on_a_device(false);
        let largest = host.1.iter().fold(0.0_f32, |max, g| max.max(g.abs()));
        let difference = host.1.iter().zip(&device.1).fold(0.0_f32, |max, (a, b)| max.max((a - b).abs()));
        assert!(difference < 1e-5 * largest, "{difference:e}, and the largest is {largest:e}");
        assert!(host.0.iter().zip(&device.0).all(|(a, b)| (a - b).abs() < 1e-5), "{:?} {:?}", host.0, device.0);
    }

    #[test]
    fn cross_entropy_of_two_equal_logits_is_the_logarithm_of_two() {
        let mut gradient = vec![0.0; 2];
        let loss = cross_entropy(&[3.0, 3.0], 1, 0.5, &mut gradient);
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-12);
        assert_eq!(gradient, [0.25, -0.25]);
    }
}
