//! What a run in the store was and did, read from its plan and its journal. Read-only: it never continues a journal.

use crate::failure::Failure;
use futures::{StreamExt, TryStreamExt, stream};
use rallrec_core::{
    ids::{RunId, TimeMs},
    plan::Plan,
    run::{Event, JournalRecord, RunOutcome},
    task::FailureClass,
};
use rallrec_store::{Records, Store};

/// Name of the plan in a run's folder.
pub const PLAN_FILE: &str = "plan.json";

/// Plans read at once when runs are searched.
const READS_AT_ONCE: usize = 16;

/// The plan of a run.
///
/// # Errors
/// When the store cannot be reached or the run has no plan of this version.
pub async fn plan(store: &Store, run: &RunId) -> Result<Plan, Failure> {
    let bytes = store.run_file(run, PLAN_FILE).await?;
    let bytes = bytes.ok_or_else(|| {
        Failure::Invalid(format!("run {run} has no {PLAN_FILE}: it never began, or was partly removed"))
    })?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Failure::Invalid(format!("run {run}: its {PLAN_FILE} was written by another version of rallrec ({e})"))
    })
}

/// Every run with a plan that this version can read, oldest first.
///
/// # Errors
/// When the store cannot be reached.
pub async fn plans(store: &Store) -> Result<Vec<(RunId, Plan)>, Failure> {
    let runs = store.runs().await?;
    let read = stream::iter(runs.into_iter().map(|run| async move {
        match store.run_file(&run, PLAN_FILE).await {
            Ok(bytes) => Ok(bytes.and_then(|b| serde_json::from_slice(&b).ok()).map(|plan| (run, plan))),
            Err(e) => Err(Failure::from(e)),
        }
    }));
    let plans: Vec<Option<(RunId, Plan)>> = read.buffered(READS_AT_ONCE).try_collect().await?;
    Ok(plans.into_iter().flatten().collect())
}

/// What a run did so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// When it began.
    pub started_at: Option<TimeMs>,
    /// When it last journaled something.
    pub last_at: Option<TimeMs>,
    /// How it ended; `None` while it has not.
    pub outcome: Option<RunOutcome>,
    /// Tasks whose artifact was in the store already.
    pub reused: u64,
    /// Tasks that it computed.
    pub committed: u64,
    /// Attempts that failed.
    pub failed: u64,
}

/// Reads what a run did from its journal.
///
/// # Errors
/// When the store cannot be reached or a record is damaged.
pub async fn record(store: &Store, run: &RunId) -> Result<Record, Failure> {
    let mut record = Record::default();
    events(store, run).await?.iter().for_each(|event| record.add(event));
    Ok(record)
}

/// Every event of a run's journal, in order; none when it has not begun.
///
/// # Errors
/// When the store cannot be reached or a record is damaged.
pub async fn events(store: &Store, run: &RunId) -> Result<Vec<Event>, Failure> {
    let mut journal = Records::of_run(store.clone(), run, "reader");
    let mut events = Vec::new();
    for bytes in journal.replay().await? {
        events.extend(JournalRecord::decode(&bytes).map_err(|e| anyhow::anyhow!("run {run}: {e}"))?.events);
    }
    Ok(events)
}

impl Record {
    fn add(&mut self, event: &Event) {
        let at = match event {
            Event::RunStarted { at, .. } => {
                self.started_at = Some(*at);
                at
            }
            Event::RunResumed { at } => {
                self.outcome = None;
                at
            }
            Event::RunTakenOver { at } | Event::StageOutgrown { at, .. } => at,
            Event::TaskReused { at, .. } => {
                self.reused += 1;
                at
            }
            Event::TaskCommitted { at, .. } => {
                self.committed += 1;
                at
            }
            Event::TaskFailed { class, at, .. } => {
                // An attempt that was stopped, or lost with its worker, did not fail.
                self.failed += u64::from(*class != FailureClass::Lost);
                at
            }
            Event::RunFinished { outcome, at } => {
                self.outcome = Some(*outcome);
                at
            }
            Event::TaskDispatched { at, .. }
            | Event::TaskDoubled { at, .. }
            | Event::TaskStarted { at, .. }
            | Event::CancelRequested { at } => at,
            Event::StageSharded { .. } | Event::TaskMissing { .. } => return,
        };
        self.last_at = Some(*at);
    }

    /// Seconds from its start to its last record.
    pub fn seconds(&self) -> f64 {
        match (self.started_at, self.last_at) {
            (Some(start), Some(end)) => end.0.saturating_sub(start.0) as f64 / 1000.0,
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::{ids::TaskId, key::Key, task::ArtifactSummary};

    #[test]
    fn events_fold_into_what_the_run_did() {
        let plan = Box::new(Plan { version: 1, pipeline: "p".into(), stages: vec![] });
        let task = TaskId { stage: 0, shard: 0 };
        let mut record = Record::default();
        for event in [
            Event::RunStarted { run: RunId("r".into()), plan, at: TimeMs(1000) },
            Event::TaskReused { task, key: Key("k".into()), summary: ArtifactSummary::default(), at: TimeMs(1500) },
            Event::TaskMissing { task },
            Event::RunFinished { outcome: RunOutcome::Cancelled, at: TimeMs(3500) },
        ] {
            record.add(&event);
        }
        assert_eq!((record.reused, record.outcome, record.seconds()), (1, Some(RunOutcome::Cancelled), 2.5));
        record.add(&Event::RunResumed { at: TimeMs(9000) });
        assert_eq!(record.outcome, None);
    }
}
