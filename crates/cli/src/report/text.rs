//! A report as Markdown, and as CSV with a line a metric.

use super::{
    tables::{System, TableOf, Value},
    whole::{Report, RunReport},
};
use crate::clock;
use std::fmt::Write as _;

/// `0.7184 [0.7101, 0.7263]`, or `n/a`.
fn value(value: &Value) -> String {
    match (value.value, value.low, value.high) {
        (None, ..) => "n/a".to_owned(),
        (Some(value), Some(low), Some(high)) => format!("{value:.4} [{low:.4}, {high:.4}]"),
        (Some(value), ..) => format!("{value:.4}"),
    }
}

/// A p-value; `-` where there is none.
fn p(p: Option<f64>) -> String {
    match p {
        None => "-".to_owned(),
        Some(p) if p < 0.001 => "<0.001".to_owned(),
        Some(p) => format!("{p:.3}"),
    }
}

/// The paper's value; `-` where there is none.
fn published(system: &System, of: fn(&super::paper::Published) -> f64) -> String {
    system.published.as_ref().map_or("-".to_owned(), |published| format!("{:.4}", of(published)))
}

/// What p-values of a table are against, and what is missing in it, in sentences.
pub(super) fn below(table: &TableOf) -> String {
    let mut text = String::new();
    let label = |stage: &str| table.systems.iter().find(|s| s.stage == stage).map(|s| s.label.clone());
    if let Some(reference) = table.reference.as_deref().and_then(label) {
        let _ = write!(
            text,
            "p: two-sided paired bootstrap of the AUC's difference from {reference}, not corrected for their number. "
        );
    }
    if !table.absent.is_empty() {
        let _ = write!(text, "Not in this run: {}.", table.absent.join(", "));
    }
    text.trim_end().to_owned()
}

/// Heads and rows of a table; the paper's values only where it has some.
pub(super) fn systems(table: &TableOf) -> (Vec<&'static str>, Vec<Vec<String>>) {
    const HEADS: [&str; 10] =
        ["System", "AUC", "paper", "p", "Log loss", "paper", "Accuracy", "paper", "Samples", "Missing"];
    let beside = table.systems.iter().any(|system| system.published.is_some());
    let kept = |head: &str| beside || head != "paper";
    let row = |system: &System| {
        let cells = HEADS.into_iter().zip(cells(system)).filter(|(head, _)| kept(head));
        cells.map(|(_, cell)| cell).collect()
    };
    (HEADS.into_iter().filter(|head| kept(head)).collect(), table.systems.iter().map(row).collect())
}

fn cells(system: &System) -> [String; 10] {
    [
        system.label.clone(),
        value(&system.auc),
        published(system, |p| p.auc),
        p(system.p),
        value(&system.logloss),
        published(system, |p| p.logloss),
        value(&system.accuracy),
        published(system, |p| p.accuracy),
        system.samples.to_string(),
        system.missing.to_string(),
    ]
}

pub(super) fn markdown(report: &Report) -> String {
    let mut text = "# Report\n".to_owned();
    for run in &report.runs {
        run_markdown(run, &mut text);
    }
    for figure in &report.sweeps {
        let _ = write!(text, "\n## {}\n\n{}\n", figure.title, figure.caption);
    }
    text
}

fn run_markdown(run: &RunReport, text: &mut String) {
    let _ = write!(text, "\n## Run {} of `{}`\n\n", run.id, run.pipeline);
    run.notes.iter().for_each(|note| {
        let _ = writeln!(text, "- {note}");
    });
    if let Some(data) = &run.data {
        let _ = write!(text, "\n### Table 1. The data set\n\n");
        table(text, &["", "Users", "Items", "Samples"], counts(run, &data.source));
    }
    for of in &run.tables {
        let _ = write!(text, "\n### {}\n\n", of.title);
        let (heads, rows) = systems(of);
        table(text, &heads, rows);
        let _ = write!(text, "\n{}\n", below(of));
    }
    if let Some(found) = &run.responses {
        let _ = write!(text, "\n### Table 7. Tokens a response\n\n");
        let seconds = found.mean_seconds.map_or("-".to_owned(), |s| format!("{s:.2}"));
        let row = vec![found.stage.clone(), found.responses.to_string(), format!("{:.1}", found.mean_tokens), seconds];
        table(text, &["Stage", "Responses", "Mean tokens", "Mean seconds"], [row]);
    }
    for figure in &run.figures {
        let _ = write!(text, "\n### {}\n\n{}\n", figure.title, figure.caption);
    }
    let _ = write!(text, "\n### Time\n\n{}\n\n", time(run));
    table(text, &STAGE_HEADS, run.stages.iter().map(|stage| stage_cells(stage).to_vec()));
}

/// Rows of Table 1.
pub(super) fn counts(run: &RunReport, source: &str) -> Vec<Vec<String>> {
    let row = |name: &str, counts: [u64; 3]| {
        let mut row = vec![name.to_owned()];
        row.extend(counts.map(crate::console::thousands));
        row
    };
    let own = run.data.as_ref().and_then(|data| data.counts).map(|counts| row(source, counts));
    own.into_iter().chain(run.paper_counts.map(|counts| row("the paper", counts))).collect()
}

/// Heads of [`stage_cells`].
pub(super) const STAGE_HEADS: [&str; 9] =
    ["Stage", "Kind", "Tasks", "Reused", "Time", "Saved", "Key", "Model", "Made by"];

/// The cells of a stage's row: what it took, and what it was made from.
pub(super) fn stage_cells(stage: &super::collect::StageFacts) -> [String; 9] {
    let tasks =
        if stage.done == stage.tasks { stage.tasks.to_string() } else { format!("{} of {}", stage.done, stage.tasks) };
    [
        stage.name.clone(),
        format!("{} v{}", stage.kind, stage.version),
        tasks,
        stage.reused.to_string(),
        clock::duration(stage.seconds),
        clock::duration(stage.saved_seconds),
        stage.key.chars().take(12).collect(),
        stage.model.clone().unwrap_or_default(),
        stage.producers.iter().cloned().collect::<Vec<_>>().join(", "),
    ]
}

/// What the run took and was spared, in a sentence.
pub(super) fn time(run: &RunReport) -> String {
    let [own, gpu, saved] = run.seconds();
    let gpu =
        if gpu > 0.0 { format!("{:.2} hours of it on a GPU", gpu / 3600.0) } else { "none of it on a GPU".to_owned() };
    format!(
        "Tasks of this run took {} in all, {gpu}. What it reused had taken {} when it was computed.",
        clock::duration(own),
        clock::duration(saved)
    )
}

fn table(text: &mut String, heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let line = |cells: &[String]| {
        format!("| {} |", cells.iter().map(|c| c.replace('|', "\\|")).collect::<Vec<_>>().join(" | "))
    };
    let _ = writeln!(text, "{}", line(&heads.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>()));
    let _ = writeln!(text, "|{}", " --- |".repeat(heads.len()));
    for row in rows {
        let _ = writeln!(text, "{}", line(&row));
    }
}

/// A line a metric of a system of a table.
pub(super) fn csv(report: &Report) -> String {
    let mut text = "run,data,table,system,stage,metric,value,low,high,paper,p,samples,missing\n".to_owned();
    let quoted = |cell: &str| {
        if cell.contains([',', '"', '\n']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
    };
    let number = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
    for run in &report.runs {
        let data = run.data.as_ref().map_or("", |data| data.source.as_str());
        for table in &run.tables {
            for system in &table.systems {
                let paper = system.published.as_ref();
                let metrics = [
                    ("auc", &system.auc, paper.map(|p| p.auc), system.p),
                    ("logloss", &system.logloss, paper.map(|p| p.logloss), against(table, system, |pair| pair.logloss)),
                    (
                        "accuracy",
                        &system.accuracy,
                        paper.map(|p| p.accuracy),
                        against(table, system, |pair| pair.accuracy),
                    ),
                ];
                for (metric, value, paper, p) in metrics {
                    let words =
                        [run.id.as_str(), data, &table.id, &system.label, &system.stage, metric].map(quoted).join(",");
                    let numbers = [value.value, value.low, value.high, paper, p].map(number).join(",");
                    let _ = writeln!(text, "{words},{numbers},{},{}", system.samples, system.missing);
                }
            }
        }
    }
    text
}

/// A p-value of a system against its table's reference.
fn against(table: &TableOf, system: &System, of: fn(&super::tables::Pair) -> Option<f64>) -> Option<f64> {
    let reference = table.reference.as_deref()?;
    let ends = [reference, system.stage.as_str()];
    table.pairs.iter().find(|pair| ends.contains(&pair.a.as_str()) && ends.contains(&pair.b.as_str())).and_then(of)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{paper::Published, tables::Pair, whole::ResponseFacts},
        *,
    };

    fn system(label: &str, stage: &str, auc: f64, published: Option<Published>, p: Option<f64>) -> System {
        let value = |value: f64| Value { value: Some(value), low: Some(value - 0.01), high: Some(value + 0.01) };
        System {
            label: label.to_owned(),
            stage: stage.to_owned(),
            auc: value(auc),
            logloss: value(0.6),
            accuracy: Value::default(),
            samples: 1000,
            missing: 2,
            published,
            p,
        }
    }

    fn report() -> Report {
        let published = Published { auc: 0.7658, logloss: 0.614, accuracy: 0.6942 };
        let pair = Pair {
            a: "zero-shot".into(),
            b: "rallrec".into(),
            auc: Some(0.0004),
            logloss: Some(0.25),
            accuracy: None,
            samples: 998,
        };
        let table = TableOf {
            id: "table_4".into(),
            title: "Table 4. All systems".into(),
            systems: vec![
                system("Zero-shot, a|b", "zero-shot", 0.51, None, Some(0.0004)),
                system("RALLRec", "rallrec", 0.7, Some(published), None),
            ],
            reference: Some("rallrec".into()),
            absent: vec!["DCN".into()],
            pairs: vec![pair],
        };
        let run = RunReport {
            id: "r1".into(),
            pipeline: "p".into(),
            data: None,
            paper_counts: None,
            notes: vec!["A note.".into()],
            tables: vec![table],
            responses: Some(ResponseFacts {
                stage: "reason".into(),
                responses: 5,
                mean_tokens: 12.25,
                mean_seconds: None,
            }),
            figures: Vec::new(),
            stages: Vec::new(),
        };
        Report { version: 1, runs: vec![run], sweeps: Vec::new() }
    }

    #[test]
    fn a_report_as_markdown() {
        insta::assert_snapshot!(markdown(&report()));
    }

    #[test]
    fn a_report_as_csv() {
        insta::assert_snapshot!(csv(&report()));
    }
}
