//! Metrics against scikit-learn, and the bootstrap's promises.

use proptest::prelude::*;
use rallrec_core::params::EvaluateParams;
use rallrec_recsys::metrics::{Metric, MetricsError, auc, evaluate};
use serde_json::Value;

fn params(bootstrap: u32) -> EvaluateParams {
    EvaluateParams { bootstrap, ..EvaluateParams::default() }
}

/// `n` samples whose predictions tell something: labels and p.
fn samples(n: u32) -> (Vec<i8>, Vec<Option<f32>>) {
    let hash = |i: u32| f64::from(i.wrapping_mul(2_654_435_761) >> 8) / f64::from(1 << 24);
    let labels: Vec<i8> = (0..n).map(|i| i8::from(hash(i) < 0.55)).collect();
    let p = (0..n).map(|i| Some((0.7 * hash(i + n) + 0.3 * f64::from(labels[i as usize])) as f32)).collect();
    (labels, p)
}

#[test]
fn values_are_those_of_scikit_learn() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("fixtures/metrics.json")).unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let list = |name: &str| case[name].as_array().unwrap().clone();
        let labels: Vec<i8> = list("labels").iter().map(|v| v.as_i64().unwrap() as i8).collect();
        let p: Vec<_> = list("p").iter().map(|v| Some(v.as_f64().unwrap() as f32)).collect();
        for (name, metric) in evaluate(&labels, &p, &params(0), 1).unwrap().named() {
            match case[name].as_f64() {
                Some(expected) => {
                    let value = metric.value.unwrap();
                    assert!((value - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{case:?} {name} {value}");
                }
                None => assert_eq!(metric.value, None, "{case:?} {name}"),
            }
            assert_eq!((metric.low, metric.high), (None, None));
        }
    }
}

#[test]
fn auc_counts_ties_as_half() {
    assert_eq!(auc(&[0, 1, 0, 1], &[0.1, 0.4, 0.4, 0.8]), Ok(Some(3.5 / 4.0)));
    assert_eq!(auc(&[0, 1], &[0.0, -0.0]), Ok(Some(0.5)));
    assert_eq!(auc(&[], &[]), Ok(None));
}

#[test]
fn missing_predictions_are_counted_and_left_out() {
    let whole = evaluate(&[1, 0, 1], &[Some(0.9), Some(0.2), Some(0.3)], &params(50), 7).unwrap();
    let holes = [Some(0.9), None, Some(0.2), Some(f32::NAN), Some(0.3)];
    let with_holes = evaluate(&[1, 1, 0, 0, 1], &holes, &params(50), 7).unwrap();
    assert_eq!((with_holes.samples, with_holes.missing), (5, 2));
    assert_eq!(whole.named(), with_holes.named());
    let none = evaluate(&[1, 0], &[None, None], &params(50), 7).unwrap();
    assert_eq!((none.samples, none.missing, none.log_loss), (2, 2, Metric::default()));
}

#[test]
fn one_class_has_accuracy_but_no_auc() {
    let metrics = evaluate(&[1, 1], &[Some(0.9), Some(0.5)], &params(200), 1).unwrap();
    assert_eq!(metrics.auc, Metric::default());
    assert_eq!(metrics.accuracy, Metric { value: Some(0.5), low: Some(0.0), high: Some(1.0) });
}

#[test]
fn wrong_columns_are_named() {
    assert_eq!(evaluate(&[1], &[], &params(0), 1), Err(MetricsError::Columns { labels: 1, predictions: 0 }));
    assert_eq!(evaluate(&[0, 2], &[None, None], &params(0), 1), Err(MetricsError::Label { row: 1, label: 2 }));
    assert_eq!(evaluate(&[0], &[Some(1.5)], &params(0), 1), Err(MetricsError::Probability { row: 0, p: 1.5 }));
}

#[test]
fn intervals_depend_on_the_seed_and_not_on_threads() {
    let (labels, p) = samples(1_000);
    let on = |threads, seed| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| evaluate(&labels, &p, &params(300), seed).unwrap())
    };
    assert_eq!(on(1, 5), on(4, 5));
    assert_ne!(on(1, 5), on(1, 6));
}

#[test]
fn intervals_are_as_wide_as_theory_says() {
    let (labels, p) = samples(4_000);
    let metrics = evaluate(&labels, &p, &params(2_000), 42).unwrap();
    for (name, metric) in metrics.named() {
        let (value, low, high) = (metric.value.unwrap(), metric.low.unwrap(), metric.high.unwrap());
        assert!(low < value && value < high, "{name}: {low} {value} {high}");
    }
    let accuracy = metrics.accuracy.value.unwrap();
    let width = 2.0 * 1.96 * (accuracy * (1.0 - accuracy) / 4_000.0).sqrt();
    let ratio = (metrics.accuracy.high.unwrap() - metrics.accuracy.low.unwrap()) / width;
    assert!((0.92..1.08).contains(&ratio), "{ratio}");
}

proptest! {
    // Few different predictions, so that ties are common.
    #[test]
    fn auc_is_the_share_of_pairs_in_order(samples in prop::collection::vec((any::<bool>(), 0_u8..=8), 0..60)) {
        let labels: Vec<i8> = samples.iter().map(|(like, _)| i8::from(*like)).collect();
        let p: Vec<f32> = samples.iter().map(|(_, p)| f32::from(*p) / 8.0).collect();
        let (mut ordered, mut pairs) = (0.0, 0.0);
        for (_, like) in samples.iter().filter(|s| s.0) {
            for (_, dislike) in samples.iter().filter(|s| !s.0) {
                pairs += 1.0;
                ordered += if like > dislike { 1.0 } else if like == dislike { 0.5 } else { 0.0 };
            }
        }
        prop_assert_eq!(auc(&labels, &p), Ok((pairs > 0.0).then(|| ordered / pairs)));
    }
}
