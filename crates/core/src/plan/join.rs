//! One plan of many, in which what is the same stands once.

use super::{Plan, PlannedStage};
use crate::ids::StageName;
use std::collections::{BTreeMap, HashMap};

/// A plan of several plans.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// Their stages, each that several have once. A stage of which there are several variants has the number of the
    /// first plan that has it behind its name: `merge@3`.
    pub plan: Plan,
    /// Of each plan, where its stages stand in the joined one.
    pub stages: Vec<Vec<u32>>,
}

impl Plan {
    /// The stage of this name and what it needs, directly or through others; `None` where there is no such stage.
    #[must_use]
    pub fn up_to(&self, name: &str) -> Option<Plan> {
        let last = self.stages.iter().position(|stage| stage.name.0 == name)?;
        let mut wanted = vec![false; self.stages.len()];
        wanted[last] = true;
        for at in (0..=last).rev() {
            if wanted[at] {
                self.stages[at].needs.iter().for_each(|need| wanted[need.stage as usize] = true);
            }
        }
        let mut places = vec![None; self.stages.len()];
        let mut plan = Plan { stages: Vec::new(), ..self.clone() };
        for (at, stage) in self.stages.iter().enumerate().filter(|(at, _)| wanted[*at]) {
            places[at] = Some(plan.stages.len() as u32);
            plan.stages.push(moved(stage, |need| places[need as usize].unwrap_or(need)));
        }
        Some(plan)
    }

    /// One plan of several, each with its number. Their stages keep their keys: what one of the plans alone would make
    /// is what the joined one makes.
    pub fn join(pipeline: &str, plans: &[(usize, Plan)]) -> Joined {
        let mut stages: Vec<PlannedStage> = Vec::new();
        let mut first_in: Vec<usize> = Vec::new();
        let mut known: HashMap<String, u32> = HashMap::new();
        let mut places = Vec::with_capacity(plans.len());
        for (number, plan) in plans {
            let mut of_plan: Vec<u32> = Vec::with_capacity(plan.stages.len());
            for stage in &plan.stages {
                let stage = moved(stage, |need| of_plan[need as usize]);
                let place = known.entry(identity(&stage)).or_insert_with(|| {
                    stages.push(stage);
                    first_in.push(*number);
                    stages.len() as u32 - 1
                });
                of_plan.push(*place);
            }
            places.push(of_plan);
        }
        let mut variants: BTreeMap<StageName, u32> = BTreeMap::new();
        for stage in &stages {
            *variants.entry(stage.name.clone()).or_default() += 1;
        }
        for (stage, number) in stages.iter_mut().zip(first_in) {
            if variants.get(&stage.name).is_some_and(|n| *n > 1) {
                stage.name = stage.name.variant(number);
            }
        }
        let version = plans.first().map_or(super::build::PLAN_VERSION, |(_, plan)| plan.version);
        Joined { plan: Plan { version, pipeline: pipeline.to_owned(), stages }, stages: places }
    }
}

fn moved(stage: &PlannedStage, place: impl Fn(u32) -> u32) -> PlannedStage {
    let mut stage = stage.clone();
    stage.needs.iter_mut().for_each(|need| need.stage = place(need.stage));
    stage
}

/// Everything that a stage is; two that differ only in how they are run are two.
fn identity(stage: &PlannedStage) -> String {
    serde_json::to_string(stage).unwrap_or_else(|_| format!("{stage:?}"))
}

#[cfg(test)]
mod tests {
    use crate::{
        plan::{Joined, Pins, Plan},
        spec::compile,
    };

    const PIPELINE: &str = "
rallrec: 1
name: s
params: {alpha: 0.1, count: 8, seed: 1}
data: {d: {source: movielens-100k}}
stages:
  dataset: {kind: dataset, data: d}
  sample: {kind: sample, needs: {samples: dataset.train}, with: {count: \"${count}\"}}
  ctr:
    kind: ctr
    needs: {train: sample, valid: dataset.valid, test: dataset.test, items: dataset.items, users: dataset.users}
    with: {learning_rate: \"${alpha}\"}
  evaluate: {kind: evaluate, needs: {predictions: [ctr]}}
";

    fn plan(set: &[(&str, &str)]) -> Plan {
        let overrides: Vec<_> = set.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let pins = Pins { data: [("d".to_owned(), "ab".to_owned())].into(), ..Pins::default() };
        Plan::new(&compile("s.yaml", PIPELINE, &overrides).expect("compiles"), &pins).expect("pinned")
    }

    fn joined() -> (Vec<Plan>, Joined) {
        let plans = vec![plan(&[]), plan(&[("alpha", "0.2")]), plan(&[("count", "9"), ("alpha", "0.2")])];
        let numbered: Vec<_> = (1..).zip(plans.clone()).collect();
        let joined = Plan::join("s", &numbered);
        (plans, joined)
    }

    #[test]
    fn what_is_the_same_stands_once() {
        let (_, joined) = joined();
        let names: Vec<&str> = joined.plan.stages.iter().map(|stage| stage.name.0.as_str()).collect();
        let of_each =
            ["dataset", "sample@1", "ctr@1", "evaluate@1", "ctr@2", "evaluate@2", "sample@3", "ctr@3", "evaluate@3"];
        assert_eq!(names, of_each);
        assert_eq!(joined.stages, [[0, 1, 2, 3], [0, 1, 4, 5], [0, 6, 7, 8]]);
    }

    #[test]
    fn every_stage_keeps_its_key_and_comes_after_what_it_needs() {
        let (plans, joined) = joined();
        for (plan, places) in plans.iter().zip(&joined.stages) {
            for (stage, place) in plan.stages.iter().zip(places) {
                let other = &joined.plan.stages[*place as usize];
                assert_eq!((&stage.stage_key, &stage.name), (&other.stage_key, &other.name.in_file()));
                assert!(other.needs.iter().all(|need| need.stage < *place));
            }
        }
    }

    #[test]
    fn up_to_a_stage_is_what_it_needs() {
        let plan = plan(&[]).up_to("sample").expect("there is a stage `sample`");
        let names: Vec<&str> = plan.stages.iter().map(|stage| stage.name.0.as_str()).collect();
        assert_eq!(names, ["dataset", "sample"]);
        assert_eq!(plan.stages[1].needs[0].stage, 0);
        assert_eq!(plan.up_to("nothing"), None);
    }
}
