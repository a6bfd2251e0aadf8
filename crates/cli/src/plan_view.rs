//! `plan`: the stages as a tree, what each would reuse, and why the rest would not.

use crate::{
    console::{Console, Mark, counted, marked, thousands},
    estimate::{self, Work},
    failure::Failure,
    history,
    preview::{StagePreview, preview},
    tree,
};
use rallrec_core::{
    ids::RunId,
    plan::{Plan, Resources, why_changed},
};
use rallrec_store::Store;
use serde::Serialize;
use std::collections::BTreeMap;

/// One stage, as `plan --json` prints it.
#[derive(Debug, Serialize)]
struct StageLine {
    #[serde(flatten)]
    preview: StagePreview,
    /// Stages that it reads.
    needs: Vec<String>,
    /// Its named limits: tasks that are handed out at once, of all stages that name one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    limits: BTreeMap<String, u32>,
    /// What its tasks are thought to need of memory.
    memory: Memory,
    /// What is left of it.
    work: Work,
    /// Why it is not reused as a whole; empty when it is.
    why: Vec<String>,
}

/// What a task is thought to need, and who says so: `pipeline`, `default`, `model files`, or the run that measured it.
#[derive(Debug, Serialize)]
struct Memory {
    host_mb: u64,
    host_by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_mb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_by: Option<String>,
}

impl Memory {
    fn of(resources: &Resources) -> Self {
        let run = |run: &Option<RunId>| run.as_ref().map(|run| format!("run {run}"));
        let (host_mb, host_by) = match resources.host_estimate_mb {
            // What is thought of every stage is the least.
            Some(mb) if mb > resources.memory_mb => (mb, run(&resources.host_measured_in)),
            _ => (resources.memory_mb, resources.memory_written.then(|| "pipeline".to_owned())),
        };
        let estimated_by = || run(&resources.gpu_measured_in).unwrap_or_else(|| "model files".to_owned());
        Self {
            host_mb,
            host_by: host_by.unwrap_or_else(|| "default".to_owned()),
            gpu_mb: resources.gpu_memory_mb.or(resources.gpu_estimate_mb),
            gpu_by: match (resources.gpu_memory_mb, resources.gpu_estimate_mb) {
                (Some(_), _) => Some("pipeline".to_owned()),
                (None, Some(_)) => Some(estimated_by()),
                (None, None) => None,
            },
        }
    }

    /// `  (needs 18.0 GiB as in run R, 3.2 GiB of an accelerator by its model's files)`; what somebody wrote needs no words.
    fn text(&self, color: bool) -> String {
        let by = |by: &str| match by {
            "pipeline" | "default" => None,
            "model files" => Some("by its model's files".to_owned()),
            run => Some(format!("as in {run}")),
        };
        let gib = |mb: u64| format!("{:.1} GiB", mb as f64 / 1024.0);
        let host = by(&self.host_by).map(|by| format!("{} {by}", gib(self.host_mb)));
        let gpu = self.gpu_mb.zip(self.gpu_by.as_deref().and_then(by));
        let gpu = gpu.map(|(mb, by)| format!("{} of an accelerator {by}", gib(mb)));
        let needs: Vec<String> = host.into_iter().chain(gpu).collect();
        if needs.is_empty() {
            return String::new();
        }
        marked(color, Mark::Dim, &format!("  (needs {})", needs.join(", ")))
    }
}

/// The whole answer, as `plan --json` prints it.
#[derive(Debug, Serialize)]
struct PlanLines<'a> {
    pipeline: &'a str,
    compared_with: Option<String>,
    stages: Vec<StageLine>,
}

/// Prints the plan.
///
/// # Errors
/// When the store cannot be reached.
pub async fn show(store: &Store, plan: &Plan, json: bool, console: &Console) -> Result<(), Failure> {
    let previews = preview(store, plan).await?;
    let work = estimate::estimate(store, plan, &previews).await?;
    let estimates = estimate::lines(plan, &previews, &work);
    let earlier = latest_of(store, plan, None).await?;
    let stages = lines(plan, previews, work, earlier.as_ref());
    let compared_with = earlier.map(|(run, _)| run.to_string());
    let lines = PlanLines { pipeline: &plan.pipeline, compared_with, stages };
    if json {
        console.print(&serde_json::to_string_pretty(&lines).map_err(anyhow::Error::from)?);
    } else {
        for line in text(plan, &lines, console.colors_stdout()) {
            console.print(&line);
        }
        if !estimates.is_empty() {
            console.print("");
            estimates.iter().for_each(|line| console.print(line));
        }
    }
    Ok(())
}

/// The latest run of the same pipeline, before `before` if that is given.
///
/// # Errors
/// When the store cannot be reached.
pub async fn latest_of(store: &Store, plan: &Plan, before: Option<&RunId>) -> Result<Option<(RunId, Plan)>, Failure> {
    let mut plans = history::plans(store).await?;
    plans.retain(|(run, p)| p.pipeline == plan.pipeline && before.is_none_or(|b| run < b));
    Ok(plans.pop())
}

fn lines(plan: &Plan, previews: Vec<StagePreview>, work: Vec<Work>, earlier: Option<&(RunId, Plan)>) -> Vec<StageLine> {
    plan.stages
        .iter()
        .zip(previews.into_iter().zip(work))
        .map(|(stage, (preview, work))| {
            let mut needs: Vec<String> = stage
                .needs
                .iter()
                .filter_map(|n| plan.stages.get(n.stage as usize))
                .map(|s| s.name.to_string())
                .collect();
            needs.dedup();
            let why = match earlier {
                _ if preview.is_complete() => Vec::new(),
                None => vec!["no earlier run of this pipeline is in the store".to_owned()],
                Some((run, old)) => match why_changed(old, plan, &stage.name) {
                    same if same.is_empty() => vec![format!("the same as in run {run}, which did not finish it")],
                    changes => changes.iter().map(ToString::to_string).collect(),
                },
            };
            let (limits, memory) = (stage.resources.limits.clone(), Memory::of(&stage.resources));
            StageLine { preview, needs, limits, memory, work, why }
        })
        .collect()
}

fn text(plan: &Plan, lines: &PlanLines<'_>, color: bool) -> Vec<String> {
    let needs: Vec<Vec<usize>> =
        plan.stages.iter().map(|s| s.needs.iter().map(|n| n.stage as usize).collect()).collect();
    let layout = tree::layout(&needs);
    let width = |l: &tree::Line| l.lead.chars().count() + plan.stages[l.node].name.0.chars().count();
    let widest = layout.iter().map(width).max().unwrap_or(0);
    let mut out = vec![marked(color, Mark::Bold, &headline(lines))];
    let mut said: Option<&[String]> = None;
    for line in &layout {
        let (stage, info) = (&plan.stages[line.node], &lines.stages[line.node]);
        let pad = " ".repeat(widest - width(line) + 2);
        let also: Vec<&str> = line.also.iter().map(|&n| plan.stages[n].name.0.as_str()).collect();
        let also = if also.is_empty() {
            String::new()
        } else {
            marked(color, Mark::Dim, &format!("  (also needs {})", also.join(", ")))
        };
        out.push(format!(
            "{}{}{pad}{:<9} {}{also}{}{}",
            line.lead,
            stage.name,
            stage.kind.to_string(),
            state(&info.preview, color),
            limits(&info.limits, color),
            if info.preview.is_complete() { String::new() } else { info.memory.text(color) }
        ));
        // A reason that holds for a whole branch is said once, at its top.
        if !info.why.is_empty() && said != Some(&info.why) {
            out.extend(
                info.why.iter().map(|w| format!("{}{}", line.below, marked(color, Mark::Yellow, &format!("why: {w}")))),
            );
            said = Some(&info.why);
        }
    }
    out
}

/// `  (at most 4 of judge at once)`.
fn limits(limits: &BTreeMap<String, u32>, color: bool) -> String {
    if limits.is_empty() {
        return String::new();
    }
    let each: Vec<String> = limits.iter().map(|(name, most)| format!("{most} of {name}")).collect();
    marked(color, Mark::Dim, &format!("  (at most {} at once)", each.join(", ")))
}

fn headline(lines: &PlanLines<'_>) -> String {
    let known: u64 = lines.stages.iter().filter_map(|s| s.preview.tasks).sum();
    let reused: u64 = lines.stages.iter().map(|s| s.preview.reused).sum();
    let open = lines.stages.iter().filter(|s| s.preview.tasks.is_none()).count();
    let later = match open {
        0 => String::new(),
        1 => ", and those of a stage whose input is not there yet".to_owned(),
        open => format!(", and those of {open} stages whose input is not there yet"),
    };
    format!(
        "{}: {}, {}{later}; {} reused, {} to run",
        lines.pipeline,
        counted(lines.stages.len() as u64, "stage"),
        counted(known, "task"),
        thousands(reused),
        thousands(known - reused)
    )
}

fn state(preview: &StagePreview, color: bool) -> String {
    let count = |n: u64| counted(n, "task");
    match preview.tasks {
        None => format!("{:<12} {}", "? tasks", marked(color, Mark::Yellow, "known when its input is there")),
        Some(n) if n == preview.reused => format!("{:<12} {}", count(n), marked(color, Mark::Green, "reused")),
        Some(n) if preview.reused == 0 => format!("{:<12} {}", count(n), marked(color, Mark::Yellow, "to run")),
        Some(n) => format!(
            "{:<12} {}",
            count(n),
            marked(color, Mark::Yellow, &format!("{} reused", thousands(preview.reused)))
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::{plan::Pins, spec::compile};

    const PIPELINE: &str = "
rallrec: 1
name: p
params: {above: 3}
data: {ratings: {source: movielens-100k}}
stages:
  dataset:
    kind: dataset
    data: ratings
    with:
      like_above: ${above}
  gcn: {kind: lightgcn, needs: {interactions: dataset.interactions, items: dataset.items, users: dataset.users}}
";

    fn plan(above: &str) -> Plan {
        let set = [("above".to_owned(), above.to_owned())];
        let pipeline = compile("p.yaml", PIPELINE, &set).unwrap();
        let data = [("ratings".to_owned(), "00".to_owned())].into();
        Plan::new(&pipeline, &Pins { data, ..Pins::default() }).unwrap()
    }

    async fn drawn(earlier: Option<Plan>) -> Vec<String> {
        let (store, plan) = (Store::memory(), plan("3"));
        let previews = preview(&store, &plan).await.unwrap();
        let earlier = earlier.map(|p| (RunId("r1".into()), p));
        let work = vec![Work::default(); plan.stages.len()];
        let stages = lines(&plan, previews, work, earlier.as_ref());
        let lines = PlanLines { pipeline: &plan.pipeline, compared_with: None, stages };
        text(&plan, &lines, false)
    }

    #[tokio::test]
    async fn the_tree_says_why_a_stage_is_not_reused() {
        assert_eq!(
            drawn(Some(plan("4"))).await,
            [
                "p: 2 stages, 2 tasks; 0 reused, 2 to run",
                "dataset  dataset   1 task       to run",
                "│  why: with.like_above of dataset: 4.0 -> 3.0",
                "└─ gcn   lightgcn  1 task       to run",
                "      why: needs.interactions, needs.items, needs.users changed because dataset: with.like_above: 4.0 -> 3.0",
            ]
        );
    }

    #[test]
    fn it_is_said_where_an_estimate_comes_from() {
        let mut resources = Resources::new("cpu", 2048);
        let text = |resources: &Resources| Memory::of(resources).text(false);
        assert_eq!(text(&resources), "");
        resources.gpu_estimate_mb = Some(3328);
        assert_eq!(text(&resources), "  (needs 3.2 GiB of an accelerator by its model's files)");
        resources.host_estimate_mb = Some(18 << 10);
        (resources.host_measured_in, resources.gpu_measured_in) = (Some(RunId("r1".into())), Some(RunId("r1".into())));
        assert_eq!(text(&resources), "  (needs 18.0 GiB as in run r1, 3.2 GiB of an accelerator as in run r1)");
        resources.gpu_memory_mb = Some(20 << 10);
        assert_eq!(text(&resources), "  (needs 18.0 GiB as in run r1)", "what is written needs no words");
        assert_eq!(Memory::of(&resources).gpu_mb, Some(20 << 10));
    }

    #[test]
    fn one_is_one() {
        let lines = |tasks| {
            let preview = StagePreview {
                stage: "a".into(),
                kind: "rows".into(),
                row_key: "k".into(),
                rows: None,
                tasks,
                reused: 0,
            };
            let memory = Memory::of(&Resources::new("cpu", 1));
            let work = Work::default();
            let stage = StageLine { preview, needs: vec![], limits: BTreeMap::new(), memory, work, why: vec![] };
            headline(&PlanLines { pipeline: "p", compared_with: None, stages: vec![stage] })
        };
        assert_eq!(lines(Some(1)), "p: 1 stage, 1 task; 0 reused, 1 to run");
        let open = "p: 1 stage, 0 tasks, and those of a stage whose input is not there yet; 0 reused, 0 to run";
        assert_eq!(lines(None), open);
    }

    #[tokio::test]
    async fn a_reason_that_holds_for_a_branch_is_said_once() {
        let lines = drawn(None).await;
        assert_eq!(lines[2], "│  why: no earlier run of this pipeline is in the store");
        assert_eq!(lines.len(), 4);
        assert!(drawn(Some(plan("3"))).await[2].contains("the same as in run r1, which did not finish it"));
    }
}
