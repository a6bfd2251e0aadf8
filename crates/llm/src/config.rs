//! The shape of a Llama-family decoder, read from a model file's metadata.
//!
//! What the decoder cannot compute (another architecture, a rope scaling without factors in the file) is refused here
//! with its name, never computed wrongly.

use crate::{LlmError, gguf::GgufFile, host::PAGE_LANES};

/// Sizes and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Longest sequence in tokens, prompt and answer together.
    pub context: usize,
    /// Base of the rotary position embedding.
    pub rope_base: f32,
    /// Added under the root by RMSNorm.
    pub norm_epsilon: f32,
    /// Query and key heads are normalized by RMSNorm before the rotary embedding (Qwen 3).
    pub qk_norm: bool,
    /// A token sees itself and the `n - 1` tokens before it. `None` where it sees all of the context.
    pub sliding_window: Option<usize>,
}

impl ModelConfig {
    /// Reads and checks a file's metadata.
    ///
    /// # Errors
    /// [`LlmError::File`] that names the key that is missing, wrong or unsupported.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LlmError> {
        let architecture = file.text("general.architecture")?.unwrap_or("unknown");
        if architecture != "llama" {
            return Err(file.error(format!("architecture {architecture:?} is not supported; \"llama\" is")));
        }
        let count = |key: &str| {
            let key = format!("llama.{key}");
            match file.count(&key)? {
                Some(0) => Err(file.error(format!("metadata {key} is 0"))),
                Some(count) => Ok(count),
                None => Err(file.error(format!("metadata {key} is missing"))),
            }
        };
        let (hidden, heads) = (count("embedding_length")?, count("attention.head_count")?);
        let kv_heads = file.count("llama.attention.head_count_kv")?.unwrap_or(heads);
        let head_width = file.count("llama.attention.key_length")?.unwrap_or(hidden / heads);
        let tokens = file.texts("tokenizer.ggml.tokens")?;
        let tokens = tokens.ok_or_else(|| file.error("metadata tokenizer.ggml.tokens is missing"))?;
        if let Some(scaling) = file.text("llama.rope.scaling.type")?.filter(|&scaling| scaling != "none") {
            return Err(file.error(format!("rope scaling {scaling:?} is not supported")));
        }
        let config = Self {
            vocabulary: tokens.len(),
            hidden,
            feed_forward: count("feed_forward_length")?,
            layers: count("block_count")?,
            heads,
            kv_heads,
            head_width,
            context: count("context_length")?,
            rope_base: file.float("llama.rope.freq_base")?.unwrap_or(10_000.0) as f32,
            norm_epsilon: file
                .float("llama.attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| file.error("metadata llama.attention.layer_norm_rms_epsilon is missing"))?
                as f32,
            qk_norm: false,
            sliding_window: None,
        };
        config.check().map_err(|what| file.error(what))?;
        let rotated = file.count("llama.rope.dimension_count")?.unwrap_or(head_width);
        if rotated != head_width {
            return Err(file.error(format!("rope over {rotated} of {head_width} dimensions is not supported")));
        }
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("{} query heads cannot share {} key heads", self.heads, self.kv_heads));
        }
        if !self.head_width.is_multiple_of(PAGE_LANES) || self.head_width == 0 {
            return Err(format!("a head width of {} is not a multiple of {PAGE_LANES}", self.head_width));
        }
        Ok(())
    }

    /// Query heads that share a key and value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of the queries of one token: all heads.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Width of the keys, and of the values, of one token.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }
}
