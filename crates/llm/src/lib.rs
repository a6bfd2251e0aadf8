//! Llama-family language models for batch work: load, tokenize, embed, score, generate.
//!
//! The stages read whole tables of prompts through [`LanguageModel`]. It is synchronous and made for throughput: it
//! batches by tokens without padding, shares what prompts have in common, and never computes logits that nobody reads.
//! It knows nothing of stages, tables or stores, and it does not serve requests one by one.
//!
//! ```text
//! gguf, folder -> shards   files, mapped      vocabulary, tokenizer, chat, text   text to tokens and back
//!   `-> checkpoint         weights by name    sampler, stopping      logits to a token; when an answer ends
//!         `-> config, decoder                 memory, prefix, kv     how much fits; what is shared
//!               |- matrix  weights, products  prefill                embed, score
//!               |- adapter low-rank additions generate               continuous batching
//!               `- ops     all between them   tune                   training of adapters
//!                   |- host, attention, host_cache   on the CPU
//!                   `- cuda, attention_plan          on a CUDA device
//! ```

pub mod adapter;
mod attention;
#[cfg(any(test, feature = "cuda"))]
mod attention_plan;
pub mod chat;
mod checkpoint;
pub mod config;
#[cfg(feature = "cuda")]
mod cuda;
mod decoder;
pub mod device;
mod error;
mod folder;
pub mod generate;
pub mod gguf;
mod host;
mod host_cache;
mod kv;
mod map;
mod matrix;
mod memory;
pub mod model;
mod ops;
pub mod prefill;
mod prefix;
pub mod quants;
pub mod sampler;
mod shards;
mod stopping;
mod text;
pub mod tokenizer;
pub mod tune;
mod vocabulary;

#[cfg(test)]
#[path = "../tests/tiny/mod.rs"]
mod tiny;
#[cfg(test)]
mod twins;

pub use adapter::{Adapter, AdapterSettings, Target};
pub use chat::Message;
pub use checkpoint::SamplingDefaults;
pub use device::{cuda_index, pick_device};
pub use error::LlmError;
pub use generate::{Finish, GenerateRequest, Generation, Slots};
pub use matrix::Precision;
pub use memory::host_memory_bytes;
pub use model::LanguageModel;
pub use prefill::{Done, OnProgress, Pooling, Rows, TokenBudget};
pub use sampler::Sampling;
pub use text::ModelText;
pub use tune::{StepRecord, TuneHooks, TuneProgress, TuneSample, TuneSettings, Tuned};
