//! The `rallrec` command line: what the user asks, and what the user sees.
//!
//! It finds sources, compiles pipelines, and for `run` puts queue, workers and coordinator into one process. It
//! deliberately decides nothing about tasks: that is the core's and the coordinator's. Exit codes are listed in
//! [`failure`] and in `docs/cli.md`.

pub mod app;
pub mod args;
pub mod artifacts;
pub mod clock;
pub mod cluster;
pub mod compare;
pub mod console;
pub mod data;
pub mod doctor;
pub mod embedded;
pub mod estimate;
pub mod explain;
pub mod failure;
pub mod gc;
pub mod history;
pub mod home;
pub mod learned;
pub mod load;
pub mod plan_view;
mod plot;
mod predictions;
pub mod preview;
pub mod progress;
pub mod pull_view;
pub mod report;
pub mod run;
pub mod run_lock;
pub mod run_names;
pub mod run_view;
pub mod runs;
pub mod sources;
pub mod stores;
pub mod sweep;
pub mod tree;

pub use app::main;
