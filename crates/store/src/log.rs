//! What tasks logged, kept beside the run's journal: JSON lines in files that are put once and never changed, under
//! `runs/RUN/logs/STAGE/SHARD/ATTEMPT/NUMBER.jsonl`. Whoever follows a run's log lists the folder again and reads the
//! files that are new.
//!
//! Deliberately not here: what is logged, how often it is put, and live lines, which travel on the queue's side.

use crate::{Store, StoreError, run_path};
use futures::TryStreamExt;
use object_store::path::Path;
use rallrec_core::ids::{Attempt, RunId, StageName, TimeMs};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Format of a line.
const VERSION: u32 = 1;

/// Names tried for a file that another writer of the same attempt has taken: a message that is delivered twice makes
/// two.
const TRIES: u64 = 1000;

/// One line of a task's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Format of this record.
    #[serde(rename = "v")]
    pub version: u32,
    /// Its place among the lines that `worker` wrote in this attempt, from 0.
    pub n: u64,
    /// When.
    pub at: TimeMs,
    /// `ERROR`, `WARN` or `INFO`.
    pub level: String,
    /// Module that said it.
    pub target: String,
    /// What it said.
    pub message: String,
    /// Named values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, serde_json::Value>,
    /// The worker's name.
    pub worker: String,
}

impl LogLine {
    /// Format that this version writes.
    pub const VERSION: u32 = VERSION;

    /// One line of JSON, with its line break.
    pub fn encode(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("a record of text and JSON values is JSON");
        line.push(b'\n');
        line
    }

    /// The lines of [`Self::encode`]; those of a newer version, and what is no line, are passed over.
    pub fn decode_all(bytes: &[u8]) -> Vec<Self> {
        let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let read = lines.filter_map(|line| serde_json::from_slice::<Self>(line).ok());
        read.filter(|line| line.version == VERSION).collect()
    }
}

/// Whose log it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogPlace {
    /// The stage.
    pub stage: StageName,
    /// Position of the shard in its stage.
    pub shard: u32,
    /// The attempt.
    pub attempt: Attempt,
}

/// Which tasks' logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Of this stage only.
    pub stage: Option<StageName>,
    /// Of this shard only.
    pub shard: Option<u32>,
}

impl LogFilter {
    /// Whether a task's log is wanted.
    pub fn wants(&self, stage: &StageName, shard: u32) -> bool {
        self.stage.as_ref().is_none_or(|wanted| wanted == stage) && self.shard.is_none_or(|wanted| wanted == shard)
    }
}

impl Store {
    /// Puts lines of an attempt's log as its file `number`, or the next one that is free. Gives the number after it.
    ///
    /// # Errors
    /// When the store cannot be reached or is full.
    pub async fn put_log(&self, run: &RunId, place: &LogPlace, number: u64, lines: &[u8]) -> Result<u64, StoreError> {
        let mut refused = None;
        for number in number..number + TRIES {
            match self.create(&path(run, place, number), lines.to_vec()).await {
                Ok(()) => return Ok(number + 1),
                Err(conflict @ StoreError::Conflict { .. }) => refused = Some(conflict),
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or(StoreError::Conflict { path: path(run, place, number).to_string() }))
    }
}

/// Reads a run's stored log as it grows: every line once.
#[derive(Debug)]
pub struct LogTail {
    store: Store,
    run: RunId,
    filter: LogFilter,
    /// Order of the stages; others come after them.
    stages: Vec<StageName>,
    read: BTreeSet<Path>,
    seen: BTreeMap<(LogPlace, String), Seen>,
}

/// Lines of one writer that were told: all below a number, and some after it.
#[derive(Debug, Default)]
struct Seen {
    below: u64,
    after: BTreeSet<u64>,
}

impl Seen {
    fn is_new(&mut self, n: u64) -> bool {
        if n < self.below || !self.after.insert(n) {
            return false;
        }
        while self.after.remove(&self.below) {
            self.below += 1;
        }
        true
    }
}

impl LogTail {
    /// The log of `run`, as far as `filter` wants it; tasks are told in the order of `stages`.
    pub fn new(store: Store, run: RunId, filter: LogFilter, stages: Vec<StageName>) -> Self {
        Self { store, run, filter, stages, read: BTreeSet::new(), seen: BTreeMap::new() }
    }

    /// Files that were put since it was last asked: by stage, shard and attempt, each attempt's in order.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn new_files(&mut self) -> Result<Vec<LogFile>, StoreError> {
        let folder = self.folder();
        let listed = self.store.objects.list(Some(&folder)).try_collect::<Vec<_>>().await;
        let listed = listed.map_err(|e| StoreError::object("list", folder.as_ref(), e))?;
        let mut files = Vec::new();
        for path in listed.into_iter().map(|object| object.location) {
            let Some((place, number)) = place_of(&path) else { continue };
            if self.filter.wants(&place.stage, place.shard) && self.read.insert(path.clone()) {
                let stage = self.stages.iter().position(|s| *s == place.stage).unwrap_or(usize::MAX);
                files.push(((stage, place.clone(), number), LogFile { place, path }));
            }
        }
        files.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(files.into_iter().map(|(_, file)| file).collect())
    }

    /// The lines of a file, without those that were told.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn lines(&mut self, file: &LogFile) -> Result<Vec<LogLine>, StoreError> {
        let bytes = self.store.get(&file.path).await?.unwrap_or_default();
        Ok(self.heard(&file.place, &bytes))
    }

    /// Lines that came another way, live, without those that were told or are not wanted.
    pub fn heard(&mut self, place: &LogPlace, bytes: &[u8]) -> Vec<LogLine> {
        if !self.filter.wants(&place.stage, place.shard) {
            return Vec::new();
        }
        let mut lines = LogLine::decode_all(bytes);
        lines.retain(|line| self.seen.entry((place.clone(), line.worker.clone())).or_default().is_new(line.n));
        lines
    }

    fn folder(&self) -> Path {
        let folder = run_path(&self.run, "logs");
        match (&self.filter.stage, self.filter.shard) {
            (Some(stage), Some(shard)) => folder.join(stage.0.as_str()).join(shard.to_string()),
            (Some(stage), None) => folder.join(stage.0.as_str()),
            (None, _) => folder,
        }
    }
}

/// A file of an attempt's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// Whose.
    pub place: LogPlace,
    path: Path,
}

fn path(run: &RunId, place: &LogPlace, number: u64) -> Path {
    let folder = run_path(run, "logs").join(place.stage.0.as_str()).join(place.shard.to_string());
    folder.join(place.attempt.to_string()).join(format!("{number:06}.jsonl"))
}

/// The inverse of [`path`].
fn place_of(path: &Path) -> Option<(LogPlace, u64)> {
    let parts: Vec<_> = path.parts().collect();
    let [_, _, _, stage, shard, attempt, file] = parts.as_slice() else { return None };
    let number = file.as_ref().strip_suffix(".jsonl")?.parse().ok()?;
    let (shard, attempt) = (shard.as_ref().parse().ok()?, Attempt(attempt.as_ref().parse().ok()?));
    Some((LogPlace { stage: StageName(stage.as_ref().to_owned()), shard, attempt }, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: u64, message: &str) -> LogLine {
        LogLine {
            version: VERSION,
            n,
            at: TimeMs(7),
            level: "WARN".into(),
            target: "rallrec_worker::output".into(),
            message: message.into(),
            fields: [("row".to_owned(), serde_json::json!(3)), ("p".to_owned(), serde_json::json!(0.1))].into(),
            worker: "w-1".into(),
        }
    }

    fn place(stage: &str, shard: u32, attempt: u32) -> LogPlace {
        LogPlace { stage: StageName(stage.into()), shard, attempt: Attempt(attempt) }
    }

    /// Logs outlive the program that wrote them: this line must stay readable.
    #[test]
    fn a_line_reads_back_and_the_format_stays() {
        let written = line(0, "two\nlines");
        let text = r#"{"v":1,"n":0,"at":7,"level":"WARN","target":"rallrec_worker::output","message":"two\nlines","fields":{"p":0.1,"row":3},"worker":"w-1"}"#;
        assert_eq!(String::from_utf8(written.encode()).unwrap(), format!("{text}\n"));
        let damaged = [text.as_bytes(), b"\n{\"v\":2}\ncut", &line(1, "x").encode()].concat();
        assert_eq!(LogLine::decode_all(&damaged), [written], "what is no line is passed over");
    }

    #[tokio::test]
    async fn a_tail_tells_every_file_once_in_the_plan_s_order() {
        let (store, run) = (Store::memory(), RunId("r".into()));
        let stages: Vec<_> = ["score", "embed"].map(|s| StageName(s.into())).into();
        let mut tail = LogTail::new(store.clone(), run.clone(), LogFilter::default(), stages.clone());
        assert!(tail.new_files().await.unwrap().is_empty());
        for place in [place("embed", 0, 1), place("score", 10, 1), place("score", 2, 2), place("score", 2, 1)] {
            assert_eq!(store.put_log(&run, &place, 0, &line(0, "a").encode()).await.unwrap(), 1);
        }
        let places = |files: Vec<LogFile>| files.into_iter().map(|file| file.place).collect::<Vec<_>>();
        let all = [place("score", 2, 1), place("score", 2, 2), place("score", 10, 1), place("embed", 0, 1)];
        assert_eq!(places(tail.new_files().await.unwrap()), all);
        // Another writer of the same attempt has the number.
        let other = [line(0, "b").encode(), line(1, "c").encode(), line(2, "d").encode()].concat();
        assert_eq!(store.put_log(&run, &place("embed", 0, 1), 0, &other).await.unwrap(), 2);
        let new = tail.new_files().await.unwrap();
        assert_eq!(tail.heard(&place("embed", 0, 1), &line(1, "c").encode()), [line(1, "c")]);
        assert_eq!(
            tail.lines(&new[0]).await.unwrap(),
            [line(0, "b"), line(2, "d")],
            "what came live is not told again"
        );
        assert_eq!((new.len(), tail.heard(&place("embed", 0, 1), &other)), (1, vec![]));
        let filter = LogFilter { stage: Some(StageName("score".into())), shard: Some(2) };
        let mut tail = LogTail::new(store, run, filter, stages);
        assert_eq!(places(tail.new_files().await.unwrap()), all[..2]);
    }
}
