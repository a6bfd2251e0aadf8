//! End-to-end tests: the real binary, the real language model, real files, and `kill -9`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod architecture;
mod chaos;
mod cluster;
mod cluster_s3;
mod compare;
mod dataset;
mod golden;
mod kill;
mod limits;
mod model_memory;
mod operations;
mod partition;
mod pipeline;
mod provider;
mod s3;
mod servers;
mod support;
mod sweep;
mod systems;
mod tune;
