//! The inert core of the orchestrator: everything that decides and nothing that does.
//!
//! A pipeline file becomes a [`plan::Plan`] ([`spec::compile`], then [`plan::Plan::new`]); a run of that plan
//! is a [`run::RunState`] moved only by [`run::apply`]. Time, randomness and identifiers come in as arguments,
//! so the same inputs always give the same outputs. This crate deliberately has no async runtime, no file or
//! network access, no clock, and knows nothing of Burn, Arrow or object stores.

pub mod field;
pub mod fleet;
pub mod ids;
pub mod key;
pub mod kind;
pub mod lane;
pub mod mapping;
pub mod models;
pub mod params;
pub mod plan;
pub mod rng;
pub mod run;
pub mod schema;
pub mod spec;
pub mod sweep;
pub mod task;
pub mod template;
