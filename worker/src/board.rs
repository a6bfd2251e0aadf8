//! What a worker is at: written by its slots, read for its beats.

use rallrec_core::{
    fleet::AtWork,
    ids::{Attempt, RunId, TaskId},
    task::{Progress, TaskOffer},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

type Name = (RunId, TaskId, Attempt);

/// Attempts under way. Clones are the same board.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<Name, Progress>>>);

impl Board {
    /// Everything that is under way.
    pub fn at_work(&self) -> Vec<AtWork> {
        let entry = |((run, task, attempt), progress): (&Name, &Progress)| AtWork {
            run: run.clone(),
            task: *task,
            attempt: *attempt,
            progress: progress.clone(),
        };
        self.lock().iter().map(entry).collect()
    }

    /// An attempt begins; it is under way until the entry is dropped.
    pub(crate) fn enter(&self, offer: &TaskOffer) -> Entry {
        let name = (offer.run.clone(), offer.task, offer.attempt);
        self.lock().insert(name.clone(), Progress::default());
        Entry { board: self.clone(), name }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Progress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt on the board.
pub(crate) struct Entry {
    board: Board,
    name: Name,
}

impl Entry {
    pub(crate) fn progress(&self, progress: Progress) {
        if let Some(entry) = self.board.lock().get_mut(&self.name) {
            *entry = progress;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.board.lock().remove(&self.name);
    }
}
