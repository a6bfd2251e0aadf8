//! An attempt's log: what is said on its thread, kept with the run and told live.
//!
//! [`TaskLogs`] is a layer of the program's `tracing` subscriber. It catches what is said, at `INFO` and above, by the
//! thread that an attempt runs on; what threads say that the stage starts is nobody's. The first line starts a courier,
//! which tells lines on NATS at once and puts them into the store every few seconds and at the attempt's end. So a task
//! that says nothing costs nothing, and what a killed worker said until the last put is there.
//!
//! Deliberately not here: where files lie ([`rallrec_store::LogTail`]) and what reaches stderr, which is another layer's.

use crate::{Worker, task::now};
use rallrec_core::{
    ids::{RunId, WorkerId},
    task::{FailureClass, TaskOffer},
};
use rallrec_queue::{OfferName, nats::Words};
use rallrec_stages::StageError;
use rallrec_store::{LogLine, LogPlace, Store};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{runtime::Handle, sync::Notify, task::JoinHandle, time::Instant};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

/// Longest time that a line waits for its put: what a killed worker may take with it.
const PUT_EVERY: Duration = Duration::from_secs(2);

/// What is kept of one attempt's log: more helps nobody, and a line a row of a million must not fill the store.
const MAX_LINES: u64 = 10_000;
const MAX_BYTES: usize = 4 << 20;

/// Longest text of a line, in bytes, and most of its named values.
const MAX_TEXT: usize = 8 << 10;
const MAX_FIELDS: usize = 32;

/// Bytes of one live message, which NATS bounds.
const MAX_WORD: usize = 256 << 10;

thread_local! {
    /// The attempt that this thread runs.
    static CURRENT: RefCell<Option<Arc<TaskLog>>> = const { RefCell::new(None) };
}

/// The layer that catches what attempts say.
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskLogs;

impl<S: Subscriber> Layer<S> for TaskLogs {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() > Level::INFO {
            return;
        }
        // A thread that is ending has no attempt any more.
        let current = CURRENT.try_with(|current| current.borrow().clone()).ok().flatten();
        if let Some(log) = current {
            let mut said = Said::default();
            event.record(&mut said);
            log.add(event.metadata().level().as_str(), event.metadata().target(), said);
        }
    }
}

/// One attempt's log.
pub(crate) struct TaskLog {
    store: Store,
    live: Option<Words>,
    handle: Handle,
    run: RunId,
    name: OfferName,
    place: LogPlace,
    worker: WorkerId,
    put_every: Duration,
    state: Mutex<State>,
    woken: Notify,
}

#[derive(Default)]
struct State {
    /// Lines that the courier has not taken; bounded by what is kept.
    new: Vec<Vec<u8>>,
    lines: u64,
    bytes: usize,
    dropped: u64,
    closed: bool,
    courier: Option<JoinHandle<()>>,
}

impl TaskLog {
    pub(crate) fn new(worker: &Worker, id: &WorkerId, offer: &TaskOffer) -> Arc<Self> {
        Arc::new(Self {
            store: worker.store.clone(),
            live: worker.words.clone(),
            handle: Handle::current(),
            run: offer.run.clone(),
            name: OfferName { task: offer.task, attempt: offer.attempt },
            place: LogPlace { stage: offer.stage.clone(), shard: offer.task.shard, attempt: offer.attempt },
            worker: id.clone(),
            put_every: PUT_EVERY,
            state: Mutex::default(),
            woken: Notify::new(),
        })
    }

    /// Runs the attempt on this thread, and keeps what it says, with how it failed.
    pub(crate) fn within<T>(
        self: &Arc<Self>,
        attempt: impl FnOnce() -> Result<T, StageError>,
    ) -> Result<T, StageError> {
        struct Entered;
        impl Drop for Entered {
            fn drop(&mut self) {
                CURRENT.set(None);
            }
        }
        CURRENT.set(Some(Arc::clone(self)));
        let entered = Entered;
        let ended = attempt();
        drop(entered);
        if let Err(error) = &ended {
            let level = if error.class() == FailureClass::Lost { "WARN" } else { "ERROR" };
            let fields = [("error".to_owned(), json!(clean(&error.to_string())))].into();
            self.add(level, module_path!(), Said { message: "the attempt failed".into(), fields });
        }
        ended
    }

    /// Waits until every line is told and put. What the store refuses is gone, and that is told on stderr.
    pub(crate) async fn finish(self: &Arc<Self>) {
        let courier = {
            let mut state = self.lock();
            if state.dropped > 0 {
                let message = format!("{} further lines of this attempt are not kept", state.dropped);
                let line = self.line(state.lines, "WARN", module_path!(), Said { message, fields: BTreeMap::new() });
                state.new.push(line);
            }
            state.closed = true;
            state.courier.take()
        };
        if let Some(courier) = courier {
            self.woken.notify_one();
            let _ = courier.await;
        }
    }

    fn add(self: &Arc<Self>, level: &str, target: &str, said: Said) {
        let mut state = self.lock();
        if state.closed || state.lines >= MAX_LINES || state.bytes >= MAX_BYTES {
            state.dropped += 1;
            return;
        }
        let line = self.line(state.lines, level, target, said);
        state.lines += 1;
        state.bytes += line.len();
        state.new.push(line);
        if state.courier.is_none() {
            state.courier = Some(self.handle.spawn(Arc::clone(self).carry()));
        }
        drop(state);
        self.woken.notify_one();
    }

    fn line(&self, n: u64, level: &str, target: &str, said: Said) -> Vec<u8> {
        let line = LogLine {
            version: LogLine::VERSION,
            n,
            at: now(),
            level: level.to_owned(),
            target: target.to_owned(),
            message: said.message,
            fields: said.fields,
            worker: self.worker.0.clone(),
        };
        line.encode()
    }

    /// The courier.
    async fn carry(self: Arc<Self>) {
        let (mut kept, mut number, mut due) = (Vec::new(), 0, None::<Instant>);
        loop {
            tokio::select! {
                () = self.woken.notified() => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            let (new, closed) = {
                let mut state = self.lock();
                (std::mem::take(&mut state.new), state.closed)
            };
            self.tell(&new).await;
            kept.extend(new.into_iter().flatten());
            let now = Instant::now();
            if !kept.is_empty() && (closed || due.is_some_and(|due| due <= now)) {
                match self.store.put_log(&self.run, &self.place, number, &kept).await {
                    Ok(next) => {
                        number = next;
                        kept.clear();
                    }
                    // Tried again with the next lines.
                    Err(error) => tracing::warn!(run = %self.run, task = %self.name.task, %error, "cannot keep a log"),
                }
                due = None;
            }
            if closed {
                return;
            }
            if !kept.is_empty() {
                due.get_or_insert(now + self.put_every);
            }
        }
    }

    /// Tells lines live. Those that are lost are in the store soon.
    async fn tell(&self, lines: &[Vec<u8>]) {
        let Some(live) = &self.live else { return };
        let mut word = Vec::new();
        for (i, line) in lines.iter().enumerate() {
            word.extend_from_slice(line);
            let next = lines.get(i + 1).map_or(MAX_WORD, Vec::len);
            if word.len() + next > MAX_WORD {
                let _ = live.log(&self.run, self.name, std::mem::take(&mut word).into()).await;
            }
        }
        if !word.is_empty() {
            let _ = live.log(&self.run, self.name, word.into()).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an event says.
#[derive(Default)]
struct Said {
    message: String,
    fields: BTreeMap<String, Value>,
}

impl Said {
    fn add(&mut self, field: &Field, value: Value) {
        if self.fields.len() < MAX_FIELDS {
            self.fields.insert(field.name().to_owned(), value);
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let text = clean(value);
        if field.name() == "message" { self.message = text } else { self.add(field, text.into()) }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, json!(value));
    }
}

/// Text as it is kept: not too long, and without this process's secrets, whoever repeated them.
fn clean(text: &str) -> String {
    static SECRETS: LazyLock<Vec<String>> = LazyLock::new(|| secrets(std::env::vars_os()));
    without(&SECRETS, text)
}

fn without(secrets: &[String], text: &str) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        if text.contains(secret.as_str()) {
            text = text.replace(secret.as_str(), "[secret]");
        }
    }
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Values of variables that are called like secrets. Short ones are words that logs need.
fn secrets(variables: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>) -> Vec<String> {
    let secret = |name: &str| ["KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL"].iter().any(|w| name.contains(w));
    let found = variables.filter_map(|(name, value)| {
        let (name, value) = (name.into_string().ok()?.to_uppercase(), value.into_string().ok()?);
        (secret(&name) && value.len() >= 8 && !value.starts_with('/')).then_some(value)
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::ids::{Attempt, StageName, TaskId};
    use rallrec_store::{LogFilter, LogTail};
    use tracing_subscriber::layer::SubscriberExt;

    fn log(store: &Store) -> Arc<TaskLog> {
        patient(store, Duration::from_secs(3600))
    }

    fn patient(store: &Store, put_every: Duration) -> Arc<TaskLog> {
        Arc::new(TaskLog {
            store: store.clone(),
            live: None,
            handle: Handle::current(),
            run: RunId("r".into()),
            name: OfferName { task: TaskId { stage: 0, shard: 2 }, attempt: Attempt(1) },
            place: LogPlace { stage: StageName("score".into()), shard: 2, attempt: Attempt(1) },
            worker: WorkerId("w".into()),
            put_every,
            state: Mutex::default(),
            woken: Notify::new(),
        })
    }

    async fn kept(store: &Store) -> Vec<LogLine> {
        let mut tail = LogTail::new(store.clone(), RunId("r".into()), LogFilter::default(), Vec::new());
        let mut lines = Vec::new();
        for file in tail.new_files().await.unwrap() {
            lines.extend(tail.lines(&file).await.unwrap());
        }
        lines
    }

    /// On a thread as an attempt has it.
    async fn attempt(log: &Arc<TaskLog>, run: impl FnOnce() -> Result<(), StageError> + Send + 'static) {
        let log = Arc::clone(log);
        let thread = move || {
            let subscriber = tracing_subscriber::registry().with(TaskLogs);
            tracing::subscriber::with_default(subscriber, || log.within(run)).is_ok()
        };
        tokio::task::spawn_blocking(thread).await.unwrap();
    }

    #[tokio::test]
    async fn what_an_attempt_says_is_kept_and_what_others_say_is_not() {
        let store = Store::memory();
        let log = log(&store);
        attempt(&log, || {
            tracing::warn!(row = 3, p = 0.5, reason = %"too long", "bad row");
            tracing::debug!("for developers");
            let other = std::thread::spawn(|| tracing::warn!("said on another thread"));
            other.join().unwrap();
            Err(StageError::Invalid("row 3: too long".into()))
        })
        .await;
        attempt(&log, || {
            CURRENT.set(None);
            tracing::warn!("said by nobody's thread");
            Ok(())
        })
        .await;
        log.finish().await;
        let lines = kept(&store).await;
        let told: Vec<_> = lines.iter().map(|l| (l.n, l.level.as_str(), l.message.as_str())).collect();
        assert_eq!(told, [(0, "WARN", "bad row"), (1, "ERROR", "the attempt failed")]);
        assert_eq!(json!(lines[0].fields), json!({ "row": 3, "p": 0.5, "reason": "too long" }));
        assert_eq!(lines[1].fields["error"], json!("row 3: too long"));
    }

    #[tokio::test]
    async fn a_silent_attempt_puts_nothing() {
        let store = Store::memory();
        let log = log(&store);
        attempt(&log, || Ok(())).await;
        log.finish().await;
        assert!(log.lock().courier.is_none());
        assert!(kept(&store).await.is_empty());
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded_and_says_so() {
        let store = Store::memory();
        let log = log(&store);
        attempt(&log, || {
            (0..MAX_LINES + 5).for_each(|row| tracing::info!(row, "line"));
            Ok(())
        })
        .await;
        log.finish().await;
        let lines = kept(&store).await;
        assert_eq!(lines.len() as u64, MAX_LINES + 1);
        assert_eq!(lines.last().unwrap().message, "5 further lines of this attempt are not kept");
    }

    #[tokio::test]
    async fn lines_are_put_before_the_attempt_ends() {
        let store = Store::memory();
        let log = patient(&store, Duration::from_millis(5));
        log.add("INFO", "t", Said { message: "one".into(), fields: BTreeMap::new() });
        let mut found = Vec::new();
        while found.is_empty() {
            tokio::task::yield_now().await;
            found = kept(&store).await;
        }
        assert_eq!(found[0].message, "one");
        log.finish().await;
        assert_eq!(kept(&store).await.len(), 1, "nothing is put twice");
    }

    #[test]
    fn secrets_of_the_environment_are_taken_out() {
        let variables = [("OPENAI_API_KEY", "sk-0123456789"), ("RALLREC_TOKEN", "short"), ("HOME", "/home/somebody")];
        let found = secrets(variables.into_iter().map(|(n, v)| (n.into(), v.into())));
        assert_eq!(found, ["sk-0123456789"]);
        assert_eq!(without(&found, "refused: Bearer sk-0123456789 of /home/x"), "refused: Bearer [secret] of /home/x");
        assert_eq!(without(&[], &"ä".repeat(MAX_TEXT)).chars().count(), MAX_TEXT / 2 + 1);
    }
}
