//! The paper's tables with a run's values: intervals as `evaluate` computed them, the published values beside them, and
//! a paired bootstrap of every difference.

use super::{
    MetricRow,
    collect::RunFacts,
    paper::{self, PaperSet, Published, TABLES},
};
use crate::predictions::{Predictions, shared};
use rallrec_core::spec::gate::Measure;
use rallrec_recsys::compare::Paired;
use serde::Serialize;
use std::collections::BTreeMap;

/// Resamplings of a difference; the smallest p-value is 2 / (1 + resamplings).
const RESAMPLES: u32 = 2_000;
const SEED: u64 = 42;

/// A metric with its interval.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Value {
    pub(super) value: Option<f64>,
    pub(super) low: Option<f64>,
    pub(super) high: Option<f64>,
}

/// A system of a table.
#[derive(Clone, Serialize)]
pub(super) struct System {
    /// What the table calls it.
    pub(super) label: String,
    /// Name of its stage.
    pub(super) stage: String,
    pub(super) auc: Value,
    pub(super) logloss: Value,
    pub(super) accuracy: Value,
    pub(super) samples: i64,
    /// Samples without a prediction.
    pub(super) missing: i64,
    /// The paper's values on this data set.
    pub(super) published: Option<Published>,
    /// Two-sided p-value of the AUC's difference from the table's reference.
    pub(super) p: Option<f64>,
}

/// How two systems differ.
#[derive(Clone, Serialize)]
pub(super) struct Pair {
    pub(super) a: String,
    pub(super) b: String,
    /// Two-sided p-values by metric, for the samples that both have.
    pub(super) auc: Option<f64>,
    pub(super) logloss: Option<f64>,
    pub(super) accuracy: Option<f64>,
    /// Samples that both predicted.
    pub(super) samples: usize,
}

/// A table of systems.
#[derive(Clone, Serialize)]
pub(super) struct TableOf {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) systems: Vec<System>,
    /// Stage that p-values are against, when it is in the table.
    pub(super) reference: Option<String>,
    /// Systems of the paper's table that the run does not have.
    pub(super) absent: Vec<String>,
    pub(super) pairs: Vec<Pair>,
}

/// The paper's tables as far as the run has their systems, and one of its other systems.
///
/// # Errors
/// A sentence when predictions are damaged.
pub(super) fn of(run: &RunFacts) -> Result<Vec<TableOf>, String> {
    let set = run.data.as_ref().and_then(|data| data.paper);
    let mut known: BTreeMap<(String, String), Pair> = BTreeMap::new();
    let mut tables = Vec::new();
    for table in TABLES {
        let mut found = TableOf {
            id: table.id.to_owned(),
            title: table.title.to_owned(),
            systems: Vec::new(),
            reference: None,
            absent: Vec::new(),
            pairs: Vec::new(),
        };
        for row in table.rows {
            match system(run, row.stage) {
                Some(system) => {
                    let published = set.and_then(|set: PaperSet| paper::published(table.number, row, set));
                    found.systems.push(System { label: row.label.to_owned(), published, ..system });
                }
                None => found.absent.push(row.label.to_owned()),
            }
        }
        if found.systems.is_empty() {
            continue;
        }
        compare(run, &mut found, table.reference, &mut known)?;
        tables.push(found);
    }
    let in_tables: Vec<&str> = TABLES.iter().flat_map(|t| t.rows).map(|row| row.stage).collect();
    let mut others = TableOf {
        id: "other_systems".to_owned(),
        title: "Other systems of this run".to_owned(),
        systems: Vec::new(),
        reference: None,
        absent: Vec::new(),
        pairs: Vec::new(),
    };
    for row in &run.metrics {
        let there = |s: &System| s.stage == row.system;
        if !in_tables.contains(&row.system.as_str()) && !others.systems.iter().any(there) {
            others.systems.extend(system(run, &row.system));
        }
    }
    if !others.systems.is_empty() {
        tables.push(others);
    }
    Ok(tables)
}

/// A system's metrics; those of the first stage that evaluated it.
fn system(run: &RunFacts, stage: &str) -> Option<System> {
    let first = run.metrics.iter().find(|row| row.system == stage)?;
    let of = |metric: &str| {
        let same = |row: &&MetricRow| row.system == stage && row.stage == first.stage && row.metric == metric;
        let row = run.metrics.iter().find(same);
        row.map_or_else(Value::default, |row| Value { value: row.value, low: row.low, high: row.high })
    };
    Some(System {
        label: stage.to_owned(),
        stage: stage.to_owned(),
        auc: of("auc"),
        logloss: of("logloss"),
        accuracy: of("accuracy"),
        samples: first.samples,
        missing: first.missing,
        published: None,
        p: None,
    })
}

/// Fills in the p-values; what an earlier table has told of a pair is not computed again.
fn compare(
    run: &RunFacts,
    table: &mut TableOf,
    reference: &str,
    known: &mut BTreeMap<(String, String), Pair>,
) -> Result<(), String> {
    let stages: Vec<String> = table.systems.iter().map(|system| system.stage.clone()).collect();
    for (at, a) in stages.iter().enumerate() {
        for b in stages.iter().skip(at + 1) {
            let name = (a.clone(), b.clone());
            let pair = match known.get(&name) {
                Some(pair) => pair.clone(),
                None => {
                    let (Some(old), Some(new)) = (run.predictions.get(a), run.predictions.get(b)) else { continue };
                    let pair = pair(a, b, old, new).map_err(|e| format!("{a} and {b} of run {}: {e}", run.id))?;
                    known.insert(name, pair.clone());
                    pair
                }
            };
            table.pairs.push(pair);
        }
    }
    table.reference = stages.iter().find(|stage| *stage == reference).cloned();
    for system in &mut table.systems {
        let of = |pair: &&Pair| {
            let ends = [pair.a.as_str(), pair.b.as_str()];
            ends.contains(&reference) && ends.contains(&system.stage.as_str()) && system.stage != reference
        };
        system.p = table.pairs.iter().find(of).and_then(|pair| pair.auc);
    }
    Ok(())
}

fn pair(a: &str, b: &str, old: &Predictions, new: &Predictions) -> Result<Pair, String> {
    let rows = shared(old, new)?.rows;
    let labels: Vec<i8> = rows.iter().map(|(row, _)| old.label[*row]).collect();
    let p_old: Vec<_> = rows.iter().map(|(row, _)| old.p[*row]).collect();
    let p_new: Vec<_> = rows.iter().map(|(_, row)| new.p[*row]).collect();
    let paired = Paired::new(&labels, &p_old, &p_new, None).map_err(|e| e.to_string())?;
    let drawn = paired.resample(RESAMPLES, SEED);
    Ok(Pair {
        a: a.to_owned(),
        b: b.to_owned(),
        auc: drawn.two_sided(Measure::Auc),
        logloss: drawn.two_sided(Measure::LogLoss),
        accuracy: drawn.two_sided(Measure::Accuracy),
        samples: paired.samples(),
    })
}

/// What must be known before a value is read beside the paper's.
pub(super) fn notes(run: &RunFacts, tables: &[TableOf]) -> Vec<String> {
    let mut notes = Vec::new();
    let Some(set) = run.data.as_ref().and_then(|data| data.paper) else {
        let source = run.data.as_ref().map_or("no single data set", |data| data.source.as_str());
        notes.push(format!("The paper has no results on {source}, so none of its values stand here."));
        return notes;
    };
    let published = || tables.iter().flat_map(|t| &t.systems).filter(|s| s.published.is_some());
    if published().any(|system| system.samples as u64 != set.evaluated()) {
        let mut counts: Vec<i64> = published().map(|system| system.samples).collect();
        counts.sort_unstable();
        counts.dedup();
        let counts: Vec<String> = counts.iter().map(i64::to_string).collect();
        notes.push(format!(
            "The paper evaluates {} test samples of {}, this run {}: the values are of other samples.",
            set.evaluated(),
            set.name(),
            counts.join(" and ")
        ));
    }
    let models: Vec<&str> = {
        let mut models: Vec<&str> = run.stages.iter().filter_map(|stage| stage.model.as_deref()).collect();
        models.sort_unstable();
        models.dedup();
        models
    };
    if !models.is_empty() {
        notes.push(format!(
            "The paper's language models are Llama-3.1-8B-Instruct and DeepSeek-R1-Distill-Llama-8B. This run's: {}. With \
             other models these are other systems, and the paper's values are no target for them.",
            models.join("; ")
        ));
    }
    notes
}
