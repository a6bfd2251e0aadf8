//! Eq. 10: cases computed by hand, and its limits as properties.

use proptest::prelude::*;
use rallrec_core::params::{MergeMethod, MergeParams};
use rallrec_recsys::merge::{Merged, merge, weights};

fn params(alpha: f64, eps: f64) -> MergeParams {
    MergeParams { alpha, eps, ..MergeParams::default() }
}

fn close(a: Option<f64>, b: f64) -> bool {
    a.is_some_and(|a| (a - b).abs() < 1e-9)
}

#[test]
fn computed_by_hand() {
    // mean_G 0.75, var_G 0 (one adapter); mean_R 0.5, var_R 0.25 (traces 0 and 1); alpha 0.1, eps 0.001:
    // weights 1 / 0.001 = 1000 and 0.1 / 0.251 = 0.398406374...
    let merged = merge(&[Some(0.75)], &[Some(0.0), Some(1.0)], &params(0.1, 0.001));
    assert!(close(merged.p, (1000.0 * 0.75 + 0.1 / 0.251 * 0.5) / (1000.0 + 0.1 / 0.251)));
    assert_eq!((merged.var_tuned, merged.var_reason), (Some(0.0), Some(0.25)));
    assert_eq!((merged.p_tuned, merged.p_reason), (Some(0.75), Some(0.5)));
    // Three adapters 0.25, 0.5, 0.75: mean 0.5, population variance (1/16 + 0 + 1/16) / 3 = 1/24; traces agree on 1.
    // alpha 0.5, eps 1/24: weights 1 / (2/24) = 12 and 0.5 / (1/24) = 12: the plain mean.
    let merged = merge(&[Some(0.25), Some(0.5), Some(0.75)], &[Some(1.0), Some(1.0)], &params(0.5, 1.0 / 24.0));
    assert!(close(merged.p, 0.75), "{merged:?}");
    assert!(close(merged.var_tuned, 1.0 / 24.0));
}

#[test]
fn the_plain_mean_ignores_consistency() {
    let params = MergeParams { method: MergeMethod::Mean, ..MergeParams::default() };
    assert_eq!(merge(&[Some(0.25)], &[Some(0.0), Some(1.0), Some(0.5)], &params).p, Some(0.375));
    assert_eq!(weights(0.0, 0.25, &params), (0.5, 0.5));
}

#[test]
fn reasoning_alone_never_hears_the_adapters() {
    let params = MergeParams { method: MergeMethod::Reasoning, ..MergeParams::default() };
    let merged = merge(&[Some(0.25)], &[Some(0.0), Some(1.0), Some(0.5)], &params);
    assert_eq!((merged.p, merged.p_tuned), (Some(0.5), Some(0.25)));
    assert_eq!(merge(&[Some(0.25)], &[None], &params).p, None, "a sample without traces has no prediction");
    assert_eq!(weights(0.0, 0.25, &params), (0.0, 1.0));
}

#[test]
fn what_is_missing_is_left_out() {
    let params = MergeParams::default();
    let whole = merge(&[Some(0.25)], &[Some(0.5), Some(1.0)], &params);
    assert_eq!(merge(&[None, Some(0.25)], &[Some(0.5), None, Some(f32::NAN), Some(1.0)], &params), whole);
    assert_eq!(merge(&[Some(0.25)], &[None, Some(f32::NAN)], &params).p, Some(0.25));
    assert_eq!(merge(&[], &[Some(0.5), Some(1.0)], &params).p, Some(0.75));
    assert_eq!(merge(&[None], &[], &params), Merged::default());
}

fn probabilities() -> impl Strategy<Value = Vec<Option<f32>>> {
    prop::collection::vec((0.0_f32..=1.0).prop_map(Some), 1..7)
}

proptest! {
    #[test]
    fn weights_sum_to_one(var_g in 0.0..0.25, var_r in 0.0..0.25, alpha in 0.0..1000.0, eps in 1e-12..1000.0) {
        let (tuned, reason) = weights(var_g, var_r, &params(alpha, eps));
        prop_assert!(tuned >= 0.0 && reason >= 0.0);
        prop_assert!((tuned + reason - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_result_lies_between_the_means(tuned in probabilities(), traces in probabilities(), alpha in 0.0..10.0, eps in 1e-6..1.0) {
        let merged = merge(&tuned, &traces, &params(alpha, eps));
        let (p, g, r) = (merged.p.unwrap(), merged.p_tuned.unwrap(), merged.p_reason.unwrap());
        prop_assert!(p >= g.min(r) - 1e-12 && p <= g.max(r) + 1e-12, "{merged:?}");
    }

    #[test]
    fn without_alpha_the_tuned_mean_remains(tuned in probabilities(), traces in probabilities(), eps in 1e-6..1.0) {
        let merged = merge(&tuned, &traces, &params(0.0, eps));
        prop_assert!(close(merged.p, merged.p_tuned.unwrap()));
        let merged = merge(&tuned, &traces, &params(1e-12, eps));
        prop_assert!((merged.p.unwrap() - merged.p_tuned.unwrap()).abs() < 1e-5);
    }

    #[test]
    fn with_a_huge_eps_only_alpha_weighs(tuned in probabilities(), traces in probabilities(), alpha in 0.0..10.0) {
        let merged = merge(&tuned, &traces, &params(alpha, 1e9));
        let limit = (merged.p_tuned.unwrap() + alpha * merged.p_reason.unwrap()) / (1.0 + alpha);
        prop_assert!((merged.p.unwrap() - limit).abs() < 1e-6);
    }

    #[test]
    fn more_consistent_traces_weigh_more(var_g in 0.0..0.25, var_r in 0.0..0.25, less in 0.0..1.0, alpha in 0.001..10.0, eps in 1e-6..1.0) {
        let params = params(alpha, eps);
        prop_assert!(weights(var_g, var_r * less, &params).1 >= weights(var_g, var_r, &params).1 - 1e-15);
        prop_assert!(weights(var_g * less, var_r, &params).0 >= weights(var_g, var_r, &params).0 - 1e-15);
    }
}
