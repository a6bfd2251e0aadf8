//! Runs emitted kernels on the host: compiles them with the machine's C++ compiler against `shim/cuda.h`.
//!
//! With `RALLREC_KERNELS_ON=cuda` the same launches run on the machine's CUDA device instead (`device.py`), and all that
//! is compared is compared there. `RALLREC_NVRTC` is then the path of libnvrtc, and `RALLREC_CUDA_INCLUDE` the folders of
//! CUDA's headers, separated by colons; `RALLREC_KERNELS_TMP` and `RALLREC_KERNELS_SCRIPT` say where to write sources and
//! where `device.py` is, on a machine without this repository.

use super::emit::Kernel;
use std::{
    fmt::Write as _,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

/// Some kernels as a program that runs one launch of them.
pub(crate) struct Host {
    program: PathBuf,
    kernels: Vec<Kernel>,
}

/// A scalar argument.
#[derive(Clone, Copy)]
pub(crate) enum Scalar {
    F32(f32),
    U32(u32),
}

impl Host {
    /// Compiles some kernels, with the compiler's checks for accesses outside of buffers and for undefined behaviour.
    pub(crate) fn new(name: &str, kernels: Vec<Kernel>) -> Self {
        // Set where integration tests are compiled.
        let tmp = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = path_or("RALLREC_KERNELS_TMP", tmp);
        let (text, program) = (folder.join(format!("{name}.cpp")), folder.join(name));
        if on_device() {
            for (index, kernel) in kernels.iter().enumerate() {
                let path = program.with_extension(format!("{index}.cu"));
                std::fs::write(path, &kernel.source).expect("the target folder can be written");
            }
            return Self { program, kernels };
        }
        std::fs::write(&text, program_text(&kernels)).expect("the target folder can be written");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
        let shim = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels/tests/without_gpu/shim");
        let output = Command::new(&compiler)
            .args(["-std=c++17", "-O1", "-ffp-contract=off", "-w", "-fsanitize=address,undefined"])
            .args(["-fno-sanitize-recover=undefined", "-I", shim, "-o"])
            .args([&program, &text])
            .output()
            .unwrap_or_else(|e| panic!("cannot run the C++ compiler {compiler:?} (set CXX to another): {e}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { program, kernels }
    }

    /// What runs a launch of the kernel.
    fn command(&self, kernel: usize) -> Command {
        if !on_device() {
            return Command::new(&self.program);
        }
        let path = |name| std::env::var_os(name).unwrap_or_else(|| panic!("{name} is set, see host.rs"));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels/tests/without_gpu/device.py");
        let mut command = Command::new("python3");
        command
            .arg(path_or("RALLREC_KERNELS_SCRIPT", script))
            .arg(path("RALLREC_NVRTC"))
            .arg(path("RALLREC_CUDA_INCLUDE"));
        command.arg(&self.kernels[kernel].symbol).arg(self.program.with_extension(format!("{kernel}.cu")));
        command.arg(self.kernels[kernel].shared_bytes.to_string());
        command
    }

    /// Launches a kernel on a grid; the buffers are changed in place.
    pub(crate) fn launch(&self, kernel: usize, grid: [u32; 2], scalars: &[Scalar], buffers: &mut [&mut Vec<u8>]) {
        let units = self.kernels[kernel].units;
        let info = self.kernels[kernel].info(scalars);
        let mut input = Vec::new();
        let total = buffers.len() as u32 + u32::from(info.is_some());
        for number in [kernel as u32, grid[0], grid[1], 1, units, buffers.len() as u32, total] {
            input.extend(number.to_le_bytes());
        }
        for argument in buffers.iter().map(|buffer| &**buffer).chain(&info) {
            input.extend((argument.len() as u64).to_le_bytes());
            input.extend(argument);
        }
        let mut child = self
            .command(kernel)
            // Threads are coroutines on stacks of their own, which the sanitizer's second stack does not follow.
            .env("ASAN_OPTIONS", "detect_stack_use_after_return=0:detect_leaks=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program was just compiled");
        let mut stdin = child.stdin.take().expect("it is piped");
        let output = std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(&input));
            child.wait_with_output().expect("the program ends")
        });
        let symbol = &self.kernels[kernel].symbol;
        assert!(output.status.success(), "{symbol}: {}", String::from_utf8_lossy(&output.stderr));
        let mut rest = output.stdout.as_slice();
        for buffer in buffers {
            let (values, later) = rest.split_at(buffer.len());
            buffer.copy_from_slice(values);
            rest = later;
        }
    }
}

fn path_or(variable: &str, path: impl Into<PathBuf>) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| path.into(), PathBuf::from)
}

fn on_device() -> bool {
    std::env::var_os("RALLREC_KERNELS_ON").is_some_and(|place| place == "cuda")
}

fn program_text(kernels: &[Kernel]) -> String {
    let mut text = String::from("#include \"cuda.h\"\n");
    let mut cases = String::new();
    for (index, kernel) in kernels.iter().enumerate() {
        // A name space each: every source defines the same types.
        let _ = writeln!(text, "namespace kernel_{index} {{");
        let shared = kernel.shared_name().unwrap_or("no_shared");
        let _ = writeln!(text, "alignas(1024) char {shared}[{}];", kernel.shared_bytes.max(1));
        let _ = writeln!(text, "{}\n}}", without_assembly(&kernel.source));
        let symbol = &kernel.symbol;
        let shared = format!("kernel_{index}::{shared}, sizeof kernel_{index}::{shared}");
        let launch = format!("host::launch(kernel_{index}::{symbol}, grid, count, arguments, {shared})");
        let _ = writeln!(cases, "case {index}: {launch}; break;");
    }
    let _ = write!(
        text,
        "int main() {{ return host::serve([](unsigned kernel, Place grid, unsigned count, void **arguments) {{\n\
         switch (kernel) {{\n{cases}}}\n}}); }}\n"
    );
    text
}

/// Puts the shim's function in the place of the one instruction that kernels have as assembly text.
fn without_assembly(source: &str) -> String {
    const ADD: &str = "asm volatile(\"atom.relaxed.add.u32 %0, [%1], %2;\" : \"=r\"(result) : \"l\"";
    let line = |line: &str| match line.strip_prefix(ADD).and_then(|operands| operands.split_once(", \"r\"")) {
        Some((address, value)) => format!("result = atomicAdd({address}, {value}"),
        None => line.into(),
    };
    source.lines().map(line).collect::<Vec<String>>().join("\n")
}

impl Kernel {
    fn between(&self, before: &str, after: &str) -> Option<&str> {
        let start = self.source.find(before)? + before.len();
        let length = self.source[start..].find(after)?;
        Some(&self.source[start..start + length])
    }

    fn shared_name(&self) -> Option<&str> {
        self.between("extern __shared__ ", "[]")?.rsplit(' ').next()
    }

    /// The structure with the scalars, by type in the order of the parameters; lengths of buffers stay 0.
    fn info(&self, scalars: &[Scalar]) -> Option<Vec<u8>> {
        let fields = self.between("struct info_st {", "};")?;
        if !self.source.contains("info_st const") {
            assert!(scalars.is_empty());
            return None;
        }
        let mut bytes = Vec::new();
        for field in fields.split(';').filter(|field| !field.trim().is_empty()) {
            let (name, length) = field.trim().trim_end_matches(']').split_once('[').expect("an array");
            // Lengths of buffers have 64 bits where places in them do.
            let size = if name.starts_with("uint64_t") { 8 } else { 4 };
            bytes.resize(bytes.len().next_multiple_of(size), 0);
            let begin = bytes.len();
            for scalar in scalars {
                match scalar {
                    Scalar::F32(x) if name.ends_with("scalars_f32") => bytes.extend(x.to_le_bytes()),
                    Scalar::U32(x) if name.ends_with("scalars_u32") => bytes.extend(x.to_le_bytes()),
                    _ => {}
                }
            }
            bytes.resize(begin + size * length.parse::<usize>().expect("a length"), 0);
        }
        Some(bytes)
    }
}
