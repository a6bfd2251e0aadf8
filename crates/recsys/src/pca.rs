//! Principal components of a matrix, deterministic and without a linear-algebra library.
//!
//! The covariance is reduced to tridiagonal form by Householder reflections, whose eigenpairs the implicit QL
//! iteration finds (Golub and Van Loan, Matrix Computations, sections 8.3 and 8.4): about 10/3 n^3 multiplications
//! for n columns. A component's sign is arbitrary; here its largest entry is positive. No whitening, no randomised
//! sketch.

use rayon::prelude::*;

/// Coordinates [rows, dims] of the centred rows of `values` [rows, columns] along the `dims` directions of largest
/// variance.
///
/// # Panics
/// When `dims` is larger than `columns`, or there are no rows.
pub fn project(values: &[f32], columns: usize, dims: usize) -> Vec<f32> {
    assert!(dims <= columns && !values.is_empty(), "{dims} of {columns} columns of {} values", values.len());
    let centred = centre(values, columns);
    let components = components(covariance(&centred, columns), columns, dims);
    let mut out = vec![0f32; values.len() / columns * dims];
    out.par_chunks_mut(dims).zip(centred.par_chunks(columns)).for_each(|(out, row)| {
        for (value, component) in out.iter_mut().zip(components.chunks(columns)) {
            *value = dot(row, component) as f32;
        }
    });
    out
}

fn centre(values: &[f32], columns: usize) -> Vec<f64> {
    let rows = (values.len() / columns) as f64;
    let mut mean = vec![0f64; columns];
    for row in values.chunks(columns) {
        mean.iter_mut().zip(row).for_each(|(m, &v)| *m += f64::from(v) / rows);
    }
    values.iter().enumerate().map(|(at, &v)| f64::from(v) - mean[at % columns]).collect()
}

/// Sums of products of columns: the covariance but for a factor, which does not change directions.
fn covariance(centred: &[f64], columns: usize) -> Vec<f64> {
    let mut out = vec![0f64; columns * columns];
    out.par_chunks_mut(columns).enumerate().for_each(|(i, sums)| {
        for row in centred.chunks(columns) {
            add_scaled(&mut sums[..=i], row[i], &row[..=i]);
        }
    });
    for i in 0..columns {
        for j in 0..i {
            out[j * columns + i] = out[i * columns + j];
        }
    }
    out
}

/// The `dims` eigenvectors [dims, n] with the largest eigenvalues of a symmetric matrix [n, n], largest first.
fn components(matrix: Vec<f64>, n: usize, dims: usize) -> Vec<f64> {
    let (mut diagonal, mut off, mut vectors) = tridiagonal(matrix, n);
    implicit_ql(&mut diagonal, &mut off, &mut vectors);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
    let mut out = Vec::with_capacity(dims * n);
    for row in order.into_iter().take(dims) {
        let vector = &vectors[row * n..(row + 1) * n];
        let largest = vector.iter().fold(0f64, |best, &v| if v.abs() > best.abs() { v } else { best });
        out.extend(vector.iter().map(|v| v * largest.signum()));
    }
    out
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Eight partial sums let the compiler use vector registers; their order is fixed.
    let mut sums = [0f64; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (a, b) in a8.zip(b8) {
        for ((s, x), y) in sums.iter_mut().zip(a).zip(b) {
            *s += x * y;
        }
    }
    sums.iter().sum::<f64>() + rest
}

fn add_scaled(to: &mut [f64], factor: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += factor * f);
}

/// Householder reduction of a symmetric matrix: diagonal [n], off-diagonal [n] (entry i joins i and i + 1, the last
/// is 0), and the orthogonal Q [n, n] with `A = Q^T T Q`.
fn tridiagonal(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut off = vec![0f64; n];
    let mut reflections = Vec::new();
    for k in 0..n.saturating_sub(2) {
        let below: Vec<f64> = a[k * n + k + 1..(k + 1) * n].to_vec();
        let length = dot(&below, &below).sqrt();
        off[k] = below[0];
        if length == 0.0 || dot(&below[1..], &below[1..]) == 0.0 {
            continue;
        }
        // Reflect the column onto its first axis, away from its own sign to avoid cancellation.
        let target = -length.copysign(below[0]);
        let mut v = below;
        v[0] -= target;
        let norm = dot(&v, &v).sqrt();
        v.iter_mut().for_each(|x| *x /= norm);
        off[k] = target;
        reflect_both_sides(&mut a, n, k + 1, &v);
        reflections.push((k + 1, v));
    }
    if n > 1 {
        off[n - 2] = a[(n - 2) * n + n - 1];
    }
    let diagonal = (0..n).map(|i| a[i * n + i]).collect();
    let mut q = vec![0f64; n * n];
    (0..n).for_each(|i| q[i * n + i] = 1.0);
    // Last reflection first: before it, rows and columns up to its start are still those of the identity.
    for (start, v) in reflections.iter().rev() {
        q[start * n..].par_chunks_mut(n).for_each(|row| {
            let row = &mut row[*start..];
            let factor = -2.0 * dot(row, v);
            add_scaled(row, factor, v);
        });
    }
    (diagonal, off, q)
}

/// `(I - 2 v v^T) A (I - 2 v v^T)` on the rows and columns from `start` on.
fn reflect_both_sides(a: &mut [f64], n: usize, start: usize, v: &[f64]) {
    let part = &mut a[start * n..];
    let product: Vec<f64> = part.par_chunks(n).map(|row| dot(&row[start..], v)).collect();
    let along = dot(&product, v);
    let w: Vec<f64> = product.iter().zip(v).map(|(p, v)| 2.0 * (p - along * v)).collect();
    part.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
        let row = &mut row[start..];
        add_scaled(row, -v[i], &w);
        add_scaled(row, -w[i], v);
    });
}

/// Eigenvalues of a tridiagonal matrix, into `diagonal`; the same rotations turn the rows of `vectors` [n, n] into
/// eigenvectors.
fn implicit_ql(diagonal: &mut [f64], off: &mut [f64], vectors: &mut [f64]) {
    let n = diagonal.len();
    let scale = (0..n).map(|i| diagonal[i].abs() + off[i].abs()).fold(0.0, f64::max);
    for low in 0..n {
        // Converges cubically; the bound only guards against input that is not a number.
        for _ in 0..100 {
            let small = |i: usize| {
                off[i].abs() <= f64::EPSILON * (diagonal[i].abs() + diagonal[i + 1].abs()).max(scale * 1e-10)
            };
            let high = (low..n - 1).find(|&i| small(i)).unwrap_or(n - 1);
            if high == low {
                break;
            }
            ql_sweep(diagonal, off, vectors, low, high);
        }
    }
}

/// One implicit QL sweep over the block `low..=high`, with Wilkinson's shift from its upper end.
fn ql_sweep(diagonal: &mut [f64], off: &mut [f64], vectors: &mut [f64], low: usize, high: usize) {
    let n = diagonal.len();
    let half_gap = (diagonal[low + 1] - diagonal[low]) / (2.0 * off[low]);
    let shift = diagonal[low] - off[low] / (half_gap + half_gap.hypot(1.0).copysign(half_gap));
    // (x, z) is rotated onto its first axis: first the shifted corner, then each bulge on its way up.
    let (mut x, mut z) = (diagonal[high] - shift, off[high - 1]);
    for i in (low..high).rev() {
        let length = x.hypot(z);
        let (cos, sin) = if length == 0.0 { (1.0, 0.0) } else { (x / length, z / length) };
        if i + 1 < high {
            off[i + 1] = length;
        }
        // Rotate rows and columns i and i + 1.
        let (upper, lower, join) = (diagonal[i], diagonal[i + 1], off[i]);
        diagonal[i + 1] = cos * cos * lower + 2.0 * cos * sin * join + sin * sin * upper;
        diagonal[i] = sin * sin * lower - 2.0 * cos * sin * join + cos * cos * upper;
        off[i] = cos * sin * (upper - lower) + (cos * cos - sin * sin) * join;
        x = off[i];
        if i > low {
            z = sin * off[i - 1];
            off[i - 1] *= cos;
        }
        let (first, second) = vectors[i * n..(i + 2) * n].split_at_mut(n);
        for (u, l) in first.iter_mut().zip(second) {
            (*u, *l) = (cos * *u - sin * *l, sin * *u + cos * *l);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw;
    use rallrec_core::rng::row_rng;

    #[test]
    fn eigenvectors_diagonalise_the_matrix() {
        let n = 40;
        let mut values = Vec::new();
        draw::normal(&mut row_rng(3, "pca.test", 0, 0), 1.0, n * n, &mut values);
        let at = |i: usize, j: usize| f64::from(values[i * n + j] + values[j * n + i]);
        let matrix: Vec<f64> = (0..n * n).map(|k| at(k / n, k % n)).collect();
        let vectors = components(matrix.clone(), n, n);
        let image = |v: &[f64]| -> Vec<f64> { matrix.chunks(n).map(|row| dot(row, v)).collect() };
        let mut last = f64::INFINITY;
        for i in 0..n {
            let v = &vectors[i * n..(i + 1) * n];
            let value = dot(v, &image(v));
            assert!(value <= last + 1e-9, "eigenvalue {i} out of order");
            last = value;
            for (x, y) in image(v).iter().zip(v) {
                assert!((x - value * y).abs() < 1e-9, "not an eigenvector");
            }
            for j in 0..n {
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((dot(v, &vectors[j * n..(j + 1) * n]) - expected).abs() < 1e-10);
            }
        }
    }

    #[test]
    fn a_diagonal_matrix_and_a_single_column_need_no_rotation() {
        assert_eq!(components(vec![1.0, 0.0, 0.0, 3.0], 2, 2), [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(project(&[1.0, 3.0], 1, 1), [-1.0, 1.0]);
    }
}
