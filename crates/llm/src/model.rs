//! A language model ready to use: weights, tokenizer and chat template of one file or folder on one device.

use crate::{
    LlmError,
    adapter::Adapter,
    chat::{ChatTemplate, Message},
    checkpoint::{ModelFiles, SamplingDefaults},
    config::ModelConfig,
    decoder::{Decoder, Step},
    generate::{self, GenerateRequest, Generation, Slots},
    host::floats,
    kv::{Keep, Sequence},
    matrix::Precision,
    prefill::{self, OnProgress, Pooling, Rows, TokenBudget},
    sampler::Sampling,
    text::ModelText,
    tokenizer::TextTokenizer,
};
use burn::tensor::Device;
use std::{path::Path, sync::Arc};

/// A Llama-family model. It does not change once loaded: share it between threads.
///
/// On the CPU every result is a function of its own prompt (and generator) alone, to the bit: not of the other prompts
/// of the call, their order, what they share, [`TokenBudget`], or [`Slots`]. That holds for one build on one kind of
/// processor; processors with other vector widths differ in the last bits, as do other devices.
pub struct LanguageModel {
    pub(crate) decoder: Decoder,
    tokenizer: Arc<TextTokenizer>,
    template: Arc<Option<ChatTemplate>>,
    defaults: SamplingDefaults,
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
    /// Reads a GGUF file or a Hugging Face folder and puts its weights on a device, each matrix in the given precision.
    ///
    /// # Errors
    /// [`LlmError::Read`] or [`LlmError::File`] when the files cannot be read or are not supported.
    pub fn load(path: &Path, device: &Device, precision: Precision) -> Result<Self, LlmError> {
        let ModelFiles { weights, text: ModelText { tokenizer, template, .. }, defaults } = ModelFiles::open(path)?;
        let decoder = Decoder::load(&*weights, device, precision)?;
        tracing::debug!(path = %path.display(), config = ?decoder.config, "language model loaded");
        Ok(Self { decoder, tokenizer: Arc::new(tokenizer), template: Arc::new(template), defaults })
    }

    /// The same model with an adapter, in place of the one that it may have. The weights are shared, not copied.
    ///
    /// # Errors
    /// [`LlmError::Adapter`] when the adapter was made for a model of another shape; it names the tensor.
    pub fn with_adapter(&self, adapter: &Adapter) -> Result<Self, LlmError> {
        let decoder = self.decoder.with_adapter(adapter)?;
        let (tokenizer, template) = (self.tokenizer.clone(), self.template.clone());
        Ok(Self { decoder, tokenizer, template, defaults: self.defaults })
    }

    /// The sampling that the model's makers recommend, where its files say so.
    pub fn sampling_defaults(&self) -> SamplingDefaults {
        self.defaults
    }

    /// Sizes of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.decoder.config
    }

    /// Bytes of the weights in memory.
    pub fn weight_bytes(&self) -> usize {
        self.decoder.weight_bytes()
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

    /// Token ids of an answer or of what continues a prompt; see [`TextTokenizer::encode_plain`].
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] when the tokenizer fails.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, LlmError> {
        self.tokenizer.encode_plain(text)
    }

    /// The prompt of a conversation in the model's own chat format.
    ///
    /// # Errors
    /// [`LlmError::Template`] when the model has no chat template or it refuses the conversation.
    pub fn chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, LlmError> {
        let missing = || LlmError::Template("the model has none; use an instruction-tuned model".into());
        Option::as_ref(&self.template).ok_or_else(missing)?.render(messages, add_generation_prompt)
    }

    /// One vector a prompt, \[hidden size\]: the last layer's hidden states after the final norm, pooled (eq. 2, 3).
    ///
    /// # Errors
    /// [`LlmError::Cancelled`]. A prompt that is empty, longer than the context, or whose result is not a finite number
    /// is an error of its row alone.
    pub fn embed(
        &self,
        prompts: &[Vec<u32>],
        pooling: Pooling,
        budget: impl Into<TokenBudget>,
        on_progress: OnProgress<'_>,
    ) -> Result<Rows<Vec<f32>>, LlmError> {
        prefill::embed(&self.decoder, prompts, pooling, budget.into(), on_progress)
    }

    /// The logits of the answer tokens at each prompt's last position, in the order of `answers`.
    ///
    /// # Errors
    /// [`LlmError::Cancelled`]; [`LlmError::Argument`] for an answer that is not in the vocabulary. A prompt that is
    /// empty, longer than the context, or whose result is not a finite number is an error of its row alone.
    pub fn score(
        &self,
        prompts: &[Vec<u32>],
        answers: &[u32],
        budget: impl Into<TokenBudget>,
        on_progress: OnProgress<'_>,
    ) -> Result<Rows<Vec<f32>>, LlmError> {
        prefill::score(&self.decoder, prompts, answers, budget.into(), on_progress)
    }

    /// Samples answers to every request: for each, in its samples' order.
    ///
    /// # Errors
    /// [`LlmError::Cancelled`]; [`LlmError::Argument`] for impossible sampling settings. A prompt that is empty, longer
    /// than the context, or with logits that are not finite is an error of its row alone.
    pub fn generate(
        &self,
        requests: Vec<GenerateRequest>,
        sampling: &Sampling,
        slots: impl Into<Slots>,
        on_progress: OnProgress<'_>,
    ) -> Result<Rows<Vec<Generation>>, LlmError> {
        generate::generate(&self.decoder, &self.tokenizer, requests, sampling, slots.into(), on_progress)
    }

    /// All positions' hidden states after the final norm and logits over the vocabulary, for comparison with other
    /// implementations. `chunk` tokens are computed at a time, each chunk from the cached keys and values of those
    /// before it. Memory grows with prompt times vocabulary: not for batch work.
    ///
    /// # Errors
    /// [`LlmError::Prompt`] when the prompt is empty or longer than the context.
    pub fn trace(&self, prompt: &[u32], chunk: usize) -> Result<Vec<Position>, LlmError> {
        prefill::check_prompt(&self.decoder, 0, prompt)?;
        let mut pool = self.decoder.pool();
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
