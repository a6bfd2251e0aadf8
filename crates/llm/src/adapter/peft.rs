//! Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, in and out.
//!
//! Deliberately not read: variants that compute something else, or that want other base weights than the model's own.
//! Each is refused by its name in the configuration.

use super::{Adapter, AdapterSettings, PREFIX, Place, Target, places, wrong};
use crate::LlmError;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{collections::HashMap, fs, path::Path};

/// Name of the file with an adapter's settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the file with the matrices.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Key of the base model's digest in the metadata of the weights. PEFT ignores it.
const BASE: &str = "rallrec.base";
/// Keys of `adapter_config.json` that make of an adapter something else than two matrices beside a projection.
const VARIANTS: [&str; 15] = [
    "use_dora",
    "use_rslora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
];
/// Ways to begin a training that leave the base weights as they are, beside true and false.
const BEGINNINGS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

impl Adapter {
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
        let layers = shapes.last().map_or(0, |(layer, _)| layer.saturating_add(1));
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
    if let Some(key) = VARIANTS.into_iter().find(|key| set(key)) {
        return Err(refuse(key, "is set, which is not supported; train the adapter without it"));
    }
    if let Some(beginning) = config["init_lora_weights"].as_str().filter(|init| !BEGINNINGS.contains(init)) {
        let what = format!(
            "{beginning:?} changes the base weights; save the adapter with path_initial_model_for_weight_conversion"
        );
        return Err(refuse("init_lora_weights", &what));
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
