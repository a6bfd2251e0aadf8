//! A cluster of real processes: nats-server, two coordinators, two workers, one store.

use crate::support::{Home, files, is};
use rallrec_test_servers::NatsServer;
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

pub(crate) const TINY: &str = "tests/pipelines/tiny.yaml";

/// A process that is killed when the test ends.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Everything of a cluster that is not a service of ours.
pub(crate) struct Cluster {
    pub(crate) home: Home,
    pub(crate) nats: NatsServer,
    pub(crate) addresses: Vec<String>,
    /// Where the store is, and the table that says how it is reached.
    store: String,
    s3: String,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let home = Home::new();
        let store = home.path().join("store").display().to_string();
        Self { home, nats: NatsServer::start(), addresses: Vec::new(), store, s3: String::new() }
    }

    /// With a store in S3.
    pub(crate) fn in_s3(store: &str, s3: &str) -> Self {
        Self { store: store.to_owned(), s3: s3.to_owned(), ..Self::new() }
    }

    pub(crate) fn store(&self) -> PathBuf {
        PathBuf::from(&self.store)
    }

    pub(crate) fn config(&self, name: &str, more: &str) -> String {
        let path = self.home.path().join(name);
        let Self { store, s3, .. } = self;
        let text = format!("store = \"{store}\"\n{more}\n[nats]\nservers = [\"{}\"]\n{s3}", self.nats.url());
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Starts a service and waits until it has said its first line, which comes back.
    fn service(&self, arguments: &[&str]) -> (Process, String) {
        let mut command = self.home.command(arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let first = lines.next().unwrap_or_default();
        assert!(first.contains("of cluster"), "{arguments:?}: {first}");
        // What it says later is read, so that it is not held up.
        std::thread::spawn(move || lines.for_each(drop));
        (Process(child), first)
    }

    pub(crate) fn coordinator(&mut self) -> Process {
        self.coordinator_with("listen = \"127.0.0.1:0\"")
    }

    /// With these lines in its file.
    pub(crate) fn coordinator_with(&mut self, lines: &str) -> Process {
        let config = self.config("coordinator.toml", lines);
        let (process, first) = self.service(&["coordinator", "--config", &config]);
        let (_, address) = first.rsplit_once(' ').expect("an address");
        self.addresses.push(address.to_owned());
        process
    }

    pub(crate) fn worker(&self, name: &str) -> Process {
        self.worker_with(name, "")
    }

    /// With these lines in its file.
    pub(crate) fn worker_with(&self, name: &str, lines: &str) -> Process {
        let lines = format!("device = \"cpu\"\ngrace_seconds = 5\n{lines}");
        let config = self.config(&format!("worker-{name}.toml"), &lines);
        self.service(&["worker", "--config", &config]).0
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        self.home.ok(&[arguments, &["--coordinator", &self.addresses.join(",")]].concat())
    }

    /// Follows a run's events as they come.
    pub(crate) fn watch(&self, run: &str) -> (Process, impl Iterator<Item = Value> + use<>) {
        let addresses = self.addresses.join(",");
        let mut command = self.home.command(&["watch", run, "--json", "--coordinator", &addresses]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        (Process(child), lines.map(|line| serde_json::from_str(&line).unwrap()))
    }
}

/// What one process makes of the pipeline.
pub(crate) fn expected() -> (String, Vec<Vec<u8>>) {
    let quiet = Home::new();
    quiet.run(&[TINY]);
    (quiet.ok(&["report", "last", "--format", "json"]), adapters(&quiet.path().join("store")))
}

fn adapters(store: &Path) -> Vec<Vec<u8>> {
    let found = files(&store.join("artifacts"));
    let adapters = found.iter().filter(|f| f.file_name().is_some_and(|n| n == "adapter-00000.parquet"));
    adapters.map(|file| std::fs::read(file).unwrap()).collect()
}

/// Every task is completed exactly once, and nothing is handed out after that.
pub(crate) fn check(events: &[Value]) {
    let mut completed = std::collections::BTreeSet::new();
    for event in events {
        let task = (event["stage"].to_string(), event["shard"].to_string());
        if is(event, "task_committed") || is(event, "task_reused") {
            assert!(completed.insert(task.clone()), "{task:?} was completed twice");
        } else if is(event, "task_dispatched") {
            assert!(!completed.contains(&task), "{task:?} was completed and handed out again");
        }
    }
    assert!(events.iter().any(|e| is(e, "run_finished") && e["outcome"] == "done"), "the run is done");
}

#[test]
fn a_cluster_makes_what_one_process_makes() {
    let (report, adapter) = expected();
    let mut cluster = Cluster::new();
    let _leader = cluster.coordinator();
    let _workers = [cluster.worker("a"), cluster.worker("b")];
    let events = crate::support::events(&cluster.ask(&["submit", TINY, "--wait", "--json"]));
    check(&events);
    assert_eq!(cluster.home.ok(&["report", "last", "--format", "json"]), report);
    assert!(adapters(&cluster.store()) == adapter, "another adapter");
    let workers = cluster.ask(&["workers"]);
    assert_eq!(workers.lines().filter(|line| line.contains("ready")).count(), 2, "{workers}");
    // Handed in again, nothing is computed.
    let again = crate::support::events(&cluster.ask(&["submit", TINY, "--wait", "--json"]));
    check(&again);
    assert!(!again.iter().any(|e| is(e, "task_dispatched")), "something was computed again");
    let status = cluster.ask(&["status"]);
    assert_eq!(status.lines().filter(|line| line.contains(" done ")).count(), 2, "{status}");
}

#[test]
fn the_leader_and_a_worker_are_killed() {
    let (report, adapter) = expected();
    let mut cluster = Cluster::new();
    let mut leader = cluster.coordinator();
    // Answered once it leads: whoever starts later stands by.
    cluster.ask(&["status"]);
    let _standby = cluster.coordinator();
    let mut first = cluster.worker("a");
    let _second = cluster.worker("b");
    let run = cluster.ask(&["submit", TINY]).trim().to_owned();
    let (mut watching, told) = cluster.watch(&run);
    let mut events = Vec::new();
    let mut commits = 0;
    for event in told {
        commits += usize::from(is(&event, "task_committed"));
        events.push(event);
        match commits {
            6 => leader.kill(),
            16 => first.kill(),
            _ => {}
        }
        commits += usize::from(matches!(commits, 6 | 16));
    }
    let ended = watching.0.wait().unwrap();
    assert!(ended.success(), "{ended}, after {:?}", events.last());
    check(&events);
    assert!(events.iter().any(|e| is(e, "run_taken_over")), "the standby took over");
    assert_eq!(cluster.home.ok(&["report", "last", "--format", "json"]), report);
    assert!(adapters(&cluster.store()) == adapter, "another adapter");
}

#[test]
fn a_worker_that_is_told_to_stop_drains() {
    let mut cluster = Cluster::new();
    let _leader = cluster.coordinator();
    let mut worker = cluster.worker("a");
    let pid = worker.0.id().to_string();
    let ended = std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(ended.success() && worker.0.wait().unwrap().success(), "an idle worker ends at once, and well");
    let none = cluster.ask(&["workers"]);
    assert!(!none.contains("ready"), "{none}");
}
