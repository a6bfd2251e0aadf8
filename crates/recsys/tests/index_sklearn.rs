//! The index's principal components against scikit-learn's: `fixtures/neural_pytorch.py` made the numbers.

use rallrec_core::params::{IndexNorm, IndexParams, IndexVariant};
use rallrec_recsys::index::{Parts, build};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    rows: usize,
    columns: usize,
    dims: u32,
    x: Vec<f32>,
    cosine: Vec<f32>,
}

#[test]
fn cosines_after_pca_equal_scikit_learn() {
    let mut f: Fixture = serde_json::from_str(include_str!("fixtures/pca.json")).expect("fixture");
    // An item without text must not move the others, and stays zero.
    f.x.extend(vec![0.0; f.columns]);
    let params = IndexParams { variant: IndexVariant::Text, norm: IndexNorm::Row, pca_dims: f.dims };
    let index = build(f.rows + 1, Parts { text: Some(&f.x), ..Parts::default() }, &params).expect("complete");
    assert_eq!(index.dim, f.dims as usize);
    let row = |r: usize| &index.vectors[r * index.dim..(r + 1) * index.dim];
    for i in 0..f.rows {
        for j in 0..f.rows {
            let cosine: f32 = row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum();
            assert!((cosine - f.cosine[i * f.rows + j]).abs() < 1e-5, "items {i} and {j}: {cosine}");
        }
    }
    assert!(row(f.rows).iter().all(|&v| v == 0.0));
}
