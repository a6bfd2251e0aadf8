//! The kernels without a GPU: every one is compiled by NVRTC, and run on the host and compared with plain loops.

#![expect(clippy::print_stdout, reason = "tests that say how far results are apart")]

mod attention;
mod draws;
mod emit;
mod host;
mod int8;
mod nvrtc;
mod twins;
mod values;
