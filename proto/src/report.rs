//! [`TaskReport`] on the wire.

use crate::{
    WireError,
    convert::{class_in, class_out, text_in},
    v1,
};
use bytes::Bytes;
use prost::Message;
use rallrec_core::{
    ids::{Attempt, RunId, TaskId, WorkerId},
    task::{ArtifactSummary, MemoryMb, Outcome, Progress, TaskReport},
};
use v1::task_report::Outcome as Wire;

/// The report's bytes; the same for equal reports.
pub fn encode_report(report: &TaskReport) -> Bytes {
    let outcome = match &report.outcome {
        Outcome::Started => Wire::Started(v1::Started {}),
        Outcome::Progress(p) => {
            Wire::Progress(v1::Progress { done: p.done, total: p.total, tokens: p.tokens, loss: p.loss })
        }
        Outcome::Committed { summary, first } => Wire::Committed(v1::Committed {
            rows: summary.rows.clone(),
            bytes: summary.bytes,
            seconds: summary.seconds,
            bad_rows: summary.bad_rows,
            first: *first,
        }),
        Outcome::Failed { class, message, needed } => Wire::Failed(v1::Failed {
            class: class_out(*class).into(),
            message: message.clone(),
            needed_mb: needed.host,
            needed_gpu_mb: needed.gpu,
        }),
    };
    let message = v1::TaskReport {
        run: report.run.0.clone(),
        stage_index: report.task.stage,
        shard_index: report.task.shard,
        attempt: report.attempt.0,
        worker: report.worker.0.clone(),
        outcome: Some(outcome),
    };
    message.encode_to_vec().into()
}

/// Reads [`encode_report`]'s bytes.
///
/// # Errors
/// When they are not a report that this version understands.
pub fn decode_report(bytes: &[u8]) -> Result<TaskReport, WireError> {
    let message = v1::TaskReport::decode(bytes)?;
    let outcome = match message.outcome.ok_or(WireError::Missing { field: "outcome" })? {
        Wire::Started(v1::Started {}) => Outcome::Started,
        Wire::Progress(p) => {
            Outcome::Progress(Progress { done: p.done, total: p.total, tokens: p.tokens, loss: p.loss })
        }
        Wire::Committed(c) => Outcome::Committed {
            summary: ArtifactSummary { rows: c.rows, bytes: c.bytes, seconds: c.seconds, bad_rows: c.bad_rows },
            first: c.first,
        },
        Wire::Failed(f) => Outcome::Failed {
            class: class_in(f.class)?,
            message: f.message,
            needed: MemoryMb { host: f.needed_mb, gpu: f.needed_gpu_mb },
        },
    };
    Ok(TaskReport {
        run: RunId(text_in("run", message.run)?),
        task: TaskId { stage: message.stage_index, shard: message.shard_index },
        attempt: Attempt(message.attempt),
        worker: WorkerId(text_in("worker", message.worker)?),
        outcome,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rallrec_core::task::FailureClass;

    fn outcome() -> impl Strategy<Value = Outcome> {
        let progress = (any::<u64>(), any::<u64>(), any::<u64>(), proptest::option::of(-1e300..1e300f64))
            .prop_map(|(done, total, tokens, loss)| Outcome::Progress(Progress { done, total, tokens, loss }));
        let rows = proptest::collection::btree_map(".*", any::<u64>(), 0..4);
        let committed = (rows, any::<u64>(), 0.0..1e9f64, any::<u64>(), any::<bool>()).prop_map(
            |(rows, bytes, seconds, bad_rows, first)| Outcome::Committed {
                summary: ArtifactSummary { rows, bytes, seconds, bad_rows },
                first,
            },
        );
        let class = prop_oneof![
            Just(FailureClass::Transient),
            Just(FailureClass::Resource),
            Just(FailureClass::Permanent),
            Just(FailureClass::Lost),
            Just(FailureClass::Unavailable)
        ];
        let failed = (class, ".*", any::<u64>(), any::<u64>())
            .prop_map(|(class, message, host, gpu)| Outcome::Failed { class, message, needed: MemoryMb { host, gpu } });
        prop_oneof![Just(Outcome::Started), progress, committed, failed]
    }

    proptest! {
        #[test]
        fn a_report_arrives_as_it_was_sent(run in ".+", stage: u32, shard: u32, attempt: u32, worker in ".+", outcome in outcome()) {
            let report = TaskReport { run: RunId(run), task: TaskId { stage, shard }, attempt: Attempt(attempt), worker: WorkerId(worker), outcome };
            prop_assert_eq!(decode_report(&encode_report(&report)).unwrap(), report);
        }
    }

    #[test]
    fn a_report_without_an_outcome_is_refused() {
        assert!(matches!(decode_report(&[]), Err(WireError::Missing { field: "outcome" })));
    }
}
