//! What memory a worker has to offer: told in its file, or asked of the machine.

use super::config::WorkerConfig;
use crate::failure::Failure;
use std::process::Command;

/// Of the device's memory, what models' weights may take: the rest is for what is computed with them.
const MODELS_SHARE: (u64, u64) = (3, 4);

/// A worker's memory, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// Of the host.
    pub(super) host_mb: u64,
    /// Of the accelerator, where there is one.
    pub(super) gpu_mb: Option<u64>,
    /// What models' weights may take.
    pub(super) models_mb: u64,
}

impl Memory {
    /// # Errors
    /// When there is a CUDA device, its memory is not told, and its driver's program cannot be asked.
    pub(super) fn of(config: &WorkerConfig) -> Result<Self, Failure> {
        let host_mb = config.memory_mb.unwrap_or_else(|| rallrec_llm::host_memory_bytes().unwrap_or(0) >> 20);
        let gpu_mb = match (config.gpu_memory_mb, rallrec_llm::cuda_index(&config.device)) {
            (Some(told), _) => Some(told),
            (None, Some(index)) => Some(gpu_mb("nvidia-smi", index)?),
            (None, None) => None,
        };
        let (part, whole) = MODELS_SHARE;
        let models_mb = config.model_memory_mb.unwrap_or_else(|| gpu_mb.unwrap_or(host_mb) / whole * part);
        Ok(Self { host_mb, gpu_mb, models_mb })
    }
}

/// Memory of a CUDA device, as its driver's program tells it.
fn gpu_mb(program: &str, index: usize) -> Result<u64, Failure> {
    let unknown = |what: String| {
        Failure::Unreachable(format!(
            "the memory of cuda:{index} is not known: {program} {what}; set `gpu_memory_mb` in worker.toml"
        ))
    };
    let asked = Command::new(program)
        .args(["--query-gpu=memory.total", "--format=csv,noheader,nounits", &format!("--id={index}")])
        .output()
        .map_err(|e| unknown(format!("cannot be run: {e}")))?;
    let said = String::from_utf8_lossy(&asked.stdout);
    said.trim().parse().map_err(|_| {
        unknown(format!(
            "said `{}` ({})",
            format!("{said}{}", String::from_utf8_lossy(&asked.stderr)).trim(),
            asked.status
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs no GPU: a program that answers as the driver's does.
    #[test]
    #[cfg(unix)]
    fn a_gpu_is_asked_through_its_drivers_program() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = |name: &str, script: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let one = program("one", "test \"$3\" = --id=1 && echo ' 81559'");
        assert_eq!(gpu_mb(&one, 1).unwrap(), 81559);
        let none = program("none", "echo 'No devices were found'; exit 6");
        let refused = gpu_mb(&none, 0).unwrap_err().to_string();
        assert!(refused.contains("No devices were found") && refused.contains("set `gpu_memory_mb`"), "{refused}");
        assert!(gpu_mb("no-such-program", 0).unwrap_err().to_string().contains("cannot be run"));
    }
}
