//! Which part of a user's history a prompt shows (METHOD section 7, eq. 8).
//!
//! Two channels rank the history: similarity to the target (dot product of index vectors) and recency. Only the
//! user's own history is searched, so this is exact and needs no search structure.
//!
//! Every tie goes to the more recent entry, in both rankings and in the final choice. So the result is one function
//! of the history, whatever the algorithm.

use rallrec_core::params::{PromptVariant, RetrieveParams, Selection};
use std::cmp::Ordering;

/// The index: one vector an item, row-major.
#[derive(Clone, Copy, Debug)]
pub struct IndexVectors<'a> {
    values: &'a [f32],
    dim: usize,
}

/// What similarity is told by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Indexes<'a> {
    /// Of every variant but `simple`.
    pub index: Option<IndexVectors<'a>>,
    /// Of the other half of `hybrid`'s entries.
    pub other: Option<IndexVectors<'a>>,
}

/// Why retrieval is not possible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RetrievalError {
    /// The matrix is not one vector of `dim` numbers an item.
    #[error("an index of {values} numbers cannot be cut into vectors of {dim}; make the index again")]
    Shape {
        /// Numbers in the matrix.
        values: usize,
        /// Numbers a vector.
        dim: usize,
    },
    /// An item has no vector.
    #[error(
        "item {item} is not a row of the index ({items} items); give `index` and samples of the same dataset stage"
    )]
    UnknownItem {
        /// Row position.
        item: i32,
        /// Items of the index.
        items: usize,
    },
    /// The variant ranks by similarity and there is no index.
    #[error("variant `{variant}` ranks by similarity; give the stage the input `{input}`, or set `variant: simple`")]
    NeedsIndex {
        /// The variant.
        variant: &'static str,
        /// The input that is missing.
        input: &'static str,
    },
}

impl<'a> IndexVectors<'a> {
    /// Vectors of `dim` numbers, item after item.
    ///
    /// # Errors
    /// When `values` is not a whole number of vectors.
    pub fn new(values: &'a [f32], dim: usize) -> Result<Self, RetrievalError> {
        if dim == 0 || !values.len().is_multiple_of(dim) {
            return Err(RetrievalError::Shape { values: values.len(), dim });
        }
        Ok(Self { values, dim })
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.values.len() / self.dim
    }

    fn vector(&self, item: i32) -> Result<&'a [f32], RetrievalError> {
        let row = usize::try_from(item).ok().filter(|row| *row < self.items());
        let row = row.ok_or(RetrievalError::UnknownItem { item, items: self.items() })?;
        Ok(&self.values[row * self.dim..][..self.dim])
    }
}

/// One entry of a prompt's history.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Picked {
    /// Position in the sample's history, 0 the oldest.
    pub position: usize,
    /// Dot product with the target's vector; 0 without an index, and where either vector is all zeros.
    pub similarity: f32,
}

/// Picks at most `k` entries of a history (items, oldest first) for a target, in the order in which the prompt lists
/// them. A history of `k` entries or fewer is kept whole.
///
/// - `simple`: the k most recent, in time order.
/// - `sequential`: the k most similar, in time order.
/// - `high`: the k most similar, most similar first.
/// - `rerank`: the k best of both channels, in time order. Each channel holds its k first. An entry's score is the
///   sum, over the channels that it is in, of channel weight (gamma for similarity, 1 - gamma for recency) times
///   1 / rank^beta, with ranks from 1. With `selection: two_thirds`: of the k most similar, those that are also
///   among the k most recent come first, then the others, each most similar first; the first floor(2k/3) of them
///   are taken, and the remaining places go to the most recent entries not yet taken.
/// - `hybrid`: the ceil(k/2) most similar by `index`, then the most similar by `other` that are not yet taken, in time
///   order; each with the similarity that `index` tells.
///
/// # Errors
/// When the variant needs an index and there is none, or an item is not in it.
pub fn pick(
    history: &[i32],
    target: i32,
    indexes: &Indexes<'_>,
    params: &RetrieveParams,
) -> Result<Vec<Picked>, RetrievalError> {
    let k = (params.k as usize).min(history.len());
    let similarity = match &indexes.index {
        Some(index) => similarities(history, target, index)?,
        None => {
            if let Some(variant) = needs_index(params.variant) {
                return Err(RetrievalError::NeedsIndex { variant, input: "index" });
            }
            vec![0.0; history.len()]
        }
    };
    let mut picked = match params.variant {
        PromptVariant::Simple => (history.len() - k..history.len()).collect(),
        PromptVariant::Sequential | PromptVariant::High => most_similar(&similarity, k),
        PromptVariant::Rerank => match params.selection {
            Selection::Score => by_score(&similarity, k, params.gamma, params.beta),
            Selection::TwoThirds => two_thirds(&similarity, k, params.k as usize),
        },
        PromptVariant::Hybrid => {
            let missing = RetrievalError::NeedsIndex { variant: "hybrid", input: "other_index" };
            let other = similarities(history, target, indexes.other.as_ref().ok_or(missing)?)?;
            half_of_each(&similarity, &other, k)
        }
    };
    if params.variant != PromptVariant::High {
        picked.sort_unstable();
    }
    Ok(picked.into_iter().map(|position| Picked { position, similarity: similarity[position] }).collect())
}

fn needs_index(variant: PromptVariant) -> Option<&'static str> {
    match variant {
        PromptVariant::Simple => None,
        PromptVariant::Sequential => Some("sequential"),
        PromptVariant::High => Some("high"),
        PromptVariant::Rerank => Some("rerank"),
        PromptVariant::Hybrid => Some("hybrid"),
    }
}

fn similarities(history: &[i32], target: i32, index: &IndexVectors<'_>) -> Result<Vec<f32>, RetrievalError> {
    let target = index.vector(target)?;
    history.iter().map(|item| Ok(dot(index.vector(*item)?, target))).collect()
}

/// Dot product over eight running sums: a fixed order that the compiler can vectorise.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_rest) = a.as_chunks::<8>();
    let (b_blocks, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

/// Positions of the `k` most similar entries, most similar first.
fn most_similar(similarity: &[f32], k: usize) -> Vec<usize> {
    best((0..similarity.len()).collect(), k, |a, b| similarity[b].total_cmp(&similarity[a]))
}

/// The first `k` positions by `order`, then recency, sorted. Only the kept ones are sorted.
fn best(mut positions: Vec<usize>, k: usize, order: impl Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let order = |a: &usize, b: &usize| order(*a, *b).then(b.cmp(a));
    if k == 0 {
        return Vec::new();
    }
    if k < positions.len() {
        positions.select_nth_unstable_by(k - 1, order);
        positions.truncate(k);
    }
    positions.sort_unstable_by(order);
    positions
}

/// Half of the places by one similarity, the rest by another (the Hybrid-Score baseline).
fn half_of_each(similarity: &[f32], other: &[f32], k: usize) -> Vec<usize> {
    let mut picked = most_similar(similarity, k.div_ceil(2));
    let first: Vec<usize> = picked.clone();
    // Of the k most similar by the other, at most as many are taken already as there are places too many.
    let rest = most_similar(other, k).into_iter().filter(|position| !first.contains(position));
    picked.extend(rest.take(k - first.len()));
    picked
}

/// Eq. 8.
fn by_score(similarity: &[f32], k: usize, gamma: f64, beta: f64) -> Vec<usize> {
    let len = similarity.len();
    let mut score = vec![0.0_f64; len];
    let mut candidates: Vec<usize> = (len - k..len).collect();
    for (rank, position) in (1..).zip(candidates.iter().rev()) {
        score[*position] += (1.0 - gamma) * position_score(rank, beta);
    }
    for (rank, position) in (1..).zip(most_similar(similarity, k)) {
        score[position] += gamma * position_score(rank, beta);
        if position < len - k {
            candidates.push(position);
        }
    }
    best(candidates, k, |a, b| score[b].total_cmp(&score[a]))
}

fn position_score(rank: u32, beta: f64) -> f64 {
    f64::from(rank).powf(-beta)
}

/// The authors' code; `asked` is k before it was cut to the history's length.
fn two_thirds(similarity: &[f32], k: usize, asked: usize) -> Vec<usize> {
    let recent_from = similarity.len() - k;
    let (also_recent, others): (Vec<_>, Vec<_>) =
        most_similar(similarity, k).into_iter().partition(|p| *p >= recent_from);
    let mut picked: Vec<usize> = also_recent.into_iter().chain(others).take(2 * asked / 3).collect();
    for position in (0..similarity.len()).rev() {
        if picked.len() >= k {
            break;
        }
        if !picked.contains(&position) {
            picked.push(position);
        }
    }
    picked
}
