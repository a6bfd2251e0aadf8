//! Retrieval: cases computed by hand, and properties against a slow, literal reading of METHOD section 7.

use proptest::prelude::*;
use rallrec_core::params::{PromptVariant, RetrieveParams, Selection};
use rallrec_recsys::retrieval::{IndexVectors, Indexes, Picked, RetrievalError, pick};

fn params(variant: PromptVariant, k: u32) -> RetrieveParams {
    RetrieveParams { variant, k, gamma: 2.0 / 3.0, beta: 1.0, ..RetrieveParams::default() }
}

fn positions(picked: &[Picked]) -> Vec<usize> {
    picked.iter().map(|p| p.position).collect()
}

fn only<'a>(index: &IndexVectors<'a>) -> Indexes<'a> {
    Indexes { index: Some(*index), other: None }
}

/// Item i has the one-dimensional vector `similarity[i]`; item `similarity.len()` is the target, with vector 1.
fn picks(similarity: &[f32], params: &RetrieveParams) -> Vec<Picked> {
    let vectors: Vec<f32> = similarity.iter().copied().chain([1.0]).collect();
    let history: Vec<i32> = (0..similarity.len() as i32).collect();
    let index = IndexVectors::new(&vectors, 1).expect("one number an item");
    pick(&history, similarity.len() as i32, &only(&index), params).expect("every item has a vector")
}

#[test]
fn hybrid_takes_half_by_each_index() {
    // By text 0 4 1, by id 4 5 2: k 5 takes three by text, then 5 and 2; k 4 takes 0 and 4, then 5 and 2.
    let (text, id) = ([9., 3., 1., 2., 8., 0., 1.], [0., 1., 7., 2., 9., 8., 1.]);
    let text = IndexVectors::new(&text, 1).expect("one number an item");
    let id = IndexVectors::new(&id, 1).expect("one number an item");
    let both = Indexes { index: Some(text), other: Some(id) };
    let with = |k| pick(&[0, 1, 2, 3, 4, 5], 6, &both, &params(PromptVariant::Hybrid, k)).map(|p| positions(&p));
    assert_eq!(with(5), Ok(vec![0, 1, 2, 4, 5]));
    assert_eq!(with(4), Ok(vec![0, 2, 4, 5]));
    assert_eq!(with(1), Ok(vec![0]));
    assert_eq!(with(9), Ok(vec![0, 1, 2, 3, 4, 5]), "a short history is kept whole");
    let missing = pick(&[0], 6, &only(&text), &params(PromptVariant::Hybrid, 2));
    assert_eq!(missing, Err(RetrievalError::NeedsIndex { variant: "hybrid", input: "other_index" }));
}

#[test]
fn variants_by_hand() {
    let similarity = [0.9, 0.1, 0.8, 0.2, 0.7, 0.3];
    let with = |variant| positions(&picks(&similarity, &params(variant, 3)));
    assert_eq!(with(PromptVariant::Simple), [3, 4, 5]);
    assert_eq!(with(PromptVariant::Sequential), [0, 2, 4]);
    assert_eq!(with(PromptVariant::High), [0, 2, 4]);
    // Similarity ranks 0, 2, 4 (scores 2/3, 1/3, 2/9), recency ranks 5, 4, 3 (1/3, 1/6, 1/9).
    // 0: .667, 4: .222 + .167 = .389, 2: .333, 5: .333: the tie goes to 5, the more recent.
    assert_eq!(with(PromptVariant::Rerank), [0, 4, 5]);
    let reversed = [0.1, 0.2, 0.9];
    assert_eq!(positions(&picks(&reversed, &params(PromptVariant::High, 2))), [2, 1]);
    assert_eq!(positions(&picks(&reversed, &params(PromptVariant::Sequential, 2))), [1, 2]);
}

#[test]
fn gamma_and_beta_weigh_channels_and_ranks() {
    let similarity = [0.9, 0.8, 0.1, 0.2];
    let with = |gamma, beta| {
        positions(&picks(&similarity, &RetrieveParams { gamma, beta, ..params(PromptVariant::Rerank, 2) }))
    };
    assert_eq!(with(1.0, 1.0), [0, 1]);
    assert_eq!(with(0.0, 1.0), [2, 3]);
    assert_eq!(with(0.6, 1.0), [0, 3]);
    // Without a position score every channel's entries are equal: 0.6 each against 0.4 each.
    assert_eq!(with(0.6, 0.0), [0, 1]);
}

#[test]
fn two_thirds_by_hand() {
    let similarity = [0.9, 0.8, 0.7, 0.1, 0.6, 0.5, 0.2, 0.4, 0.0];
    // k = 6. Most similar: 0, 1, 2, 4, 5, 7; of these 4, 5, 7 are among the six most recent (3..9).
    // Order 4, 5, 7, 0, 1, 2: the first four are 4, 5, 7, 0. Then the most recent left: 8, 6.
    let params = RetrieveParams { selection: Selection::TwoThirds, ..params(PromptVariant::Rerank, 6) };
    assert_eq!(positions(&picks(&similarity, &params)), [0, 4, 5, 6, 7, 8]);
}

#[test]
fn similarities_are_dot_products_and_zero_for_zero_vectors() {
    let vectors = [1.0, 2.0, 0.0, 0.0, 3.0, -1.0];
    let index = IndexVectors::new(&vectors, 2).unwrap();
    let picked = pick(&[0, 1, 2], 0, &only(&index), &params(PromptVariant::Simple, 3)).unwrap();
    assert_eq!(picked.iter().map(|p| p.similarity).collect::<Vec<_>>(), [5.0, 0.0, 1.0]);
    let unknown_target = pick(&[0, 1, 2], 1, &only(&index), &params(PromptVariant::High, 2)).unwrap();
    assert_eq!(unknown_target, [Picked { position: 2, similarity: 0.0 }, Picked { position: 1, similarity: 0.0 }]);
}

#[test]
fn what_does_not_fit_is_named() {
    let index = IndexVectors::new(&[1.0, 2.0], 1).unwrap();
    let high = params(PromptVariant::High, 2);
    assert_eq!(pick(&[0, 2], 1, &only(&index), &high), Err(RetrievalError::UnknownItem { item: 2, items: 2 }));
    assert_eq!(pick(&[0], -1, &only(&index), &high), Err(RetrievalError::UnknownItem { item: -1, items: 2 }));
    assert_eq!(
        pick(&[0], 1, &Indexes::default(), &high),
        Err(RetrievalError::NeedsIndex { variant: "high", input: "index" })
    );
    assert_eq!(
        pick(&[0], 1, &Indexes::default(), &params(PromptVariant::Simple, 2)),
        Ok(vec![Picked { position: 0, similarity: 0.0 }])
    );
    assert_eq!(pick(&[], 1, &only(&index), &high), Ok(vec![]));
    assert!(matches!(IndexVectors::new(&[1.0], 2), Err(RetrievalError::Shape { values: 1, dim: 2 })));
    assert!(matches!(IndexVectors::new(&[], 0), Err(RetrievalError::Shape { .. })));
}

/// Eq. 8 with full sorts, as METHOD says it.
fn slow_rerank(similarity: &[f32], k: usize, gamma: f64, beta: f64) -> Vec<usize> {
    let recent: Vec<usize> = (0..similarity.len()).rev().take(k).collect();
    let mut similar: Vec<usize> = (0..similarity.len()).rev().collect();
    similar.sort_by(|a, b| similarity[*b].total_cmp(&similarity[*a]));
    similar.truncate(k);
    let channel = |list: &[usize], weight: f64, position: usize| {
        list.iter().position(|p| *p == position).map_or(0.0, |at| weight * ((at + 1) as f64).powf(-beta))
    };
    let score = |position| channel(&recent, 1.0 - gamma, position) + channel(&similar, gamma, position);
    let mut all: Vec<usize> =
        (0..similarity.len()).rev().filter(|p| recent.contains(p) || similar.contains(p)).collect();
    all.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
    all.truncate(k);
    all.sort_unstable();
    all
}

fn variants() -> impl Strategy<Value = PromptVariant> {
    use PromptVariant::{High, Rerank, Sequential, Simple};
    prop::sample::select(vec![Simple, Sequential, High, Rerank])
}

proptest! {
    // Few different similarities, so that ties are common.
    #[test]
    fn rerank_is_eq_8(similarity in prop::collection::vec((-3_i8..4).prop_map(f32::from), 0..40), k in 1_u32..20, gamma in 0.0..=1.0, beta in 0.0..3.0) {
        let params = RetrieveParams { gamma, beta, ..params(PromptVariant::Rerank, k) };
        prop_assert_eq!(positions(&picks(&similarity, &params)), slow_rerank(&similarity, k as usize, gamma, beta));
    }

    #[test]
    fn picks_are_k_entries_once_each(
        similarity in prop::collection::vec(-1.0_f32..1.0, 0..60),
        k in 1_u32..40,
        variant in variants(),
        thirds in any::<bool>(),
    ) {
        let selection = if thirds { Selection::TwoThirds } else { Selection::Score };
        let picked = picks(&similarity, &RetrieveParams { selection, ..params(variant, k) });
        let listed = positions(&picked);
        let mut sorted = listed.clone();
        sorted.sort_unstable();
        sorted.dedup();
        prop_assert_eq!(sorted.len(), similarity.len().min(k as usize));
        prop_assert!(picked.iter().all(|p| p.similarity == similarity[p.position]));
        if variant == PromptVariant::High {
            prop_assert!(picked.windows(2).all(|w| w[0].similarity >= w[1].similarity));
        } else {
            prop_assert_eq!(listed, sorted);
        }
    }
}
