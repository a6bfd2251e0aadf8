//! The coordinator: the shell round the inert core.
//!
//! [`Driver`] turns everything that happens into inputs of `rallrec_core::run`, journals the events that follow, and
//! performs what the state owes. [`cluster`] leads a cluster with one driver a run. It deliberately decides nothing itself: when to retry, what may start and how a run
//! ends is the core's. It computes nothing either, so it does not know stages or Burn.

mod clock;
pub mod cluster;
mod driver;
pub mod gc;
mod logs;
mod ports;
mod turn;

pub use clock::{Clock, SystemClock};
pub use driver::{Capacity, Control, Driver, DriverError, Notice, Observer, RunEnd, Settings, replay};
pub use logs::{LogError, LogReader};
pub use ports::{Artifacts, Journal};
