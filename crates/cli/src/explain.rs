//! `explain`: which fields of a stage's key changed between two runs, followed upstream.

use crate::{console::Console, failure::Failure, history, plan_view::latest_of, run_names};
use rallrec_core::{
    ids::{RunId, StageName},
    plan::{Plan, why_changed},
};
use rallrec_store::Store;

/// Prints why `stage` of run `run` has another key than in run `against`.
///
/// # Errors
/// [`Failure::Invalid`] when a run or the stage is unknown.
pub async fn show(
    store: &Store,
    run: &str,
    stage: &str,
    against: Option<&str>,
    console: &Console,
) -> Result<(), Failure> {
    let runs = store.runs().await?;
    let run = run_names::resolve(&runs, run)?;
    let plan = history::plan(store, &run).await?;
    let name = StageName(stage.to_owned());
    let Some(planned) = plan.stages.iter().find(|s| s.name == name) else {
        let known: Vec<&str> = plan.stages.iter().map(|s| s.name.0.as_str()).collect();
        return Err(Failure::Invalid(format!("run {run} has no stage `{stage}`; it has {}", known.join(", "))));
    };
    let other: Option<(RunId, Plan)> = match against {
        Some(word) => {
            let other = run_names::resolve(&runs, word)?;
            let plan = history::plan(store, &other).await?;
            Some((other, plan))
        }
        None => latest_of(store, &plan, Some(&run)).await?,
    };
    let Some((other, old)) = other else {
        console.print(&format!(
            "{stage} of run {run}: no earlier run of pipeline `{}` is in this store to compare with",
            plan.pipeline
        ));
        for (field, value) in &planned.fields.0 {
            console.print(&format!("  {field} = {}", shortened(value)));
        }
        return Ok(());
    };
    let changes = why_changed(&old, &plan, &name);
    if changes.is_empty() {
        console.print(&format!(
            "{stage} of run {run} has the same key as in run {other}; everything that run finished of it was reused"
        ));
        return Ok(());
    }
    console.print(&format!("{stage} of run {run} differs from run {other} in:"));
    for change in &changes {
        console.print(&format!("  {change}"));
    }
    Ok(())
}

/// A value on one line of bearable length.
fn shortened(value: &str) -> String {
    let line = value.replace('\n', "\\n");
    if line.chars().count() <= 100 { line } else { format!("{}…", line.chars().take(99).collect::<String>()) }
}
