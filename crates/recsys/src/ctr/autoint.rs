//! AutoInt (arXiv 1810.11921): fields attend to each other, layer after layer; no deep part, no first-order weights.
//!
//! Of each head, field f becomes `sum over g of softmax_g(<Q e_f, K e_g>) V e_g` (no scaling of the products, as in the
//! paper); heads are put side by side, `R e_f` is added, and ReLU is applied. `logit = <all fields side by side, u> + bias`.

use super::{
    FIELDS,
    network::{Draft, Looked, Pass},
};
use burn::tensor::{Tensor, activation};
use rallrec_core::params::CtrParams;

/// `embedding` [features, dim]; `attention.N.query`, `.key`, `.value` and `.residual` [width before, heads x
/// attention_dim] of each layer; `out` [fields x heads x attention_dim, 1], `bias` [1, 1].
pub(super) fn draft(draft: &mut Draft, features: usize, params: &CtrParams) {
    let mut before = params.embedding_dim as usize;
    draft.embedding(features, before);
    let width = width(params);
    for layer in 0..u64::from(params.attention_layers) {
        for (at, part) in (0..).zip(["query", "key", "value", "residual"]) {
            draft.xavier(format!("attention.{layer}.{part}"), "ctr.attention", 4 * layer + at, [before, width]);
        }
        before = width;
    }
    draft.xavier("out", "ctr.attention.out", 0, [FIELDS.len() * width, 1]);
    draft.zeros("bias", [1, 1]);
}

/// Numbers of a field behind a layer.
fn width(params: &CtrParams) -> usize {
    (params.heads * params.attention_dim) as usize
}

pub(super) fn logits(pass: &mut Pass<'_>) -> Looked {
    let (samples, fields) = (pass.samples(), FIELDS.len());
    let (heads, dim) = (pass.params.heads as usize, pass.params.attention_dim as usize);
    let embedded = pass.look_up();
    let squares = (embedded.clone() * embedded.clone()).sum();
    let mut state = embedded;
    for _ in 0..pass.params.attention_layers {
        let mut project = || {
            let projected: Tensor<4> = state.clone().matmul(pass.take()).reshape([samples, fields, heads, dim]);
            projected.swap_dims(1, 2)
        };
        let (query, key, value) = (project(), project(), project());
        let attention = activation::softmax(query.matmul(key.swap_dims(2, 3)), 3);
        let attended = attention.matmul(value).swap_dims(1, 2).reshape([samples * fields, heads * dim]);
        state = activation::relu(attended + state.matmul(pass.take()));
    }
    let logit = state.reshape([samples, fields * heads * dim]).matmul(pass.take()) + pass.take();
    Looked { logit, squares }
}
