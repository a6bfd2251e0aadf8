//! The language model's operations between its matrix products, as CubeCL kernels.
//!
//! Burn would compose each of these from several launches and passes over memory; here each is one launch. They are
//! kept apart from `rallrec-llm`, which launches them, so that the tests can emit them as CUDA C++ without building
//! Burn: `tests/` compiles every kernel with NVRTC for the supported architectures and runs it on the host through a
//! small stand-in for the CUDA runtime, both without a GPU.
//!
//! Deliberately absent: tensors, memory management, fast matrix products of many rows (Burn's), and any atomic addition of
//! floating-point numbers: every sum has one order, so a result depends on its inputs alone.
//!
//! In all kernels activations are `F` (f32 or bf16), sums are f32, and a plane has 32 units. Slices of
//! `Vector<_, Const<4>>` are rows whose width is a multiple of 4, in groups of 4.

#[cfg(feature = "cuda")]
#[expect(missing_docs, reason = "items that the macro generates")]
pub mod attention;
#[cfg(feature = "cuda")]
#[expect(missing_docs, reason = "items that the macro generates")]
pub mod feed_forward;
#[cfg(feature = "cuda")]
#[expect(missing_docs, reason = "items that the macro generates")]
pub mod int8;
#[cfg(feature = "cuda")]
#[expect(missing_docs, reason = "items that the macro generates")]
pub mod norm;
#[cfg(feature = "cuda")]
#[expect(missing_docs, reason = "items that the macro generates")]
pub mod product;
#[cfg(feature = "cuda")]
mod reduce;
#[cfg(feature = "cuda")]
#[expect(missing_docs, reason = "items that the macro generates")]
pub mod rotary;
#[cfg(feature = "cuda")]
#[expect(missing_docs, reason = "items that the macro generates")]
pub mod sample;
#[cfg(feature = "cuda")]
#[expect(missing_docs, reason = "items that the macro generates")]
pub mod tiles;

/// Units of a plane (a warp).
pub const PLANE: u32 = 32;
/// Positions in a page of the KV cache.
pub const PAGE: usize = 32;
