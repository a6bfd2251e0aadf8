//! The cluster in simulation: the real coordinator over a network, a store, workers and people that are drawn from a seed
//! and go wrong in every way that they can.
//!
//! ```text
//!  person ── gRPC's own trait ──► Candidate (leader, standby, drivers, core)  × 3
//!                                   │ Store (journals, manifests)   │ LeaderEnd (offers, reports, words)
//!                                   ▼                               ▼
//!                              objects.rs  ◄── commits ── worker.rs × 3 ──► network.rs
//! ```
//!
//! Each seed is one thread with a clock that jumps to whatever is waited for, so that the same seed is the same history,
//! to the last line of its trace. Deliberately not here: real servers and processes, which other tests have.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail where it stands")]
#![expect(clippy::print_stdout, reason = "a test's figures and traces are for whoever reads its output")]

mod checker;
mod cluster;
mod faults;
mod network;
mod objects;
mod person;
mod plans;
mod worker;
mod world;

use checker::Figures;
use cluster::{Outcome, run};
use faults::{Counts, Profile};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use world::{Mutant, lock};

/// Seeds that every test run has.
const SEEDS: u64 = 2_000;

/// Each of these found a mistake that the first 2,000 do not.
const ONCE_BROKEN: [u64; 1] = [22_341];

/// Seeds with one very slow worker.
const SLOW_SEEDS: u64 = 40;

/// Seeds within which each mutant must be found.
const MUTANT_SEEDS: u64 = 1_000;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// A seed's outcome; a panic is a broken promise.
fn run_seed(seed: u64, mutant: Option<Mutant>, traced: bool) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| run(seed, Profile::of(seed), mutant, traced))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })
}

/// Seeds from `first` on, over all cores, until `look` has seen enough.
fn each_seed(
    first: u64,
    count: u64,
    mutant: Option<Mutant>,
    look: impl Fn(u64, Result<Outcome, String>) -> bool + Sync,
) {
    let next = AtomicU64::new(first);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || !look(seed, run_seed(seed, mutant, false)) {
                        next.store(first + count, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
}

/// What all seeds came to.
#[derive(Default)]
struct Total {
    seeds: u64,
    counts: Counts,
    tasks: u64,
    begun: u64,
    begun_in_vain: u64,
    terms: u64,
    records: u64,
    snapshots: u64,
    losses: u64,
    doubled: u64,
    doubled_won: u64,
    stopped: u64,
    virtual_ms: u64,
    broken: Vec<(u64, String)>,
}

impl Total {
    fn add(&mut self, seed: u64, outcome: Result<Outcome, String>) {
        self.seeds += 1;
        match outcome {
            Err(panic) => self.broken.push((seed, format!("panic: {panic}"))),
            Ok(outcome) => {
                self.counts.add(&outcome.counts);
                self.tasks += outcome.figures.tasks;
                self.begun += outcome.figures.begun;
                self.begun_in_vain += outcome.figures.begun_in_vain;
                self.terms += outcome.figures.terms;
                self.records += outcome.figures.records;
                self.snapshots += outcome.figures.snapshots;
                self.losses += outcome.figures.losses;
                self.doubled += outcome.figures.doubled;
                self.doubled_won += outcome.figures.doubled_won;
                self.stopped += outcome.figures.stopped;
                self.virtual_ms += outcome.virtual_ms;
                self.broken.extend(outcome.violations.into_iter().map(|broken| (seed, broken)));
            }
        }
    }

    fn print(&self, took: std::time::Duration) {
        println!(
            "{} seeds in {took:.1?}: {} simulated hours, {} terms, {} records, {} snapshots, {} tasks, {} attempts begun ({} in vain), {} lost",
            self.seeds,
            self.virtual_ms / 3_600_000,
            self.terms,
            self.records,
            self.snapshots,
            self.tasks,
            self.begun,
            self.begun_in_vain,
            self.losses
        );
        println!(
            "{} second attempts at stragglers, of which {} won; {} attempts stopped in vain work",
            self.doubled, self.doubled_won, self.stopped
        );
        for (fault, times) in self.counts.each() {
            println!("{times:>10} {fault:?}");
        }
    }
}

/// `RALLREC_SIM_SEEDS` and `RALLREC_SIM_FIRST` choose others; with one seed its trace is printed.
#[test]
fn the_promises_hold_whatever_goes_wrong() {
    let (first, count) = (setting("RALLREC_SIM_FIRST", 0), setting("RALLREC_SIM_SEEDS", SEEDS));
    if count == 1 {
        let outcome = run_seed(first, None, true).unwrap();
        outcome.trace.iter().for_each(|line| println!("{line}"));
        return assert_eq!(outcome.violations, Vec::<String>::new());
    }
    let (began, total) = (Instant::now(), Mutex::new(Total::default()));
    each_seed(first, count, None, |seed, outcome| {
        let mut total = lock(&total);
        let known = total.broken.len();
        total.add(seed, outcome);
        // At once: a hundred thousand seeds take half an hour.
        total.broken[known..].iter().for_each(|(seed, broken)| println!("seed {seed}: {broken}"));
        if total.seeds.is_multiple_of(10_000) {
            println!("{} seeds, {} promises broken", total.seeds, total.broken.len());
        }
        total.broken.len() < 20
    });
    let mut total = total.into_inner().unwrap();
    total.print(began.elapsed());
    total.broken.sort();
    for (seed, broken) in &total.broken {
        println!("seed {seed}: {broken}");
        println!(
            "  RALLREC_SIM_FIRST={seed} RALLREC_SIM_SEEDS=1 cargo test --release -p rallrec-coordinator --test sim promises -- --nocapture"
        );
    }
    assert!(total.broken.is_empty(), "{} promises broken", total.broken.len());
    if count >= SEEDS {
        let never: Vec<_> = total.counts.each().filter(|(_, times)| *times == 0).map(|(fault, _)| fault).collect();
        assert!(never.is_empty(), "faults that never happened: {never:?}");
        let second = [total.doubled, total.doubled_won, total.doubled - total.doubled_won, total.stopped];
        assert!(
            second.iter().all(|times| *times > 0),
            "second attempts that never happened, won, lost or stopped: {second:?}"
        );
    }
}

#[test]
fn seeds_that_once_broke_a_promise_do_not() {
    for seed in ONCE_BROKEN {
        assert_eq!(run_seed(seed, None, false).unwrap().violations, Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_seed_is_the_same_history_every_time() {
    for seed in 0..20 {
        // On a thread of its own each, as when many seeds run: what is drawn must not depend on what ran before.
        let again = std::thread::spawn(move || run_seed(seed, None, false).unwrap());
        let (first, second) = (run_seed(seed, None, true).unwrap(), again.join().unwrap());
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed}");
        assert_eq!(first.virtual_ms, second.virtual_ms, "seed {seed}");
    }
    assert_ne!(run_seed(1, None, false).unwrap().trace_hash, run_seed(2, None, false).unwrap().trace_hash);
}

#[test]
fn without_faults_every_task_is_begun_once() {
    for seed in 0..20 {
        let outcome = run(seed, Profile::quiet(), None, false);
        assert_eq!(outcome.violations, Vec::<String>::new(), "seed {seed}");
        assert_eq!((outcome.figures.begun, outcome.figures.losses), (outcome.figures.tasks, 0), "seed {seed}");
        assert_eq!(outcome.figures.terms, 1, "seed {seed}");
    }
}

/// Shards take 10 ms to 6 s, and 200 times that on one of the three workers: 10 minutes in the mean.
#[test]
fn one_slow_worker_does_not_hold_a_run_up() {
    let mut seconds = 0;
    for seed in 0..SLOW_SEEDS {
        let outcome = run(seed, Profile::one_crawls(), None, false);
        assert_eq!(outcome.violations, Vec::<String>::new(), "seed {seed}");
        let Figures { makespan_ms, doubled, stopped, .. } = outcome.figures;
        println!("seed {seed}: {makespan_ms} ms, {doubled} second attempts, {stopped} stopped");
        assert!(makespan_ms < 100_000, "seed {seed}: {makespan_ms} ms");
        seconds += doubled;
    }
    // The slow worker has one or two slots, and a shard in each when the others are done.
    assert!((SLOW_SEEDS..=2 * SLOW_SEEDS).contains(&seconds), "{seconds}");
}

/// How many seeds it takes to find a mutant.
fn found_after(mutant: Mutant) -> u64 {
    let found = Mutex::new(None);
    each_seed(0, MUTANT_SEEDS, Some(mutant), |seed, outcome| {
        let broken = match outcome {
            Err(panic) => Some(panic),
            Ok(outcome) => outcome.violations.into_iter().next(),
        };
        if let Some(broken) = broken {
            let mut found = lock(&found);
            if found.as_ref().is_none_or(|(first, _)| seed < *first) {
                *found = Some((seed, broken));
            }
        }
        lock(&found).is_none()
    });
    let (seed, broken) = found.into_inner().unwrap().unwrap_or_else(|| panic!("{mutant:?} was not found"));
    println!("{mutant:?} is found by seed {seed}: {broken}");
    seed
}

#[test]
fn a_broken_fence_is_found() {
    found_after(Mutant::JournalOverwrites);
    found_after(Mutant::JournalIgnoresConflict);
}

#[test]
fn a_broken_create_if_absent_is_found() {
    found_after(Mutant::ManifestOverwrites);
}

#[test]
fn a_broken_replay_is_found() {
    found_after(Mutant::ReplayForgetsTheLast);
    found_after(Mutant::ReplaySkipsOne);
}
