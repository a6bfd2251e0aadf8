//! What the stages that use a language model share: the model, prompts in its chat format, rows that failed.

use crate::{Model, OutputWriter, StageContext, StageError, columns::Table, meter::Meter, remote::Remote};
use rallrec_llm::{
    GenerateRequest, Generation, LanguageModel, LlmError, Message, OnProgress, Pooling, Rows, Sampling, Slots,
};
use rallrec_provider::{self as provider, Turn};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

/// The task's model.
pub(crate) fn model(context: &StageContext<'_>) -> Result<Language, StageError> {
    match context.model.as_ref().ok_or_else(|| StageError::Invalid("the stage needs `model`".into()))? {
        Model::Local(source) => context.models.get(source, context.device, context.cancel).map(Language::Local),
        Model::Remote(source) => Remote::new(context, source).map(Box::new).map(Language::Remote),
    }
}

/// A model, wherever it is.
pub(crate) enum Language {
    /// In memory here.
    Local(Arc<LanguageModel>),
    /// Behind a server.
    Remote(Box<Remote>),
}

/// A prompt before it is encoded.
#[derive(Clone, Debug)]
pub(crate) enum Written {
    /// A text in the model's chat format, or a plain one.
    Text(String),
    /// A conversation that the server will write in its model's chat format.
    Turns(Vec<Turn>),
}

impl Written {
    /// The prompt with more text behind it. A conversation ends where the answer begins and takes none: pipelines that
    /// need it are refused when they are compiled.
    pub(crate) fn followed_by(self, more: &str) -> Self {
        match self {
            Self::Text(text) => Self::Text(text + more),
            turns @ Self::Turns(_) => turns,
        }
    }
}

/// A prompt as its model takes it.
#[derive(Clone, Debug)]
pub(crate) enum Prompt {
    /// For a local model.
    Tokens(Vec<u32>),
    /// For a server.
    Remote {
        /// What is sent.
        prompt: provider::Prompt,
        /// Its tokens, where they could be counted.
        tokens: Option<usize>,
        /// Most tokens that it may have.
        max_tokens: usize,
    },
}

impl Prompt {
    /// Its tokens, where they are known before it is computed.
    pub(crate) fn tokens(&self) -> Option<usize> {
        match self {
            Self::Tokens(tokens) => Some(tokens.len()),
            Self::Remote { tokens, .. } => *tokens,
        }
    }

    pub(crate) fn max_tokens(&self) -> usize {
        match self {
            Self::Tokens(_) => usize::MAX,
            Self::Remote { max_tokens, .. } => *max_tokens,
        }
    }

    /// The tokens for a local model; prompts are made by the model that computes them.
    pub(crate) fn into_tokens(self) -> Vec<u32> {
        match self {
            Self::Tokens(tokens) => tokens,
            Self::Remote { .. } => Vec::new(),
        }
    }
}

/// A prompt and the samples wanted of it.
pub(crate) struct Request {
    /// What is asked.
    pub(crate) prompt: Prompt,
    /// One generator a sample.
    pub(crate) samples: Vec<ChaCha8Rng>,
}

/// One sampled answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trace {
    /// Its text.
    pub(crate) text: String,
    /// Its tokens.
    pub(crate) tokens: usize,
    /// Seconds from its first to its last token; from a server, of its request.
    pub(crate) seconds: f32,
    /// Whether it ended by itself.
    pub(crate) finished: bool,
    /// Mean natural log-probability of its tokens in the model's own distribution; NaN from a server.
    pub(crate) log_probability: f32,
}

/// An answer whose probability is wanted.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// For a local model.
    Token(u32),
    /// For a server.
    Text(String),
}

/// What a model made of a list of prompts.
pub(crate) struct Computed<T> {
    /// One result a prompt, or why it has none.
    pub(crate) rows: Vec<Result<T, String>>,
    /// Tokens of each prompt.
    pub(crate) prompt_tokens: Vec<usize>,
}

impl<T> Computed<T> {
    fn local(prompt_tokens: Vec<usize>, rows: Rows<T>) -> Self {
        let reason = |error| match error {
            // The error's own row is a position in this call; the caller's row is told beside it.
            LlmError::Prompt { what, .. } => what,
            error => error.to_string(),
        };
        Self { rows: rows.into_iter().map(|row| row.map_err(reason)).collect(), prompt_tokens }
    }
}

impl Language {
    /// Tokens that end an answer; a server knows its model's own.
    pub(crate) fn end_tokens(&self) -> Vec<u32> {
        match self {
            Self::Local(model) => model.tokenizer().ends().to_vec(),
            Self::Remote(_) => Vec::new(),
        }
    }

    /// An answer, which must be one token.
    pub(crate) fn answer(&self, answer: &str) -> Result<Answer, StageError> {
        match self {
            Self::Local(model) => answer_token(model, answer).map(Answer::Token),
            Self::Remote(remote) => remote.answer(answer),
        }
    }

    /// A prompt with more text behind it, however long it gets.
    pub(crate) fn followed_by(&self, prompt: &Prompt, more: &str) -> Result<Prompt, StageError> {
        match (self, prompt) {
            (Self::Local(model), Prompt::Tokens(tokens)) => {
                Ok(Prompt::Tokens([tokens.as_slice(), &model.encode_plain(more)?].concat()))
            }
            (_, Prompt::Remote { prompt: provider::Prompt::Text(text), .. }) => Ok(Prompt::Remote {
                prompt: provider::Prompt::Text(format!("{text}{more}")),
                tokens: None,
                max_tokens: usize::MAX,
            }),
            (_, other) => Ok(other.clone()),
        }
    }

    /// Samples answers to every request; see [`LanguageModel::generate`]. Texts show the control token `shown`, if the
    /// model has it, and no other.
    pub(crate) fn generate(
        &self,
        requests: Vec<Request>,
        sampling: &Sampling,
        slots: Slots,
        shown: Option<&str>,
        on_progress: OnProgress<'_>,
    ) -> Result<Computed<Vec<Trace>>, StageError> {
        let model = match self {
            Self::Local(model) => model,
            Self::Remote(remote) => return remote.generate(requests, sampling, on_progress),
        };
        let lengths = requests.iter().map(|r| r.prompt.tokens().unwrap_or(0)).collect();
        let request = |r: Request| GenerateRequest { prompt: r.prompt.into_tokens(), samples: r.samples };
        let requests = requests.into_iter().map(request).collect();
        let mut computed = Computed::local(lengths, model.generate(requests, sampling, slots, on_progress)?);
        let shown = shown.and_then(|token| model.tokenizer().token(token));
        let trace = |g: Generation| -> Result<Trace, LlmError> {
            let (tokens, log_probability) = (g.tokens.len(), g.mean_log_probability());
            let (seconds, finished) = (g.seconds, g.finish.is_natural());
            let text = shown.map_or_else(|| Ok(g.text.clone()), |token| with_token(model, token, &g))?;
            Ok(Trace { text, tokens, seconds, finished, log_probability })
        };
        let rows = computed.rows.drain(..).map(|row| {
            row.and_then(|all| all.into_iter().map(trace).collect::<Result<_, _>>().map_err(|error| error.to_string()))
        });
        Ok(Computed { rows: rows.collect(), prompt_tokens: computed.prompt_tokens })
    }

    /// Logits (from a server: log-probabilities) of the answers after every prompt; see [`LanguageModel::score`].
    pub(crate) fn score(
        &self,
        prompts: Vec<Prompt>,
        answers: &[Answer; 2],
        batch_tokens: usize,
        on_progress: OnProgress<'_>,
    ) -> Result<Computed<Vec<f32>>, StageError> {
        let model = match self {
            Self::Local(model) => model,
            Self::Remote(remote) => return remote.score(&prompts, answers, on_progress),
        };
        let token = |answer: &Answer| match answer {
            Answer::Token(token) => Some(*token),
            Answer::Text(_) => None,
        };
        let answers: Vec<u32> = answers.iter().filter_map(token).collect();
        let (lengths, prompts) = encoded(prompts);
        Ok(Computed::local(lengths, model.score(&prompts, &answers, batch_tokens, on_progress)?))
    }

    /// One vector a prompt; see [`LanguageModel::embed`].
    pub(crate) fn embed(
        &self,
        prompts: Vec<Prompt>,
        pooling: Pooling,
        batch_tokens: usize,
        on_progress: OnProgress<'_>,
    ) -> Result<Computed<Vec<f32>>, StageError> {
        let model = match self {
            Self::Local(model) => model,
            Self::Remote(remote) => return remote.embed(&prompts, pooling, on_progress),
        };
        let (lengths, prompts) = encoded(prompts);
        Ok(Computed::local(lengths, model.embed(&prompts, pooling, batch_tokens, on_progress)?))
    }

    /// Numbers in an embedding, when these are some.
    pub(crate) fn width(&self, vectors: &[Option<Vec<f32>>]) -> Result<usize, StageError> {
        match self {
            Self::Local(model) => Ok(model.hidden_size()),
            Self::Remote(remote) => remote.width(vectors),
        }
    }

    /// Puts what was read and written, and from a server what it cost, into the manifest.
    pub(crate) fn account(&self, meter: &Meter<'_>, output: &mut dyn OutputWriter) {
        match self {
            Self::Local(_) => meter.record(output),
            Self::Remote(remote) => remote.account(output),
        }
    }
}

/// An answer's text with a control token that it has: texts leave control tokens out.
fn with_token(model: &LanguageModel, token: u32, answer: &Generation) -> Result<String, LlmError> {
    let tokenizer = model.tokenizer();
    let at = answer.tokens.iter().rposition(|&t| t == token);
    let Some(at) = at.filter(|_| tokenizer.decode(&[token]).is_ok_and(|text| text.is_empty())) else {
        return Ok(answer.text.clone());
    };
    let (before, after) = (tokenizer.decode(&answer.tokens[..at])?, tokenizer.decode(&answer.tokens[at + 1..])?);
    Ok(before + &tokenizer.decode_with_control_tokens(&[token])? + &after)
}

fn encoded(prompts: Vec<Prompt>) -> (Vec<usize>, Vec<Vec<u32>>) {
    prompts.into_iter().map(Prompt::into_tokens).map(|tokens| (tokens.len(), tokens)).unzip()
}

/// A user's message, after a system message unless that is empty, as the model's chat prompt: it ends where the answer
/// begins. Control tokens in the messages are taken out: a title must not open or close a turn.
pub(crate) fn chat(model: &Language, system: &str, user: &str) -> Result<Written, LlmError> {
    let system = (!system.is_empty()).then(|| Message::new("system", system));
    let messages = system.into_iter().chain([Message::new("user", user)]);
    match model {
        Language::Local(model) => {
            let plain = |m: Message| Message::new(m.role, model.tokenizer().without_control_tokens(&m.content));
            model.chat(&messages.map(plain).collect::<Vec<_>>(), true).map(Written::Text)
        }
        Language::Remote(remote) => remote.chat(messages.collect()),
    }
}

/// The one token of an answer.
pub(crate) fn answer_token(model: &LanguageModel, answer: &str) -> Result<u32, StageError> {
    match model.encode_plain(answer)?[..] {
        [token] => Ok(token),
        ref found => Err(not_one_token(answer, found.len())),
    }
}

pub(crate) fn not_one_token(answer: &str, tokens: usize) -> StageError {
    StageError::Invalid(format!(
        "the answer {answer:?} is {tokens} tokens in this model, and must be one; choose another word for with.yes or with.no"
    ))
}

/// The probability of yes among the two answers.
pub(crate) fn probability(logit_yes: f32, logit_no: f32) -> f32 {
    1.0 / (1.0 + (logit_no - logit_yes).exp())
}

/// The prompts as the model takes them; one that is too long or fails is an error of its row.
pub(crate) fn encode_all(
    model: &Language,
    texts: impl IntoIterator<Item = Result<Written, LlmError>>,
    max_tokens: usize,
) -> Vec<Result<Prompt, String>> {
    let encode = |text: Result<Written, LlmError>| {
        let prompt = text.and_then(|written| match (model, written) {
            (Language::Local(model), Written::Text(text)) => model.encode(&text).map(Prompt::Tokens),
            (Language::Local(_), Written::Turns(_)) => Ok(Prompt::Tokens(Vec::new())),
            (Language::Remote(remote), written) => remote.prompt(written, max_tokens),
        });
        let prompt = prompt.map_err(|e| e.to_string())?;
        check_length(prompt.tokens().unwrap_or(0), max_tokens)?;
        Ok(prompt)
    };
    texts.into_iter().map(encode).collect()
}

/// A table's prompts up to where the answer begins, as `score` reads them and `tune` learns them.
pub(crate) fn answer_prompts(
    model: &Language,
    prompts: &Table<'_>,
    system: &str,
    max_tokens: u32,
) -> Result<Vec<Result<Prompt, String>>, StageError> {
    let texts = prompts.text("prompt")?.into_iter().map(|prompt| chat(model, system, prompt));
    Ok(encode_all(model, texts, max_tokens as usize))
}

/// Refuses a prompt that is longer than the pipeline allows.
pub(crate) fn check_length(tokens: usize, max_tokens: usize) -> Result<(), String> {
    if tokens <= max_tokens {
        return Ok(());
    }
    Err(format!(
        "the prompt has {tokens} tokens, and with.max_prompt_tokens allows {max_tokens}; shorten the history (with.k of retrieve), or allow more"
    ))
}

/// How answers are sampled: `describe` and `reason` say so in parameters of the same names.
macro_rules! sampling {
    ($params:expr, $model:expr) => {
        rallrec_llm::Sampling {
            temperature: $params.temperature as f32,
            top_k: $params.top_k as usize,
            top_p: $params.top_p as f32,
            min_p: $params.min_p as f32,
            repetition_penalty: $params.repetition_penalty as f32,
            max_new_tokens: $params.max_new_tokens as usize,
            stop_tokens: $model.end_tokens(),
            stop_texts: $params.stop.clone(),
        }
    };
}
pub(crate) use sampling;

/// How many samples are in progress at once; 0 bytes for what the machine has.
pub(crate) fn slots(batch_size: u32, kv_bytes: u64) -> Slots {
    Slots { samples: batch_size as usize, kv_bytes: (kv_bytes > 0).then_some(kv_bytes) }
}

/// Each row's result, or `None` and a reason where it failed: one reason a row, empty where all is well.
pub(crate) struct RowResults<T> {
    pub(crate) values: Vec<Option<T>>,
    pub(crate) errors: Vec<Option<String>>,
    /// Tokens of each prompt; 0 where it was not computed.
    pub(crate) prompt_tokens: Vec<usize>,
}

impl<T> RowResults<T> {
    /// Runs `compute` on the rows that can be computed, and puts its results back in their places.
    pub(crate) fn of(
        prompts: Vec<Result<Prompt, String>>,
        compute: impl FnOnce(Vec<Prompt>) -> Result<Computed<T>, StageError>,
    ) -> Result<Self, StageError> {
        let (mut places, mut good, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (row, prompt) in prompts.into_iter().enumerate() {
            match prompt {
                Ok(prompt) => {
                    places.push(row);
                    good.push(prompt);
                    errors.push(None);
                }
                Err(reason) => errors.push(Some(reason)),
            }
        }
        let mut values: Vec<Option<T>> = errors.iter().map(|_| None).collect();
        let mut prompt_tokens = vec![0; errors.len()];
        let computed = compute(good)?;
        for ((row, result), tokens) in places.into_iter().zip(computed.rows).zip(computed.prompt_tokens) {
            prompt_tokens[row] = tokens;
            match result {
                Ok(value) => values[row] = Some(value),
                Err(reason) => errors[row] = Some(reason),
            }
        }
        Ok(Self { values, errors, prompt_tokens })
    }

    /// Records every failed row; fails when there are too many.
    pub(crate) fn record(&self, context: &StageContext<'_>, output: &mut dyn OutputWriter) -> Result<(), StageError> {
        let first = context.rows.map_or(0, |r| r.start);
        for (row, error) in (first..).zip(&self.errors) {
            if let Some(reason) = error {
                output.bad_row(row, reason)?;
            }
        }
        Ok(())
    }
}

impl From<LlmError> for StageError {
    fn from(error: LlmError) -> Self {
        match error {
            LlmError::Cancelled => Self::Cancelled,
            other => Self::Invalid(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_rows_keep_their_places() {
        let tokens = |n| Ok(Prompt::Tokens(vec![n]));
        let prompts = vec![tokens(1), Err("too long".to_owned()), tokens(2), tokens(3)];
        let results = RowResults::of(prompts, |good| {
            assert_eq!(encoded(good), (vec![1, 1, 1], vec![vec![1], vec![2], vec![3]]));
            let rows = vec![Ok(10), Err(LlmError::Prompt { row: 1, what: "it is odd".into() }), Ok(30)];
            Ok(Computed::local(vec![1, 1, 1], rows))
        })
        .unwrap();
        assert_eq!(results.values, [Some(10), None, None, Some(30)]);
        assert_eq!(results.prompt_tokens, [1, 0, 1, 1]);
        assert_eq!(results.errors[2].as_deref(), Some("it is odd"));
        let failed: Vec<bool> = results.errors.iter().map(Option::is_some).collect();
        assert_eq!(failed, [false, true, true, false]);
    }

    #[test]
    fn probabilities_do_not_overflow() {
        assert_eq!(probability(0.0, 0.0), 0.5);
        assert_eq!((probability(200.0, -200.0), probability(-200.0, 200.0)), (1.0, 0.0));
    }
}
