//! Named limits over all runs of a cluster.
//!
//! A run is told how many tasks of a limit it may have handed out, and hears of it later than others do. So what it was told
//! before, and what it has handed out, stays its own until it says that it obeys; only what is free then goes to another.
//! Together the runs never have more out than the limit, whoever is slow to hear.

use super::share_out;
use crate::ids::RunId;
use std::collections::BTreeMap;

/// What a run wants of the limits, and its claim to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunClaims {
    /// Higher goes first.
    pub priority: i32,
    /// Share among runs of its priority; at least 1.
    pub weight: u32,
    /// By name, of the limits that its stages name.
    pub limits: BTreeMap<String, Claim>,
}

/// What a run wants of one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Tasks that could be handed out besides.
    pub waiting: u64,
    /// Tasks that are; `None`: it has not said yet, and may have as many as the limit allows.
    pub handed_out: Option<u32>,
    /// What it was told last.
    pub told: u32,
    /// What it said that it obeys.
    pub obeys: u32,
}

/// What each run is to be told of each limit. Nobody is told another figure before it obeys the last; without `may_rise`,
/// while some run's state is not known, nobody is told a higher one.
pub fn allot(
    limits: &BTreeMap<String, u32>,
    runs: &BTreeMap<RunId, RunClaims>,
    may_rise: bool,
) -> BTreeMap<RunId, BTreeMap<String, u32>> {
    let mut allotted: BTreeMap<RunId, BTreeMap<String, u32>> =
        runs.keys().map(|run| (run.clone(), BTreeMap::new())).collect();
    for (name, &most) in limits {
        let claims: Vec<(&RunId, &RunClaims, Claim)> =
            runs.iter().filter_map(|(id, run)| Some((id, run, *run.limits.get(name)?))).collect();
        let uses = |claim: &Claim| {
            let uses = claim.waiting + u64::from(claim.handed_out.unwrap_or(0));
            u32::try_from(uses).unwrap_or(u32::MAX)
        };
        let shares =
            share_out(most, claims.iter().map(|(id, run, claim)| (*id, run.priority, run.weight, uses(claim))));
        let mut free = claims.iter().fold(most, |free, (_, _, claim)| free.saturating_sub(claim.holds(most)));
        for (id, _, claim) in claims {
            let fair = shares.get(id).copied().unwrap_or(0);
            let told = if claim.told != claim.obeys || claim.handed_out.is_none() || (fair > claim.told && !may_rise) {
                claim.told
            } else if fair <= claim.told {
                fair
            } else {
                let held = claim.holds(most);
                let more = fair.saturating_sub(held).min(free);
                free -= more;
                fair.min(held + more)
            };
            allotted.entry(id.clone()).or_default().insert(name.clone(), told);
        }
    }
    allotted
}

impl Claim {
    /// What nobody else may be given.
    fn holds(&self, most: u32) -> u32 {
        self.handed_out.map_or(most, |out| out.max(self.told).max(self.obeys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAME: &str = "judge";

    /// A run that hears late.
    #[derive(Clone, Debug, Default)]
    struct Run {
        claim: Claim,
        /// Still on its way to it.
        coming: Option<u32>,
        /// As it really is; the claim says it later.
        out: u32,
        waiting: u64,
        cap: u32,
    }

    fn tell(runs: &mut [Run], limit: u32, may_rise: bool) {
        let claims = runs.iter().enumerate().map(|(n, run)| {
            let limits = [(NAME.to_owned(), run.claim)].into();
            (RunId(format!("r{n}")), RunClaims { priority: 0, weight: n as u32, limits })
        });
        let allotted = allot(&[(NAME.to_owned(), limit)].into(), &claims.collect(), may_rise);
        for (n, run) in runs.iter_mut().enumerate() {
            let told = allotted[&RunId(format!("r{n}"))][NAME];
            if told != run.claim.told {
                assert_eq!(run.claim.told, run.claim.obeys, "nobody is told two things at once");
                (run.claim.told, run.coming) = (told, Some(told));
            }
        }
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_and_all_of_it_in_the_end(
            limit in 1..6u32,
            sizes in proptest::collection::vec(0..12u64, 1..5),
            steps in proptest::collection::vec((0..5u8, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut runs: Vec<Run> = sizes.iter().map(|n| Run { waiting: *n, ..Run::default() }).collect();
            for (what, which) in steps {
                let at = which.index(runs.len());
                let run = &mut runs[at];
                match what {
                    // It hears, hands out, has a task done, says how it is.
                    0 => run.cap = run.coming.take().map_or(run.cap, |told| { run.claim.obeys = told; told }),
                    1 if run.out < run.cap && run.waiting > 0 => (run.out, run.waiting) = (run.out + 1, run.waiting - 1),
                    2 if run.out > 0 => run.out -= 1,
                    3 => (run.claim.handed_out, run.claim.waiting) = (Some(run.out), run.waiting),
                    _ => tell(&mut runs, limit, which.index(4) > 0),
                }
                // What it handed out and has not said is within what it obeys.
                prop_assert!(runs.iter().map(|run| run.out).sum::<u32>() <= limit);
            }
            for _ in 0..8 {
                for run in &mut runs {
                    run.cap = run.coming.take().map_or(run.cap, |told| { run.claim.obeys = told; told });
                    let more = run.cap.saturating_sub(run.out).min(run.waiting as u32);
                    (run.out, run.waiting) = (run.out + more, run.waiting - u64::from(more));
                    (run.claim.handed_out, run.claim.waiting) = (Some(run.out), run.waiting);
                }
                tell(&mut runs, limit, true);
            }
            let out: u32 = runs.iter().map(|run| run.out).sum();
            let waiting: u64 = runs.iter().map(|run| run.waiting).sum();
            prop_assert!(out <= limit);
            prop_assert!(waiting == 0 || out == limit, "{out} of {limit} out, and {waiting} wait: {runs:?}");
        }
    }
}
