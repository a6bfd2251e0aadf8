//! The store in S3: a real server, moto's, and before it a line that fails on demand.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use arrow_array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_select::concat::concat_batches;
use rallrec_core::{
    ids::{Attempt, RowRange, RunId, StageName, TaskId, TimeMs},
    key::{Key, KeyFields},
    kind::StageKind,
    task::TaskOffer,
};
use rallrec_store::{
    ArtifactWriter, BucketSettings, Checkpoint, Committed, Location, Producer, Records, Store, StoreError,
};
use rallrec_test_servers::{Fault, Line, Moto, Request};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

const SECRET: &str = "wJalr-very-secret";

fn settings(url: &str) -> BucketSettings {
    let variables = [("AWS_ENDPOINT_URL", url), ("AWS_ACCESS_KEY_ID", "AKIA1"), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    BucketSettings::new(variables.map(|(name, value)| (name.to_owned(), value.to_owned())))
}

fn location(text: &str) -> Location {
    text.parse().unwrap()
}

async fn store(url: &str) -> Store {
    Store::open_to_read(&location("s3://store/team"), &settings(url)).await.unwrap()
}

fn offer(attempt: u32) -> TaskOffer {
    TaskOffer {
        run: RunId("r1".into()),
        task: TaskId { stage: 0, shard: 3 },
        attempt: Attempt(attempt),
        key: KeyFields::default().key(),
        stage: StageName("embed".into()),
        kind: StageKind::Embed,
        params: serde_json::json!({}),
        seed: 1,
        model: None,
        data: None,
        max_bad_rows: 0,
        rows: None,
        inputs: vec![],
        fields: KeyFields::default(),
    }
}

fn writer(store: &Store, attempt: u32) -> ArtifactWriter {
    let producer = Producer { offer: offer(attempt), program: "test".into(), writer: "w".into() };
    ArtifactWriter::new(store.clone(), producer)
}

fn batch(values: &[i32]) -> RecordBatch {
    let column = Arc::new(Int32Array::from(values.to_vec())) as ArrayRef;
    RecordBatch::try_from_iter([("x", column)]).unwrap()
}

/// Rows of 16 bytes that no encoding makes smaller: `row`, and a number scattered by it.
fn large(rows: i64) -> RecordBatch {
    let scatter = |row: i64| row.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64).rotate_left(29).wrapping_mul(31);
    let row = Arc::new(Int64Array::from_iter_values((0..rows).map(|row| scatter(row) ^ row))) as ArrayRef;
    let scattered = Arc::new(Int64Array::from_iter_values((0..rows).map(scatter))) as ArrayRef;
    RecordBatch::try_from_iter([("row", row), ("scattered", scattered)]).unwrap()
}

/// Which rows of [`large`] these are.
fn rows(batches: &[RecordBatch]) -> Vec<i64> {
    let column = |b: &RecordBatch, n| b.column(n).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec();
    batches.iter().flat_map(|b| column(b, 0).into_iter().zip(column(b, 1)).map(|(a, b)| a ^ b)).collect()
}

/// Rows of a table whose parts have several row groups, but there is only one part.
const LARGE: i64 = 2_500_000;

async fn commit_large(store: &Store) -> Committed {
    let mut out = writer(store, 1);
    out.write("t", &large(LARGE)).await.unwrap();
    out.commit(0.0, TimeMs(0)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_a_store_keeps_is_kept() {
    let Some(moto) = Moto::start("store") else { return };
    let open = |text: &'static str| {
        let url = moto.url();
        async move { Store::open(&location(text), &settings(&url), "p1").await.unwrap() }
    };
    let (store, other) = (open("s3://store/team").await, open("s3://store/others").await);
    assert_eq!(String::from_utf8(moto.request("GET", "?list-type=2", b"")).unwrap().matches("<Key>").count(), 0);

    let (mut slow, mut fast) = (writer(&store, 1), writer(&store, 2));
    // More than a manifest holds.
    let numbers: Vec<i32> = (0..1000).map(|i: i32| i.wrapping_mul(-1_640_531_535)).collect();
    slow.write("t", &batch(&numbers[1..])).await.unwrap();
    fast.write("t", &batch(&numbers)).await.unwrap();
    assert!(store.manifest(&offer(1).key).await.unwrap().is_none());
    assert!(fast.commit(1.5, TimeMs(5)).await.unwrap().first);
    let late = slow.commit(9.0, TimeMs(6)).await.unwrap();
    assert!(!late.first && late.manifest.attempt == Attempt(2));
    let (_, found) = store.read_table(&late.manifest.tables["t"], None).await.unwrap();
    assert_eq!(found, [batch(&numbers)]);
    let listed = String::from_utf8(moto.request("GET", "?list-type=2", b"")).unwrap();
    assert_eq!(listed.matches("<Key>").count(), 2, "one part and one manifest: {listed}");

    let run = RunId("r1".into());
    let (mut first, mut second) =
        (Records::of_run(store.clone(), &run, "a"), Records::of_run(store.clone(), &run, "b"));
    first.append(b"one").await.unwrap();
    assert_eq!(second.replay().await.unwrap(), [b"one".to_vec()]);
    assert_eq!(second.follow().await.unwrap(), [[0; 0]; 0]);
    second.append(b"two").await.unwrap();
    assert!(matches!(first.append(b"late").await, Err(StoreError::Conflict { .. })));
    assert_eq!(first.follow().await.unwrap(), [b"two".to_vec()]);
    store.create_run_file(&run, "plan.json", b"{}".to_vec()).await.unwrap();
    assert_eq!(store.run_file(&run, "plan.json").await.unwrap(), Some(b"{}".to_vec()));
    assert_eq!((store.runs().await.unwrap(), other.runs().await.unwrap()), (vec![run], vec![]));

    let key = Key("aa".into());
    for number in [1, 2, 10] {
        store.put_checkpoint(&key, &Checkpoint { number, state: vec![7; 100] }).await.unwrap();
    }
    assert_eq!(store.checkpoint(&key).await.unwrap(), Some(Checkpoint { number: 10, state: vec![7; 100] }));
    store.clear_checkpoints(&key).await.unwrap();
    assert_eq!(store.checkpoint(&key).await.unwrap(), None);
    store.check_pieces("p2").await.unwrap();
    let shown = format!("{store:?}");
    assert!(shown.contains("team") && !shown.contains("AKIA1") && !shown.contains(SECRET), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_creators_wins() {
    let Some(moto) = Moto::start("store") else { return };
    let (store, run) = (store(&moto.url()).await, RunId("r1".into()));
    for round in 0..10u64 {
        let racing = (0..16).map(|n| {
            let (store, run) = (store.clone(), run.clone());
            tokio::spawn(async move {
                let mut records = Records::of_run(store, &run, format!("writer {n}"));
                records.replay().await.unwrap();
                (records.append(b"mine").await, records.position())
            })
        });
        let ended: Vec<_> = futures::future::join_all(racing).await.into_iter().map(Result::unwrap).collect();
        // Those that came late replayed the winner's record and put the next one.
        let mut put: Vec<u64> = ended.iter().filter(|(put, _)| put.is_ok()).map(|(_, position)| *position).collect();
        put.sort_unstable();
        put.dedup();
        let won = ended.iter().filter(|(put, _)| put.is_ok()).count();
        assert_eq!((won, won > 0), (put.len(), true), "round {round}: two put one record");
        assert!(ended.iter().all(|(put, _)| matches!(put, Ok(()) | Err(StoreError::Conflict { .. }))), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_overwrites_is_refused() {
    let Some(moto) = Moto::start("store") else { return };
    let line = Line::to(moto.port(), |_| Fault::Unconditional);
    let refused = Store::open(&location("s3://store/team"), &settings(&line.url()), "p1").await.unwrap_err();
    let told = refused.to_string();
    assert!(matches!(refused, StoreError::Unfit { .. }), "{refused:?}");
    assert!(told.starts_with("s3://store/team cannot be the store: ") && told.contains("If-None-Match"), "{told}");
    let listed = String::from_utf8(moto.request("GET", "?list-type=2", b"")).unwrap();
    assert_eq!(listed.matches("<Key>").count(), 0, "the probes are gone: {listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_had_says_what_to_do() {
    let Some(moto) = Moto::start("store") else { return };
    let denied = Line::to(moto.port(), |_| Fault::Denied);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (place, url, wanted) in [
        ("s3://nobodys/team", moto.url(), "there is no bucket nobodys at http://127.0.0.1"),
        ("s3://store", denied.url(), "check the credentials"),
        ("s3://store", format!("http://{nobody}"), "does not answer"),
        ("s3:///team", moto.url(), "write s3://BUCKET/PREFIX"),
    ] {
        let refused = Store::open(&location(place), &settings(&url), "p1").await.unwrap_err();
        let (told, shown) = (refused.to_string(), format!("{refused:?}"));
        assert!(told.contains(wanted) && told.contains("cannot be the store"), "{place}: {told}");
        assert!(!told.contains(SECRET) && !shown.contains(SECRET), "{shown}");
    }
    let nobody = BucketSettings::new([("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned())]);
    let told = Store::open(&location("s3://store"), &nobody, "p1").await.unwrap_err().to_string();
    assert!(told.contains("there are no credentials"), "{told}");
}

/// A line that fails the first of the requests that it is asked about.
fn fails_once(moto: &Moto, fault: Fault, which: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Line {
    let failed = AtomicBool::new(false);
    Line::to(moto.port(), move |request| {
        let fails = which(request) && !failed.swap(true, Ordering::Relaxed);
        if fails { fault } else { Fault::None }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_whose_answer_is_lost_is_its_writers_own() {
    let Some(moto) = Moto::start("store") else { return };
    let faults = [Fault::DoneThenRefused, Fault::DoneThenCut, Fault::Refused, Fault::Cut];
    for (n, fault) in faults.into_iter().enumerate() {
        let run = RunId(format!("r{n}"));
        let line = fails_once(&moto, fault, |request| request.method == "PUT");
        let mut records = Records::of_run(store(&line.url()).await, &run, "a");
        records.append(b"one").await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        records.append(b"two").await.unwrap();
        assert!(line.seen().iter().filter(|r| r.method == "PUT").count() >= 2);
        let mut reader = Records::of_run(store(&moto.url()).await, &run, "b");
        assert_eq!(reader.replay().await.unwrap(), [b"one".to_vec(), b"two".to_vec()], "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_does_not_hide_that_somebody_else_was_first() {
    let Some(moto) = Moto::start("store") else { return };
    for (n, fault) in [Fault::DoneThenRefused, Fault::DoneThenCut, Fault::Cut].into_iter().enumerate() {
        let run = RunId(format!("r{n}"));
        Records::of_run(store(&moto.url()).await, &run, "other").append(b"one").await.unwrap();
        let line = fails_once(&moto, fault, |request| request.method == "PUT");
        // The same payload: only the writer's name tells them apart.
        let put = Records::of_run(store(&line.url()).await, &run, "late").append(b"one").await;
        assert!(matches!(put, Err(StoreError::Conflict { .. })), "{fault:?}: {put:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_the_first() {
    let Some(moto) = Moto::start("store") else { return };
    let line = fails_once(&moto, Fault::DoneThenRefused, |r| r.method == "PUT" && r.target.ends_with("manifest.json"));
    let store = store(&line.url()).await;
    let mut out = writer(&store, 1);
    out.write("t", &batch(&[1])).await.unwrap();
    let committed = out.commit(0.0, TimeMs(0)).await.unwrap();
    assert!(committed.first);
    let (_, found) = store.read_table(&committed.manifest.tables["t"], None).await.unwrap();
    assert_eq!(found, [batch(&[1])], "its parts were kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_parts_go_up_in_pieces_and_come_back_by_row_groups() {
    let Some(moto) = Moto::start("store") else { return };
    let line = fails_once(&moto, Fault::DoneThenRefused, |r| r.method == "POST" && r.target.contains("uploadId="));
    let store = store(&line.url()).await;
    let manifest = commit_large(&store).await.manifest;
    let part = &manifest.tables["t"].parts[0];
    let groups = part.pieces.len() - 1;
    assert!(groups >= 3 && manifest.tables["t"].parts.len() == 1, "{part:?}");
    assert_eq!(part.pieces.iter().map(|p| p.bytes).sum::<u64>(), part.bytes);
    let put = line.seen();
    assert!(put.iter().filter(|r| r.target.contains("partNumber=")).count() >= 3);

    let store = self::store(&line.url()).await;
    let before = line.seen().len();
    let wanted = RowRange { start: 1_000_000, end: 1_000_010 };
    let (_, found) = store.read_table(&manifest.tables["t"], Some(wanted)).await.unwrap();
    assert_eq!(rows(&found), (1_000_000..1_000_010).collect::<Vec<_>>());
    let fetched: Vec<u64> = line.seen()[before..].iter().map(ranged).collect();
    assert!(fetched.len() == 2 && fetched.iter().sum::<u64>() < part.bytes / 2, "{fetched:?} of {}", part.bytes);
    for (start, end) in [(0, 5), (LARGE - 3, LARGE), (900_000, 1_200_000), (7, 7)] {
        let range = RowRange { start: start as u64, end: end as u64 };
        let (_, found) = store.read_table(&manifest.tables["t"], Some(range)).await.unwrap();
        assert!(rows(&found) == (start..end).collect::<Vec<_>>(), "rows {start}..{end}");
    }
    let (_, found) = store.read_table(&manifest.tables["t"], None).await.unwrap();
    assert!(rows(&found) == (0..LARGE).collect::<Vec<_>>());

    // A row group is checked on its own.
    let key = format!("/team/{}", part.path);
    let mut bytes = moto.request("GET", &key, b"");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    moto.put(&key[1..], &bytes);
    let (mut refused, step) = (0, LARGE as u64 / 100);
    for n in 0..100 {
        let range = RowRange { start: n * step, end: n * step + 1 };
        refused += usize::from(store.read_table(&manifest.tables["t"], Some(range)).await.is_err());
    }
    assert!((100 / groups / 2..=200 / groups).contains(&refused), "{refused} of 100 rows, in {groups} groups");
}

/// Bytes that a request asks for.
fn ranged(request: &Request) -> u64 {
    let range = request.headers.lines().find_map(|h| h.strip_prefix("range: bytes=")).unwrap();
    let (from, to) = range.split_once('-').unwrap();
    to.parse::<u64>().unwrap() + 1 - from.parse::<u64>().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_comes_back_by_its_own_bytes() {
    let Some(moto) = Moto::start("store") else { return };
    let line = Line::to(moto.port(), |_| Fault::None);
    // Long texts, of which a stage wants what stands beside them; and a column of eight bytes that it wants.
    let count = 20_000;
    let text = |row: i64| {
        (0..32).map(move |n| format!("{:016x}", (32 * row + n).wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64)))
    };
    let texts = (0..count).map(|row| Some(text(row).collect::<String>()));
    let columns: [(&str, ArrayRef); 3] = [
        ("sample", Arc::new(Int64Array::from_iter_values(0..count))),
        ("text", Arc::new(texts.collect::<StringArray>())),
        ("p", Arc::new(Int64Array::from_iter_values((0..count).map(|row| row.wrapping_mul(-0x61C8_8646_80B5_83EB))))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let store = store(&line.url()).await;
    let mut out = writer(&store, 1);
    out.write("t", &batch).await.unwrap();
    let table = out.commit(0.0, TimeMs(0)).await.unwrap().manifest.tables["t"].clone();
    let part = &table.parts[0];
    let read = |rows: Option<RowRange>, columns: &'static [&'static str]| {
        let (store, line, table) = (&store, &line, &table);
        async move {
            let before = line.seen().len();
            let found = store.read_columns(table, rows, Some(columns)).await;
            let requests: Vec<u64> = line.seen()[before..].iter().map(ranged).collect();
            (found.map(|(schema, batches)| concat_batches(&schema, &batches).unwrap()), requests)
        }
    };

    let (found, requests) = read(None, &["p", "sample"]).await;
    assert_eq!(found.unwrap().columns(), batch.project(&[0, 2]).unwrap().columns());
    let footer = part.pieces.last().unwrap().bytes;
    let groups = &part.pieces[..part.pieces.len() - 1];
    let chunks: u64 = groups.iter().map(|group| group.columns[0].bytes + group.columns[2].bytes).sum();
    assert_eq!(requests.iter().sum::<u64>(), chunks + footer, "{requests:?} of {}", part.bytes);
    assert!(chunks + footer < part.bytes / 20, "{chunks} and {footer} of {}", part.bytes);
    assert!(requests.len() <= groups.len() + 1, "what lies side by side is one request: {requests:?}");
    let (found, requests) = read(Some(RowRange { start: 15_000, end: 15_002 }), &["p"]).await;
    assert_eq!(found.unwrap().columns(), batch.project(&[2]).unwrap().slice(15_000, 2).columns());
    assert!(requests.iter().sum::<u64>() < chunks + footer);
    let (found, requests) = read(None, &[]).await;
    assert_eq!((found.unwrap().num_rows(), requests), (20_000, vec![footer]), "how many there are");

    // A column is checked on its own: what is damaged elsewhere is not seen, and what is damaged in it is refused.
    let key = format!("/team/{}", part.path);
    let whole = moto.request("GET", &key, b"");
    let damage = |at: u64| {
        let mut bytes = whole.clone();
        bytes[at as usize] ^= 1;
        moto.put(&key[1..], &bytes);
    };
    let first = &groups[0].columns;
    damage(first[0].bytes + first[1].bytes / 2);
    assert!(read(None, &["p", "sample"]).await.0.is_ok());
    damage(first[0].bytes + first[1].bytes + first[2].bytes / 2);
    let refused = read(None, &["p"]).await.0.unwrap_err().to_string();
    assert!(refused.contains("its checksum is not the manifest's"), "{refused}");
    assert!(read(None, &["sample"]).await.0.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_fails_leaves_nothing() {
    let Some(moto) = Moto::start("store") else { return };
    for which in ["partNumber=3", "uploadId=", "manifest.json"] {
        let denied = move |r: &Request| {
            let ends = which != "uploadId=" || r.method == "POST";
            if ends && r.method != "GET" && r.target.contains(which) { Fault::Denied } else { Fault::None }
        };
        let line = Line::to(moto.port(), denied);
        let store = store(&line.url()).await;
        let mut out = writer(&store, 1);
        let wrote = out.write("t", &large(LARGE)).await;
        match wrote {
            Ok(()) => assert!(out.commit(0.0, TimeMs(0)).await.is_err()),
            Err(_) => out.discard().await,
        }
        let uploads = String::from_utf8(moto.request("GET", "?uploads", b"")).unwrap();
        assert!(!uploads.contains("<UploadId>"), "{which}: {uploads}");
        assert!(store.manifest(&offer(1).key).await.unwrap().is_none());
        if which != "manifest.json" {
            let listed = String::from_utf8(moto.request("GET", "?list-type=2", b"")).unwrap();
            assert_eq!(listed.matches("<Key>").count(), 0, "{which}: {listed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_workers_of_a_machine_fetch_a_part_once() {
    let Some(moto) = Moto::start("store") else { return };
    let fetched = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fetched);
    let line = Line::to(moto.port(), move |request| {
        let part = request.method == "GET" && request.target.ends_with(".parquet");
        count.fetch_add(usize::from(part), Ordering::Relaxed);
        Fault::None
    });
    let manifest = commit_large(&store(&moto.url()).await).await.manifest;
    let table = Arc::new(manifest.tables["t"].clone());
    let folder = tempfile::tempdir().unwrap();
    let mut readers = Vec::new();
    for _ in 0..4 {
        let store = store(&line.url()).await.with_cache(folder.path(), 1 << 30).unwrap();
        let table = Arc::clone(&table);
        readers.push(tokio::spawn(async move { rows(&store.read_table(&table, None).await.unwrap().1).len() }));
    }
    for read in futures::future::join_all(readers).await {
        assert_eq!(read.unwrap(), LARGE as usize);
    }
    assert_eq!(fetched.load(Ordering::Relaxed), 1);
    // What a process that was killed left of it is fetched anew.
    let cached = folder.path().join(&table.parts[0].sha256);
    std::fs::write(&cached, b"PAR1").unwrap();
    let store = store(&line.url()).await.with_cache(folder.path(), 1 << 30).unwrap();
    assert_eq!(rows(&store.read_table(&table, None).await.unwrap().1).len(), LARGE as usize);
    assert_eq!(fetched.load(Ordering::Relaxed), 2);
    assert_eq!(std::fs::metadata(&cached).unwrap().len(), table.parts[0].bytes);
}
