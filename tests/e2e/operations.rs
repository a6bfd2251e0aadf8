//! What people need to live with a cluster, over real processes: logs, what the store holds, contexts, TLS and tokens,
//! and `gc`.

use crate::{
    cluster::{Cluster, check},
    support::{Home, is},
};
use serde_json::Value;
use std::{path::Path, process::Command};

const FAN: &str = "pipelines/fan.yaml";
const TOKEN: &str = "f00dfeedf00dfeedf00dfeed";

/// What a command printed with `--json`.
fn lines(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A pipeline with a stage that says nothing, and one that fails over its data.
fn failing(folder: &Path) -> String {
    let data = folder.join("broken");
    std::fs::create_dir_all(&data).unwrap();
    for name in ["ratings.dat", "users.dat", "movies.dat"] {
        std::fs::write(data.join(name), "neither this\nnor that\n").unwrap();
    }
    let path = folder.join("failing.yaml");
    let text = "rallrec: 1\nname: failing\ndata:\n  ratings: {source: \"file:broken\"}\nstages:\n  silent: {kind: rows}\n  dataset: {kind: dataset, data: ratings}\n";
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn what_a_task_logged_outlives_its_worker() {
    let mut cluster = Cluster::new();
    let _leader = cluster.coordinator();
    let mut worker = cluster.worker("a");
    let pipeline = failing(&cluster.home.path());
    let run = cluster.ask(&["submit", &pipeline]).trim().to_owned();
    // Until the run ends, live and out of the store.
    let followed = lines(&cluster.ask(&["logs", &run, "-f", "--json"]));
    worker.kill();
    let error = followed.iter().find(|line| line["level"] == "ERROR").unwrap_or_else(|| panic!("{followed:?}"));
    assert_eq!((&error["stage"], &error["message"]), (&"dataset".into(), &"the attempt failed".into()));
    assert!(error["fields"]["error"].as_str().unwrap().contains("broken"), "{error}");
    assert_eq!(lines(&cluster.ask(&["logs", &run, "--json"])), followed, "the same is kept");
    assert_eq!(lines(&cluster.ask(&["logs", "last", "dataset/0", "--json"])), followed);
    assert_eq!(cluster.ask(&["logs", "last", "silent"]), "", "who says nothing keeps nothing");
    assert!(!cluster.store().join("runs").join(&run).join("logs/silent").exists());
    // Without the cluster, out of the store.
    assert_eq!(lines(&cluster.home.ok(&["logs", &run, "--json"])), followed);
    let unknown = cluster.home.call(&["logs", &run, "datasett"]);
    let told = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(unknown.status.code() == Some(2) && told.contains("it has silent, dataset"), "{told}");
}

#[test]
fn one_process_keeps_logs_too() {
    let home = Home::new();
    let run = home.call(&["run", &failing(&home.path())]);
    assert_eq!(run.status.code(), Some(1));
    let kept = home.ok(&["logs", "last", "-f"]);
    assert!(kept.contains("ERROR dataset/0") && kept.contains("the attempt failed"), "{kept}");
}

#[test]
fn a_coordinator_tells_what_the_store_holds() {
    let mut cluster = Cluster::new();
    let _leader = cluster.coordinator();
    let _standby = cluster.coordinator();
    let _worker = cluster.worker("a");
    let tasks = |n: u32| format!("tasks={n}");
    for n in [3, 5] {
        cluster.ask(&["submit", FAN, "--set", &tasks(n), "--wait", "--json"]);
    }
    for asked in [
        &["runs", "--json"][..],
        &["explain", "last", "fan"],
        &["artifacts", "last", "--json"],
        &["artifacts", "last", "gather"],
        &["report", "last"],
    ] {
        let here = cluster.home.call(asked);
        let there = cluster.home.call(&[asked, &["--coordinator", &cluster.addresses[1]]].concat());
        assert_eq!(String::from_utf8_lossy(&here.stdout), String::from_utf8_lossy(&there.stdout), "{asked:?}");
        assert_eq!(here.status.code(), there.status.code(), "{asked:?}");
    }
    assert_eq!(lines(&cluster.ask(&["artifacts", "last", "--json"])).len(), 7);
}

#[test]
fn a_cluster_s_store_is_collected_while_it_serves() {
    let mut cluster = Cluster::new();
    let _leader = cluster.coordinator();
    let _worker = cluster.worker("a");
    let submit = |n: &str| crate::support::events(&cluster.ask(&["submit", FAN, "--set", n, "--wait", "--json"]));
    let (first, _) = (submit("tasks=3"), submit("tasks=4"));
    let old = first[0]["run"].as_str().unwrap().to_owned();
    let told: Value = serde_json::from_str(&cluster.ask(&["gc", "--keep-last", "1", "--json"])).unwrap();
    assert_eq!((&told["deleted"], &told["runs"][0]), (&false.into(), &old.as_str().into()));
    assert_eq!(lines(&cluster.ask(&["runs", "--json"])).len(), 2, "nothing was removed");
    let done: Value = serde_json::from_str(&cluster.ask(&["gc", "--keep-last", "1", "--delete", "--json"])).unwrap();
    assert_eq!((&done["deleted"], &done["runs"]), (&true.into(), &told["runs"]));
    assert_eq!(lines(&cluster.ask(&["runs", "--json"])).len(), 1);
    // The kept one again.
    let again = submit("tasks=4");
    assert!(!again.iter().any(|event| is(event, "task_dispatched")), "something was computed again");
    let refused = cluster.home.call(&["retry", &old, "--coordinator", &cluster.addresses[0]]);
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
}

#[test]
fn a_cancelled_run_goes_on_where_it_was() {
    let mut cluster = Cluster::new();
    let _leader = cluster.coordinator();
    let _worker = cluster.worker("a");
    let wait = ["--set", "tasks=30", "--set", "milliseconds=100"];
    let run = cluster.ask(&[&["submit", FAN], &wait[..]].concat()).trim().to_owned();
    let (mut watching, mut told) = cluster.watch(&run);
    let begun = |event: &Value| is(event, "task_committed") && event["stage"] == "fan";
    assert!(told.any(|event| begun(&event)), "it begins");
    cluster.ask(&["cancel", &run]);
    let rest: Vec<Value> = told.collect();
    assert!(rest.iter().any(|e| is(e, "run_finished") && e["outcome"] == "cancelled"), "{rest:?}");
    assert_eq!(watching.wait().code(), Some(130));
    assert!(cluster.ask(&["status"]).contains(" cancelled "));
    let again = cluster.home.call(&["cancel", &run, "--coordinator", &cluster.addresses[0]]);
    assert!(again.status.code() == Some(2) && String::from_utf8_lossy(&again.stderr).contains("has ended"));
    cluster.ask(&["retry", "--failed", &run]);
    let (mut watching, told) = cluster.watch(&run);
    check(&told.collect::<Vec<_>>());
    assert!(watching.wait().success());
    let done = cluster.home.call(&["retry", &run, "--coordinator", &cluster.addresses[0]]);
    assert!(done.status.code() == Some(2) && String::from_utf8_lossy(&done.stderr).contains("nothing to try again"));
}

/// An authority and a certificate for 127.0.0.1, made by openssl.
fn certificates(folder: &Path) {
    let script = "set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out c.csr -subj /CN=coordinator
        printf 'subjectAltName=IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' > ext
        openssl x509 -req -in c.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile ext";
    let made = Command::new("sh").arg("-c").arg(script).current_dir(folder).output().expect("openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn tls_and_a_token_by_a_context() {
    let mut cluster = Cluster::new();
    let folder = cluster.home.path();
    certificates(&folder);
    let token = folder.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    let more = format!(
        "listen = \"127.0.0.1:0\"\ntoken_file = \"{}\"\ntls = {{ cert = \"{}\", key = \"{}\" }}",
        path("token"),
        path("cert.pem"),
        path("key.pem")
    );
    let _leader = cluster.coordinator_with(&more);
    let address = cluster.addresses[0].clone();
    assert!(address.starts_with("https://127.0.0.1:"), "{address}");
    let config = path("config.toml");
    let contexts = "[contexts.near]\ncoordinators = [\"ADDRESS\"]\nca = \"ca.pem\"\ntoken_file = \"token\"\n";
    std::fs::write(&config, contexts.replace("ADDRESS", &address)).unwrap();
    let call = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = cluster.home.command(arguments);
        command.env("RALLREC_CONFIG", &config).envs(variables.iter().copied());
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    assert_eq!(call(&["status", "--context", "near"], &[]).0, Some(0));
    assert_eq!(call(&["context", "use", "near"], &[]).0, Some(0));
    assert!(call(&["context", "list"], &[]).1.starts_with("* near"));
    assert_eq!(call(&["workers"], &[]).0, Some(0), "the current context is meant");
    let ca = path("ca.pem");
    let near = ["status", "--coordinator", &address, "--ca", &ca];
    assert_eq!(call(&near, &[("RALLREC_TOKEN", TOKEN)]).0, Some(0));
    let (code, told) = call(&near, &[]);
    assert!(code == Some(2) && told.contains("asks for a token"), "{told}");
    let (code, told) = call(&near, &[("RALLREC_TOKEN", "anothertokenthatiswrong")]);
    assert!(code == Some(2) && told.contains("does not know this token") && !told.contains("anothertoken"), "{told}");
    let (code, told) = call(&["runs", "--coordinator", &address, "--ca", &ca], &[]);
    assert!(code != Some(0) && told.contains("asks for a token"), "the archive asks as well: {told}");
    let (code, told) = call(&["status", "--context", "far"], &[]);
    assert!(code == Some(2) && told.contains("has no context `far`; it has near"), "{told}");
}

#[test]
fn a_coordinator_beyond_loopback_wants_both() {
    let cluster = Cluster::new();
    let folder = cluster.home.path();
    std::fs::write(folder.join("token"), TOKEN).unwrap();
    let token = format!("listen = \"0.0.0.0:0\"\ntoken_file = \"{}\"", folder.join("token").display());
    for (more, missing) in [("listen = \"0.0.0.0:0\"", "TLS and a token"), (token.as_str(), "without TLS:")] {
        let config = cluster.config("open.toml", more);
        let refused = cluster.home.call(&["coordinator", "--config", &config]);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            refused.status.code() == Some(2) && told.contains(missing) && told.contains("insecure = true"),
            "{told}"
        );
        assert!(!told.contains(TOKEN), "{told}");
    }
}
