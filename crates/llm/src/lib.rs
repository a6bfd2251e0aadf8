//! Llama-family language models for batch work: load, tokenize, embed, score, generate.
//!
//! The stages read whole tables of prompts through [`LanguageModel`]. It is synchronous and made for throughput: it
//! batches by tokens without padding, shares what prompts have in common, and never computes logits that nobody reads.
//! It knows nothing of stages, tables or stores, and it does not serve requests one by one.
//!
//! ```text
//! gguf -> quants          files                 tokenizer, chat     text to tokens and back
//!   `-> config, decoder   weights, forward      sampler             logits to a token
//!         |- host         loops on the CPU      prefill             embed, score
//!         `- attention -> kv                    generate            continuous batching
//! ```

pub mod adapter;
mod attention;
pub mod chat;
pub mod config;
mod decoder;
pub mod device;
mod error;
pub mod generate;
pub mod gguf;
mod host;
mod kv;
pub mod model;
pub mod prefill;
pub mod quants;
pub mod sampler;
pub mod tokenizer;
pub mod tune;

pub use adapter::{Adapter, AdapterSettings, Target};
pub use chat::Message;
pub use device::pick_device;
pub use error::LlmError;
pub use generate::{GenerateRequest, Generation, Sampling};
pub use model::LanguageModel;
pub use prefill::{Done, OnProgress, Pooling, Rows};
pub use tune::{StepRecord, TuneHooks, TuneProgress, TuneSample, TuneSettings, Tuned};
