//! The kernels' sources: `rallrec-kernels` is asked to write them, in a build of its own, so that this crate's tests need
//! no CubeCL.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A kernel as CUDA C++.
pub(super) struct Kernel {
    /// Name of its function.
    pub(super) symbol: String,
    /// Units of a cube.
    pub(super) units: u32,
    /// Shared memory of a cube.
    pub(super) shared_bytes: usize,
    pub(super) source: String,
}

/// Kernels by the names that `crates/kernels/examples/emit.rs` gives them.
pub(super) fn kernels(names: &[&str]) -> Vec<Kernel> {
    let folder = sources();
    let kernel = |name: &&str| {
        let path = folder.join(format!("{name}.cu"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (first, source) = text.split_once('\n').unwrap();
        let [symbol, units, shared_bytes] = first.trim_start_matches("// ").split(' ').collect::<Vec<_>>()[..] else {
            panic!("{}: its first line is {first:?}", path.display());
        };
        Kernel {
            symbol: symbol.into(),
            units: units.parse().unwrap(),
            shared_bytes: shared_bytes.parse().unwrap(),
            source: source.into(),
        }
    };
    names.iter().map(kernel).collect()
}

/// The folder with the sources: `RALLREC_KERNELS_EMITTED`, or the one that they are written to now.
fn sources() -> PathBuf {
    if let Some(folder) = std::env::var_os("RALLREC_KERNELS_EMITTED") {
        return folder.into();
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/kernels");
    let folder = target.join("emitted");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["run", "--release", "--locked", "-p", "rallrec-kernels", "--features", "emit", "--example", "emit"]);
    command.arg("--").arg(&folder).env("CARGO_TARGET_DIR", &target).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}
