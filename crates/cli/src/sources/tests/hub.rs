//! `hf:` sources against a hub of our own on loopback: paths to bodies, and who asked for them.

use super::{noise, sha256};
use crate::sources::{Hub, Patience, PullEvent, SourceError, Sources, digest::DigestCache, download};
use serde_json::json;
use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Bodies by path. A path that is not among them is answered with 404, any path without the token with 401.
struct FakeHub {
    address: String,
    bodies: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeHub {
    fn start(files: &[(&str, &[u8], bool)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub =
            Self { address: listener.local_addr().unwrap().to_string(), bodies: Arc::default(), asked: Arc::default() };
        let siblings: Vec<_> = files
            .iter()
            .map(|(name, body, large)| match large {
                true => json!({ "rfilename": name, "size": body.len(), "lfs": { "sha256": sha256(body), "size": body.len() } }),
                false => json!({ "rfilename": name, "size": body.len() }),
            })
            .collect();
        let listing = json!({ "sha": COMMIT, "cardData": { "license": "apache-2.0" }, "siblings": siblings });
        hub.put("/api/models/owner/repo/revision/main?blobs=true", listing.to_string().into_bytes());
        for (name, body, _) in files {
            hub.put(&format!("/owner/repo/resolve/{COMMIT}/{name}"), body.to_vec());
        }
        let (bodies, asked) = (hub.bodies.clone(), hub.asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away in mid-answer is its own business.
                let _ = answer(&stream.unwrap(), &bodies, &asked);
            }
        });
        hub
    }

    fn put(&self, path: &str, body: Vec<u8>) {
        self.bodies.lock().unwrap().insert(path.to_owned(), body);
    }

    fn sources(&self, home: &Path, token: Option<&str>) -> Sources {
        let patience = Patience { connect: Duration::from_secs(5), silence: Duration::from_secs(5) };
        let hub = Hub::new(&format!("http://{}/", self.address), token.map(str::to_owned));
        Sources::new(home.to_owned(), Vec::new(), patience).with_hub(hub)
    }
}

fn answer(
    mut stream: &TcpStream,
    bodies: &Mutex<HashMap<String, Vec<u8>>>,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let (mut path, mut known) = (String::new(), false);
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if let Some(rest) = line.strip_prefix("GET ") {
            path = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        known |= line.to_lowercase() == "authorization: bearer hf_right";
        if line.is_empty() {
            break;
        }
    }
    asked.lock().unwrap().push(path.clone());
    let body = bodies.lock().unwrap().get(&path).cloned();
    let (status, body) = match body {
        _ if !known => (401, Vec::new()),
        None => (404, Vec::new()),
        Some(body) => (200, body),
    };
    write!(stream, "HTTP/1.1 {status} Status\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    stream.write_all(&body)
}

#[test]
fn a_repository_is_pulled_once_by_its_commit() {
    let (weights, extra) = (noise(300_000), noise(10));
    let hub = FakeHub::start(&[
        ("README.md", b"words", false),
        ("config.json", b"{}", false),
        ("model-00001-of-00001.safetensors", &weights, true),
        ("onnx/model.onnx", &extra, true),
        ("tokenizer.json", b"{\"a\": 1}", false),
    ]);
    let home = tempfile::tempdir().unwrap();
    let sources = hub.sources(home.path(), Some("hf_right\n"));
    let pulled = sources.pull("hf:owner/repo", None, &|_: PullEvent| {}).unwrap();
    let names: Vec<&str> = pulled.files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["config.json", "model-00001-of-00001.safetensors", "tokenizer.json"]);
    assert!(pulled.origin.contains(COMMIT) && pulled.terms.contains("apache-2.0"));

    // The same files in a folder of the user's own have the same digest.
    let copy = tempfile::tempdir().unwrap();
    for file in &pulled.files {
        fs::copy(sources.folder("hf:owner/repo").join(&file.name), copy.path().join(&file.name)).unwrap();
    }
    assert_eq!(DigestCache::open(home.path().join("digests.json")).digest(copy.path()).unwrap(), pulled.digest);

    // A branch that moves is not followed, and nothing is asked again.
    hub.put("/api/models/owner/repo/revision/main?blobs=true", b"{}".to_vec());
    let asked = hub.asked.lock().unwrap().len();
    assert_eq!(sources.pull("hf:owner/repo", None, &|_: PullEvent| {}).unwrap(), pulled);
    assert_eq!(hub.asked.lock().unwrap().len(), asked);
}

#[test]
fn one_file_has_its_own_sum_as_digest() {
    let (small, large) = (noise(1000), noise(2000));
    let hub = FakeHub::start(&[("m-Q4.gguf", &small, true), ("m-Q8.gguf", &large, true)]);
    let home = tempfile::tempdir().unwrap();
    let sources = hub.sources(home.path(), Some("hf_right"));
    let pulled = sources.pull("hf:owner/repo/m-Q8.gguf", None, &|_: PullEvent| {}).unwrap();
    assert_eq!(pulled.digest, sha256(&large));
    let error = sources.pull("hf:owner/repo", None, &|_: PullEvent| {}).unwrap_err().to_string();
    assert!(error.contains("several .gguf files; add /FILE: m-Q4.gguf, m-Q8.gguf"), "{error}");
}

#[test]
fn what_the_hub_refuses_is_told_without_the_token() {
    let body = noise(1000);
    let hub = FakeHub::start(&[("m.gguf", &body, true)]);
    let home = tempfile::tempdir().unwrap();
    let pull = |token: Option<&str>, name: &str| {
        let result = hub.sources(home.path(), token).pull(name, None, &|_: PullEvent| {});
        match result {
            Err(error @ SourceError::Remote { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert!(pull(None, "hf:owner/repo").contains("HF_TOKEN"));
    let told = pull(Some("hf_wrong"), "hf:owner/repo");
    assert!(told.contains("the token in HF_TOKEN may not read it") && !told.contains("hf_wrong"), "{told}");
    assert!(pull(Some("hf_right"), "hf:owner/repo@v9").contains("no repository owner/repo with a revision v9"));
    // Weights that are not what the listing says.
    hub.put(&format!("/owner/repo/resolve/{COMMIT}/m.gguf"), noise(1032)[32..].to_vec());
    let told = pull(Some("hf_right"), "hf:owner/repo");
    assert!(told.contains("m.gguf: content has SHA-256") && told.contains(&sha256(&body)), "{told}");
    assert!(hub.sources(home.path(), None).pulled("hf:owner/repo", false).unwrap().is_none());
}

#[test]
fn what_was_left_of_a_file_without_a_sum_is_not_built_on() {
    let weights = noise(1000);
    let hub = FakeHub::start(&[("config.json", b"{\"a\": 1}", false), ("model.safetensors", &weights, true)]);
    let home = tempfile::tempdir().unwrap();
    let downloads = home.path().join("downloads");
    fs::create_dir_all(&downloads).unwrap();
    // As long as it must be, and yet another file.
    let left = download::part(&downloads, "config.json", &["hf:owner/repo", COMMIT, "config.json"]);
    fs::write(&left, b"{\"b\": 2}").unwrap();
    let sources = hub.sources(home.path(), Some("hf_right"));
    sources.pull("hf:owner/repo", None, &|_: PullEvent| {}).unwrap();
    assert_eq!(fs::read(sources.folder("hf:owner/repo").join("config.json")).unwrap(), b"{\"a\": 1}");
    assert!(!left.exists());
}

#[test]
fn two_sources_and_two_files_of_one_name_never_share_a_part() {
    let part = |identity: &[&str]| download::part(Path::new("d"), "model.gguf", identity);
    let q4 = part(&["hf:owner/repo/q4/model.gguf", COMMIT, "q4/model.gguf"]);
    assert_ne!(q4, part(&["hf:owner/repo/q8/model.gguf", COMMIT, "q8/model.gguf"]));
    assert_ne!(q4, part(&["hf:other/fork/q4/model.gguf", COMMIT, "q4/model.gguf"]));
    assert_eq!(q4, part(&["hf:owner/repo/q4/model.gguf", COMMIT, "q4/model.gguf"]), "a later pull goes on with it");
}

#[test]
fn from_is_refused_where_nothing_says_what_the_files_must_be() {
    let (home, given) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = FakeHub::start(&[("m.gguf", b"x", true)]);
    for name in ["hf:owner/repo", "s3://bucket/model"] {
        let error = hub.sources(home.path(), None).pull(name, Some(given.path()), &|_: PullEvent| {}).unwrap_err();
        assert!(matches!(error, SourceError::NoFrom { .. }) && error.is_invalid_input(), "{error:?}");
        assert!(error.to_string().contains("takes no --from") && error.to_string().contains("file:PATH"), "{error}");
        let offline = SourceError::Offline { name: name.into(), folder: home.path().into(), command: "models" };
        assert!(offline.to_string().contains("name them as `source: file:PATH`"), "{offline}");
    }
    assert!(hub.asked.lock().unwrap().is_empty());
}
