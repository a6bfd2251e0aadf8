//! A model on a server, asked for whole lists of prompts.

use crate::{
    ProviderError, answers,
    batch::{self, Batch, Done, Job, Read},
    error::Fault,
    transport::{Backoff, ServerKey, Transport},
    wire,
};
use rallrec_core::models::RemoteModel;
use rand_chacha::{ChaCha8Rng, rand_core::Rng};
use std::{ops::ControlFlow, sync::Arc};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A conversation, which the server writes in its model's chat format (`/chat/completions`).
    Chat(Vec<Turn>),
    /// A text that is already in that format, but for the token that begins a text (`/completions`).
    Text(String),
}

impl Prompt {
    /// Whether there is nothing to read.
    fn is_empty(&self) -> bool {
        match self {
            Self::Chat(turns) => turns.iter().all(|t| t.content.is_empty()),
            Self::Text(text) => text.is_empty(),
        }
    }

    fn order(&self) -> String {
        match self {
            Self::Chat(turns) => turns.iter().flat_map(|t| [t.content.as_str(), "\u{0}"]).collect(),
            Self::Text(text) => text.clone(),
        }
    }
}

/// A prompt and the samples wanted of it.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What is sent.
    pub prompt: Prompt,
    /// One generator a sample: its first draw is the seed that the server is given.
    pub samples: Vec<ChaCha8Rng>,
}

/// How answers are drawn, as far as servers can be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Draws from the smallest set of tokens with this probability; 1 for all.
    pub top_p: f32,
    /// Draws from the most probable tokens only. Not in OpenAI's own interface.
    pub top_k: Option<u32>,
    /// Draws only tokens with at least this part of the most probable one's probability. Not in OpenAI's own interface.
    pub min_p: Option<f32>,
    /// Makes what was written already less probable. Not in OpenAI's own interface.
    pub repetition_penalty: Option<f32>,
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// Texts that end an answer, and are cut from it.
    pub stop_texts: Vec<String>,
}

/// How the vectors of tokens become one, for servers that do not do it themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The last one.
    Last,
}

/// One sampled answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens, by the server's count.
    pub tokens: u32,
    /// Seconds that the request took.
    pub seconds: f32,
    /// Whether it ended by itself.
    pub finished: bool,
}

/// Natural log-probabilities of the two answers at the next token.
pub type Scores = [f32; 2];

/// A model on a server. It may be shared between threads; then they share its limits too.
#[derive(Debug)]
pub struct Server {
    settings: RemoteModel,
    transport: Transport,
}

/// Hears how far a call is, several times a second; [`ControlFlow::Break`] ends it with [`ProviderError::Cancelled`].
pub(crate) type Watch<'a> = &'a mut dyn FnMut(Done) -> ControlFlow<()>;

impl Server {
    /// A server; nothing is sent yet.
    pub fn new(settings: RemoteModel, key: Option<ServerKey>, backoff: Backoff) -> Arc<Self> {
        let transport = Transport::new(&settings, key, backoff);
        Arc::new(Self { settings, transport })
    }

    /// What the pipeline says about it.
    pub fn settings(&self) -> &RemoteModel {
        &self.settings
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Samples answers to every prompt: for each, in its samples' order. `jitter` only varies the waits of retries.
    ///
    /// # Errors
    /// [`ProviderError`]. A prompt that is empty, or longer than the server's context, is an error of its row alone.
    pub fn generate(
        self: &Arc<Self>,
        asks: Vec<Ask>,
        sampling: &Sampling,
        jitter: ChaCha8Rng,
        watch: Watch<'_>,
    ) -> Result<Batch<Vec<Answer>>, ProviderError> {
        let (rows, empty) = (asks.len(), empty(asks.iter().map(|a| &a.prompt)));
        let mut jobs = Vec::new();
        for (row, ask) in asks.into_iter().enumerate().filter(|(row, _)| !empty[*row]) {
            for mut sample in ask.samples {
                // 31 bits: some servers keep seeds in a signed 32-bit number.
                let seed = u64::from(sample.next_u32() >> 1);
                let (path, body) = wire::sample(&self.settings.model, &ask.prompt, sampling, seed);
                jobs.push(Job { row, order: ask.prompt.order(), path, body });
            }
        }
        let read: Read<Answer> = Arc::new(|body, seconds| Ok((wire::read_sample(body, seconds)?, false)));
        Ok(refuse_empty(batch::run(self, rows, jobs, &read, jitter, watch)?, &empty))
    }

    /// Log-probabilities of two answers, each one token with exactly this text, right after every prompt; see
    /// `answers.rs` for answers that the server does not list.
    ///
    /// # Errors
    /// As [`Self::generate`]; a server that tells no log-probabilities is refused.
    pub fn score(
        self: &Arc<Self>,
        prompts: &[Prompt],
        answers: [String; 2],
        jitter: ChaCha8Rng,
        watch: Watch<'_>,
    ) -> Result<Batch<Scores>, ProviderError> {
        let job = |prompt: &Prompt| wire::next_token(&self.settings.model, prompt);
        let wanted = answers.clone();
        let read: Read<Result<Scores, String>> =
            Arc::new(move |body, _| match answers::find(&wire::read_likely(body)?, &wanted) {
                Ok(found) => Ok((Ok(found.log_p), found.bounded)),
                Err(unlisted) => Ok((Err(unlisted), false)),
            });
        let listed = self.one_each(prompts, job, &read, jitter.clone(), watch)?;
        self.echo_unlisted(prompts, &answers, listed, jitter, watch)
    }

    /// Scores prompts whose answers were not listed by having the server read prompt and answer, once for each answer.
    /// Only texts can be read so. Where a server does not do it, the rows keep the reason that they had.
    fn echo_unlisted(
        self: &Arc<Self>,
        prompts: &[Prompt],
        answers: &[String; 2],
        listed: Batch<Result<Scores, String>>,
        jitter: ChaCha8Rng,
        watch: Watch<'_>,
    ) -> Result<Batch<Scores>, ProviderError> {
        let mut jobs = Vec::new();
        for (row, (prompt, result)) in prompts.iter().zip(&listed.rows).enumerate() {
            if let (Prompt::Text(text), Ok(Err(_))) = (prompt, result) {
                jobs.extend(answers.iter().map(|answer| {
                    let (path, body) = wire::echo(&self.settings.model, text, answer);
                    Job { row, order: format!("{text}{answer}"), path, body }
                }));
            }
        }
        let mut usage = listed.usage;
        let mut echoed = vec![None; prompts.len()];
        if !jobs.is_empty() {
            let answers = answers.clone();
            let read: Read<f32> = Arc::new(move |body, _| Ok((wire::read_echo(body, &answers)?, false)));
            match batch::run(self, prompts.len(), jobs, &read, jitter, watch) {
                Ok(done) => {
                    usage += done.usage;
                    echoed = done.rows.into_iter().map(|row| row.ok()?.try_into().ok()).collect();
                }
                Err(ProviderError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let rows = listed.rows.into_iter().zip(echoed);
        let rows = rows.map(|(row, echoed)| row.and_then(|scores| scores.or_else(|why| echoed.ok_or(why))));
        Ok(Batch { rows: rows.collect(), prompt_tokens: listed.prompt_tokens, usage })
    }

    /// One vector a text. `pooling` counts only for servers that give a vector for every token.
    ///
    /// # Errors
    /// As [`Self::generate`]; a server that offers no embeddings is refused.
    pub fn embed(
        self: &Arc<Self>,
        texts: &[String],
        pooling: Pooling,
        jitter: ChaCha8Rng,
        watch: Watch<'_>,
    ) -> Result<Batch<Vec<f32>>, ProviderError> {
        let prompts: Vec<Prompt> = texts.iter().cloned().map(Prompt::Text).collect();
        let job = |prompt: &Prompt| match prompt {
            Prompt::Text(text) => wire::embedding(&self.settings.model, text),
            Prompt::Chat(_) => wire::embedding(&self.settings.model, ""),
        };
        let read: Read<Vec<f32>> = Arc::new(move |body, _| Ok((wire::read_embedding(body, pooling)?, false)));
        self.one_each(&prompts, job, &read, jitter, watch)
    }

    /// One request a prompt.
    fn one_each<T: Send + 'static>(
        self: &Arc<Self>,
        prompts: &[Prompt],
        job: impl Fn(&Prompt) -> (&'static str, serde_json::Value),
        read: &Read<T>,
        jitter: ChaCha8Rng,
        watch: Watch<'_>,
    ) -> Result<Batch<T>, ProviderError> {
        let empty = empty(prompts.iter());
        let asked = prompts.iter().enumerate().filter(|(row, _)| !empty[*row]);
        let jobs = asked.map(|(row, prompt)| {
            let (path, body) = job(prompt);
            Job { row, order: prompt.order(), path, body }
        });
        let done = batch::run(self, prompts.len(), jobs.collect(), read, jitter, watch)?;
        let done = refuse_empty(done, &empty);
        let single = |values: Vec<T>| values.into_iter().next().ok_or_else(|| "there is no answer".to_owned());
        let rows = done.rows.into_iter().map(|row| row.and_then(single)).collect();
        Ok(Batch { rows, prompt_tokens: done.prompt_tokens, usage: done.usage })
    }

    pub(crate) fn failure(&self, fault: Fault) -> ProviderError {
        let server = format!("{} (model {})", self.settings.url, self.settings.model);
        match fault {
            Fault::Row(what) | Fault::Permanent(what) => ProviderError::Refused { server, what },
            Fault::Passing { what, .. } => ProviderError::Unavailable { server, what, tries: 1 },
            Fault::Exhausted { what, tries } => ProviderError::Unavailable { server, what, tries },
            Fault::Stopped => ProviderError::Cancelled,
        }
    }
}

fn empty<'a>(prompts: impl Iterator<Item = &'a Prompt>) -> Vec<bool> {
    prompts.map(Prompt::is_empty).collect()
}

fn refuse_empty<T>(mut batch: Batch<T>, empty: &[bool]) -> Batch<T> {
    for (row, _) in batch.rows.iter_mut().zip(empty).filter(|(_, empty)| **empty) {
        *row = Err("it has no tokens".to_owned());
    }
    batch
}
