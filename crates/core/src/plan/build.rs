//! From a pipeline to a plan: order, digests, keys.

use super::{Need, PinnedSource, Plan, PlannedStage, Resources, gpu_estimate_mb};
use crate::{
    field::Effect,
    key::{Key, KeyFields},
    kind::{Mode, Port},
    models::{Model, ModelPlace, PinnedModel},
    params::StageParams,
    spec::{Input, Pipeline, Source, Stage},
};
use serde_json::Value;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

/// Format of [`Plan`].
pub(super) const PLAN_VERSION: u32 = 1;

/// Digests (SHA-256, hexadecimal) of the content behind each declared name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// By name under `models:`: of the model's files, or of a remote model's tokenizer.
    pub models: BTreeMap<String, String>,
    /// By name under `data:`.
    pub data: BTreeMap<String, String>,
    /// Bytes of local models' files, by name under `models:`, as far as they are known. In no key.
    pub model_bytes: BTreeMap<String, u64>,
}

/// Why a pipeline has no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A model or data set is not pinned.
    #[error("stage `{stage}` uses the {what} `{name}`, whose digest is not known: pull it first")]
    NotPinned {
        /// The stage.
        stage: String,
        /// `model` or `data set`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A pipeline that was not made by [`crate::spec::compile`].
    #[error(
        "stage `{stage}` needs itself, directly or through others, or a stage that is not there: compile the pipeline again"
    )]
    Unordered {
        /// One of the stages.
        stage: String,
    },
}

impl Plan {
    /// Orders the stages, each after what it needs and otherwise as in the file, and computes their keys.
    ///
    /// # Errors
    /// When a source that a stage uses is not in `pins`.
    pub fn new(pipeline: &Pipeline, pins: &Pins) -> Result<Plan, PlanError> {
        let upstream: Vec<Vec<usize>> =
            pipeline.stages.iter().map(|s| s.needs.iter().map(|n| n.stage).collect()).collect();
        let order = topological(&upstream);
        let mut positions: Vec<Option<usize>> = vec![None; pipeline.stages.len()];
        let mut plan = Plan { version: PLAN_VERSION, pipeline: pipeline.name.clone(), stages: Vec::new() };
        for at in order {
            let Some(stage) = pipeline.stages.get(at) else { continue };
            let planned = plan_stage(&plan, pipeline, pins, &positions, stage)?;
            if let Some(position) = positions.get_mut(at) {
                *position = Some(plan.stages.len());
            }
            plan.stages.push(planned);
        }
        match pipeline.stages.iter().zip(&positions).find(|(_, position)| position.is_none()) {
            Some((stage, _)) => Err(PlanError::Unordered { stage: stage.name.to_string() }),
            None => Ok(plan),
        }
    }
}

/// Positions in an order in which each comes after what `upstream` says it needs, the smallest that can first. Those in
/// or behind a circle are left out.
pub(crate) fn topological(upstream: &[Vec<usize>]) -> Vec<usize> {
    let mut waiting: Vec<usize> = upstream.iter().map(Vec::len).collect();
    let mut downstream: Vec<Vec<usize>> = vec![Vec::new(); upstream.len()];
    for (stage, needs) in upstream.iter().enumerate() {
        for &need in needs {
            if let Some(list) = downstream.get_mut(need) {
                list.push(stage);
            }
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> =
        waiting.iter().enumerate().filter(|(_, n)| **n == 0).map(|(i, _)| Reverse(i)).collect();
    let mut order = Vec::with_capacity(upstream.len());
    while let Some(Reverse(stage)) = ready.pop() {
        order.push(stage);
        for &next in downstream.get(stage).map_or(&[][..], Vec::as_slice) {
            if let Some(left) = waiting.get_mut(next) {
                *left -= 1;
                if *left == 0 {
                    ready.push(Reverse(next));
                }
            }
        }
    }
    order
}

fn plan_stage(
    plan: &Plan,
    pipeline: &Pipeline,
    pins: &Pins,
    positions: &[Option<usize>],
    stage: &Stage,
) -> Result<PlannedStage, PlanError> {
    let missing = || PlanError::Unordered { stage: stage.name.to_string() };
    let kind = stage.kind();
    let mut needs = Vec::with_capacity(stage.needs.len());
    let mut inputs = Vec::with_capacity(stage.needs.len());
    for Input { port, stage: from, table } in &stage.needs {
        let position = positions.get(*from).copied().flatten().ok_or_else(missing)?;
        let port = kind.info().inputs.iter().find(|p| p.name == *port).ok_or_else(missing)?;
        let index = u32::try_from(position).map_err(|_| missing())?;
        needs.push(Need { port: port.name.to_owned(), stage: index, table: (*table).to_owned(), mode: port.mode });
        inputs.push((port, plan.stages.get(position).ok_or_else(missing)?, *table));
    }
    let model = stage.model.as_ref().map(|name| pin_model(stage, name, &pipeline.models, pins)).transpose()?;
    let data = stage.data.as_ref().map(|name| pin_data(stage, name, &pipeline.data, pins)).transpose()?;
    let params = stage.params.to_json();
    let fields = row_fields(stage, &params, &inputs, model.as_ref(), data.as_ref());
    let row_key = fields.key();
    let drive = inputs.iter().find(|(port, ..)| port.mode == Mode::Drive);
    let stage_key = match drive {
        Some((_, upstream, _)) => whole_key(&stage.params, &params, &row_key, &upstream.stage_key),
        None => row_key.clone(),
    };
    Ok(PlannedStage {
        name: stage.name.clone(),
        kind,
        params,
        needs,
        data,
        shard_rows: stage.shard_rows,
        resources: Resources {
            gpu_estimate_mb: match &model {
                Some(PinnedModel::Local { files, .. }) => {
                    pins.model_bytes.get(&files.name).copied().map(gpu_estimate_mb)
                }
                Some(PinnedModel::Remote { .. }) | None => None,
            },
            ..stage.resources.clone()
        },
        model,
        retry: stage.retry.clone(),
        seed: stage.seed,
        max_bad_rows: stage.max_bad_rows,
        fields,
        row_key,
        stage_key,
    })
}

fn pin_model(stage: &Stage, name: &str, declared: &[Model], pins: &Pins) -> Result<PinnedModel, PlanError> {
    let not_pinned = || PlanError::NotPinned { stage: stage.name.to_string(), what: "model", name: name.to_owned() };
    let model = declared.iter().find(|m| m.name == *name).ok_or_else(not_pinned)?;
    let files = match model.source() {
        Some(source) => {
            let digest = pins.models.get(name).ok_or_else(not_pinned)?.clone();
            Some(PinnedSource { name: name.to_owned(), source: source.to_owned(), digest })
        }
        None => None,
    };
    Ok(match &model.place {
        ModelPlace::Local(local) => {
            PinnedModel::Local { files: files.ok_or_else(not_pinned)?, precision: local.precision }
        }
        ModelPlace::Remote(remote) => {
            PinnedModel::Remote { name: name.to_owned(), remote: remote.clone(), tokenizer: files }
        }
    })
}

fn pin_data(stage: &Stage, name: &str, declared: &[Source], pins: &Pins) -> Result<PinnedSource, PlanError> {
    let not_pinned = || PlanError::NotPinned { stage: stage.name.to_string(), what: "data set", name: name.to_owned() };
    let source = declared.iter().find(|s| s.name == *name).ok_or_else(not_pinned)?.source.clone();
    let digest = pins.data.get(name).ok_or_else(not_pinned)?.clone();
    Ok(PinnedSource { name: name.to_owned(), source, digest })
}

/// What decides the content of the stage's rows.
fn row_fields(
    stage: &Stage,
    params: &Value,
    inputs: &[(&Port, &PlannedStage, &str)],
    model: Option<&PinnedModel>,
    data: Option<&PinnedSource>,
) -> KeyFields {
    let info = stage.kind().info();
    let row_wise = info.drive().is_some();
    let mut fields = KeyFields::default();
    fields.set("kind", info.name);
    fields.set("version", info.version);
    for field in StageParams::fields(stage.kind()) {
        let keyed = match field.effect {
            Effect::Keyed => true,
            Effect::Later => params.get(field.name).unwrap_or(&Value::Null) != &field.default,
            // Only a row-wise stage can keep its rows when their number changes.
            Effect::Scope => !row_wise,
            Effect::Free => false,
        };
        if keyed {
            fields.set(format!("with.{}", field.name), value_of(params, field.name));
        }
    }
    if info.random {
        fields.set("seed", stage.seed);
    }
    for (name, value) in model.into_iter().flat_map(PinnedModel::key_fields) {
        fields.set(name, value);
    }
    if let Some(data) = data {
        fields.set("data.digest", &data.digest);
    }
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (port, upstream, table) in inputs {
        let key = match port.mode {
            Mode::Drive | Mode::Aligned => &upstream.row_key,
            Mode::Whole => &upstream.stage_key,
        };
        if port.many {
            let place = places.entry(port.name).or_default();
            fields.set(format!("needs.{}.{place}", port.name), format_args!("{}={key}#{table}", upstream.name));
            *place += 1;
        } else {
            fields.set(format!("needs.{}", port.name), format_args!("{key}#{table}"));
        }
    }
    fields
}

/// Identity of a row-wise stage's whole tables.
fn whole_key(typed: &StageParams, params: &Value, row_key: &Key, driving: &Key) -> Key {
    let mut fields = KeyFields::default();
    fields.set("row_key", row_key);
    fields.set("rows_of", driving);
    for field in StageParams::fields(typed.kind()).iter().filter(|f| f.effect == Effect::Scope) {
        fields.set(format!("scope.{}", field.name), value_of(params, field.name));
    }
    fields.key()
}

/// A parameter as it stands in keys.
pub(super) fn value_of(params: &Value, name: &str) -> String {
    params.get(name).unwrap_or(&Value::Null).to_string()
}
