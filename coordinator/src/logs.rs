//! A run's log as somebody reads it: what is kept, in the order of the plan, and what comes while the run goes on.

use rallrec_core::{
    ids::{RunId, StageName},
    plan::Plan,
    run::{Event, JournalRecord},
};
use rallrec_queue::OfferName;
use rallrec_store::{LogFile, LogFilter, LogLine, LogPlace, LogTail, Records, Store, StoreError};

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No such run.
    #[error("there is no run {0} in the store, or its plan is of another version")]
    NoRun(RunId),
    /// No such stage.
    #[error("run {run} has no stage `{stage}`; it has {known}")]
    NoStage {
        /// The run.
        run: RunId,
        /// What was asked for.
        stage: StageName,
        /// The stages that it has.
        known: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads one run's log.
pub struct LogReader {
    tail: LogTail,
    stages: Vec<StageName>,
    records: Records,
    /// Whether the journal was read once.
    begun: bool,
    ended: bool,
}

impl LogReader {
    /// Opens the log of a run, as far as `filter` wants it.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn open(store: &Store, run: &RunId, filter: LogFilter) -> Result<Self, LogError> {
        let plan = store.run_file(run, "plan.json").await?;
        let plan: Option<Plan> = plan.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let plan = plan.ok_or_else(|| LogError::NoRun(run.clone()))?;
        let stages: Vec<StageName> = plan.stages.into_iter().map(|stage| stage.name).collect();
        if let Some(stage) = filter.stage.as_ref().filter(|stage| !stages.contains(stage)) {
            let known = stages.iter().map(|s| s.0.as_str()).collect::<Vec<_>>().join(", ");
            return Err(LogError::NoStage { run: run.clone(), stage: stage.clone(), known });
        }
        let records = Records::of_run(store.clone(), run, "reader");
        let tail = LogTail::new(store.clone(), run.clone(), filter, stages.clone());
        Ok(Self { tail, stages, records, begun: false, ended: false })
    }

    /// Files that are new, and whether nothing will follow them: the run had ended before they were listed.
    ///
    /// # Errors
    /// When the store cannot be reached, or the run's journal is damaged.
    pub async fn look(&mut self) -> Result<(Vec<LogFile>, bool), StoreError> {
        let new = if self.begun { self.records.follow().await? } else { self.records.replay().await? };
        self.begun = true;
        if let Some(last) = new.last() {
            self.ended = JournalRecord::decode(last)
                .is_ok_and(|record| matches!(record.events.last(), Some(Event::RunFinished { .. })));
        }
        Ok((self.tail.new_files().await?, self.ended))
    }

    /// The lines of a file, without those that were told.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn lines(&mut self, file: &LogFile) -> Result<Vec<LogLine>, StoreError> {
        self.tail.lines(file).await
    }

    /// Lines that came live, without those that were told or are not wanted.
    pub fn heard(&mut self, name: OfferName, bytes: &[u8]) -> Option<(LogPlace, Vec<LogLine>)> {
        let stage = self.stages.get(name.task.stage as usize)?.clone();
        let place = LogPlace { stage, shard: name.task.shard, attempt: name.attempt };
        let lines = self.tail.heard(&place, bytes);
        Some((place, lines))
    }
}
