//! DCN (Deep & Cross Network, arXiv 1708.05123): layers that multiply the input with itself once more each, beside a
//! deep part.
//!
//! With `x0 = v_1 ‖ … ‖ v_F`, a cross layer is `x' = x0 (x^T w) + b + x`. Both parts end in one linear layer, here
//! written as the sum of one for each: `logit = <x_L, u> + MLP(x0)`. No first-order weights.

use super::{
    FIELDS,
    network::{Draft, Looked, Pass},
};
use rallrec_core::params::CtrParams;

/// `embedding` [features, dim], `cross.N.weight` [fields x dim, 1] and `cross.N.bias` [1, fields x dim] of each layer,
/// `cross.out` [fields x dim, 1], the deep part.
pub(super) fn draft(draft: &mut Draft, features: usize, params: &CtrParams) {
    let width = FIELDS.len() * params.embedding_dim as usize;
    draft.embedding(features, params.embedding_dim as usize);
    for number in 0..params.cross_layers {
        draft.xavier(format!("cross.{number}.weight"), "ctr.cross", u64::from(number), [width, 1]);
        draft.zeros(format!("cross.{number}.bias"), [1, width]);
    }
    draft.xavier("cross.out", "ctr.cross.out", 0, [width, 1]);
    draft.deep(width, &params.hidden);
}

pub(super) fn logits(pass: &mut Pass<'_>) -> Looked {
    let (samples, width) = (pass.samples(), FIELDS.len() * pass.params.embedding_dim as usize);
    let embedded = pass.look_up();
    let squares = (embedded.clone() * embedded.clone()).sum();
    let first = embedded.reshape([samples, width]);
    let mut crossed = first.clone();
    for _ in 0..pass.params.cross_layers {
        let (weight, bias) = (pass.take(), pass.take());
        crossed = first.clone() * crossed.clone().matmul(weight) + bias + crossed;
    }
    let crossed = crossed.matmul(pass.take());
    Looked { logit: crossed + pass.deep(first), squares }
}
