//! What the runs in a store are, which of them are kept, and what those can reach.

use super::{GcError, Keep};
use crate::cluster::active_runs;
use futures::{StreamExt, TryStreamExt, stream};
use rallrec_core::{
    ids::{RunId, TimeMs},
    key::Key,
    models::PinnedModel,
    plan::Plan,
    run::{Event, JournalRecord, RunOutcome, Shards},
};
use rallrec_store::{Records, Store};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Runs read at once.
const READS_AT_ONCE: usize = 8;

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// A run, as far as a collection must know it.
pub(super) struct Facts {
    pub(super) run: RunId,
    plan: Plan,
    /// How it ended, and when; `None` while it has not.
    ended: Option<(RunOutcome, TimeMs)>,
    /// Rows of its row-wise stages, where they are known.
    rows: BTreeMap<u32, u64>,
}

/// A run's folder without a plan: it is being made, or a collection died while it removed it.
pub(super) enum Found {
    Run(Box<Facts>),
    NoPlan(RunId),
    /// Of another version, or damaged.
    Unreadable(RunId),
}

/// Reads every run in the store.
pub(super) async fn runs(store: &Store) -> Result<Vec<Found>, GcError> {
    let runs = store.runs().await?;
    let read = stream::iter(runs.into_iter().map(|run| facts(store, run)));
    read.buffered(READS_AT_ONCE).try_collect().await
}

async fn facts(store: &Store, run: RunId) -> Result<Found, GcError> {
    let Some(plan) = store.run_file(&run, "plan.json").await? else { return Ok(Found::NoPlan(run)) };
    let Ok(plan) = serde_json::from_slice::<Plan>(&plan) else { return Ok(Found::Unreadable(run)) };
    let mut facts = Facts { run, plan, ended: None, rows: BTreeMap::new() };
    for record in Records::of_run(store.clone(), &facts.run, "gc").replay().await? {
        let Ok(record) = JournalRecord::decode(&record) else { return Ok(Found::Unreadable(facts.run)) };
        for event in record.events {
            match event {
                Event::StageSharded { stage, rows } => drop(facts.rows.insert(stage, rows)),
                Event::RunFinished { outcome, at } => facts.ended = Some((outcome, at)),
                Event::RunResumed { .. } => facts.ended = None,
                _ => {}
            }
        }
    }
    Ok(Found::Run(Box::new(facts)))
}

/// Parts the runs into those that are kept and those that go.
pub(super) async fn part(
    store: &Store,
    found: Vec<Found>,
    keep: &Keep,
    is_driven: &(dyn Fn(&RunId) -> bool + Sync),
    now: TimeMs,
) -> Result<(Vec<Facts>, Vec<RunId>), GcError> {
    let active = active_runs(store).await?;
    let (mut kept, mut gone, mut known) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut runs = Vec::new();
    for found in found {
        let (Found::NoPlan(run) | Found::Unreadable(run)) = &found else {
            if let Found::Run(facts) = found {
                known.insert(facts.run.clone());
                runs.push(*facts);
            }
            continue;
        };
        known.insert(run.clone());
        if keep.forget.contains(run) {
            gone.push(run.clone());
        } else if let Found::Unreadable(run) = found {
            return Err(GcError::Unreadable { run });
        }
    }
    if let Some(run) = keep.forget.iter().find(|run| !known.contains(run)) {
        return Err(GcError::NoRun { run: run.clone() });
    }
    // Newest first.
    runs.sort_by(|a, b| b.run.cmp(&a.run));
    let mut done: BTreeMap<String, u32> = BTreeMap::new();
    for facts in runs {
        let busy = is_driven(&facts.run) || active.contains(&facts.run);
        let done = done.entry(facts.plan.pipeline.clone()).or_default();
        let stays = match facts.ended {
            _ if keep.forget.contains(&facts.run) => {
                if busy {
                    return Err(GcError::Active { run: facts.run });
                }
                false
            }
            _ if busy => true,
            None => true,
            Some((_, at)) => {
                let recent = keep.days.is_some_and(|days| at.0 + u64::from(days) * DAY_MS >= now.0);
                let last = keep.last.is_some_and(|last| *done < last);
                recent || last || (keep.days.is_none() && keep.last.is_none())
            }
        };
        if let Some((RunOutcome::Done, _)) = facts.ended {
            *done += 1;
        }
        if stays { kept.push(facts) } else { gone.push(facts.run) }
    }
    Ok((kept, gone))
}

/// What kept runs can reach.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Artifacts.
    keys: HashSet<[u8; 32]>,
    /// Those of runs that have not ended: somebody may be writing them.
    growing: HashSet<[u8; 32]>,
    /// Row keys of stages, of runs that have not ended, whose rows are not known yet: any shard may be asked for.
    pub(super) families: BTreeSet<Key>,
    /// Digests of models and data.
    sources: BTreeSet<String>,
}

impl Reach {
    pub(super) fn of(kept: &[Facts]) -> Self {
        let mut reach = Self::default();
        kept.iter().for_each(|facts| reach.add(facts));
        reach
    }

    fn add(&mut self, facts: &Facts) {
        let open = facts.ended.is_none();
        for (i, stage) in facts.plan.stages.iter().enumerate() {
            self.sources.extend(stage.data.as_ref().map(|data| data.digest.clone()));
            match &stage.model {
                Some(PinnedModel::Local { files, .. }) => drop(self.sources.insert(files.digest.clone())),
                Some(PinnedModel::Remote { tokenizer: Some(files), .. }) => {
                    self.sources.insert(files.digest.clone());
                }
                Some(PinnedModel::Remote { .. }) | None => {}
            }
            let rows = u32::try_from(i).ok().and_then(|i| facts.rows.get(&i));
            let shards = match (stage.drive(), rows) {
                (None, _) => Shards::Single,
                (Some(_), Some(rows)) => Shards::of_rows(stage, *rows),
                (Some(_), None) => {
                    if open {
                        self.families.insert(stage.row_key.clone());
                    }
                    continue;
                }
            };
            for shard in 0..u32::try_from(shards.count()).unwrap_or(u32::MAX) {
                let Some(key) = digest(&stage.task_key(shards.range(shard)).0) else { continue };
                self.keys.insert(key);
                if open {
                    self.growing.insert(key);
                }
            }
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        digest(key).is_some_and(|key| self.keys.contains(&key))
    }

    pub(super) fn grows(&self, key: &str) -> bool {
        digest(key).is_some_and(|key| self.growing.contains(&key))
    }

    pub(super) fn has_source(&self, digest: &str) -> bool {
        self.sources.contains(digest)
    }
}

/// The bytes of 64 hexadecimal digits; `None` for what is no key.
pub(super) fn digest(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}
