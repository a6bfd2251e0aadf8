//! AUC, log loss and accuracy with percentile bootstrap intervals.
//!
//! Definitions are scikit-learn's (`roc_auc_score`, `log_loss`, `accuracy_score`), and a fixture made with it holds
//! them to 1e-12. Comparisons (paired tests) are [`crate::compare`]'s.

use crate::draw::below;
use rallrec_core::{params::EvaluateParams, rng::row_rng};
use rayon::prelude::*;

/// Probabilities are kept this far from 0 and 1 in the log loss: the machine epsilon of their type, as scikit-learn
/// does for a float32 column.
pub const LOG_LOSS_CLIP: f64 = f32::EPSILON as f64;

/// Stream of the resamplings' generator.
const STREAM: &str = "evaluate.bootstrap";

/// A metric's value and the bounds of its interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metric {
    /// The value on all predicted samples; `None` where it is not defined.
    pub value: Option<f64>,
    /// Lower bound; `None` without resamplings on which the metric is defined.
    pub low: Option<f64>,
    /// Upper bound.
    pub high: Option<f64>,
}

/// Metrics of one system.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SystemMetrics {
    /// Area under the ROC curve: the probability that a like is ranked above a dislike, ties counting half. Not
    /// defined when there is only one class.
    pub auc: Metric,
    /// Mean negative natural logarithm of the probability given to what happened; clipped at [`LOG_LOSS_CLIP`].
    pub log_loss: Metric,
    /// Share of samples where p > 0.5 agrees with the label; p = 0.5 is a prediction of no like.
    pub accuracy: Metric,
    /// Samples, with those missing.
    pub samples: u64,
    /// Samples without a prediction; they count in no metric.
    pub missing: u64,
}

impl SystemMetrics {
    /// The metrics with their names in the table `metrics`.
    pub fn named(&self) -> [(&'static str, Metric); 3] {
        [("auc", self.auc), ("logloss", self.log_loss), ("accuracy", self.accuracy)]
    }
}

/// Why predictions cannot be evaluated.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum MetricsError {
    /// Labels and predictions differ in number.
    #[error("{labels} labels but {predictions} predictions; give columns of one table")]
    Columns {
        /// Number of labels.
        labels: usize,
        /// Number of predictions.
        predictions: usize,
    },
    /// A label is neither 0 nor 1.
    #[error("row {row}: label {label} is neither 0 nor 1; correct the table of predictions")]
    Label {
        /// Row position.
        row: usize,
        /// The label.
        label: i8,
    },
    /// A prediction is not a probability.
    #[error(
        "row {row}: prediction {p} is not between 0 and 1; correct the stage that predicted it, or make the row null"
    )]
    Probability {
        /// Row position.
        row: usize,
        /// The prediction.
        p: f32,
    },
    /// More rows than the resampling's counters hold.
    #[error("{rows} rows are more than the {} that can be evaluated at once; split the table", u32::MAX)]
    TooMany {
        /// Number of rows.
        rows: usize,
    },
}

/// Evaluates predicted probabilities of a like against labels (1 like, 0 not). `None` and NaN are missing
/// predictions.
///
/// Intervals are percentile bootstrap: resampling b draws as many samples as have predictions, with replacement,
/// from the generator of (`seed`, b). So systems with predictions for the same samples are resampled alike. The
/// bounds are the (1 -/+ confidence) / 2 quantiles, linearly interpolated; resamplings on which a metric is not
/// defined are left out.
///
/// # Errors
/// When the columns do not fit together, or hold values that are no labels or no probabilities.
pub fn evaluate(
    labels: &[i8],
    p: &[Option<f32>],
    params: &EvaluateParams,
    seed: u64,
) -> Result<SystemMetrics, MetricsError> {
    let scored = Scored::new(labels, p)?;
    let values = scored.values(|_| 1);
    let rows = if scored.order.is_empty() { 0 } else { params.bootstrap };
    let resampled: Vec<Values> = (0..rows)
        .into_par_iter()
        .map_init(
            || vec![0_u32; scored.order.len()],
            |counts, resampling| {
                draw_counts(counts, seed, resampling);
                scored.values(|row| counts[row])
            },
        )
        .collect();
    let metric = |of: fn(&Values) -> Option<f64>| {
        let mut drawn: Vec<f64> = resampled.iter().filter_map(of).collect();
        drawn.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - params.confidence) / 2.0;
        Metric { value: of(&values), low: quantile(&drawn, tail), high: quantile(&drawn, 1.0 - tail) }
    };
    Ok(SystemMetrics {
        auc: metric(|v| v.auc),
        log_loss: metric(|v| v.log_loss),
        accuracy: metric(|v| v.accuracy),
        samples: labels.len() as u64,
        missing: (labels.len() - scored.order.len()) as u64,
    })
}

/// Area under the ROC curve of probabilities `p`, for early stopping; `None` when only one class is there.
///
/// # Errors
/// As [`evaluate`].
pub fn auc(labels: &[i8], p: &[f32]) -> Result<Option<f64>, MetricsError> {
    let p: Vec<_> = p.iter().copied().map(Some).collect();
    Ok(Scored::new(labels, &p)?.values(|_| 1).auc)
}

/// One sample with a prediction.
struct Row {
    /// Position among the rows with predictions, in the table's order.
    row: usize,
    p: f32,
    like: bool,
    loss: f64,
}

/// The predicted rows, sorted once by p: every resampling then is one pass with counts.
pub(crate) struct Scored {
    order: Vec<Row>,
}

pub(crate) struct Values {
    pub(crate) auc: Option<f64>,
    pub(crate) log_loss: Option<f64>,
    pub(crate) accuracy: Option<f64>,
}

impl Scored {
    pub(crate) fn new(labels: &[i8], p: &[Option<f32>]) -> Result<Self, MetricsError> {
        if labels.len() != p.len() {
            return Err(MetricsError::Columns { labels: labels.len(), predictions: p.len() });
        }
        if u32::try_from(labels.len()).is_err() {
            return Err(MetricsError::TooMany { rows: labels.len() });
        }
        let mut order = Vec::with_capacity(labels.len());
        for (row, (&label, &p)) in labels.iter().zip(p).enumerate() {
            if label != 0 && label != 1 {
                return Err(MetricsError::Label { row, label });
            }
            let Some(p) = p.filter(|p| !p.is_nan()) else { continue };
            if !(0.0..=1.0).contains(&p) {
                return Err(MetricsError::Probability { row, p });
            }
            let like = label == 1;
            order.push(Row { row: order.len(), p, like, loss: loss(p, like) });
        }
        // By row too: sums then have one order. -0 and 0 are one value here as in `values`.
        order.sort_unstable_by(|a, b| (a.p + 0.0).total_cmp(&(b.p + 0.0)).then(a.row.cmp(&b.row)));
        Ok(Self { order })
    }

    /// The metrics when row i is there `count(i)` times.
    pub(crate) fn values(&self, count: impl Fn(usize) -> u32) -> Values {
        let (mut likes, mut dislikes, mut correct, mut loss) = (0_u64, 0_u64, 0_u64, 0.0_f64);
        // Twice the number of (like, dislike) pairs in the right order, ties once: whole numbers, so exact.
        let mut twice_ordered = 0_u128;
        for ties in self.order.chunk_by(|a, b| a.p == b.p) {
            let (mut tied_likes, mut tied_dislikes) = (0_u64, 0_u64);
            for row in ties {
                let count = count(row.row);
                loss += f64::from(count) * row.loss;
                let count = u64::from(count);
                if row.like {
                    tied_likes += count
                } else {
                    tied_dislikes += count
                }
                correct += if (row.p > 0.5) == row.like { count } else { 0 };
            }
            twice_ordered += u128::from(tied_likes) * u128::from(2 * dislikes + tied_dislikes);
            likes += tied_likes;
            dislikes += tied_dislikes;
        }
        let total = (likes + dislikes) as f64;
        let defined = |there: bool, value: f64| there.then_some(value);
        Values {
            auc: defined(likes > 0 && dislikes > 0, twice_ordered as f64 / (2.0 * likes as f64 * dislikes as f64)),
            log_loss: defined(total > 0.0, loss / total),
            accuracy: defined(total > 0.0, correct as f64 / total),
        }
    }
}

fn loss(p: f32, like: bool) -> f64 {
    let p = f64::from(p);
    let of_truth = if like { p } else { 1.0 - p };
    -of_truth.clamp(LOG_LOSS_CLIP, 1.0 - LOG_LOSS_CLIP).ln()
}

/// How often each row comes in a resampling.
fn draw_counts(counts: &mut [u32], seed: u64, resampling: u32) {
    let mut rng = row_rng(seed, STREAM, u64::from(resampling), 0);
    counts.fill(0);
    for _ in 0..counts.len() {
        let row = below(&mut rng, counts.len());
        counts[row] += 1;
    }
}

/// Quantile of sorted values, linearly interpolated between order statistics.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let place = q * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!([0.0, 0.025, 0.5, 1.0].map(|q| quantile(&values, q)), [1.0, 1.075, 2.5, 4.0].map(Some));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn counting_rows_is_resampling_them() {
        let labels: Vec<i8> = (0..60).map(|i| i8::from(i * 7 % 11 < 5)).collect();
        let p: Vec<_> = (0..60).map(|i| Some((i * 13 % 20) as f32 / 20.0)).collect();
        let scored = Scored::new(&labels, &p).unwrap();
        let mut counts = vec![0; 60];
        for resampling in 0..20 {
            draw_counts(&mut counts, 42, resampling);
            assert_eq!(counts.iter().sum::<u32>(), 60);
            let rows: Vec<usize> = counts.iter().enumerate().flat_map(|(row, n)| (0..*n).map(move |_| row)).collect();
            let resampled = Scored::new(
                &rows.iter().map(|r| labels[*r]).collect::<Vec<_>>(),
                &rows.iter().map(|r| p[*r]).collect::<Vec<_>>(),
            );
            let (fast, slow) = (scored.values(|row| counts[row]), resampled.unwrap().values(|_| 1));
            assert_eq!((fast.auc, fast.accuracy), (slow.auc, slow.accuracy));
            assert!((fast.log_loss.unwrap() - slow.log_loss.unwrap()).abs() < 1e-14);
        }
    }
}
