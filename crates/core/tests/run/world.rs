//! A world for a run to live in: a store, workers that lag, fail and die, messages that are lost, doubled and
//! reordered, and crashes between any two events. Everything that goes in is drawn by the caller.

use crate::plans::Case;
use rallrec_core::{
    ids::{Attempt, RunId, TaskId, TimeMs, WorkerId},
    key::Key,
    kind::Mode,
    lane::Slots,
    run::{Effect, Event, Input, JournalRecord, Phase, RunOutcome, RunState, Snapshot, TaskState, apply, decide, owed},
    task::{ArtifactSummary, FailureClass, Outcome, TaskOffer, TaskReport},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub(crate) struct World {
    pub(crate) case: Case,
    pub(crate) state: RunState,
    pub(crate) journal: Vec<Event>,
    pub(crate) store: BTreeMap<Key, ArtifactSummary>,
    pub(crate) offers: Vec<TaskOffer>,
    pub(crate) claimed: Vec<(TaskOffer, WorkerId)>,
    pub(crate) inbox: Vec<Input>,
    pub(crate) now: u64,
    /// Crash after this many events of the next decision.
    pub(crate) cut_after: Option<usize>,
    workers: u32,
    finished: BTreeSet<TaskId>,
    last_attempt: BTreeMap<TaskId, Attempt>,
    /// Tasks for which an attempt that was given up committed; they may be under way again when it does.
    raced: BTreeSet<TaskId>,
}

impl World {
    pub(crate) fn new(case: Case) -> Self {
        let state = RunState::new(RunId("r".into()), Arc::new(case.plan.clone())).unwrap();
        let mut world = Self {
            case,
            state,
            journal: Vec::new(),
            store: BTreeMap::new(),
            offers: Vec::new(),
            claimed: Vec::new(),
            inbox: Vec::new(),
            now: 1,
            cut_after: None,
            workers: 0,
            finished: BTreeSet::new(),
            last_attempt: BTreeMap::new(),
            raced: BTreeSet::new(),
        };
        world.tell(Input::Start);
        world
    }

    /// Decides, journals, applies; dies on the way when told so.
    pub(crate) fn tell(&mut self, input: Input) {
        let events = match decide(&self.state, input, TimeMs(self.now)) {
            Ok(events) => events,
            Err(rejection) => return assert!(rejection.is_harmless(), "{rejection}"),
        };
        let cut = self.cut_after.take_if(|_| !self.journal.is_empty());
        for (position, event) in events.into_iter().enumerate() {
            if cut == Some(position) {
                return self.crash();
            }
            self.check_event(&event);
            apply(&mut self.state, &event).unwrap_or_else(|e| panic!("{e}: {event:?}"));
            if let Event::TaskDispatched { task, .. } = event {
                self.check_inputs(task);
            }
            self.journal.push(event);
        }
    }

    fn check_event(&mut self, event: &Event) {
        match event {
            Event::TaskDispatched { task, key, attempt, .. } => {
                assert!(!self.finished.contains(task), "{task} was done and is dispatched again");
                assert!(
                    self.raced.contains(task) || !self.store.contains_key(key),
                    "{task} is in the store and is dispatched"
                );
                let before = self.last_attempt.insert(*task, *attempt);
                assert!(before.is_none_or(|b| b < *attempt), "attempts of {task} must rise");
            }
            Event::TaskCommitted { task, .. } | Event::TaskReused { task, .. } => {
                assert!(self.finished.insert(*task), "{task} became done twice");
                assert!(self.store.contains_key(self.state.key(*task).unwrap()));
            }
            _ => {}
        }
    }

    /// Every input shard is in the store, and together they hold the rows that the task reads.
    fn check_inputs(&self, task: TaskId) {
        let offer = self.state.offer(task).unwrap();
        for input in &offer.inputs {
            for shard in input.shards.iter() {
                assert!(self.store.contains_key(&shard.key), "{task} was dispatched before {}", input.stage);
            }
            let rows: Vec<_> = input.shards.iter().filter_map(|s| s.rows).collect();
            assert!(rows.windows(2).all(|w| w[0].end == w[1].start), "input shards must adjoin: {rows:?}");
            if let (Some(want), Some(first), Some(last), true) =
                (offer.rows, rows.first(), rows.last(), input.mode != Mode::Whole)
            {
                assert!(first.start <= want.start && want.end <= last.end, "{want} is not within {rows:?}");
                assert!(
                    want.is_empty() || (rows.iter().all(|r| r.overlaps(&want))),
                    "{want} needs not all of {rows:?}"
                );
            }
        }
    }

    /// The process dies; what is journaled is read back, through the bytes, and goes on.
    pub(crate) fn crash(&mut self) {
        let bytes = JournalRecord::new(self.journal.clone()).encode().unwrap();
        self.journal = JournalRecord::decode(&bytes).unwrap().events;
        let replayed = RunState::replay(&self.journal).unwrap();
        assert_eq!(replayed, self.state, "replay must give the same state");
        assert!(owed(&replayed).eq(owed(&self.state)));
        let snapshot = Snapshot::decode(&replayed.snapshot().encode().unwrap()).unwrap();
        assert_eq!(RunState::restore(snapshot).unwrap(), replayed, "a snapshot stands for the events before it");
        self.state = replayed;
        self.tell(Input::Resume);
    }

    /// Another coordinator reads the journal and goes on; offers, workers and messages are still there.
    pub(crate) fn take_over(&mut self) {
        self.cut_after = None;
        self.state = RunState::replay(&self.journal).unwrap();
        let running = |state: &RunState, task| Some((task, state.running(task)?.clone()));
        let before: Vec<_> = self.tasks().filter_map(|task| running(&self.state, task)).collect();
        self.tell(Input::TakeOver);
        let after: Vec<_> = self.tasks().filter_map(|task| running(&self.state, task)).collect();
        assert_eq!(before, after, "nobody's work is touched");
    }

    pub(crate) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Finish { .. } => self.tell(Input::Finish),
            Effect::Dispatch { task, .. } => self.offers.extend(self.state.offer(task)),
            Effect::Probe { task, after } => {
                let found = self.store.get(self.state.key(task).unwrap()).cloned();
                self.inbox.push(Input::Probed { task, after, found });
            }
        }
    }

    pub(crate) fn claim(&mut self, offer: TaskOffer) {
        self.workers += 1;
        let worker = WorkerId(format!("w{}", self.workers));
        self.inbox.push(report(&offer, &worker, Outcome::Started));
        self.claimed.push((offer, worker));
    }

    /// A worker's output reaches the store, if it is the first.
    pub(crate) fn commit(&mut self, offer: &TaskOffer, worker: &WorkerId) -> Input {
        let current = self.state.running(offer.task).map(|r| r.attempt);
        if current != Some(offer.attempt) {
            self.raced.insert(offer.task);
        }
        let rows = match offer.rows {
            Some(rows) => [("a".to_string(), rows.len())].into(),
            None => self.case.tables[offer.task.stage as usize].clone(),
        };
        let summary = ArtifactSummary { rows, bytes: 1, seconds: 0.1, bad_rows: 0 };
        let first = !self.store.contains_key(&offer.key);
        self.store.entry(offer.key.clone()).or_insert(summary.clone());
        report(offer, worker, Outcome::Committed { summary, first })
    }

    pub(crate) fn fail(&mut self, offer: &TaskOffer, worker: &WorkerId, class: FailureClass) {
        self.inbox.push(report(offer, worker, Outcome::Failed { class, message: "drawn".into() }));
    }

    /// From here on everything goes well; the run must end, done.
    pub(crate) fn settle(&mut self) {
        self.cut_after = None;
        for _ in 0..10_000 {
            match self.state.phase() {
                Phase::Finished(RunOutcome::Done) => return,
                Phase::Finished(_) => self.tell(Input::Resume),
                Phase::Created | Phase::Active | Phase::Cancelling => {}
            }
            for input in std::mem::take(&mut self.inbox) {
                self.tell(input);
            }
            for effect in owed(&self.state).collect::<Vec<_>>() {
                self.perform(effect);
            }
            for offer in std::mem::take(&mut self.offers) {
                self.claim(offer);
            }
            for (offer, worker) in std::mem::take(&mut self.claimed) {
                let report = self.commit(&offer, &worker);
                self.inbox.push(report);
            }
            // Workers that died without a word.
            let silent: BTreeSet<WorkerId> =
                self.tasks().filter_map(|t| self.state.running(t)?.worker.clone()).collect();
            if self.inbox.is_empty() {
                silent.into_iter().for_each(|worker| self.tell(Input::WorkerLost { worker }));
            }
            for lane in self.state.lanes().to_vec() {
                self.tell(Input::Capacity { slots: Slots::Lane(lane), free: 3 });
            }
            self.now += 300_001;
        }
        panic!("the run does not end: {:#?}", self.state.view());
    }

    pub(crate) fn tasks(&self) -> impl Iterator<Item = TaskId> + '_ {
        (0..self.case.plan.stages.len() as u32).flat_map(|stage| {
            let shards = self.state.shards(stage).map_or(0, |s| s.count() as u32);
            (0..shards).map(move |shard| TaskId { stage, shard })
        })
    }

    /// What is owed and who may run, worked out from the tasks alone, must be what the indexes say.
    pub(crate) fn check_against_scan(&self) {
        let active = self.state.phase() == Phase::Active;
        let mut expected = BTreeSet::new();
        for task in self.tasks() {
            match self.state.task(task).unwrap() {
                TaskState::Unprobed(_) if active => {
                    expected.insert(Effect::Probe { task, after: self.state.attempts(task).unwrap() });
                }
                TaskState::Running(r) if r.worker.is_none() => {
                    expected.insert(Effect::Dispatch { task, attempt: r.attempt });
                }
                TaskState::Ready(_) => assert!(self.inputs_done(task), "{task} is ready too early"),
                TaskState::Blocked => assert!(!self.inputs_done(task), "{task} is blocked by nothing"),
                _ => {}
            }
        }
        let owed: BTreeSet<Effect> = owed(&self.state).filter(|e| !matches!(e, Effect::Finish { .. })).collect();
        assert_eq!(owed, expected);
    }

    fn inputs_done(&self, task: TaskId) -> bool {
        let rows = self.state.shards(task.stage).unwrap().range(task.shard);
        self.case.plan.stages[task.stage as usize].needs.iter().all(|need| {
            let Some(source) = self.state.shards(need.stage) else { return false };
            (0..source.count() as u32).all(|shard| {
                let (id, held) = (TaskId { stage: need.stage, shard }, source.range(shard));
                let read = match (rows, held) {
                    _ if need.mode == Mode::Whole => true,
                    (Some(rows), Some(held)) => rows.overlaps(&held) || (rows.is_empty() && shard == 0),
                    _ => true,
                };
                !read || matches!(self.state.task(id), Some(TaskState::Done(_)))
            })
        })
    }

    /// After the end: shards tile each stage's rows, and everything is in the store.
    pub(crate) fn check_end(&self) {
        for (position, stage) in self.case.plan.stages.iter().enumerate() {
            let shards = self.state.shards(position as u32).unwrap();
            assert_eq!(shards.rows(), self.case.rows[position], "rows of {}", stage.name);
            if let Some(rows) = shards.rows() {
                let ranges: Vec<_> = (0..shards.count() as u32).filter_map(|s| shards.range(s)).collect();
                assert_eq!(ranges, stage.shards(rows));
                assert_eq!(ranges.iter().map(|r| r.len()).sum::<u64>(), rows);
                assert!(ranges.windows(2).all(|w| w[0].end == w[1].start));
                assert_eq!(self.state.view().stages[position].rows_done, rows);
            }
        }
        assert!(self.tasks().all(|t| self.store.contains_key(self.state.key(t).unwrap())));
        assert!(self.state.view().stages.iter().all(|s| s.tasks == Some(s.done) && s.error.is_none()));
        assert_eq!(owed(&self.state).count(), 0);
    }
}

pub(crate) fn report(offer: &TaskOffer, worker: &WorkerId, outcome: Outcome) -> Input {
    Input::Report(TaskReport {
        run: offer.run.clone(),
        task: offer.task,
        attempt: offer.attempt,
        worker: worker.clone(),
        outcome,
    })
}
