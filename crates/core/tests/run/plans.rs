//! Random plans: stages wired without regard to what their kinds mean, because the run does not look at that.

use proptest::prelude::*;
use rallrec_core::{
    ids::StageName,
    key::KeyFields,
    kind::{Mode, StageKind},
    params::{RetrieveParams, StageParams},
    plan::{Need, Plan, PlannedStage, Resources, Retry},
};
use std::collections::BTreeMap;

/// A plan, with what it must come to.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) plan: Plan,
    /// Rows of each row-wise stage; `None` for stages of one task.
    pub(crate) rows: Vec<Option<u64>>,
    /// Rows of the tables `a` and `b` of each stage of one task.
    pub(crate) tables: Vec<BTreeMap<String, u64>>,
}

/// Raw numbers of one stage; made into something valid by [`build`].
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) row_wise: bool,
    pub(crate) drive: usize,
    pub(crate) second_table: bool,
    pub(crate) limit: u32,
    pub(crate) aligned: Option<usize>,
    pub(crate) whole: Vec<usize>,
    pub(crate) step: Option<u64>,
    pub(crate) tables: (u64, u64),
    pub(crate) pool: bool,
}

pub(crate) fn drafts() -> impl Strategy<Value = Vec<Draft>> {
    let inputs =
        (any::<bool>(), 0..8usize, any::<bool>(), prop_oneof![Just(0u32), 1..30u32], proptest::option::of(0..8usize));
    let shape = (
        proptest::collection::vec(0..8usize, 0..3),
        proptest::option::of(1..9u64),
        (0..24u64, 0..24u64),
        any::<bool>(),
    );
    let draft =
        (inputs, shape).prop_map(|((row_wise, drive, second_table, limit, aligned), (whole, step, tables, pool))| {
            Draft { row_wise, drive, second_table, limit, aligned, whole, step, tables, pool }
        });
    proptest::collection::vec(draft, 1..8)
}

/// A stage of `shards` shards, rows over them, and one task over all.
pub(crate) fn wide(shards: u64) -> Case {
    let draft = |row_wise, whole| Draft {
        row_wise,
        drive: 0,
        second_table: false,
        limit: 0,
        aligned: None,
        whole,
        step: Some(1),
        tables: (shards, 0),
        pool: false,
    };
    let mut case = build(&[draft(false, vec![]), draft(true, vec![]), draft(true, vec![1]), draft(false, vec![2])]);
    // Tasks with a named limit have no second attempts.
    case.plan.stages.iter_mut().for_each(|stage| stage.resources.limits.clear());
    case
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    drafts().prop_map(|d| build(&d))
}

pub(crate) fn defaults(kind: StageKind) -> serde_json::Value {
    StageParams::fields(kind).into_iter().map(|f| (f.name.to_string(), f.default)).collect()
}

pub(crate) fn stage(
    position: usize,
    kind: StageKind,
    params: serde_json::Value,
    needs: Vec<Need>,
    shard_rows: Option<u64>,
) -> PlannedStage {
    let mut fields = KeyFields::default();
    fields.set("position", position);
    let key = fields.key();
    PlannedStage {
        name: StageName(format!("s{position}")),
        kind,
        params,
        needs,
        model: None,
        data: None,
        shard_rows,
        resources: Resources::new("cpu", 1),
        retry: Retry { max_attempts: 3, backoff_ms: 1000 },
        seed: 1,
        max_bad_rows: 0,
        fields,
        row_key: key.clone(),
        stage_key: key,
    }
}

pub(crate) fn need(stage: usize, table: &str, mode: Mode) -> Need {
    Need { port: format!("{mode:?}{stage}"), stage: stage as u32, table: table.into(), mode }
}

pub(crate) fn build(drafts: &[Draft]) -> Case {
    let mut case = Case {
        plan: Plan { version: 1, pipeline: "random".into(), stages: Vec::new() },
        rows: Vec::new(),
        tables: Vec::new(),
    };
    for (position, draft) in drafts.iter().enumerate() {
        let table = if draft.second_table { "b" } else { "a" };
        let rows_of = |case: &Case, stage: usize| case.rows[stage].unwrap_or_else(|| case.tables[stage][table]);
        let mut needs = Vec::new();
        let mut rows = None;
        let mut params = RetrieveParams::default();
        let row_wise = draft.row_wise && position > 0;
        if row_wise {
            let drive = draft.drive % position;
            needs.push(need(drive, table, Mode::Drive));
            params.limit = draft.limit;
            let all = rows_of(&case, drive);
            rows = Some(if draft.limit > 0 { all.min(u64::from(draft.limit)) } else { all });
            let aligned = draft.aligned.map(|a| a % position).filter(|a| rows_of(&case, *a) >= rows.unwrap_or(0));
            needs.extend(aligned.map(|a| need(a, table, Mode::Aligned)));
        }
        if position > 0 {
            needs.extend(draft.whole.iter().map(|w| need(w % position, "a", Mode::Whole)));
        }
        let (kind, params) = if row_wise {
            (StageKind::Retrieve, StageParams::Retrieve(params).to_json())
        } else {
            (StageKind::Dataset, defaults(StageKind::Dataset))
        };
        let mut planned = stage(position, kind, params, needs, draft.step.filter(|_| row_wise));
        if draft.pool {
            planned.resources.pool = "gpu".into();
        }
        // Some stages share a limit, some have two, most have none.
        planned.resources.limits = match position % 5 {
            1 => [("a".to_owned(), 2)].into(),
            3 => [("a".to_owned(), 2), ("b".to_owned(), 1)].into(),
            _ => BTreeMap::new(),
        };
        case.plan.stages.push(planned);
        case.rows.push(rows);
        case.tables.push([("a".to_string(), draft.tables.0), ("b".to_string(), draft.tables.1)].into());
    }
    case
}
