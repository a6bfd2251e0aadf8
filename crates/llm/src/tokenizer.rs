//! A model's tokenizer, built from its file's metadata.
//!
//! Byte-level byte-pair encoding, with the way of splitting text into words that the file names. Control tokens
//! (`<|im_start|>` and the like) are recognized in the text, as chat templates need it: text that comes from outside
//! can therefore end a turn, see [`TextTokenizer::without_control_tokens`].

use crate::{
    LlmError,
    gguf::{GgufFile, Value},
};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
    models::bpe::BPE,
    pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence},
};

/// Token type of control tokens in GGUF.
const CONTROL: i64 = 3;

type Bpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Text to token ids and back.
pub struct TextTokenizer {
    bpe: Bpe,
    control: Vec<String>,
    begin: Option<u32>,
    end: Option<u32>,
    add_begin: bool,
}

impl TextTokenizer {
    /// Builds the tokenizer that a file describes.
    ///
    /// # Errors
    /// [`LlmError::File`] when the file has none or it is of a kind that is not supported.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LlmError> {
        let kind = file.text("tokenizer.ggml.model")?.unwrap_or("none");
        let splitting = file.text("tokenizer.ggml.pre")?.unwrap_or("none");
        if (kind, splitting) != ("gpt2", "smollm") {
            let what = format!(
                "tokenizer {kind:?} with splitting {splitting:?} is not supported; \"gpt2\" with \"smollm\" is"
            );
            return Err(file.error(what));
        }
        let missing = |key: &str| file.error(format!("metadata {key} is missing"));
        let tokens = file.texts("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
        let merges = file.texts("tokenizer.ggml.merges")?.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
        let merges = merges
            .into_iter()
            .map(|merge| {
                let (left, right) = merge.split_once(' ').ok_or_else(|| {
                    file.error(format!("metadata tokenizer.ggml.merges has {merge:?}, not two parts"))
                })?;
                Ok((left.to_owned(), right.to_owned()))
            })
            .collect::<Result<Vec<_>, LlmError>>()?;
        let vocabulary = (0_u32..).zip(&tokens).map(|(id, token)| (String::from(*token), id)).collect();
        let bpe = BPE::builder()
            .vocab_and_merges::<tokenizers::models::bpe::Vocab>(vocabulary, merges)
            .build()
            .map_err(|error| file.error(format!("metadata tokenizer.ggml.merges: {error}")))?;
        let mut bpe = Bpe::new(bpe);
        let bytes = ByteLevel::new(false, true, true);
        bpe.with_pre_tokenizer(Some(Sequence::new(vec![Digits::new(true).into(), bytes.into()])));
        bpe.with_decoder(Some(bytes));
        let control = control_tokens(file, &tokens)?;
        let special = control.iter().map(|token| AddedToken::from(token.clone(), true).normalized(false));
        bpe.add_special_tokens(special).map_err(|error| file.error(format!("control tokens: {error}")))?;
        let id = |key: &str| -> Result<Option<u32>, LlmError> {
            let Some(id) = file.count(key)? else { return Ok(None) };
            let id = u32::try_from(id).ok().filter(|&id| (id as usize) < tokens.len());
            id.map(Some).ok_or_else(|| file.error(format!("metadata {key} is not a token of the vocabulary")))
        };
        let add_begin = matches!(file.get("tokenizer.ggml.add_bos_token"), Some(Value::Bool(true)));
        Ok(Self {
            begin: id("tokenizer.ggml.bos_token_id")?,
            end: id("tokenizer.ggml.eos_token_id")?,
            add_begin,
            control,
            bpe,
        })
    }

    /// Token ids of a text; control tokens in it are recognized. A file that asks for the beginning token gets it.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] when the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LlmError> {
        let encoding = self.bpe.encode_fast(text, false).map_err(|error| LlmError::Tokenizer(error.to_string()))?;
        let begin = self.begin.filter(|begin| self.add_begin && encoding.get_ids().first() != Some(begin));
        Ok(begin.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// Text of token ids, without control tokens. Bytes that are not UTF-8 become replacement characters.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] when the tokenizer fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, LlmError> {
        self.bpe.decode(tokens, true).map_err(|error| LlmError::Tokenizer(error.to_string()))
    }

    /// Id of a token by its exact text, as in the vocabulary: `Yes`, `<|im_end|>`; a leading space is `Ġ`.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.bpe.token_to_id(text)
    }

    /// The token that begins a text, if the model has one.
    pub fn begin(&self) -> Option<u32> {
        self.begin
    }

    /// The token that ends an answer, if the model has one.
    pub fn end(&self) -> Option<u32> {
        self.end
    }

    /// A token's text as in the vocabulary.
    pub fn token_text(&self, token: u32) -> Option<String> {
        self.bpe.id_to_token(token)
    }

    /// The text with the control tokens in it taken out: for text from outside (a title, a review) that goes into a
    /// prompt and must not open or close a turn.
    pub fn without_control_tokens(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // Taking one out can make another, so until nothing is left to take.
        while let Some(token) = self.control.iter().find(|token| text.contains(token.as_str())) {
            text = text.replace(token.as_str(), "");
        }
        text
    }
}

fn control_tokens(file: &GgufFile, tokens: &[&str]) -> Result<Vec<String>, LlmError> {
    let types = match file.get("tokenizer.ggml.token_type") {
        Some(Value::Array(types)) if types.len() == tokens.len() => types,
        _ => return Err(file.error("metadata tokenizer.ggml.token_type is not a list as long as the vocabulary")),
    };
    let control = types.iter().zip(tokens).filter(|(kind, _)| **kind == Value::Signed(CONTROL));
    Ok(control.map(|(_, token)| String::from(*token)).filter(|token| !token.is_empty()).collect())
}
