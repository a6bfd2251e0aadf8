//! Real servers for tests, each on a free loopback port and ended with its value: a nats-server with JetStream, and
//! moto's S3 server. Beside them a line that fails and a wire that breaks on demand, to put before one, and a network of
//! machines that loses packets.
//!
//! `tests/run` installs them; a test that lacks one fails and says so. Nothing here stands in for a server.

mod lan;
mod line;
mod moto;
mod wire;

pub use lan::Lan;
pub use line::{Fault, Line, Request};
pub use moto::{MOTO, Moto, moto_python};
pub use wire::{Condition, Wire};

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A nats-server, with JetStream in a folder of its own.
#[derive(Debug)]
pub struct NatsServer {
    process: Option<Child>,
    /// 0 until the system has given one.
    port: u16,
    folder: tempfile::TempDir,
}

impl NatsServer {
    /// Starts one and waits until it is ready.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder for JetStream");
        let mut server = Self { process: None, port: 0, folder };
        server.restart();
        server
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its process, for signals.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Kills it as a power cut would, without its own goodbye. What JetStream wrote stays.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("the server can be killed");
            process.wait().expect("the server ends");
        }
    }

    /// Removes everything that JetStream has stored. The server must not run.
    ///
    /// # Panics
    /// When it runs, or the folder cannot be removed.
    pub fn wipe(&self) {
        assert!(self.process.is_none(), "kill the server first");
        std::fs::remove_dir_all(self.folder.path().join("jetstream")).expect("the folder can be removed");
    }

    /// Starts it again on the same port, with what is in its folder.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.kill();
        let program = nats_program();
        // The first time it chooses one itself: a port that was free a moment ago may not be any more.
        let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
        let mut process = Command::new(&program)
            .args(["--jetstream", "--addr", "127.0.0.1", "--port", &port, "--store_dir"])
            .arg(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}; run tests/run, which installs it", program.display()));
        let mut log = BufReader::new(process.stderr.take().expect("its log is piped"));
        let mut said = String::new();
        while !said.contains("Server is ready") {
            let read = log.read_line(&mut said).expect("its log can be read");
            assert!(read > 0, "nats-server ended: {said}");
        }
        let listens = said.lines().find_map(|line| line.split_once("client connections on 127.0.0.1:"));
        self.port = listens.and_then(|(_, port)| port.trim().parse().ok()).expect("it says where it listens");
        // Somebody must go on reading, or the server stops when the pipe is full.
        std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
        self.process = Some(process);
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// nats-server: the program that a variable names, or the one that `tests/run` installs.
pub fn nats_program() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/nats/bin/nats-server");
    std::env::var_os("RALLREC_NATS_SERVER").map_or(installed, PathBuf::from)
}
