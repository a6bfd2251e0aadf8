//! DeepFM (arXiv 1703.04247): first-order weights, second-order products of field embeddings, and a deep part that
//! shares the embeddings.
//!
//! `logit = bias + sum w_f + sum over pairs of fields <v_f, v_g> + MLP(v_1 ‖ … ‖ v_F)`.

use super::{
    FIELDS,
    network::{Draft, Looked, Pass},
};
use rallrec_core::params::CtrParams;

/// `first` [features, 1], `embedding` [features, dim], the deep part, `bias` [1, 1].
pub(super) fn draft(draft: &mut Draft, features: usize, params: &CtrParams) {
    let dim = params.embedding_dim as usize;
    draft.zeros("first", [features, 1]);
    draft.embedding(features, dim);
    draft.deep(FIELDS.len() * dim, &params.hidden);
    draft.zeros("bias", [1, 1]);
}

pub(super) fn logits(pass: &mut Pass<'_>) -> Looked {
    let (samples, fields, dim) = (pass.samples(), FIELDS.len(), pass.params.embedding_dim as usize);
    let first = pass.look_up();
    let embedded = pass.look_up();
    let squares_each = embedded.clone() * embedded.clone();
    let squares = squares_each.clone().sum() + (first.clone() * first.clone()).sum();

    // Pairs: half of (square of the sum) - (sum of the squares).
    let sum = embedded.clone().reshape([samples, fields, dim]).sum_dim(1).reshape([samples, dim]);
    let pairs = (sum.clone() * sum).sum_dim(1) - squares_each.reshape([samples, fields * dim]).sum_dim(1);

    let deep = pass.deep(embedded.reshape([samples, fields * dim]));
    let first = first.reshape([samples, fields]).sum_dim(1);
    Looked { logit: first + pairs / 2.0 + deep + pass.take(), squares }
}
