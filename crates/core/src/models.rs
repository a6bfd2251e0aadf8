//! Language models as pipelines declare them: files on the worker's machine, or a server elsewhere.
//!
//! The two tables here give the typed settings, the validation, the JSON Schema and the documentation of the `models:`
//! section, as [`crate::params`] does for stages. This module opens no file and no connection, and holds no secret: a
//! server's key is known by the name of the environment variable that the worker reads it from, and by that alone.

use crate::{
    field::{Effect, Field, ParamValue, ValueKind, choice, params},
    plan::PinnedSource,
};
use serde::{Deserialize, Serialize};

choice! {
    /// How a model's weights are kept while computing.
    Precision {
        /// As in the file on the CPU, with the same results as `f32` to the bit; bfloat16 on CUDA.
        Auto = "auto",
        /// 32-bit floats.
        F32 = "f32",
        /// bfloat16.
        Bf16 = "bf16",
        /// 16-bit floats.
        F16 = "f16",
        /// 8-bit integers with a scale for every 32 inputs; on CUDA their values are computed with in bfloat16.
        Int8 = "int8",
    }
}

choice! {
    /// What a server speaks.
    Provider {
        /// OpenAI's HTTP interface, as vLLM, SGLang and llama.cpp speak it too.
        OpenAi = "openai",
    }
}

params! {
    /// A model whose files are on the worker's machine.
    LocalModel {
        /// Where it comes from: a catalogue name, `file:PATH` (a file or a folder), `hf:OWNER/REPO[@REVISION][/FILE]` or
        /// `s3://BUCKET/PATH`. The SHA-256 of its content is in the key, not the name.
        source: String = "", Free;
        /// SHA-256 that the content must have: of one file its own, of a folder the one that the pull tells. Without it,
        /// an `hf:` or `s3:` source is taken as it is at the first pull, and what came is recorded.
        sha256: String = "", Free;
        /// How the weights are kept while computing. `auto` computes as `f32` on the CPU, with the weights as they are in
        /// the file, and in bfloat16 on CUDA.
        precision: Precision = Precision::Auto, Keyed;
    }
}

params! {
    /// A model behind an HTTP server.
    RemoteModel {
        /// What the server speaks.
        provider: Provider = Provider::OpenAi, Keyed;
        /// Address of the interface, up to and with `/v1`.
        url: String = "", Free;
        /// The model's name on the server.
        model: String = "", Keyed;
        /// Any text that stands for what the server runs: weights, precision, version. Change it when they change, and
        /// the stages run again.
        revision: String = "", Keyed;
        /// Environment variable that holds the server's key; empty when it wants none. The key itself never stands in
        /// a pipeline.
        api_key_env: String = "", Free;
        /// Source of the model's tokenizer and chat template, written as `source` is. With it prompts are written
        /// here exactly as for a local model and sent as text, and too long ones are told before they are sent. Its
        /// SHA-256 is in the key.
        tokenizer: String = "", Free;
        /// Requests in flight at once, over all tasks of a worker.
        concurrency: u32 = 16u32, Free, 1 ..= 4096;
        /// Most requests begun in a minute, over all tasks of a worker; 0 for no limit.
        requests_per_minute: u32 = 0u32, Free, 0 ..= 10000000;
        /// How often a request that failed in passing is sent again before the task fails.
        retries: u32 = 5u32, Free, 0 ..= 100;
        /// Seconds that one request may take in all.
        timeout_s: u32 = 600u32, Free, 1 ..= 86400;
        /// Price of a million tokens read, for the cost in manifests.
        price_input: f64 = 0.0, Free, 0 ..= 1000000;
        /// Price of a million tokens written.
        price_output: f64 = 0.0, Free, 0 ..= 1000000;
    }
}

/// A model of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Its name under `models:`.
    pub name: String,
    /// Where it is.
    pub place: ModelPlace,
}

/// Where a model is.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelPlace {
    /// In files.
    Local(LocalModel),
    /// Behind a server.
    Remote(RemoteModel),
}

impl Model {
    /// What must be on the worker's machine: the model's source, or a remote model's tokenizer.
    pub fn source(&self) -> Option<&str> {
        match &self.place {
            ModelPlace::Local(local) => Some(&local.source),
            ModelPlace::Remote(remote) => Some(remote.tokenizer.as_str()).filter(|t| !t.is_empty()),
        }
    }

    /// SHA-256 that the source must have, when the pipeline says so.
    pub fn pinned_sha256(&self) -> Option<&str> {
        match &self.place {
            ModelPlace::Local(local) => Some(local.sha256.as_str()).filter(|s| !s.is_empty()),
            ModelPlace::Remote(_) => None,
        }
    }
}

/// A model as plans and tasks name it: what is needed to compute with it, and nothing secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PinnedModel {
    /// In files.
    Local {
        /// Its files.
        #[serde(flatten)]
        files: PinnedSource,
        /// How the weights are kept.
        #[serde(default = "auto")]
        precision: Precision,
    },
    /// Behind a server.
    Remote {
        /// Name under `models:`.
        name: String,
        /// The server, and the model on it.
        remote: RemoteModel,
        /// Its tokenizer on the worker's machine.
        tokenizer: Option<PinnedSource>,
    },
}

/// What plans from before there was a choice meant.
fn auto() -> Precision {
    Precision::Auto
}

impl PinnedModel {
    /// What must be on the worker's machine.
    pub fn files(&self) -> Option<&PinnedSource> {
        match self {
            Self::Local { files, .. } => Some(files),
            Self::Remote { tokenizer, .. } => tokenizer.as_ref(),
        }
    }

    /// What decides the model's answers, as fields of a key: never where a server is, or how it is asked.
    pub fn key_fields(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Local { files, precision } => {
                vec![("model.digest", files.digest.clone()), ("model.precision", precision.word().to_owned())]
            }
            Self::Remote { remote, tokenizer, .. } => {
                let mut fields = vec![
                    ("model.provider", remote.provider.word().to_owned()),
                    ("model.model", remote.model.clone()),
                    ("model.revision", remote.revision.clone()),
                ];
                // It writes the prompts, and says which are too long.
                fields.extend(tokenizer.iter().map(|t| ("model.tokenizer", t.digest.clone())));
                fields
            }
        }
    }
}
