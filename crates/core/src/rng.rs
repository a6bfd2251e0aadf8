//! Seeds drawn per (seed, row, sample), so that no answer depends on sharding, batching, order or worker.

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use sha2::{Digest, Sha256};

/// Generator for one sample of one row. `stream` keeps uses apart, for example `"reason"` or `"lightgcn.init"`.
pub fn row_rng(seed: u64, stream: &str, row: u64, sample: u64) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update((stream.len() as u64).to_le_bytes());
    hash.update(stream.as_bytes());
    hash.update(row.to_le_bytes());
    hash.update(sample.to_le_bytes());
    ChaCha8Rng::from_seed(hash.finalize().into())
}
