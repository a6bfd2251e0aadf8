//! The cluster's queue against a real nats-server: nothing claimed twice, nothing held for a busy slot, and what a
//! server that dies or forgets costs.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail where it stands")]

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::join_all};
use rallrec_core::{
    ids::{Attempt, RunId, TaskId, WorkerId},
    lane::{Lane, Room},
};
use rallrec_queue::{
    CoordinatorEnd, Delivery, OfferName, QueueError, WorkerEnd,
    nats::{NatsCoordinator, NatsRun, NatsSettings, NatsWorker},
};
use rallrec_test_servers::NatsServer;
use std::{collections::BTreeSet, time::Duration};
use tokio::{task::JoinHandle, time::timeout};

/// Longer than anything here takes, shorter than the time after which an unacknowledged offer is given out again.
const SOON: Duration = Duration::from_secs(15);

fn settings(server: &NatsServer, cluster: &str) -> NatsSettings {
    NatsSettings {
        servers: vec![server.url()],
        cluster: cluster.into(),
        client: "test".into(),
        ..NatsSettings::default()
    }
}

fn lane(pool: &str, model: Option<&str>) -> Lane {
    Lane { pool: pool.into(), model: model.map(Into::into), least: Room::default(), wanted: Room::default() }
}

fn name(shard: u32) -> OfferName {
    OfferName { task: TaskId { stage: 1, shard }, attempt: Attempt(1) }
}

fn bytes(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_le_bytes())
}

fn run_id() -> RunId {
    RunId("20261123-1".into())
}

async fn coordinator(server: &NatsServer) -> (NatsCoordinator, NatsRun, JoinHandle<()>) {
    let coordinator = NatsCoordinator::connect(&settings(server, "t")).await.unwrap();
    let run = coordinator.run(run_id());
    let reports = {
        let coordinator = coordinator.clone();
        tokio::spawn(async move { coordinator.hand_out_reports().await })
    };
    (coordinator, run, reports)
}

async fn claim(worker: &NatsWorker, lanes: &[Lane]) -> Delivery {
    timeout(SOON, worker.claim(lanes)).await.expect("an offer comes").unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_offer_is_claimed_once_whoever_asks() {
    let server = NatsServer::start();
    let (_coordinator, run, reports) = coordinator(&server).await;
    let (a, b) = (lane("cpu", None), lane("cpu", Some("m1")));
    let mut slots = Vec::new();
    for _ in 0..3 {
        let worker = NatsWorker::connect(&settings(&server, "t")).await.unwrap();
        for _ in 0..3 {
            let (worker, lanes) = (worker.clone(), vec![b.clone(), a.clone()]);
            slots.push(tokio::spawn(async move {
                loop {
                    let delivery = worker.claim(&lanes).await.unwrap().unwrap();
                    worker.report(&run_id(), delivery.payload().clone()).await.unwrap();
                    delivery.ack();
                }
            }));
        }
    }
    for n in 0..400 {
        let lane = if n % 3 == 0 { &b } else { &a };
        run.offer(lane, name(n), bytes(n)).await.unwrap();
        // The same offer again is no further offer.
        run.offer(lane, name(n), bytes(n)).await.unwrap();
    }
    let mut heard = Vec::new();
    while heard.len() < 400 {
        let report = timeout(SOON, run.next_report()).await.expect("a report comes").unwrap().unwrap();
        heard.push(u32::from_le_bytes(report[..].try_into().unwrap()));
    }
    heard.sort_unstable();
    assert_eq!(heard, (0..400).collect::<Vec<_>>());
    while !run.held().await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(run.next_report().now_or_never().is_none(), "no report came twice");
    slots.iter().for_each(JoinHandle::abort);
    reports.abort();
}

#[tokio::test]
async fn an_offer_is_never_held_for_a_slot_that_is_busy() {
    let server = NatsServer::start();
    let (_coordinator, run, _reports) = coordinator(&server).await;
    let (a, b) = (lane("cpu", None), lane("gpu", None));
    // Both lanes exist before anybody asks, so that both questions are open on the server.
    for (lane, n) in [(&a, 0), (&b, 1)] {
        run.offer(lane, name(n), bytes(n)).await.unwrap();
    }
    let first = NatsWorker::connect(&settings(&server, "t")).await.unwrap();
    let second = NatsWorker::connect(&settings(&server, "t")).await.unwrap();
    let both = [a.clone(), b.clone()];
    for _ in 0..2 {
        claim(&first, &both).await.ack();
    }
    let waiting = {
        let (first, both) = (first.clone(), both.clone());
        tokio::spawn(async move { claim(&first, &both).await })
    };
    tokio::task::yield_now().await;
    run.offer(&a, name(2), bytes(2)).await.unwrap();
    let busy = waiting.await.unwrap();
    assert_eq!(busy.payload(), &bytes(2));
    // The first worker's question to lane b is still open, and its only slot has work.
    run.offer(&b, name(3), bytes(3)).await.unwrap();
    let other = claim(&second, &[b]).await;
    assert_eq!(other.payload(), &bytes(3));
    assert_eq!(run.held().await.unwrap(), BTreeSet::from([name(2), name(3)]), "claimed offers are still known");
}

#[tokio::test]
async fn offers_go_back_are_withdrawn_and_are_known() {
    let server = NatsServer::start();
    let (coordinator, run, _reports) = coordinator(&server).await;
    let lane = lane("cpu", None);
    for n in 0..4 {
        run.offer(&lane, name(n), bytes(n)).await.unwrap();
    }
    let other = coordinator.run(RunId("20261123-2".into()));
    other.offer(&lane, name(0), bytes(9)).await.unwrap();
    let worker = NatsWorker::connect(&settings(&server, "t")).await.unwrap();
    let lanes = [lane.clone()];
    let held = claim(&worker, &lanes).await;
    assert_eq!(held.payload(), &bytes(0));
    run.withdraw(&lane, name(1)).await.unwrap();
    assert_eq!(run.held().await.unwrap(), BTreeSet::from([name(0), name(2), name(3)]));
    drop(held);
    // What was given back comes again, in any place of the order.
    let mut again = Vec::new();
    for _ in 0..4 {
        again.push(claim(&worker, &lanes).await);
    }
    let payloads: BTreeSet<Bytes> = again.iter().map(|delivery| delivery.payload().clone()).collect();
    assert_eq!(payloads, BTreeSet::from([0, 2, 3, 9].map(bytes)));
    run.offer(&lane, name(5), bytes(5)).await.unwrap();
    run.withdraw_all().await.unwrap();
    assert_eq!(run.held().await.unwrap(), BTreeSet::new());
    assert_eq!(other.held().await.unwrap(), BTreeSet::from([name(0)]), "another run's offers are not touched");
}

#[tokio::test]
async fn a_slot_that_stops_waiting_takes_nothing_with_it() {
    let server = NatsServer::start();
    let (_coordinator, run, _reports) = coordinator(&server).await;
    let lanes = [lane("cpu", None)];
    run.offer(&lanes[0], name(0), bytes(0)).await.unwrap();
    let worker = NatsWorker::connect(&settings(&server, "t")).await.unwrap();
    claim(&worker, &lanes).await.ack();
    for _ in 0..5 {
        assert!(timeout(Duration::from_millis(20), worker.claim(&lanes)).await.is_err());
    }
    // Five questions are open on the server; whichever gets the offer, the slot that waits now does.
    run.offer(&lanes[0], name(1), bytes(1)).await.unwrap();
    assert_eq!(claim(&worker, &lanes).await.payload(), &bytes(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_and_forgets_costs_time_only() {
    let mut server = NatsServer::start();
    let (coordinator, run, _reports) = coordinator(&server).await;
    let mut wiped = coordinator.wiped();
    let lanes = [lane("cpu", None)];
    run.offer(&lanes[0], name(0), bytes(0)).await.unwrap();
    let worker = NatsWorker::connect(&settings(&server, "t")).await.unwrap();
    let held = claim(&worker, &lanes).await;

    // Dead, and back with all that it had.
    run.offer(&lanes[0], name(1), bytes(1)).await.unwrap();
    server.kill();
    let late = {
        let worker = worker.clone();
        tokio::spawn(async move { worker.report(&run_id(), bytes(0)).await })
    };
    server.restart();
    let report = timeout(SOON, run.next_report()).await.expect("what was said meanwhile arrives").unwrap();
    assert_eq!(report, Some(bytes(0)));
    late.await.unwrap().unwrap();
    held.ack();
    let mut second = claim(&worker, &lanes).await;
    if second.payload() == &bytes(0) {
        // A server that is killed may have forgotten who had claimed what: an offer can come twice.
        second.ack();
        second = claim(&worker, &lanes).await;
    }
    assert_eq!(second.payload(), &bytes(1));
    assert!(!wiped.has_changed().unwrap());

    // Dead, and back with nothing.
    run.offer(&lanes[0], name(2), bytes(2)).await.unwrap();
    server.kill();
    server.wipe();
    server.restart();
    timeout(SOON, wiped.changed()).await.expect("the coordinator is told").unwrap();
    assert_eq!(run.held().await.unwrap(), BTreeSet::new());
    run.offer(&lanes[0], name(2), bytes(2)).await.unwrap();
    assert_eq!(claim(&worker, &lanes).await.payload(), &bytes(2), "the same attempt can be sent again");
    drop(second);

    // Again, and a lane that nobody asked before is offered to before anybody has noticed.
    server.kill();
    server.wipe();
    server.restart();
    let fresh = [lane("gpu", None)];
    timeout(SOON, run.offer(&fresh[0], name(3), bytes(3))).await.expect("the streams are made anew").unwrap();
    assert_eq!(claim(&worker, &fresh).await.payload(), &bytes(3));
}

#[tokio::test]
async fn words_are_heard_by_whom_they_are_meant_for() {
    let server = NatsServer::start();
    let worker = NatsWorker::connect(&settings(&server, "t")).await.unwrap().words();
    let leader = NatsCoordinator::connect(&settings(&server, "t")).await.unwrap().words();
    let elsewhere = NatsCoordinator::connect(&settings(&server, "u")).await.unwrap().words();
    let (mine, other) = (WorkerId("w1".into()), WorkerId("w2".into()));
    let (mut beats, mut foreign) = (leader.beats().await.unwrap(), elsewhere.beats().await.unwrap());
    let mut orders = worker.orders(&mine).await.unwrap();
    worker.beat(&mine, bytes(1)).await.unwrap();
    assert_eq!(timeout(SOON, beats.next()).await.unwrap(), Some(bytes(1)));
    leader.order(&other, bytes(2)).await.unwrap();
    leader.order(&mine, bytes(3)).await.unwrap();
    assert_eq!(timeout(SOON, orders.next()).await.unwrap(), Some(bytes(3)));
    assert!(foreign.next().now_or_never().is_none(), "clusters do not hear each other");
    assert!(worker.is_connected());
}

#[tokio::test]
async fn what_cannot_be_reached_is_named() {
    let gone = NatsSettings {
        // Nobody may listen there without being root, and nobody does.
        servers: vec!["nats://127.0.0.1:1".into()],
        cluster: "t".into(),
        ..NatsSettings::default()
    };
    let failed = join_all([NatsWorker::connect(&gone)]).await.remove(0).err().unwrap();
    assert!(matches!(&failed, QueueError::Unreachable(why) if why.contains("127.0.0.1")), "{failed}");
}
