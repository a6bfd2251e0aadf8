//! Sparse times dense product as an operation of Burn's backends: `y = A x`.
//!
//! Burn has no sparse tensors, and LightGCN's propagation and every embedding gradient is this product. Rows are
//! summed in the order of their entries on every backend, so the result does not depend on threads, unlike a
//! scatter with atomic additions. Only `x` has a gradient: the entries of `A` are constants.
//!
//! There is no sparse output, no sparse times sparse, and no fusion (`burn/fusion` is never enabled).

use burn::backend::autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind, unary},
};
use burn::backend::{
    Backend, Dispatch, Flex, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rayon::prelude::*;

/// A sparse matrix in host memory, compressed by rows.
#[derive(Clone, Debug, PartialEq)]
pub struct HostCsr {
    /// Columns.
    cols: usize,
    /// Entries of row r stand at `row_ptr[r]..row_ptr[r + 1]`.
    row_ptr: Vec<i32>,
    /// Column of each entry.
    col: Vec<i32>,
    /// Value of each entry.
    value: Vec<f32>,
}

impl HostCsr {
    /// The matrix with these (row, column, value) entries. Entries of a row keep their order; entries of one place
    /// add up.
    ///
    /// # Panics
    /// When an entry lies outside `rows` x `cols`, or there are more than `i32::MAX` entries.
    pub fn from_entries(rows: usize, cols: usize, entries: &[(u32, u32, f32)]) -> Self {
        let total = i32::try_from(entries.len()).expect("a device index is 32 bits wide");
        let mut row_ptr = vec![0i32; rows + 1];
        for &(row, column, _) in entries {
            assert!((column as usize) < cols, "column {column} of {cols}");
            row_ptr[row as usize + 1] += 1;
        }
        for row in 0..rows {
            row_ptr[row + 1] += row_ptr[row];
        }
        debug_assert_eq!(row_ptr[rows], total);
        let mut next = row_ptr.clone();
        let (mut col, mut value) = (vec![0i32; entries.len()], vec![0f32; entries.len()]);
        for &(row, column, v) in entries {
            let at = next[row as usize] as usize;
            next[row as usize] += 1;
            col[at] = column as i32;
            value[at] = v;
        }
        Self { cols, row_ptr, col, value }
    }

    /// The matrix that picks row `picks[r]` of `x` as row r of the product.
    ///
    /// # Panics
    /// When a pick is not below `cols`, or there are more than `i32::MAX` picks.
    pub fn selection(picks: &[u32], cols: usize) -> Self {
        let total = i32::try_from(picks.len()).expect("a device index is 32 bits wide");
        let in_range = |&p: &u32| {
            assert!((p as usize) < cols, "row {p} of {cols}");
            p as i32
        };
        Self {
            cols,
            row_ptr: (0..=total).collect(),
            col: picks.iter().map(in_range).collect(),
            value: vec![1.0; picks.len()],
        }
    }

    /// The transposed matrix; entries of a row stand by ascending column.
    pub fn transposed(&self) -> Self {
        let mut row_ptr = vec![0i32; self.cols + 1];
        self.col.iter().for_each(|&c| row_ptr[c as usize + 1] += 1);
        for row in 0..self.cols {
            row_ptr[row + 1] += row_ptr[row];
        }
        let mut next = row_ptr.clone();
        let (mut col, mut value) = (vec![0i32; self.col.len()], vec![0f32; self.col.len()]);
        for row in 0..self.rows() {
            for entry in self.row_ptr[row] as usize..self.row_ptr[row + 1] as usize {
                let place = &mut next[self.col[entry] as usize];
                col[*place as usize] = row as i32;
                value[*place as usize] = self.value[entry];
                *place += 1;
            }
        }
        Self { cols: self.rows(), row_ptr, col, value }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.row_ptr.len() - 1
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Entries of each row.
    pub fn row_counts(&self) -> impl Iterator<Item = u32> + '_ {
        self.row_ptr.windows(2).map(|pair| (pair[1] - pair[0]) as u32)
    }

    /// The matrix on a device, ready for [`spmm`].
    pub fn to_device(self, device: &Device) -> Csr {
        let int = |v: Vec<i32>| {
            let len = v.len();
            Tensor::<1, Int>::from_data(TensorData::new(v, [len]), device)
        };
        let entries = self.value.len();
        Csr {
            row_ptr: int(self.row_ptr),
            col: int(self.col),
            value: Tensor::from_data(TensorData::new(self.value, [entries]), device),
        }
    }
}

/// A sparse matrix [n, m] on a device, compressed by rows.
#[derive(Clone, Debug)]
pub struct Csr {
    row_ptr: Tensor<1, Int>,
    col: Tensor<1, Int>,
    value: Tensor<1>,
}

/// `y = A x` for `a` = A [n, m] and `x` [m, d]; `y` is [n, d]. `at` is A transposed [m, n]: the gradient of `x` is
/// `at` times the gradient of `y`. Give a symmetric A twice. All tensors live on one device.
pub fn spmm(a: &Csr, at: &Csr, x: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as SpmmBackend>::spmm(
        x.into_dispatch(),
        a.row_ptr.clone().into_dispatch(),
        a.col.clone().into_dispatch(),
        a.value.clone().into_dispatch(),
        at.row_ptr.clone().into_dispatch(),
        at.col.clone().into_dispatch(),
        at.value.clone().into_dispatch(),
    ))
}

/// A backend that can multiply a sparse matrix with a dense one.
#[backend_extension(Flex, Cube: cfg(feature = "cuda"), Autodiff)]
pub trait SpmmBackend: Backend {
    /// (`row_ptr`, `col`, `value`) is A; (`row_ptr_t`, `col_t`, `value_t`) is A transposed, read by the gradient only.
    fn spmm(
        x: FloatTensor<Self>,
        row_ptr: IntTensor<Self>,
        col: IntTensor<Self>,
        value: FloatTensor<Self>,
        row_ptr_t: IntTensor<Self>,
        col_t: IntTensor<Self>,
        value_t: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// Columns of a row that are summed together: small enough to stay in registers without AVX.
const BLOCK: usize = 32;

/// Adds `value[e] * x[col[e]]` over a row's entries into `out` [d].
fn sum_row(col: &[i32], value: &[f32], x: &[f32], out: &mut [f32]) {
    let dim = out.len();
    let mut start = 0;
    while start + BLOCK <= dim {
        let mut sum = [0f32; BLOCK];
        for (&c, &v) in col.iter().zip(value) {
            let from = c as usize * dim + start;
            for (s, &x) in sum.iter_mut().zip(&x[from..from + BLOCK]) {
                *s += v * x;
            }
        }
        out[start..start + BLOCK].copy_from_slice(&sum);
        start += BLOCK;
    }
    let rest = &mut out[start..];
    for (&c, &v) in col.iter().zip(value) {
        let from = c as usize * dim + start;
        for (s, &x) in rest.iter_mut().zip(&x[from..from + dim - start]) {
            *s += v * x;
        }
    }
}

impl SpmmBackend for Flex {
    fn spmm(
        x: FloatTensor<Self>,
        row_ptr: IntTensor<Self>,
        col: IntTensor<Self>,
        value: FloatTensor<Self>,
        _row_ptr_t: IntTensor<Self>,
        _col_t: IntTensor<Self>,
        _value_t: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (x, row_ptr, col, value) =
            (x.to_contiguous(), row_ptr.to_contiguous(), col.to_contiguous(), value.to_contiguous());
        let (rows, dim) = (row_ptr.layout().shape()[0] - 1, x.layout().shape()[1]);
        let (x, row_ptr, col, value) =
            (x.storage::<f32>(), row_ptr.storage::<i32>(), col.storage::<i32>(), value.storage::<f32>());
        let mut out = vec![0f32; rows * dim];
        // 16 rows a task at least: a row of a sparse batch is too little work to hand over.
        out.par_chunks_mut(dim.max(1)).enumerate().with_min_len(16).for_each(|(row, out)| {
            let entries = row_ptr[row] as usize..row_ptr[row + 1] as usize;
            sum_row(&col[entries.clone()], &value[entries], x, out);
        });
        burn::backend::flex::FlexTensor::from_data(TensorData::new(out, [rows, dim]))
    }
}

#[cfg(feature = "cuda")]
mod kernel {
    use cubecl::prelude::*;

    /// `out[row, f] = sum over e of value[e] * x[col[e], f]`; one unit per (row, f).
    #[cube(launch)]
    pub(super) fn spmm_kernel<F: Numeric, I: Numeric>(
        row_ptr: &Tensor<I>,
        col: &Tensor<I>,
        value: &Tensor<F>,
        x: &Tensor<F>,
        out: &mut Tensor<F>,
        #[define(F, I)] _dtypes: [ElemType; 2],
    ) {
        let dim = out.shape(1);
        if ABSOLUTE_POS >= out.shape(0) * dim {
            terminate!();
        }
        let row = ABSOLUTE_POS / dim;
        let f = ABSOLUTE_POS % dim;
        let start = usize::cast_from(row_ptr[row]);
        let end = usize::cast_from(row_ptr[row + 1]);
        let mut sum = F::from_int(0);
        for e in start..end {
            sum += value[e] * x[usize::cast_from(col[e]) * dim + f];
        }
        out[ABSOLUTE_POS] = sum;
    }
}

#[cfg(feature = "cuda")]
impl SpmmBackend for burn_cubecl::CubeBackend {
    fn spmm(
        x: FloatTensor<Self>,
        row_ptr: IntTensor<Self>,
        col: IntTensor<Self>,
        value: FloatTensor<Self>,
        _row_ptr_t: IntTensor<Self>,
        _col_t: IntTensor<Self>,
        _value_t: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        use burn::backend::{TensorMetadata, cubecl::dtype_to_storage_type};
        use burn_cubecl::{kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype};
        use cubecl::{CubeDim, calculate_cube_count_elemwise};
        let (x, row_ptr, col, value) =
            (into_contiguous(x), into_contiguous(row_ptr), into_contiguous(col), into_contiguous(value));
        let mut shape = x.shape();
        shape[0] = row_ptr.shape()[0] - 1;
        let elements = shape.num_elements();
        let out = empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape, x.dtype);
        let cube_dim = CubeDim::new(&x.client, elements);
        let cube_count = calculate_cube_count_elemwise(&x.client, elements, cube_dim);
        let dtypes = [dtype_to_storage_type(x.dtype), dtype_to_storage_type(row_ptr.dtype)];
        let client = out.client.clone();
        kernel::spmm_kernel::launch(
            &client,
            cube_count,
            cube_dim,
            row_ptr.into_tensor_arg(),
            col.into_tensor_arg(),
            value.into_tensor_arg(),
            x.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            dtypes,
        );
        out
    }
}

impl<B: SpmmBackend, C: CheckpointStrategy> SpmmBackend for Autodiff<B, C> {
    fn spmm(
        x: FloatTensor<Self>,
        row_ptr: IntTensor<Self>,
        col: IntTensor<Self>,
        value: FloatTensor<Self>,
        row_ptr_t: IntTensor<Self>,
        col_t: IntTensor<Self>,
        value_t: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        type Matrix<B> = (IntTensor<B>, IntTensor<B>, FloatTensor<B>);

        #[derive(Debug)]
        struct Spmm;
        impl<B: SpmmBackend> Backward<B, 1> for Spmm {
            type State = (Matrix<B>, Matrix<B>);

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let (a, at) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |g| B::spmm(g, at.0, at.1, at.2, a.0, a.1, a.2));
            }
        }

        let (value, value_t) = (value.into_primitive(), value_t.into_primitive());
        let a: Matrix<B> = (row_ptr, col, value);
        let at: Matrix<B> = (row_ptr_t, col_t, value_t);
        let product = |x, a: Matrix<B>, at: Matrix<B>| B::spmm(x, a.0, a.1, a.2, at.0, at.1, at.2);
        match Spmm.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = product(x.into_primitive(), a.clone(), at.clone());
                prep.finish((a, at), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(product(x.into_primitive(), a, at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{draw, training::values};
    use rallrec_core::rng::row_rng;

    fn matrix(rows: usize, cols: usize, density: f32) -> (HostCsr, Vec<f32>) {
        let mut rng = row_rng(1, "spmm.test", rows as u64, cols as u64);
        let (mut entries, mut dense) = (Vec::new(), vec![0f32; rows * cols]);
        for row in 0..rows {
            for col in 0..cols {
                if draw::unit(&mut rng) < density {
                    let value = draw::unit(&mut rng) - 0.5;
                    entries.push((row as u32, col as u32, value));
                    dense[row * cols + col] = value;
                }
            }
        }
        (HostCsr::from_entries(rows, cols, &entries), dense)
    }

    fn random(shape: [usize; 2], row: u64, device: &Device) -> Tensor<2> {
        let mut data = Vec::new();
        draw::normal(&mut row_rng(2, "spmm.test", row, 0), 1.0, shape[0] * shape[1], &mut data);
        Tensor::from_data(TensorData::new(data, shape), device)
    }

    fn largest_difference(a: Tensor<2>, b: Tensor<2>) -> f32 {
        values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn product_and_gradient_equal_dense() {
        let device = Device::flex().autodiff();
        // 33 and 70 columns have a whole block and a rest; 7 has a rest only.
        for (rows, cols, dim) in [(200, 150, 33), (40, 90, 70), (5, 3, 7)] {
            let (csr, dense) = matrix(rows, cols, 0.1);
            let (a, at) = (csr.clone().to_device(&device), csr.transposed().to_device(&device));
            let dense = Tensor::<2>::from_data(TensorData::new(dense, [rows, cols]), &device);
            let x = random([cols, dim], 0, &device).require_grad();
            let weight = random([rows, dim], 1, &device);
            let (sparse, dense) = (spmm(&a, &at, x.clone()), dense.matmul(x.clone()));
            assert!(largest_difference(sparse.clone().inner(), dense.clone().inner()) < 1e-5);
            let g1 = (sparse * weight.clone()).sum().backward();
            let g2 = (dense * weight).sum().backward();
            let (g1, g2) = (x.grad(&g1).expect("tracked"), x.grad(&g2).expect("tracked"));
            assert!(largest_difference(g1, g2) < 1e-5);
        }
    }

    #[test]
    fn transposing_twice_gives_the_matrix_back() {
        let (csr, _) = matrix(31, 17, 0.2);
        assert_eq!((csr.transposed().rows(), csr.transposed().cols()), (17, 31));
        assert_eq!(csr.transposed().transposed(), csr);
    }

    #[test]
    fn a_selection_picks_rows_and_its_transpose_adds_them_up() {
        let device = Device::flex();
        let csr = HostCsr::selection(&[2, 0, 2], 4);
        let (a, at) = (csr.clone().to_device(&device), csr.transposed().to_device(&device));
        let x = Tensor::<2>::from_data([[1f32, 2.], [3., 4.], [5., 6.], [7., 8.]], &device);
        assert_eq!(values(spmm(&a, &at, x)), [5., 6., 1., 2., 5., 6.]);
        let g = Tensor::<2>::from_data([[1f32, 0.], [10., 0.], [100., 1.]], &device);
        assert_eq!(values(spmm(&at, &a, g)), [10., 0., 0., 0., 101., 1., 0., 0.]);
    }
}
