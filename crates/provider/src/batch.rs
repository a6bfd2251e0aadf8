//! A list of requests, sent by threads in an order of their own, with results in the caller's order.
//!
//! Requests are begun in the order of their prompts' texts, so that prompts with a common beginning, and the samples of
//! one prompt, follow each other and meet a server's prompt cache while it is warm. No result depends on that order.

use crate::{ProviderError, error::Fault, server::Server, wire};
use rallrec_core::models::RemoteModel;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use serde_json::Value;
use std::{
    ops::{AddAssign, ControlFlow},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

/// Longest time without a word to the caller, who may want to stop.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// How far a call is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Prompts with their results.
    pub rows: usize,
    /// Tokens read and written so far.
    pub tokens: u64,
}

/// What a call cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Requests that were answered.
    pub requests: u64,
    /// Requests that had to be sent again.
    pub retries: u64,
    /// Tokens of prompts, by the server's count.
    pub tokens_read: u64,
    /// Those of them that its cache had.
    pub tokens_cached: u64,
    /// Tokens of answers.
    pub tokens_written: u64,
    /// Scores in which one answer's log-probability is a bound.
    pub bounded: u64,
}

impl Usage {
    /// What it cost at the prices of the pipeline, in their currency. Cached tokens count like others: their price
    /// differs from server to server.
    pub fn cost(&self, settings: &RemoteModel) -> f64 {
        (self.tokens_read as f64 * settings.price_input + self.tokens_written as f64 * settings.price_output) / 1e6
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.retries += other.retries;
        self.tokens_read += other.tokens_read;
        self.tokens_cached += other.tokens_cached;
        self.tokens_written += other.tokens_written;
        self.bounded += other.bounded;
    }
}

/// Results in the order of the prompts, each with the tokens that the server counted in its prompt, or why it failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch<T> {
    /// One result a prompt.
    pub rows: Vec<Result<T, String>>,
    /// Tokens of each prompt by the server's count; 0 where it did not say.
    pub prompt_tokens: Vec<u64>,
    /// What they cost together.
    pub usage: Usage,
}

/// One request of a batch.
pub(crate) struct Job {
    /// Position of its prompt.
    pub(crate) row: usize,
    /// What it is sorted by.
    pub(crate) order: String,
    pub(crate) path: &'static str,
    pub(crate) body: Value,
}

/// Reads an answer's body; it took so many seconds.
pub(crate) type Read<T> = Arc<dyn Fn(&Value, f32) -> Result<(T, bool), Fault> + Send + Sync>;

/// What a thread has to say about a job.
type Word<T> = (usize, Result<(Result<T, String>, Usage), Fault>);

/// Sends every job. Gives for each prompt its jobs' results in the order in which the jobs were given.
pub(crate) fn run<T: Send + 'static>(
    server: &Arc<Server>,
    rows: usize,
    jobs: Vec<Job>,
    read: &Read<T>,
    jitter: ChaCha8Rng,
    watch: &mut dyn FnMut(Done) -> ControlFlow<()>,
) -> Result<Batch<Vec<T>>, ProviderError> {
    let mut left: Vec<usize> = vec![0; rows];
    for job in &jobs {
        left[job.row] += 1;
    }
    let places: Vec<usize> = jobs.iter().map(|job| job.row).collect();
    let mut results: Vec<Option<T>> = jobs.iter().map(|_| None).collect();
    let mut failed: Vec<Option<String>> = vec![None; rows];
    let (mut usage, mut prompt_tokens) = (Usage::default(), vec![0; rows]);
    let mut done = Done { rows: left.iter().filter(|n| **n == 0).count(), tokens: 0 };
    let crew = Crew::start(server, jobs, read, jitter);
    for _ in 0..places.len() {
        let (at, word) = crew.next(|| watch(done))?;
        let row = places[at];
        match word {
            Ok((value, cost)) => {
                match value {
                    Ok(value) => results[at] = Some(value),
                    Err(why) => _ = failed[row].get_or_insert(why),
                }
                prompt_tokens[row] = cost.tokens_read;
                usage += cost;
            }
            Err(Fault::Row(why)) => _ = failed[row].get_or_insert(why),
            Err(fault) => return Err(server.failure(fault)),
        }
        left[row] -= 1;
        done.rows += usize::from(left[row] == 0);
        done.tokens = usage.tokens_read + usage.tokens_written;
    }
    // The last report says that all is done; there is nothing left to stop.
    let _ = watch(done);
    let mut values: Vec<Vec<T>> = failed.iter().map(|_| Vec::new()).collect();
    for (row, value) in places.into_iter().zip(results) {
        values[row].extend(value);
    }
    let rows = values.into_iter().zip(failed).map(|(values, why)| why.map_or(Ok(values), Err)).collect();
    Ok(Batch { rows, prompt_tokens, usage })
}

/// The threads of one call. Dropping it stops them: none begins another request, and those in flight are not waited
/// for, as a server may take minutes; they keep their places in the gate until they end by themselves.
struct Crew<T> {
    words: mpsc::Receiver<Word<T>>,
    stop: Arc<AtomicBool>,
}

impl<T: Send + 'static> Crew<T> {
    fn start(server: &Arc<Server>, jobs: Vec<Job>, read: &Read<T>, mut jitter: ChaCha8Rng) -> Self {
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_by(|&a, &b| jobs[a].order.cmp(&jobs[b].order).then(a.cmp(&b)));
        let seeds: Vec<u64> = jobs.iter().map(|_| jitter.next_u64()).collect();
        let threads = (server.settings().concurrency as usize).min(jobs.len());
        // Each thread has one word at a time; more would only let them run ahead of a caller that wants to stop.
        let (say, words) = mpsc::sync_channel(threads.max(1));
        let stop = Arc::new(AtomicBool::new(false));
        let work = Arc::new((jobs, order, seeds, AtomicUsize::new(0)));
        for _ in 0..threads {
            let (server, read, work, stop, say) =
                (Arc::clone(server), Arc::clone(read), Arc::clone(&work), Arc::clone(&stop), say.clone());
            thread::spawn(move || {
                let (jobs, order, seeds, next) = &*work;
                while let Some(&at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut jitter = ChaCha8Rng::seed_from_u64(seeds[at]);
                    let word = one(&server, &jobs[at], &read, &mut jitter, &stop);
                    if say.send((at, word)).is_err() || stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        Self { words, stop }
    }

    /// The next word, with a look at the caller's wish every now and then.
    fn next(&self, mut look: impl FnMut() -> ControlFlow<()>) -> Result<Word<T>, ProviderError> {
        loop {
            if look().is_break() {
                return Err(ProviderError::Cancelled);
            }
            match self.words.recv_timeout(REPORT_EVERY) {
                Ok(word) => return Ok(word),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let what = "its threads died, which is a bug in rallrec".to_owned();
                    return Err(ProviderError::Refused { server: "provider".into(), what });
                }
            }
        }
    }
}

impl<T> Drop for Crew<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The answer to one request, or why its row has none, and what it cost in either case.
fn one<T>(
    server: &Server,
    job: &Job,
    read: &Read<T>,
    jitter: &mut ChaCha8Rng,
    stop: &AtomicBool,
) -> Result<(Result<T, String>, Usage), Fault> {
    let reply = server.transport().post(job.path, &job.body, jitter, stop)?;
    let mut usage = Usage { requests: 1, retries: u64::from(reply.retries), ..wire::usage(&reply.body) };
    match read(&reply.body, reply.seconds) {
        Ok((value, bounded)) => {
            usage.bounded = u64::from(bounded);
            Ok((Ok(value), usage))
        }
        Err(Fault::Row(why)) => Ok((Err(why), usage)),
        Err(fault) => Err(fault),
    }
}
