//! The recommendation method apart from its language models: data sets, collaborative and text embeddings,
//! retrieval, prompts, CTR baselines, merging and metrics.
//!
//! Inputs and outputs are plain columns and row-major matrices; tables, artifacts and sharding belong to the
//! stages. Deliberately no clock and no global generator: every random draw comes from
//! [`rallrec_core::rng::row_rng`].

pub mod align;
pub mod compare;
pub mod ctr;
pub mod dataset;
pub mod draw;
pub mod graph;
pub mod history;
pub mod index;
pub mod lightgcn;
pub mod merge;
pub mod metrics;
pub mod pca;
pub mod prompt;
pub mod report;
pub mod response;
pub mod retrieval;
pub mod spmm;
pub mod trace;
pub mod training;
