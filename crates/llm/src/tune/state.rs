//! The state of a training as bytes: what it takes to go on as if nothing had happened.
//!
//! A safetensors file: the numbers as tensors, all else as JSON in its metadata.

use super::{StepRecord, optimizer::AdamW};
use crate::{Adapter, LlmError};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Format of the bytes.
const VERSION: u32 = 1;
/// Key of the JSON in the metadata.
const META: &str = "rallrec.tuning";

/// A training between two of its parts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    /// The adapter's numbers.
    pub(super) values: Vec<f32>,
    pub(super) optimizer: AdamW,
    /// Samples of the step in work whose gradients are summed up.
    pub(super) done: usize,
    /// Their gradients.
    pub(super) gradients: Vec<f32>,
    /// The sum of their losses.
    pub(super) loss: f64,
    pub(super) history: Vec<StepRecord>,
    /// Step of the last validation.
    pub(super) validated: u64,
    pub(super) best: Option<Best>,
    /// Validations since the best one.
    pub(super) since_best: u64,
}

/// The adapter of the best validation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Best {
    pub(super) step: u64,
    pub(super) score: f64,
    pub(super) values: Vec<f32>,
}

/// All of a state that is not a list of numbers.
#[derive(Serialize, Deserialize)]
struct Meta {
    version: u32,
    steps: u64,
    done: usize,
    loss: f64,
    history: Vec<StepRecord>,
    validated: u64,
    best: Option<(u64, f64)>,
    since_best: u64,
}

impl State {
    pub(super) fn new(adapter: &Adapter) -> Self {
        let parameters = adapter.values().len();
        Self {
            values: adapter.values().to_vec(),
            optimizer: AdamW::new(parameters),
            done: 0,
            gradients: vec![0.0; parameters],
            loss: 0.0,
            history: Vec::new(),
            validated: 0,
            best: None,
            since_best: 0,
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, LlmError> {
        let meta = Meta {
            version: VERSION,
            steps: self.optimizer.steps,
            done: self.done,
            loss: self.loss,
            history: self.history.clone(),
            validated: self.validated,
            best: self.best.as_ref().map(|best| (best.step, best.score)),
            since_best: self.since_best,
        };
        let meta = serde_json::to_string(&meta).map_err(|e| LlmError::State(e.to_string()))?;
        let mut lists =
            vec![("values", &self.values), ("mean", &self.optimizer.mean), ("square", &self.optimizer.square)];
        if self.done > 0 {
            lists.push(("gradients", &self.gradients));
        }
        if let Some(best) = &self.best {
            lists.push(("best", &best.values));
        }
        let bytes: Vec<(&str, Vec<u8>)> = lists
            .into_iter()
            .map(|(name, values)| (name, values.iter().flat_map(|value| value.to_le_bytes()).collect()))
            .collect();
        let mut views = Vec::with_capacity(bytes.len());
        for (name, bytes) in &bytes {
            let view = TensorView::new(Dtype::F32, vec![bytes.len() / size_of::<f32>()], bytes);
            views.push((*name, view.map_err(|e| LlmError::State(e.to_string()))?));
        }
        safetensors::serialize(views, Some(HashMap::from([(META.to_owned(), meta)])))
            .map_err(|e| LlmError::State(e.to_string()))
    }

    /// Reads what [`Self::encode`] wrote of a training of an adapter of this shape. Whether its counts fit the training
    /// is its caller's to check.
    ///
    /// # Errors
    /// [`LlmError::State`] for other bytes, another version, lists of another length, and an adapter that is not finite.
    pub(super) fn decode(bytes: &[u8], shape: &Adapter) -> Result<Self, LlmError> {
        let wrong = |what: String| LlmError::State(what);
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| wrong(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| wrong(e.to_string()))?;
        let meta = header.metadata().as_ref().and_then(|metadata| metadata.get(META));
        let meta = meta.ok_or_else(|| wrong(format!("it has no {META}")))?;
        let meta: Meta = serde_json::from_str(meta).map_err(|e| wrong(e.to_string()))?;
        if meta.version != VERSION {
            return Err(wrong(format!("it has version {}, and this program reads {VERSION}", meta.version)));
        }
        let parameters = shape.values().len();
        let list = |name: &str| {
            let tensor = tensors.tensor(name).map_err(|e| wrong(e.to_string()))?;
            let (dtype, sizes) = (tensor.dtype(), tensor.shape());
            if dtype != Dtype::F32 || sizes != [parameters] {
                return Err(wrong(format!("{name} is {dtype:?} {sizes:?}, and this adapter has {parameters} numbers")));
            }
            let values =
                tensor.data().chunks_exact(size_of::<f32>()).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            Ok(values.collect::<Vec<f32>>())
        };
        // What a step leaves is finite, or it has failed.
        let adapter = |name: &str| match list(name)? {
            values if values.iter().all(|value| value.is_finite()) => Ok(values),
            _ => Err(wrong(format!("{name} has numbers that are not finite"))),
        };
        let best = match meta.best {
            Some((step, score)) => Some(Best { step, score, values: adapter("best")? }),
            None => None,
        };
        Ok(Self {
            values: adapter("values")?,
            optimizer: AdamW { mean: list("mean")?, square: list("square")?, steps: meta.steps },
            done: meta.done,
            gradients: if meta.done > 0 { list("gradients")? } else { vec![0.0; parameters] },
            loss: meta.loss,
            history: meta.history,
            validated: meta.validated,
            best,
            since_best: meta.since_best,
        })
    }
}
