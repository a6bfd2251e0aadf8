//! The driver in a simulated world: faults, crashes at every journal record, fencing, cancelling.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail where it stands")]

mod world;

use rallrec_coordinator::{Control, DriverError, RunEnd};
use rallrec_core::{
    ids::{RunId, TaskId},
    run::{Event, RunState},
};
use rallrec_store::{Records, Store};
use std::collections::BTreeSet;
use tokio::sync::watch;
use world::{AnyJournal, Process, SimJournal, SimStore, Temper, plan};

/// Tasks of [`plan`] with 13 samples: 1 + 7 + 5 + 1 + 3 + 1.
const TASKS: usize = 18;

fn process(store: &SimStore, journal: &SimJournal, temper: Temper) -> Process {
    Process::new(store, AnyJournal::Sim(journal.clone()), temper)
}

/// No committed task is dispatched again, and each becomes done once; replay is legal.
fn check_journal(events: &[Event]) {
    let mut done: BTreeSet<TaskId> = BTreeSet::new();
    for event in events {
        match event {
            Event::TaskDispatched { task, .. } => assert!(!done.contains(task), "{task} was done and ran again"),
            Event::TaskCommitted { task, .. } | Event::TaskReused { task, .. } => assert!(done.insert(*task)),
            _ => {}
        }
    }
    assert_eq!(done.len(), TASKS);
    RunState::replay(events).unwrap();
}

#[tokio::test]
async fn a_run_ends_and_the_next_one_computes_nothing() {
    let (store, journal) = (SimStore::default(), SimJournal::default());
    let mut first = process(&store, &journal, Temper::good());
    assert_eq!(first.start(&plan(13)).await.unwrap(), RunEnd::Done);
    check_journal(&journal.events());
    assert_eq!(store.computed.lock().unwrap().values().copied().collect::<Vec<_>>(), [1; TASKS]);
    let told = first.notices.lock().unwrap().clone();
    assert_eq!(told.iter().filter(|n| **n == "progress").count(), TASKS);
    assert_eq!((told[0], told[told.len() - 2], told[told.len() - 1]), ("run_started", "run_finished", "state"));

    let second = SimJournal::default();
    assert_eq!(process(&store, &second, Temper::good()).start(&plan(13)).await.unwrap(), RunEnd::Done);
    check_journal(&second.events());
    assert!(second.events().iter().all(|e| !matches!(e, Event::TaskDispatched { .. })));
}

#[tokio::test]
async fn faulty_workers_cost_time_and_nothing_else() {
    for seed in 0..60 {
        let (store, journal) = (SimStore::default(), SimJournal::default());
        let temper = Temper { seed, faults: 40, ..Temper::good() };
        let mut end = process(&store, &journal, temper.clone()).start(&plan(13)).await.unwrap();
        // Three losses of one task are quarantine, and the run then fails; resuming it gives the task a new chance.
        while let RunEnd::Failed { errors } = &end {
            assert!(errors.iter().all(|e| e.message.contains("lost its worker")), "seed {seed}: {errors:?}");
            end = process(&store, &journal.reopened(), temper.clone()).resume().await.unwrap();
        }
        assert_eq!(end, RunEnd::Done, "seed {seed}");
        check_journal(&journal.events());
        assert_eq!(store.artifacts.lock().unwrap().len(), TASKS, "seed {seed}");
    }
}

#[tokio::test]
async fn a_crash_at_any_journal_record_is_resumed() {
    let mut survived = 0;
    for dies_at in 0.. {
        let mut died = false;
        for dies_after_write in [false, true] {
            let (store, intact) = (SimStore::default(), SimJournal::default());
            let mortal = SimJournal { dies_at: Some(dies_at), dies_after_write, ..intact.reopened() };
            let end =
                process(&store, &mortal, Temper { seed: dies_at as u64, ..Temper::good() }).start(&plan(13)).await;
            if end.is_ok() {
                continue;
            }
            died = true;
            let begun = !intact.records.lock().unwrap().is_empty();
            let mut next = process(&store, &intact.reopened(), Temper::good());
            let end = if begun { next.resume().await } else { next.start(&plan(13)).await };
            assert_eq!(end.unwrap(), RunEnd::Done, "died at record {dies_at}");
            check_journal(&intact.events());
            assert_eq!(store.computed.lock().unwrap().values().copied().collect::<Vec<_>>(), [1; TASKS]);
            survived += 1;
        }
        if !died {
            break;
        }
    }
    assert!(survived > 20, "only {survived} crashes");
}

/// A snapshot is read for speed; the journal alone is enough.
#[tokio::test]
async fn a_damaged_snapshot_costs_nothing() {
    let (store, journal) = (SimStore::default(), SimJournal { dies_at: Some(9), ..SimJournal::default() });
    process(&store, &journal, Temper::good()).start(&plan(13)).await.unwrap_err();
    let whole = journal.reopened();
    let (next, kept) = journal.snapshots.lock().unwrap().last_key_value().map(|(n, kept)| (*n, kept.clone())).unwrap();
    let state = rallrec_coordinator::replay(&mut whole.reopened()).await.unwrap().unwrap();
    let newer = String::from_utf8(kept.clone()).unwrap().replacen("\"version\":1", "\"version\":2", 1).into_bytes();
    for damaged in [kept[..kept.len() / 2].to_vec(), newer, b"{}".to_vec()] {
        journal.snapshots.lock().unwrap().insert(next, damaged);
        let again = rallrec_coordinator::replay(&mut whole.reopened()).await.unwrap().unwrap();
        assert_eq!(again, state);
    }
    assert_eq!(process(&store, &whole, Temper::good()).resume().await.unwrap(), RunEnd::Done);
    check_journal(&journal.events());
}

#[tokio::test]
async fn a_coordinator_that_was_overtaken_stops() {
    let (objects, store) = (Store::memory(), SimStore::default());
    let journal = |writer: &str| AnyJournal::Real(Records::of_run(objects.clone(), &RunId("r".into()), writer));
    let (open, gate) = watch::channel(false);
    let mut first = Process::new(&store, journal("first"), Temper { gate, ..Temper::good() });
    let plan = plan(13);
    let overtaken = async {
        // Takes over as soon as the first has something under way.
        while store.artifacts.lock().unwrap().is_empty() {
            let mut second = Process::new(&store, journal("second"), Temper::good());
            match second.resume().await {
                Ok(end) => assert_eq!(end, RunEnd::Done),
                Err(DriverError::NothingToResume) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        }
        open.send_replace(true);
    };
    let (end, ()) = tokio::join!(first.start(&plan), overtaken);
    assert_eq!(end.unwrap(), RunEnd::Fenced);
}

#[tokio::test]
async fn a_cancelled_run_drains_and_can_be_resumed() {
    let (store, journal) = (SimStore::default(), SimJournal::default());
    let (open, gate) = watch::channel(false);
    let mut first = process(&store, &journal, Temper { gate, ..Temper::good() });
    let control = first.control.clone();
    let (records, plan) = (journal.clone(), plan(13));
    let cancel = async {
        while !records.events().iter().any(|e| matches!(e, Event::TaskStarted { .. })) {
            tokio::task::yield_now().await;
        }
        control.send(Control::Cancel).await.unwrap();
        while !records.events().iter().any(|e| matches!(e, Event::CancelRequested { .. })) {
            tokio::task::yield_now().await;
        }
        open.send_replace(true);
    };
    let (end, ()) = tokio::join!(first.start(&plan), cancel);
    assert_eq!(end.unwrap(), RunEnd::Cancelled);
    assert_eq!(store.artifacts.lock().unwrap().len(), 1, "what had begun was let end");
    assert_eq!(process(&store, &journal.reopened(), Temper::good()).resume().await.unwrap(), RunEnd::Done);
    check_journal(&journal.events());
    // Once more: done stays done, and nothing is journaled.
    let before = journal.records.lock().unwrap().len();
    assert_eq!(process(&store, &journal.reopened(), Temper::good()).resume().await.unwrap(), RunEnd::Done);
    assert_eq!(journal.records.lock().unwrap().len(), before);
}

#[tokio::test]
async fn a_failed_task_fails_the_run_and_the_rest_is_still_made() {
    let (store, journal) = (SimStore::default(), SimJournal::default());
    let plan = plan(13);
    let bad = plan.stages[1].task_key(Some(plan.stages[1].shards(20)[6]));
    let end = process(&store, &journal, Temper { poisoned: Some(bad), ..Temper::good() }).start(&plan).await.unwrap();
    let RunEnd::Failed { errors } = end else { panic!("{end:?}") };
    let errors: Vec<_> = errors.iter().map(|e| (e.task.to_string(), e.message.as_str())).collect();
    assert_eq!(errors, [("1/6".to_string(), "row 7 is bad")]);
    // The data set, six shards, and the four of the five above that do not need rows 18..20.
    assert_eq!(store.artifacts.lock().unwrap().len(), 1 + 6 + 4);
}

#[tokio::test]
async fn what_cannot_be_driven_is_said_at_once() {
    let (store, journal) = (SimStore::default(), SimJournal::default());
    let nothing = process(&store, &journal, Temper::good()).resume().await;
    assert!(matches!(nothing, Err(DriverError::NothingToResume)));
    let mut gpu = plan(13);
    gpu.stages[3].resources.pool = "gpu".into();
    let idle = process(&store, &journal, Temper::good()).start(&gpu).await;
    assert!(matches!(idle, Err(DriverError::NoSlots { pool }) if pool == "gpu"));
    assert_eq!(process(&store, &journal, Temper::good()).start(&plan(13)).await.unwrap(), RunEnd::Done);
    let twice = process(&store, &journal.reopened(), Temper::good()).start(&plan(13)).await;
    assert!(matches!(twice, Err(DriverError::Begun { .. })));
}

/// Tasks a second through driver, queue and wire; printed (`--no-capture`), not judged, as machines differ.
#[tokio::test]
async fn many_tasks_pass() {
    let (store, journal) = (SimStore::default(), SimJournal::default());
    let begun = std::time::Instant::now();
    assert_eq!(process(&store, &journal, Temper::good()).start(&plan(100_000)).await.unwrap(), RunEnd::Done);
    let (tasks, took) = (store.artifacts.lock().unwrap().len(), begun.elapsed());
    let again = std::time::Instant::now();
    assert_eq!(
        process(&store, &SimJournal::default(), Temper::good()).start(&plan(100_000)).await.unwrap(),
        RunEnd::Done
    );
    println!(
        "{tasks} tasks in {took:?}, cached {:?}, {} journal records",
        again.elapsed(),
        journal.records.lock().unwrap().len()
    );
}
