//! The commands of a cluster: its two services, and what people say to it.

mod archive;
mod client;
mod config;
mod connect;
mod contexts;
mod doctor;
mod logs;
mod memory;
mod services;

pub use client::{active_runs, cancel, collect, drain, retry, status, submit, watch, workers};
pub use connect::Cluster;
pub use contexts::{choose_context, list as list_contexts};
pub use doctor::doctor;
pub use logs::logs;
pub use services::{coordinator, worker};
