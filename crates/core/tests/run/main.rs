//! The run state machine from outside: single rules, properties over random worlds, and cost at scale.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail where it stands")]

mod plans;
mod policies;
mod properties;
mod rooms;
mod stragglers;
mod world;
