//! `compare`: has a run become worse than its baseline? For nightly re-evaluations: its exit codes are told in
//! `docs/cli.md`, its statistics in `docs/compare.md`.
//!
//! It reads what runs have predicted, and runs nothing: a run that is not finished is refused.

mod baseline;
mod judge;
mod junit;
mod segments;
mod show;

use crate::predictions::RunTables;
use crate::{
    args::{CompareArgs, CompareFormat},
    console::{Console, Mark},
    failure::Failure,
    home::write_atomically,
};
use baseline::Baseline;
use judge::{Comparison, GateFile, judge};
use rallrec_core::spec::gate;
use rallrec_recsys::compare::Verdict;
use rallrec_store::Store;
use std::path::Path;

/// Compares a run with a baseline, or keeps it as one.
///
/// # Errors
/// [`Failure::Regression`] and [`Failure::TooFew`] are what the comparison says; else the gate or the runs are not fit for
/// it (exit code 2), or something is out of reach or out of order (3): never 1, which says that the run is worse.
pub async fn compare(
    store: impl Future<Output = Result<Store, Failure>>,
    args: &CompareArgs,
    console: &Console,
) -> Result<(), Failure> {
    let done = match &args.save {
        Some(path) => save(store, args, path, console).await.map(|()| None),
        None => judged(store, args).await.map(Some),
    };
    let comparison = match done {
        Ok(Some(comparison)) => comparison,
        Ok(None) => return Ok(()),
        Err(failure) => {
            let failure = out_of_order(failure);
            write_junit(args, &junit::failed(&failure.to_string()))?;
            return Err(failure);
        }
    };
    print(&comparison, args.format, console)?;
    write_junit(args, &junit::document(&comparison))?;
    match comparison.verdict {
        Verdict::Pass => Ok(()),
        Verdict::Regression => Err(Failure::Regression(show::headline(&comparison))),
        Verdict::TooFew => Err(Failure::TooFew(format!(
            "{}: a worsening that the gate wants found could have been missed; evaluate more samples, or raise `detect` \
             or what is tolerated",
            show::headline(&comparison)
        ))),
    }
}

/// Exit code 1 says that the run is worse; a mistake of rallrec's own must not say so.
fn out_of_order(failure: Failure) -> Failure {
    match failure {
        Failure::Other(error) => Failure::Unreachable(format!("the comparison could not be made: {error:#}")),
        other => other,
    }
}

async fn save(
    store: impl Future<Output = Result<Store, Failure>>,
    args: &CompareArgs,
    path: &Path,
    console: &Console,
) -> Result<(), Failure> {
    let store = store.await?;
    let kept = Baseline::of(&RunTables::open(&store, &args.run).await?).await?;
    kept.write(path)?;
    let systems: Vec<&str> = kept.systems.keys().map(String::as_str).collect();
    console.print(&format!(
        "{}: run {} of {}, systems {}",
        path.display(),
        kept.run,
        kept.pipeline,
        systems.join(", ")
    ));
    Ok(())
}

async fn judged(
    store: impl Future<Output = Result<Store, Failure>>,
    args: &CompareArgs,
) -> Result<Comparison, Failure> {
    let (Some(against), Some(path)) = (&args.baseline, &args.gate) else {
        return Err(Failure::Invalid("give --baseline RUN|FILE and --gate FILE, or --save FILE".into()));
    };
    // The gate first: its mistakes are told without a store.
    let gate = read_gate(path)?;
    let store = store.await?;
    let tables = RunTables::open(&store, &args.run).await?;
    let file = Path::new(against);
    let is_file = file.is_file() || against.contains(['/', '\\']) || file.extension().is_some();
    let baseline =
        if is_file { Baseline::read(file)? } else { Baseline::of(&RunTables::open(&store, against).await?).await? };
    judge(&tables, &baseline, &gate).await
}

fn read_gate(path: &Path) -> Result<GateFile, Failure> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|e| Failure::Unreachable(format!("{name}: {e}")))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| Failure::Invalid(format!("{name}: not UTF-8 text (byte {})", e.utf8_error().valid_up_to())))?;
    let gate = gate::read(&name, &text).map_err(|found| Failure::Pipeline(found.to_string()))?;
    Ok(GateFile { name, text, gate })
}

fn print(comparison: &Comparison, format: CompareFormat, console: &Console) -> Result<(), Failure> {
    match format {
        CompareFormat::Table => {
            for (i, line) in show::lines(comparison).iter().enumerate() {
                let bad = line.ends_with(show::word(Some(Verdict::Regression)));
                let mark = if i == 0 { Some(Mark::Bold) } else { bad.then_some(Mark::Red) };
                console.print(&mark.map_or_else(|| line.clone(), |mark| console.mark(mark, line)));
            }
        }
        CompareFormat::Md => console.print(&show::markdown(comparison)),
        CompareFormat::Json => {
            console
                .print(&serde_json::to_string_pretty(comparison).map_err(|e| out_of_order(Failure::Other(e.into())))?);
        }
    }
    Ok(())
}

fn write_junit(args: &CompareArgs, document: &str) -> Result<(), Failure> {
    let Some(path) = &args.junit else { return Ok(()) };
    write_atomically(path, document.as_bytes()).map_err(|e| Failure::Unreachable(format!("{}: {e}", path.display())))
}
