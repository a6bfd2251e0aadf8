//! Gate files: what `compare` lets pass. YAML text to a [`Gate`], or everything that is wrong with it, told like a
//! pipeline's mistakes and by the same means.
//!
//! It knows no run: that a system or a column exists is found out later, and told at the same places by [`finding`].
//! The language is described in `docs/compare.md`.

use super::{
    DEFAULT_SEED, Diagnostics, Span,
    bounds::SEED,
    diagnostics::{Collector, list, shown},
    files::Files,
    node::{Content, Entry, MAX_BYTES, Node},
    recover,
    values::{Expected, Reader, get},
};
use crate::field::ValueKind;
use serde::Serialize;
use std::fmt;

/// The format version that this program reads.
pub const GATE_VERSION: u64 = 1;

const KEYS: &[&str] = &[
    "rallrec-gate",
    "confidence",
    "power",
    "resamples",
    "resample",
    "seed",
    "max_missing",
    "on_common_samples",
    "metrics",
    "segments",
];
const METRIC_KEYS: &[&str] = &["system", "metric", "max_drop", "max_rise", "detect"];
const SEGMENT_KEYS: &[&str] = &["by", "edges", "system", "metric", "max_drop", "max_rise", "detect", "min_samples"];
const MEASURES: [Measure; 3] = [Measure::Auc, Measure::LogLoss, Measure::Accuracy];
const START: Span = Span { line: 1, column: 1, width: 1 };

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Area under the ROC curve.
    Auc,
    /// Mean negative natural logarithm of the probability given to what happened.
    LogLoss,
    /// Share of right answers at p > 0.5.
    Accuracy,
}

impl Measure {
    /// Its word in gate files.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auc => "auc",
            Self::LogLoss => "log_loss",
            Self::Accuracy => "accuracy",
        }
    }

    /// Whether more is better.
    pub fn rises_when_better(self) -> bool {
        self != Self::LogLoss
    }

    /// The key of what is tolerated: its fall or its rise.
    fn limit(self) -> &'static str {
        if self.rises_when_better() { "max_drop" } else { "max_rise" }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What is drawn with replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Samples: what other samples of the same users would have shown.
    Samples,
    /// Users, each with all samples: what other users would have shown.
    Users,
}

/// What passes, and how it is found out.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// One less the probability of any false alarm.
    pub confidence: f64,
    /// Probability with which a worsening by `detect` must be found.
    pub power: f64,
    /// Resamplings of the bootstrap.
    pub resamples: u32,
    /// What is drawn.
    pub unit: Unit,
    /// Seed of the draws.
    pub seed: u64,
    /// Largest share of samples without a prediction in either.
    pub max_missing: f64,
    /// Whether the samples that both have are enough.
    pub on_common_samples: bool,
    /// What is asked, in the order of the file; a segment's entry without a system stands once for each system.
    pub checks: Vec<Check>,
}

/// One question: has this worsened by more than is tolerated?
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// The stage that predicts.
    pub system: String,
    /// Where the file names it.
    pub system_at: Span,
    /// What is measured.
    pub measure: Measure,
    /// Worsening that is tolerated, in units of the measure.
    pub tolerated: f64,
    /// Worsening that must be found, in units of the measure; above `tolerated`.
    pub detect: f64,
    /// Asked of each segment, and not of all samples.
    pub segments: Option<Segments>,
}

/// How users are told apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Segments {
    /// By what.
    pub by: By,
    /// Where the file says so.
    pub by_at: Span,
    /// A smaller segment is not asked.
    pub min_samples: u64,
}

/// By what users are told apart.
#[derive(Clone, Debug, PartialEq)]
pub enum By {
    /// Number of training ratings, cut below each of these.
    History(Vec<u64>),
    /// A column of texts of the table `users`.
    Column(String),
}

/// Reads a gate file. `file_name` is only for messages.
///
/// # Errors
/// Every error of the file, sorted by place, each with what to do about it.
pub fn read(file_name: &str, text: &str) -> Result<Gate, Diagnostics> {
    let mut out = Collector::default();
    if text.len() > MAX_BYTES {
        out.error(START, format!("the file has {} bytes; a gate has {MAX_BYTES} at most", text.len()), None);
        return Err(out.finish(&Files::of(file_name, "")));
    }
    let Some(file) = recover::read(text, &mut out) else { return Err(out.finish(&Files::of(file_name, text))) };
    let mut reader = Reader::new(out);
    let gate = root(&mut reader, file.root.as_deref()).and_then(|entries| gate(&mut reader, entries));
    match gate {
        Some(gate) if !reader.out.has_errors() => Ok(gate),
        _ => Err(reader.out.finish(&Files::of(file_name, text))),
    }
}

/// A mistake that only shows when the gate is held against a run.
pub fn finding(file_name: &str, text: &str, at: Span, message: String, help: Option<String>) -> Diagnostics {
    let mut out = Collector::default();
    out.error(at, message, help);
    out.finish(&Files::of(file_name, text))
}

fn root<'n>(reader: &mut Reader, root: Option<&'n Node>) -> Option<&'n [Entry]> {
    let example = "begin with `rallrec-gate: 1` and `metrics:`; docs/compare.md shows a whole file";
    let (at, what) = match root {
        Some(Node { content: Content::Map(entries), .. }) => return Some(entries),
        Some(node) => (node.span, format!("a gate file must be a mapping, not {}", node.describe())),
        None => (START, "the file is empty".to_owned()),
    };
    reader.out.error(at, what, Some(example.to_owned()));
    None
}

fn gate(reader: &mut Reader, entries: &[Entry]) -> Option<Gate> {
    reader.unknown_keys(entries, KEYS, "the gate");
    version(reader, entries);
    let number = |reader: &mut Reader, name: &'static str, default, range| {
        get(entries, name).map_or(Some(default), |node| reader.float(node, name, range))
    };
    let confidence = number(reader, "confidence", 0.99, (0.5, 0.9999));
    let power = number(reader, "power", 0.9, (0.5, 0.999));
    let max_missing = number(reader, "max_missing", 0.01, (0.0, 1.0));
    let whole = |reader: &mut Reader, name: &'static str, default, range| {
        get(entries, name).map_or(Some(default), |node| reader.whole(node, name, range))
    };
    let resamples = whole(reader, "resamples", 2000, (100.0, 1_000_000.0));
    let seed = whole(reader, "seed", DEFAULT_SEED, SEED);
    let unit = get(entries, "resample")
        .map_or(Some("samples".to_owned()), |node| reader.word(node, "resample", &["samples", "users"]));
    let common = get(entries, "on_common_samples").map_or(Some(false), |node| {
        let expected = Expected { name: "on_common_samples", kind: &ValueKind::Bool, range: None, empty: false };
        reader.typed(node, &expected)?.as_bool()
    });
    let checks = checks(reader, entries);
    Some(Gate {
        confidence: confidence?,
        power: power?,
        resamples: u32::try_from(resamples?).ok()?,
        unit: if unit? == "users" { Unit::Users } else { Unit::Samples },
        seed: seed?,
        max_missing: max_missing?,
        on_common_samples: common?,
        checks: checks?,
    })
}

fn version(reader: &mut Reader, entries: &[Entry]) {
    let help = Some(format!("begin the file with `rallrec-gate: {GATE_VERSION}`, the version of its format"));
    let Some(node) = get(entries, "rallrec-gate") else {
        if !reader.out.misspelt("rallrec-gate", entries.iter().map(|e| &*e.key), KEYS) {
            reader.out.error(START, "the key `rallrec-gate` is missing", help);
        }
        return;
    };
    let expected = Expected { name: "rallrec-gate", kind: &ValueKind::Int, range: None, empty: false };
    let found = reader.typed(node, &expected).and_then(|v| v.as_i64());
    if let Some(found) = found.filter(|v| *v != GATE_VERSION as i64) {
        let message = format!("the gate has format version {found}; this program reads version {GATE_VERSION}");
        reader.out.error(node.span, message, help);
    }
}

fn checks(reader: &mut Reader, entries: &[Entry]) -> Option<Vec<Check>> {
    let metrics = items(reader, entries, "metrics", METRIC_KEYS)?;
    let segments = items(reader, entries, "segments", SEGMENT_KEYS)?;
    let none_named = metrics.is_empty();
    let mut checks: Vec<Check> = metrics.into_iter().filter_map(|(at, fields)| metric(reader, at, fields)).collect();
    let mut systems: Vec<(String, Span)> = Vec::new();
    for check in &checks {
        if !systems.iter().any(|(name, _)| *name == check.system) {
            systems.push((check.system.clone(), check.system_at));
        }
    }
    for (at, fields) in segments {
        checks.extend(segment(reader, at, fields, &systems, none_named));
    }
    let broken = |name| get(entries, name).is_some_and(|node| matches!(node.content, Content::Broken));
    if checks.is_empty() && !reader.out.has_errors() && !broken("metrics") && !broken("segments") {
        let help = "add for example `metrics: [{system: score, metric: auc, max_drop: 0.005}]`";
        reader.out.error(START, "the gate asks nothing", Some(help.to_owned()));
    }
    Some(checks)
}

/// The mappings of a list, with their places; unknown keys are reported.
fn items<'n>(
    reader: &mut Reader,
    entries: &'n [Entry],
    name: &str,
    known: &[&str],
) -> Option<Vec<(Span, &'n [Entry])>> {
    let Some(node) = get(entries, name) else { return Some(Vec::new()) };
    let list = match &node.content {
        Content::List(list) => list,
        Content::Broken => return Some(Vec::new()),
        _ => {
            let message = format!("`{name}` must be a list, not {}", node.describe());
            reader.out.error(node.span, message, Some(format!("write `{name}: [{{…}}, {{…}}]`")));
            return None;
        }
    };
    let mut found = Vec::new();
    for (i, item) in list.iter().enumerate() {
        let name = format!("{name}[{i}]");
        if let Some(fields) = reader.map(item, &name, "{metric: auc, max_drop: 0.005}") {
            reader.unknown_keys(fields, known, &format!("`{name}`"));
            found.push((item.span, fields));
        }
    }
    Some(found)
}

fn metric(reader: &mut Reader, at: Span, fields: &[Entry]) -> Option<Check> {
    let system = match get(fields, "system") {
        Some(node) => reader.text(node, "system").map(|name| (name, node.span)),
        None => missing(reader, at, "system", "name the stage that predicts, for example `system: score`"),
    };
    let (measure, tolerated, detect) = limits(reader, at, fields)?;
    let (system, system_at) = system?;
    Some(Check { system, system_at, measure, tolerated, detect, segments: None })
}

fn segment(
    reader: &mut Reader,
    at: Span,
    fields: &[Entry],
    systems: &[(String, Span)],
    none_named: bool,
) -> Vec<Check> {
    let systems = match get(fields, "system") {
        Some(node) => reader.text(node, "system").map(|name| vec![(name, node.span)]).unwrap_or_default(),
        None if none_named => {
            let help = "name the stage that predicts, or ask something of it under `metrics`";
            missing::<()>(reader, at, "system", help);
            Vec::new()
        }
        None => systems.to_vec(),
    };
    let by = by(reader, at, fields);
    let min_samples = match get(fields, "min_samples") {
        Some(node) => reader.whole(node, "min_samples", (0.0, 1e12)),
        None => Some(0),
    };
    let (Some((by, by_at)), Some(min_samples), Some((measure, tolerated, detect))) =
        (by, min_samples, limits(reader, at, fields))
    else {
        return Vec::new();
    };
    let segments = Segments { by, by_at, min_samples };
    let check =
        |(system, system_at)| Check { system, system_at, measure, tolerated, detect, segments: Some(segments.clone()) };
    systems.into_iter().map(check).collect()
}

fn by(reader: &mut Reader, at: Span, fields: &[Entry]) -> Option<(By, Span)> {
    let Some(node) = get(fields, "by") else {
        return missing(reader, at, "by", "write `by: history` with `edges`, or name a column of `users`");
    };
    let column = reader.text(node, "by")?;
    let edges = get(fields, "edges");
    if column != "history" {
        if let Some(edges) = edges {
            reader.out.error(edges.span, "`edges` belongs to `by: history`", Some("remove it".to_owned()));
        }
        return Some((By::Column(column), node.span));
    }
    let Some(edges) = edges else {
        return missing(reader, at, "edges", "cut the number of training ratings, for example `edges: [20, 100]`");
    };
    let kind = ValueKind::List(Box::new(ValueKind::Int));
    let expected = Expected { name: "edges", kind: &kind, range: Some((1.0, 1e9)), empty: false };
    let values: Vec<u64> = reader.typed(edges, &expected)?.as_array()?.iter().filter_map(|v| v.as_u64()).collect();
    if values.is_empty() || values.windows(2).any(|pair| pair[0] >= pair[1]) {
        let help = Some("for example `edges: [20, 100]`".to_owned());
        reader.out.error(edges.span, "`edges` must be one or more numbers, each above the one before", help);
        return None;
    }
    Some((By::History(values), node.span))
}

/// Measure, tolerated worsening, and the one that must be found.
fn limits(reader: &mut Reader, at: Span, fields: &[Entry]) -> Option<(Measure, f64, f64)> {
    let words = MEASURES.map(Measure::word);
    let Some(node) = get(fields, "metric") else {
        return missing(reader, at, "metric", &format!("one of {}", list(&words)));
    };
    let found = reader.word(node, "metric", &["auc", "log_loss", "accuracy"])?;
    let measure = MEASURES.into_iter().find(|m| m.word() == found)?;
    let name = measure.limit();
    if let Some(other) = fields.iter().find(|e| matches!(&*e.key, "max_drop" | "max_rise") && &*e.key != name) {
        let better = if measure.rises_when_better() { "more" } else { "less" };
        let message = format!("of `{measure}`, {better} is better: `{}` says nothing", shown(&other.key));
        reader.out.error(other.key_span, message, Some(format!("write `{name}`")));
        return None;
    }
    let Some(node) = get(fields, name) else {
        return missing(reader, at, name, "say how much worse may pass, for example 0.005");
    };
    let tolerated = reader.float(node, name, (0.0, 100.0))?;
    let Some(detect) = get(fields, "detect") else {
        if tolerated == 0.0 {
            return missing(
                reader,
                at,
                "detect",
                &format!("with `{name}: 0`, say what must be found, as `detect: 0.01`"),
            );
        }
        return Some((measure, tolerated, 2.0 * tolerated));
    };
    let at = detect.span;
    let detect = reader.float(detect, "detect", (0.0, 100.0))?;
    if detect <= tolerated {
        let help = Some(format!("raise it: nothing up to `{name}` is ever found"));
        reader.out.error(at, format!("`detect` must be above `{name}`, which is {tolerated}"), help);
        return None;
    }
    Some((measure, tolerated, detect))
}

fn missing<T>(reader: &mut Reader, at: Span, name: &str, help: &str) -> Option<T> {
    reader.out.error(at, format!("the key `{name}` is missing here"), Some(help.to_owned()));
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_gate_is_read() {
        let text = "\
rallrec-gate: 1
confidence: 0.95
resamples: 500
resample: users
seed: 1
max_missing: 0
on_common_samples: true
metrics:
  - {system: score, metric: auc, max_drop: 0.005}
  - {system: merge, metric: log_loss, max_rise: 0.01, detect: 0.015}
segments:
  - {by: history, edges: [20, 100], metric: auc, max_drop: 0.02, min_samples: 200}
  - {by: gender, system: merge, metric: accuracy, max_drop: 0, detect: 0.03}
";
        let gate = read("gate.yaml", text).unwrap();
        assert_eq!((gate.confidence, gate.power, gate.resamples, gate.seed), (0.95, 0.9, 500, 1));
        assert_eq!((gate.unit, gate.max_missing, gate.on_common_samples), (Unit::Users, 0.0, true));
        let told: Vec<_> = gate
            .checks
            .iter()
            .map(|c| (c.system.as_str(), c.measure.word(), c.tolerated, c.detect, c.segments.as_ref().map(|s| &s.by)))
            .collect();
        let (history, gender) = (By::History(vec![20, 100]), By::Column("gender".into()));
        assert_eq!(
            told,
            [
                ("score", "auc", 0.005, 0.01, None),
                ("merge", "log_loss", 0.01, 0.015, None),
                ("score", "auc", 0.02, 0.04, Some(&history)),
                ("merge", "auc", 0.02, 0.04, Some(&history)),
                ("merge", "accuracy", 0.0, 0.03, Some(&gender)),
            ]
        );
        assert_eq!(gate.checks[2].segments.as_ref().map(|s| s.min_samples), Some(200));
    }

    #[test]
    fn every_mistake_is_told_at_its_place() {
        let text = "\
rallrec-gate: 2
confidense: 0.95
resamples: 10
metrics:
  - {system: score, metric: auc, max_rise: 0.005}
  - {metric: ndcg, max_drop: 0.01}
  - {system: score, metric: log_loss, max_rise: 0.01, detect: 0.01}
  - {system: score, metric: accuracy, max_drop: 0}
segments:
  - {by: history, metric: auc, max_drop: 0.02}
  - {by: gender, edges: [1], metric: auc, max_drop: 0.02}
  - {by: history, edges: [20, 20], metric: auc, max_drop: \"0.02\"}
";
        insta::assert_snapshot!(read("gate.yaml", text).unwrap_err().to_string());
        for (text, place) in [
            ("", "g:1:1: error: the file is empty"),
            ("rallrec-gate: 1\n", "g:1:1: error: the gate asks nothing"),
            (
                "rallrec-gate: 1\nmetrics: [{system: a, metric: auc, max_drop: 0.1}\n",
                "g:2:10: error: this `[` is never",
            ),
            (
                "rallrec-gate: 1\nsegments: [{by: age, metric: auc, max_drop: 0.1}]\n",
                "g:2:12: error: the key `system` is missing",
            ),
            ("rallrec-gate: 1\nmetrics: {}\n", "g:2:10: error: `metrics` must be a list"),
            ("metrics: [{system: a, metric: auc, max_drop: 0.1}]\n", "g:1:1: error: the key `rallrec-gate` is missing"),
        ] {
            let told = read("g", text).unwrap_err().to_string();
            assert!(told.starts_with(place), "{text:?}: {told}");
        }
    }

    #[test]
    fn what_a_run_shows_is_told_at_the_gate_s_place() {
        let text = "rallrec-gate: 1\nmetrics: [{system: scor, metric: auc, max_drop: 0.1}]\n";
        let gate = read("g", text).unwrap();
        let told = finding("g", text, gate.checks[0].system_at, "no such".into(), None).to_string();
        assert!(told.starts_with("g:2:20: error: no such\n") && told.contains("scor, metric"), "{told}");
    }
}
