//! What tasks need of memory, learned from what earlier tasks of the same kind and model took.
//!
//! It enters a plan before the run begins and never after: a run that goes on, anywhere, has the estimates that it began
//! with. What a pipeline says is never changed. In no key: estimates decide where a task runs, not what it makes.

use super::{Plan, PlannedStage};
use crate::{
    ids::{RunId, StageName},
    models::PinnedModel,
};
use std::collections::BTreeMap;

/// Metric of a manifest: the most MiB of host memory that were resident in the process while this task, alone in it, ran;
/// with files that were mapped, and with what earlier tasks left in its caches.
pub const HOST_PEAK: &str = "host_peak_mb";

/// Metric of a manifest: MiB of the accelerator that the process held, as its driver's program told, when this task, alone
/// in it, was done.
pub const GPU_HELD: &str = "gpu_held_mb";

/// What tasks of a stage took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The run that the stage is of.
    pub run: RunId,
    /// Of the host at most, in MiB.
    pub host_mb: Option<u64>,
    /// Of the accelerator at most, in MiB.
    pub gpu_mb: Option<u64>,
}

impl Measured {
    /// What a manifest's metrics tell; `None` where nobody measured.
    pub fn of(run: RunId, metrics: &BTreeMap<String, f64>) -> Option<Self> {
        let metric = |name: &str| metrics.get(name).filter(|mb| **mb >= 1.0).map(|mb| mb.ceil() as u64);
        let measured = Self { run, host_mb: metric(HOST_PEAK), gpu_mb: metric(GPU_HELD) };
        (measured.host_mb.is_some() || measured.gpu_mb.is_some()).then_some(measured)
    }

    /// The larger of both.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { host_mb: self.host_mb.max(other.host_mb), gpu_mb: self.gpu_mb.max(other.gpu_mb), ..self }
    }
}

impl PlannedStage {
    /// Whether what the other took of memory tells what this one will: the same kind, with the same model in memory.
    pub fn takes_as_much_as(&self, other: &Self) -> bool {
        match (&self.model, &other.model) {
            (
                Some(PinnedModel::Local { files, precision }),
                Some(PinnedModel::Local { files: others, precision: another }),
            ) => self.kind == other.kind && files.digest == others.digest && precision == another,
            _ => false,
        }
    }
}

impl Plan {
    /// Replaces estimates by what was measured, an eighth more, and never less than the model's files, whose bytes are
    /// given by the model's name.
    pub fn learn(&mut self, model_bytes: &BTreeMap<String, u64>, measured: &BTreeMap<StageName, Measured>) {
        for stage in &mut self.stages {
            let Some(PinnedModel::Local { files, .. }) = &stage.model else { continue };
            let Some(measured) = measured.get(&stage.name) else { continue };
            let files_mb = model_bytes.get(&files.name).map_or(0, |bytes| bytes.div_ceil(1 << 20));
            let estimate = |mb: u64| mb.saturating_add(mb / 8).max(files_mb);
            let resources = &mut stage.resources;
            if let Some(mb) = measured.host_mb.filter(|_| !resources.memory_written) {
                resources.host_estimate_mb = Some(estimate(mb));
                resources.host_measured_in = Some(measured.run.clone());
            }
            if let Some(mb) = measured.gpu_mb.filter(|_| resources.gpu_memory_mb.is_none()) {
                resources.gpu_estimate_mb = Some(estimate(mb));
                resources.gpu_measured_in = Some(measured.run.clone());
            }
        }
    }

    /// Whether both are the same plan, whatever their stages are thought to take: what was learned meanwhile makes no
    /// other run.
    pub fn is_but_for_estimates(&self, other: &Self) -> bool {
        let bare = |plan: &Self| {
            let mut plan = plan.clone();
            for resources in plan.stages.iter_mut().map(|stage| &mut stage.resources) {
                (resources.gpu_estimate_mb, resources.host_estimate_mb) = (None, None);
                (resources.gpu_measured_in, resources.host_measured_in) = (None, None);
            }
            plan
        };
        bare(self) == bare(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lane::{Lane, Room},
        plan::Pins,
        spec::compile,
    };

    const PIPELINE: &str = "
rallrec: 1
name: p
models: {llm: {source: smollm2-135m-instruct}}
data: {ratings: {source: movielens-100k}}
stages:
  dataset: {kind: dataset, data: ratings}
  describe: {kind: describe, needs: {items: dataset}, model: llm}
  embed: {kind: embed, needs: {items: dataset}, model: llm, resources: {memory_mb: 3000, gpu_memory_mb: 5000}}
";

    fn plan() -> (Plan, Pins) {
        let pipeline = compile("p.yaml", PIPELINE, &[]).unwrap();
        let pins = Pins {
            models: [("llm".to_owned(), "11".to_owned())].into(),
            data: [("ratings".to_owned(), "00".to_owned())].into(),
            model_bytes: [("llm".to_owned(), 1000 << 20)].into(),
        };
        (Plan::new(&pipeline, &pins).unwrap(), pins)
    }

    fn learned(host: Option<f64>, gpu: Option<f64>) -> Plan {
        let (mut plan, pins) = plan();
        let metrics = [(HOST_PEAK, host), (GPU_HELD, gpu)];
        let metrics = metrics.into_iter().filter_map(|(name, mb)| Some((name.to_owned(), mb?))).collect();
        let measured = Measured::of(RunId("r1".into()), &metrics);
        let each =
            ["describe", "embed"].into_iter().filter_map(|name| Some((StageName(name.into()), measured.clone()?)));
        plan.learn(&pins.model_bytes, &each.collect());
        plan
    }

    fn stage<'p>(plan: &'p Plan, name: &str) -> &'p PlannedStage {
        plan.stages.iter().find(|stage| stage.name.0 == name).unwrap()
    }

    #[test]
    fn an_estimate_is_raised_and_lowered_by_what_was_measured() {
        let (files, _) = plan();
        assert_eq!(stage(&files, "describe").resources.gpu_estimate_mb, Some(1250 + 2048));
        for (host, gpu, wanted) in [
            (None, Some(16_000.0), Room { host_gib: 2, gpu_gib: 18 }),
            (Some(8000.5), Some(1600.0), Room { host_gib: 9, gpu_gib: 2 }),
            // Never less than the files, nor than every stage is thought to need of the host.
            (Some(10.0), Some(10.0), Room { host_gib: 2, gpu_gib: 1 }),
            (Some(8000.0), None, Room { host_gib: 9, gpu_gib: 4 }),
        ] {
            let plan = learned(host, gpu);
            let lane = Lane::of(stage(&plan, "describe"));
            assert_eq!((lane.wanted, lane.least), (wanted, Room { host_gib: 2, gpu_gib: 0 }), "{host:?} {gpu:?}");
            let resources = &stage(&plan, "describe").resources;
            let measured_in = |mb: Option<f64>| mb.map(|_| RunId("r1".into()));
            assert_eq!(
                (&resources.host_measured_in, &resources.gpu_measured_in),
                (&measured_in(host), &measured_in(gpu))
            );
        }
    }

    #[test]
    fn what_the_pipeline_says_is_not_changed() {
        let (before, _) = plan();
        let after = learned(Some(64_000.0), Some(64_000.0));
        assert_eq!(stage(&after, "embed"), stage(&before, "embed"));
        assert_eq!(stage(&after, "dataset"), stage(&before, "dataset"));
    }

    #[test]
    fn what_was_learned_makes_no_other_run() {
        let (before, _) = plan();
        let after = learned(Some(9000.0), Some(9000.0));
        assert!(after != before && after.is_but_for_estimates(&before));
        assert_eq!(stage(&after, "describe").fields, stage(&before, "describe").fields);
        let json = serde_json::to_vec(&after).unwrap();
        assert_eq!(serde_json::from_slice::<Plan>(&json).unwrap(), after, "a run that goes on has what it began with");
        let mut other = before.clone();
        other.stages[0].seed += 1;
        assert!(!other.is_but_for_estimates(&before));
    }

    #[test]
    fn only_the_same_kind_and_model_tell() {
        let (plan, _) = plan();
        let (describe, embed) = (stage(&plan, "describe"), stage(&plan, "embed"));
        assert!(describe.takes_as_much_as(describe) && !describe.takes_as_much_as(embed));
        assert!(!stage(&plan, "dataset").takes_as_much_as(stage(&plan, "dataset")), "no model, no estimate");
        let mut other = describe.clone();
        if let Some(PinnedModel::Local { files, .. }) = &mut other.model {
            files.digest = "22".into();
        }
        assert!(!describe.takes_as_much_as(&other));
    }

    #[test]
    fn no_measure_is_none() {
        assert_eq!(Measured::of(RunId("r1".into()), &BTreeMap::from([("tokens".to_owned(), 5.0)])), None);
        assert_eq!(Measured::of(RunId("r1".into()), &BTreeMap::from([(HOST_PEAK.to_owned(), 0.0)])), None);
    }
}
