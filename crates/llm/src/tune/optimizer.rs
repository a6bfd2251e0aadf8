//! How gradients become a step: clipping, learning-rate schedule, AdamW.

/// AdamW (arXiv 1711.05101) with PyTorch's defaults: beta 0.9 and 0.999, epsilon 1e-8 added to the corrected root,
/// weight decay apart from the gradient. Computed in 64 bits, kept in 32.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdamW {
    pub(crate) mean: Vec<f32>,
    pub(crate) square: Vec<f32>,
    pub(crate) steps: u64,
}

impl AdamW {
    const BETA1: f64 = 0.9;
    const BETA2: f64 = 0.999;
    const EPSILON: f64 = 1e-8;

    pub(crate) fn new(parameters: usize) -> Self {
        Self { mean: vec![0.0; parameters], square: vec![0.0; parameters], steps: 0 }
    }

    pub(crate) fn step(&mut self, values: &mut [f32], gradients: &[f32], learning_rate: f64, weight_decay: f64) {
        self.steps += 1;
        let power = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let (correction1, correction2) = (1.0 - Self::BETA1.powi(power), 1.0 - Self::BETA2.powi(power));
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((value, &gradient), (mean, square)) in values.iter_mut().zip(gradients).zip(moments) {
            let gradient = f64::from(gradient);
            let m = Self::BETA1 * f64::from(*mean) + (1.0 - Self::BETA1) * gradient;
            let s = Self::BETA2 * f64::from(*square) + (1.0 - Self::BETA2) * gradient * gradient;
            (*mean, *square) = (m as f32, s as f32);
            let root = s.sqrt() / correction2.sqrt() + Self::EPSILON;
            let decayed = f64::from(*value) * (1.0 - learning_rate * weight_decay);
            *value = (decayed - learning_rate * m / correction1 / root) as f32;
        }
    }
}

/// Euclidean norm of all gradients together; where it is above `limit`, they are scaled down to it, as PyTorch's
/// `clip_grad_norm_` does. A limit of 0 clips nothing.
pub(crate) fn clip(gradients: &mut [f32], limit: f64) -> f64 {
    let norm = gradients.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
    let scale = limit / (norm + 1e-6);
    if limit > 0.0 && scale < 1.0 {
        gradients.iter_mut().for_each(|g| *g = (f64::from(*g) * scale) as f32);
    }
    norm
}

/// What the learning rate is multiplied with in a step, counted from 0: a straight line up from 0 over the warm-up,
/// then a straight line down to 0 at the end (transformers' `get_linear_schedule_with_warmup`).
pub(crate) fn linear_schedule(step: u64, warmup: u64, total: u64) -> f64 {
    if step < warmup {
        step as f64 / warmup.max(1) as f64
    } else {
        total.saturating_sub(step) as f64 / total.saturating_sub(warmup).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_rises_and_falls() {
        let factors: Vec<f64> = (0..6).map(|step| linear_schedule(step, 2, 6)).collect();
        assert_eq!(factors, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
        assert_eq!(linear_schedule(0, 0, 4), 1.0);
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut gradients = [3.0, 4.0];
        assert_eq!(clip(&mut gradients, 0.0), 5.0);
        assert_eq!(gradients, [3.0, 4.0]);
        assert_eq!(clip(&mut gradients, 1.0), 5.0);
        assert!((gradients[0] - 0.6).abs() < 1e-6 && (gradients[1] - 0.8).abs() < 1e-6);
    }
}
