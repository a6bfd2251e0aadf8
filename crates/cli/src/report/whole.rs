//! A report of one or several runs as files: one HTML page that needs nothing else, Markdown, CSV and JSON.

use super::{
    collect::{self, DataFacts, StageFacts},
    figures::{self, Figure},
    page, paper,
    tables::{self, TableOf},
    text,
};
use crate::{console::Console, failure::Failure, home::write_atomically};
use rallrec_store::Store;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A report, as its files tell it.
#[derive(Serialize)]
pub(super) struct Report {
    /// Version of this form.
    pub(super) version: u32,
    /// One a run, in the order asked for.
    pub(super) runs: Vec<RunReport>,
    /// Figures 6 and 7.
    pub(super) sweeps: Vec<Figure>,
}

/// What is told of a run.
#[derive(Serialize)]
pub(super) struct RunReport {
    pub(super) id: String,
    pub(super) pipeline: String,
    pub(super) data: Option<DataFacts>,
    /// The paper's counts of the data set: users, items, samples.
    pub(super) paper_counts: Option<[u64; 3]>,
    /// What must be known before a value is read beside the paper's.
    pub(super) notes: Vec<String>,
    pub(super) tables: Vec<TableOf>,
    pub(super) responses: Option<ResponseFacts>,
    pub(super) figures: Vec<Figure>,
    pub(super) stages: Vec<StageFacts>,
}

/// Table 7.
#[derive(Clone, Serialize)]
pub(super) struct ResponseFacts {
    pub(super) stage: String,
    pub(super) responses: usize,
    pub(super) mean_tokens: f64,
    pub(super) mean_seconds: Option<f64>,
}

impl RunReport {
    /// Seconds of its own tasks, of them on an accelerator, and of those that it did not have to run again.
    pub(super) fn seconds(&self) -> [f64; 3] {
        // The sum of nothing would be -0.
        let sum = |of: fn(&StageFacts) -> f64| self.stages.iter().map(of).fold(0.0, |sum, one| sum + one);
        [sum(|s| s.seconds), sum(|s| s.gpu_seconds), sum(|s| s.saved_seconds)]
    }
}

/// Writes `report.html`, `report.md`, `report.csv` and `report.json` of these runs into a folder.
///
/// # Errors
/// [`Failure::Invalid`] when a run is unknown or has evaluated nothing, or a sweep's folder is none;
/// [`Failure::Unreachable`] when the store or the folder cannot be reached.
pub(super) async fn write(
    store: &Store,
    runs: &[String],
    sweeps: &[PathBuf],
    out: &Path,
    console: &Console,
) -> Result<(), Failure> {
    let mut report = Report { version: 1, runs: Vec::new(), sweeps: Vec::new() };
    for run in runs {
        report.runs.push(of_run(store, run).await?);
    }
    for sweep in sweeps {
        report.sweeps.extend(figures::of_sweep(sweep)?);
    }
    let json = serde_json::to_string_pretty(&report).map_err(anyhow::Error::from)?;
    let files = [
        ("report.html", page::html(&report)),
        ("report.md", text::markdown(&report)),
        ("report.csv", text::csv(&report)),
        ("report.json", json),
    ];
    for (name, content) in files {
        let path = out.join(name);
        write_atomically(&path, content.as_bytes())
            .map_err(|e| Failure::Unreachable(format!("{}: {e}", path.display())))?;
        console.print(&path.display().to_string());
    }
    Ok(())
}

async fn of_run(store: &Store, word: &str) -> Result<RunReport, Failure> {
    let run = collect::run(store, word).await?;
    if run.metrics.is_empty() {
        return Err(Failure::Invalid(format!(
            "run {} has evaluated nothing yet; its pipeline needs a stage of kind `evaluate`, and the run must reach it",
            run.id
        )));
    }
    let tables = tables::of(&run).map_err(|e| Failure::Other(anyhow::anyhow!(e)))?;
    let figures = figures::of(&run, &tables)?;
    let responses = run.responses.as_ref().map(|found| {
        let tokens: Vec<i32> = found.tokens.iter().flatten().copied().collect();
        let seconds: Vec<f64> =
            found.seconds.iter().flatten().filter(|s| s.is_finite()).map(|s| f64::from(*s)).collect();
        let mean = |sum: f64, count: usize| sum / count.max(1) as f64;
        ResponseFacts {
            stage: found.stage.clone(),
            responses: tokens.len(),
            mean_tokens: mean(tokens.iter().map(|t| f64::from(*t)).sum(), tokens.len()),
            mean_seconds: (!seconds.is_empty()).then(|| mean(seconds.iter().sum(), seconds.len())),
        }
    });
    Ok(RunReport {
        notes: tables::notes(&run, &tables),
        paper_counts: run.data.as_ref().and_then(|data| data.paper).map(paper::PaperSet::counts),
        id: run.id,
        pipeline: run.pipeline,
        data: run.data,
        tables,
        responses,
        figures,
        stages: run.stages,
    })
}
