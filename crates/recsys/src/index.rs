//! One vector an item: text, collaborative and aligned parts, each normalised, side by side (eq. 7).
//!
//! Similarity is the dot product of two items' vectors. There is no approximate search: candidates are a user's own
//! history, which is short.

use crate::pca;
use rallrec_core::params::{IndexNorm, IndexParams, IndexVariant};

/// Why an index cannot be built.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum IndexError {
    /// A part that the variant needs is not there.
    #[error("the index variant {variant} needs {part}; give it as an input or choose another variant")]
    Missing {
        /// The variant's word in the pipeline.
        variant: &'static str,
        /// The part.
        part: &'static str,
    },
    /// A part has another number of rows.
    #[error("{part} has {found} values, which is not a whole number of columns for {items} items")]
    Rows {
        /// The part.
        part: &'static str,
        /// Its values.
        found: usize,
        /// Items.
        items: usize,
    },
    /// More principal components than there can be.
    #[error("pca_dims is {asked}, but {items} items with {columns} text columns have at most {most} components")]
    Components {
        /// `pca_dims`.
        asked: usize,
        /// Items with a text embedding.
        items: usize,
        /// Columns of the text embedding.
        columns: usize,
        /// Largest value that works.
        most: usize,
    },
}

/// Parts of an item's vector, each [items, its own dimension], row after row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts<'a> {
    /// e_text.
    pub text: Option<&'a [f32]>,
    /// e_colla.
    pub collaborative: Option<&'a [f32]>,
    /// e_ssl.
    pub aligned: Option<&'a [f32]>,
}

/// Vectors of items.
#[derive(Clone, Debug, PartialEq)]
pub struct Index {
    /// Columns.
    pub dim: usize,
    /// [items, dim], row after row.
    pub vectors: Vec<f32>,
}

/// Builds the index of `items` items.
///
/// With norm `row` each part's row is divided by its own norm, and the dot product is the sum of the parts' cosines.
/// With `max` each part is divided by its largest row norm, and the row that the parts make is then divided by its
/// norm, so that the dot product is a cosine. A zero row of a part stays zero in both.
///
/// # Errors
/// When a part that the variant needs is missing, does not have `items` rows, or `pca_dims` is too large.
pub fn build(items: usize, parts: Parts<'_>, params: &IndexParams) -> Result<Index, IndexError> {
    let mut chosen = Vec::new();
    for (name, values) in needed(parts, params.variant)? {
        if items == 0 || values.is_empty() || values.len() % items != 0 {
            return Err(IndexError::Rows { part: name, found: values.len(), items });
        }
        let (mut columns, mut values) = (values.len() / items, values.to_vec());
        if name == TEXT && params.pca_dims > 0 {
            values = reduce(&values, columns, params.pca_dims as usize)?;
            columns = params.pca_dims as usize;
        }
        match params.norm {
            IndexNorm::Row => unit_rows(&mut values, columns),
            IndexNorm::Max => divide_by_largest(&mut values, columns),
        }
        chosen.push((columns, values));
    }
    let dim = chosen.iter().map(|(columns, _)| columns).sum();
    let mut vectors = Vec::with_capacity(items * dim);
    for item in 0..items {
        for (columns, values) in &chosen {
            vectors.extend_from_slice(&values[item * columns..(item + 1) * columns]);
        }
    }
    if params.norm == IndexNorm::Max {
        unit_rows(&mut vectors, dim);
    }
    Ok(Index { dim, vectors })
}

const TEXT: &str = "e_text";

/// The parts of a variant, in the order of eq. 7.
fn needed(parts: Parts<'_>, variant: IndexVariant) -> Result<Vec<(&'static str, &[f32])>, IndexError> {
    let (text, collaborative, aligned) =
        ((TEXT, parts.text), ("e_colla", parts.collaborative), ("e_ssl", parts.aligned));
    let (word, wanted) = match variant {
        IndexVariant::Text => ("text", vec![text]),
        IndexVariant::Id => ("id", vec![collaborative]),
        IndexVariant::Concat => ("concat", vec![text, collaborative]),
        IndexVariant::ConcatSsl => ("concat_ssl", vec![text, collaborative, aligned]),
    };
    let given = |(part, values): (&'static str, Option<_>)| {
        values.map(|v| (part, v)).ok_or(IndexError::Missing { variant: word, part })
    };
    wanted.into_iter().map(given).collect()
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

fn unit_rows(values: &mut [f32], columns: usize) {
    for row in values.chunks_mut(columns) {
        let norm = norm(row);
        if norm > 0.0 {
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
        }
    }
}

fn divide_by_largest(values: &mut [f32], columns: usize) {
    let largest = values.chunks(columns).map(norm).fold(0.0, f64::max);
    if largest > 0.0 {
        values.iter_mut().for_each(|v| *v = (f64::from(*v) / largest) as f32);
    }
}

/// Principal components of the rows that are not zero; zero rows have no text, do not count, and stay zero.
fn reduce(values: &[f32], columns: usize, dims: usize) -> Result<Vec<f32>, IndexError> {
    let filled: Vec<usize> =
        (0..values.len() / columns).filter(|r| values[r * columns..][..columns].iter().any(|&v| v != 0.0)).collect();
    let most = filled.len().min(columns);
    if dims > most {
        return Err(IndexError::Components { asked: dims, items: filled.len(), columns, most });
    }
    let rows: Vec<f32> = filled.iter().flat_map(|r| &values[r * columns..(r + 1) * columns]).copied().collect();
    let reduced = pca::project(&rows, columns, dims);
    let mut out = vec![0.0; values.len() / columns * dims];
    for (from, to) in filled.into_iter().enumerate() {
        out[to * dims..(to + 1) * dims].copy_from_slice(&reduced[from * dims..(from + 1) * dims]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: Parts<'static> =
        Parts { text: Some(&[3.0, 4.0, 0.0, 2.0]), collaborative: Some(&[0.0, 5.0]), aligned: Some(&[-1.0, 0.5]) };

    fn params(variant: IndexVariant, norm: IndexNorm) -> IndexParams {
        IndexParams { variant, norm, pca_dims: 0 }
    }

    #[test]
    fn row_norm_makes_unit_parts_and_keeps_zero_rows() {
        let index = build(2, PARTS, &params(IndexVariant::ConcatSsl, IndexNorm::Row)).expect("complete");
        assert_eq!(index, Index { dim: 4, vectors: vec![0.6, 0.8, 0.0, -1.0, 0.0, 1.0, 1.0, 1.0] });
    }

    #[test]
    fn max_norm_keeps_proportions_then_makes_unit_vectors() {
        let index = build(2, PARTS, &params(IndexVariant::Concat, IndexNorm::Max)).expect("complete");
        // Text is divided by 5, collaborative by 5: (0.6, 0.8, 0) and (0, 0.4, 1).
        let norm = 1.16f64.sqrt();
        let expected = [0.6, 0.8, 0.0, 0.0, 0.4 / norm, 1.0 / norm];
        assert!(index.vectors.iter().zip(expected).all(|(&v, e)| (f64::from(v) - e).abs() < 1e-6), "{index:?}");
    }

    #[test]
    fn variants_choose_their_parts() {
        let dim = |variant| build(2, PARTS, &params(variant, IndexNorm::Row)).expect("complete").dim;
        assert_eq!([dim(IndexVariant::Text), dim(IndexVariant::Id), dim(IndexVariant::Concat)], [2, 1, 3]);
    }

    #[test]
    fn names_what_is_missing() {
        let parts = Parts { aligned: None, ..PARTS };
        let error = build(2, parts, &params(IndexVariant::ConcatSsl, IndexNorm::Row)).expect_err("no e_ssl");
        assert!(error.to_string().starts_with("the index variant concat_ssl needs e_ssl"), "{error}");
        let parts = Parts { text: Some(&[1.0, 2.0, 3.0]), ..PARTS };
        let error = build(2, parts, &params(IndexVariant::Text, IndexNorm::Row)).expect_err("3 values, 2 items");
        assert!(matches!(error, IndexError::Rows { found: 3, .. }));
        let asked = IndexParams { variant: IndexVariant::Text, norm: IndexNorm::Row, pca_dims: 3 };
        assert!(matches!(build(2, PARTS, &asked), Err(IndexError::Components { most: 2, .. })));
    }
}
