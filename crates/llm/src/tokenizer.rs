//! A model's tokenizer: text to token ids and back.
//!
//! Control tokens (`<|im_start|>` and the like) are recognized in the text, as chat templates need it: text that comes
//! from outside can therefore end a turn, see [`TextTokenizer::without_control_tokens`]. A tokenizer's own
//! post-processing is deliberately not run: beginning tokens are put here, once, and nothing is ever appended.

use crate::{LlmError, gguf::GgufFile, vocabulary};
use tokenizers::Tokenizer;

/// Text to token ids and back.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    /// Tokens that must not come in from foreign text.
    control: Vec<String>,
    begin: Option<u32>,
    /// The first is the one that the files name as the end of a text.
    ends: Vec<u32>,
    add_begin: bool,
}

/// What a model's files say of its tokenizer beside the vocabulary.
pub(crate) struct Marks {
    pub(crate) begin: Option<u32>,
    /// Tokens that end an answer, the main one first; repetitions are dropped.
    pub(crate) ends: Vec<u32>,
    /// Texts begin with `begin`.
    pub(crate) add_begin: bool,
}

impl TextTokenizer {
    /// Builds the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// [`LlmError::File`] when the file has none or it is of a kind that is not supported.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LlmError> {
        let (tokenizer, marks) = vocabulary::from_gguf(file)?;
        Self::new(tokenizer, marks).map_err(|error| file.error(error.to_string()))
    }

    /// # Errors
    /// [`LlmError::Tokenizer`] when truncation cannot be switched off.
    pub(crate) fn new(mut tokenizer: Tokenizer, marks: Marks) -> Result<Self, LlmError> {
        // Saved with a tokenizer by whoever used it last, and no part of the model.
        tokenizer.with_truncation(None).map_err(failed)?;
        tokenizer.with_padding(None);
        let added = tokenizer.get_added_tokens_decoder();
        let markup = |text: &str| text.len() > 2 && text.starts_with('<') && text.ends_with('>');
        let control = added.into_values().filter(|token| token.special || markup(&token.content));
        let mut control: Vec<String> = control.map(|token| token.content).filter(|text| !text.is_empty()).collect();
        control.sort_unstable();
        let mut ends = Vec::new();
        for end in marks.ends {
            if !ends.contains(&end) {
                ends.push(end);
            }
        }
        Ok(Self { tokenizer, control, begin: marks.begin, ends, add_begin: marks.add_begin })
    }

    /// Token ids of a text; control tokens in it are recognized. A model that asks for the beginning token gets it,
    /// unless the text begins with it.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] when the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LlmError> {
        let mut tokens = self.encode_plain(text)?;
        if let Some(begin) = self.begin.filter(|begin| self.add_begin && tokens.first() != Some(begin)) {
            tokens.insert(0, begin);
        }
        Ok(tokens)
    }

    /// Token ids of a text that does not begin one: an answer, or what continues a prompt. No beginning token is put.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] when the tokenizer fails.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, LlmError> {
        Ok(self.tokenizer.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    /// Text of token ids, without control tokens. Bytes that are not UTF-8 become replacement characters.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] when the tokenizer fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, LlmError> {
        self.tokenizer.decode(tokens, true).map_err(failed)
    }

    /// As [`Self::decode`], with control tokens as their texts: for what they separate, such as the end of thinking.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] when the tokenizer fails.
    pub fn decode_with_control_tokens(&self, tokens: &[u32]) -> Result<String, LlmError> {
        self.tokenizer.decode(tokens, false).map_err(failed)
    }

    /// Id of a token by its exact text, as in the vocabulary: `Yes`, `<|im_end|>`; a leading space is `Ġ` or `▁`.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.tokenizer.token_to_id(text)
    }

    /// The token that begins a text, if the model has one.
    pub fn begin(&self) -> Option<u32> {
        self.begin
    }

    /// The token that ends a text, if the model has one; the first of [`Self::ends`].
    pub fn end(&self) -> Option<u32> {
        self.ends.first().copied()
    }

    /// All tokens that end an answer: of the text, of the turn, of the message. Stop at any of them.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// A token's text as in the vocabulary.
    pub fn token_text(&self, token: u32) -> Option<String> {
        self.tokenizer.id_to_token(token)
    }

    /// The text with the control tokens in it taken out: for text from outside (a title, a review) that goes into a
    /// prompt and must not open or close a turn. Markup that the vocabulary has as a token of its own (`<think>`) goes
    /// too, whether or not the files call it a control token.
    pub fn without_control_tokens(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // Taking one out can make another, so until nothing is left to take.
        while let Some(token) = self.control.iter().find(|token| text.contains(token.as_str())) {
            text = text.replace(token.as_str(), "");
        }
        text
    }
}

fn failed(error: tokenizers::Error) -> LlmError {
    LlmError::Tokenizer(error.to_string())
}
