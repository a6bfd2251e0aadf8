//! Language models behind an HTTP server that speaks OpenAI's interface: vLLM, SGLang, llama.cpp and others.
//!
//! A stage hands over its whole list of prompts and gets one result for each, in its order. In between, requests are
//! sent in an order that servers with a prompt cache like, a bounded number at once, again where they failed in
//! passing, and no faster than the server or the pipeline allows. It blocks and uses threads, as stages do; there is
//! no async here. It knows nothing of tables, stages or chat templates, does not stream, and keeps no answer: that is
//! what the artifact store is for.
//!
//! ```text
//! server   generate, score, embed        wire     JSON bodies and what is read from answers
//!   `-> batch   order, threads, cancel   answers  log-probabilities to two numbers
//!         `-> transport   one request until it is done  ->  gate   how many at once, how fast
//! ```

mod answers;
mod batch;
mod error;
mod gate;
mod server;
mod transport;
mod wire;

pub use batch::{Batch, Done, Usage};
pub use error::ProviderError;
pub use server::{Answer, Ask, Pooling, Prompt, Sampling, Scores, Server, Turn};
pub use transport::{Backoff, ServerKey};
