//! Drives the real binary: a home of its own for each test, the language model pulled once for all.

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Once, OnceLock},
};

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// A home of its own, whose sources are the repository's: pulled once, by the product itself.
pub(crate) struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    /// An empty home that shares the pulled sources.
    pub(crate) fn new() -> Self {
        let home = Self::apart();
        std::os::unix::fs::symlink(pulled().join("sources"), home.path().join("sources")).expect("a link");
        home
    }

    /// An empty home with no sources.
    pub(crate) fn apart() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// Its folder.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// A home with a copy of this one's store, as it is now.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new();
        let copied = Command::new("cp").arg("-a").arg(self.path().join("store")).arg(copy.path()).status();
        assert!(copied.expect("cp runs").success());
        copy
    }

    /// A command in this home.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = rallrec();
        command.args(arguments).arg("--home").arg(self.path()).arg("--color").arg("never");
        command
    }

    /// Runs a command to its end.
    pub(crate) fn call(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("rallrec runs")
    }

    /// Runs a command that must succeed; gives what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "rallrec {arguments:?}: {}\n{out}\n{err}", output.status);
        out.into_owned()
    }

    /// Runs a pipeline to its end and gives its events.
    pub(crate) fn run(&self, arguments: &[&str]) -> Vec<Value> {
        let arguments = [&["run", "--json"], arguments].concat();
        events(&self.ok(&arguments))
    }

    /// Starts a run whose events can be read as they come.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(&[&["run", "--json"], arguments].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("rallrec runs")
    }
}

/// The repository's home, with the language model in it.
fn pulled() -> PathBuf {
    static PULL: Once = Once::new();
    let shared = root().join(".rallrec");
    PULL.call_once(|| {
        let pulled = rallrec().args(["models", "pull", "smollm2-135m-instruct", "--home"]).arg(&shared).output();
        let pulled = pulled.expect("rallrec runs");
        assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    });
    shared
}

/// The language model's file.
pub(crate) fn smollm2() -> PathBuf {
    let found = files(&pulled().join("sources/smollm2-135m-instruct")).into_iter();
    found.into_iter().find(|path| path.extension().is_some_and(|e| e == "gguf")).expect("the model's file")
}

/// The tiny models of every family that `crates/llm` is tested with, unpacked once a test program.
pub(crate) fn families() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let unpack = || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let archive = std::fs::File::open(root().join("crates/llm/tests/fixtures/families.zip")).expect("the fixtures");
        zip::ZipArchive::new(archive).expect("an archive").extract(folder.path()).expect("room for the fixtures");
        folder
    };
    FOLDER.get_or_init(unpack).path()
}

fn rallrec() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rallrec"));
    command.current_dir(root()).env_remove("RALLREC_HOME").env_remove("RALLREC_STORE");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.env("NO_PROXY", "127.0.0.1");
    command
}

/// The events of `--json` output.
pub(crate) fn events(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Whether an event is of this name.
pub(crate) fn is(event: &Value, name: &str) -> bool {
    event["event"] == name
}

/// The stages of the events of one name, each once, sorted.
pub(crate) fn stages_of(events: &[Value], name: &str) -> Vec<String> {
    let mut stages: Vec<String> =
        events.iter().filter(|e| is(e, name)).filter_map(|e| e["stage"].as_str().map(str::to_owned)).collect();
    stages.sort();
    stages.dedup();
    stages
}

/// All files below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut found: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect();
    found.sort();
    found
}
