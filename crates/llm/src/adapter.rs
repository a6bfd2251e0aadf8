//! Low-rank adapters (LoRA, arXiv 2106.09685): small matrices A and B beside some of a model's projections.
//!
//! A projection with an adapter computes W x + (alpha / rank) B A x. The two are never merged: one set of weights
//! serves every adapter. Files are [`peft`]'s affair, products [`low_rank`]'s, and training [`crate::tune`]'s.

mod low_rank;
mod peft;

use crate::{LlmError, config::ModelConfig, tune::draw};
pub(crate) use low_rank::{LowRanks, scaled_up, transposed, transposed_down};
pub use peft::{CONFIG_FILE, WEIGHTS_FILE};
use rallrec_core::rng::row_rng;
use std::{fmt, ops::Range};

/// What PEFT puts before every tensor's name.
const PREFIX: &str = "base_model.model.model.layers.";

/// A projection that can have an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// From the heads back to the residual stream.
    Output,
    /// Gates of the feed-forward layer.
    Gate,
    /// What the gates open.
    Up,
    /// From the feed-forward layer back to the residual stream.
    Down,
}

/// Projections that one product computes side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    Qkv,
    Output,
    GateUp,
    Down,
}

impl Product {
    pub(crate) const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];

    /// Its projections, in the order of its columns.
    pub(crate) fn targets(self) -> &'static [Target] {
        match self {
            Self::Qkv => &[Target::Query, Target::Key, Target::Value],
            Self::Output => &[Target::Output],
            Self::GateUp => &[Target::Gate, Target::Up],
            Self::Down => &[Target::Down],
        }
    }

    /// The columns of one of its projections.
    pub(crate) fn columns(self, target: Target, config: &ModelConfig) -> Range<usize> {
        let before = self.targets().iter().take_while(|&&other| other != target);
        let first: usize = before.map(|other| other.shape(config).1).sum();
        first..first + target.shape(config).1
    }

    /// All its columns.
    pub(crate) fn width(self, config: &ModelConfig) -> usize {
        self.targets().iter().map(|target| target.shape(config).1).sum()
    }
}

impl Target {
    /// Every target, in the order of a block.
    pub const ALL: [Self; 7] = [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// The name of its module in Hugging Face models.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The target of a module's name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }

    fn module(self) -> &'static str {
        match self {
            Self::Query | Self::Key | Self::Value | Self::Output => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        }
    }

    /// Inputs and outputs of the projection.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        match self {
            Self::Query => (config.hidden, config.query_width()),
            Self::Key | Self::Value => (config.hidden, config.kv_width()),
            Self::Output => (config.query_width(), config.hidden),
            Self::Gate | Self::Up => (config.hidden, config.feed_forward),
            Self::Down => (config.feed_forward, config.hidden),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Size of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    /// Inner dimension.
    pub rank: usize,
    /// The adapter's part is multiplied with `alpha / rank`.
    pub alpha: f64,
    /// Share of the adapter's inputs that are set to 0 in training.
    pub dropout: f64,
    /// The projections that have one.
    pub targets: Vec<Target>,
}

impl AdapterSettings {
    /// Refuses a size that cannot be trained.
    ///
    /// # Errors
    /// [`LlmError::Argument`] that names the setting.
    pub(crate) fn check(&self) -> Result<(), LlmError> {
        let wrong = |what: String| Err(LlmError::Argument(what));
        if self.rank == 0 || self.targets.is_empty() {
            return wrong("an adapter needs a rank of 1 or more and a target module".into());
        }
        if !self.alpha.is_finite() {
            return wrong(format!("the adapter's alpha is {}; it must be a finite number", self.alpha));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return wrong(format!("the adapter's dropout is {}; it must be from 0 to below 1", self.dropout));
        }
        Ok(())
    }

    /// What the adapter's part is multiplied with.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }
}

/// An adapter's matrices, in 32-bit floats.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    settings: AdapterSettings,
    /// Digest of the model that it belongs to, if that is known.
    base: Option<String>,
    /// By layer, then by target.
    places: Vec<Place>,
    values: Vec<f32>,
}

/// Where a projection's matrices lie among an adapter's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) layer: usize,
    pub(crate) target: Target,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// A, \[rank, inputs\].
    pub(crate) down: Range<usize>,
    /// B, \[outputs, rank\].
    pub(crate) up: Range<usize>,
}

impl Place {
    fn tensor(&self, matrix: &str) -> String {
        format!("{PREFIX}{}.{}.{}.lora_{matrix}.weight", self.layer, self.target.module(), self.target)
    }
}

fn places(rank: usize, shapes: impl IntoIterator<Item = (usize, Target, usize, usize)>) -> (Vec<Place>, usize) {
    let mut end = 0;
    let place = |(layer, target, inputs, outputs)| {
        let down = end..end + rank * inputs;
        let up = down.end..down.end + outputs * rank;
        end = up.end;
        Place { layer, target, inputs, outputs, down, up }
    };
    let places = shapes.into_iter().map(place).collect();
    (places, end)
}

impl Adapter {
    /// A new adapter, as PEFT begins: A uniform within 1 / sqrt(inputs), drawn by `seed`; B zero, so that it changes
    /// nothing yet. `base` is the digest of the model.
    ///
    /// # Errors
    /// [`LlmError::Argument`] without targets, with a rank of 0, or with an impossible alpha or dropout.
    pub fn new(
        config: &ModelConfig,
        settings: AdapterSettings,
        seed: u64,
        base: Option<&str>,
    ) -> Result<Self, LlmError> {
        let mut settings = settings;
        settings.targets.sort_unstable();
        settings.targets.dedup();
        settings.check()?;
        let shapes = (0..config.layers).flat_map(|layer| {
            settings.targets.iter().map(move |&target| (layer, target, target.shape(config).0, target.shape(config).1))
        });
        let (places, end) = places(settings.rank, shapes);
        let mut values = vec![0.0; end];
        for place in &places {
            let mut rng = row_rng(seed, &format!("tune.init.{}", place.target), place.layer as u64, 0);
            let bound = 1.0 / (place.inputs as f32).sqrt();
            values[place.down.clone()].iter_mut().for_each(|a| *a = draw::symmetric(&mut rng, bound));
        }
        Ok(Self { settings, base: base.map(str::to_owned), places, values })
    }

    /// Its size.
    pub fn settings(&self) -> &AdapterSettings {
        &self.settings
    }

    /// Digest of the model that it was made for, if it says so.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// All numbers, one projection after another, A before B.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The PEFT name of each matrix, and where among [`Self::values`] it lies, row after row.
    pub fn matrices(&self) -> impl Iterator<Item = (String, Range<usize>)> {
        let both = |place: &Place| [(place.tensor("A"), place.down.clone()), (place.tensor("B"), place.up.clone())];
        self.places.iter().flat_map(both)
    }

    pub(crate) fn into_values(self) -> Vec<f32> {
        self.values
    }

    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    /// The same adapter with other numbers, in the order of [`Self::values`].
    ///
    /// # Errors
    /// [`LlmError::Argument`] for another count of numbers.
    pub fn with_values(&self, values: Vec<f32>) -> Result<Self, LlmError> {
        if values.len() == self.values.len() {
            return Ok(Self { values, ..self.clone() });
        }
        let what = format!("an adapter of {} numbers cannot take {}", self.values.len(), values.len());
        Err(LlmError::Argument(what))
    }

    /// The same adapter, to be trained without dropout.
    pub(crate) fn without_dropout(&self) -> Self {
        let settings = AdapterSettings { dropout: 0.0, ..self.settings.clone() };
        Self { settings, ..self.clone() }
    }

    /// Fails unless its matrices fit a model.
    ///
    /// # Errors
    /// [`LlmError::Adapter`] that names the tensor and both shapes.
    pub fn check(&self, config: &ModelConfig) -> Result<(), LlmError> {
        for place in &self.places {
            let (inputs, outputs) = place.target.shape(config);
            let rank = self.settings.rank;
            let wrong = |matrix: &str, found: [usize; 2], expected: [usize; 2]| {
                let name = place.tensor(matrix);
                wrong(format!("{name} is {found:?}, but this model takes {expected:?}: it was made for another model"))
            };
            if place.inputs != inputs {
                return Err(wrong("A", [rank, place.inputs], [rank, inputs]));
            }
            if place.outputs != outputs {
                return Err(wrong("B", [place.outputs, rank], [outputs, rank]));
            }
        }
        let layers = self.places.last().map_or(0, |place| place.layer + 1);
        if layers != config.layers {
            let what =
                format!("it has {layers} layers, but this model has {}: it was made for another model", config.layers);
            return Err(wrong(what));
        }
        Ok(())
    }
}

fn wrong(what: String) -> LlmError {
    LlmError::Adapter(what)
}
