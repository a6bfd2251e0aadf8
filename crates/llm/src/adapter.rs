//! Low-rank adapters (LoRA, arXiv 2106.09685): small matrices A and B beside some of a model's projections, in PEFT's
//! format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! A projection with an adapter computes W x + (alpha / rank) B A x. The two are never merged: one set of weights
//! serves every adapter. How adapters are trained is [`crate::tune`]'s affair. Deliberately not read: variants that
//! compute something else (DoRA, rank-stabilized scaling, biases, other ranks for single layers); each is refused by
//! its name in the configuration.

use crate::{
    LlmError,
    config::ModelConfig,
    host::matrix,
    tune::{
        draw,
        rows::{Rows, narrow_product},
    },
};
use burn::tensor::{DType, Device, Tensor};
use rallrec_core::rng::row_rng;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{collections::HashMap, fmt, fs, ops::Range, path::Path};

/// Names of an adapter's two files.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the file with the matrices.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Key of the base model's digest in the metadata of the weights. PEFT ignores it.
const BASE: &str = "rallrec.base";
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
    /// What the adapter's part is multiplied with.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }
}

/// An adapter's matrices, in 32-bit floats.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub(crate) settings: AdapterSettings,
    /// Digest of the model that it belongs to, if that is known.
    base: Option<String>,
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
    /// [`LlmError::Argument`] without targets, or with a rank of 0.
    pub fn new(
        config: &ModelConfig,
        settings: AdapterSettings,
        seed: u64,
        base: Option<&str>,
    ) -> Result<Self, LlmError> {
        let mut settings = settings;
        settings.targets.sort_unstable();
        settings.targets.dedup();
        if settings.rank == 0 || settings.targets.is_empty() {
            return Err(LlmError::Argument("an adapter needs a rank of 1 or more and a target module".into()));
        }
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
        let layers = self.places.iter().map(|place| place.layer + 1).max().unwrap_or(0);
        if layers != config.layers {
            let what =
                format!("it has {layers} layers, but this model has {}: it was made for another model", config.layers);
            return Err(wrong(what));
        }
        Ok(())
    }

    /// Its two files: the configuration as text, and the weights.
    ///
    /// # Errors
    /// [`LlmError::Adapter`] when the weights cannot be laid out, which means a bug.
    pub fn to_files(&self) -> Result<(String, Vec<u8>), LlmError> {
        let AdapterSettings { rank, alpha, dropout, targets } = &self.settings;
        let targets: Vec<_> = targets.iter().map(|target| target.name()).collect();
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": self.base,
            "r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": targets,
            "bias": "none", "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
        });
        let bytes: Vec<(&Place, Vec<u8>, Vec<u8>)> = self
            .places
            .iter()
            .map(|place| {
                (place, little_endian(&self.values[place.down.clone()]), little_endian(&self.values[place.up.clone()]))
            })
            .collect();
        let mut views = Vec::with_capacity(2 * bytes.len());
        for (place, down, up) in &bytes {
            let view = |shape, bytes| TensorView::new(Dtype::F32, shape, bytes).map_err(|e| wrong(e.to_string()));
            views.push((place.tensor("A"), view(vec![*rank, place.inputs], down)?));
            views.push((place.tensor("B"), view(vec![place.outputs, *rank], up)?));
        }
        // One entry at most: a map with more would be written in any order, and the same adapter must be the same bytes.
        let metadata = self.base.as_ref().map(|base| HashMap::from([(BASE.to_owned(), base.clone())]));
        let weights = safetensors::serialize(views, metadata).map_err(|e| wrong(e.to_string()))?;
        let config = serde_json::to_string_pretty(&config).map_err(|e| wrong(e.to_string()))?;
        Ok((config, weights))
    }

    /// An adapter from its two files' content.
    ///
    /// # Errors
    /// [`LlmError::Adapter`] that names the key or tensor that is missing, malformed or of a kind that is not
    /// supported.
    pub fn from_files(config: &str, weights: &[u8]) -> Result<Self, LlmError> {
        let config: Value = serde_json::from_str(config).map_err(|e| wrong(format!("{CONFIG_FILE}: {e}")))?;
        let in_file = |what: String| wrong(format!("{WEIGHTS_FILE}: {what}"));
        let tensors = SafeTensors::deserialize(weights).map_err(|e| in_file(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(weights).map_err(|e| in_file(e.to_string()))?;
        let base = header.metadata().as_ref().and_then(|metadata| metadata.get(BASE).cloned());
        let mut settings = read_settings(&config)?;
        let mut shapes = Vec::new();
        for name in tensors.names() {
            let (layer, target) = parse_name(name).ok_or_else(|| {
                in_file(format!("tensor {name} is not supported; LoRA of q, k, v, o, gate, up and down projections is"))
            })?;
            shapes.push((layer, target));
        }
        shapes.sort_unstable();
        shapes.dedup();
        settings.targets = shapes.iter().map(|&(_, target)| target).collect();
        settings.targets.sort_unstable();
        settings.targets.dedup();
        let layers = shapes.last().map_or(0, |(layer, _)| layer + 1);
        let mut read = Vec::new();
        for layer in 0..layers {
            for &target in &settings.targets {
                let place = Place { layer, target, inputs: 0, outputs: 0, down: 0..0, up: 0..0 };
                let (down, [rows, inputs]) = read_tensor(&tensors, &place.tensor("A"))?;
                let (up, [outputs, columns]) = read_tensor(&tensors, &place.tensor("B"))?;
                let rank = settings.rank;
                if rows != rank || columns != rank {
                    let what = format!(
                        "{} is [{rows}, {inputs}] and {} is [{outputs}, {columns}], but r in {CONFIG_FILE} is {rank}",
                        place.tensor("A"),
                        place.tensor("B")
                    );
                    return Err(in_file(what));
                }
                read.push(((layer, target, inputs, outputs), down, up));
            }
        }
        if read.is_empty() {
            return Err(in_file("it has no tensors".into()));
        }
        let (places, _) = places(settings.rank, read.iter().map(|(shape, ..)| *shape));
        let values = read.into_iter().flat_map(|(_, down, up)| down.into_iter().chain(up)).collect();
        Ok(Self { settings, base, places, values })
    }

    /// Reads an adapter's folder.
    ///
    /// # Errors
    /// [`LlmError::Read`] when a file cannot be read; as [`Self::from_files`].
    pub fn read(folder: &Path) -> Result<Self, LlmError> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(|source| LlmError::Read { path, source })
        };
        let config = read(CONFIG_FILE)?;
        let at = |error| match error {
            LlmError::Adapter(what) => LlmError::File { path: folder.into(), what },
            other => other,
        };
        Self::from_files(&String::from_utf8_lossy(&config), &read(WEIGHTS_FILE)?).map_err(at)
    }
}

fn wrong(what: String) -> LlmError {
    LlmError::Adapter(what)
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Rank, alpha and dropout; targets are told by the tensors that are there.
fn read_settings(config: &Value) -> Result<AdapterSettings, LlmError> {
    let refuse = |key: &str, what: &str| wrong(format!("{CONFIG_FILE}: {key} {what}"));
    if config["peft_type"] != "LORA" {
        return Err(refuse("peft_type", &format!("{} is not supported; \"LORA\" is", config["peft_type"])));
    }
    let set = |key: &str| {
        !matches!(&config[key], Value::Null | Value::Bool(false))
            && config[key].as_object().is_none_or(|o| !o.is_empty())
            && config[key].as_array().is_none_or(|a| !a.is_empty())
    };
    for key in
        ["use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias"]
    {
        if set(key) {
            return Err(refuse(key, "is set, which is not supported; train the adapter without it"));
        }
    }
    if !matches!(config["bias"].as_str(), None | Some("none")) {
        return Err(refuse("bias", &format!("{} is not supported; \"none\" is", config["bias"])));
    }
    let rank = config["r"].as_u64().filter(|&rank| rank > 0);
    let rank = rank.ok_or_else(|| refuse("r", "is not a rank of 1 or more"))? as usize;
    let alpha = config["lora_alpha"].as_f64().ok_or_else(|| refuse("lora_alpha", "is not a number"))?;
    let dropout = config["lora_dropout"].as_f64().unwrap_or(0.0);
    Ok(AdapterSettings { rank, alpha, dropout, targets: Vec::new() })
}

fn parse_name(name: &str) -> Option<(usize, Target)> {
    let (layer, rest) = name.strip_prefix(PREFIX)?.split_once('.')?;
    let (module, rest) = rest.split_once('.')?;
    let (target, matrix) = rest.split_once('.')?;
    let target = Target::of_name(target).filter(|target| target.module() == module)?;
    matches!(matrix, "lora_A.weight" | "lora_B.weight").then_some((layer.parse().ok()?, target))
}

fn read_tensor(tensors: &SafeTensors<'_>, name: &str) -> Result<(Vec<f32>, [usize; 2]), LlmError> {
    let in_file = |what: String| wrong(format!("{WEIGHTS_FILE}: tensor {name} {what}"));
    let tensor = tensors.tensor(name).map_err(|_| in_file("is missing".into()))?;
    let &[rows, columns] = tensor.shape() else {
        return Err(in_file(format!("is {:?}, not a matrix", tensor.shape())));
    };
    let halves = || tensor.data().chunks_exact(2).map(|b| [b[0], b[1]]);
    let values: Vec<f32> = match tensor.dtype() {
        Dtype::F32 => tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => halves().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => halves().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        other => return Err(in_file(format!("is stored as {other:?}; F32, F16 and BF16 are supported"))),
    };
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(in_file(format!("has {} at position {at}; train the adapter again", values[at])));
    }
    Ok((values, [rows, columns]))
}

/// An adapter on a device, ready to add to a block's products.
pub(crate) struct LowRanks {
    layers: Vec<[Option<LowRank>; 4]>,
}

/// What an adapter adds to one product.
struct LowRank {
    /// A of its targets beside one another, \[inputs, targets * rank\].
    down: Tensor<2>,
    /// Scaled B of each target in its columns, zeros elsewhere, \[targets * rank, outputs\].
    up: Tensor<2>,
}

impl LowRanks {
    pub(crate) fn new(adapter: &Adapter, config: &ModelConfig, device: &Device) -> Self {
        let layers = (0..config.layers).map(|layer| {
            Product::ALL.map(|product| {
                let places: Vec<&Place> = adapter
                    .places
                    .iter()
                    .filter(|p| p.layer == layer && product.targets().contains(&p.target))
                    .collect();
                let inputs = places.first()?.inputs;
                Some(LowRank {
                    down: matrix(transposed_down(adapter, &places), inputs, device),
                    up: matrix(
                        scaled_up(adapter, product, &places, config),
                        places.len() * adapter.settings.rank,
                        device,
                    ),
                })
            })
        });
        Self { layers: layers.collect() }
    }

    /// `y`, which is a product of `x`, with the adapter's part.
    pub(crate) fn add(&self, layer: usize, product: Product, x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
        let low = self.layers.get(layer).and_then(|products| products[product as usize].as_ref());
        let Some(low) = low else { return y };
        let (device, [rows, _]) = (y.device(), x.dims());
        // One row alone would take another kernel on the CPU, with another order of summation.
        let x = if rows == 1 { Tensor::cat(vec![x.clone(), x], 0) } else { x };
        // The adapter is in 32 bits everywhere; on CUDA activations are narrower.
        let x = if x.dtype() == DType::F32 { x } else { x.cast(DType::F32) };
        let added = narrow_product(x, low.down.clone()).matmul(low.up.clone());
        let added = if y.dtype() == DType::F32 { added } else { added.cast(y.dtype()) };
        let outputs = added.dims()[1];
        Rows::of(y).add(added.slice([0..rows, 0..outputs])).into_tensor(&device)
    }
}

/// Transposed A of some projections with the same inputs, beside one another: \[inputs, targets * rank\].
pub(crate) fn transposed_down(adapter: &Adapter, places: &[&Place]) -> Vec<f32> {
    let below: Vec<f32> = places.iter().flat_map(|place| &adapter.values[place.down.clone()]).copied().collect();
    transposed(&below, places.first().map_or(1, |place| place.inputs))
}

/// Transposed and scaled B of some projections of one product, each in its own rows and columns:
/// \[targets * rank, outputs of the product\].
pub(crate) fn scaled_up(adapter: &Adapter, product: Product, places: &[&Place], config: &ModelConfig) -> Vec<f32> {
    let (rank, scale, width) = (adapter.settings.rank, adapter.settings.scale(), product.width(config));
    let mut out = vec![0.0; places.len() * rank * width];
    for (number, place) in places.iter().enumerate() {
        let first = product.columns(place.target, config).start;
        for (output, row) in adapter.values[place.up.clone()].chunks_exact(rank).enumerate() {
            for (r, &value) in row.iter().enumerate() {
                out[(number * rank + r) * width + first + output] = value * scale;
            }
        }
    }
    out
}

/// Rows of `width` numbers as columns.
pub(crate) fn transposed(rows: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| rows.iter().skip(column).step_by(width).copied()).collect()
}
