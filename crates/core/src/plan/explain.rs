//! Why a stage runs again: the fields in which two plans differ, followed upstream to where the change began.

use super::{Plan, PlannedStage, build::value_of};
use crate::{field::Effect, ids::StageName, kind::Mode, params::StageParams};
use std::{
    collections::{BTreeSet, HashSet},
    fmt,
};

/// A changed field that is a cause of its own, not only the trace of another change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldChange {
    /// The stage that has the field.
    pub stage: StageName,
    /// Name of the field, for example `with.alpha`.
    pub field: String,
    /// Its value before; `None` when it was not there.
    pub old: Option<String>,
    /// Its value now; `None` when it is gone.
    pub new: Option<String>,
    /// The inputs of the asked stage through which the change comes; empty when the stage itself has the field.
    pub through: Vec<String>,
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (old, new) = excerpts(self.old.as_deref(), self.new.as_deref());
        if self.through.is_empty() {
            return write!(f, "{} of {}: {old} -> {new}", self.field, self.stage);
        }
        write!(f, "{} changed because {}: {}: {old} -> {new}", self.through.join(", "), self.stage, self.field)
    }
}

/// Two values shortened around their first difference, so that long templates stay readable.
fn excerpts(old: Option<&str>, new: Option<&str>) -> (String, String) {
    let common = match (old, new) {
        (Some(a), Some(b)) => a.chars().zip(b.chars()).take_while(|(x, y)| x == y).count(),
        _ => 0,
    };
    let from = if common > 40 { common - 20 } else { 0 };
    let cut = |value: Option<&str>| {
        let Some(value) = value else { return "(none)".to_owned() };
        let digest = value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit());
        let length = if digest { 12 } else { 60 };
        let (head, from) = if digest || from == 0 { ("", 0) } else { ("…", from) };
        let body: String = value.chars().skip(from).take(length).collect();
        let tail = if value.chars().count() > from + length { "…" } else { "" };
        format!("{head}{body}{tail}")
    };
    (cut(old), cut(new))
}

/// Where a comparison stands: the same stage in both plans, and whether its whole tables count or only its rows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Pair {
    old: usize,
    new: usize,
    whole: bool,
}

/// The changes that made the keys of `stage` differ between two plans; empty when they are the same.
pub fn why_changed(old: &Plan, new: &Plan, stage: &StageName) -> Vec<FieldChange> {
    let place = |plan: &Plan| plan.stages.iter().position(|s| s.name == *stage);
    let (before, now) = match (place(old), place(new)) {
        (Some(before), Some(now)) => (before, now),
        (before, now) => {
            let kind = |plan: &Plan, at: Option<usize>| Some(plan.stages.get(at?)?.kind.to_string());
            let change = FieldChange {
                stage: stage.clone(),
                field: "stage".to_owned(),
                old: kind(old, before),
                new: kind(new, now),
                through: Vec::new(),
            };
            return if change.old == change.new { Vec::new() } else { vec![change] };
        }
    };
    let mut changes = Vec::new();
    let mut routes = Vec::new();
    compare(old, new, Pair { old: before, new: now, whole: true }, &mut changes, &mut routes);
    for (route, pair) in routes {
        for mut change in causes(old, new, pair) {
            match changes.iter_mut().find(|c| c.stage == change.stage && c.field == change.field) {
                Some(known) if known.through.contains(&route) || known.through.is_empty() => {}
                Some(known) => known.through.push(route.clone()),
                None => {
                    change.through.push(route.clone());
                    changes.push(change);
                }
            }
        }
    }
    changes
}

/// Everything upstream of one input that changed by itself.
fn causes(old: &Plan, new: &Plan, start: Pair) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    let mut seen = HashSet::from([start]);
    let mut waiting = vec![start];
    while let Some(pair) = waiting.pop() {
        let mut routes = Vec::new();
        compare(old, new, pair, &mut changes, &mut routes);
        waiting.extend(routes.into_iter().map(|(_, pair)| pair).filter(|pair| seen.insert(*pair)));
    }
    changes
}

/// Fields that differ: causes go to `changes`, inputs whose own stage must be looked at go to `routes`.
fn compare(old: &Plan, new: &Plan, pair: Pair, changes: &mut Vec<FieldChange>, routes: &mut Vec<(String, Pair)>) {
    let (Some(before), Some(now)) = (old.stages.get(pair.old), new.stages.get(pair.new)) else { return };
    let names: BTreeSet<&String> = before.fields.0.keys().chain(now.fields.0.keys()).collect();
    let mut change = |field: &str, old: Option<String>, new: Option<String>| {
        changes.push(FieldChange { stage: now.name.clone(), field: field.to_owned(), old, new, through: Vec::new() });
    };
    for name in names {
        let (a, b) = (before.fields.0.get(name), now.fields.0.get(name));
        if a == b {
            continue;
        }
        match (input(old, before, name), input(new, now, name)) {
            (Some(a), Some(b)) if a.name == b.name => {
                let whole = a.mode == Mode::Whole;
                routes.push((name.clone(), Pair { old: a.stage, new: b.stage, whole }));
            }
            (None, None) => change(name, a.cloned(), b.cloned()),
            (a, b) => change(name, a.map(|a| a.name), b.map(|b| b.name)),
        }
    }
    if !pair.whole {
        return;
    }
    for field in StageParams::fields(now.kind).iter().filter(|f| f.effect == Effect::Scope) {
        let (a, b) = (value_of(&before.params, field.name), value_of(&now.params, field.name));
        if a != b && now.drive().is_some() {
            change(&format!("with.{}", field.name), Some(a), Some(b));
        }
    }
    // Rows stay what they are when only their number changed further up.
    if let (Some(a), Some(b)) = (before.drive(), now.drive()) {
        let whole = |plan: &Plan, at: u32| plan.stages.get(at as usize).map(|s| s.stage_key.clone());
        if whole(old, a.stage) != whole(new, b.stage) {
            let pair = Pair { old: a.stage as usize, new: b.stage as usize, whole: true };
            routes.push((format!("needs.{}", b.port), pair));
        }
    }
}

/// The stage behind a `needs.…` field.
struct Upstream {
    name: String,
    stage: usize,
    mode: Mode,
}

fn input(plan: &Plan, stage: &PlannedStage, field: &str) -> Option<Upstream> {
    let port = field.strip_prefix("needs.")?;
    let (port, place) = match port.split_once('.') {
        Some((port, place)) => (port, place.parse().ok()?),
        None => (port, 0),
    };
    let need = stage.needs.iter().filter(|n| n.port == port).nth(place)?;
    let upstream = plan.stages.get(need.stage as usize)?;
    // The table is part of what is needed: another table of the same stage is a change of its own.
    let name = match upstream.kind.info().outputs.first() {
        Some((first, _)) if *first == need.table => upstream.name.to_string(),
        _ => format!("{}.{}", upstream.name, need.table),
    };
    Some(Upstream { name, stage: need.stage as usize, mode: need.mode })
}
