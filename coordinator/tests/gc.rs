//! `gc` over stores that real drivers filled: whatever is drawn, a kept run computes nothing when it is run again, an
//! unfinished one loses nothing that it had, and what nobody can reach is gone.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail where it stands")]

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use rallrec_coordinator::{
    Clock, Control, Driver, Notice, RunEnd, Settings, SystemClock,
    gc::{Ages, Collected, GcError, Keep, Tally, collect, dry_run, wait_for_collections},
};
use rallrec_core::{
    ids::{RunId, TimeMs, WorkerId},
    key::Key,
    plan::{Pins, Plan},
    rng::row_rng,
    run::Event,
    spec::compile,
    task::{FailureClass, MemoryMb, Outcome, TaskOffer, TaskReport},
};
use rallrec_proto::{decode_offer, encode_report};
use rallrec_queue::{CoordinatorEnd, MemoryQueue, WorkerEnd};
use rallrec_store::{ArtifactWriter, BucketSettings, Checkpoint, Producer, Records, Store};
use rallrec_test_servers::Moto;
use rand_chacha::rand_core::Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};
use tokio::sync::mpsc;

/// Nothing is too young to go.
const NOW: Ages = Ages { recent_ms: 0, abandoned_ms: 0 };

/// Two stages of rows over rows of one task, and one that gathers them.
fn plan(pipeline: &str, count: u64, wait: u64, shard: u64) -> Plan {
    let text = format!(
        "rallrec: 1\nname: {pipeline}\nstages:\n  begin: {{kind: rows, with: {{count: {count}}}}}\n  first: {{kind: wait, needs: {{rows: begin}}, with: {{milliseconds: {wait}}}, shards: {{rows: {shard}}}}}\n  second: {{kind: wait, needs: {{rows: first}}, shards: {{rows: 2}}}}\n  gather: {{kind: rows, needs: {{after: [second]}}}}\n"
    );
    let pipeline = compile("p.yaml", &text, &[]).unwrap_or_else(|e| panic!("{e:?}"));
    Plan::new(&pipeline, &Pins::default()).unwrap()
}

/// What a worker does with an attempt.
#[derive(Clone, Copy, PartialEq)]
enum Temper {
    Good,
    /// Every attempt at a row-wise shard with this number fails.
    Fails(u32),
    /// The process ends at the first report after so many.
    Dies(usize),
}

async fn commit(store: &Store, offer: &TaskOffer) -> Outcome {
    let producer = Producer { offer: offer.clone(), program: "test".into(), writer: "w".into() };
    let mut artifact = ArtifactWriter::new(store.clone(), producer);
    let rows = offer.rows.map_or_else(|| offer.params["count"].as_u64().unwrap(), |rows| rows.len());
    artifact.write("rows", &batch(rows)).await.unwrap();
    let committed = artifact.commit(0.0, TimeMs(0)).await.unwrap();
    Outcome::Committed { summary: committed.manifest.summary(), first: committed.first }
}

fn batch(rows: u64) -> RecordBatch {
    let rows = Arc::new(Int64Array::from_iter_values(0..rows as i64)) as ArrayRef;
    RecordBatch::try_from_iter([("row", rows)]).unwrap()
}

async fn work(store: Store, queue: Arc<MemoryQueue>, plan: Arc<Plan>, temper: Temper) {
    let mut lanes = Vec::new();
    for stage in &plan.stages {
        let lane = rallrec_core::lane::Lane::of(stage).anywhere();
        if !lanes.contains(&lane) {
            lanes.push(lane);
        }
    }
    let mut reports = 0;
    while let Ok(Some(delivery)) = WorkerEnd::claim(&*queue, &lanes).await {
        let offer = decode_offer(delivery.payload()).unwrap();
        let outcome = if temper == Temper::Fails(offer.task.shard) && offer.rows.is_some() {
            Outcome::Failed { class: FailureClass::Permanent, message: "drawn".into(), needed: MemoryMb::default() }
        } else {
            commit(&store, &offer).await
        };
        reports += 1;
        if matches!(temper, Temper::Dies(after) if reports > after) {
            return;
        }
        let report = TaskReport {
            run: offer.run.clone(),
            task: offer.task,
            attempt: offer.attempt,
            worker: WorkerId("w".into()),
            outcome,
        };
        queue.report(&offer.run, encode_report(&report)).await.unwrap();
        delivery.ack();
    }
}

/// Drives a run to its end, or until its process dies; gives its events of this time.
async fn drive(store: &Store, run: &RunId, plan: &Plan, temper: Temper) -> (Option<RunEnd>, Vec<Event>) {
    let plan = Arc::new(plan.clone());
    let queue = Arc::new(MemoryQueue::new(64));
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let (_control, control) = mpsc::channel::<Control>(1);
    let driver = Driver {
        artifacts: store.clone(),
        journal: Records::of_run(store.clone(), run, format!("driver of {run}")),
        queue: Arc::clone(&queue) as Arc<dyn CoordinatorEnd>,
        clock: Arc::new(SystemClock),
        settings: Settings::new(BTreeMap::from([("cpu".to_owned(), 4)])),
        control,
        observer: Box::new(move |notice| {
            if let Notice::Event(event) = notice {
                heard.lock().unwrap().push(event.clone());
            }
        }),
    };
    let begun = !Records::of_run(store.clone(), run, "reader").is_empty().await.unwrap();
    let driven = async {
        if begun { driver.resume().await.unwrap() } else { driver.start(run.clone(), Arc::clone(&plan)).await.unwrap() }
    };
    let ended = tokio::select! {
        biased;
        ended = driven => Some(ended),
        () = work(store.clone(), Arc::clone(&queue), Arc::clone(&plan), temper) => None,
    };
    let events = std::mem::take(&mut *events.lock().unwrap());
    (ended, events)
}

async fn begin(store: &Store, run: &RunId, plan: &Plan, temper: Temper) -> Option<RunEnd> {
    store.create_run_file(run, "plan.json", serde_json::to_vec(plan).unwrap()).await.unwrap();
    drive(store, run, plan, temper).await.0
}

fn dispatched(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::TaskDispatched { .. })).count()
}

async fn gc(store: &Store, keep: &Keep) -> Collected {
    collect(store, keep, NOW, &|_| false, now(), "test").await.unwrap()
}

/// By this machine's clock.
fn now() -> TimeMs {
    Clock::now(&SystemClock)
}

struct Drawn {
    run: RunId,
    plan: Plan,
    done: bool,
    open: bool,
}

async fn draw(store: &Store, seed: u64) -> Vec<Drawn> {
    let mut dice = row_rng(seed, "gc", 0, 0);
    let mut upto = |n: u64| dice.next_u64() % n;
    let mut runs = Vec::new();
    for number in 0..4 + upto(4) {
        let run = RunId(format!("r{number}"));
        let plan = plan(["a", "b"][upto(2) as usize], [1, 3, 5, 7][upto(4) as usize], upto(2), 1 + upto(3));
        let temper = match upto(4) {
            0 => Temper::Fails(upto(3) as u32),
            1 => Temper::Dies(upto(9) as usize),
            _ => Temper::Good,
        };
        let ended = begin(store, &run, &plan, temper).await;
        runs.push(Drawn { run, plan, done: ended == Some(RunEnd::Done), open: ended.is_none() });
    }
    runs
}

#[tokio::test]
async fn kept_runs_compute_nothing_and_unreachable_things_go() {
    let mut seen = (0, 0);
    for seed in 0..60 {
        let store = Store::memory();
        let runs = draw(&store, seed).await;
        let last = [None, Some(1), Some(2)][seed as usize % 3];
        let forget = runs.iter().filter(|run| seed % 4 == 0 && run.run.0 == "r1").map(|run| run.run.clone()).collect();
        let keep = Keep { last, days: None, forget };
        let told = dry_run(&store, &keep, NOW, &|_| false, now()).await.unwrap();
        let gone = gc(&store, &keep).await;
        assert_eq!(gone, Collected { deleted: true, ..told }, "seed {seed}: what was told is what was done");
        seen.0 += gone.artifacts.count;
        assert_eq!(store.marks().await.unwrap(), BTreeMap::new(), "seed {seed}");
        let again = gc(&store, &keep_all()).await;
        assert_eq!((again.runs.len(), again.bytes()), (0, 0), "seed {seed}: nothing is left to do: {again:?}");
        let gone: BTreeSet<_> = gone.runs.into_iter().collect();
        for drawn in runs.iter().filter(|drawn| !gone.contains(&drawn.run)) {
            let context = format!("seed {seed}, {}", drawn.run);
            if drawn.done {
                let run = RunId(format!("{}-again", drawn.run));
                let (ended, events) = drive(&store, &run, &drawn.plan, Temper::Good).await;
                assert_eq!((ended, dispatched(&events)), (Some(RunEnd::Done), 0), "{context}");
                seen.1 += 1;
            }
        }
        // Unfinished ones last: they make what was missing.
        for drawn in runs.iter().filter(|drawn| !gone.contains(&drawn.run) && drawn.open) {
            resume(&store, drawn, &format!("seed {seed}, {}", drawn.run)).await;
        }
    }
    assert!(seen.0 > 100 && seen.1 > 50, "what the seeds draw is worth testing: {seen:?}");
}

fn keep_all() -> Keep {
    Keep::default()
}

/// What an unfinished run had is still there when it goes on.
async fn resume(store: &Store, drawn: &Drawn, context: &str) {
    let mut had = BTreeSet::new();
    for record in Records::of_run(store.clone(), &drawn.run, "reader").replay().await.unwrap() {
        for event in rallrec_core::run::JournalRecord::decode(&record).unwrap().events {
            if let Event::TaskCommitted { task, .. } | Event::TaskReused { task, .. } = event {
                had.insert(task);
            }
        }
    }
    let (ended, events) = drive(store, &drawn.run, &drawn.plan, Temper::Good).await;
    assert_eq!(ended, Some(RunEnd::Done), "{context}");
    for event in events {
        if let Event::TaskDispatched { task, .. } = event {
            assert!(!had.contains(&task), "{context}: {task} was computed again");
        }
    }
}

#[tokio::test]
async fn the_last_done_runs_stay_and_what_came_after_them() {
    let store = Store::memory();
    let all = [Temper::Good, Temper::Fails(0), Temper::Good, Temper::Fails(0)];
    for (number, temper) in all.into_iter().enumerate() {
        begin(&store, &RunId(format!("r{number}")), &plan("a", 3 + number as u64, 0, 2), temper).await;
    }
    begin(&store, &RunId("other".into()), &plan("b", 3, 1, 2), Temper::Good).await;
    let gone = gc(&store, &Keep { last: Some(1), ..Keep::default() }).await;
    assert_eq!(gone.runs, ["r0", "r1"].map(|run| RunId(run.into())));
    let kept = gc(&store, &Keep { days: Some(1), ..Keep::default() }).await;
    assert_eq!((kept.runs.len(), kept.kept_runs), (0, 3), "all ended today");
    // A day that is over is over.
    let tomorrow = TimeMs(now().0 + 3 * 86_400_000);
    let keep = Keep { days: Some(1), ..Keep::default() };
    let gone = dry_run(&store, &keep, NOW, &|_| false, tomorrow).await.unwrap();
    assert_eq!(gone.runs.len(), 3);
}

/// An unfinished run whose rows are not known yet may ask for any shard that anybody made.
#[tokio::test]
async fn what_a_run_may_ask_for_later_stays() {
    let store = Store::memory();
    let plan = plan("a", 5, 0, 2);
    let open = RunId("r1".into());
    assert_eq!(begin(&store, &open, &plan, Temper::Dies(0)).await, None);
    let done = RunId("r2".into());
    assert_eq!(begin(&store, &done, &plan, Temper::Good).await, Some(RunEnd::Done));
    let gone = gc(&store, &Keep { forget: [done].into(), ..Keep::default() }).await;
    assert_eq!(gone.artifacts, Tally::default());
    let (ended, events) = drive(&store, &open, &plan, Temper::Good).await;
    assert_eq!((ended, dispatched(&events)), (Some(RunEnd::Done), 0));
}

#[tokio::test]
async fn what_is_young_or_being_written_stays() {
    let store = Store::memory();
    let (run, plan) = (RunId("r1".into()), plan("a", 3, 0, 2));
    assert_eq!(begin(&store, &run, &plan, Temper::Dies(1)).await, None);
    // An attempt of a run that goes on, and one of nobody's.
    let mine = plan.stages[0].stage_key.clone();
    assert!(store.manifest(&mine).await.unwrap().is_some());
    let gather = plan.stages[3].stage_key.clone();
    store.put_checkpoint(&gather, &Checkpoint { number: 1, state: vec![1] }).await.unwrap();
    let nobody = Key("ab".repeat(32));
    store.put_checkpoint(&nobody, &Checkpoint { number: 1, state: vec![1] }).await.unwrap();
    let young = collect(&store, &Keep::default(), Ages::default(), &|_| false, now(), "t").await.unwrap();
    assert_eq!(young.bytes(), 0, "{young:?}");
    let gone = gc(&store, &Keep::default()).await;
    assert_eq!(gone.checkpoints.count, 1);
    assert!(store.checkpoint(&gather).await.unwrap().is_some() && store.checkpoint(&nobody).await.unwrap().is_none());
}

/// Parts without a manifest stay while somebody may be about to put it, and else go, as do those of attempts that lost.
#[tokio::test]
async fn parts_that_no_manifest_names_go_unless_they_may_get_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::local(folder.path()).await.unwrap();
    let (run, plan) = (RunId("r1".into()), plan("a", 3, 0, 2));
    assert_eq!(begin(&store, &run, &plan, Temper::Dies(1)).await, None);
    let begun = plan.stages[0].stage_key.clone();
    let coming = plan.stages[3].stage_key.clone();
    let nobody = Key("ab".repeat(32));
    let part = |(key, attempt): (&Key, &str)| {
        folder.path().join(format!("artifacts/{}/{key}/{attempt}/rows-00000.parquet", &key.0[..2]))
    };
    let parts = [(&begun, "r8-0-0-1-x"), (&begun, "r9-0-0-1-x"), (&coming, "r1-3-0-1-x"), (&nobody, "r9-0-0-1-x")];
    for path in parts.map(part) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"part").unwrap();
    }
    let young = collect(&store, &Keep::default(), Ages::default(), &|_| false, now(), "t").await.unwrap();
    assert_eq!(young.bytes(), 0, "{young:?}");
    assert_eq!(gc(&store, &Keep::default()).await.parts, Tally { count: 3, bytes: 12 });
    assert_eq!(parts.map(|key| part(key).exists()), [false, false, true, false]);
    let manifest = store.manifest(&begun).await.unwrap().unwrap();
    assert!(store.read_table(&manifest.tables["rows"], None).await.is_ok(), "the one that won is whole");
}

/// The objects in a server's bucket, page by page, past our own client.
fn keys(moto: &Moto) -> BTreeSet<String> {
    let (mut keys, mut after) = (BTreeSet::new(), String::new());
    loop {
        let page = moto.request("GET", &format!("?list-type=2&start-after={after}"), b"");
        let page = String::from_utf8(page).unwrap();
        keys.extend(page.split("<Key>").skip(1).map(|rest| rest[..rest.find('<').unwrap()].to_owned()));
        if page.contains("<IsTruncated>false") {
            return keys;
        }
        after = keys.last().unwrap().clone();
    }
}

/// Puts marks until the store's clock, which tells whole seconds of them, is past all that was put so far.
async fn a_second_passes(store: &Store) {
    let first = store.put_mark("clock", 0).await.unwrap();
    for number in 1.. {
        if store.put_mark("clock", number).await.unwrap() > first {
            break;
        }
    }
    store.remove_mark("clock").await.unwrap();
}

/// The same in S3, where listings come in pages, and the server's clock tells ages.
#[tokio::test]
async fn a_bucket_is_collected_as_a_folder_is() {
    let Some(moto) = Moto::start("collected") else { return };
    let variables =
        [("AWS_ENDPOINT_URL", moto.url().as_str()), ("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let store =
        Store::open(&"s3://collected/team".parse().unwrap(), &BucketSettings::new(variables), "t").await.unwrap();
    let (old, kept, open) = (RunId("r1".into()), RunId("r2".into()), RunId("r3".into()));
    let (unlike, good, other) = (plan("a", 7, 1, 2), plan("a", 5, 0, 2), plan("b", 3, 2, 1));
    assert_eq!(begin(&store, &old, &unlike, Temper::Good).await, Some(RunEnd::Done));
    // More than a page of one run's objects, and what nobody needs of every kind.
    let logs = (0..1010).map(|n| format!("team/runs/r1/logs/first/0/{n}/000000000000"));
    let nobody = "ab".repeat(32);
    let litter = [format!("artifacts/ab/{nobody}/r9-0-0-1-x/rows-00000.parquet"), format!("sources/{nobody}/weights")];
    let litter: Vec<String> = logs.chain(litter.map(|key| format!("team/{key}"))).collect();
    litter.iter().for_each(|key| moto.put(key, b"{}"));
    let key = Key(nobody);
    store.put_checkpoint(&key, &Checkpoint { number: 1, state: vec![1] }).await.unwrap();
    moto.put("elsewhere/runs/r1/plan.json", b"of another prefix");
    assert_eq!(begin(&store, &kept, &good, Temper::Good).await, Some(RunEnd::Done));
    assert_eq!(begin(&store, &open, &other, Temper::Dies(4)).await, None);
    a_second_passes(&store).await;

    let before = keys(&moto);
    let keep = Keep { last: Some(1), ..Keep::default() };
    let young = dry_run(&store, &keep, Ages::default(), &|_| false, now()).await.unwrap();
    assert_eq!(
        (young.runs.len(), young.artifacts.count + young.parts.count + young.sources.count),
        (1, 0),
        "{young:?}"
    );
    let told = dry_run(&store, &keep, NOW, &|_| false, now()).await.unwrap();
    assert_eq!(keys(&moto), before, "a dry run leaves all as it was");
    assert_eq!((&told.runs[..], told.kept_runs), (&[old][..], 2));
    let gone = gc(&store, &keep).await;
    assert_eq!(gone, Collected { deleted: true, ..told }, "what was told is what was done");
    let counts = [gone.parts, gone.checkpoints, gone.sources].map(|tally| tally.count);
    assert!(gone.run_files.count > 1010 && gone.artifacts.count > 5 && counts == [1, 1, 1], "{gone:?}");

    let after = keys(&moto);
    assert!(after.is_subset(&before) && litter.iter().all(|key| !after.contains(key)));
    assert!(after.contains("elsewhere/runs/r1/plan.json"), "what is not under the prefix is nobody's business");
    assert!(!after.iter().any(|key| key.starts_with("team/runs/r1/") || key.starts_with("team/gc/")));
    let again = RunId("r2-again".into());
    let (ended, events) = drive(&store, &again, &good, Temper::Good).await;
    assert_eq!((ended, dispatched(&events)), (Some(RunEnd::Done), 0));
    let rows = store.manifest(&good.stages[0].stage_key).await.unwrap().unwrap();
    assert!(store.read_table(&rows.tables["rows"], None).await.is_ok(), "what is kept is whole");
    resume(&store, &Drawn { run: open, plan: other, done: false, open: true }, "in S3").await;
}

#[tokio::test]
async fn what_is_active_unknown_or_unreadable_is_refused() {
    let store = Store::memory();
    let run = RunId("r1".into());
    begin(&store, &run, &plan("a", 3, 0, 2), Temper::Good).await;
    let forget = |run: &RunId| Keep { forget: [run.clone()].into(), ..Keep::default() };
    let now = now();
    let driven = dry_run(&store, &forget(&run), NOW, &|_| true, now).await;
    assert!(matches!(driven, Err(GcError::Active { .. })), "{driven:?}");
    let unknown = dry_run(&store, &forget(&RunId("r2".into())), NOW, &|_| false, now).await;
    assert!(matches!(unknown, Err(GcError::NoRun { .. })), "{unknown:?}");
    let newer = RunId("r3".into());
    store.create_run_file(&newer, "plan.json", b"{\"version\":9}".to_vec()).await.unwrap();
    let unreadable = dry_run(&store, &Keep::default(), NOW, &|_| false, now).await.unwrap_err().to_string();
    assert!(unreadable.contains("--forget r3"), "{unreadable}");
    assert_eq!(gc(&store, &forget(&newer)).await.runs, [newer]);
}

#[tokio::test]
async fn one_collection_at_a_time_and_runs_wait_for_it() {
    let store = Store::memory();
    assert!(!wait_for_collections(&store).await.unwrap(), "nobody waits for nothing");
    store.put_mark("other", 0).await.unwrap();
    // While a run waits, the mark's owner lives, and then goes.
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { wait_for_collections(&store).await.unwrap() })
    };
    let collecting = {
        let store = store.clone();
        let collected = async move { collect(&store, &Keep::default(), NOW, &|_| false, now(), "mine").await };
        tokio::spawn(collected)
    };
    let mut number = 0;
    while !collecting.is_finished() {
        number += 1;
        store.put_mark("other", number).await.unwrap();
        tokio::task::yield_now().await;
    }
    let busy = collecting.await.unwrap();
    assert!(matches!(&busy, Err(GcError::Busy { other }) if other == "other"), "{busy:?}");
    assert!(!waiting.is_finished());
    assert_eq!(store.marks().await.unwrap().keys().collect::<Vec<_>>(), ["other"]);
    store.remove_mark("other").await.unwrap();
    assert!(waiting.await.unwrap(), "it waited");
}

/// The clock is tokio's own and jumps.
#[tokio::test(start_paused = true)]
async fn a_dead_collection_holds_nobody_up_for_long() {
    let store = Store::memory();
    store.put_mark("dead", 7).await.unwrap();
    assert!(wait_for_collections(&store).await.unwrap());
    let collected = collect(&store, &Keep::default(), NOW, &|_| false, now(), "mine").await.unwrap();
    assert!(collected.deleted);
    assert!(store.marks().await.unwrap().is_empty(), "the next one clears up");
}
