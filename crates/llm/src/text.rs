//! What a model's files say about text: how it becomes tokens, how a conversation is written, how long it may get.
//!
//! Weights are not touched and need not be there: for prompts that another program computes. So any architecture will
//! do, also one that the decoder here cannot compute.

use crate::{LlmError, chat::ChatTemplate, folder, gguf::GgufFile, tokenizer::TextTokenizer};
use std::path::Path;

/// A model's tokenizer and chat template.
pub struct ModelText {
    /// Text to tokens and back.
    pub tokenizer: TextTokenizer,
    /// The chat format; instruction-tuned models have one.
    pub template: Option<ChatTemplate>,
    /// Longest sequence in tokens, prompt and answer together, where the files say so.
    pub context: Option<usize>,
}

impl ModelText {
    /// Reads a GGUF file, or a Hugging Face folder: `tokenizer.json`, and where they are there `config.json`,
    /// `tokenizer_config.json`, `generation_config.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// [`LlmError::Read`], [`LlmError::File`] or [`LlmError::Template`] when a file cannot be read, is malformed, or has
    /// a tokenizer of a kind that is not supported.
    pub fn open(path: &Path) -> Result<Self, LlmError> {
        if path.is_dir() { folder::open_text(path) } else { Self::of_gguf(&GgufFile::open(path)?) }
    }

    pub(crate) fn of_gguf(file: &GgufFile) -> Result<Self, LlmError> {
        let tokenizer = TextTokenizer::from_gguf(file)?;
        let template = match file.text("tokenizer.chat_template")? {
            Some(source) => Some(ChatTemplate::of_tokenizer(source, &tokenizer)?),
            None => None,
        };
        let context = match file.text("general.architecture")? {
            Some(architecture) => file.count(&format!("{architecture}.context_length"))?,
            None => None,
        };
        Ok(Self { tokenizer, template, context })
    }
}
