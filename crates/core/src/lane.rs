//! Lanes: which worker slots a task may run in.

use crate::{
    models::PinnedModel,
    plan::{PlannedStage, Resources},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Letters of a digest that tell models apart in a lane's name: 64 bits.
const MODEL_LETTERS: usize = 16;

/// Most GiB that a need grows to: as much as a pipeline may ask for.
const MAX_GIB: u32 = 16_384;

/// Memory of a machine, in whole GiB. What a task needs is rounded up, so that lanes stay few; not to powers of two,
/// because a task that needs 18 GiB must not be kept from an accelerator that has 24, or one that needs 70 from one of 80.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Room {
    /// Of the accelerator. Compared first: it is what machines have least of.
    pub gpu_gib: u32,
    /// Of the host.
    pub host_gib: u32,
}

impl Room {
    /// As much as this many MiB of host and accelerator.
    pub fn of_mb(host_mb: u64, gpu_mb: u64) -> Self {
        let gib = |mb: u64| u32::try_from(mb.div_ceil(1024)).unwrap_or(MAX_GIB).min(MAX_GIB);
        Self { gpu_gib: gib(gpu_mb), host_gib: gib(host_mb) }
    }

    /// Whether a machine with this much memory, in MiB, has it.
    pub fn is_within(self, host_mb: u64, gpu_mb: u64) -> bool {
        u64::from(self.host_gib) * 1024 <= host_mb && u64::from(self.gpu_gib) * 1024 <= gpu_mb
    }

    /// The larger of both, in each kind of memory.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { gpu_gib: self.gpu_gib.max(other.gpu_gib), host_gib: self.host_gib.max(other.host_gib) }
    }

    /// Twice as much of whatever it has.
    #[must_use]
    pub fn doubled(self) -> Self {
        let twice = |gib: u32| gib.saturating_mul(2).min(MAX_GIB);
        Self { gpu_gib: twice(self.gpu_gib), host_gib: twice(self.host_gib) }
    }
}

/// `m2`, `m2g16`: one word, as it stands in subjects.
impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}", self.host_gib)?;
        if self.gpu_gib > 0 { write!(f, "g{}", self.gpu_gib) } else { Ok(()) }
    }
}

/// Where tasks of one kind wait: a pool of machines, within it one model, so that a worker that has the model in memory
/// can ask for its tasks, and the memory that they need, so that a worker that lacks it does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lane {
    /// Pool of workers.
    pub pool: String,
    /// First letters of the model's digest; `None` for tasks that need no model in memory.
    pub model: Option<String>,
    /// What a person asked for: no worker that has less is given the tasks.
    #[serde(default)]
    pub least: Room,
    /// What they seem to need, never less than `least`: an estimate, or what grew when tasks ran out of memory. Where no
    /// worker has it, the largest get the tasks.
    #[serde(default)]
    pub wanted: Room,
}

impl Lane {
    /// The lane of a stage's tasks. A model behind a server is in nobody's memory.
    pub fn of(stage: &PlannedStage) -> Self {
        let model = match &stage.model {
            Some(PinnedModel::Local { files, .. }) => Some(model_name(&files.digest)),
            Some(PinnedModel::Remote { .. }) | None => None,
        };
        let Resources { pool, memory_mb, gpu_memory_mb, gpu_estimate_mb, host_estimate_mb, .. } = &stage.resources;
        let room = |host_mb: u64, gpu_mb: Option<u64>| Room::of_mb(host_mb, gpu_mb.unwrap_or(0));
        let host_estimate_mb = host_estimate_mb.map_or(*memory_mb, |estimate| estimate.max(*memory_mb));
        Self {
            pool: pool.clone(),
            model,
            least: room(*memory_mb, *gpu_memory_mb),
            wanted: room(host_estimate_mb, gpu_memory_mb.or(*gpu_estimate_mb)),
        }
    }

    /// The lane of any machine of its pool: where one machine is all that there is, its size is no question.
    #[must_use]
    pub fn anywhere(&self) -> Self {
        Self { least: Room::default(), wanted: Room::default(), ..self.clone() }
    }

    /// What it needs, as one word.
    pub fn room(&self) -> String {
        if self.least == self.wanted { self.least.to_string() } else { format!("{}-{}", self.least, self.wanted) }
    }
}

/// What lanes call the model of a digest.
pub fn model_name(digest: &str) -> String {
    digest.chars().take(MODEL_LETTERS).collect()
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.pool, self.model.as_deref().unwrap_or("any"), self.room())
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
