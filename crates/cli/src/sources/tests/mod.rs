//! Pulling against real HTTP on loopback, real zip and tar files, and real interruptions.

mod hub;
mod server;

use super::{
    Entry, FilePin, Mirror, Patience, PullEvent, Role, Route, SourceError, SourceRecord, Sources, Variant, catalogue,
    digest::DigestCache,
};
use rallrec_core::key::hex;
use server::{Manner, Server};
use sha2::{Digest, Sha256};
use std::{
    cell::RefCell,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Barrier},
    time::Duration,
};

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes that do not compress and differ everywhere, so that a splice at the wrong place is seen.
fn noise(n: usize) -> Vec<u8> {
    (0u64..).flat_map(|i| Sha256::digest(i.to_le_bytes()).to_vec()).take(n).collect()
}

fn plain_route(url: String, body: &[u8]) -> Mirror {
    let route = Route::Http { url, sha256: sha256(body), bytes: body.len() as u64, zipped: false };
    Mirror { variant: "official".into(), route }
}

fn entry(mirrors: Vec<Mirror>, files: &[(&str, &[u8])]) -> Entry {
    Entry {
        name: "thing".into(),
        role: Role::Data,
        title: "A thing".into(),
        terms: "Free.".into(),
        terms_url: "https://example.org/terms".into(),
        variants: vec![Variant {
            name: "official".into(),
            note: String::new(),
            files: files
                .iter()
                .map(|(name, body)| FilePin {
                    name: (*name).into(),
                    sha256: Some(sha256(body)),
                    bytes: body.len() as u64,
                })
                .collect(),
        }],
        mirrors,
    }
}

fn sources(home: &Path, entry: Entry) -> Sources {
    let patience = Patience { connect: Duration::from_secs(5), silence: Duration::from_secs(5) };
    Sources::new(home.to_owned(), vec![entry], patience)
}

fn pull(sources: &Sources) -> (Result<SourceRecord, SourceError>, Vec<PullEvent>) {
    let events = RefCell::new(Vec::new());
    let result = sources.pull("thing", None, &|e| {
        if !matches!(e, PullEvent::Bytes { .. }) {
            events.borrow_mut().push(e);
        }
    });
    (result, events.into_inner())
}

fn zip_of(path: &Path, members: &[(&str, &[u8])]) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (name, body) in members {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(body).unwrap();
    }
    zip.finish().unwrap();
}

fn shared_data() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    if !folder.is_dir() {
        eprintln!("skipped: {} is not there", folder.display());
        return None;
    }
    Some(folder)
}

#[test]
fn a_pull_over_http_is_verified_recorded_and_not_repeated() {
    let home = tempfile::tempdir().unwrap();
    let body = noise(3_000_000);
    let server = Server::start(body.clone(), &[Manner::Serve]);
    let sources =
        sources(home.path(), entry(vec![plain_route(server.url("thing.bin"), &body)], &[("thing.bin", &body)]));
    let (record, events) = pull(&sources);
    let record = record.unwrap();
    assert!(matches!(&events[0], PullEvent::Terms { terms, .. } if terms == "Free. https://example.org/terms"));
    assert!(matches!(events.last(), Some(PullEvent::Done { .. })));
    assert_eq!(fs::read(home.path().join("thing/thing.bin")).unwrap(), body);
    assert_eq!(record.digest, sha256(format!("thing.bin\0{}\n", sha256(&body)).as_bytes()));
    assert_eq!(sources.pulled("thing", true).unwrap().unwrap(), record);
    assert_eq!(pull(&sources).0.unwrap(), record);
    assert_eq!(server.ranges(), [None]);
    assert!(!home.path().join("thing.new").exists());
}

#[test]
fn a_cut_connection_is_resumed_where_it_stopped() {
    let home = tempfile::tempdir().unwrap();
    let body = noise(1_000_000);
    let server = Server::start(body.clone(), &[Manner::CutAfter(300_000), Manner::CutAfter(100_000), Manner::Serve]);
    let sources = sources(home.path(), entry(vec![plain_route(server.url("t"), &body)], &[("t", &body)]));
    pull(&sources).0.unwrap();
    assert_eq!(server.ranges(), [None, Some(300_000), Some(400_000)]);
}

#[test]
fn a_part_of_an_earlier_process_is_resumed_and_a_wrong_one_fetched_anew() {
    let body = noise(500_000);
    for (part, ranges) in
        [(body[..200_000].to_vec(), vec![Some(200_000)]), (vec![7; 200_000], vec![Some(200_000), None])]
    {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join("downloads")).unwrap();
        fs::write(home.path().join("downloads/t.part"), part).unwrap();
        let server = Server::start(body.clone(), &[Manner::Serve]);
        let sources = sources(home.path(), entry(vec![plain_route(server.url("t"), &body)], &[("t", &body)]));
        pull(&sources).0.unwrap();
        assert_eq!(server.ranges(), ranges);
    }
}

#[test]
fn a_part_is_kept_when_the_mirror_dies() {
    let home = tempfile::tempdir().unwrap();
    let body = noise(500_000);
    let server = Server::start(body.clone(), &[Manner::CutAfter(123_456), Manner::Status(503)]);
    let sources = sources(home.path(), entry(vec![plain_route(server.url("t"), &body)], &[("t", &body)]));
    assert!(matches!(pull(&sources).0, Err(SourceError::AllMirrorsFailed { .. })));
    assert_eq!(fs::read(home.path().join("downloads/t.part")).unwrap(), body[..123_456]);
}

#[test]
fn a_server_without_ranges_starts_over() {
    let home = tempfile::tempdir().unwrap();
    let body = noise(400_000);
    let server = Server::start(body.clone(), &[Manner::CutAfter(100_000), Manner::IgnoreRange]);
    let sources = sources(home.path(), entry(vec![plain_route(server.url("t"), &body)], &[("t", &body)]));
    pull(&sources).0.unwrap();
    assert_eq!(fs::read(home.path().join("thing/t")).unwrap(), body);
}

#[test]
fn wrong_content_and_404_fall_through_to_the_next_mirror() {
    let home = tempfile::tempdir().unwrap();
    let body = noise(100_000);
    let mut wrong_body = body.clone();
    wrong_body[50_000] ^= 1;
    let wrong = Server::start(wrong_body, &[Manner::Serve]);
    let missing = Server::start(Vec::new(), &[Manner::Status(404)]);
    let good = Server::start(body.clone(), &[Manner::Serve]);
    let mirrors = [&wrong, &missing, &good].map(|s| plain_route(s.url("t"), &body)).to_vec();
    let sources = sources(home.path(), entry(mirrors, &[("t", &body)]));
    let (record, events) = pull(&sources);
    assert_eq!(record.unwrap().origin, good.url("t"));
    let whys: Vec<_> = events
        .iter()
        .filter_map(|e| if let PullEvent::MirrorFailed { why, .. } = e { Some(why.clone()) } else { None })
        .collect();
    assert_eq!(whys.len(), 2);
    assert!(whys[0].starts_with("content has SHA-256"), "{}", whys[0]);
    assert_eq!(whys[1], "HTTP status 404");
    assert_eq!(wrong.ranges(), [None]);
}

#[test]
fn when_all_fail_the_message_says_what_was_tried_and_the_way_out() {
    let home = tempfile::tempdir().unwrap();
    let body = noise(1000);
    let missing = Server::start(Vec::new(), &[Manner::Status(404)]);
    // A port that was free a moment ago refuses connections.
    let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mirrors = vec![plain_route(missing.url("t"), &body), plain_route(format!("http://{refused}/t"), &body)];
    let sources = sources(home.path(), entry(mirrors, &[("t", &body)]));
    let error = pull(&sources).0.unwrap_err();
    assert!(!error.is_invalid_input());
    let text = error.to_string();
    assert!(text.contains("HTTP status 404") && text.contains(&refused.to_string()), "{text}");
    assert!(text.contains("rallrec data pull thing --from PATH"), "{text}");
    assert!(sources.pulled("thing", false).unwrap().is_none());
}

#[test]
fn a_zip_over_http_gives_its_wanted_members_only() {
    let home = tempfile::tempdir().unwrap();
    let archive = home.path().join("a.zip");
    let (a, b) = (noise(5000), b"users".to_vec());
    zip_of(&archive, &[("ml/ratings.dat", &a), ("ml/users.dat", &b), ("ml/other", b"x"), ("../evil", b"x")]);
    let body = fs::read(&archive).unwrap();
    let server = Server::start(body.clone(), &[Manner::Serve]);
    let mut mirror = plain_route(server.url("a.zip"), &body);
    if let Route::Http { zipped, .. } = &mut mirror.route {
        *zipped = true;
    }
    let mut entry = entry(vec![mirror], &[("ratings.dat", &a), ("users.dat", &b)]);
    entry.variants[0].files[0].sha256 = None;
    let record = pull(&sources(home.path(), entry)).0.unwrap();
    assert_eq!(record.files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["ratings.dat", "users.dat"]);
    assert_eq!(record.files[0].sha256, sha256(&a));
    let mut names: Vec<_> = fs::read_dir(home.path().join("thing")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["ratings.dat", "source.json", "users.dat"]);
}

#[test]
fn from_takes_a_folder_a_zip_a_tarball_and_a_renamed_file() {
    let given = tempfile::tempdir().unwrap();
    let body = noise(5000);
    let folder = given.path().join("deep/er");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("t.bin"), &body).unwrap();
    fs::write(given.path().join("renamed"), &body).unwrap();
    zip_of(&given.path().join("a.zip"), &[("x/t.bin", &body)]);
    let tar = given.path().join("a.tar.gz");
    let status = std::process::Command::new("tar").arg("-czf").arg(&tar).arg("-C").arg(&folder).arg("t.bin").status();
    assert!(status.unwrap().success());
    for path in [given.path().join("deep"), given.path().join("a.zip"), tar, given.path().join("renamed")] {
        let home = tempfile::tempdir().unwrap();
        let sources = sources(home.path(), entry(Vec::new(), &[("t.bin", &body)]));
        sources.pull("thing", Some(&path), &|_| {}).unwrap();
        assert_eq!(fs::read(home.path().join("thing/t.bin")).unwrap(), body);
        assert!(path.exists());
    }
}

#[test]
fn from_refuses_other_content_and_says_what_differs() {
    let (home, given) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let body = noise(5000);
    fs::write(given.path().join("t.bin"), [body.as_slice(), b"x"].concat()).unwrap();
    let sources = sources(home.path(), entry(Vec::new(), &[("t.bin", &body), ("u.bin", &body)]));
    let error = sources.pull("thing", Some(given.path()), &|_| {}).unwrap_err();
    assert!(error.is_invalid_input());
    assert!(error.to_string().contains("t.bin has 5001 bytes, not 5000"), "{error}");
    assert!(!home.path().join("thing").exists());
}

#[test]
fn a_changed_source_is_noticed() {
    let home = tempfile::tempdir().unwrap();
    let body = noise(5000);
    let server = Server::start(body.clone(), &[Manner::Serve]);
    let sources = sources(home.path(), entry(vec![plain_route(server.url("t"), &body)], &[("t", &body)]));
    pull(&sources).0.unwrap();
    let file = home.path().join("thing/t");
    fs::write(&file, vec![0; 5000]).unwrap();
    assert!(sources.pulled("thing", false).is_ok());
    assert!(matches!(sources.pulled("thing", true), Err(SourceError::Changed { .. })));
    fs::write(&file, b"short").unwrap();
    assert!(matches!(sources.pulled("thing", false), Err(SourceError::Changed { .. })));
}

#[test]
fn four_pulls_at_once_fetch_once() {
    let home = tempfile::tempdir().unwrap();
    let body = noise(2_000_000);
    let server = Server::start(body.clone(), &[Manner::Serve]);
    let sources = sources(home.path(), entry(vec![plain_route(server.url("t"), &body)], &[("t", &body)]));
    let gate = Arc::new(Barrier::new(4));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (sources, gate) = (sources.clone(), Arc::clone(&gate));
            std::thread::spawn(move || {
                gate.wait();
                sources.pull("thing", None, &|_| {}).unwrap()
            })
        })
        .collect();
    let records: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert!(records.iter().all(|r| *r == records[0]));
    assert_eq!(server.ranges(), [None]);
}

#[test]
fn unknown_names_get_a_suggestion() {
    let sources = Sources::new(PathBuf::new(), catalogue(), Patience::default());
    let error = sources.entry("movielens-10k").unwrap_err().to_string();
    assert!(error.contains("did you mean `movielens-100k`?"), "{error}");
    let error = sources.entry("netflix").unwrap_err().to_string();
    assert!(!error.contains("did you mean"), "{error}");
}

#[test]
fn real_movielens_files_match_the_catalogue() {
    let Some(data) = shared_data() else { return };
    let home = tempfile::tempdir().unwrap();
    let sources = Sources::new(home.path().to_owned(), catalogue(), Patience::default());
    let record = sources.pull("movielens-100k", Some(&data.join("ml-100k.tar.xz")), &|_| {}).unwrap();
    assert_eq!((record.variant.as_str(), record.files.len()), ("official", 3));
    let record = sources.pull("movielens-1m", Some(&data.join("ml-1m.tar.xz")), &|_| {}).unwrap();
    assert_eq!(record.variant, "interpolated-timestamps");
    assert!(record.note.contains("206,803"));
}

#[test]
fn digests_of_own_files_are_remembered_by_size_and_time() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir_all(data.join("sub")).unwrap();
    fs::write(data.join("a"), b"one").unwrap();
    fs::write(data.join("sub/b"), b"two").unwrap();
    let cache = folder.path().join("digests.json");
    let mut first = DigestCache::open(cache.clone());
    let digest = first.digest(&data).unwrap();
    assert_eq!(digest, sha256(format!("a\0{}\nsub/b\0{}\n", sha256(b"one"), sha256(b"two")).as_bytes()));
    assert_eq!(first.hashed_bytes(), 6);
    first.save();
    let mut second = DigestCache::open(cache);
    assert_eq!(second.digest(&data).unwrap(), digest);
    assert_eq!(second.hashed_bytes(), 0);
    fs::write(data.join("a"), b"other").unwrap();
    assert_ne!(second.digest(&data).unwrap(), digest);
    assert_eq!(second.hashed_bytes(), 5);
    assert!(second.digest(&folder.path().join("nothing")).is_err());
}
