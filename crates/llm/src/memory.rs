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

/// Free bytes of this machine or, where it is less, of the control groups that the process is in.
fn free_bytes() -> Option<u64> {
    bytes("MemAvailable:", GroupFiles::free)
}

/// Bytes of this machine's memory or, where it is less, what the control groups that the process is in may have; `None` where
/// the system does not tell.
pub fn host_memory_bytes() -> Option<u64> {
    bytes("MemTotal:", GroupFiles::limit)
}

fn bytes(of_machine: &str, of_group: impl Fn(&GroupFiles, &Path) -> Option<u64>) -> Option<u64> {
    let machine = told(&read(Path::new("/proc/meminfo"))?, of_machine)?;
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    Some(least_in_groups(&groups, Path::new("/sys/fs/cgroup"), of_group).map_or(machine, |group| group.min(machine)))
}

/// The least that any of the process's control groups has, of version 1 or 2, up to the root: a group's limit
/// holds for all groups below it. `None` when none of them has a limit. A container may see its own group as the root
/// and still be told its path on the machine; what is not there has no limit.
fn least_in_groups(groups: &str, root: &Path, of_group: impl Fn(&GroupFiles, &Path) -> Option<u64>) -> Option<u64> {
    let least = groups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, files) = match controllers {
            "" => (root.to_owned(), &VERSION_2),
            _ if controllers.split(',').any(|controller| controller == "memory") => (root.join("memory"), &VERSION_1),
            _ => return None,
        };
        let groups = Path::new(path.trim_start_matches('/')).ancestors();
        groups.filter_map(|group| of_group(files, &root.join(group))).min()
    });
    least.min()
}

/// Where a version of control groups says how much memory a group has.
struct GroupFiles {
    limit: &'static str,
    usage: &'static str,
    /// Of `memory.stat`: file cache of the group and those below it, which is given back when it is needed.
    cached: &'static str,
}

const VERSION_1: GroupFiles =
    GroupFiles { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", cached: "total_inactive_file " };
const VERSION_2: GroupFiles = GroupFiles { limit: "memory.max", usage: "memory.current", cached: "inactive_file " };

impl GroupFiles {
    /// Bytes that a group may take; `None` where it has no limit.
    fn limit(&self, group: &Path) -> Option<u64> {
        number(&group.join(self.limit))
    }

    /// Bytes that a group may still take; `None` where it has no limit.
    fn free(&self, group: &Path) -> Option<u64> {
        let cached = read(&group.join("memory.stat")).and_then(|stat| self.cached(&stat)).unwrap_or(0);
        Some(self.limit(group)?.saturating_sub(number(&group.join(self.usage))?.saturating_sub(cached)))
    }

    fn cached(&self, stat: &str) -> Option<u64> {
        stat.lines().find_map(|line| line.strip_prefix(self.cached))?.trim().parse().ok()
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// "max" is no number: no limit.
fn number(file: &Path) -> Option<u64> {
    read(file)?.trim().parse().ok()
}

/// Bytes that a line of `/proc/meminfo` tells. `MemAvailable:` is what Linux says can be taken without swapping.
fn told(meminfo: &str, of_machine: &str) -> Option<u64> {
    let kibibytes = meminfo.lines().find_map(|line| line.strip_prefix(of_machine))?;
    Some(kibibytes.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
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
        assert_eq!(told(meminfo, "MemAvailable:"), Some(23 * 1024));
        assert_eq!(told(meminfo, "MemTotal:"), Some(24_602_324 * 1024));
        assert_eq!(told("MemTotal: 5 kB\n", "MemAvailable:"), None);
        assert!(host_memory_bytes() >= free_bytes());
        assert!(default_bytes() > 0);
    }

    /// Control groups as files: of each its path, its limit, what it uses, and its `memory.stat`.
    fn groups(files: &GroupFiles, groups: &[(&str, &str, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, limit, usage, stat) in groups {
            let folder = root.path().join(path);
            fs::create_dir_all(&folder).unwrap();
            for (name, text) in [(files.limit, limit), (files.usage, usage), ("memory.stat", stat)] {
                fs::write(folder.join(name), text).unwrap();
            }
        }
        root
    }

    #[test]
    fn a_group_has_what_all_groups_above_it_leave() {
        let all = [
            ("a", "1000\n", "700\n", "anon 5\ninactive_file 100\nfile 3\n"),
            ("a/b", "max\n", "650\n", "inactive_file 100\n"),
            ("a/b/c", "900\n", "300\n", ""),
        ];
        let two = groups(&VERSION_2, &all);
        let free = |path: &str| least_in_groups(&format!("1:cpu:/x\n0::{path}\n"), two.path(), GroupFiles::free);
        assert_eq!(free("/a/b/c"), Some(400), "the group two levels above is the fullest");
        assert_eq!(free("/a/b"), Some(400));
        assert_eq!(free("/"), None);
        assert_eq!(least_in_groups("0::/a/b/c\n", two.path(), GroupFiles::limit), Some(900));
        // A container's group is its root, whatever its path on the machine.
        let own = groups(&VERSION_2, &[("", "1000", "990", "")]);
        assert_eq!(least_in_groups("0::/kubepods/pod1/x\n", own.path(), GroupFiles::free), Some(10));
        let one = groups(
            &VERSION_1,
            &[
                ("memory/a", "500", "450", "inactive_file 1\ntotal_inactive_file 50\n"),
                ("memory/a/b", "9223372036854771712", "400", ""),
            ],
        );
        let lines = "5:cpu,cpuacct:/a\n4:hugetlb,memory:/a/b\n";
        assert_eq!(least_in_groups(lines, one.path(), GroupFiles::free), Some(100));
        assert_eq!(least_in_groups("", one.path(), GroupFiles::free), None);
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
