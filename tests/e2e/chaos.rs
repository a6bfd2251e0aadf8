//! Everything goes wrong at once, with real processes: workers, coordinators and nats-server are killed and frozen,
//! JetStream's storage is wiped, wires to NATS are cut or fall silent, S3 is slow, answers 500 or not at all. A run of
//! 2,000 shards must end with what a quiet run makes.
//!
//! ```text
//! RALLREC_CHAOS=600 cargo test --release --workspace --test e2e -- chaos --nocapture
//! ```
//! for 600 seconds of it. Without the variable it is 30 seconds, and not run at all without `RALLREC_KILLS`. Which faults
//! come when follows from `RALLREC_CHAOS_SEED` (1, if there is none); what they meet does not.

use crate::{
    cluster::check,
    support::{Home, events, files, is},
};
use rallrec_test_servers::{Condition, Fault, Line, Moto, NatsServer, Wire};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

const STORE: &str = "s3://chaos/store";
pub(crate) const FAN: &str = "pipelines/fan.yaml";
const TASKS: usize = 2000;
const WORKERS: usize = 4;
const SLOTS: usize = 2;

/// What S3 does: nothing unusual, answers late, answers 500 to every other request, does not answer.
const S3: [&str; 4] = ["well", "slow", "answering 500", "away"];

/// A service, and the wire that joins it to NATS.
struct Service {
    arguments: Vec<String>,
    process: Option<Child>,
    wire: Wire,
}

impl Service {
    fn start(&mut self, home: &Home) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let mut command = home.command(&arguments);
        self.process = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    fn signal(&self, signal: &str) {
        if let Some(process) = &self.process {
            let _ = Command::new("kill").args([signal, &process.id().to_string()]).status();
        }
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What mends a fault.
#[derive(Clone, Copy, Debug)]
enum Mend {
    Start(usize),
    Thaw(usize),
    Join(usize),
    StartNats,
    ThawNats,
    S3,
}

/// The cluster, and what is wrong with it at the moment.
struct Chaos {
    home: Home,
    nats: NatsServer,
    /// Two coordinators, then the workers.
    services: Vec<Service>,
    s3: Arc<AtomicUsize>,
    mends: Vec<(Instant, Mend)>,
    fired: BTreeMap<&'static str, usize>,
    random: u64,
}

impl Chaos {
    fn new(s3: Arc<AtomicUsize>, s3_url: &str, addresses: &[u16], seed: u64) -> Self {
        let home = Home::new();
        let nats = NatsServer::start();
        let nats_port: u16 = nats.url().rsplit(':').next().unwrap().parse().unwrap();
        let credentials = home.path().join("credentials");
        std::fs::write(&credentials, "aws_access_key_id = AKIA1\naws_secret_access_key = secret\n").unwrap();
        let service = |number: usize| {
            let wire = Wire::to(nats_port);
            let (kind, more) = match addresses.get(number) {
                Some(port) => ("coordinator", format!("listen = \"127.0.0.1:{port}\"")),
                None => ("worker", format!("device = \"cpu\"\nslots = {SLOTS}\ngrace_seconds = 5")),
            };
            let config = home.path().join(format!("{kind}-{number}.toml"));
            let text = format!(
                "store = \"{STORE}\"\n{more}\n[nats]\nservers = [\"nats://127.0.0.1:{}\"]\n[s3]\nendpoint = \"{s3_url}\"\n\
                 credentials = \"{}\"\n",
                wire.port(),
                credentials.display()
            );
            std::fs::write(&config, text).unwrap();
            let arguments = [kind, "--config", &config.display().to_string()].map(str::to_owned);
            Service { arguments: arguments.to_vec(), process: None, wire }
        };
        let mut services: Vec<Service> = (0..addresses.len() + WORKERS).map(service).collect();
        services.iter_mut().for_each(|service| service.start(&home));
        Self { home, nats, services, s3, mends: Vec::new(), fired: BTreeMap::new(), random: seed }
    }

    /// The next number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % bound
    }

    fn seconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(1000 * from + self.below(1000 * (to - from) as usize) as u64)
    }

    /// Something goes wrong, and will be mended after a while. What is broken already is let be.
    fn strike(&mut self) {
        let coordinator = self.below(2);
        let worker = 2 + self.below(WORKERS);
        let any = self.below(2 + WORKERS);
        let (name, mend, after) = match self.below(10) {
            0 => ("worker killed", Mend::Start(worker), self.seconds(0, 4)),
            1 => ("worker frozen", Mend::Thaw(worker), self.seconds(2, 20)),
            2 => ("coordinator killed", Mend::Start(coordinator), self.seconds(1, 6)),
            3 => ("coordinator frozen", Mend::Thaw(coordinator), self.seconds(2, 8)),
            4 => ("nats-server killed", Mend::StartNats, self.seconds(0, 3)),
            5 => ("nats-server wiped", Mend::StartNats, self.seconds(0, 3)),
            6 => ("nats-server frozen", Mend::ThawNats, self.seconds(1, 6)),
            7 => ("wire to NATS cut", Mend::Join(any), self.seconds(1, 8)),
            8 => ("wire to NATS silent", Mend::Join(any), self.seconds(1, 12)),
            _ => ("S3 ill", Mend::S3, self.seconds(1, 8)),
        };
        let broken = |other: &Mend| match (mend, *other) {
            (Mend::Start(a) | Mend::Thaw(a), Mend::Start(b) | Mend::Thaw(b)) | (Mend::Join(a), Mend::Join(b)) => a == b,
            (Mend::StartNats | Mend::ThawNats, Mend::StartNats | Mend::ThawNats) | (Mend::S3, Mend::S3) => true,
            _ => false,
        };
        if self.mends.iter().any(|(_, other)| broken(other)) {
            return;
        }
        *self.fired.entry(name).or_default() += 1;
        match (name, mend) {
            ("nats-server wiped", _) => {
                self.nats.kill();
                self.nats.wipe();
            }
            (_, Mend::StartNats) => self.nats.kill(),
            (_, Mend::ThawNats) => signal_nats(&self.nats, "-STOP"),
            (_, Mend::Start(number)) => self.services[number].kill(),
            (_, Mend::Thaw(number)) => self.services[number].signal("-STOP"),
            ("wire to NATS cut", Mend::Join(number)) => self.services[number].wire.set(Condition::Cut),
            (_, Mend::Join(number)) => self.services[number].wire.set(Condition::Silent),
            (_, Mend::S3) => {
                let how = 1 + self.below(S3.len() - 1);
                self.s3.store(how, Ordering::Relaxed);
            }
        }
        self.mends.push((Instant::now() + after, mend));
    }

    /// Mends what is due; everything with `all`. Services that ended by themselves are started again, as systemd would.
    fn mend(&mut self, all: bool) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.mends).into_iter().partition(|(at, _)| all || *at <= now);
        self.mends = later;
        let due: Vec<(Instant, Mend)> = due;
        for (_, mend) in due {
            match mend {
                Mend::StartNats => self.nats.restart(),
                Mend::ThawNats => signal_nats(&self.nats, "-CONT"),
                Mend::Start(number) => self.services[number].start(&self.home),
                Mend::Thaw(number) => self.services[number].signal("-CONT"),
                Mend::Join(number) => self.services[number].wire.set(Condition::Whole),
                Mend::S3 => self.s3.store(0, Ordering::Relaxed),
            }
        }
        for service in &mut self.services {
            if let Some(process) = &mut service.process
                && process.try_wait().unwrap().is_some()
            {
                *self.fired.entry("(service ended by itself)").or_default() += 1;
                service.start(&self.home);
            }
        }
    }
}

fn signal_nats(nats: &NatsServer, signal: &str) {
    if let Some(pid) = nats.pid() {
        let _ = Command::new("kill").args([signal, &pid.to_string()]).status();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Every artifact's tables, by key, without what differs between two runs that make the same.
pub(crate) fn tables(key: &str, manifest: &[u8]) -> (String, Value) {
    let mut manifest: Value = serde_json::from_slice(manifest).unwrap();
    let mut tables = manifest["tables"].take();
    for table in tables.as_object_mut().unwrap().values_mut() {
        for part in table["parts"].as_array_mut().unwrap() {
            part.as_object_mut().unwrap().remove("path");
        }
    }
    (key.to_owned(), tables)
}

/// What a quiet run of one process makes of so many tasks.
pub(crate) fn quiet(tasks: usize) -> BTreeMap<String, Value> {
    let home = Home::new();
    home.run(&[FAN, "--set", &format!("tasks={tasks}"), "--slots", "8"]);
    let found = files(&home.path().join("store/artifacts")).into_iter();
    let manifests = found.filter(|f| f.file_name().is_some_and(|n| n == "manifest.json"));
    let key = |file: &Path| file.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    manifests.map(|file| tables(&key(&file), &std::fs::read(&file).unwrap())).collect()
}

/// How many tasks were begun more than once.
pub(crate) fn begun_again(events: &[Value]) -> usize {
    let mut began: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for event in events.iter().filter(|e| is(e, "task_started")) {
        let task = (event["stage"].to_string(), event["shard"].to_string());
        began.entry(task).or_default().insert(event["attempt"].to_string());
    }
    began.values().filter(|attempts| attempts.len() > 1).count()
}

#[test]
fn chaos() {
    let seconds = match (std::env::var("RALLREC_CHAOS"), std::env::var("RALLREC_KILLS")) {
        (Ok(seconds), _) => seconds.parse().expect("RALLREC_CHAOS is a number of seconds"),
        (_, Ok(_)) => 30,
        _ => return,
    };
    let seed = std::env::var("RALLREC_CHAOS_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let Some(moto) = Moto::start("chaos") else { return };
    let s3 = Arc::new(AtomicUsize::new(0));
    let how = Arc::clone(&s3);
    let line = Line::to(moto.port(), move |request| match S3[how.load(Ordering::Relaxed)] {
        "slow" => Fault::Slow(Duration::from_millis(500)),
        "answering 500" if request.number.is_multiple_of(2) => {
            [Fault::Refused, Fault::DoneThenRefused][request.number / 2 % 2]
        }
        "away" => Fault::Cut,
        _ => Fault::None,
    });
    let ports = [free_port(), free_port()];
    let mut chaos = Chaos::new(s3, &line.url(), &ports, seed);
    // All slots together are busy for about two thirds of the time.
    let each = seconds * 1000 * (WORKERS * SLOTS) as u64 * 2 / 3 / TASKS as u64;
    let addresses = ports.map(|port| format!("http://127.0.0.1:{port}")).join(",");
    let (set_tasks, set_each) = (format!("tasks={TASKS}"), format!("milliseconds={each}"));
    let arguments =
        ["submit", FAN, "--wait", "--json", "--set", &set_tasks, "--set", &set_each, "--coordinator", &addresses];
    let told = tempfile::NamedTempFile::new().unwrap();
    let mut command = chaos.home.command(&arguments);
    let mut submitted = command.stdout(told.reopen().unwrap()).spawn().unwrap();
    let begun = Instant::now();
    let mut next = begun + Duration::from_secs(5);
    let ended = loop {
        if let Some(ended) = submitted.try_wait().unwrap() {
            break ended;
        }
        let quiet_now = begun.elapsed() > Duration::from_secs(seconds);
        if !quiet_now && Instant::now() >= next {
            chaos.strike();
            next = Instant::now() + chaos.seconds(1, 7);
        }
        chaos.mend(quiet_now);
        std::thread::sleep(Duration::from_millis(50));
    };
    let events = events(&std::fs::read_to_string(told.path()).unwrap());
    println!("{:.0} s, seed {seed}: {:?}", begun.elapsed().as_secs_f64(), chaos.fired);
    assert!(ended.success(), "{ended}: {:?}", events.last());
    check(&events);
    let again = begun_again(&events);
    println!("{again} of {TASKS} shards were begun more than once ({:.1} %)", 100.0 * again as f64 / TASKS as f64);
    let wanted = quiet(TASKS);
    assert_eq!(wanted.len(), TASKS + 2);
    for (key, wanted) in wanted {
        let manifest = moto.request("GET", &format!("/store/artifacts/{}/{key}/manifest.json", &key[..2]), b"");
        assert_eq!(tables(&key, &manifest).1, wanted, "{key}");
    }
    assert!(100 * again < 3 * TASKS, "{again} shards were begun more than once");
}
