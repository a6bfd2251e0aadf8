//! What a worker is at: written by its slots, read for its beats, and the place where single attempts are stopped.

use rallrec_core::{
    fleet::{AtWork, AttemptName},
    ids::{Attempt, RunId, TaskId},
    task::{Progress, TaskOffer},
};
use rallrec_stages::Cancel;
use std::{
    collections::{BTreeMap, btree_map},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

type Task = (RunId, TaskId);

#[derive(Debug)]
struct UnderWay {
    attempt: Attempt,
    progress: Progress,
    cancel: Cancel,
}

/// Attempts under way, one a task at most. Clones are the same board.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<Task, UnderWay>>>);

impl Board {
    /// Everything that is under way.
    pub fn at_work(&self) -> Vec<AtWork> {
        let entry = |((run, task), under_way): (&Task, &UnderWay)| AtWork {
            run: run.clone(),
            task: *task,
            attempt: under_way.attempt,
            progress: under_way.progress.clone(),
        };
        self.lock().iter().map(entry).collect()
    }

    /// An attempt begins; it is under way until the entry is dropped. Its cancel flag is set by [`Self::stop`], or with
    /// `all`. `None` when an attempt at the task is under way already: a second one here would help nobody.
    pub(crate) fn enter(&self, offer: &TaskOffer, all: &Cancel) -> Option<Entry> {
        let task = (offer.run.clone(), offer.task);
        let cancel = all.part();
        match self.lock().entry(task.clone()) {
            btree_map::Entry::Occupied(_) => return None,
            btree_map::Entry::Vacant(vacant) => vacant.insert(UnderWay {
                attempt: offer.attempt,
                progress: Progress::default(),
                cancel: cancel.clone(),
            }),
        };
        Some(Entry { board: self.clone(), task, cancel })
    }

    /// Stops those of these attempts that are under way, each at its next look at its cancel flag.
    pub(crate) fn stop(&self, names: &[AttemptName]) {
        let board = self.lock();
        for name in names {
            let under_way = board.get(&(name.run.clone(), name.task)).filter(|u| u.attempt == name.attempt);
            if let Some(under_way) = under_way.filter(|under_way| !under_way.cancel.is_set()) {
                tracing::info!(run = %name.run, task = %name.task, attempt = %name.attempt, "stopped: the task is done");
                under_way.cancel.set();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Task, UnderWay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt on the board.
pub(crate) struct Entry {
    board: Board,
    task: Task,
    cancel: Cancel,
}

impl Entry {
    pub(crate) fn progress(&self, progress: Progress) {
        if let Some(under_way) = self.board.lock().get_mut(&self.task) {
            under_way.progress = progress;
        }
    }

    /// Set when the attempt should stop.
    pub(crate) fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.board.lock().remove(&self.task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::{
        ids::StageName,
        key::{Key, KeyFields},
        kind::StageKind,
    };

    fn offer(shard: u32, attempt: u32) -> TaskOffer {
        TaskOffer {
            run: RunId("r".into()),
            task: TaskId { stage: 1, shard },
            attempt: Attempt(attempt),
            key: Key("k".into()),
            stage: StageName("s".into()),
            kind: StageKind::Wait,
            params: serde_json::Value::Null,
            seed: 0,
            model: None,
            data: None,
            max_bad_rows: 0,
            rows: None,
            inputs: Vec::new(),
            fields: KeyFields::default(),
        }
    }

    #[test]
    fn a_task_is_on_the_board_once() {
        let (board, all) = (Board::default(), Cancel::default());
        let first = board.enter(&offer(0, 1), &all);
        assert!(first.is_some());
        assert!(board.enter(&offer(0, 2), &all).is_none() && board.enter(&offer(0, 1), &all).is_none());
        assert!(board.enter(&offer(1, 1), &all).is_some(), "another task");
        drop(first);
        assert!(board.enter(&offer(0, 2), &all).is_some());
        assert_eq!(board.at_work(), []);
    }

    #[test]
    fn one_attempt_is_stopped_or_all_are() {
        let (board, all) = (Board::default(), Cancel::default());
        let entries = [0, 1].map(|shard| board.enter(&offer(shard, 2), &all).expect("the board is empty"));
        let stopped = || entries.each_ref().map(|entry| entry.cancel().is_set());
        let name = |shard, attempt| AttemptName {
            run: RunId("r".into()),
            task: TaskId { stage: 1, shard },
            attempt: Attempt(attempt),
        };
        board.stop(&[name(0, 1), name(7, 2)]);
        assert_eq!(stopped(), [false, false], "another attempt, another task");
        board.stop(&[name(1, 2)]);
        assert_eq!(stopped(), [false, true]);
        all.set();
        assert_eq!(stopped(), [true, true]);
    }
}
