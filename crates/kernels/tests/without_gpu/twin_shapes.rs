// The shapes in which `rallrec-llm`'s tests compare the emitted kernels with the loops that compute the same on the
// CPU, and the kernels' names there. Shared by both crates' tests: `examples/emit.rs` writes the sources.

/// Width of the residual stream.
pub(crate) const HIDDEN: usize = 160;
/// Width of the feed-forward layer.
pub(crate) const FEED: usize = 192;
/// Query heads.
pub(crate) const QUERIES: usize = 6;
/// Key and value heads.
pub(crate) const KEYS: usize = 2;
/// Width of a head.
pub(crate) const WIDTH: usize = 64;
/// Tokens of the vocabulary.
pub(crate) const VOCABULARY: usize = 1000;
/// Units of cubes that may have any number.
pub(crate) const UNITS: u32 = 128;
/// Planes, and query rows of a plane, of attention's cubes: of runs of tokens, of chunks, and of runs on tensor cores.
pub(crate) const WHOLE: (usize, usize) = (4, 8);
pub(crate) const CHUNKS: (usize, usize) = (2, 3);
pub(crate) const TILES: (usize, usize) = (2, 16);
/// Rows of a cube, outputs of a plane, and planes of products with bytes.
pub(crate) const FEW: [(usize, usize, usize); 2] = [(1, 2, 4), (4, 4, 4)];
/// Inputs of matrices of bytes.
pub(crate) const BYTE_INPUTS: usize = 256;
/// Layouts of bytes: inputs that share a scale, and whether there are minima.
pub(crate) const LAYOUTS: [(usize, bool); 3] = [(32, false), (16, true), (32, true)];
