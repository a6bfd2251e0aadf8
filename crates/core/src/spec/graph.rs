//! References between stages: every one leads to a table of the right kind, there are no circles, and rows that are
//! read side by side belong together.

use super::{
    Input, Stage,
    diagnostics::{Span, list, shown},
    stage::{Draft, Reference},
    values::Reader,
};
use crate::{
    kind::{Mode, StageKind, TableKind},
    params::StageParams,
};
use std::collections::{HashMap, HashSet};

/// A resolved reference: position of the stage, and of the table among its outputs.
type Target = (usize, usize);

/// Rows of a table: the table that they were first made for, and how many of its first rows are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rows {
    stage: usize,
    table: usize,
    limit: Option<u64>,
}

/// What references can lead to.
struct Known<'a> {
    drafts: &'a [Draft],
    names: HashMap<&'a str, usize>,
    offers: Offers,
    /// Names of stages that could not be read: references to them are taken as right.
    unreadable: [&'a HashSet<String>; 2],
}

/// Resolves the references of all stages. The stages are there when all of them could be built.
pub(super) fn connect(
    reader: &mut Reader,
    drafts: Vec<Draft>,
    broken: &HashSet<String>,
    lost: &HashSet<String>,
) -> Option<Vec<Stage>> {
    let known = Known {
        drafts: &drafts,
        names: drafts.iter().enumerate().map(|(i, d)| (d.name.0.as_str(), i)).collect(),
        offers: Offers::new(&drafts),
        unreadable: [broken, lost],
    };
    let targets: Vec<Vec<Option<Target>>> = drafts
        .iter()
        .enumerate()
        .map(|(i, draft)| draft.needs.iter().map(|need| resolve(reader, &known, i, need)).collect())
        .collect();
    for (draft, own) in drafts.iter().zip(&targets) {
        repetitions(reader, &drafts, draft, own);
        leak(reader, &drafts, draft, own, &targets);
    }
    let order = order(&targets);
    if order.len() < drafts.len() {
        circles(reader, &drafts, &targets, &order);
    }
    alignment(reader, &drafts, &targets, &order);
    one_data_set(reader, &drafts, &targets, &order);
    let kinds: Vec<StageKind> = drafts.iter().map(|d| d.kind).collect();
    drafts.into_iter().zip(targets).map(|(draft, targets)| build(draft, &targets, &kinds)).collect()
}

fn build(draft: Draft, targets: &[Option<Target>], kinds: &[StageKind]) -> Option<Stage> {
    let mut needs = Vec::with_capacity(targets.len());
    for (need, target) in draft.needs.iter().zip(targets) {
        let (stage, table) = (*target)?;
        let (table, _) = kinds.get(stage)?.info().outputs.get(table)?;
        needs.push(Input { port: need.port.name, stage, table });
    }
    Some(Stage {
        name: draft.name,
        params: draft.params?,
        needs,
        model: draft.model,
        data: draft.data,
        shard_rows: draft.shard_rows,
        resources: draft.resources,
        retry: draft.retry,
        seed: draft.seed,
        max_bad_rows: draft.max_bad_rows,
    })
}

/// Finds the table that a reference means; `None` after reporting that there is none, or it is of the wrong kind.
fn resolve(reader: &mut Reader, known: &Known<'_>, own: usize, need: &Reference) -> Option<Target> {
    let Some(&stage) = known.names.get(need.stage.as_str()) else {
        if !known.unreadable.iter().any(|names| names.contains(&need.stage)) {
            unknown_stage(reader, known, known.drafts.get(own)?, need);
        }
        return None;
    };
    if stage == own {
        let help = Some("name the stage that makes this table".to_owned());
        reader.out.error(need.span, format!("the stage `{}` needs itself", need.stage), help);
        return None;
    }
    let outputs = known.drafts.get(stage)?.kind.info().outputs;
    let table = match &need.table {
        None => 0,
        Some(name) => {
            let found = outputs.iter().position(|(n, _)| n == name);
            if found.is_none() {
                let help = reader.out.did_you_mean(name, outputs.iter().map(|(n, _)| *n), "its tables");
                reader.out.error(need.span, format!("the stage `{}` has no table `{}`", need.stage, shown(name)), help);
            }
            found?
        }
    };
    let (_, kind) = outputs.get(table)?;
    if *kind != need.port.table {
        wrong_table(reader, known, known.drafts.get(own)?, need, (stage, table));
        return None;
    }
    Some((stage, table))
}

fn unknown_stage(reader: &mut Reader, known: &Known<'_>, own: &Draft, need: &Reference) {
    let near = reader.out.closest(&need.stage, known.drafts.iter().map(|d| d.name.0.as_str()));
    let help = match near {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None => known.offers.help(need.port.table, &own.name.0),
    };
    reader.out.error(need.span, format!("there is no stage `{}`", shown(&need.stage)), help);
}

/// Most references of a kind that a message lists.
const LISTED: usize = 8;

/// References to tables by kind, as far as a message would list them.
struct Offers(Vec<(TableKind, String)>);

impl Offers {
    fn new(drafts: &[Draft]) -> Self {
        let mut offers: Vec<(TableKind, String)> = Vec::new();
        for draft in drafts {
            for (i, (table, kind)) in draft.kind.info().outputs.iter().enumerate() {
                if offers.iter().filter(|(k, _)| k == kind).count() <= LISTED {
                    let reference = if i == 0 { draft.name.0.clone() } else { format!("{}.{table}", draft.name) };
                    offers.push((*kind, reference));
                }
            }
        }
        Offers(offers)
    }

    /// Where a table of this kind can come from, other than the stage that asks.
    fn help(&self, kind: TableKind, own: &str) -> Option<String> {
        let others = self.0.iter().filter(|(k, reference)| *k == kind && reference.split('.').next() != Some(own));
        let fitting: Vec<&String> = others.map(|(_, reference)| reference).collect();
        match fitting.len() {
            0 => Some(format!("no stage makes {}: add one of kind {}", what(kind), makers(kind))),
            1..=LISTED => Some(format!("{} can come from {}", what(kind), list(&fitting))),
            _ => None,
        }
    }
}

fn makers(kind: TableKind) -> String {
    let kinds = StageKind::ALL.iter().map(|k| k.info()).filter(|i| i.outputs.iter().any(|(_, k)| *k == kind));
    kinds.map(|i| format!("`{}`", i.name)).collect::<Vec<_>>().join(" or ")
}

fn wrong_table(reader: &mut Reader, known: &Known<'_>, own: &Draft, need: &Reference, (stage, table): Target) {
    let Some(draft) = known.drafts.get(stage) else { return };
    let outputs = draft.kind.info().outputs;
    let Some((name, kind)) = outputs.get(table) else { return };
    let message = format!(
        "`{}` wants {}, and `{}.{name}` holds {}",
        need.port.name,
        what(need.port.table),
        draft.name,
        what(*kind)
    );
    let sibling = outputs.iter().find(|(_, k)| *k == need.port.table);
    let help = match sibling {
        Some((other, _)) => Some(format!("did you mean `{}.{other}`?", draft.name)),
        None => known.offers.help(need.port.table, &own.name.0),
    };
    reader.out.error(need.span, message, help);
}

/// Content of a table, in words.
fn what(kind: TableKind) -> &'static str {
    match kind {
        TableKind::Items => "items",
        TableKind::Users => "users",
        TableKind::Interactions => "interactions",
        TableKind::Samples => "samples",
        TableKind::Descriptions => "descriptions",
        TableKind::TextEmbeddings => "text embeddings",
        TableKind::ItemEmbeddings => "item embeddings",
        TableKind::UserEmbeddings => "user embeddings",
        TableKind::Index => "an index",
        TableKind::Prompts => "prompts",
        TableKind::Predictions => "predictions",
        TableKind::Traces => "traces",
        TableKind::Metrics => "metrics",
        TableKind::Report => "a report",
        TableKind::Adapter => "an adapter",
        TableKind::TuningSteps => "the steps of a training",
        TableKind::Rows => "numbered rows",
    }
}

/// One table twice in a list: a system would be averaged or reported twice.
fn repetitions(reader: &mut Reader, drafts: &[Draft], draft: &Draft, targets: &[Option<Target>]) {
    let mut seen = HashSet::new();
    for (need, target) in draft.needs.iter().zip(targets).filter(|(need, _)| need.port.many) {
        let Some((stage, table)) = *target else { continue };
        if !seen.insert((need.port.name, stage, table)) {
            let name = drafts.get(stage).map_or("", |d| d.name.0.as_str());
            let message = format!("`{}` lists `{name}` twice", need.port.name);
            reader.out.error(need.span, message, Some("remove one of the two".to_owned()));
        }
    }
}

/// Training on validation or test samples: the leak that the method forbids.
fn leak(reader: &mut Reader, drafts: &[Draft], draft: &Draft, targets: &[Option<Target>], all: &[Vec<Option<Target>>]) {
    let learned = |name| name == "train" || (draft.kind == StageKind::Tune && name == "prompts");
    for (need, target) in draft.needs.iter().zip(targets).filter(|(need, _)| learned(need.port.name)) {
        let Some((from, table, direct)) = target.and_then(|target| origin(drafts, all, target)) else { continue };
        if table == "train" {
            continue;
        }
        let (port, source) = (need.port.name, &from.name);
        let through = if direct { "" } else { "samples of " };
        let message =
            format!("`{port}` would learn from {through}`{source}.{table}`, which is kept apart for evaluation");
        let help =
            if direct { format!("did you mean `{source}.train`?") } else { format!("take {through}`{source}.train`") };
        reader.out.error(need.span, message, Some(help));
    }
}

/// The data set's table that samples come from, followed through the stages that pick them or make prompts of them, and
/// whether it is the target itself.
fn origin<'d>(
    drafts: &'d [Draft],
    all: &[Vec<Option<Target>>],
    target: Target,
) -> Option<(&'d Draft, &'static str, bool)> {
    let (mut stage, mut table) = target;
    // As many steps as there are stages: more would go round in a circle, which is told elsewhere.
    for step in 0..drafts.len() {
        let draft = drafts.get(stage)?;
        if draft.kind == StageKind::Dataset {
            return Some((draft, draft.kind.info().outputs.get(table)?.0, step == 0));
        }
        let mut needs = draft.needs.iter().zip(all.get(stage)?);
        let (_, next) = needs.find(|(need, _)| matches!(need.port.name, "samples" | "prompts"))?;
        (stage, table) = (*next)?;
    }
    None
}

/// Positions of the stages, each after what it needs; those in or behind a circle are left out.
fn order(targets: &[Vec<Option<Target>>]) -> Vec<usize> {
    let upstream: Vec<Vec<usize>> =
        targets.iter().map(|needs| needs.iter().flatten().map(|(stage, _)| *stage).collect()).collect();
    crate::plan::topological(&upstream)
}

/// Names each circle once, at its earliest stage.
fn circles(reader: &mut Reader, drafts: &[Draft], targets: &[Vec<Option<Target>>], order: &[usize]) {
    let done: HashSet<usize> = order.iter().copied().collect();
    let next = |stage: usize| {
        let needs = targets.get(stage)?.iter().flatten().map(|(up, _)| *up);
        needs.into_iter().find(|up| !done.contains(up))
    };
    let mut walked = HashSet::new();
    for start in (0..drafts.len()).filter(|i| !done.contains(i)) {
        let mut path = Vec::new();
        let mut place = HashMap::new();
        let mut at = Some(start);
        while let Some(stage) = at.filter(|s| !walked.contains(s)) {
            walked.insert(stage);
            place.insert(stage, path.len());
            path.push(stage);
            at = next(stage);
        }
        // A path that ends in another path's circle has been told.
        let Some(circle) = at.and_then(|s| place.get(&s)).and_then(|from| path.get(*from..)) else { continue };
        report_circle(reader, drafts, targets, circle);
    }
}

fn report_circle(reader: &mut Reader, drafts: &[Draft], targets: &[Vec<Option<Target>>], circle: &[usize]) {
    let Some(first) = (0..circle.len()).min_by_key(|i| circle.get(*i)) else { return };
    let turned: Vec<usize> = circle.iter().cycle().skip(first).take(circle.len() + 1).copied().collect();
    let name = |stage: usize| drafts.get(stage).map_or("", |d| d.name.0.as_str());
    let (Some(&stage), Some(&up)) = (turned.first(), turned.get(1)) else { return };
    let span = drafts.get(stage).zip(targets.get(stage)).and_then(|(draft, targets)| {
        draft.needs.iter().zip(targets).find(|(_, t)| t.is_some_and(|(s, _)| s == up)).map(|(need, _)| need.span)
    });
    let shown: Vec<String> = match turned.len() {
        0..=12 => turned.iter().map(|s| format!("`{}`", name(*s))).collect(),
        n => {
            let head = turned.iter().take(6).map(|s| format!("`{}`", name(*s)));
            let tail = turned.iter().skip(n - 5).map(|s| format!("`{}`", name(*s)));
            head.chain([format!("({} more)", n - 11)]).chain(tail).collect()
        }
    };
    let message = format!("stages need each other in a circle: {}", shown.join(" -> "));
    reader.out.error(
        span.unwrap_or_default(),
        message,
        Some("remove one of these needs (`a -> b`: a needs b)".to_owned()),
    );
}

/// A row-wise stage reads its driving and its aligned tables row by row: both must hold the same rows.
fn alignment(reader: &mut Reader, drafts: &[Draft], targets: &[Vec<Option<Target>>], order: &[usize]) {
    let mut made: HashMap<usize, Option<Rows>> = HashMap::new();
    for &stage in order {
        let (Some(draft), Some(targets)) = (drafts.get(stage), targets.get(stage)) else { continue };
        let rows_of = |(up, table): Target| {
            if drafts.get(up).is_some_and(|d| d.kind.info().drive().is_some()) {
                made.get(&up).copied().flatten()
            } else {
                Some(Rows { stage: up, table, limit: None })
            }
        };
        let mut inputs = draft.needs.iter().zip(targets);
        let drive = inputs.find(|(n, _)| n.port.mode == Mode::Drive).and_then(|(n, t)| Some((n, rows_of((*t)?)?)));
        let Some((driving, read)) = drive else {
            made.insert(stage, None);
            continue;
        };
        for (need, target) in draft.needs.iter().zip(targets).filter(|(n, _)| n.port.mode == Mode::Aligned) {
            let Some(rows) = target.and_then(rows_of).filter(|rows| *rows != read) else { continue };
            let message = format!(
                "`{}` and `{}` must hold the same rows, but one has {} and the other {}",
                driving.port.name,
                need.port.name,
                told(drafts, read),
                told(drafts, rows)
            );
            let help =
                "take both from stages that go back, row by row, to the same table with the same `limit`".to_owned();
            reader.out.error(need.span, message, Some(help));
        }
        // A stage with wrong parameters has an unknown limit.
        let limit = draft.params.as_ref().map(StageParams::row_limit);
        made.insert(stage, limit.map(|limit| Rows { limit: smaller(read.limit, limit), ..read }));
    }
}

fn smaller(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn told(drafts: &[Draft], rows: Rows) -> String {
    let Some(draft) = drafts.get(rows.stage) else { return String::new() };
    let table = draft.kind.info().outputs.get(rows.table).map_or("", |(name, _)| name);
    match rows.limit {
        Some(limit) => format!("the first {limit} rows of `{}.{table}`", draft.name),
        None => format!("the rows of `{}.{table}`", draft.name),
    }
}

/// Items and users are positions in one data set's tables: a stage that joins them must not mix two sets.
fn one_data_set(reader: &mut Reader, drafts: &[Draft], targets: &[Vec<Option<Target>>], order: &[usize]) {
    let mut origin: HashMap<usize, usize> = HashMap::new();
    for &stage in order {
        let (Some(draft), Some(targets)) = (drafts.get(stage), targets.get(stage)) else { continue };
        match draft.kind {
            StageKind::Dataset => _ = origin.insert(stage, stage),
            // These compare systems, which may have been run on different sets.
            StageKind::Evaluate | StageKind::Report => {}
            // Learns from words, and numbers no items: its adapter may be used on another set.
            StageKind::Tune => {}
            _ => {
                let mut first: Option<(&Reference, usize)> = None;
                for (need, target) in draft.needs.iter().zip(targets) {
                    let Some(set) = target.and_then(|(up, _)| origin.get(&up).copied()) else { continue };
                    match first {
                        None => first = Some((need, set)),
                        Some((other, from)) if from != set => {
                            mixed(reader, drafts, (other, from), (need, set));
                        }
                        Some(_) => {}
                    }
                }
                if let Some((_, set)) = first {
                    origin.insert(stage, set);
                }
            }
        }
    }
}

fn mixed(reader: &mut Reader, drafts: &[Draft], first: (&Reference, usize), second: (&Reference, usize)) {
    let name = |stage: usize| drafts.get(stage).map_or("", |d| d.name.0.as_str());
    let message = format!(
        "`{}` goes back to the data set `{}`, but `{}` to `{}`: their items and users are numbered differently",
        first.0.port.name,
        name(first.1),
        second.0.port.name,
        name(second.1)
    );
    let span: Span = second.0.span;
    reader.out.error(span, message, Some("take all inputs of a stage from one data set".to_owned()));
}
