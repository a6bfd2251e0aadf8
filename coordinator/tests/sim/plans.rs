//! Small plans, drawn from a seed, with everything that matters to a run: stages of one task, stages cut into rows over
//! one another, inputs read whole, two models.

use rallrec_core::{
    ids::StageName,
    key::KeyFields,
    kind::{Mode, StageKind},
    models::{PinnedModel, Precision},
    params::StageParams,
    plan::{Need, PinnedSource, Plan, PlannedStage, Resources, Retry},
    rng::row_rng,
};
use rand_chacha::rand_core::Rng;

/// Attempts of a task that may fail by themselves before it does.
pub(crate) const MAX_ATTEMPTS: u32 = 4;

/// A data set; rows over it; rows over those; a training; samples with it; a report.
pub(crate) fn plan(seed: u64, number: u64) -> Plan {
    let mut dice = row_rng(seed, "plan", number, 0);
    let mut between = |low: u64, high: u64| low + dice.next_u64() % (high - low + 1);
    let (items, samples) = (between(4, 14), between(0, 8));
    let (first, second, third) = (between(2, 5), between(2, 6), between(2, 4));
    let salt = format!("{seed}/{number}/{items}/{samples}/{first}/{second}/{third}");
    let stage = |position, kind, needs, rows, model| stage(&salt, position, kind, needs, rows, model);
    let need = |stage, table: &str, mode| Need { port: format!("{mode:?}{stage}"), stage, table: table.into(), mode };
    let mut stages = vec![
        stage(0, StageKind::Dataset, vec![], None, None),
        stage(1, StageKind::Embed, vec![need(0, "items", Mode::Drive)], Some(first), Some("a")),
        stage(
            2,
            StageKind::Score,
            vec![need(1, "rows", Mode::Drive), need(0, "items", Mode::Aligned)],
            Some(second),
            Some("b"),
        ),
        stage(3, StageKind::LightGcn, vec![need(2, "rows", Mode::Whole)], None, None),
        stage(
            4,
            StageKind::Score,
            vec![need(0, "samples", Mode::Drive), need(3, "items", Mode::Whole)],
            Some(third),
            Some("b"),
        ),
        stage(5, StageKind::Report, vec![need(4, "rows", Mode::Whole)], None, None),
    ];
    // Each of these can be had of some workers and not of others, and the limit of two stages.
    for at in [1, 2, 3] {
        stages[at].resources.memory_mb = [1024, 4096, 8192][between(0, 2) as usize];
    }
    let at_once = between(1, 3) as u32;
    for at in [2, 4] {
        stages[at].resources.limits = [("judge".to_owned(), at_once)].into();
    }
    // What a data set makes of its seed: see the workers.
    stages[0].seed = items << 32 | samples;
    Plan { version: 1, pipeline: format!("simulated {number}"), stages }
}

/// A data set, 24 shards over it, and a report.
pub(crate) fn wide(seed: u64) -> Plan {
    let salt = format!("{seed}/wide");
    let need = |stage, table: &str, mode| Need { port: format!("{mode:?}{stage}"), stage, table: table.into(), mode };
    let mut stages = vec![
        stage(&salt, 0, StageKind::Dataset, vec![], None, None),
        stage(&salt, 1, StageKind::Embed, vec![need(0, "items", Mode::Drive)], Some(2), Some("a")),
        stage(&salt, 2, StageKind::Report, vec![need(1, "rows", Mode::Whole)], None, None),
    ];
    stages[0].seed = 48 << 32;
    Plan { version: 1, pipeline: "wide".into(), stages }
}

/// Rows of a data set's items and samples.
pub(crate) fn dataset_rows(seed: u64) -> (u64, u64) {
    (seed >> 32, seed & u64::from(u32::MAX))
}

fn stage(
    salt: &str,
    position: u32,
    kind: StageKind,
    needs: Vec<Need>,
    shard_rows: Option<u64>,
    model: Option<&str>,
) -> PlannedStage {
    let mut fields = KeyFields::default();
    fields.set("position", position);
    fields.set("salt", salt);
    let key = fields.key();
    let model = model.map(|name| PinnedModel::Local {
        files: PinnedSource { name: name.into(), source: format!("file:/{name}"), digest: name.repeat(64) },
        precision: Precision::Auto,
    });
    PlannedStage {
        name: StageName(format!("s{position}")),
        kind,
        params: StageParams::fields(kind).into_iter().map(|f| (f.name.to_string(), f.default)).collect(),
        needs,
        model,
        data: None,
        shard_rows,
        resources: Resources::new("cpu", 1),
        retry: Retry { max_attempts: MAX_ATTEMPTS, backoff_ms: 1000 },
        seed: 0,
        max_bad_rows: 0,
        fields,
        row_key: key.clone(),
        stage_key: key,
    }
}
