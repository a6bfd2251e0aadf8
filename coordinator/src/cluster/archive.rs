//! The archive: what the store holds, for people who cannot reach it. Any coordinator answers.
//!
//! It reads runs and artifacts, and nothing else of the store, and removes what `gc` says that nobody needs. It decides
//! nothing, and asks no leader.

use crate::{Clock, LogError, LogReader, SystemClock, gc};
use futures::{Stream, StreamExt, TryStreamExt};
use rallrec_core::ids::{RunId, StageName};
use rallrec_proto::api::{self, archive_server};
use rallrec_queue::nats::{NatsSettings, Words};
use rallrec_store::{Listed, LogFilter, LogLine, LogPlace, Store, StoreError};
use std::{pin::Pin, sync::Arc, time::Duration};
use tokio::sync::{OnceCell, mpsc};
use tonic::{Request, Response, Status};

/// How often a followed log is looked for in the store. What NATS carries is told at once.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Objects in one answer of a listing.
const LISTED_AT_ONCE: usize = 1000;

/// Bytes in one answer of a read: below the most that a client takes.
const READ_AT_ONCE: usize = 1 << 20;

/// Lines in one answer: at the longest that lines are, below the most that a client takes.
const LINES_AT_ONCE: usize = 64;

/// Answers that a slow reader has not taken.
const UNREAD: usize = 16;

/// What of the store is told.
const TOLD: [&str; 2] = ["runs", "artifacts"];

/// Serves the archive.
#[derive(Clone)]
pub(super) struct Archive {
    store: Store,
    /// Name of this coordinator.
    name: String,
    nats: NatsSettings,
    /// For live lines; made when somebody first wants some.
    words: Arc<OnceCell<Words>>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Archive {
    pub(super) fn new(store: Store, name: String, nats: NatsSettings) -> Self {
        Self { store, name, nats, words: Arc::default() }
    }

    async fn words(&self) -> Result<&Words, Status> {
        let connected = self.words.get_or_try_init(|| Words::connect(&self.nats)).await;
        connected.map_err(|error| Status::unavailable(format!("live lines cannot be had: {error}")))
    }
}

#[tonic::async_trait]
impl archive_server::Archive for Archive {
    type LogsStream = Answers<api::LogsReply>;
    type ListStream = Answers<api::ListReply>;
    type ReadStream = Answers<api::ReadReply>;

    async fn logs(&self, request: Request<api::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let stage = (!request.stage.is_empty()).then_some(StageName(request.stage));
        let run = checked_run(request.run)?;
        let filter = LogFilter { stage, shard: request.shard };
        // Heard before the store is read: no line falls between.
        let live = if request.follow {
            let heard = self.words().await?.logs(&run).await;
            Some(heard.map_err(|error| Status::unavailable(format!("live lines cannot be had: {error}")))?.boxed())
        } else {
            None
        };
        let reader = LogReader::open(&self.store, &run, filter).await.map_err(log_status)?;
        let (sender, told) = mpsc::channel(UNREAD);
        tokio::spawn(async move {
            if let Err(error) = tell_log(reader, live, &sender).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(Response::new(answers(told)))
    }

    async fn list(&self, request: Request<api::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let request = request.into_inner();
        let prefix = checked(&request.prefix)?;
        if request.shallow {
            let (objects, folders) = self.store.objects_in(prefix).await.map_err(store_status)?;
            let reply = api::ListReply { objects: objects.into_iter().map(object).collect(), folders };
            return Ok(Response::new(futures::stream::iter([Ok(reply)]).boxed()));
        }
        let pages = self.store.objects_below(prefix).map_err(store_status).try_chunks(LISTED_AT_ONCE);
        let replies = pages.map(|page| {
            let objects = page.map_err(|error| error.1)?.into_iter().map(object).collect();
            Ok(api::ListReply { objects, folders: Vec::new() })
        });
        Ok(Response::new(replies.boxed()))
    }

    async fn read(&self, request: Request<api::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let path = checked(&request.path)?;
        let range = if request.head { 0..0 } else { request.start.unwrap_or(0)..request.end.unwrap_or(u64::MAX) };
        let opened = self.store.open_object(path, range).await.map_err(store_status)?;
        let opened = opened.ok_or_else(|| Status::not_found(format!("there is no object {path}")))?;
        let first = api::ReadReply { object: Some(object(opened.object)), bytes: Vec::new() };
        let rest = opened.bytes.map_ok(|bytes| {
            let pieces: Vec<_> = bytes.chunks(READ_AT_ONCE).map(<[u8]>::to_vec).collect();
            futures::stream::iter(pieces).map(|bytes| Ok(api::ReadReply { object: None, bytes }))
        });
        let rest = rest.map_err(store_status).try_flatten();
        Ok(Response::new(futures::stream::iter([Ok(first)]).chain(rest).boxed()))
    }

    async fn collect(&self, request: Request<api::CollectRequest>) -> Result<Response<api::CollectReply>, Status> {
        let collecting = tokio::spawn(collect(self.store.clone(), self.name.clone(), request.into_inner()));
        let collected = collecting.await.map_err(|error| Status::internal(error.to_string()))?.map_err(gc_status)?;
        let collected_json = serde_json::to_vec(&collected).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(api::CollectReply { collected_json }))
    }
}

/// Spawned, so that it comes to its end although nobody waits for it any more.
async fn collect(store: Store, id: String, request: api::CollectRequest) -> Result<gc::Collected, gc::GcError> {
    let forget = request.forget.into_iter().map(RunId).collect();
    let keep = gc::Keep { last: request.keep_last, days: request.keep_days, forget };
    let (ages, now) = (gc::Ages::default(), SystemClock.now());
    if request.delete {
        gc::collect(&store, &keep, ages, &|_| false, now, &id).await
    } else {
        gc::dry_run(&store, &keep, ages, &|_| false, now).await
    }
}

fn gc_status(error: gc::GcError) -> Status {
    use gc::GcError::{Active, Busy, NoRun, Stalled, Store, Unreadable};
    match error {
        Busy { .. } | Unreadable { .. } | Active { .. } => Status::failed_precondition(error.to_string()),
        NoRun { .. } => Status::not_found(error.to_string()),
        Stalled => Status::internal(error.to_string()),
        Store(error) => store_status(error),
    }
}

fn answers<T: Send + 'static>(mut told: mpsc::Receiver<Result<T, Status>>) -> Answers<T> {
    futures::stream::poll_fn(move |context| told.poll_recv(context)).boxed()
}

/// Tells what is kept, and with `live` what comes, until the run has ended or nobody listens.
async fn tell_log(
    mut reader: LogReader,
    mut live: Option<impl Stream<Item = (rallrec_queue::OfferName, bytes::Bytes)> + Unpin>,
    told: &mpsc::Sender<Result<api::LogsReply, Status>>,
) -> Result<(), Status> {
    loop {
        let (files, ended) = reader.look().await.map_err(store_status)?;
        for file in files {
            let lines = reader.lines(&file).await.map_err(store_status)?;
            if !tell(&file.place, &lines, told).await {
                return Ok(());
            }
        }
        let Some(live) = live.as_mut().filter(|_| !ended) else { return Ok(()) };
        let next = tokio::time::sleep(LOOK_EVERY);
        tokio::pin!(next);
        loop {
            tokio::select! {
                () = &mut next => break,
                () = told.closed() => return Ok(()),
                Some((name, bytes)) = live.next() => {
                    let Some((place, lines)) = reader.heard(name, &bytes) else { continue };
                    if !tell(&place, &lines, told).await {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Whether somebody still listens.
async fn tell(place: &LogPlace, lines: &[LogLine], told: &mpsc::Sender<Result<api::LogsReply, Status>>) -> bool {
    for lines in lines.chunks(LINES_AT_ONCE) {
        let lines = lines.iter().map(|line| api::TaskLogLine {
            stage: place.stage.0.clone(),
            shard: place.shard,
            attempt: place.attempt.0,
            line_json: line.encode(),
        });
        if told.send(Ok(api::LogsReply { lines: lines.collect() })).await.is_err() {
            return false;
        }
    }
    true
}

/// A run's id becomes part of paths and subjects.
fn checked_run(run: String) -> Result<RunId, Status> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if run.is_empty() || !run.chars().all(plain) {
        return Err(Status::not_found(format!("there is no run {run:?}; `rallrec runs` lists them")));
    }
    Ok(RunId(run))
}

/// A path that may be told of.
fn checked(path: &str) -> Result<&str, Status> {
    let mut names = path.split('/');
    let known = names.next().is_some_and(|first| TOLD.contains(&first));
    if known && names.all(|name| !name.is_empty() && name != "." && name != "..") {
        return Ok(path);
    }
    Err(Status::permission_denied(format!("{path:?} is not told: only objects under runs/ and artifacts/ are")))
}

fn object(listed: Listed) -> api::Object {
    api::Object { path: listed.path, bytes: listed.bytes, modified_at_ms: listed.modified_at.0 }
}

fn store_status(error: StoreError) -> Status {
    match error {
        StoreError::Corrupt { .. } | StoreError::Journal { .. } => Status::data_loss(error.to_string()),
        error => Status::unavailable(error.to_string()),
    }
}

fn log_status(error: LogError) -> Status {
    match error {
        LogError::NoRun(_) | LogError::NoStage { .. } => Status::not_found(error.to_string()),
        LogError::Store(error) => store_status(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runs_and_artifacts_are_told() {
        for good in ["runs", "runs/r/plan.json", "artifacts/ab/abcd/manifest.json"] {
            assert!(checked(good).is_ok(), "{good}");
        }
        for bad in
            ["", "sources/x", "cluster/journal", "runs/../sources", "/runs", "runs//x", "checkpoints/k/1", "./runs"]
        {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }
}
