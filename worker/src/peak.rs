//! What a task took of memory, where that can be known: while it was alone in this process, and no model but its own was
//! there.
//!
//! The system tells of a process, not of a task. So what is measured is what the process held: with mapped files, and with
//! what earlier tasks left in its caches. That is what a machine must have to do the same again. Of several slots that were
//! at work nothing is told. Not here: what is made of it (`rallrec_core::plan`).

use rallrec_core::plan::{GPU_HELD, HOST_PEAK};
use std::{
    fs,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

/// The driver's program, which tells how much of an accelerator each process holds.
const DRIVERS_PROGRAM: &str = "nvidia-smi";

/// Tasks of this process.
struct Tasks {
    /// At work.
    now: u64,
    /// That ever began.
    begun: u64,
}

static TASKS: Mutex<Tasks> = Mutex::new(Tasks { now: 0, begun: 0 });

fn tasks<T>(ask: impl FnOnce(&mut Tasks) -> T) -> T {
    ask(&mut TASKS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A task at work; when it is dropped, it no longer is.
pub(crate) struct AtWork {
    number: u64,
    alone: bool,
}

impl AtWork {
    /// Begins to measure, if that is wanted and no other task is at work.
    pub(crate) fn begin(measured: bool) -> Self {
        let (number, alone) = tasks(|tasks| {
            tasks.now += 1;
            tasks.begun += 1;
            (tasks.begun, tasks.now == 1)
        });
        // The system forgets the largest so far. Where it cannot, the measure would be another task's.
        Self { number, alone: measured && alone && fs::write("/proc/self/clear_refs", "5").is_ok() }
    }

    /// Metrics of the manifest: what the process held while this task was alone in it; nothing where it was not. `models` are
    /// those in memory, by digest, `own` the task's; the accelerator is asked about where there is one.
    pub(crate) fn metrics(&self, models: Option<&[String]>, own: &str, accelerator: bool) -> Vec<(&'static str, f64)> {
        // One model with its weights kept in two ways is two.
        let only_its_own = models.is_some_and(|models| models.len() <= 1 && models.iter().all(|digest| digest == own));
        if !self.alone || !only_its_own {
            return Vec::new();
        }
        let host = peak_mb().map(|mb| (HOST_PEAK, mb));
        let gpu = accelerator.then(|| held_mb(DRIVERS_PROGRAM)).flatten().map(|mb| (GPU_HELD, mb));
        let undisturbed = tasks(|tasks| tasks.begun == self.number);
        host.into_iter().chain(gpu).filter(|_| undisturbed).collect()
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        tasks(|tasks| tasks.now -= 1);
    }
}

/// The most MiB that were resident since the system was told to forget.
fn peak_mb() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = peak.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// MiB of accelerators that this process holds now. Libraries keep what they once took, so at a task's end it is about the
/// most. `None` where the program does not know this process, as in some containers.
fn held_mb(program: &str) -> Option<f64> {
    let asked = Command::new(program)
        .args(["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&asked.stdout);
    let own = std::process::id();
    let held = |line: &str| {
        let (pid, mb) = line.split_once(',')?;
        (pid.trim().parse() == Ok(own)).then(|| mb.trim().parse::<f64>().ok())?
    };
    let each: Vec<f64> = said.lines().filter_map(held).collect();
    (!each.is_empty()).then(|| each.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, because tests of one process run at once and what is measured is the process.
    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_task_takes_is_told_while_it_is_alone() {
        let mb = |metrics: &[(&str, f64)]| metrics.iter().find(|(name, _)| *name == HOST_PEAK).map(|(_, mb)| *mb);
        let own = ["a".to_owned()];
        let task = AtWork::begin(true);
        if !task.alone {
            eprintln!("skipped: this system does not forget a process's largest");
            return;
        }
        let before = mb(&task.metrics(Some(&own), "a", false)).unwrap();
        let taken = vec![1u8; 300 << 20];
        assert_eq!(taken.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 300 << 20);
        drop(taken);
        let peak = mb(&task.metrics(Some(&own), "a", false)).unwrap();
        assert!(peak >= before + 290.0, "{before} {peak}");
        for models in [None, Some(&["b".to_owned()][..]), Some(&["a".to_owned(), "a".to_owned()][..])] {
            assert!(task.metrics(models, "a", false).is_empty(), "another's model may be there: {models:?}");
        }
        drop(task);

        let next = AtWork::begin(true);
        assert!(mb(&next.metrics(Some(&own), "a", false)).unwrap() < peak - 200.0, "an earlier task's is forgotten");
        let other = AtWork::begin(true);
        assert!(other.metrics(Some(&own), "a", false).is_empty());
        drop(other);
        assert!(next.metrics(Some(&own), "a", false).is_empty(), "it was not alone all the time");
    }

    /// Needs no GPU: a program that answers as the driver's does.
    #[test]
    #[cfg(unix)]
    fn an_accelerator_is_asked_about_this_process() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = |name: &str, said: &str| {
            let path = folder.path().join(name);
            fs::write(&path, format!("#!/bin/sh\nprintf '{said}'\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let own = std::process::id();
        assert_eq!(held_mb(&program("two", &format!("1, 900\\n{own}, 16512\\n{own}, 8\\n"))), Some(16_520.0));
        assert_eq!(held_mb(&program("others", "1, 900\\n")), None);
        assert_eq!(held_mb(&program("unknown", &format!("{own}, [N/A]\\n"))), None);
        assert_eq!(held_mb("/no/such/program"), None);
    }
}
