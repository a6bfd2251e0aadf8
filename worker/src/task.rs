//! One attempt, from the offer to the last report.

use crate::{
    Worker, board::Entry, checkpoint::TaskCheckpoints, input::TaskInputs, log::TaskLog, output::TaskOutput,
    peak::AtWork,
};
use rallrec_core::{
    ids::{TimeMs, WorkerId},
    models::PinnedModel,
    params::StageParams,
    task::{FailureClass, MemoryMb, Outcome, Progress, TaskOffer, TaskReport},
};
use rallrec_queue::QueueError;
use rallrec_stages::{
    Cancel, Model, ModelSource, OutputWriter, ProgressSink, RemoteSource, StageContext, StageError, stage,
};
use rallrec_store::{Committed, StoreError};
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{runtime::Handle, sync::watch};

/// Program and version, as manifests name them.
pub fn program() -> String {
    concat!("rallrec ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Runs an attempt and reports how it went. Only the queue's own failures are errors.
pub(crate) async fn run(worker: &Worker, id: &WorkerId, offer: TaskOffer, entry: Entry) -> Result<(), QueueError> {
    let report = |outcome| TaskReport {
        run: offer.run.clone(),
        task: offer.task,
        attempt: offer.attempt,
        worker: id.clone(),
        outcome,
    };
    let send = async |outcome| worker.queue.report(&offer.run, rallrec_proto::encode_report(&report(outcome))).await;
    let (progress, mut heard) = watch::channel(Progress::default());
    let log = TaskLog::new(worker, id, &offer);
    let mut thread = {
        let (worker, offer, handle, log) = (worker.clone(), offer.clone(), Handle::current(), Arc::clone(&log));
        let cancel = entry.cancel().clone();
        tokio::task::spawn_blocking(move || log.within(|| attempt(&worker, offer, &handle, &Sink(progress), &cancel)))
    };
    // On its way while the stage begins. Should it kill this process, the coordinator must know who had it.
    let told = send(Outcome::Started).await;
    let mut look = tokio::time::interval(worker.progress_every);
    let ended = loop {
        tokio::select! {
            ended = &mut thread => break ended,
            _ = look.tick() => {
                if heard.has_changed().unwrap_or(false) {
                    let latest = heard.borrow_and_update().clone();
                    entry.progress(latest.clone());
                    // A queue that is gone shows at the last report; the stage's thread is waited for in any case.
                    let _ = send(Outcome::Progress(latest)).await;
                }
            }
        }
    };
    told?;
    let outcome = match ended {
        Ok(Ok(committed)) => Outcome::Committed { summary: committed.manifest.summary(), first: committed.first },
        Ok(Err(error)) => {
            let class = match error.class() {
                // One process alone has nobody to be patient for: whoever began it is there, and should be told soon.
                FailureClass::Unavailable if worker.words.is_none() => FailureClass::Transient,
                class => class,
            };
            let needed = match class {
                FailureClass::Resource => more_than(worker.memory),
                _ => MemoryMb::default(),
            };
            Outcome::Failed { class, message: error.to_string(), needed }
        }
        // Outside the stage itself: reading inputs, committing.
        Err(join) => Outcome::Failed {
            class: FailureClass::Permanent,
            message: format!("a bug in rallrec: {join}"),
            needed: MemoryMb::default(),
        },
    };
    log.finish().await;
    send(outcome).await
}

/// What an attempt needed that ran out of this: of the accelerator's where there is one, because models are there.
fn more_than(memory: MemoryMb) -> MemoryMb {
    match memory {
        MemoryMb { gpu: 0, host: 0 } => MemoryMb::default(),
        MemoryMb { gpu: 0, host } => MemoryMb { host: host + 1, gpu: 0 },
        MemoryMb { gpu, .. } => MemoryMb { gpu: gpu + 1, host: 0 },
    }
}

struct Sink(watch::Sender<Progress>);

impl ProgressSink for Sink {
    fn report(&self, progress: Progress) {
        self.0.send_replace(progress);
    }
}

/// Computes and commits, on the stage's own thread.
fn attempt(
    worker: &Worker,
    offer: TaskOffer,
    handle: &Handle,
    progress: &Sink,
    cancel: &Cancel,
) -> Result<Committed, StageError> {
    let started = Instant::now();
    let at_work = AtWork::begin(matches!(offer.model, Some(PinnedModel::Local { .. })));
    let params = StageParams::from_json(offer.kind, offer.params.clone())
        .map_err(|e| StageError::Invalid(format!("parameters of a {} stage from another version: {e}", offer.kind)))?;
    let path = |source: Option<&rallrec_core::plan::PinnedSource>| match source {
        Some(source) => worker.sources.place(source).map(Some),
        None => Ok(None),
    };
    let model_files = path(offer.model.as_ref().and_then(PinnedModel::files))?;
    let checkpoints = TaskCheckpoints::new(worker.store.clone(), handle.clone(), offer.key.clone());
    let context = StageContext {
        seed: offer.seed,
        rows: offer.rows,
        model: offer.model.as_ref().and_then(|model| place(model, model_files)),
        data: path(offer.data.as_ref())?,
        device: &worker.device,
        models: &worker.models,
        progress,
        checkpoints: &checkpoints,
        cancel,
    };
    let inputs = TaskInputs::new(worker.store.clone(), worker.tables.clone(), handle.clone(), &offer);
    let mut output = TaskOutput::new(worker.store.clone(), handle.clone(), offer.clone());
    // What a panicking stage leaves is thrown away with its output.
    let ran = catch_unwind(AssertUnwindSafe(|| stage(params).run(&context, &inputs, &mut output)));
    let failed = match ran {
        Ok(Ok(())) => {
            measure(worker, &offer, &at_work, &mut output);
            let committed = output.commit(started.elapsed().as_secs_f64(), now())?;
            checkpoints.clear();
            return Ok(committed);
        }
        Ok(Err(error)) => error,
        Err(panic) => panicked(&panic_message(panic)),
    };
    output.discard();
    Err(failed)
}

/// Puts into the manifest what a task with a model took of memory, where that can be known.
fn measure(worker: &Worker, offer: &TaskOffer, at_work: &AtWork, output: &mut TaskOutput) {
    let Some(PinnedModel::Local { files, .. }) = &offer.model else { return };
    let models = worker.models.digests();
    for (name, mb) in at_work.metrics(models.as_deref(), &files.digest, worker.memory.gpu > 0) {
        output.metric(name, mb);
    }
}

/// A task's model as its stage is given it; files that it has are at `path`.
fn place(model: &PinnedModel, path: Option<PathBuf>) -> Option<Model> {
    Some(match model {
        PinnedModel::Local { files, precision } => {
            Model::Local(ModelSource { digest: files.digest.clone(), path: path?, precision: *precision })
        }
        PinnedModel::Remote { remote, tokenizer, .. } => Model::Remote(RemoteSource {
            settings: remote.clone(),
            tokenizer: tokenizer.as_ref().map(|t| t.digest.clone()).zip(path),
        }),
    })
}

/// What a panic says of a stage. Devices tell by a panic that their memory is full.
fn panicked(message: &str) -> StageError {
    let lower = message.to_lowercase();
    match ["out of memory", "out_of_memory", "allocation failed"].iter().any(|words| lower.contains(words)) {
        true => StageError::Resource(format!(
            "the device's memory is full: {message}; use a larger machine, fewer slots, or a smaller batch"
        )),
        false => StageError::Invalid(format!("the stage panicked, which is a bug in rallrec: {message}")),
    }
}

/// This machine's clock.
pub(crate) fn now() -> TimeMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeMs(since.as_millis() as u64)
}

fn panic_message(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast::<&str>().map_or_else(|_| "no message".to_owned(), |text| (*text).to_owned()),
    }
}

/// What a stage should make of a store's failure.
pub(crate) fn from_store(error: StoreError) -> StageError {
    // Another machine's memory would not help; space that somebody frees does.
    if error.is_full() {
        return StageError::Unavailable(format!("{error}; free space there, or name another store"));
    }
    match error {
        StoreError::Object { .. } | StoreError::Folder { .. } => StageError::Unavailable(error.to_string()),
        StoreError::Conflict { .. } => StageError::Transient(error.to_string()),
        StoreError::Corrupt { .. }
        | StoreError::Journal { .. }
        | StoreError::Encode { .. }
        | StoreError::Unfit { .. } => StageError::Invalid(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It asks for no larger machine, and uses up no retries: the store is the same for every machine.
    #[test]
    fn a_full_disk_is_waited_for() {
        let full = StoreError::Folder { path: "/data".into(), source: std::io::Error::from_raw_os_error(28) };
        let failure = from_store(full);
        assert_eq!(failure.class(), FailureClass::Unavailable);
        assert!(failure.to_string().contains("free space there"), "{failure}");
    }

    #[test]
    fn a_device_whose_memory_is_full_asks_for_a_larger_machine() {
        assert_eq!(panicked("CUDA_ERROR_OUT_OF_MEMORY").class(), FailureClass::Resource);
        assert_eq!(panicked("index out of bounds").class(), FailureClass::Permanent);
    }
}
