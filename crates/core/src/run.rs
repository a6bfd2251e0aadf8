//! The run state machine: which tasks of a plan are done, running or owed, moved only by events.
//!
//! - [`decide`] turns an input (a report, a probe's answer, free slots) into events, or names why it does not count;
//! - [`apply`] moves the state by one event, and is the only thing that does;
//! - [`owed`] lists what the world still has to do for this state.
//!
//! The caller journals events before it performs anything that follows from them. After a crash
//! [`RunState::replay`] gives the same state, [`Input::Resume`] says that the workers are gone, and [`owed`] goes
//! on from there: there is no second path. Any prefix of the events is a state that can be resumed. A [`Snapshot`] stands
//! for the events before it.
//!
//! Choices, simplest correct rule first:
//! - every stage of the plan is made present, also one whose consumers all are present already;
//! - every attempt is preceded by a probe of the store, so nothing that is committed is computed again: a task whose
//!   attempt ended without a result is probed anew, because the artifact may be there although its report is lost
//!   (all but the second attempt beside one that takes too long: that would end it, if it had committed);
//! - a task that failed for good fails the run, but only at its end: whatever does not depend on it is still made.
//!
//! Time comes in as an argument and jitter comes from the task's key. Deliberately not here: performing, waiting,
//! journaling (the coordinator's), leases and placement on machines.

mod apply;
mod decide;
mod event;
mod graph;
mod handout;
mod offer;
mod owed;
mod record;
mod retry;
mod rooms;
mod shards;
mod snapshot;
mod state;
mod straggler;
mod task;
mod view;

pub use apply::{IllegalTransition, apply};
pub use decide::{Input, Rejection, decide};
pub use event::{Event, Next, RunOutcome};
pub use graph::PlanDefect;
pub use owed::{Effect, owed};
pub use record::{JournalRecord, RecordError};
pub use retry::{MAX_BACKOFF_MS, MAX_LOSSES, MAX_OUTAGES};
pub use shards::{MAX_SHARDS, Shards};
pub use snapshot::Snapshot;
pub use state::{Phase, ReplayError, RunState};
pub use straggler::{STRAGGLER_FLOOR_MS, Suspect};
pub use task::{Begun, Done, Doubled, Failed, Ready, Running, TaskState, Unprobed};
pub use view::{RunView, StageView, TaskError};
