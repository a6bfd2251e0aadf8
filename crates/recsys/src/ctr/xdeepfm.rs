//! xDeepFM (arXiv 1803.05170): first-order weights, a compressed interaction network (CIN) over field embeddings, and
//! a deep part that shares them.
//!
//! `X0` is a sample's embeddings [fields, dim]. Feature map h of layer k is the sum over i, j of
//! `W[k, h, i, j] (X[k-1, i] * X0[j])`, products taken element by element, with no activation (the identity, which the
//! paper found best). `logit = sum w_f + <sums of all maps over dim, u> + MLP(v_1 ‖ … ‖ v_F)`.

use super::{
    FIELDS,
    network::{Draft, Looked, Pass},
};
use burn::tensor::Tensor;
use rallrec_core::params::CtrParams;

/// `first` [features, 1], `embedding` [features, dim], `cin.N` [maps before x fields, maps] of each layer, `cin.out`
/// [maps of all layers, 1], the deep part.
pub(super) fn draft(draft: &mut Draft, features: usize, params: &CtrParams) {
    let (fields, dim) = (FIELDS.len(), params.embedding_dim as usize);
    draft.zeros("first", [features, 1]);
    draft.embedding(features, dim);
    let mut before = fields;
    for (number, maps) in params.cin.iter().map(|&m| m as usize).enumerate() {
        draft.xavier(format!("cin.{number}"), "ctr.cin", number as u64, [before * fields, maps]);
        before = maps;
    }
    let maps = params.cin.iter().map(|&m| m as usize).sum();
    draft.xavier("cin.out", "ctr.cin.out", 0, [maps, 1]);
    draft.deep(fields * dim, &params.hidden);
}

pub(super) fn logits(pass: &mut Pass<'_>) -> Looked {
    let (samples, fields, dim) = (pass.samples(), FIELDS.len(), pass.params.embedding_dim as usize);
    let first = pass.look_up();
    let embedded = pass.look_up();
    let squares = (embedded.clone() * embedded.clone()).sum() + (first.clone() * first.clone()).sum();

    // Maps last, so that a layer is one product with its weights.
    let base: Tensor<3> = embedded.clone().reshape([samples, fields, dim]).swap_dims(1, 2);
    let base: Tensor<3> = base.reshape([samples * dim, 1, fields]);
    let mut maps: Tensor<2> = base.clone().reshape([samples * dim, fields]);
    let mut sums = Vec::new();
    for _ in 0..pass.params.cin.len() {
        let [_, before] = maps.dims();
        let products = maps.reshape([samples * dim, before, 1]) * base.clone();
        maps = products.reshape([samples * dim, before * fields]).matmul(pass.take());
        let [_, after] = maps.dims();
        sums.push(maps.clone().reshape([samples, dim, after]).sum_dim(1).reshape([samples, after]));
    }
    let interactions = Tensor::cat(sums, 1).matmul(pass.take());
    let deep = pass.deep(embedded.reshape([samples, fields * dim]));
    Looked { logit: first.reshape([samples, fields]).sum_dim(1) + interactions + deep, squares }
}
