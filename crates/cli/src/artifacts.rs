//! `artifacts`: what a run's tasks made, as its journal tells.

use crate::{
    console::{Console, Mark, bytes, columns, thousands},
    failure::Failure,
    history, run_names,
};
use rallrec_core::{
    ids::{StageName, TaskId},
    key::Key,
    run::Event,
    task::ArtifactSummary,
};
use rallrec_store::Store;
use serde::Serialize;
use std::collections::BTreeMap;

/// One artifact, as `artifacts --json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct ArtifactLine {
    stage: StageName,
    shard: u32,
    key: Key,
    /// Whether the store had it before the run.
    reused: bool,
    #[serde(flatten)]
    summary: ArtifactSummary,
}

/// Prints every artifact of a run, or of one of its stages, in the order of the plan.
///
/// # Errors
/// [`Failure::Invalid`] when the run or the stage is unknown.
pub async fn show(store: &Store, run: &str, stage: Option<&str>, json: bool, console: &Console) -> Result<(), Failure> {
    let run = run_names::resolve(&store.runs().await?, run)?;
    let plan = history::plan(store, &run).await?;
    let names: Vec<StageName> = plan.stages.iter().map(|stage| stage.name.clone()).collect();
    if let Some(stage) = stage
        && !names.iter().any(|name| name.0 == stage)
    {
        let known = names.iter().map(|name| name.0.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Failure::Invalid(format!("run {run} has no stage `{stage}`; it has {known}")));
    }
    let mut lines = lines(&names, &history::events(store, &run).await?);
    lines.retain(|line| stage.is_none_or(|stage| line.stage.0 == stage));
    if json {
        for line in &lines {
            console.print(&serde_json::to_string(line).map_err(anyhow::Error::from)?);
        }
        return Ok(());
    }
    for (i, line) in columns(&table(&lines)).iter().enumerate() {
        console.print(&if i == 0 { console.mark(Mark::Bold, line) } else { line.clone() });
    }
    Ok(())
}

fn lines(names: &[StageName], events: &[Event]) -> Vec<ArtifactLine> {
    let mut keys: BTreeMap<TaskId, &Key> = BTreeMap::new();
    let mut made: BTreeMap<TaskId, ArtifactLine> = BTreeMap::new();
    let mut add = |task: &TaskId, key: &Key, reused, summary: &ArtifactSummary| {
        let Some(stage) = names.get(task.stage as usize).cloned() else { return };
        let line = ArtifactLine { stage, shard: task.shard, key: key.clone(), reused, summary: summary.clone() };
        made.insert(*task, line);
    };
    for event in events {
        match event {
            Event::TaskDispatched { task, key, .. } => drop(keys.insert(*task, key)),
            Event::TaskReused { task, key, summary, .. } => add(task, key, true, summary),
            Event::TaskCommitted { task, summary, .. } => {
                if let Some(key) = keys.get(task) {
                    add(task, key, false, summary);
                }
            }
            _ => {}
        }
    }
    made.into_values().collect()
}

fn table(lines: &[ArtifactLine]) -> Vec<Vec<String>> {
    let mut rows = vec![["STAGE", "SHARD", "KEY", "ROWS", "BYTES", "SECONDS", ""].map(str::to_owned).to_vec()];
    rows.extend(lines.iter().map(|line| {
        let tables = line.summary.rows.iter().map(|(table, rows)| format!("{table} {}", thousands(*rows)));
        vec![
            line.stage.to_string(),
            line.shard.to_string(),
            line.key.short().to_owned(),
            tables.collect::<Vec<_>>().join(", "),
            bytes(line.summary.bytes),
            format!("{:.2}", line.summary.seconds),
            if line.reused { "reused" } else { "" }.to_owned(),
        ]
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::ids::{Attempt, TimeMs, WorkerId};

    #[test]
    fn what_was_reused_and_what_was_made() {
        let (a, b) = (TaskId { stage: 0, shard: 0 }, TaskId { stage: 1, shard: 4 });
        let (at, attempt, summary) = (TimeMs(0), Attempt(1), ArtifactSummary::default());
        let names = ["x", "y"].map(|n| StageName(n.into()));
        let lines = lines(
            &names,
            &[
                Event::TaskDispatched { task: b, key: Key("kb".into()), attempt, at },
                Event::TaskReused { task: a, key: Key("ka".into()), summary: summary.clone(), at },
                Event::TaskCommitted { task: b, attempt, worker: WorkerId("w".into()), summary, first: true, at },
            ],
        );
        let told: Vec<_> = lines.iter().map(|l| (l.stage.0.as_str(), l.shard, l.key.0.as_str(), l.reused)).collect();
        assert_eq!(told, [("x", 0, "ka", true), ("y", 4, "kb", false)]);
    }
}
