//! `wait`: passes rows on after a while, for trying and measuring a cluster.

use crate::{Columns, InputReader, OutputWriter, Stage, StageContext, StageError};
use rallrec_core::{params::WaitParams, task::Progress};
use std::time::{Duration, Instant};

/// How often a waiting task looks whether it should stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Stage for WaitParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let until = Instant::now() + Duration::from_millis(u64::from(self.milliseconds));
        let batch = inputs.table("rows", Columns::All)?;
        loop {
            context.cancel.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
        let done = batch.num_rows() as u64;
        context.progress.report(Progress { done, total: done, ..Progress::default() });
        output.write("rows", batch)
    }
}
