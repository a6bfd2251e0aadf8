//! Models from `s3://`: pulled by the real binary from a real S3 server, moto's, and computed with.
//!
//! `tests/run` installs the server into `target/moto` (`RALLREC_MOTO_PYTHON` names another Python that has it).

use crate::{
    servers::free_port,
    support::{Home, events, families, files, smollm2, stages_of},
};
use rallrec_test_servers::Moto;
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

const PIPELINE: &str = "tests/pipelines/embed.yaml";
const BUCKET: &str = "models";
const SECRET: &str = "wJalr-e2e-6d0b41";

/// A server with an empty bucket, where it is installed.
fn start() -> Option<Moto> {
    Moto::start(BUCKET)
}

/// Puts a file into the bucket.
fn put(moto: &Moto, key: &str, file: &Path) {
    moto.put(key, &std::fs::read(file).unwrap());
}

/// A command that asks a server at this address for its buckets.
fn asking(home: &Home, url: &str, arguments: &[&str]) -> Command {
    let mut command = home.command(arguments);
    command.env("AWS_ENDPOINT_URL", url).env("AWS_ACCESS_KEY_ID", "AKIA1").env("AWS_SECRET_ACCESS_KEY", SECRET);
    command
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The stages that a command computed.
fn computed(command: &mut Command) -> Vec<String> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    stages_of(&events(&String::from_utf8_lossy(&output.stdout)), "task_dispatched")
}

#[test]
fn models_in_a_bucket_are_pulled_pinned_and_computed_with() {
    let Some(moto) = start() else { return };
    let home = Home::apart();
    let (folder, gguf) = (families().join("llama2"), smollm2());
    for file in files(&folder) {
        let name = file.file_name().unwrap().to_str().unwrap();
        put(&moto, &format!("tiny/llama2/{name}"), &file);
    }
    put(&moto, "tiny/llama2/old/model.safetensors", &folder.join("config.json"));
    put(&moto, "tiny/llama2/README.md", &folder.join("config.json"));
    put(&moto, "smollm2/Q4_1.gguf", &gguf);
    let sources = ["--set", "model=s3://models/tiny/llama2/", "--set", "wide=s3://models/smollm2/Q4_1.gguf"];
    let run = [&["run", "--json", PIPELINE][..], &sources].concat();

    let plan = asking(&home, &moto.url(), &[&["plan", PIPELINE][..], &sources].concat()).output().unwrap();
    assert!(
        plan.status.success() && told(&plan).contains("`s3://models/tiny/llama2/` is not here yet"),
        "{}",
        told(&plan)
    );
    let offline = asking(&home, &moto.url(), &[&run[..], &["--offline"]].concat()).output().unwrap();
    assert_eq!(offline.status.code(), Some(3));
    assert!(told(&offline).contains("rallrec models pull s3://models/tiny/llama2/"), "{}", told(&offline));

    let stages = computed(&mut asking(&home, &moto.url(), &run));
    assert_eq!(stages, ["dataset", "embed", "retrieve", "score"]);
    // What lies there now is what lay in the bucket, so the same files here have the same keys.
    let own = [format!("model=file:{}", folder.display()), format!("wide=file:{}", gguf.display())];
    let own = ["run", "--json", PIPELINE, "--set", &own[0], "--set", &own[1]];
    assert_eq!(computed(&mut home.command(&own)), [""; 0]);

    // From then on nothing is asked: the server is gone, and what the bucket holds later is another matter.
    let url = moto.url();
    drop(moto);
    assert_eq!(computed(&mut asking(&home, &url, &[&run[..], &["--offline", "--new"]].concat())), [""; 0]);
    let verified =
        asking(&home, &url, &["models", "pull", "s3://models/smollm2/Q4_1.gguf", "--verify"]).output().unwrap();
    assert!(verified.status.success() && String::from_utf8_lossy(&verified.stdout).contains("sums are right"));
    for file in files(&home.path()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()), "the key is in {}", file.display());
    }
}

#[test]
fn what_a_bucket_does_not_give_is_told() {
    let Some(moto) = start() else { return };
    let home = Home::apart();
    let config = families().join("llama2/config.json");
    put(&moto, "tiny/config.json", &config);
    put(&moto, "many/a-Q4.gguf", &config);
    put(&moto, "many/a-Q8.gguf", &config);
    let pull = |url: &str, name: &str, change: &dyn Fn(&mut Command)| {
        let mut command = asking(&home, url, &["models", "pull", name]);
        change(&mut command);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", told(&output));
        assert!(!told(&output).contains(SECRET));
        told(&output)
    };
    for (name, wanted) in [
        ("s3://models/tiny", "it has weights neither in .safetensors nor in .gguf"),
        ("s3://models/many", "several .gguf files; add /FILE: a-Q4.gguf, a-Q8.gguf"),
        ("s3://models/many/b.gguf", "there is no object many/b.gguf; there are: many/a-Q4.gguf, many/a-Q8.gguf"),
        ("s3://models/nothing", "there are no files in nothing/"),
        ("s3://nobodys/b.gguf", "there is no bucket nobodys"),
        ("s3://nobodys/llama2", "there is no bucket nobodys"),
    ] {
        let told = pull(&moto.url(), name, &|_| {});
        assert!(told.contains(wanted) && told.contains(name), "{name}: {told}");
    }
    let anonymous = |command: &mut Command| {
        let nobody = command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        nobody.env("AWS_EC2_METADATA_DISABLED", "true");
    };
    let told = pull(&moto.url(), "s3://models/tiny", &anonymous);
    assert!(told.contains("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{told}");
    let told =
        pull(&moto.url(), "s3://models/many/a-Q4.gguf", &|command| _ = command.env("AWS_SKIP_SIGNATURE", "true"));
    assert!(told.contains("access is denied"), "{told}");
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let told = pull(&nobody, "s3://models/tiny", &|_| {});
    assert!(told.contains(&nobody) && told.contains("refused"), "{told}");
    let from = asking(&home, &moto.url(), &["models", "pull", "s3://models/tiny", "--from", "/"]).output().unwrap();
    assert_eq!(from.status.code(), Some(2));
}

#[test]
fn a_pull_that_was_cut_off_goes_on_where_it_was() {
    let Some(moto) = start() else { return };
    let home = Home::apart();
    let gguf = smollm2();
    put(&moto, "smollm2/Q4_1.gguf", &gguf);
    let size = std::fs::metadata(&gguf).unwrap().len();
    let pull =
        |line: &Line| asking(&home, &line.url, &["models", "pull", "s3://models/smollm2/Q4_1.gguf"]).output().unwrap();

    let line = Line::to(moto.port(), 40 << 20);
    let cut = pull(&line);
    assert_eq!(cut.status.code(), Some(3), "{}", told(&cut));
    assert!(told(&cut).contains("smollm2/Q4_1.gguf: "), "{}", told(&cut));
    let parts = files(&home.path().join("sources/downloads"));
    let kept = std::fs::metadata(&parts[0]).unwrap().len();
    assert!(parts.len() == 1 && (8 << 20..=40 << 20).contains(&kept), "{kept} in {parts:?}");

    // A line that is cut only now and then does not stop it.
    let line = Line::to(moto.port(), u64::MAX).cut_every(20 << 20);
    let done = pull(&line);
    assert!(done.status.success(), "{}", told(&done));
    let passed = line.passed.load(Ordering::Relaxed);
    assert!(passed < size - kept + (40 << 20), "{passed} bytes for the {} that were missing", size - kept);
    let pulled = files(&home.path().join("sources")).into_iter().find(|f| f.ends_with("Q4_1.gguf")).unwrap();
    assert!(std::fs::read(pulled).unwrap() == std::fs::read(&gguf).unwrap());
}

/// A line to a server that breaks: for good after so many bytes, and each connection after so many.
struct Line {
    url: String,
    passed: Arc<AtomicU64>,
    each: Arc<AtomicU64>,
}

impl Line {
    fn to(port: u16, bytes: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let line = Self { url, passed: Arc::default(), each: Arc::new(AtomicU64::new(u64::MAX)) };
        let (passed, each) = (line.passed.clone(), line.each.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, passed, each) = (client.unwrap(), passed.clone(), each.clone());
                if passed.load(Ordering::Relaxed) >= bytes {
                    continue;
                }
                std::thread::spawn(move || {
                    let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                    let asked = std::thread::spawn(move || _ = std::io::copy(&mut from, &mut to));
                    answer(&server, &client, bytes, &passed, each.load(Ordering::Relaxed));
                    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
                    asked.join().unwrap();
                });
            }
        });
        line
    }

    fn cut_every(self, bytes: u64) -> Self {
        self.each.store(bytes, Ordering::Relaxed);
        self
    }
}

/// Passes on what the server answers, as long as the line holds.
fn answer(mut server: &TcpStream, mut client: &TcpStream, bytes: u64, passed: &AtomicU64, each: u64) {
    let (mut buffer, mut own) = (vec![0; 64 << 10], 0);
    while let Ok(read @ 1..) = server.read(&mut buffer) {
        own += read as u64;
        if passed.fetch_add(read as u64, Ordering::Relaxed) >= bytes
            || own > each
            || client.write_all(&buffer[..read]).is_err()
        {
            return;
        }
    }
}
