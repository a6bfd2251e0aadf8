//! A cluster whose store is in S3: a real server, moto's, and before it a line that fails on demand. moto keeps all in
//! memory, so it is the line that goes away, and never the server.

use crate::{
    cluster::{Cluster, TINY, check, expected},
    support::{Home, events, files, is},
};
use rallrec_test_servers::{Fault, Line, Moto};
use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

const STORE: &str = "s3://cluster/team/one";
const SECRET: &str = "wJalr-e2e-9c1d70";

/// The `[s3]` table for a server at this address, and the file that it names.
fn table(url: &str, credentials: &Path) -> String {
    std::fs::write(credentials, format!("[default]\naws_access_key_id = AKIA1\naws_secret_access_key = {SECRET}\n"))
        .unwrap();
    format!("[s3]\nendpoint = \"{url}\"\nregion = \"eu-north-1\"\ncredentials = \"{}\"\n", credentials.display())
}

/// What a command prints that reads the store at this address.
fn reads(home: &Home, url: &str, arguments: &[&str]) -> String {
    let mut command = home.command(&[arguments, &["--store", STORE]].concat());
    command.env("AWS_ENDPOINT_URL", url).env("AWS_ACCESS_KEY_ID", "AKIA1").env("AWS_SECRET_ACCESS_KEY", SECRET);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The objects in the bucket.
fn keys(moto: &Moto) -> Vec<String> {
    let listed = String::from_utf8(moto.request("GET", "?list-type=2&max-keys=1000", b"")).unwrap();
    assert!(listed.contains("<IsTruncated>false"), "one page holds them");
    listed.split("<Key>").skip(1).map(|rest| rest[..rest.find('<').unwrap()].to_owned()).collect()
}

/// The adapter that was trained, and with it the last bit of everything before it.
fn adapters(moto: &Moto) -> Vec<Vec<u8>> {
    let keys = keys(moto).into_iter().filter(|key| key.ends_with("/adapter-00000.parquet"));
    keys.map(|key| moto.request("GET", &format!("/{key}"), b"")).collect()
}

#[test]
fn a_cluster_in_s3_makes_what_one_process_makes() {
    let Some(moto) = Moto::start("cluster") else { return };
    let (report, adapter) = expected();
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::in_s3(STORE, &table(&moto.url(), &folder.path().join("credentials")));
    let _leader = cluster.coordinator();
    let _workers = [cluster.worker("a"), cluster.worker("b")];
    check(&events(&cluster.ask(&["submit", TINY, "--wait", "--json"])));
    assert_eq!(reads(&cluster.home, &moto.url(), &["report", "last", "--format", "json"]), report);
    assert!(adapters(&moto) == adapter, "another adapter");
    // One process in the same store finds all of it.
    let again = events(&reads(&cluster.home, &moto.url(), &["run", TINY, "--json"]));
    assert!(again.iter().any(|e| is(e, "run_finished")) && !again.iter().any(|e| is(e, "task_dispatched")));
    assert!(!files(&cluster.home.path().join("cache")).is_empty(), "what was read is kept on this machine");
    assert!(!cluster.home.path().join("store").exists());
    let written =
        files(&cluster.home.path()).into_iter().filter(|f| !f.starts_with(cluster.home.path().join("sources")));
    let kept = written.map(|file| std::fs::read(file).unwrap());
    let put = keys(&moto).into_iter().map(|key| moto.request("GET", &format!("/{key}"), b""));
    assert!(
        kept.chain(put).all(|bytes| !bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes())),
        "the secret is told"
    );
}

#[test]
fn a_run_outlives_a_server_that_fails() {
    let Some(moto) = Moto::start("cluster") else { return };
    let (report, adapter) = expected();
    let failed = Arc::new(AtomicUsize::new(0));
    let (counted, outage) = (Arc::clone(&failed), OnceLock::new());
    let line = Line::to(moto.port(), move |request| {
        let fault = match request.number {
            // Every other request fails, each in its way.
            150..250 => [
                Fault::DoneThenRefused,
                Fault::None,
                Fault::Refused,
                Fault::None,
                Fault::DoneThenCut,
                Fault::None,
                Fault::Slow(Duration::from_millis(300)),
                Fault::None,
            ][request.number % 8],
            // Then nobody answers for a while.
            250.. if outage.get_or_init(Instant::now).elapsed() < Duration::from_secs(8) => {
                if request.number.is_multiple_of(2) { Fault::Cut } else { Fault::Refused }
            }
            _ => Fault::None,
        };
        counted.fetch_add(usize::from(fault != Fault::None), Ordering::Relaxed);
        fault
    });
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::in_s3(STORE, &table(&line.url(), &folder.path().join("credentials")));
    let _leader = cluster.coordinator();
    let _workers = [cluster.worker("a"), cluster.worker("b")];
    check(&events(&cluster.ask(&["submit", TINY, "--wait", "--json"])));
    assert_eq!(reads(&cluster.home, &moto.url(), &["report", "last", "--format", "json"]), report);
    assert!(adapters(&moto) == adapter, "another adapter");
    let (failed, seen) = (failed.load(Ordering::Relaxed), line.seen().len());
    assert!(failed > 60 && seen > 300, "{failed} of {seen} requests failed");
}

#[test]
fn doctor_looks_at_what_a_service_needs() {
    let Some(moto) = Moto::start("cluster") else { return };
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("credentials");
    let examine = |cluster: &Cluster, name: &str, more: &str| {
        let config = cluster.config(name, more);
        let output = cluster.home.call(&["doctor", "--config", &config]);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!told.contains(SECRET), "{told}");
        (output.status.code(), told)
    };
    let cluster = Cluster::in_s3(STORE, &table(&moto.url(), &credentials));
    for (name, more) in [("worker.toml", "device = \"cpu\""), ("coordinator.toml", "listen = \"127.0.0.1:0\"")] {
        let (code, told) = examine(&cluster, name, more);
        assert_eq!(code, Some(0), "{told}");
        for wanted in
            ["JetStream is on", "creates only what is absent", "large objects go up in pieces", "apart from S3's"]
        {
            assert!(told.contains(wanted), "{wanted}: {told}");
        }
    }
    let line = Line::to(moto.port(), |_| Fault::Unconditional);
    let mut dead = Cluster::in_s3(STORE, &table(&line.url(), &credentials));
    dead.nats.kill();
    let (code, told) = examine(&dead, "worker.toml", "device = \"cpu\"");
    assert_eq!(code, Some(3), "{told}");
    assert!(told.contains("missing  nats") && told.contains("nats-server -js"), "{told}");
    assert!(told.contains("missing  store") && told.contains("ignores `If-None-Match"), "{told}");
    // The service itself refuses to start with such a store, and leaves nothing in it.
    let config = dead.config("coordinator.toml", "listen = \"127.0.0.1:0\"");
    let refused = dead.home.call(&["coordinator", "--config", &config]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(3) && told.contains("s3://cluster/team/one cannot be the store"), "{told}");
    assert_eq!(keys(&moto), [""; 0]);
}
