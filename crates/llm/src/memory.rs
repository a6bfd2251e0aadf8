//! How much memory a batch may take, and how many tokens fit.
//!
//! Only bounds are decided here: a batch's size changes no result. What the system says is free is read once a call,
//! when the model's weights are in memory already. This is the host's memory: a device with memory of
//! its own has another default ([`crate::ops::Operations::default_bytes`]).

use crate::{
    config::ModelConfig,
    kv::{KvPool, PAGE},
};
use std::{fs, path::Path};

/// A call takes this part of the free memory at most: a worker's other slots and the operating system's file cache,
/// where the weights lie, need the rest.
const SHARE: u64 = 4;
/// What is taken for free where the system does not tell.
const UNKNOWN_FREE_BYTES: u64 = 4 << 30;

/// The most that one call may take where its caller does not say.
pub(crate) fn default_bytes() -> u64 {
    let free = free_bytes().unwrap_or(UNKNOWN_FREE_BYTES) / SHARE;
    tracing::debug!(bytes = free, "memory for a batch");
    free
}

/// Tokens that one forward pass may compute so that its activations fit: `tokens` at most, and always a page of them.
pub(crate) fn tokens_that_fit(config: &ModelConfig, tokens: usize, bytes: u64) -> usize {
    let fit = usize::try_from(bytes / activation_bytes(config)).unwrap_or(usize::MAX);
    tokens.min(fit).max(PAGE)
}

/// Pages of all layers that fit.
pub(crate) fn pages_that_fit(pool: &KvPool, bytes: u64) -> usize {
    usize::try_from(bytes / pool.page_bytes()).unwrap_or(usize::MAX)
}

/// Bytes that a forward pass holds a token at its peak, in 32 bits: four rows of the residual's width (the stream, its
/// normalized copy, a block's result, the finished state), the wider of attention's and the feed-forward layer's
/// intermediate results, and one layer's keys and values.
fn activation_bytes(config: &ModelConfig) -> u64 {
    let attention = 2 * (config.query_width() + config.kv_width());
    let feed = 3 * config.feed_forward;
    4 * (4 * config.hidden + attention.max(feed) + 2 * config.kv_width()) as u64
}

/// Free bytes of this machine or, where it is less, of the control group that the process is in.
fn free_bytes() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = available(&read(Path::new("/proc/meminfo"))?)?;
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let limits = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let path = path.trim_start_matches('/');
        let (folder, limit, usage) = match controllers {
            "" => (root.join(path), "memory.max", "memory.current"),
            "memory" => (root.join("memory").join(path), "memory.limit_in_bytes", "memory.usage_in_bytes"),
            _ => return None,
        };
        let number = |name: &str| read(&folder.join(name))?.trim().parse::<u64>().ok();
        let cached = read(&folder.join("memory.stat")).and_then(|stat| inactive_file(&stat)).unwrap_or(0);
        // "max" is no number: no limit.
        Some(number(limit)?.saturating_sub(number(usage)?.saturating_sub(cached)))
    });
    Some(limits.fold(machine, u64::min))
}

/// What Linux says can be taken without swapping.
fn available(meminfo: &str) -> Option<u64> {
    let kibibytes = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(kibibytes.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Bytes of a control group that are file cache and given back when they are needed.
fn inactive_file(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("inactive_file "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smollm2() -> ModelConfig {
        ModelConfig {
            vocabulary: 49_152,
            hidden: 576,
            feed_forward: 1536,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_width: 64,
            context: 8192,
            rope_base: 1e5,
            rope: crate::config::RopeScaling::None,
            norm_epsilon: 1e-5,
            qkv_bias: false,
            qk_norm: false,
            sliding_window: None,
            tied_head: true,
        }
    }

    #[test]
    fn what_linux_says_is_read() {
        let meminfo = "MemTotal:       24602324 kB\nMemFree:        1 kB\nMemAvailable:   23 kB\n";
        assert_eq!(available(meminfo), Some(23 * 1024));
        assert_eq!(available("MemTotal: 5 kB\n"), None);
        assert_eq!(inactive_file("anon 5\ninactive_file 8192\nfile 3\n"), Some(8192));
        assert!(default_bytes() > 0);
    }

    #[test]
    fn a_batch_shrinks_to_the_memory_and_never_below_a_page() {
        let config = smollm2();
        // 4 * (4 * 576 + 3 * 1536 + 2 * 192) bytes a token.
        assert_eq!(activation_bytes(&config), 29_184);
        assert_eq!(tokens_that_fit(&config, 4096, 1 << 30), 4096);
        assert_eq!(tokens_that_fit(&config, 4096, 29_184 * 100), 100);
        assert_eq!(tokens_that_fit(&config, 4096, 0), PAGE);
        assert_eq!(tokens_that_fit(&config, 1, 1 << 30), PAGE);
    }
}
