//! Consistency-based merging of tuned and reasoning predictions (METHOD section 13, eq. 10).
//!
//! Works on one sample at a time and knows nothing of tables.

use rallrec_core::params::{MergeMethod, MergeParams};

/// A sample's merged prediction, and what it is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Merged {
    /// Merged probability of a like; `None` when there was nothing to merge.
    pub p: Option<f64>,
    /// Mean over the tuned adapters.
    pub p_tuned: Option<f64>,
    /// Mean over the reasoning traces.
    pub p_reason: Option<f64>,
    /// Population variance over the tuned adapters.
    pub var_tuned: Option<f64>,
    /// Population variance over the reasoning traces.
    pub var_reason: Option<f64>,
}

/// Merges the predictions of a sample's tuned adapters with those of its reasoning traces.
///
/// Predictions that are missing or not finite are left out. Where one side has none left, the other side's mean is
/// the result; where both have none, the result is `None`. With `method: reasoning` the traces' mean is the result, or
/// `None`.
///
/// Variances are those of the population (divided by n): with one adapter or one trace the variance must be 0
/// (METHOD section 13), where the sample variance is undefined.
pub fn merge(tuned: &[Option<f32>], traces: &[Option<f32>], params: &MergeParams) -> Merged {
    let (tuned, reason) = (Moments::of(tuned), Moments::of(traces));
    let p = match (tuned, reason) {
        _ if params.method == MergeMethod::Reasoning => reason.map(|m| m.mean),
        (Some(tuned), Some(reason)) => {
            let (w_tuned, w_reason) = weights(tuned.variance, reason.variance, params);
            Some(w_tuned * tuned.mean + w_reason * reason.mean)
        }
        (one, other) => one.or(other).map(|m| m.mean),
    };
    Merged {
        p,
        p_tuned: tuned.map(|m| m.mean),
        p_reason: reason.map(|m| m.mean),
        var_tuned: tuned.map(|m| m.variance),
        var_reason: reason.map(|m| m.variance),
    }
}

/// Weights of the tuned and the reasoning mean, given their variances. They sum to 1.
///
/// `consistency`: in proportion to 1 / (var_G + eps) and alpha / (var_R + eps). `mean`: one half each. `reasoning`: all to
/// the reasoning mean.
pub fn weights(var_tuned: f64, var_reason: f64, params: &MergeParams) -> (f64, f64) {
    match params.method {
        MergeMethod::Mean => (0.5, 0.5),
        MergeMethod::Reasoning => (0.0, 1.0),
        MergeMethod::Consistency => {
            let tuned = 1.0 / (var_tuned + params.eps);
            let reason = params.alpha / (var_reason + params.eps);
            (tuned / (tuned + reason), reason / (tuned + reason))
        }
    }
}

#[derive(Clone, Copy)]
struct Moments {
    mean: f64,
    variance: f64,
}

impl Moments {
    fn of(values: &[Option<f32>]) -> Option<Self> {
        let present = || values.iter().flatten().filter(|v| v.is_finite()).map(|v| f64::from(*v));
        let count = present().count();
        if count == 0 {
            return None;
        }
        let mean = present().sum::<f64>() / count as f64;
        let variance = present().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count as f64;
        Some(Self { mean, variance })
    }
}
