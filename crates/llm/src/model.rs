//! A language model ready to use: weights, tokenizer and chat template of one file on one device.

use crate::{
    LlmError,
    adapter::Adapter,
    chat::{ChatTemplate, Message},
    config::ModelConfig,
    decoder::{Decoder, Step},
    generate::{self, GenerateRequest, Generation, Sampling},
    gguf::GgufFile,
    host::floats,
    kv::{Keep, KvPool, Sequence},
    prefill::{self, OnProgress, Pooling, Rows},
    tokenizer::TextTokenizer,
};
use burn::tensor::Device;
use std::{path::Path, sync::Arc};

/// A Llama-family model. It does not change once loaded: share it between threads.
///
/// On the CPU every result is a function of its own prompt (and generator) alone, to the bit: not of the other prompts
/// of the call, their order, `batch_tokens`, or `batch_size`. That holds for one build on one kind of processor;
/// processors with other vector widths differ in the last bits, as do other devices.
pub struct LanguageModel {
    pub(crate) decoder: Decoder,
    tokenizer: Arc<TextTokenizer>,
    template: Arc<Option<ChatTemplate>>,
}

/// What the model makes of a prompt up to one position.
#[derive(Clone, Debug, PartialEq)]
pub struct Position {
    /// Hidden state after the final norm, \[hidden size\].
    pub hidden: Vec<f32>,
    /// Logits of the next token, \[vocabulary\].
    pub logits: Vec<f32>,
}

impl LanguageModel {
    /// Reads a GGUF file and puts its weights, as 32-bit floats, on a device.
    ///
    /// # Errors
    /// [`LlmError::Read`] or [`LlmError::File`] when the file cannot be read or is not supported.
    pub fn load(path: &Path, device: &Device) -> Result<Self, LlmError> {
        let file = GgufFile::open(path)?;
        let tokenizer = TextTokenizer::from_gguf(&file)?;
        let text = |token: Option<u32>| token.and_then(|token| tokenizer.token_text(token)).unwrap_or_default();
        let template = match file.text("tokenizer.chat_template")? {
            Some(source) => Some(ChatTemplate::new(source, text(tokenizer.begin()), text(tokenizer.end()))?),
            None => None,
        };
        let decoder = Decoder::load(&file, device)?;
        tracing::debug!(path = %path.display(), config = ?decoder.config, "language model loaded");
        Ok(Self { decoder, tokenizer: Arc::new(tokenizer), template: Arc::new(template) })
    }

    /// The same model with an adapter, in place of the one that it may have. The weights are shared, not copied.
    ///
    /// # Errors
    /// [`LlmError::Adapter`] when the adapter was made for a model of another shape; it names the tensor.
    pub fn with_adapter(&self, adapter: &Adapter) -> Result<Self, LlmError> {
        let decoder = self.decoder.with_adapter(adapter)?;
        Ok(Self { decoder, tokenizer: self.tokenizer.clone(), template: self.template.clone() })
    }

    /// Sizes of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.decoder.config
    }

    /// Width of an embedding.
    pub fn hidden_size(&self) -> usize {
        self.decoder.config.hidden
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Token ids of a text; see [`TextTokenizer::encode`].
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] when the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LlmError> {
        self.tokenizer.encode(text)
    }

    /// The prompt of a conversation in the model's own chat format.
    ///
    /// # Errors
    /// [`LlmError::Template`] when the model has no chat template or it refuses the conversation.
    pub fn chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, LlmError> {
        let missing = || LlmError::Template("the model file has none; use an instruction-tuned model".into());
        self.template.as_ref().as_ref().ok_or_else(missing)?.render(messages, add_generation_prompt)
    }

    /// One vector a prompt, \[hidden size\]: the last layer's hidden states after the final norm, pooled (eq. 2, 3).
    ///
    /// `batch_tokens` bounds the tokens computed at once, thus memory.
    ///
    /// # Errors
    /// [`LlmError::Cancelled`]. A prompt that is empty or longer than the context is an error of its row alone.
    pub fn embed(
        &self,
        prompts: &[Vec<u32>],
        pooling: Pooling,
        batch_tokens: usize,
        on_progress: OnProgress<'_>,
    ) -> Result<Rows<Vec<f32>>, LlmError> {
        prefill::embed(&self.decoder, prompts, pooling, batch_tokens, on_progress)
    }

    /// The logits of the answer tokens at each prompt's last position, in the order of `answers`.
    ///
    /// # Errors
    /// [`LlmError::Cancelled`]; [`LlmError::Argument`] for an answer that is not in the vocabulary. A prompt that is
    /// empty or longer than the context is an error of its row alone.
    pub fn score(
        &self,
        prompts: &[Vec<u32>],
        answers: &[u32],
        batch_tokens: usize,
        on_progress: OnProgress<'_>,
    ) -> Result<Rows<Vec<f32>>, LlmError> {
        prefill::score(&self.decoder, prompts, answers, batch_tokens, on_progress)
    }

    /// Samples answers to every request: for each, in its samples' order. `batch_size` samples are in progress at once.
    ///
    /// # Errors
    /// [`LlmError::Cancelled`]; [`LlmError::Argument`] for impossible sampling settings. A prompt that is empty or
    /// longer than the context is an error of its row alone.
    pub fn generate(
        &self,
        requests: Vec<GenerateRequest>,
        sampling: &Sampling,
        batch_size: usize,
        on_progress: OnProgress<'_>,
    ) -> Result<Rows<Vec<Generation>>, LlmError> {
        generate::generate(&self.decoder, &self.tokenizer, requests, sampling, batch_size, on_progress)
    }

    /// All positions' hidden states after the final norm and logits over the vocabulary, for comparison with other
    /// implementations. `chunk` tokens are computed at a time, each chunk from the cached keys and values of those
    /// before it. Memory grows with prompt times vocabulary: not for batch work.
    ///
    /// # Errors
    /// [`LlmError::Prompt`] when the prompt is empty or longer than the context.
    pub fn trace(&self, prompt: &[u32], chunk: usize) -> Result<Vec<Position>, LlmError> {
        prefill::check_prompt(&self.decoder, 0, prompt)?;
        let mut pool = KvPool::new(&self.decoder.config);
        let mut sequence = Sequence::new(Keep::AllLayers);
        let mut out = Vec::with_capacity(prompt.len());
        for tokens in prompt.chunks(chunk.max(1)) {
            let x = self.decoder.forward(&mut pool, &mut [Step { sequence: &mut sequence, tokens }]);
            let states = self.decoder.finish(x, &(0..tokens.len()).collect::<Vec<_>>());
            let logits = self.decoder.logits(&states);
            let logits = floats(&logits).chunks_exact(self.decoder.config.vocabulary).map(<[f32]>::to_vec);
            out.extend(states.into_iter().zip(logits).map(|(hidden, logits)| Position { hidden, logits }));
        }
        Ok(out)
    }
}
