//! Partitions with real packets: NATS, S3, two coordinators and two workers on machines of their own (network namespaces),
//! and a router between them that loses what it is told to lose. Nobody is told: connections stay open and nothing comes.
//!
//! What is not tried here: partitions together with kills, frozen processes and a failing S3. `chaos` has those, with
//! wires in place of packets.

use crate::{
    chaos::{FAN, begun_again, quiet, tables},
    cluster::check,
    servers::Server,
    support::{Home, is},
};
use rallrec_test_servers::{Lan, MOTO, moto_python, nats_program};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// So many that the run outlasts the partitions.
const TASKS: usize = 150;
/// What each of them waits.
const EACH: &str = "milliseconds=500";

const BUCKET: &str = r#"
import boto3, json, sys
s3 = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1", aws_access_key_id="A", aws_secret_access_key="S")
if sys.argv[2] == "make":
    s3.create_bucket(Bucket="partition")
else:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="partition", Prefix="store/artifacts/")
    keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
    read = lambda key: s3.get_object(Bucket="partition", Key=key)["Body"].read().decode()
    print(json.dumps({key.split("/")[-2]: read(key) for key in keys if key.endswith("/manifest.json")}))
"#;

/// Everything, on its machines.
struct Hosts {
    /// The first to be dropped: it ends whatever runs on it, for which the others wait.
    lan: Lan,
    home: Home,
    python: PathBuf,
    /// nats-server's and moto's.
    _servers: Vec<Server>,
    services: BTreeMap<&'static str, Server>,
}

impl Hosts {
    /// All of it but the services. `None` where something is missing that may be.
    fn new() -> Option<Self> {
        let python = moto_python()?;
        let lan = Lan::of(&["nats", "s3", "desk", "one", "two", "near", "far"])?;
        let home = Home::new();
        let mut nats = Command::new(nats_program());
        nats.args(["--jetstream", "--addr", &lan.address("nats"), "--store_dir"]).arg(home.path().join("nats"));
        let mut s3 = Command::new(&python);
        s3.args(["-c", MOTO, "-H", &lan.address("s3"), "-p", "9000"]);
        let servers = vec![
            Server::start(&mut lan.on("nats", &nats), "Server is ready"),
            Server::start(&mut lan.on("s3", &s3), "Running on"),
        ];
        let hosts = Self { lan, home, python, _servers: servers, services: BTreeMap::new() };
        hosts.bucket("make");
        Some(hosts)
    }

    fn bucket(&self, what: &str) -> Vec<u8> {
        let mut command = Command::new(&self.python);
        let url = format!("http://{}:9000", self.lan.address("s3"));
        let output = self.lan.on("desk", command.args(["-c", BUCKET, &url, what])).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn start(&mut self, kind: &str, machine: &'static str) {
        let credentials = self.home.path().join("credentials");
        std::fs::write(&credentials, "aws_access_key_id = A\naws_secret_access_key = S\n").unwrap();
        let more = match kind {
            "coordinator" => format!("listen = \"{}:7070\"\ninsecure = true", self.lan.address(machine)),
            _ => format!("device = \"cpu\"\ncache = \"{}\"", self.home.path().join(machine).display()),
        };
        let text = format!(
            "store = \"s3://partition/store\"\n{more}\n[nats]\nservers = [\"nats://{}:4222\"]\n[s3]\nendpoint = \"http://{}:9000\"\n\
             credentials = \"{}\"\n",
            self.lan.address("nats"),
            self.lan.address("s3"),
            credentials.display()
        );
        let config = self.home.path().join(format!("{machine}.toml"));
        std::fs::write(&config, text).unwrap();
        let command = self.home.command(&[kind, "--config", &config.display().to_string()]);
        self.services.insert(machine, Server::start(&mut self.lan.on(machine, &command), "of cluster"));
    }

    /// The leader, then the standby, then the workers.
    fn start_all(&mut self) {
        self.start("coordinator", "one");
        // Answered once it leads: whoever starts later stands by.
        self.ask(&["status"]);
        self.start("coordinator", "two");
        self.start("worker", "near");
        self.start("worker", "far");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let addresses = ["one", "two"].map(|machine| format!("http://{}:7070", self.lan.address(machine))).join(",");
        self.lan.on("desk", &self.home.command(&[arguments, &["--coordinator", &addresses]].concat()))
    }

    fn ask(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Submits so many tasks, and follows them.
    fn submit(&self, tasks: usize) -> Watch {
        let run = self.ask(&["submit", FAN, "--set", &format!("tasks={tasks}"), "--set", EACH]);
        let mut command = self.command(&["watch", run.trim(), "--json"]);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        Watch { process, lines: Box::new(lines), events: Vec::new() }
    }

    /// The name that a worker has given itself.
    fn worker(&self, machine: &str) -> String {
        self.services[machine].said("of cluster")[0].split(' ').nth(1).unwrap().to_owned()
    }

    /// That the run ended well, with every artifact that a quiet one makes.
    fn ends_as_a_quiet_run(&self, mut watch: Watch, tasks: usize) -> Vec<Value> {
        watch.until("the end", |event| is(event, "run_finished"));
        assert!(watch.process.wait().unwrap().success());
        check(&watch.events);
        let again = begun_again(&watch.events);
        assert!(failures(&watch.events).iter().all(|event| event["class"] == "lost"));
        assert!(100 * again < 3 * tasks, "{again} of {tasks} tasks were begun more than once");
        let found: BTreeMap<String, String> = serde_json::from_slice(&self.bucket("read")).unwrap();
        let found: BTreeMap<String, Value> = found.iter().map(|(key, text)| tables(key, text.as_bytes())).collect();
        let wanted = quiet(tasks);
        assert_eq!(found.len(), tasks + 2);
        assert!(found == wanted, "other results");
        std::mem::take(&mut watch.events)
    }
}

/// A run's events as they come.
struct Watch {
    process: Child,
    lines: Box<dyn Iterator<Item = String>>,
    events: Vec<Value>,
}

impl Watch {
    /// Reads on until this comes.
    fn until(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) {
        for line in self.lines.by_ref() {
            let event: Value = serde_json::from_str(&line).unwrap();
            let found = is_it(&event);
            self.events.push(event);
            if found {
                return;
            }
        }
        panic!("it ended before {what}: {:?}", failures(&self.events));
    }

    fn commits(&mut self, wanted: usize) {
        for _ in 0..wanted {
            self.until("more commits", |event| is(event, "task_committed"));
        }
    }
}

fn failures(events: &[Value]) -> Vec<&Value> {
    events.iter().filter(|event| is(event, "task_failed")).collect()
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A worker that is cut off until it counts as lost, and comes back while the run goes on.
fn a_worker_is_cut_off(cut: fn(&Lan), heal: fn(&Lan)) {
    let Some(mut hosts) = Hosts::new() else { return };
    hosts.start_all();
    let far = hosts.worker("far");
    let begins = |event: &Value| is(event, "task_started") && event["worker"] == far.as_str();
    let mut watch = hosts.submit(TASKS);
    watch.until("its first task", begins);
    let silent = Instant::now();
    cut(&hosts.lan);
    while hosts.ask(&["workers"]).contains(&far) {
        watch.commits(1);
    }
    assert!(silent.elapsed() > Duration::from_secs(13), "it was given time: {:?}", silent.elapsed());
    // What it had in hand was given to the other one.
    watch.commits(4);
    heal(&hosts.lan);
    watch.until("its return", begins);
    assert!(hosts.ask(&["workers"]).contains(&far));
    let events = hosts.ends_as_a_quiet_run(watch, TASKS);
    assert!(!failures(&events).is_empty(), "what it had in hand was lost");
}

#[test]
fn a_worker_s_cable_is_pulled() {
    a_worker_is_cut_off(|lan| lan.unplug("far"), |lan| lan.plug("far"));
}

#[test]
fn a_worker_hears_and_is_not_heard() {
    a_worker_is_cut_off(|lan| lan.block("far", "nats"), |lan| lan.pass("far", "nats"));
}

/// The leader reaches the store and people reach it, but its words and those of the workers vanish. The standby leads;
/// the former leader finds out by the store alone. Then the same the other way round.
#[test]
fn a_leader_is_cut_off_from_nats_alone() {
    let Some(mut hosts) = Hosts::new() else { return };
    hosts.start_all();
    let mut watch = hosts.submit(TASKS);
    watch.commits(4);
    for leader in ["one", "two"] {
        hosts.lan.block(leader, "nats");
        hosts.lan.block("nats", leader);
        watch.until("another leader", |event| is(event, "run_taken_over"));
        while hosts.services[leader].said("stands by").is_empty() {
            watch.commits(1);
        }
        hosts.lan.pass(leader, "nats");
        hosts.lan.pass("nats", leader);
        watch.commits(4);
    }
    let events = hosts.ends_as_a_quiet_run(watch, TASKS);
    assert_eq!(events.iter().filter(|event| is(event, "run_taken_over")).count(), 2, "healed, it only stands by");
}
