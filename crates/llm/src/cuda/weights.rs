//! Matrices on a CUDA device: floats for Burn's products, or bytes with scales for [`rallrec_kernels::int8`].
//!
//! Bytes stay bytes on the card. A few rows are multiplied with them as they are; for more rows the matrix is written
//! out, into memory that is given back after the product. Written out it is read three times as often as a matrix that
//! is floats already: bytes are for models that would not fit otherwise, and for decoding few sequences at a time.

use super::{Table, client, contiguous, cubes, floats, passing, persistent, tensor, vectors};
use crate::{
    checkpoint::Stored,
    host,
    matrix::{
        Precision, TooLarge,
        upload::{self, ByteRows},
    },
};
use burn::{
    backend::cubecl::dtype_to_elem_type,
    tensor::{DType, Device, FloatDType, Shape, Tensor},
};
use burn_cubecl::{CubeDevice, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::{
    bytes::Bytes,
    client::Client,
    prelude::{BufferArg, CubeDim},
    server::Handle,
};
use half::{bf16, f16};
use rallrec_kernels::{
    PLANE,
    int8::{self, Few, Layout},
    product,
};

/// Rows up to which bytes are multiplied as they are. From about there on it takes longer than writing the matrix out:
/// each [`CUBE_ROWS`] rows read it again.
const FEW_ROWS: usize = 16;
/// Rows of a cube at most: with more, units would wait for arithmetic instead of memory.
const CUBE_ROWS: usize = 8;
/// Planes of a cube.
const PLANES: usize = 4;
/// Units of a cube that gathers a row.
const ROW_UNITS: u32 = 256;

/// A matrix.
pub(crate) enum Weights {
    /// \[inputs, outputs\]
    Floats(Tensor<2>),
    /// As rows of outputs.
    Bytes(ByteWeights),
}

/// A matrix of bytes. A clone shares them.
#[derive(Clone)]
pub(crate) struct ByteWeights {
    client: Client,
    device: CubeDevice,
    layout: Layout,
    outputs: usize,
    q: Handle,
    scale: Handle,
    /// The scales where there are no minima: no device has a buffer of no bytes.
    minimum: Handle,
}

impl Weights {
    /// Uploads matrices \[outputs, inputs\] with the same inputs, side by side.
    ///
    /// A `table` is a matrix of which rows are read, and that is not multiplied with: floats stay as they lie.
    ///
    /// # Errors
    /// [`TooLarge`] for a weight that would become infinite.
    pub(crate) fn load(
        parts: &[Stored<'_>],
        precision: Precision,
        device: &Device,
        table: bool,
    ) -> Result<Self, TooLarge> {
        if ByteRows::fit(parts, precision) {
            return Ok(Self::Bytes(ByteWeights::upload(ByteRows::pack(parts, precision), device)));
        }
        let narrow_bf16 = |x| Some(bf16::from_f32(x)).filter(|x| x.is_finite());
        let narrow_f16 = |x| Some(f16::from_f32(x)).filter(|x| x.is_finite());
        let (dtype, bytes) = match precision {
            Precision::F32 => (DType::F32, Bytes::from_elems(upload::rows(parts, Some)?)),
            Precision::F16 => (DType::F16, Bytes::from_elems(upload::rows(parts, narrow_f16)?)),
            Precision::Auto | Precision::Bf16 | Precision::Int8 => {
                (DType::BF16, Bytes::from_elems(upload::rows(parts, narrow_bf16)?))
            }
        };
        let (client, cube) = client(device);
        let [outputs, inputs] = shape(parts);
        let create = || client.create(bytes);
        let handle = if table { persistent(&client, create) } else { passing(&client, create) };
        let rows = CubeTensor::new_contiguous(client.clone(), cube, Shape::from([outputs, inputs]), handle, dtype);
        let columns = tensor(rows).transpose();
        Ok(Self::Floats(if table { columns } else { persistent(&client, || tensor(contiguous(columns))) }))
    }

    /// Bytes on the device.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Floats(weights) => weights.dtype().size() * weights.shape().num_elements(),
            Self::Bytes(weights) => {
                let scales = weights.outputs * weights.layout.inputs / weights.layout.group;
                let each = if weights.layout.minimum { 8 } else { 4 };
                weights.outputs * weights.layout.inputs + each * scales
            }
        }
    }

    /// The product \[rows, outputs\], in the type of the weights, with `x` \[rows, inputs\].
    pub(crate) fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Floats(weights) if weights.dtype() == DType::F32 => multiply_f32(x, weights.clone()),
            Self::Floats(weights) => x.cast(FloatDType::from(weights.dtype())).matmul(weights.clone()),
            Self::Bytes(weights) => {
                let x = x.cast(FloatDType::BF16);
                if x.dims()[0] <= FEW_ROWS { weights.multiply(x) } else { x.matmul(weights.widen()) }
            }
        }
    }

    /// The weights of one output, \[inputs\].
    pub(crate) fn output(&self, output: usize, to: &mut [f32]) {
        let row = match self {
            Self::Floats(weights) => weights.clone().narrow(1, output, 1).cast(FloatDType::F32),
            Self::Bytes(weights) => {
                let id = weights.client.create_from_slice(&(output as u32).to_le_bytes());
                tensor(weights.gather(&Table { handle: id, length: 1 }))
            }
        };
        to.copy_from_slice(host::floats(&host::read(row)));
    }

    /// All weights as a tensor \[inputs, outputs\].
    pub(crate) fn dense(&self) -> Tensor<2> {
        match self {
            Self::Floats(weights) => weights.clone(),
            Self::Bytes(weights) => weights.widen(),
        }
    }
}

/// The product in 32 bits. Burn's may run on tensor cores, with 11.
fn multiply_f32(x: Tensor<2>, weights: Tensor<2>) -> Tensor<2> {
    let ([rows, inputs], [_, outputs]) = (x.dims(), weights.dims());
    let (x, weights) = (contiguous(x), contiguous(weights));
    let shape = Shape::from([rows, outputs]);
    let out = empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape, DType::F32);
    // SAFETY: cubes for all rows and outputs; the kernel reads and writes none beyond.
    #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
    unsafe {
        product::product::launch_unchecked(
            &x.client,
            cubes(outputs.div_ceil(product::SIDE), rows.div_ceil(product::SIDE)),
            CubeDim::new_1d(product::UNITS as u32),
            floats(&x.handle, rows * inputs),
            floats(&weights.handle, inputs * outputs),
            floats(&out.handle, rows * outputs),
            rows as u32,
            outputs as u32,
            inputs,
        );
    }
    tensor(out)
}

/// Outputs of all parts, and their inputs.
fn shape(parts: &[Stored<'_>]) -> [usize; 2] {
    [parts.iter().map(|part| part.rows).sum(), parts[0].columns]
}

impl ByteWeights {
    fn upload(rows: ByteRows, device: &Device) -> Self {
        let ByteRows { inputs, outputs, group, q, scale, minimum } = rows;
        let layout = Layout { inputs, group, minimum: !minimum.is_empty() };
        let (client, cube) = client(device);
        let [q, scale, minimum] = persistent(&client, || {
            let [q, scale] = [Bytes::from_elems(q), Bytes::from_elems(scale)].map(|bytes| client.create(bytes));
            let minimum = if layout.minimum { client.create(Bytes::from_elems(minimum)) } else { scale.clone() };
            [q, scale, minimum]
        });
        Self { client, device: cube, layout, outputs, q, scale, minimum }
    }

    fn empty(&self, rows: usize, width: usize, dtype: DType) -> CubeTensor {
        let shape = Shape::from([rows, width]);
        empty_device_contiguous_dtype(self.client.clone(), self.device.clone(), shape, dtype)
    }

    fn q(&self) -> BufferArg {
        floats(&self.q, self.outputs * self.layout.inputs / int8::LOAD)
    }

    fn scale(&self) -> BufferArg {
        floats(&self.scale, self.outputs * self.layout.inputs / self.layout.group)
    }

    fn minimum(&self) -> BufferArg {
        floats(&self.minimum, self.outputs * self.layout.inputs / self.layout.group)
    }

    /// The product of a few rows, read from the bytes.
    fn multiply(&self, x: Tensor<2>) -> Tensor<2> {
        let [rows, _] = x.dims();
        let x = contiguous(x);
        let out = self.empty(rows, self.outputs, x.dtype);
        let element = dtype_to_elem_type(x.dtype);
        // A kernel for 1, 2, 4 and 8 rows. What is read of many rows serves more outputs.
        let cube_rows = rows.next_power_of_two().min(CUBE_ROWS);
        let few = Few { rows: cube_rows, outputs: if cube_rows > 2 { 4 } else { 2 }, planes: PLANES };
        // SAFETY: `x` and `out` have `rows` rows, the cubes cover all of them and all outputs, and the kernel writes
        // none beyond.
        #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
        unsafe {
            int8::matrix_vector_int8::launch_unchecked(
                &self.client,
                cubes(self.outputs.div_ceil(PLANES * few.outputs), rows.div_ceil(few.rows)),
                CubeDim::new_1d(PLANES as u32 * PLANE),
                vectors(x),
                self.q(),
                self.scale(),
                self.minimum(),
                floats(&out.handle, rows * self.outputs),
                rows as u32,
                self.outputs as u32,
                self.layout,
                few,
                element,
            );
        }
        tensor(out)
    }

    /// All values, \[inputs, outputs\].
    fn widen(&self) -> Tensor<2> {
        let out = self.empty(self.layout.inputs, self.outputs, DType::BF16);
        // SAFETY: cubes for all outputs and inputs; the kernel writes none beyond.
        #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
        unsafe {
            int8::widen_int8::launch_unchecked(
                &self.client,
                cubes(self.outputs.div_ceil(int8::WIDEN), self.layout.inputs.div_ceil(int8::WIDEN)),
                CubeDim::new_1d(int8::WIDEN_UNITS as u32),
                self.q(),
                self.scale(),
                self.minimum(),
                floats(&out.handle, self.layout.inputs * self.outputs),
                self.outputs as u32,
                self.layout,
                dtype_to_elem_type(DType::BF16),
            );
        }
        tensor(out)
    }

    /// The values of some outputs, \[ids, inputs\], in 32 bits.
    pub(super) fn gather(&self, ids: &Table) -> CubeTensor {
        let out = self.empty(ids.length, self.layout.inputs, DType::F32);
        // SAFETY: the ids are outputs, and one cube writes each row of `out`.
        #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
        unsafe {
            int8::gather_rows_int8::launch_unchecked(
                &self.client,
                cubes(ids.length, 1),
                CubeDim::new_1d(ROW_UNITS),
                self.q(),
                self.scale(),
                self.minimum(),
                ids.argument(),
                vectors(out.clone()),
                self.layout,
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::pick_device,
        host::{floats, matrix, read},
        matrix::{
            Matrix,
            tests::{stored, uniform},
        },
        quants::Format,
    };

    /// Every way to keep a matrix, for few and many rows, against the same matrix on the CPU. Without a device the test
    /// says so and passes.
    #[test]
    fn matrices_are_those_of_the_cpu() {
        const INPUTS: usize = 512;
        let device = match pick_device("cuda:0") {
            Ok(device) => device,
            Err(error) => return println!("not tested: {error}"),
        };
        let cpu = Device::flex();
        let distance = |got: &[f32], want: &[f32]| {
            let size = want.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
            got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / size
        };
        for (precision, formats) in [
            (Precision::F32, [Format::F32, Format::Q4_1]),
            (Precision::Bf16, [Format::F32, Format::Q4_1]),
            (Precision::Int8, [Format::F32, Format::BF16]),
            (Precision::Auto, [Format::Q8_0, Format::Q4_1]),
            (Precision::Auto, [Format::Q4K, Format::Q6K]),
        ] {
            let bytes = formats.map(|format| stored(format, 129, INPUTS));
            let part = |at: usize| Stored {
                format: formats[at],
                bytes: &bytes[at],
                rows: 129,
                columns: INPUTS,
                interleaved: None,
            };
            let parts = [part(0), part(1)];
            let bound = if precision == Precision::F32 { 1e-5 } else { 1e-2 };
            let want = Matrix::load(&parts, precision, &cpu).unwrap();
            let on_device = Weights::load(&parts, precision, &device, false).unwrap();
            for rows in [1, 2, 7, FEW_ROWS, FEW_ROWS + 1, 100] {
                let x = uniform(rows * INPUTS, rows as u64);
                let got = read(on_device.apply(matrix(x.clone(), rows, &device)).cast(FloatDType::F32));
                let far = distance(floats(&got), floats(&read(want.apply(matrix(x, rows, &cpu)))));
                println!("{precision:?} {formats:?}, {rows} rows: {far:.1e}");
                assert!(far < bound, "{precision:?} {formats:?}, {rows} rows: {far}");
            }
            let dense = read(on_device.dense().cast(FloatDType::F32));
            assert!(distance(floats(&dense), floats(&read(want.dense(&cpu)))) < bound, "{precision:?} {formats:?}");
            let (mut got, mut row) = (vec![0.0; INPUTS], vec![0.0; INPUTS]);
            for output in [0, 200] {
                on_device.output(output, &mut got);
                want.output(output, &mut row);
                assert!(distance(&got, &row) < bound, "{precision:?} {formats:?}, output {output}");
            }
        }
    }
}
