//! A run as the user sees it: bars on a terminal, lines elsewhere, JSON lines for programs.

use crate::{
    clock,
    console::{Console, Mark, marked, thousands},
    progress::{Notice, RunProgress, StageProgress},
};
use indicatif::{ProgressBar, ProgressStyle};
use rallrec_core::{
    ids::{TaskId, TimeMs},
    plan::Plan,
    run::{Event, Next},
    task::Progress,
};
use serde_json::{Value, json};

/// How often a plain line says how far a stage is.
const LINE_EVERY_MS: u64 = 10_000;

/// Shows one run.
pub struct RunView {
    console: Console,
    plan: Plan,
    progress: RunProgress,
    manner: Manner,
}

enum Manner {
    /// A bar a stage, made when the stage begins.
    Bars(Vec<Option<ProgressBar>>),
    /// Lines, with the time of each stage's last one.
    Lines(Vec<TimeMs>),
    /// JSON on stdout.
    Json,
}

impl RunView {
    /// A view of a run of `plan` on the terminal.
    pub fn new(plan: &Plan, json: bool, console: &Console) -> Self {
        let manner = if json {
            Manner::Json
        } else if console.is_live() {
            Manner::Bars(vec![None; plan.stages.len()])
        } else {
            Manner::Lines(vec![TimeMs(0); plan.stages.len()])
        };
        Self { console: console.clone(), plan: plan.clone(), progress: RunProgress::new(plan), manner }
    }

    /// Takes in what an earlier process did, without showing it.
    pub fn replay(&mut self, events: &[Event]) {
        for event in events {
            self.progress.event(&self.plan, event);
        }
    }

    /// Shows what happened.
    pub fn event(&mut self, event: &Event) {
        let notice = self.progress.event(&self.plan, event);
        if matches!(self.manner, Manner::Json) {
            self.print_json(event_json(&self.plan, event));
            return;
        }
        if let Event::TaskFailed { task, message, next, .. } = event {
            let (place, color) = (place(&self.plan, *task), self.console.colors_stderr());
            match next {
                Next::GiveUp => {
                    self.console.note(&format!("{place}: {}: {message}", marked(color, Mark::Red, "failed")))
                }
                Next::Retry { .. } => {
                    self.console
                        .note(&format!("{place}: {}: {message}", marked(color, Mark::Yellow, "will be tried again")));
                }
                // Stopped by Ctrl-C, or with its worker: no fault of the task's. Or its other attempt goes on.
                Next::Replace { .. } | Next::Other { .. } => {}
            }
        }
        match (event, notice) {
            (
                Event::TaskReused { task, .. } | Event::TaskCommitted { task, .. } | Event::TaskStarted { task, .. },
                _,
            ) if matches!(self.manner, Manner::Bars(_)) => {
                self.redraw(task.stage as usize);
            }
            (_, Some(notice)) => self.line(notice),
            _ => {}
        }
    }

    /// Shows how far a running task is.
    pub fn running(&mut self, task: TaskId, progress: &Progress) {
        self.progress.running(task, progress.clone());
        let stage = task.stage as usize;
        match &mut self.manner {
            Manner::Bars(_) => self.redraw(stage),
            Manner::Json => {
                let name = self.plan.stages.get(stage).map(|s| s.name.to_string());
                let mut value = json!({ "event": "progress", "stage": name, "shard": task.shard, "at": clock::now() });
                merge(&mut value, json!(progress));
                self.print_json(value);
            }
            Manner::Lines(last) => {
                let (now, Some(last)) = (clock::now(), last.get_mut(stage)) else { return };
                if now.0.saturating_sub(last.0) >= LINE_EVERY_MS {
                    *last = now;
                    if let Some(stage) = self.progress.stages.get(stage) {
                        self.console.note(&running_line(stage, now));
                    }
                }
            }
        }
    }

    /// Tasks reused, and tasks computed.
    pub fn totals(&self) -> (u64, u64) {
        self.progress.totals()
    }

    /// Puts lines in the place of the bars, which would be drawn again below whatever is printed next.
    pub fn finish(&mut self) {
        let Manner::Bars(bars) = &mut self.manner else { return };
        bars.drain(..).flatten().for_each(|bar| bar.finish_and_clear());
        let now = clock::now();
        for stage in self.progress.stages.iter().filter(|s| s.is_begun()) {
            let line = if stage.is_complete() { complete_line(stage, now) } else { running_line(stage, now) };
            self.console.note(&line);
        }
    }

    fn print_json(&self, value: Value) {
        self.console.print(&value.to_string());
    }

    fn line(&mut self, notice: Notice) {
        let Manner::Lines(last) = &mut self.manner else { return };
        let (at, now) = match notice {
            Notice::Started(at) | Notice::Complete(at) | Notice::Failed(at) => (at, clock::now()),
        };
        let (Some(stage), Some(last)) = (self.progress.stages.get(at), last.get_mut(at)) else { return };
        *last = now;
        match notice {
            Notice::Started(_) => {
                let tasks =
                    stage.tasks.filter(|n| *n > 1).map(|n| format!(", {} tasks", thousands(n))).unwrap_or_default();
                self.console.note(&format!("{}: started{tasks}", stage.name));
            }
            Notice::Complete(_) => self.console.note(&complete_line(stage, now)),
            // The failure itself was told with its message.
            Notice::Failed(_) => {}
        }
    }

    fn redraw(&mut self, at: usize) {
        let (Manner::Bars(bars), Some(stage)) = (&mut self.manner, self.progress.stages.get(at)) else { return };
        let Some(slot) = bars.get_mut(at) else { return };
        if !stage.is_begun() {
            return;
        }
        let width = self.plan.stages.iter().map(|s| s.name.0.len()).max().unwrap_or(0);
        let bar = slot.get_or_insert_with(|| {
            let template = format!("{{prefix:{width}}} [{{bar:24}}] {{pos:>7}}/{{len:7}} {{msg}}");
            let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            self.console.bars().add(ProgressBar::new(1).with_style(style).with_prefix(stage.name.clone()))
        });
        let (done, total) = stage.units();
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(stage.details(clock::now()));
        if stage.is_complete() && !bar.is_finished() {
            let time = stage.seconds().map(clock::duration).unwrap_or_default();
            let details = stage.details(clock::now());
            let both = [time, details].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(", ");
            bar.abandon_with_message(both);
        }
    }
}

/// `stage embed, shard 3`.
pub fn place(plan: &Plan, task: TaskId) -> String {
    match plan.stages.get(task.stage as usize) {
        Some(stage) if stage.drive().is_some() => format!("stage {}, shard {}", stage.name, task.shard),
        Some(stage) => format!("stage {}", stage.name),
        None => format!("task {task}"),
    }
}

fn running_line(stage: &StageProgress, now: TimeMs) -> String {
    let (done, total) = stage.units();
    let details = stage.details(now);
    let comma = if details.is_empty() { "" } else { ", " };
    format!("{}: {} of {}{comma}{details}", stage.name, thousands(done), thousands(total))
}

fn complete_line(stage: &StageProgress, now: TimeMs) -> String {
    let details = stage.details(now);
    match stage.seconds() {
        None => format!("{}: {details}", stage.name),
        Some(seconds) => {
            let comma = if details.is_empty() { "" } else { ", " };
            format!("{}: done in {}{comma}{details}", stage.name, clock::duration(seconds))
        }
    }
}

/// The event as it is journaled, with the stage's name, and without the whole plan.
fn event_json(plan: &Plan, event: &Event) -> Value {
    if let Event::RunStarted { run, plan, at } = event {
        let stages: Vec<&str> = plan.stages.iter().map(|s| s.name.0.as_str()).collect();
        return json!({ "event": "run_started", "run": run, "pipeline": plan.pipeline, "stages": stages, "at": at });
    }
    let mut value = json!(event);
    let position = value.pointer("/task/stage").or_else(|| value.get("stage")).and_then(Value::as_u64);
    if let Some(stage) = position.and_then(|at| plan.stages.get(at as usize)) {
        let name = json!(stage.name);
        if let Some(fields) = value.as_object_mut() {
            if let Some(task) = fields.remove("task") {
                fields.insert("shard".into(), task["shard"].clone());
            }
            fields.insert("stage".into(), name);
        }
    }
    value
}

fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}
