//! What a plan implies and a run asks often: who reads whom, row limits, lanes, named limits.

use crate::{
    ids::StageName,
    kind::Mode,
    lane::Lane,
    plan::{Need, Plan},
};

/// A plan that cannot be run. Validation refuses such plans, so it means a bug or a journal of another program.
#[derive(Debug, thiserror::Error)]
pub enum PlanDefect {
    /// Parameters do not fit the stage's kind.
    #[error("stage `{stage}` has parameters of another version: {source}; start a new run")]
    Params {
        /// The stage.
        stage: StageName,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// A stage reads one that does not come before it.
    #[error("stage `{stage}` reads a stage that does not come before it in the plan; start a new run")]
    Order {
        /// The stage.
        stage: StageName,
    },
}

/// One input of a stage, seen from the stage that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    /// Position of the stage that reads.
    pub(super) stage: u32,
    /// Whether every shard of it reads the whole table.
    pub(super) whole: bool,
    /// Whether the rows of the table are its rows.
    pub(super) drive: bool,
}

/// Facts about a plan.
#[derive(Debug, PartialEq)]
pub(super) struct Graph {
    /// Readers of each stage, one entry an input.
    pub(super) readers: Vec<Vec<Edge>>,
    /// Most rows that each stage reads of its driving table.
    pub(super) limits: Vec<Option<u64>>,
    /// Lanes, each once, in the plan's order.
    pub(super) lanes: Vec<Lane>,
    /// Position of each stage's lane in `lanes`.
    pub(super) lane_of: Vec<usize>,
    /// Named limits: tasks that may be handed out at once.
    pub(super) caps: Vec<(String, u32)>,
    /// Positions in `caps` of each stage's limits.
    pub(super) caps_of: Vec<Vec<usize>>,
}

impl Graph {
    pub(super) fn new(plan: &Plan) -> Result<Self, PlanDefect> {
        let mut graph = Self {
            readers: vec![Vec::new(); plan.stages.len()],
            limits: Vec::new(),
            lanes: Vec::new(),
            lane_of: Vec::new(),
            caps: Vec::new(),
            caps_of: Vec::new(),
        };
        for (position, stage) in plan.stages.iter().enumerate() {
            let params = stage.params().map_err(|source| PlanDefect::Params { stage: stage.name.clone(), source })?;
            graph.limits.push(params.row_limit());
            for need in &stage.needs {
                if need.stage as usize >= position {
                    return Err(PlanDefect::Order { stage: stage.name.clone() });
                }
                graph.readers[need.stage as usize].push(Edge {
                    stage: position as u32,
                    whole: reads_whole(stage.drive().is_some(), need),
                    drive: need.mode == Mode::Drive,
                });
            }
            let mut caps_of = Vec::new();
            for (name, most) in &stage.resources.limits {
                let known = graph.caps.iter().position(|(known, _)| known == name);
                let cap = known.unwrap_or_else(|| {
                    graph.caps.push((name.clone(), *most));
                    graph.caps.len() - 1
                });
                // One that a plan gives two sizes has the smaller.
                graph.caps[cap].1 = graph.caps[cap].1.min(*most);
                caps_of.push(cap);
            }
            graph.caps_of.push(caps_of);
            let lane = Lane::of(stage);
            let known = graph.lanes.iter().position(|l| *l == lane);
            graph.lane_of.push(known.unwrap_or(graph.lanes.len()));
            if known.is_none() {
                graph.lanes.push(lane);
            }
        }
        Ok(graph)
    }
}

/// Whether a stage's tasks read all shards of an input. A stage that is one task always does.
pub(super) fn reads_whole(row_wise: bool, need: &Need) -> bool {
    !row_wise || need.mode == Mode::Whole
}
