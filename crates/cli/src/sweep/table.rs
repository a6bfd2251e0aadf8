//! What a sweep found: which point is best, as a table for people, CSV and JSON.

use super::TOLD;
use crate::{
    console::columns,
    failure::Failure,
    home::write_atomically,
    plot::{self, Dot},
    report::MetricRow,
};
use rallrec_core::sweep::{Best, Point, Sweep};
use serde::Serialize;
use serde_json::{Value, json};
use std::{fmt::Write as _, fs, io, path::Path};

/// A point and what came of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Tried {
    /// Its number, from 1.
    pub(super) number: usize,
    /// Its values, with the budget of its round.
    #[serde(rename = "values")]
    pub(super) point: Point,
    /// Everything that its `evaluate` stages found.
    pub(super) metrics: Vec<MetricRow>,
    /// Why it failed.
    pub(super) failure: Option<String>,
}

impl Tried {
    fn metric(&self, stage: &str, system: &str, metric: &str) -> Option<&MetricRow> {
        self.metrics.iter().find(|row| row.stage == stage && row.system == system && row.metric == metric)
    }

    fn goal(&self, best: &Best) -> Option<f64> {
        self.metric(&best.stage, &best.system, &best.metric)?.value
    }
}

/// Numbers of the points with a value, the best first; of equals the one with the smaller number.
pub(super) fn ranked(best: &Best, tried: &[Tried]) -> impl Iterator<Item = usize> {
    let mut order: Vec<(usize, f64)> =
        tried.iter().filter_map(|tried| Some((tried.number, tried.goal(best)?))).collect();
    order.sort_by(|a, b| {
        let (first, second) = if best.prefers(1.0, 0.0) { (b.1, a.1) } else { (a.1, b.1) };
        first.total_cmp(&second).then(a.0.cmp(&b.0))
    });
    order.into_iter().map(|(number, _)| number)
}

/// A sweep that has ended.
pub(super) struct Found<'a> {
    pipeline: &'a str,
    sweep: &'a Sweep,
    rounds: Vec<Vec<Tried>>,
}

impl<'a> Found<'a> {
    /// Of a pipeline's sweep, by rounds.
    pub(super) fn new(pipeline: &'a str, sweep: &'a Sweep, rounds: Vec<Vec<Tried>>) -> Self {
        Self { pipeline, sweep, rounds }
    }

    /// The best point of the last round.
    pub(super) fn best(&self) -> Option<&Tried> {
        let last = self.rounds.last()?;
        let number = ranked(self.sweep.best.as_ref()?, last).next()?;
        last.iter().find(|tried| tried.number == number)
    }

    /// Names of the parameters, in the order in which points have them.
    fn axes(&self) -> Vec<&str> {
        let mut axes: Vec<&str> = Vec::new();
        for (name, _) in self.rounds.iter().flatten().flat_map(|tried| &tried.point.0) {
            if !axes.contains(&name.as_str()) {
                axes.push(name);
            }
        }
        axes
    }

    /// The metrics that the table shows, as (stage, system, metric): what the sweep is about, or every system's AUC.
    fn shown(&self) -> Vec<(&str, &str, &str)> {
        let mut shown: Vec<(&str, &str, &str)> = Vec::new();
        for row in self.rounds.iter().flatten().flat_map(|tried| &tried.metrics) {
            let wanted = match &self.sweep.best {
                Some(best) => row.stage == best.stage && row.system == best.system,
                None => row.metric == "auc",
            };
            let name = (row.stage.as_str(), row.system.as_str(), row.metric.as_str());
            if wanted && !shown.contains(&name) {
                shown.push(name);
            }
        }
        shown
    }

    /// The table, and which point is best.
    pub(super) fn markdown(&self) -> String {
        let (axes, shown) = (self.axes(), self.shown());
        let best = self.best().map(|best| best.number);
        let head = ["point".to_owned()].into_iter().chain(axes.iter().map(|&axis| axis.to_owned()));
        let head = head.chain(shown.iter().map(|(_, system, metric)| format!("{system} {metric}"))).collect::<Vec<_>>();
        let mut text = String::new();
        for (round, tried) in (1..).zip(&self.rounds) {
            let last = round == self.rounds.len();
            if self.rounds.len() > 1 {
                let _ = writeln!(text, "round {round}");
            }
            let mut rows = vec![head.clone(), vec!["---".to_owned(); head.len()]];
            for tried in tried {
                let mark = if last && best == Some(tried.number) { "*" } else { "" };
                let mut row = vec![format!("{}{mark}", tried.number)];
                row.extend(axes.iter().map(|axis| tried.point.get(axis).map_or("-".to_owned(), plain)));
                row.extend(shown.iter().map(|(stage, system, metric)| match tried.metric(stage, system, metric) {
                    Some(row) => interval(row),
                    None => if tried.failure.is_some() { "failed" } else { "-" }.to_owned(),
                }));
                rows.push(row);
            }
            for line in columns(
                &rows.iter().map(|row| row.iter().map(|cell| format!("| {cell}")).collect()).collect::<Vec<_>>(),
            ) {
                let _ = writeln!(text, "{line} |");
            }
            text.push('\n');
        }
        match (&self.sweep.best, self.best()) {
            (Some(goal), Some(best)) => {
                let value = best.metric(&goal.stage, &goal.system, &goal.metric).map(interval).unwrap_or_default();
                let _ = write!(
                    text,
                    "best: point {}, {}: {} of {} {value}",
                    best.number, best.point, goal.metric, goal.system
                );
            }
            (Some(goal), None) => {
                let _ = write!(text, "no point has a {} of {}", goal.metric, goal.system);
            }
            (None, _) => text.truncate(text.trim_end().len()),
        }
        text
    }

    /// For programs: everything that was found.
    pub(super) fn event(&self) -> Value {
        json!({ "event": "sweep", "pipeline": self.pipeline, "best": self.best(), "rounds": self.rounds })
    }

    /// Writes `points.csv`, a line a metric, `points.json`, and a plot `AXIS.svg` for each axis into a folder.
    pub(super) fn write(&self, folder: &Path) -> Result<(), Failure> {
        let told = |error: io::Error| Failure::Unreachable(format!("{}: {error}", folder.display()));
        fs::create_dir_all(folder).map_err(told)?;
        write_atomically(&folder.join("points.csv"), self.csv().as_bytes()).map_err(told)?;
        let json = serde_json::to_vec_pretty(&self.event()).map_err(anyhow::Error::from)?;
        write_atomically(&folder.join("points.json"), &json).map_err(told)?;
        for (axis, svg) in self.plots()? {
            write_atomically(&folder.join(format!("{axis}.svg")), svg.as_bytes()).map_err(told)?;
        }
        Ok(())
    }

    /// Of each axis with several values a plot of the last round: the metric that the sweep is about, or the first one shown.
    fn plots(&self) -> Result<Vec<(&str, String)>, Failure> {
        let shown = self.shown();
        let goal =
            self.sweep.best.as_ref().map(|best| (best.stage.as_str(), best.system.as_str(), best.metric.as_str()));
        let (Some((stage, system, metric)), Some(last)) = (goal.or(shown.first().copied()), self.rounds.last()) else {
            return Ok(Vec::new());
        };
        let mut plots = Vec::new();
        for axis in self.axes() {
            let dots = last.iter().filter_map(|tried| {
                let row = tried.metric(stage, system, metric)?;
                let others = tried.point.0.iter().filter(|(name, _)| name != axis).cloned().collect();
                Some(Dot {
                    at: tried.point.get(axis)?.clone(),
                    series: Point(others).to_string(),
                    value: row.value?,
                    interval: row.low.zip(row.high),
                })
            });
            let dots: Vec<Dot> = dots.collect();
            if let Some(svg) = plot::plot(axis, &format!("{metric} of {system}"), &dots)? {
                plots.push((axis, svg));
            }
        }
        Ok(plots)
    }

    fn csv(&self) -> String {
        let axes = self.axes();
        let head = ["round", "point"].into_iter().chain(axes.iter().copied());
        let head = head.chain(["stage", "system", "metric", "value", "low", "high", "samples", "missing", "failure"]);
        let mut text = line(head.map(str::to_owned));
        for (round, tried) in (1..).zip(&self.rounds) {
            for tried in tried {
                let values = axes.iter().map(|axis| tried.point.get(axis).map_or(String::new(), plain));
                let point: Vec<String> =
                    [round.to_string(), tried.number.to_string()].into_iter().chain(values).collect();
                let number = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
                for row in &tried.metrics {
                    let found = [row.stage.clone(), row.system.clone(), row.metric.clone()];
                    let numbers = [number(row.value), number(row.low), number(row.high)];
                    let counts = [row.samples.to_string(), row.missing.to_string(), String::new()];
                    text += &line(point.iter().cloned().chain(found).chain(numbers).chain(counts));
                }
                if let Some(failure) = &tried.failure {
                    let empty = std::iter::repeat_n(String::new(), 8);
                    text += &line(point.iter().cloned().chain(empty).chain([failure.clone()]));
                }
            }
        }
        text
    }

    /// Which points failed and why; `None` when none did.
    pub(super) fn failures(&self) -> Option<String> {
        let failed: Vec<&Tried> = self.rounds.iter().flatten().filter(|tried| tried.failure.is_some()).collect();
        let all: usize = self.rounds.iter().map(Vec::len).sum();
        if failed.is_empty() {
            return None;
        }
        let mut lines = vec![format!("{} of {all} points failed", failed.len())];
        lines.extend(failed.iter().take(TOLD).map(|tried| {
            let why = tried.failure.as_deref().unwrap_or_default();
            format!("  point {} ({}): {why}", tried.number, tried.point)
        }));
        lines.extend((failed.len() > TOLD).then(|| format!("  and {} more", failed.len() - TOLD)));
        lines.push("mend the cause and run the same command again: what was finished is reused".to_owned());
        Some(lines.join("\n"))
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn interval(row: &MetricRow) -> String {
    match (row.value, row.low, row.high) {
        (Some(value), Some(low), Some(high)) => format!("{value:.4} [{low:.4}, {high:.4}]"),
        (Some(value), ..) => format!("{value:.4}"),
        (None, ..) => "undefined".to_owned(),
    }
}

/// A line of CSV (RFC 4180).
fn line(cells: impl Iterator<Item = String>) -> String {
    let quoted = |cell: String| {
        if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
    };
    let mut text = cells.map(quoted).collect::<Vec<_>>().join(",");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(metric: &str, value: Option<f64>) -> MetricRow {
        let bound = |by: f64| value.map(|v| v + by);
        let (stage, system, metric) = ("evaluate".to_owned(), "score".to_owned(), metric.to_owned());
        MetricRow { stage, system, metric, value, low: bound(-0.01), high: bound(0.01), samples: 10, missing: 0 }
    }

    fn tried(number: usize, alpha: f64, auc: Option<f64>) -> Tried {
        let point = Point(vec![("alpha".to_owned(), json!(alpha)), ("how".to_owned(), json!("a, b"))]);
        Tried { number, point, metrics: vec![row("auc", auc)], failure: None }
    }

    fn sweep(metric: &str) -> Sweep {
        let best = Best { stage: "evaluate".into(), system: "score".into(), metric: metric.into(), then_whole: false };
        Sweep { list: vec![], grid: vec![], random: None, when: vec![], best: Some(best), halving: None }
    }

    #[test]
    fn the_best_is_of_the_last_round_and_the_first_of_equals() {
        let sweep = sweep("auc");
        let first = vec![tried(1, 0.1, Some(0.9)), tried(2, 0.2, Some(0.5)), tried(3, 0.3, Some(0.6))];
        let last = vec![tried(2, 0.2, Some(0.7)), tried(3, 0.3, Some(0.7)), tried(4, 0.3, None)];
        let found = Found::new("p", &sweep, vec![first, last]);
        assert_eq!(found.best().map(|best| best.number), Some(2));
        insta::assert_snapshot!(found.markdown());
        insta::assert_snapshot!(found.csv());
    }

    #[test]
    fn less_log_loss_is_better() {
        let best = Best { metric: "logloss".into(), ..sweep("auc").best.unwrap() };
        let points = [0.7, 0.5, 0.6].map(|v| Tried { metrics: vec![row("logloss", Some(v))], ..tried(0, 0.0, None) });
        let points: Vec<Tried> = (1..).zip(points).map(|(number, tried)| Tried { number, ..tried }).collect();
        assert_eq!(ranked(&best, &points).collect::<Vec<_>>(), [2, 3, 1]);
    }

    #[test]
    fn failures_name_their_points() {
        let sweep = sweep("auc");
        let broken = Tried { failure: Some("merge@2: no rows".into()), metrics: vec![], ..tried(2, 0.2, None) };
        let found = Found::new("p", &sweep, vec![vec![tried(1, 0.1, Some(0.5)), broken]]);
        insta::assert_snapshot!(found.failures().unwrap());
        assert!(found.markdown().contains("failed"));
    }
}
