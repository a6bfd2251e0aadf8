//! Lanes: which worker slots a task may run in.

use crate::{models::PinnedModel, plan::PlannedStage};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Letters of a digest that tell models apart in a lane's name: 64 bits.
const MODEL_LETTERS: usize = 16;

/// Where tasks of one kind wait: a pool of machines, and within it one model, so that a worker that has the model in
/// memory can ask for its tasks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lane {
    /// Pool of workers.
    pub pool: String,
    /// First letters of the model's digest; `None` for tasks that need no model in memory.
    pub model: Option<String>,
}

impl Lane {
    /// The lane of a stage's tasks. A model behind a server is in nobody's memory.
    pub fn of(stage: &PlannedStage) -> Self {
        let model = match &stage.model {
            Some(PinnedModel::Local { files, .. }) => Some(model_name(&files.digest)),
            Some(PinnedModel::Remote { .. }) | None => None,
        };
        Self { pool: stage.resources.pool.clone(), model }
    }
}

/// What lanes call the model of a digest.
pub fn model_name(digest: &str) -> String {
    digest.chars().take(MODEL_LETTERS).collect()
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.model.as_deref().unwrap_or("any"))
    }
}

/// Worker slots that stand for each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slots {
    /// All of a pool: any lane of it is served.
    Pool(String),
    /// Those that serve one lane.
    Lane(Lane),
}

impl Slots {
    /// Whether tasks of the lane may run in them.
    pub fn serve(&self, lane: &Lane) -> bool {
        match self {
            Self::Pool(pool) => *pool == lane.pool,
            Self::Lane(served) => served == lane,
        }
    }
}

impl From<&str> for Slots {
    fn from(pool: &str) -> Self {
        Self::Pool(pool.to_owned())
    }
}
