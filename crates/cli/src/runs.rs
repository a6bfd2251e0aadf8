//! `runs`: what is in the store.

use crate::{
    clock,
    console::{Console, Mark, columns, thousands},
    failure::Failure,
    history::{self, Record},
};
use rallrec_core::{ids::RunId, run::RunOutcome};
use rallrec_store::Store;
use serde::Serialize;

/// One run, as `runs --json` prints it.
#[derive(Debug, Serialize)]
struct RunLine {
    run: RunId,
    pipeline: String,
    state: &'static str,
    started_at_ms: Option<u64>,
    seconds: f64,
    reused: u64,
    committed: u64,
    failed_attempts: u64,
}

/// Prints every run, oldest first. `is_driven` tells whether a process drives a run now.
///
/// # Errors
/// When the store cannot be reached.
pub async fn show(
    store: &Store,
    is_driven: &dyn Fn(&RunId) -> bool,
    json: bool,
    console: &Console,
) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for (run, plan) in history::plans(store).await? {
        let record = history::record(store, &run).await?;
        lines.push(RunLine {
            pipeline: plan.pipeline,
            state: state(&record, is_driven(&run)),
            started_at_ms: record.started_at.map(|t| t.0),
            seconds: record.seconds(),
            reused: record.reused,
            committed: record.committed,
            failed_attempts: record.failed,
            run,
        });
    }
    if json {
        for line in &lines {
            console.print(&serde_json::to_string(line).map_err(anyhow::Error::from)?);
        }
    } else if lines.is_empty() {
        console.print("no runs yet; begin one with: rallrec run PIPELINE");
    } else {
        for (i, line) in columns(&table(&lines)).iter().enumerate() {
            console.print(&if i == 0 { console.mark(Mark::Bold, line) } else { line.clone() });
        }
    }
    Ok(())
}

/// In one word. A run whose process is gone without a word is `unfinished`, and resumes like an interrupted one.
fn state(record: &Record, driven: bool) -> &'static str {
    match record.outcome {
        Some(RunOutcome::Done) => "done",
        Some(RunOutcome::Failed) => "failed",
        _ if driven => "running",
        Some(RunOutcome::Cancelled) => "interrupted",
        None => "unfinished",
    }
}

fn table(lines: &[RunLine]) -> Vec<Vec<String>> {
    let mut rows = vec![
        ["RUN", "PIPELINE", "STATE", "STARTED", "TIME", "REUSED", "COMPUTED", "FAILED"].map(str::to_owned).to_vec(),
    ];
    rows.extend(lines.iter().map(|line| {
        let started = line.started_at_ms.map(|ms| clock::readable(rallrec_core::ids::TimeMs(ms))).unwrap_or_default();
        vec![
            line.run.to_string(),
            line.pipeline.clone(),
            line.state.to_owned(),
            started,
            clock::duration(line.seconds),
            thousands(line.reused),
            thousands(line.committed),
            thousands(line.failed_attempts),
        ]
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_an_end_is_running_only_while_somebody_drives_it() {
        let ended = |outcome| Record { outcome, ..Record::default() };
        for (outcome, driven, word) in [
            (Some(RunOutcome::Done), false, "done"),
            (Some(RunOutcome::Failed), false, "failed"),
            (Some(RunOutcome::Cancelled), false, "interrupted"),
            (Some(RunOutcome::Cancelled), true, "running"),
            (None, true, "running"),
            (None, false, "unfinished"),
        ] {
            assert_eq!(state(&ended(outcome), driven), word);
        }
    }
}
