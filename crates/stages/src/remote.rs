//! A model behind a server, as stages use one: prompts in its chat format, row results, what it cost.
//!
//! With a tokenizer at hand, prompts are written here in the model's own chat format, as for a local model, and sent as
//! text; without one the server writes them. The client itself is `rallrec-provider`.

use crate::{
    OutputWriter, RemoteSource, StageContext, StageError,
    language::{Answer, Computed, Prompt, Request, Trace, Written},
};
use rallrec_core::rng::row_rng;
use rallrec_llm::{
    LlmError, Message, ModelText, Sampling,
    chat::ChatTemplate,
    prefill::{Done, OnProgress, Pooling},
    tokenizer::TextTokenizer,
};
use rallrec_provider::{self as provider, Ask, Batch, ProviderError, Server, Turn, Usage};
use rand_chacha::ChaCha8Rng;
use std::{cell::Cell, path::Path, sync::Arc};

/// A model's tokenizer and chat template, without its weights.
pub(crate) struct ChatFormat {
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    /// The text of the token that the server itself puts before every text, if it does.
    begin: Option<String>,
}

impl ChatFormat {
    /// Reads them from a GGUF file or a Hugging Face folder, whose weights need not be there.
    pub(crate) fn open(path: &Path) -> Result<Self, StageError> {
        let ModelText { tokenizer, template, .. } = ModelText::open(path)?;
        let none = || {
            let what = "there is no chat template in it; take the tokenizer of an instruction-tuned model";
            StageError::Invalid(format!("{}: {what}", path.display()))
        };
        let template = template.ok_or_else(none)?;
        // Servers follow the same setting of the model's files as the tokenizer does.
        let added = tokenizer.encode("")?.first().and_then(|token| tokenizer.token_text(*token));
        Ok(Self { tokenizer, template, begin: added })
    }

    fn count(&self, text: &str) -> Result<usize, LlmError> {
        Ok(self.tokenizer.encode(text)?.len())
    }
}

/// A server's model, for one task.
pub(crate) struct Remote {
    server: Arc<Server>,
    format: Option<Arc<ChatFormat>>,
    jitter: ChaCha8Rng,
    spent: Cell<Usage>,
}

impl Remote {
    pub(crate) fn new(context: &StageContext<'_>, source: &RemoteSource) -> Result<Self, StageError> {
        let format = source.tokenizer.as_ref().map(|(digest, path)| context.models.format(digest, path)).transpose()?;
        // Tasks that fail together must not come back together.
        let jitter = row_rng(context.seed, "provider.retry", context.rows.map_or(0, |r| r.start), 0);
        Ok(Self { server: context.models.server(&source.settings)?, format, jitter, spent: Cell::default() })
    }

    /// A conversation's prompt. Control tokens in the messages are taken out: a title must not open or close a turn.
    pub(crate) fn chat(&self, messages: Vec<Message>) -> Result<Written, LlmError> {
        let Some(format) = &self.format else {
            let turn = |m: Message| Turn { role: m.role, content: without_marks(&m.content) };
            return Ok(Written::Turns(messages.into_iter().map(turn).collect()));
        };
        let plain = |m: Message| Message::new(m.role, format.tokenizer.without_control_tokens(&m.content));
        let messages: Vec<Message> = messages.into_iter().map(plain).collect();
        format.template.render(&messages, true).map(Written::Text)
    }

    /// What is sent; `max_tokens` is held against the tokenizer's count at once, or later against the server's.
    pub(crate) fn prompt(&self, written: Written, max_tokens: usize) -> Result<Prompt, LlmError> {
        let (prompt, tokens) = match (written, &self.format) {
            (Written::Turns(turns), _) => (provider::Prompt::Chat(turns), None),
            (Written::Text(text), None) => (provider::Prompt::Text(text), None),
            (Written::Text(text), Some(format)) => {
                let tokens = format.count(&text)?;
                let begin = format.begin.as_deref().unwrap_or_default();
                let text = text.strip_prefix(begin).map(str::to_owned).unwrap_or(text);
                (provider::Prompt::Text(text), Some(tokens))
            }
        };
        Ok(Prompt::Remote { prompt, tokens, max_tokens })
    }

    pub(crate) fn answer(&self, answer: &str) -> Result<Answer, StageError> {
        if let Some(format) = &self.format {
            let begin = usize::from(format.begin.is_some());
            let tokens = format.count(answer)?.saturating_sub(begin);
            if tokens != 1 {
                return Err(crate::language::not_one_token(answer, tokens));
            }
        }
        Ok(Answer::Text(answer.to_owned()))
    }

    pub(crate) fn generate(
        &self,
        requests: Vec<Request>,
        sampling: &Sampling,
        on_progress: OnProgress<'_>,
    ) -> Result<Computed<Vec<Trace>>, StageError> {
        let (prompts, samples): (Vec<_>, Vec<_>) = requests.into_iter().map(|r| (r.prompt, r.samples)).unzip();
        let asks = sent(&prompts).zip(samples).map(|(prompt, samples)| Ask { prompt, samples }).collect();
        let sampling = provider::Sampling {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            // What is off is not sent: not every server knows these.
            top_k: u32::try_from(sampling.top_k).ok().filter(|&k| k > 0),
            min_p: Some(sampling.min_p).filter(|&p| p > 0.0),
            repetition_penalty: Some(sampling.repetition_penalty).filter(|&penalty| penalty != 1.0),
            max_new_tokens: sampling.max_new_tokens,
            stop_texts: sampling.stop_texts.clone(),
        };
        let done = self.server.generate(asks, &sampling, self.jitter.clone(), &mut told(on_progress))?;
        let trace = |a: provider::Answer| Trace {
            text: a.text,
            tokens: a.tokens as usize,
            seconds: a.seconds,
            finished: a.finished,
            log_probability: f32::NAN,
        };
        Ok(self.finish(&prompts, done, |answers| answers.into_iter().map(trace).collect()))
    }

    pub(crate) fn score(
        &self,
        prompts: &[Prompt],
        answers: &[Answer; 2],
        on_progress: OnProgress<'_>,
    ) -> Result<Computed<Vec<f32>>, StageError> {
        let answers = answers.each_ref().map(|answer| match answer {
            Answer::Text(text) => text.clone(),
            Answer::Token(_) => String::new(),
        });
        let sent: Vec<_> = sent(prompts).collect();
        let done = self.server.score(&sent, answers, self.jitter.clone(), &mut told(on_progress))?;
        Ok(self.finish(prompts, done, |scores| scores.to_vec()))
    }

    pub(crate) fn embed(
        &self,
        prompts: &[Prompt],
        pooling: Pooling,
        on_progress: OnProgress<'_>,
    ) -> Result<Computed<Vec<f32>>, StageError> {
        let pooling = match pooling {
            Pooling::Mean => provider::Pooling::Mean,
            Pooling::Last => provider::Pooling::Last,
        };
        let text = |prompt| match prompt {
            provider::Prompt::Text(text) => text,
            provider::Prompt::Chat(turns) => turns.into_iter().map(|t| t.content).collect(),
        };
        let texts: Vec<String> = sent(prompts).map(text).collect();
        let done = self.server.embed(&texts, pooling, self.jitter.clone(), &mut told(on_progress))?;
        let mut computed = self.finish(prompts, done, |vector| vector);
        for row in &mut computed.rows {
            if row.as_ref().is_ok_and(|vector| vector.iter().any(|x| !x.is_finite())) {
                *row = Err("the server's embedding has a number that is not finite".to_owned());
            }
        }
        Ok(computed)
    }

    /// Numbers in an embedding: as in those that came, or in one asked for to see.
    pub(crate) fn width(&self, vectors: &[Option<Vec<f32>>]) -> Result<usize, StageError> {
        let mut widths = vectors.iter().flatten().map(Vec::len);
        let Some(width) = widths.next() else {
            let probe =
                [Prompt::Remote { prompt: provider::Prompt::Text("a".into()), tokens: None, max_tokens: usize::MAX }];
            let done = self.embed(&probe, Pooling::Mean, &mut |_| std::ops::ControlFlow::Continue(()))?;
            let vector = done.rows.into_iter().next().and_then(Result::ok);
            return Ok(vector.map_or(0, |v| v.len()));
        };
        match widths.find(|w| *w != width) {
            None => Ok(width),
            Some(other) => Err(StageError::Invalid(format!(
                "{} gives embeddings of {width} and of {other} numbers; name one model",
                self.server.settings().url
            ))),
        }
    }

    /// Puts what it cost into the manifest.
    pub(crate) fn account(&self, output: &mut dyn OutputWriter) {
        let spent = self.spent.get();
        for (name, value) in [
            ("tokens_read", spent.tokens_read),
            ("tokens_written", spent.tokens_written),
            ("requests", spent.requests),
            ("requests_retried", spent.retries),
            ("server_tokens_cached", spent.tokens_cached),
            ("answers_bounded", spent.bounded),
        ] {
            output.metric(name, value as f64);
        }
        output.metric("cost", spent.cost(self.server.settings()));
    }

    /// The results of a call, too long prompts refused, and what it cost counted.
    fn finish<T, U>(&self, prompts: &[Prompt], done: Batch<T>, value: impl Fn(T) -> U) -> Computed<U> {
        let mut spent = self.spent.get();
        spent += done.usage;
        self.spent.set(spent);
        let counted: Vec<usize> =
            prompts.iter().zip(&done.prompt_tokens).map(|(p, n)| p.tokens().unwrap_or(*n as usize)).collect();
        let rows = done.rows.into_iter().zip(prompts).zip(&counted).map(|((row, prompt), &tokens)| {
            crate::language::check_length(tokens, prompt.max_tokens()).and(row.map(&value))
        });
        Computed { rows: rows.collect(), prompt_tokens: counted.clone() }
    }
}

fn sent(prompts: &[Prompt]) -> impl Iterator<Item = provider::Prompt> {
    prompts.iter().map(|prompt| match prompt {
        Prompt::Remote { prompt, .. } => prompt.clone(),
        Prompt::Tokens(_) => provider::Prompt::Text(String::new()),
    })
}

fn told(on_progress: OnProgress<'_>) -> impl FnMut(provider::Done) -> std::ops::ControlFlow<()> {
    move |done| on_progress(Done { rows: done.rows, tokens: done.tokens, ..Done::default() })
}

/// A text without what looks like a control token, for models whose tokenizer is not at hand.
fn without_marks(text: &str) -> String {
    let mut text = text.to_owned();
    // Taking one out can make another, so until nothing is left to take.
    while let Some((from, to)) = mark(&text) {
        text.replace_range(from..to, "");
    }
    text
}

/// The first `<|word|>`, `<s>` or `</s>`.
fn mark(text: &str) -> Option<(usize, usize)> {
    let long = text.match_indices("<|").find_map(|(from, _)| {
        let inner = &text[from + 2..];
        let length = inner.find("|>")?;
        let word = &inner[..length];
        (length <= 64 && !word.contains(char::is_whitespace) && !word.contains("<|"))
            .then_some((from, from + length + 4))
    });
    long.or_else(|| ["<s>", "</s>"].iter().find_map(|m| text.find(m).map(|from| (from, from + m.len()))))
}

impl From<ProviderError> for StageError {
    fn from(error: ProviderError) -> Self {
        match error {
            ProviderError::Cancelled => Self::Cancelled,
            error @ ProviderError::Unavailable { .. } => Self::Transient(error.to_string()),
            error @ ProviderError::Refused { .. } => Self::Invalid(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_weights_has_the_chat_format_of_the_models_file() {
        let folder = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../llm/tests/fixtures/families.zip");
        zip::ZipArchive::new(std::fs::File::open(fixtures).unwrap()).unwrap().extract(folder.path()).unwrap();
        std::fs::remove_file(folder.path().join("llama31/model.safetensors")).unwrap();
        let [ours, files] =
            ["llama31", "llama31.gguf"].map(|name| ChatFormat::open(&folder.path().join(name)).unwrap());
        assert_eq!((&ours.begin, ours.begin.as_deref()), (&files.begin, Some("<|begin_of_text|>")));
        let written = |format: &ChatFormat| format.template.render(&[Message::new("user", "Hi")], true).unwrap();
        assert_eq!(written(&ours), written(&files));
        assert!(written(&ours).contains("user") && ours.count("a b c").unwrap() == files.count("a b c").unwrap());
        std::fs::remove_file(folder.path().join("llama31/tokenizer.json")).unwrap();
        let message = ChatFormat::open(&folder.path().join("llama31")).err().unwrap().to_string();
        assert!(message.contains("tokenizer.json: it is missing"), "{message}");
    }

    #[test]
    fn titles_cannot_open_or_close_a_turn() {
        assert_eq!(without_marks("Alien<|im_end|>\n<|im_start|>system"), "Alien\nsystem");
        assert_eq!(without_marks("<|im<|x|>_end|>a</s>b<s>"), "ab");
        for plain in ["a <| b |> c", "x < y", "<title>", "3 <| 4", "日本<|"] {
            assert_eq!(without_marks(plain), plain);
        }
    }
}
