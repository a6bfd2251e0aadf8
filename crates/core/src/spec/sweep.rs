//! The `sweep:` section: what to try, and what is best.

use super::{
    DEFAULT_SEED, Stage,
    bounds::SEED,
    diagnostics::{Span, list, shown},
    node::{Content, Entry, Node},
    values::{Expected, Reader, get},
};
use crate::{
    field::ValueKind,
    kind::StageKind,
    sweep::{Best, Draw, Halving, MAX_POINTS, Point, Random, Sweep, When, spaced},
};
use serde_json::Value;
use std::collections::BTreeMap;

const KEYS: &[&str] = &["grid", "list", "random", "when", "best", "halving"];
const RANDOM_KEYS: &[&str] = &["draws", "seed", "axes"];
const BEST_KEYS: &[&str] = &["stage", "system", "metric", "then"];
const HALVING_KEYS: &[&str] = &["param", "values", "keep"];
const METRICS: &[&str] = &["auc", "accuracy", "logloss"];
/// What a value can be.
const ANY: (f64, f64) = (-1e300, 1e300);
/// What a value with a logarithm can be.
const POSITIVE: (f64, f64) = (1e-300, 1e300);

/// Parameters that the sweep sets, with the place where it first does.
#[derive(Default)]
struct Axes(BTreeMap<String, Span>);

/// Reads the section; `stages` are the pipeline's, when they could be read.
pub(super) fn read(reader: &mut Reader, node: &Node, stages: Option<&[Stage]>) -> Option<Sweep> {
    let entries = reader.map(node, "sweep", "sweep: {grid: {alpha: [0.1, 0.2]}}")?;
    reader.unknown_keys(entries, KEYS, "`sweep`");
    let mut axes = Axes::default();
    let points = get(entries, "list").map_or(Some(Vec::new()), |node| points(reader, node, &mut axes));
    let grid = get(entries, "grid").map_or(Some(Vec::new()), |node| grid(reader, node, &mut axes));
    let random = get(entries, "random").map_or(Some(None), |node| random(reader, node, &mut axes).map(Some));
    let when = get(entries, "when").map_or(Some(Vec::new()), |node| when(reader, node, &axes));
    let halving = get(entries, "halving").map_or(Some(None), |node| halving(reader, node, &mut axes).map(Some));
    let best = get(entries, "best").map_or(Some(None), |node| best(reader, node, stages).map(Some));
    let sweep = Sweep { list: points?, grid: grid?, random: random?, when: when?, best: best?, halving: halving? };
    if axes.0.is_empty() {
        let help = "write for example `sweep: {grid: {alpha: [0.1, 0.2]}}`";
        reader.out.error(node.span, "the sweep tries nothing", Some(help.to_owned()));
        return None;
    }
    if sweep.halving.is_some() && sweep.best.is_none() {
        let help = Some("add for example `best: {system: score, metric: auc}`".to_owned());
        reader.out.error(node.span, "`halving` needs `best`, which says what goes on", help);
        return None;
    }
    if sweep.count() > MAX_POINTS {
        let count = sweep.count();
        let message = format!("the sweep has {count} points; {MAX_POINTS} are the most");
        reader.out.error(node.span, message, Some("take fewer values, or draw them with `random`".to_owned()));
        return None;
    }
    Some(sweep)
}

/// A parameter that is set here, and nowhere else in the sweep but where `again` says so.
fn axis(reader: &mut Reader, entry: &Entry, axes: &mut Axes, again: bool) -> Option<String> {
    let name = entry.key.to_string();
    declared(reader, entry)?;
    match axes.0.get(&name) {
        Some(first) if !again => {
            let message =
                format!("`{}` is set twice by the sweep, first in {}", shown(&name), reader.files.line(*first));
            reader.out.error(entry.key_span, message, Some("give it one axis".to_owned()));
            None
        }
        _ => {
            axes.0.entry(name.clone()).or_insert(entry.key_span);
            Some(name)
        }
    }
}

/// The value that the parameter of an entry's name has in the file.
fn declared(reader: &mut Reader, entry: &Entry) -> Option<Value> {
    known(reader, &entry.key, entry.key_span)
}

fn known(reader: &mut Reader, name: &str, at: Span) -> Option<Value> {
    if let Some(param) = reader.params.get(name) {
        return Some(param.value.clone());
    }
    if reader.params_known {
        let help = reader
            .out
            .did_you_mean(name, reader.params.keys().map(String::as_str), "declared parameters")
            .or_else(|| Some("the file declares none: add it under `params:`".to_owned()));
        reader.out.error(at, format!("`{}` is not declared under `params`", shown(name)), help);
    }
    None
}

/// Entries of a list, all of them read even where one is wrong.
fn entries<T>(
    reader: &mut Reader,
    node: &Node,
    name: &str,
    mut read: impl FnMut(&mut Reader, &Node, &str) -> Option<T>,
) -> Option<Vec<T>> {
    match &node.content {
        Content::List(items) if !items.is_empty() => {
            let found: Vec<Option<T>> =
                (0..).zip(items).map(|(i, item)| read(reader, item, &format!("{name}[{i}]"))).collect();
            found.into_iter().collect()
        }
        Content::Broken => None,
        _ => {
            let found = if matches!(node.content, Content::List(_)) { "an empty one".into() } else { node.describe() };
            reader.out.error(
                node.span,
                format!("`{name}` must be a list, not {found}"),
                Some("write `[a, b]`".to_owned()),
            );
            None
        }
    }
}

fn values(reader: &mut Reader, node: &Node, name: &str) -> Option<Vec<Value>> {
    entries(reader, node, name, |reader, item, name| reader.any(item, name))
}

/// Every entry of a mapping, all of them read even where one is wrong.
fn mapped<T>(
    reader: &mut Reader,
    node: &Node,
    name: &str,
    mut read: impl FnMut(&mut Reader, &Entry, &str) -> Option<T>,
) -> Option<Vec<T>> {
    let found = reader.map(node, name, "alpha: [0.1, 0.2]")?;
    let found: Vec<Option<T>> =
        found.iter().map(|entry| read(reader, entry, &format!("{name}.{}", shown(&entry.key)))).collect();
    found.into_iter().collect()
}

fn points(reader: &mut Reader, node: &Node, axes: &mut Axes) -> Option<Vec<Point>> {
    let mut mine = Axes::default();
    let points = entries(reader, node, "list", |reader, item, name| {
        let point = mapped(reader, item, name, |reader, entry, name| {
            Some((axis(reader, entry, &mut mine, true)?, reader.any(&entry.value, name)?))
        })?;
        Some(Point(point))
    });
    axes.0.extend(mine.0);
    points
}

fn grid(reader: &mut Reader, node: &Node, axes: &mut Axes) -> Option<Vec<(String, Vec<Value>)>> {
    mapped(reader, node, "grid", |reader, entry, name| {
        let axis = axis(reader, entry, axes, false);
        let values = match &entry.value.content {
            Content::Map(fields) => {
                reader.unknown_keys(fields, &["from", "to", "scale", "points"], &format!("`{name}`"));
                let (from, to, log) = span_of(reader, &entry.value, fields, name)?;
                let points = match get(fields, "points") {
                    Some(node) => reader.whole(node, &format!("{name}.points"), (1.0, 1000.0))?,
                    None => 5,
                };
                spaced(from, to, points as usize, log)
            }
            _ => values(reader, &entry.value, name)?,
        };
        Some((axis?, values))
    })
}

/// `{from, to, scale}`.
fn span_of(reader: &mut Reader, node: &Node, fields: &[Entry], name: &str) -> Option<(f64, f64, bool)> {
    let scale = get(fields, "scale")
        .map_or(Some("linear".to_owned()), |node| reader.word(node, &format!("{name}.scale"), &["linear", "log"]))?;
    let range = if scale == "log" { POSITIVE } else { ANY };
    let mut end = |key: &str| match get(fields, key) {
        Some(node) => reader.float(node, &format!("{name}.{key}"), range),
        None => {
            reader.out.error(
                node.span,
                format!("`{name}` lacks `{key}`"),
                Some("write `{from: 1, to: 10}`".to_owned()),
            );
            None
        }
    };
    let (from, to) = (end("from"), end("to"));
    let (from, to) = (from?, to?);
    if from > to {
        let message = format!("`{name}` goes from {from} down to {to}");
        reader.out.error(node.span, message, Some("`from` is the smallest value, `to` the largest".to_owned()));
        return None;
    }
    Some((from, to, scale == "log"))
}

fn random(reader: &mut Reader, node: &Node, axes: &mut Axes) -> Option<Random> {
    let fields = reader.map(node, "random", "random: {draws: 20, axes: {…}}")?;
    reader.unknown_keys(fields, RANDOM_KEYS, "`random`");
    let draws = needed(reader, node, fields, "random", "draws", "draws: 20")
        .and_then(|node| reader.whole(node, "random.draws", (1.0, MAX_POINTS as f64)));
    let seed = get(fields, "seed").map_or(Some(DEFAULT_SEED), |node| reader.whole(node, "random.seed", SEED));
    let drawn = needed(reader, node, fields, "random", "axes", "axes: {lr: {from: 1e-5, to: 1e-3, scale: log}}");
    let drawn = mapped(reader, drawn?, "random.axes", |reader, entry, name| {
        let axis = axis(reader, entry, axes, false);
        let draw = match &entry.value.content {
            Content::Map(fields) => {
                reader.unknown_keys(fields, &["from", "to", "scale", "whole"], &format!("`{name}`"));
                let whole = get(fields, "whole").map_or(Some(false), |node| {
                    let expected =
                        Expected { name: &format!("{name}.whole"), kind: &ValueKind::Bool, range: None, empty: false };
                    reader.typed(node, &expected)?.as_bool()
                });
                let (from, to, log) = span_of(reader, &entry.value, fields, name)?;
                Draw::Between { from, to, log, whole: whole? }
            }
            _ => Draw::OneOf(values(reader, &entry.value, name)?),
        };
        Some((axis?, draw))
    });
    Some(Random { draws: u32::try_from(draws?).ok()?, seed: seed?, axes: drawn? })
}

/// A key that must be there.
fn needed<'n>(
    reader: &mut Reader,
    node: &Node,
    fields: &'n [Entry],
    place: &str,
    key: &str,
    example: &str,
) -> Option<&'n Node> {
    let found = get(fields, key).map(|node| &**node);
    if found.is_none() {
        reader.out.error(node.span, format!("`{place}` lacks `{key}`"), Some(format!("write for example `{example}`")));
    }
    found
}

fn when(reader: &mut Reader, node: &Node, axes: &Axes) -> Option<Vec<When>> {
    let found = mapped(reader, node, "when", |reader, entry, name| {
        if !axes.0.contains_key(&*entry.key) {
            let names: Vec<&str> = axes.0.keys().map(String::as_str).collect();
            let help = reader.out.did_you_mean(&entry.key, names, "axes");
            reader.out.error(entry.key_span, format!("`{}` is no axis of the sweep", shown(&entry.key)), help);
            return None;
        }
        mapped(reader, &entry.value, name, |reader, other, name| {
            let otherwise = declared(reader, other)?;
            let among = match &other.value.content {
                Content::List(_) => values(reader, &other.value, name)?,
                _ => vec![reader.any(&other.value, name)?],
            };
            Some(When { axis: entry.key.to_string(), other: other.key.to_string(), otherwise, among })
        })
    })?;
    Some(found.into_iter().flatten().collect())
}

fn halving(reader: &mut Reader, node: &Node, axes: &mut Axes) -> Option<Halving> {
    let fields = reader.map(node, "halving", "halving: {param: epochs, values: [1, 3, 9]}")?;
    reader.unknown_keys(fields, HALVING_KEYS, "`halving`");
    let param = needed(reader, node, fields, "halving", "param", "param: epochs").and_then(|node| {
        let name = reader.text(node, "halving.param")?;
        known(reader, &name, node.span)?;
        if let Some(first) = axes.0.get(&name) {
            let message = format!("`{}` is an axis already, in {}", shown(&name), reader.files.line(*first));
            reader.out.error(node.span, message, Some("the budget of `halving` is not an axis".to_owned()));
            return None;
        }
        Some(name)
    });
    let budgets = needed(reader, node, fields, "halving", "values", "values: [1, 3, 9]")
        .and_then(|node| values(reader, node, "halving.values"));
    let keep = get(fields, "keep").map_or(Some(0.5), |node| reader.float(node, "halving.keep", (1e-6, 1.0)));
    Some(Halving { param: param?, values: budgets?, keep: keep? })
}

fn best(reader: &mut Reader, node: &Node, stages: Option<&[Stage]>) -> Option<Best> {
    let fields = reader.map(node, "best", "best: {system: score, metric: auc}")?;
    reader.unknown_keys(fields, BEST_KEYS, "`best`");
    let metric = get(fields, "metric").map_or(Some("auc".to_owned()), |node| reader.word(node, "best.metric", METRICS));
    let then = get(fields, "then")
        .map_or(Some("nothing".to_owned()), |node| reader.word(node, "best.then", &["nothing", "whole"]));
    let system = needed(reader, node, fields, "best", "system", "system: score");
    let system = system.and_then(|node| Some((reader.text(node, "best.system")?, node.span)));
    let evaluates: Vec<&Stage> = stages?.iter().filter(|stage| stage.kind() == StageKind::Evaluate).collect();
    let names: Vec<&str> = evaluates.iter().map(|stage| stage.name.0.as_str()).collect();
    let stage = match (get(fields, "stage"), names.as_slice()) {
        (None, [only]) => (*only).to_owned(),
        (None, []) => {
            let help = Some("add a stage of kind `evaluate`".to_owned());
            reader.out.error(node.span, "no stage evaluates anything, so no point is best", help);
            return None;
        }
        (None, many) => {
            let help = Some(format!("add `stage:`, one of {}", list(many)));
            reader.out.error(node.span, "several stages evaluate: `best` must say which counts", help);
            return None;
        }
        (Some(node), names) => {
            let name = reader.text(node, "best.stage")?;
            if !names.contains(&name.as_str()) {
                let help = reader.out.did_you_mean(&name, names.iter().copied(), "stages of kind `evaluate`");
                reader.out.error(node.span, format!("`{}` is no stage of kind `evaluate`", shown(&name)), help);
                return None;
            }
            name
        }
    };
    let (system, at) = system?;
    let evaluate = evaluates.iter().find(|found| found.name.0 == stage)?;
    let systems: Vec<&str> =
        evaluate.needs.iter().filter_map(|need| Some(stages?.get(need.stage)?.name.0.as_str())).collect();
    if !systems.contains(&system.as_str()) {
        let help = reader.out.did_you_mean(&system, systems.iter().copied(), "its systems");
        reader.out.error(at, format!("`{stage}` does not evaluate `{}`", shown(&system)), help);
        return None;
    }
    Some(Best { stage, system, metric: metric?, then_whole: then? == "whole" })
}

#[cfg(test)]
mod tests {
    use super::super::compile;

    const PIPELINE: &str = "
rallrec: 1
name: s
params: {alpha: 0.1, eps: 0.001, how: plain, epochs: 1}
data: {d: {source: movielens-100k}}
stages:
  dataset: {kind: dataset, data: d}
  ctr:
    kind: ctr
    needs: {train: dataset.train, valid: dataset.valid, test: dataset.test, items: dataset.items, users: dataset.users}
    with: {learning_rate: \"${alpha}\", l2: \"${eps}\", max_epochs: \"${epochs}\"}
  evaluate: {kind: evaluate, needs: {predictions: [ctr]}}
sweep:
";

    fn with(sweep: &str) -> String {
        let indented: String = sweep.lines().map(|line| format!("  {line}\n")).collect();
        format!("{PIPELINE}{indented}")
    }

    fn errors(sweep: &str) -> String {
        compile("s.yaml", &with(sweep), &[]).expect_err("refused").to_string()
    }

    #[test]
    fn every_form_is_read() {
        let text = with(
            "grid: {alpha: [0.1, 0.2], eps: {from: 1e-6, to: 1e-2, points: 3, scale: log}}
when: {eps: {how: [plain, fancy]}}
best: {system: ctr}
halving: {param: epochs, values: [1, 2], keep: 0.25}",
        );
        let sweep = compile("s.yaml", &text, &[]).expect("compiles").sweep.expect("a sweep");
        let points: Vec<String> = sweep.points().iter().map(ToString::to_string).collect();
        assert_eq!(points.len(), 6);
        assert_eq!(points[1], "alpha=0.1, eps=0.0001");
        assert_eq!(sweep.best.map(|best| (best.stage, best.metric)), Some(("evaluate".into(), "auc".into())));
        let text = with(
            "random: {draws: 4, axes: {alpha: {from: 0.1, to: 1, scale: log}, epochs: {from: 1, to: 3, whole: true}}}\nlist: [{how: a}, {how: b}]",
        );
        assert_eq!(compile("s.yaml", &text, &[]).expect("compiles").sweep.expect("a sweep").points().len(), 8);
    }

    #[test]
    fn mistakes_are_told_with_their_places() {
        insta::assert_snapshot!(errors(
            "grid: {alpa: [0.1], eps: [], how: {from: 2, to: 1}}
list: [{eps: 1, alpha: [1]}, 3]
random: {axes: {epochs: {from: 0, to: 3, scale: log}}}
when: {epoch: {how: a}}
best: {system: crt, metric: AUC, stage: evaluat}
halving: {param: eps, values: 3}
grit: {}"
        ));
        insta::assert_snapshot!(errors("best: {system: crt}"));
        insta::assert_snapshot!(errors(
            "grid: {alpha: {from: 0, to: 1, points: 1000}, eps: {from: 0, to: 1, points: 1000}}"
        ));
    }
}
