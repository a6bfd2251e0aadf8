//! The kernels without a GPU: every one is compiled by NVRTC, and run on the host and compared with plain loops.

mod draws;
mod emit;
mod host;
mod nvrtc;
mod twins;
mod values;
