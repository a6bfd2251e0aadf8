//! How far each stage of a run is: folded from the run's events and the workers' reports. Pure; drawing is
//! [`crate::run_view`]'s.

use crate::{clock, console::thousands};
use rallrec_core::{
    ids::{TaskId, TimeMs},
    plan::Plan,
    run::{Event, Next},
    task::Progress,
};
use std::collections::BTreeMap;

/// One stage of a run.
#[derive(Clone, Debug, Default)]
pub struct StageProgress {
    /// Its name.
    pub name: String,
    /// Whether it is cut into shards of rows.
    pub row_wise: bool,
    /// Its tasks; `None` until its input is there.
    pub tasks: Option<u64>,
    /// Tasks whose artifact was there already.
    pub reused: u64,
    /// Tasks computed.
    pub committed: u64,
    /// Tasks given up.
    pub failed: u64,
    /// Rows in all, of a row-wise stage.
    rows: Option<u64>,
    /// Rows of reused and of committed tasks.
    rows_reused: u64,
    rows_committed: u64,
    running: BTreeMap<u32, Progress>,
    started: Option<TimeMs>,
    ended: Option<TimeMs>,
}

/// What the fold noticed, for those who only print lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The stage's first task began.
    Started(usize),
    /// Every task of the stage is there.
    Complete(usize),
    /// A task of the stage was given up.
    Failed(usize),
}

impl StageProgress {
    /// Whether every task's artifact is there.
    pub fn is_complete(&self) -> bool {
        self.tasks == Some(self.reused + self.committed)
    }

    /// Whether anything of it has happened.
    pub fn is_begun(&self) -> bool {
        self.started.is_some() || self.reused > 0 || self.failed > 0
    }

    /// Units done and in all: rows, or what a single task counts (epochs, items).
    pub fn units(&self) -> (u64, u64) {
        let running: u64 = self.running.values().map(|p| p.done).sum();
        if self.row_wise {
            let total = self.rows.unwrap_or(0);
            return ((self.rows_reused + self.rows_committed + running).min(total), total);
        }
        match self.running.values().next() {
            Some(p) if !self.is_complete() => (p.done, p.total),
            _ => (u64::from(self.is_complete()), 1),
        }
    }

    /// Rows (or units) computed a second, over the time since the first task began.
    pub fn rate(&self, now: TimeMs) -> Option<f64> {
        let started = self.started?;
        let seconds = self.ended.unwrap_or(now).0.saturating_sub(started.0) as f64 / 1000.0;
        let computed =
            if self.row_wise { self.units().0 - self.rows_reused.min(self.units().0) } else { self.units().0 };
        (seconds > 0.0 && computed > 0).then(|| computed as f64 / seconds)
    }

    /// Rate, time left, reuse and loss in words.
    pub fn details(&self, now: TimeMs) -> String {
        let mut parts = Vec::new();
        let (done, total) = self.units();
        if let Some(rate) = self.rate(now).filter(|_| !self.is_complete() || self.row_wise) {
            let unit = if self.row_wise { "rows" } else { "steps" };
            parts.push(if rate >= 10.0 {
                format!("{} {unit}/s", thousands(rate.round() as u64))
            } else {
                format!("{rate:.2} {unit}/s")
            });
            if !self.is_complete() {
                parts.push(format!("ETA {}", clock::duration((total - done.min(total)) as f64 / rate)));
            }
        }
        if let Some(loss) = self.running.values().find_map(|p| p.loss) {
            parts.push(format!("loss {loss:.4}"));
        }
        let tokens: u64 = self.running.values().map(|p| p.tokens).sum();
        if tokens > 0 {
            parts.push(format!("{} tokens", thousands(tokens)));
        }
        if self.reused > 0 {
            parts.push(match self.tasks {
                Some(1) => "reused".to_owned(),
                Some(tasks) if tasks == self.reused => "all reused".to_owned(),
                Some(tasks) => format!("{} of {} tasks reused", thousands(self.reused), thousands(tasks)),
                None => format!("{} reused", thousands(self.reused)),
            });
        }
        if self.failed > 0 {
            parts.push(format!("{} failed", self.failed));
        }
        parts.join(", ")
    }

    /// What an earlier process did counts as reused from here on: rates and times are of this process.
    fn resume(&mut self) {
        self.reused += std::mem::take(&mut self.committed);
        self.rows_reused += std::mem::take(&mut self.rows_committed);
        self.running.clear();
        self.started = None;
        self.ended = None;
    }

    /// Seconds from its first task's start to its last one's end.
    pub fn seconds(&self) -> Option<f64> {
        Some(self.ended?.0.saturating_sub(self.started?.0) as f64 / 1000.0)
    }
}

/// Every stage of a run.
#[derive(Clone, Debug)]
pub struct RunProgress {
    /// In the plan's order.
    pub stages: Vec<StageProgress>,
}

impl RunProgress {
    /// Nothing done yet.
    pub fn new(plan: &Plan) -> Self {
        let stage = |s: &rallrec_core::plan::PlannedStage| StageProgress {
            name: s.name.to_string(),
            row_wise: s.drive().is_some(),
            tasks: s.drive().is_none().then_some(1),
            ..StageProgress::default()
        };
        Self { stages: plan.stages.iter().map(stage).collect() }
    }

    /// Takes in what happened. `plan` is the run's.
    pub fn event(&mut self, plan: &Plan, event: &Event) -> Option<Notice> {
        match event {
            Event::StageSharded { stage, rows } => {
                let shards = plan.stages.get(*stage as usize)?.shards(*rows).len() as u64;
                let stage = self.stages.get_mut(*stage as usize)?;
                (stage.rows, stage.tasks) = (Some(*rows), Some(shards));
                None
            }
            Event::TaskReused { task, summary, at, .. } => {
                let stage = self.stage(*task)?;
                stage.reused += 1;
                stage.rows_reused += summary.rows.values().copied().max().unwrap_or(0);
                self.complete(*task, *at)
            }
            Event::TaskStarted { task, at, .. } => {
                let stage = self.stage(*task)?;
                stage.running.insert(task.shard, Progress::default());
                let first = stage.started.is_none();
                stage.started.get_or_insert(*at);
                first.then_some(Notice::Started(task.stage as usize))
            }
            Event::TaskCommitted { task, summary, at, .. } => {
                let stage = self.stage(*task)?;
                stage.running.remove(&task.shard);
                stage.committed += 1;
                stage.rows_committed += summary.rows.values().copied().max().unwrap_or(0);
                self.complete(*task, *at)
            }
            Event::TaskFailed { next: Next::Other { .. }, .. } => None,
            Event::TaskFailed { task, next, .. } => {
                let stage = self.stage(*task)?;
                stage.running.remove(&task.shard);
                let given_up = matches!(next, Next::GiveUp);
                stage.failed += u64::from(given_up);
                given_up.then_some(Notice::Failed(task.stage as usize))
            }
            Event::RunResumed { .. } => {
                self.stages.iter_mut().for_each(StageProgress::resume);
                None
            }
            Event::RunStarted { .. }
            | Event::RunTakenOver { .. }
            | Event::TaskMissing { .. }
            | Event::TaskDispatched { .. }
            | Event::TaskDoubled { .. }
            | Event::StageOutgrown { .. }
            | Event::CancelRequested { .. }
            | Event::RunFinished { .. } => None,
        }
    }

    /// Takes in how far a running task is.
    pub fn running(&mut self, task: TaskId, progress: Progress) {
        if let Some(running) = self.stage(task).and_then(|s| s.running.get_mut(&task.shard)) {
            *running = progress;
        }
    }

    /// Tasks reused, and tasks computed, in all stages.
    pub fn totals(&self) -> (u64, u64) {
        self.stages.iter().fold((0, 0), |(reused, computed), s| (reused + s.reused, computed + s.committed))
    }

    fn stage(&mut self, task: TaskId) -> Option<&mut StageProgress> {
        self.stages.get_mut(task.stage as usize)
    }

    fn complete(&mut self, task: TaskId, at: TimeMs) -> Option<Notice> {
        let stage = self.stage(task)?;
        if !stage.is_complete() {
            return None;
        }
        stage.ended = Some(at);
        Some(Notice::Complete(task.stage as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::{
        ids::{Attempt, StageName, WorkerId},
        key::{Key, KeyFields},
        kind::{Mode, StageKind},
        plan::{Need, PlannedStage, Resources, Retry},
        task::ArtifactSummary,
    };

    fn stage(name: &str, kind: StageKind, needs: Vec<Need>, shard_rows: Option<u64>) -> PlannedStage {
        PlannedStage {
            name: StageName(name.into()),
            kind,
            params: serde_json::Value::Null,
            needs,
            model: None,
            data: None,
            shard_rows,
            resources: Resources::new("cpu", 1),
            retry: Retry { max_attempts: 1, backoff_ms: 0 },
            seed: 0,
            max_bad_rows: 0,
            fields: KeyFields::default(),
            row_key: Key("r".into()),
            stage_key: Key("s".into()),
        }
    }

    fn rows(n: u64) -> ArtifactSummary {
        ArtifactSummary { rows: [("t".to_owned(), n)].into(), ..ArtifactSummary::default() }
    }

    #[test]
    fn rows_rate_and_reuse_of_a_sharded_stage() {
        let need = Need { port: "items".into(), stage: 0, table: "items".into(), mode: Mode::Drive };
        let stages = vec![
            stage("data", StageKind::Dataset, vec![], None),
            stage("embed", StageKind::Embed, vec![need], Some(100)),
        ];
        let plan = Plan { version: 1, pipeline: "p".into(), stages };
        let mut run = RunProgress::new(&plan);
        let task = |stage, shard| TaskId { stage, shard };
        let key = Key("k".into());
        let (worker, attempt) = (WorkerId("w".into()), Attempt(1));
        let reused = |t, n, ms| Event::TaskReused { task: t, key: key.clone(), summary: rows(n), at: TimeMs(ms) };
        let started = |t, ms| Event::TaskStarted { task: t, attempt, worker: worker.clone(), at: TimeMs(ms) };
        let committed = |t, n, ms| Event::TaskCommitted {
            task: t,
            attempt,
            worker: worker.clone(),
            summary: rows(n),
            first: true,
            at: TimeMs(ms),
        };
        assert_eq!(run.event(&plan, &reused(task(0, 0), 250, 0)), Some(Notice::Complete(0)));
        assert_eq!(run.event(&plan, &Event::StageSharded { stage: 1, rows: 250 }), None);
        assert_eq!(run.stages[1].tasks, Some(3));
        assert_eq!(run.event(&plan, &reused(task(1, 0), 100, 0)), None);
        assert_eq!(run.event(&plan, &started(task(1, 1), 1000)), Some(Notice::Started(1)));
        run.running(task(1, 1), Progress { done: 40, total: 100, ..Progress::default() });
        assert_eq!(run.stages[1].units(), (140, 250));
        // 40 rows in 2 seconds; 110 are left.
        assert_eq!(run.stages[1].details(TimeMs(3000)), "20 rows/s, ETA 5.50 s, 1 of 3 tasks reused");
        assert_eq!(run.event(&plan, &committed(task(1, 1), 100, 6000)), None);
        assert_eq!(run.event(&plan, &started(task(1, 2), 6000)), None);
        assert_eq!(run.event(&plan, &committed(task(1, 2), 50, 11000)), Some(Notice::Complete(1)));
        assert_eq!(run.stages[1].details(TimeMs(99_000)), "15 rows/s, 1 of 3 tasks reused");
        assert_eq!(run.stages[1].seconds(), Some(10.0));
        assert_eq!(run.totals(), (2, 2));
        run.event(&plan, &Event::RunResumed { at: TimeMs(20_000) });
        assert_eq!(run.totals(), (4, 0));
        assert_eq!(run.stages[1].details(TimeMs(21_000)), "all reused");
    }
}
