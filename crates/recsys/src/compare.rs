//! Whether a system has become worse: two predictions of the same samples, compared by a paired bootstrap.
//!
//! A resampling draws samples (or users, each with all of theirs) with replacement, and both predictions are measured on
//! the same draw, so that what is hard about a sample hardly matters. Of each question the harm is h = old - new, and for
//! the log loss, where less is better, new - old.
//!
//! - **Regression**: the hypothesis h <= tolerated is rejected. Its p-value is (1 + resamplings in which h is not above
//!   what is tolerated) / (1 + resamplings); of several questions together, Holm's step-down procedure holds the
//!   probability of any false alarm at 1 - confidence, whatever the correlation between them.
//! - **Minimum detectable harm**: tolerated + (z(level) + z(power)) s, with s the bootstrap's standard error and the level
//!   of Holm's first step, (1 - confidence) / questions: a true harm of this size is found with at least that power.
//! - **Too few**: no regression is shown, and the minimum detectable harm is above the one that must be found.
//!
//! Which samples, systems and segments there are is the caller's to say; so is what follows from a verdict.

use crate::{
    draw::below,
    metrics::{MetricsError, Scored, Values, quantile},
};
use rallrec_core::{rng::row_rng, spec::gate::Measure};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// Stream of the resamplings' generator.
const STREAM: &str = "compare.bootstrap";

/// Two predictions of the same samples; only those that have both.
pub struct Paired {
    old: Scored,
    new: Scored,
    /// Of each sample, which unit it is drawn with; `None` when samples are drawn.
    units: Option<Vec<usize>>,
    /// How many units there are.
    drawn: usize,
    samples: usize,
    /// Whether both predictions are the same to the bit.
    same: bool,
}

/// How a metric differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Its value in the old predictions; `None` where it is not defined.
    pub old: Option<f64>,
    /// Its value in the new ones.
    pub new: Option<f64>,
    /// By how much it has become worse; negative where it is better.
    pub harm: Option<f64>,
    /// The harm is above this with the given confidence (one-sided).
    pub low: Option<f64>,
    /// The harm is below this with the given confidence (one-sided).
    pub high: Option<f64>,
    /// Standard error of the harm.
    pub standard_error: Option<f64>,
    /// Probability of what was seen, or worse, if the true harm were no more than what is tolerated.
    pub p: f64,
}

/// Harms in all resamplings.
pub struct Resampled<'a> {
    paired: &'a Paired,
    values: (Values, Values),
    /// A pair of values for each resampling; empty when both predictions are the same.
    draws: Vec<(Values, Values)>,
    resamples: u32,
}

impl Paired {
    /// Pairs predictions row by row; rows that miss one of them (`None` or NaN) are left out. With `units`, rows of the same
    /// number are drawn together.
    ///
    /// # Errors
    /// When the columns differ in length, or hold values that are no labels or no probabilities.
    pub fn new(
        labels: &[i8],
        old: &[Option<f32>],
        new: &[Option<f32>],
        units: Option<&[i32]>,
    ) -> Result<Self, MetricsError> {
        for length in [old.len(), new.len()].into_iter().chain(units.map(<[i32]>::len)) {
            if length != labels.len() {
                return Err(MetricsError::Columns { labels: labels.len(), predictions: length });
            }
        }
        let there = |p: Option<f32>| p.is_some_and(|p| !p.is_nan());
        let rows: Vec<usize> = (0..labels.len()).filter(|&i| there(old[i]) && there(new[i])).collect();
        let labels: Vec<i8> = rows.iter().map(|&i| labels[i]).collect();
        let [old, new] = [old, new].map(|p| rows.iter().map(|&i| p[i]).collect::<Vec<_>>());
        let units = units.map(|units| numbered(rows.iter().map(|&i| units[i])));
        Ok(Self {
            same: old == new,
            samples: rows.len(),
            drawn: units.as_ref().map_or(rows.len(), |units| units.iter().max().map_or(0, |last| last + 1)),
            units,
            old: Scored::new(&labels, &old)?,
            new: Scored::new(&labels, &new)?,
        })
    }

    /// Samples that have both predictions.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Units that are drawn from: samples, or users.
    pub fn drawn(&self) -> usize {
        self.drawn
    }

    /// Draws `resamples` times; draw b depends on (`seed`, b) and the number of units alone. Predictions that are the same
    /// to the bit are not drawn from: no draw could tell them apart.
    pub fn resample(&self, resamples: u32, seed: u64) -> Resampled<'_> {
        let rows = if self.same || self.samples == 0 { 0 } else { resamples };
        let draws = (0..rows)
            .into_par_iter()
            .map_init(
                || vec![0_u32; self.drawn],
                |counts, resampling| {
                    let mut rng = row_rng(seed, STREAM, u64::from(resampling), 0);
                    counts.fill(0);
                    (0..self.drawn).for_each(|_| counts[below(&mut rng, self.drawn)] += 1);
                    self.values(|row| counts[self.units.as_ref().map_or(row, |units| units[row])])
                },
            )
            .collect();
        Resampled { paired: self, values: self.values(|_| 1), draws, resamples }
    }

    fn values(&self, count: impl Fn(usize) -> u32) -> (Values, Values) {
        (self.old.values(&count), self.new.values(&count))
    }
}

impl Resampled<'_> {
    /// Two-sided p-value of no difference: twice (1 + resamplings on the rarer side of 0, or on it) / (1 + resamplings), 1 at
    /// most. `None` where the metric is not defined.
    pub fn two_sided(&self, measure: Measure) -> Option<f64> {
        harm(measure, &self.values.0, &self.values.1)?;
        if self.paired.same {
            return Some(1.0);
        }
        let drawn: Vec<f64> = self.draws.iter().filter_map(|(o, n)| harm(measure, o, n)).collect();
        let below = drawn.iter().filter(|h| **h <= 0.0).count();
        let above = drawn.iter().filter(|h| **h >= 0.0).count();
        let rarer = below.min(above) as f64;
        Some((2.0 * (1.0 + rarer) / (1.0 + drawn.len() as f64)).min(1.0))
    }

    /// How a metric differs, and how likely that is by chance while the true harm is at most `tolerated`.
    pub fn difference(&self, measure: Measure, tolerated: f64, confidence: f64) -> Difference {
        let (old, new) = (of(&self.values.0, measure), of(&self.values.1, measure));
        let mut drawn: Vec<f64> = self.draws.iter().filter_map(|(o, n)| harm(measure, o, n)).collect();
        drawn.sort_unstable_by(f64::total_cmp);
        // A resampling in which the metric is not defined shows no harm.
        let above = drawn.len() - drawn.partition_point(|h| *h <= tolerated);
        let total = f64::from(self.resamples);
        let harm = harm(measure, &self.values.0, &self.values.1);
        let same = harm.filter(|_| self.paired.same);
        Difference {
            old,
            new,
            harm,
            low: same.or_else(|| quantile(&drawn, 1.0 - confidence)),
            high: same.or_else(|| quantile(&drawn, confidence)),
            standard_error: same.or_else(|| deviation(&drawn)),
            p: harm.map_or(1.0, |_| (1.0 + total - above as f64) / (1.0 + total)),
        }
    }
}

/// What is asked of a difference.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// What was seen.
    pub difference: Difference,
    /// Harm that is tolerated.
    pub tolerated: f64,
    /// Harm that must be found.
    pub detect: f64,
}

/// The answer to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No harm above what is tolerated is shown, and one that matters would have been.
    Pass,
    /// Nothing is shown, and what matters could have been missed.
    TooFew,
    /// The harm is above what is tolerated.
    Regression,
}

/// An answer with its reasons.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The answer.
    pub verdict: Verdict,
    /// The p-value after Holm, to be held against 1 - confidence.
    pub p_holm: f64,
    /// The smallest true harm that is found with the power asked for; `None` where there is no standard error.
    pub detectable: Option<f64>,
}

/// Answers questions that are asked together: any false alarm among them has at most the probability 1 - `confidence`.
pub fn answers(questions: &[Question], confidence: f64, power: f64) -> Vec<Answer> {
    let p: Vec<f64> = questions.iter().map(|q| q.difference.p).collect();
    let alpha = 1.0 - confidence;
    let reach = normal_quantile(bound_confidence(questions.len(), confidence)) + normal_quantile(power);
    let answer = |(question, p_holm): (&Question, f64)| {
        let detectable = question.difference.standard_error.map(|s| question.tolerated + reach * s);
        // Rounding must not turn 0.01 into less than 2 x 0.005.
        let tells = detectable.is_some_and(|d| d <= question.detect * (1.0 + 1e-9));
        let verdict = match (p_holm <= alpha * (1.0 + 1e-9), tells) {
            (true, _) => Verdict::Regression,
            (false, true) => Verdict::Pass,
            (false, false) => Verdict::TooFew,
        };
        Answer { verdict, p_holm, detectable }
    };
    questions.iter().zip(holm(&p)).map(answer).collect()
}

/// Confidence of one bound such that those of all `questions` hold together: Bonferroni's, and that of Holm's first step.
pub fn bound_confidence(questions: usize, confidence: f64) -> f64 {
    1.0 - (1.0 - confidence) / questions.max(1) as f64
}

/// Fewest resamplings with which `questions` together can be answered: twice those that let Holm's first step reject.
pub fn fewest_resamples(questions: usize, confidence: f64) -> u64 {
    // The quotient's rounding error must not add one.
    (2.0 * questions.max(1) as f64 / (1.0 - confidence) - 1e-6).ceil() as u64
}

/// P-values adjusted by Holm's step-down procedure, in the order given.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut largest: f64 = 0.0;
    for (rank, place) in order.into_iter().enumerate() {
        largest = largest.max((p.len() - rank) as f64 * p[place]).min(1.0);
        adjusted[place] = largest;
    }
    adjusted
}

/// The standard normal distribution's quantile of `q` in (0, 1): its distribution function, inverted by bisection.
fn normal_quantile(q: f64) -> f64 {
    let (mut low, mut high) = (-40.0_f64, 40.0_f64);
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if normal_cdf(middle) < q { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// The standard normal distribution function: 1/2 + phi(x) (x + x^3/3 + x^5/(3 5) + ...) near 0, beyond 6 the tail's
/// continued fraction. Exact to about 1e-15.
fn normal_cdf(x: f64) -> f64 {
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    if x.abs() > 6.0 {
        let fraction = (1..=60).rev().fold(x.abs(), |rest, k| x.abs() + f64::from(k) / rest);
        let tail = density / fraction;
        return if x > 0.0 { 1.0 - tail } else { tail };
    }
    let (mut term, mut sum, mut k) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        k += 2.0;
        term *= x * x / k;
        sum += term;
    }
    0.5 + density * sum
}

fn of(values: &Values, measure: Measure) -> Option<f64> {
    match measure {
        Measure::Auc => values.auc,
        Measure::LogLoss => values.log_loss,
        Measure::Accuracy => values.accuracy,
    }
}

fn harm(measure: Measure, old: &Values, new: &Values) -> Option<f64> {
    let (old, new) = (of(old, measure)?, of(new, measure)?);
    Some(if measure.rises_when_better() { old - new } else { new - old })
}

/// Standard deviation with n - 1 below; `None` of fewer than two values.
fn deviation(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    if values.len() < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    Some((values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0)).sqrt())
}

/// Unit numbers 0, 1, 2 … in the order of the values.
fn numbered(values: impl Iterator<Item = i32> + Clone) -> Vec<usize> {
    let mut places: BTreeMap<i32, usize> = values.clone().map(|v| (v, 0)).collect();
    places.values_mut().enumerate().for_each(|(i, place)| *place = i);
    values.map(|v| places[&v]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_quantiles_are_the_tabled_ones() {
        for (q, z) in [
            (0.5, 0.0),
            (0.9, 1.281_551_565_544_600_4),
            (0.99, 2.326_347_874_040_840_8),
            (0.001, -3.090_232_306_167_813),
            (0.999_999, 4.753_424_308_822_899),
            (1e-12, -7.034_483_825_301_131),
        ] {
            assert!((normal_quantile(q) - z).abs() < 1e-8, "{q}: {}", normal_quantile(q));
        }
    }

    #[test]
    fn holm_steps_down() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        let expected = [0.03, 0.06, 0.06, 0.02];
        assert!(adjusted.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-12), "{adjusted:?}");
        assert_eq!(holm(&[0.9, 0.6]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn too_few_resamplings_to_answer_are_counted() {
        assert_eq!((fewest_resamples(1, 0.99), fewest_resamples(3, 0.99), fewest_resamples(1, 0.95)), (200, 600, 40));
    }

    fn question(harm: f64, standard_error: f64, p: f64) -> Question {
        let [old, new, harm, standard_error] = [0.7, 0.7 - harm, harm, standard_error].map(Some);
        let difference = Difference { old, new, harm, low: None, high: None, standard_error, p };
        Question { difference, tolerated: 0.005, detect: 0.01 }
    }

    #[test]
    fn verdicts_follow_from_p_and_what_is_detectable() {
        // One question: z(0.99) + z(0.9) = 3.608, so 0.005 is reached by a standard error of 0.00138.
        let verdict = |q: Question| answers(&[q], 0.99, 0.9)[0].verdict;
        assert_eq!(verdict(question(0.02, 0.003, 0.0005)), Verdict::Regression);
        assert_eq!(verdict(question(0.001, 0.0013, 0.9)), Verdict::Pass);
        assert_eq!(verdict(question(0.001, 0.0015, 0.9)), Verdict::TooFew);
        assert_eq!(verdict(question(0.0, 0.0, 1.0)), Verdict::Pass);
        // Several share the level: the same p no longer is enough, and less is detectable.
        let together = answers(&[question(0.012, 0.0013, 0.006), question(0.0, 0.0013, 1.0)], 0.99, 0.9);
        assert_eq!(together[0].verdict, Verdict::TooFew);
        assert!((together[0].p_holm - 0.012).abs() < 1e-12);
        let detectable = together[0].detectable.unwrap();
        assert!((detectable - (0.005 + (2.575_829 + 1.281_552) * 0.0013)).abs() < 1e-7, "{detectable}");
    }
}
