//! The journal's record: the events of one group commit, with a version.

use super::Event;
use serde::{Deserialize, Serialize};

/// One record of a run's journal: events that became durable together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalRecord {
    /// Format of this record.
    pub version: u32,
    /// What happened, in order.
    pub events: Vec<Event>,
}

/// A journal record that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The bytes are not a record.
    #[error(
        "journal record cannot be read: {0}; the journal is damaged, start a new run (finished artifacts are reused)"
    )]
    Malformed(#[from] serde_json::Error),
    /// A newer program wrote it.
    #[error(
        "journal record has version {found}, this program reads {reads}: use the newer program, or start a new run"
    )]
    Version {
        /// The record's version.
        found: u32,
        /// The version that this program reads.
        reads: u32,
    },
}

impl JournalRecord {
    /// Version that this program writes.
    pub const VERSION: u32 = 1;

    /// A record of these events.
    pub fn new(events: Vec<Event>) -> Self {
        Self { version: Self::VERSION, events }
    }

    /// The record as one line of JSON.
    ///
    /// # Errors
    /// When an event holds a number that JSON cannot (none does).
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads [`Self::encode`]'s bytes.
    ///
    /// # Errors
    /// When the bytes are damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        RecordError::check_version(bytes, Self::VERSION)?;
        Ok(serde_json::from_slice(bytes)?)
    }
}

impl RecordError {
    /// Refuses JSON whose `version` is another one.
    pub(super) fn check_version(bytes: &[u8], reads: u32) -> Result<(), Self> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let Head { version: found } = serde_json::from_slice(bytes)?;
        if found == reads { Ok(()) } else { Err(Self::Version { found, reads }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Attempt, RunId, TaskId, TimeMs, WorkerId},
        key::Key,
        lane::Room,
        plan::Plan,
        run::{Next, RunOutcome},
        task::{ArtifactSummary, FailureClass},
    };
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        let task = (any::<u32>(), any::<u32>()).prop_map(|(stage, shard)| TaskId { stage, shard });
        let summary =
            (proptest::collection::btree_map("[a-z]{1,5}", any::<u64>(), 0..3), any::<u64>(), 0u32..1_000_000)
                .prop_map(|(rows, bytes, millis)| ArtifactSummary {
                    rows,
                    bytes,
                    seconds: f64::from(millis) / 1000.0,
                    bad_rows: 1,
                });
        let class = prop_oneof![
            Just(FailureClass::Transient),
            Just(FailureClass::Resource),
            Just(FailureClass::Permanent),
            Just(FailureClass::Lost),
            Just(FailureClass::Unavailable)
        ];
        let next = prop_oneof![
            any::<u64>().prop_map(|t| Next::Retry { not_before: TimeMs(t) }),
            any::<bool>().prop_map(|counts| Next::Replace { counts }),
            any::<bool>().prop_map(|counts| Next::Other { counts }),
            Just(Next::GiveUp),
        ];
        let outcome = prop_oneof![Just(RunOutcome::Done), Just(RunOutcome::Failed), Just(RunOutcome::Cancelled)];
        (task, summary, class, next, outcome, ".*", any::<u32>(), any::<u64>(), 0..14u8).prop_map(
            |(task, summary, class, next, outcome, text, n, t, which)| {
                let (at, attempt, worker, key) = (TimeMs(t), Attempt(n), WorkerId(text.clone()), Key(text.clone()));
                match which {
                    0 => Event::RunStarted {
                        run: RunId(text.clone()),
                        plan: Box::new(Plan { version: 1, pipeline: text, stages: Vec::new() }),
                        at,
                    },
                    1 => Event::RunResumed { at },
                    2 => Event::StageSharded { stage: n, rows: t },
                    3 => Event::TaskReused { task, key, summary, at },
                    4 => Event::TaskMissing { task },
                    5 => Event::TaskDispatched { task, key, attempt, at },
                    6 => Event::TaskStarted { task, attempt, worker, at },
                    7 => Event::TaskCommitted { task, attempt, worker, summary, first: n % 2 == 0, at },
                    8 => Event::TaskFailed {
                        task,
                        attempt: (n % 2 == 0).then_some(attempt),
                        class,
                        message: text,
                        next,
                        at,
                    },
                    9 => Event::CancelRequested { at },
                    10 => Event::RunTakenOver { at },
                    11 => Event::TaskDoubled { task, attempt, at },
                    12 => Event::StageOutgrown { stage: n, wanted: Room::of_mb(t, t / 2), at },
                    _ => Event::RunFinished { outcome, at },
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_record_reads_back(events in proptest::collection::vec(event(), 0..8)) {
            let record = JournalRecord::new(events);
            prop_assert_eq!(JournalRecord::decode(&record.encode().unwrap()).unwrap(), record);
        }
    }

    #[test]
    fn a_newer_record_is_refused_by_its_version() {
        let error = JournalRecord::decode(br#"{"version":2,"events":[{"event":"unheard_of"}]}"#).unwrap_err();
        assert!(matches!(error, RecordError::Version { found: 2, reads: 1 }), "{error}");
    }

    /// Journals outlive the program that wrote them: this line must stay readable.
    #[test]
    fn the_format_stays() {
        let line = br#"{"version":1,"events":[{"event":"task_dispatched","task":{"stage":1,"shard":2},"key":"ab","attempt":3,"at":4},{"event":"task_failed","task":{"stage":1,"shard":2},"attempt":3,"class":"transient","message":"m","next":{"next":"retry","not_before":9},"at":5}]}"#;
        let record = JournalRecord::decode(line).unwrap();
        assert_eq!(record.encode().unwrap(), line);
    }
}
