//! The commands of a cluster: its two services, and what people say to it.

mod client;
mod config;
mod services;

pub use client::{cancel, drain, retry, status, submit, watch, workers};
pub use services::{coordinator, worker};
