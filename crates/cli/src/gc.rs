//! `gc`: what no kept run can reach, told or removed. What that is, is the coordinator crate's to say.

use crate::{
    args::GcArgs,
    clock,
    cluster::{Cluster, collect},
    console::{Console, bytes, columns, thousands},
    failure::Failure,
    run::Place,
    run_lock::RunLocks,
    stores,
};
use rallrec_coordinator::gc::{self, Ages, Collected, GcError, Keep, Tally};
use rallrec_core::ids::RunId;
use rallrec_proto::api::CollectRequest;

/// Collects.
///
/// # Errors
/// When a run cannot be read or given up, another collection is under way, or the store cannot be reached.
pub async fn gc(place: &Place, args: &GcArgs, console: &Console) -> Result<(), Failure> {
    let collected = match Cluster::named(&args.cluster)? {
        Some(cluster) => {
            let request = CollectRequest {
                keep_last: args.keep_last,
                keep_days: args.keep_days,
                forget: args.forget.clone(),
                delete: args.delete,
            };
            collect(&cluster, request).await?
        }
        None => here(place, args).await?,
    };
    if args.json {
        console.print(&serde_json::to_string(&collected).map_err(anyhow::Error::from)?);
        return Ok(());
    }
    lines(&collected).iter().for_each(|line| console.print(line));
    if !args.delete && collected.bytes() > 0 {
        console.note("nothing was removed; --delete removes it");
    }
    Ok(())
}

async fn here(place: &Place, args: &GcArgs) -> Result<Collected, Failure> {
    let store = stores::to_read(place).await?;
    let forget = args.forget.iter().cloned().map(RunId).collect();
    let keep = Keep { last: args.keep_last, days: args.keep_days, forget };
    let locks = RunLocks::new(&place.home);
    let is_driven = |run: &RunId| locks.is_held(run);
    let now = clock::now();
    let collected = if args.delete {
        gc::collect(&store, &keep, Ages::default(), &is_driven, now, &clock::new_run_id().0).await
    } else {
        gc::dry_run(&store, &keep, Ages::default(), &is_driven, now).await
    };
    Ok(collected?)
}

impl From<GcError> for Failure {
    fn from(error: GcError) -> Self {
        match error {
            GcError::Store(error) => error.into(),
            GcError::Stalled | GcError::Busy { .. } => Self::Unreachable(error.to_string()),
            GcError::Unreadable { .. } | GcError::NoRun { .. } | GcError::Active { .. } => {
                Self::Invalid(error.to_string())
            }
        }
    }
}

fn lines(collected: &Collected) -> Vec<String> {
    let row = |what: &str, tally: Tally| vec![what.to_owned(), thousands(tally.count), bytes(tally.bytes)];
    let mut rows = vec![
        row("artifacts", collected.artifacts),
        row("parts that no artifact names", collected.parts),
        row("checkpoints", collected.checkpoints),
        row("objects of models and data", collected.sources),
        row("objects of runs", collected.run_files),
    ];
    rows.retain(|row| row[1] != "0");
    let mut lines = columns(&rows);
    let verb = if collected.deleted { "removed" } else { "would be removed" };
    let (runs, kept) = (collected.runs.len() as u64, collected.kept_runs);
    lines.push(format!("{} {verb}; {} runs go, {} stay", bytes(collected.bytes()), thousands(runs), thousands(kept)));
    lines.extend(collected.runs.iter().map(|run| format!("  {run}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_is_told_with_its_bytes() {
        let collected = Collected {
            kept_runs: 2,
            runs: vec![RunId("r1".into())],
            artifacts: Tally { count: 1200, bytes: 5_000_000 },
            run_files: Tally { count: 3, bytes: 2_000 },
            ..Collected::default()
        };
        let told = [
            "artifacts        1,200  5.0 MB",
            "objects of runs  3      2.0 kB",
            "5.0 MB would be removed; 1 runs go, 2 stay",
            "  r1",
        ];
        assert_eq!(lines(&collected), told);
    }
}
