//! Workers keep their models: three models on a few workers, against first come, first served, on a simulated clock.
//!
//! A worker has room for one model, and loading one costs as much as many shards. `cargo test --release -p rallrec-core
//! --test placement -- --nocapture` prints the figures.

use rallrec_core::{
    fleet::{Beat, Demand, Demands, Fleet, RunDemand},
    ids::{RunId, TimeMs, WorkerId},
    lane::{Lane, Room},
};
use std::collections::BTreeMap;

/// Three runs, a model each.
struct Mix {
    /// Shards of each.
    shards: [u64; 3],
    /// Milliseconds of a shard of each.
    shard_ms: [u64; 3],
    /// Milliseconds to load any of the models.
    load_ms: u64,
    workers: usize,
}

/// Who decides what a worker does next.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// Its lanes, as the fleet says.
    Lanes,
    /// What has waited longest: the runs came together, so their shards take turns.
    FirstCome,
}

#[derive(Debug)]
struct Result {
    /// Of each model, the share of its shards that were begun by a worker that had it loaded.
    loaded: [f64; 3],
    makespan_ms: u64,
}

fn lane(model: usize) -> Lane {
    let room = Room { gpu_gib: 0, host_gib: 2 };
    Lane { pool: "cpu".into(), model: Some(format!("m{model}")), least: room, wanted: room }
}

fn beat(worker: usize, loaded: Option<usize>) -> Beat {
    Beat {
        worker: WorkerId(format!("w{worker}")),
        host: "simulated".into(),
        pool: "cpu".into(),
        slots: 1,
        memory_mb: 8192,
        gpu_memory_mb: None,
        models: loaded.map(|model| format!("m{model}")).into_iter().collect(),
        draining: false,
        at_work: Vec::new(),
        program: "simulated".into(),
    }
}

fn demands(left: &[u64; 3], out: &[u32; 3]) -> Demands {
    let run = |model: usize| {
        let demand = Demand { waiting: left[model], handed_out: out[model], offered: 0 };
        (
            RunId(format!("r{model}")),
            RunDemand { priority: 0, weight: 1, lanes: [(lane(model), demand)].into(), ..RunDemand::default() },
        )
    };
    (0..3).map(run).collect()
}

fn simulate(mix: &Mix, manner: Manner) -> Result {
    let (mut left, mut out, mut loaded, mut warm) = (mix.shards, [0u32; 3], vec![None; mix.workers], [0u64; 3]);
    let (mut fleet, mut turn) = (Fleet::default(), 0);
    for worker in 0..mix.workers {
        fleet.hear(beat(worker, None), TimeMs(0));
    }
    // When each busy worker is free, and what it is at.
    let mut busy: BTreeMap<(u64, usize), usize> = BTreeMap::new();
    let mut now = 0;
    loop {
        fleet.assign(&demands(&left, &out));
        for worker in (0..mix.workers).filter(|w| busy.keys().all(|(_, at)| at != w)).collect::<Vec<_>>() {
            let next = match manner {
                Manner::Lanes => {
                    let lanes = fleet.member(&WorkerId(format!("w{worker}"))).map(|member| member.lanes.clone());
                    lanes
                        .unwrap_or_default()
                        .iter()
                        .find_map(|asked| (0..3).find(|m| lane(*m) == *asked && left[*m] > 0))
                }
                Manner::FirstCome => (turn..turn + 3).map(|n| n % 3).find(|model| left[*model] > 0),
            };
            let Some(model) = next else { continue };
            (turn, left[model], out[model]) = (model + 1, left[model] - 1, out[model] + 1);
            let load_ms = if loaded[worker] == Some(model) { 0 } else { mix.load_ms };
            warm[model] += u64::from(load_ms == 0);
            loaded[worker] = Some(model);
            busy.insert((now + load_ms + mix.shard_ms[model], worker), model);
            fleet.hear(beat(worker, Some(model)), TimeMs(now));
        }
        let Some(((at, _), model)) = busy.pop_first() else { break };
        (now, out[model]) = (at, out[model] - 1);
    }
    let share = |model: usize| warm[model] as f64 / mix.shards[model] as f64;
    Result { loaded: [share(0), share(1), share(2)], makespan_ms: now }
}

#[test]
fn three_models_stay_where_they_are_loaded() {
    let mixes = [
        Mix { shards: [200, 200, 200], shard_ms: [500, 500, 500], load_ms: 8_000, workers: 3 },
        Mix { shards: [400, 200, 100], shard_ms: [500, 500, 500], load_ms: 8_000, workers: 4 },
        Mix { shards: [300, 200, 150], shard_ms: [200, 1_000, 2_000], load_ms: 20_000, workers: 5 },
        Mix { shards: [120, 120, 120], shard_ms: [700, 600, 500], load_ms: 5_000, workers: 2 },
        Mix { shards: [1_000, 500, 300], shard_ms: [300, 300, 300], load_ms: 3_000, workers: 8 },
    ];
    for mix in mixes {
        let [lanes, first_come] = [Manner::Lanes, Manner::FirstCome].map(|manner| simulate(&mix, manner));
        println!(
            "{} workers, shards {:?} of {:?} ms, loads {} ms: share loaded {:.3?}, makespan {} s; first come, first served {:.3?}, {} s",
            mix.workers,
            mix.shards,
            mix.shard_ms,
            mix.load_ms,
            lanes.loaded,
            lanes.makespan_ms / 1000,
            first_come.loaded,
            first_come.makespan_ms / 1000
        );
        assert!(lanes.loaded.iter().all(|share| *share >= 0.95), "{lanes:?}");
        assert!(lanes.makespan_ms <= first_come.makespan_ms, "{lanes:?} {first_come:?}");
    }
}
