//! Servers of others that tests run against, from Python environments that `tests/run` makes in `target/`.
//!
//! Where an environment is missing, a test that needs it says so and passes, unless `RALLREC_NO_SKIPS` is set: then it
//! fails, as in CI.

use crate::support::root;
use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

/// A server, ended when it is dropped.
pub(crate) struct Server {
    child: Child,
    log: Option<JoinHandle<()>>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts one, and waits for the line of its log that says that it is ready.
    pub(crate) fn start(command: &mut Command, ready: &str) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let hear = move |line: String| heard.lock().unwrap().push(line);
        let is_ready = lines.by_ref().any(|line| {
            let is_it = line.contains(ready);
            hear(line);
            is_it
        });
        assert!(is_ready, "the server ended:\n{}", said.lock().unwrap().join("\n"));
        // What it says later is read, so that it is not held up.
        let log = std::thread::spawn(move || lines.for_each(hear));
        Self { child, log: Some(log), said }
    }

    /// The lines of its log that hold this, so far.
    pub(crate) fn said(&self, what: &str) -> Vec<String> {
        self.said.lock().unwrap().iter().filter(|line| line.contains(what)).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = self.log.take() {
            let _ = log.join();
        }
    }
}

/// The Python that has a server's package: the one that a variable names, or the one in `target/`.
#[expect(clippy::print_stderr, reason = "a test that is not run should say so")]
pub(crate) fn python(variable: &str, environment: &str, package: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    let found = found.or_else(|| Some(root().join(environment).join("bin/python")).filter(|p| p.exists()));
    if found.is_none() {
        let told =
            format!("skipped: {package} is not here; tests/run installs it, or {variable} names a Python with it");
        assert!(std::env::var_os("RALLREC_NO_SKIPS").is_none(), "{told}");
        eprintln!("{told}");
    }
    found
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
