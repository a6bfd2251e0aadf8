//! The decoder's operations on a CUDA device: launches of [`rallrec_kernels`], which see.
//!
//! Products are Burn's (tensor cores, tuned on the device the first time); everything between them is one launch of
//! our own. The residual stream is in f32, because it collects two additions a layer and bf16 would round each to 8
//! bits; activations and the KV cache are of the weights' type, bf16 by default. What all layers of a forward pass
//! read (tokens, positions, page tables) is uploaded once, before the first; what comes back is token ids, or the few
//! hidden states that the caller asked for.
//!
//! There are no CUDA graphs: see `docs/gpu-results.md` for the number of launches. On the CPU results do not depend on
//! the batch, to the bit; here that holds for everything but the products, whose kernels Burn chooses by shape.

mod cache;
mod weights;

use crate::{
    LlmError,
    config::ModelConfig,
    host::RopeTable,
    matrix::{Matrix, Precision},
    ops::{Cache, Draw, Operations, Vector},
    sampler::Drawn,
};
use burn::{
    backend::cubecl::dtype_to_elem_type,
    tensor::{DType, Device, Shape, Tensor},
};
use burn_cubecl::{
    CubeBackend, CubeDevice, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor,
};
use cache::CudaCache;
use cubecl::{
    MemoryScope,
    bytes::Bytes,
    client::Client,
    ir::{ElemType, features::MmaConfig},
    prelude::{BufferArg, CubeCount, CubeDim},
    server::Handle,
};
use rallrec_kernels::{PLANE, feed_forward, norm, sample};
use std::sync::Arc;
use weights::ByteWeights;
pub(crate) use weights::Weights;

/// Numbers that kernels read and write together.
const VECTOR: usize = 4;
/// A call takes this part of the device's free memory at most: twice, for activations and for keys and values, and so do
/// calls beside it.
const SHARE: u64 = 4;
/// Tenths of the device's memory that are counted on. The rest is for what no pool tells of: the driver, kernels, gaps.
const USABLE_TENTHS: u64 = 9;
/// What a call may take in any case, and of a device that does not tell.
const LEAST_BYTES: u64 = 256 << 20;
/// What a call takes at most: a buffer of keys is indexed by groups of 8 numbers in 32 bits.
const MOST_BYTES: u64 = 64 << 30;
/// Units of a cube that goes through a row.
const ROW_UNITS: u32 = 256;
/// Units of a cube that samples: as many as there can be, a vocabulary is long.
const SAMPLE_UNITS: u32 = 1024;

/// What [`Draw`] gives for each row.
const _: () = assert!(sample::SHAPE == 2 && sample::LIMIT == 3);

/// A device and what all layers share.
pub(crate) struct Cuda {
    shared: Arc<Shared>,
    embedding: Embedding,
    /// Whether the vocabulary is one that the device can draw from.
    draws: bool,
}

/// Rows of tokens.
enum Embedding {
    /// \[vocabulary, hidden\]. Of a tied head a copy: there a token is a column, and would be gathered one number at a
    /// time.
    Floats(CubeTensor),
    /// The head's own, where it is tied.
    Bytes(ByteWeights),
}

/// What the cache needs too.
struct Shared {
    client: Client,
    device: CubeDevice,
    /// Of activations, weights, keys and values.
    dtype: DType,
    /// Whether prompts are attended on tensor cores.
    tensor_cores: bool,
    /// For each position, `head_width / 2` cosines and as many sines.
    rotation: Handle,
    rotation_floats: usize,
}

impl Cuda {
    /// Uploads what all layers share. `embedding` is on the device.
    ///
    /// # Errors
    /// [`LlmError::Device`] when the model has a width that the kernels do not take.
    pub(crate) fn new(
        config: &ModelConfig,
        embedding: &Matrix,
        rope: &RopeTable,
        device: &Device,
    ) -> Result<Self, LlmError> {
        for (width, what) in [(config.hidden, "residual stream"), (config.feed_forward, "feed-forward layer")] {
            if !width.is_multiple_of(VECTOR) {
                let what = format!("the {what} is {width} wide, and the kernels take multiples of {VECTOR}; use cpu");
                return Err(LlmError::Device { name: "cuda".into(), what });
            }
        }
        let embedding = match embedding.on_device().expect("it was loaded to this device") {
            Weights::Bytes(bytes) => Embedding::Bytes(bytes.clone()),
            Weights::Floats(columns) => {
                let client = client(device).0;
                Embedding::Floats(persistent(&client, || contiguous(columns.clone().transpose())))
            }
        };
        let (client, cube_device) = client(device);
        let rotation: Vec<u8> = rope.rows(config.context).flat_map(f32::to_le_bytes).collect();
        let dtype = match &embedding {
            Embedding::Floats(rows) => rows.dtype,
            Embedding::Bytes(_) => DType::BF16,
        };
        let tensor_cores = has_tensor_cores(&client, dtype);
        let (needed, most) =
            (cache::shared_bytes(config, tensor_cores), client.properties().hardware.max_shared_memory_size);
        if needed > most {
            let what = format!(
                "attention with heads {} wide takes {needed} bytes of shared memory, and the device has {most}; use cpu",
                config.head_width
            );
            return Err(LlmError::Device { name: "cuda".into(), what });
        }
        let shared = Shared {
            device: cube_device,
            dtype,
            tensor_cores,
            rotation_floats: rotation.len() / 4,
            rotation: persistent(&client, || client.create_from_slice(&rotation)),
            client,
        };
        Ok(Self { shared: Arc::new(shared), embedding, draws: config.vocabulary <= sample::MAX_VOCABULARY })
    }
}

impl Shared {
    fn element(&self) -> ElemType {
        dtype_to_elem_type(self.dtype)
    }

    /// A tensor to be written, rows without gaps.
    fn empty(&self, rows: usize, width: usize, dtype: DType) -> CubeTensor {
        let shape = Shape::from([rows, width]);
        empty_device_contiguous_dtype(self.client.clone(), self.device.clone(), shape, dtype)
    }

    fn upload(&self, numbers: &[u32]) -> Table {
        self.upload_all(&[numbers]).remove(0)
    }

    /// Several tables in one buffer, and in one copy.
    fn upload_all(&self, tables: &[&[u32]]) -> Vec<Table> {
        let bytes = tables.iter().flat_map(|table| table.iter()).flat_map(|number| number.to_le_bytes()).collect();
        let all = self.client.create(Bytes::from_bytes_vec(bytes));
        let mut first = 0;
        let table = |table: &&[u32]| {
            let handle = all.clone().offset_start(4 * first);
            first += table.len() as u64;
            Table { handle, length: table.len() }
        };
        tables.iter().map(table).collect()
    }

    /// `table[rows]`, converted to `to`.
    fn gather(&self, table: CubeTensor, rows: &Table, to: DType) -> CubeTensor {
        let width = table.meta.shape()[1];
        let out = self.empty(rows.length, width, to);
        let types = [table.dtype, to].map(dtype_to_elem_type);
        // SAFETY: the ids are rows of the table, one cube writes each row of `out`, and widths are multiples of
        // VECTOR: `Cuda::new` has checked them.
        #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
        unsafe {
            norm::gather_rows::launch_unchecked(
                &self.client,
                cubes(rows.length, 1),
                CubeDim::new_1d(ROW_UNITS),
                vectors(table),
                rows.argument(),
                vectors(out.clone()),
                width / 4,
                types,
            );
        }
        out
    }
}

/// Numbers on the device that kernels read.
struct Table {
    handle: Handle,
    length: usize,
}

impl Table {
    fn argument(&self) -> BufferArg {
        floats(&self.handle, self.length)
    }
}

/// A device's client.
fn client(device: &Device) -> (Client, CubeDevice) {
    let CubeTensor { client, device, .. } = contiguous(Tensor::<1>::zeros([1], device));
    (client, device)
}

/// Whether the device multiplies fragments as [`rallrec_kernels::tiles`] does.
fn has_tensor_cores(client: &Client, dtype: DType) -> bool {
    let (float, sums) = (dtype_to_elem_type(dtype), dtype_to_elem_type(DType::F32));
    let fragments = MmaConfig { a_type: float, b_type: float, cd_type: sums, m: 16, n: 16, k: 16 };
    dtype != DType::F32 && client.properties().features.matmul.cmma.contains(&fragments)
}

/// What `make` allocates stays for long: it gets room of its own size, which no pool's page holds on to.
fn persistent<T: Send>(client: &Client, make: impl FnOnce() -> T + Send) -> T {
    client.memory_persistent_allocation((), |()| make())
}

/// What `make` allocates goes back to the driver as soon as it is dropped.
fn passing<T: Send>(client: &Client, make: impl FnOnce() -> T + Send) -> T {
    client.memory_dedicated_allocation((), |()| make())
}

/// The precision of a model's weights on a device: [`Precision::Auto`] keeps formats of blocks as bytes where all
/// weights in bf16 would take more than half of the device's memory.
pub(crate) fn resolve(precision: Precision, config: &ModelConfig, device: &Device) -> Precision {
    let memory = client(device).0.properties().memory.max_memory();
    let fits = memory.is_none_or(|memory| 2 * weights(config) <= memory / 2);
    if precision == Precision::Auto && fits { Precision::Bf16 } else { precision }
}

/// Weights of all matrices. On a device a tied embedding is there twice, as rows and as columns.
fn weights(config: &ModelConfig) -> u64 {
    let attention = 2 * config.hidden * (config.query_width() + config.kv_width());
    let blocks = config.layers * (attention + 3 * config.hidden * config.feed_forward);
    (blocks + 2 * config.vocabulary * config.hidden) as u64
}

/// A buffer of single numbers as an argument.
fn floats(handle: &Handle, length: usize) -> BufferArg {
    // SAFETY: all kernels here are launched without checks of accesses, so the length is not used.
    #[expect(unsafe_code, reason = "a kernel's argument from a buffer")]
    unsafe {
        BufferArg::from_raw_parts(handle.clone(), length)
    }
}

/// A tensor in groups of 4 as an argument.
fn vectors(tensor: CubeTensor) -> BufferArg {
    let length = tensor.meta.shape().num_elements() / 4;
    floats(&tensor.handle, length)
}

fn cubes(x: usize, y: usize) -> CubeCount {
    CubeCount::Static(x as u32, y as u32, 1)
}

/// The device's tensor, with its rows one after another. Products of an odd width come with gaps, and are copied.
fn contiguous<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    let tensor = tensor.try_into_primitive::<CubeBackend>().expect("the decoder's tensors are on its device");
    into_contiguous(tensor)
}

fn tensor(tensor: CubeTensor) -> Tensor<2> {
    Tensor::from_primitive::<CubeBackend>(tensor)
}

impl Operations for Cuda {
    fn cache(&self, config: &ModelConfig) -> Box<dyn Cache> {
        Box::new(CudaCache::new(config.clone(), self.shared.clone()))
    }

    fn most_tokens(&self) -> usize {
        usize::MAX
    }

    fn default_bytes(&self) -> u64 {
        let client = &self.shared.client;
        let Some(all) = client.properties().memory.max_memory() else { return LEAST_BYTES };
        // Weights and caches of this process; the device does not tell what others have taken.
        let streams = client.memory_report(MemoryScope::Device).streams;
        let taken: u64 = streams.iter().map(|stream| stream.pools.usage().bytes_in_use).sum();
        ((all / 10 * USABLE_TENTHS).saturating_sub(taken) / SHARE).clamp(LEAST_BYTES, MOST_BYTES)
    }

    fn embed(&self, tokens: &[u32], _width: usize, _device: &Device) -> Tensor<2> {
        let ids = self.shared.upload(tokens);
        tensor(match &self.embedding {
            Embedding::Floats(rows) => self.shared.gather(rows.clone(), &ids, DType::F32),
            Embedding::Bytes(rows) => rows.gather(&ids),
        })
    }

    fn add_rms_norm(
        &self,
        residual: Tensor<2>,
        delta: Option<Tensor<2>>,
        weight: &Vector,
        epsilon: f32,
    ) -> (Tensor<2>, Tensor<2>) {
        let [rows, width] = residual.dims();
        let (residual, weight) = (contiguous(residual), contiguous(weight.tensor()));
        let out = self.shared.empty(rows, width, self.shared.dtype);
        let add = delta.is_some();
        let delta = delta.map_or_else(|| out.clone(), contiguous);
        // SAFETY: all four are [rows, width] or [width], one cube takes each row, and nobody else holds the stream,
        // which is changed in place. Without `add` the kernel does not read `delta`.
        #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
        unsafe {
            norm::add_rms_norm::launch_unchecked(
                &self.shared.client,
                cubes(rows, 1),
                CubeDim::new_1d(ROW_UNITS),
                vectors(residual.clone()),
                vectors(delta),
                vectors(weight),
                vectors(out.clone()),
                epsilon,
                width / 4,
                add,
                ROW_UNITS / PLANE,
                self.shared.element(),
            );
        }
        (tensor(residual), tensor(out))
    }

    fn swiglu(&self, gate_up: Tensor<2>) -> Tensor<2> {
        let [rows, both] = gate_up.dims();
        let count = rows * both / 8;
        let out = self.shared.empty(rows, both / 2, self.shared.dtype);
        // SAFETY: one unit for each 4 outputs; the kernel stops at `count`.
        #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
        unsafe {
            feed_forward::swiglu::launch_unchecked(
                &self.shared.client,
                cubes(count.div_ceil(ROW_UNITS as usize), 1),
                CubeDim::new_1d(ROW_UNITS),
                vectors(contiguous(gate_up)),
                vectors(out.clone()),
                count as u32,
                both / 8,
                self.shared.element(),
            );
        }
        tensor(out)
    }

    fn pick(&self, x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
        // All of them, as in every step of decoding.
        if rows.iter().copied().eq(0..x.dims()[0]) {
            return x;
        }
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let x = contiguous(x);
        let dtype = x.dtype;
        tensor(self.shared.gather(x, &self.shared.upload(&rows), dtype))
    }

    fn draws(&self) -> bool {
        self.draws
    }

    fn draw(&self, logits: Tensor<2>, draws: &[Draw]) -> Vec<Option<Drawn>> {
        let [rows, vocabulary] = logits.dims();
        let logits = contiguous(logits);
        let Shared { client, .. } = &*self.shared;
        let shapes: Vec<u32> = draws.iter().flat_map(|draw| draw.shape().map(f32::to_bits)).collect();
        let limits: Vec<u32> = draws.iter().flat_map(Draw::limits).collect();
        let tables = self.shared.upload_all(&[&shapes, &limits]);
        let [shapes, limits] = &tables[..] else { unreachable!("there are as many tables as lists") };
        let (tokens, log_probabilities) = (client.empty(4 * rows), client.empty(4 * rows));
        let element = dtype_to_elem_type(logits.dtype);
        // SAFETY: one cube a row of the logits; the tables have that many entries.
        #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
        unsafe {
            sample::sample::launch_unchecked(
                client,
                cubes(rows, 1),
                CubeDim::new_1d(SAMPLE_UNITS),
                floats(&logits.handle, rows * vocabulary),
                shapes.argument(),
                limits.argument(),
                floats(&tokens, rows),
                floats(&log_probabilities, rows),
                vocabulary,
                SAMPLE_UNITS / PLANE,
                element,
            );
        }
        let read = client.read(vec![tokens, log_probabilities]).expect("the device computes");
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
        let words = |bytes: &[u8]| bytes.chunks_exact(4).map(word).collect::<Vec<_>>();
        let drawn = words(&read[0]).into_iter().zip(words(&read[1]));
        drawn
            .map(|(token, log_probability)| {
                let log_probability = f32::from_bits(log_probability);
                (token != sample::NO_TOKEN).then_some(Drawn { token, log_probability })
            })
            .collect()
    }
}
