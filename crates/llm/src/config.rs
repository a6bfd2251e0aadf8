//! The shape of a dense Llama-family decoder, read from a GGUF file's metadata or a Hugging Face `config.json`.
//!
//! What the decoder cannot compute (another architecture, experts, a rope scaling of another kind) is refused here with
//! its name, never computed wrongly. Where the weights lie is [`crate::checkpoint`]'s affair.

use crate::{LlmError, gguf::GgufFile, host::PAGE_LANES};

/// Longest context.
const MAX_CONTEXT: usize = 1 << 21;
/// Most numbers of the rotary embedding's table over the whole context: 1 GiB on a device, which keeps all of it.
const MAX_ANGLES: usize = 1 << 28;
/// Largest of the other sizes: a damaged file must not set aside all memory.
const MAX_SIZE: usize = 1 << 24;

/// How the rotary embedding's frequencies differ from `1 / base^(2 i / head_width)`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor (position interpolation).
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Llama 3.1's: long waves are divided by `factor`, short ones stay, those between are mixed.
    Llama3 {
        /// Divides the frequency of waves longer than `original_context / low_frequency_factor`.
        factor: f32,
        /// See `factor`.
        low_frequency_factor: f32,
        /// Waves shorter than `original_context / high_frequency_factor` stay as they are.
        high_frequency_factor: f32,
        /// Context in tokens before the model was extended.
        original_context: usize,
    },
    /// Each divided by its own factor, \[head width / 2\], as GGUF files store Llama 3.1's scaling.
    Factors(Vec<f32>),
}

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
    /// What is done to its frequencies.
    pub rope: RopeScaling,
    /// Added under the root by RMSNorm.
    pub norm_epsilon: f32,
    /// Queries, keys and values have a bias each (Qwen 2).
    pub qkv_bias: bool,
    /// Query and key heads are normalized by RMSNorm before the rotary embedding (Qwen 3).
    pub qk_norm: bool,
    /// A token sees itself and the `n - 1` tokens before it. `None` where it sees all of the context.
    pub sliding_window: Option<usize>,
    /// The embedding is the output head too.
    pub tied_head: bool,
}

impl ModelConfig {
    /// Reads and checks a file's metadata.
    ///
    /// # Errors
    /// [`LlmError::File`] that names the key that is missing, wrong or unsupported.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LlmError> {
        if file.count("split.count")?.is_some_and(|parts| parts > 1) {
            return Err(file.error("it is one part of a split model; join the parts with llama-gguf-split --merge"));
        }
        let architecture = file.text("general.architecture")?.unwrap_or("unknown");
        if !matches!(architecture, "llama" | "qwen2" | "qwen3") {
            let what = "is not supported; llama (Llama, Mistral, SmolLM), qwen2 and qwen3 are";
            return Err(file.error(format!("general.architecture {architecture:?} {what}")));
        }
        let keys = Keys { file, architecture };
        if keys.count("expert_count")?.is_some_and(|experts| experts > 0) {
            return Err(file.error(format!("{architecture}.expert_count: mixtures of experts are not supported")));
        }
        let (hidden, heads) = (keys.size("embedding_length")?, keys.size("attention.head_count")?);
        let head_width = keys.count("attention.key_length")?.unwrap_or(hidden / heads);
        if keys.count("attention.value_length")?.is_some_and(|width| width != head_width) {
            return Err(file.error("values of another width than keys are not supported"));
        }
        let rotated = keys.count("rope.dimension_count")?.unwrap_or(head_width);
        if rotated != head_width {
            return Err(file.error(format!("rope over {rotated} of {head_width} dimensions is not supported")));
        }
        let tokens = file.texts("tokenizer.ggml.tokens")?;
        let tokens = tokens.ok_or_else(|| file.error("metadata tokenizer.ggml.tokens is missing"))?;
        let context = keys.size("context_length")?;
        let config = Self {
            vocabulary: tokens.len(),
            hidden,
            feed_forward: keys.size("feed_forward_length")?,
            layers: keys.size("block_count")?,
            heads,
            kv_heads: keys.count("attention.head_count_kv")?.unwrap_or(heads),
            head_width,
            context,
            rope_base: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
            rope: keys.rope(head_width)?,
            norm_epsilon: keys.float("attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
                file.error(format!("metadata {architecture}.attention.layer_norm_rms_epsilon is missing"))
            })?,
            qkv_bias: file.tensor("blk.0.attn_q.bias").is_some(),
            qk_norm: architecture == "qwen3",
            sliding_window: keys.count("attention.sliding_window")?.filter(|&n| n > 0 && n < context),
            tied_head: file.tensor("output.weight").is_none(),
        };
        config.check().map_err(|what| file.error(what))?;
        Ok(config)
    }

    /// Refuses shapes that the decoder's loops cannot compute; says what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.context > MAX_CONTEXT {
            return Err(format!("a context of {} tokens is more than {MAX_CONTEXT}", self.context));
        }
        let sizes = [self.vocabulary, self.hidden, self.feed_forward, self.layers, self.heads, self.head_width];
        if let Some(size) = sizes.into_iter().find(|size| !(1..=MAX_SIZE).contains(size)) {
            return Err(format!("a size of {size} is not from 1 to {MAX_SIZE}"));
        }
        if self.context * self.head_width > MAX_ANGLES {
            let (context, width) = (self.context, self.head_width);
            return Err(format!("{context} positions of heads {width} wide have more than {MAX_ANGLES} angles"));
        }
        if self.sliding_window == Some(0) {
            return Err("a sliding window of 0 tokens hides every token from itself; null is none".into());
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("{} query heads cannot share {} key heads", self.heads, self.kv_heads));
        }
        if !self.head_width.is_multiple_of(PAGE_LANES) {
            return Err(format!("a head width of {} is not a multiple of {PAGE_LANES}", self.head_width));
        }
        if !(self.rope_base.is_finite() && self.rope_base > 0.0) {
            return Err(format!("a rope base of {} is impossible", self.rope_base));
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon >= 0.0) {
            return Err(format!("a norm epsilon of {} is impossible", self.norm_epsilon));
        }
        if self.rope_frequencies().iter().any(|frequency| !frequency.is_finite()) {
            return Err(format!("the rope scaling {:?} gives frequencies that are not finite", self.rope));
        }
        Ok(())
    }

    /// Radians that the rotary embedding turns each pair of a head by from a position to the next, \[head width / 2\].
    /// Computed in 32 bits, as transformers does: with long contexts the rounding is visible.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let width = self.head_width as f32;
        let plain = (0..self.head_width / 2).map(|i| 1.0 / self.rope_base.powf((2 * i) as f32 / width));
        match &self.rope {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            RopeScaling::Factors(factors) => plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect(),
            &RopeScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context,
            } => {
                let context = original_context as f32;
                plain
                    .map(|frequency| {
                        let wave = std::f32::consts::TAU / frequency;
                        if wave < context / high {
                            frequency
                        } else if wave > context / low {
                            frequency / factor
                        } else {
                            let share = (context / wave - low) / (high - low);
                            (1.0 - share) * frequency / factor + share * frequency
                        }
                    })
                    .collect()
            }
        }
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

/// Metadata of one architecture: its keys begin with its name.
struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'a str,
}

impl Keys<'_> {
    fn count(&self, key: &str) -> Result<Option<usize>, LlmError> {
        self.file.count(&format!("{}.{key}", self.architecture))
    }

    fn float(&self, key: &str) -> Result<Option<f32>, LlmError> {
        Ok(self.file.float(&format!("{}.{key}", self.architecture))?.map(|number| number as f32))
    }

    /// A count that must be there and not 0.
    fn size(&self, key: &str) -> Result<usize, LlmError> {
        match self.count(key)? {
            Some(0) => Err(self.file.error(format!("metadata {}.{key} is 0", self.architecture))),
            Some(count) => Ok(count),
            None => Err(self.file.error(format!("metadata {}.{key} is missing", self.architecture))),
        }
    }

    fn rope(&self, head_width: usize) -> Result<RopeScaling, LlmError> {
        if self.file.tensor("rope_freqs.weight").is_some() {
            return Ok(RopeScaling::Factors(self.file.values("rope_freqs.weight", &[head_width / 2])?));
        }
        let key = format!("{}.rope.scaling.type", self.architecture);
        let old = self.float("rope.scale_linear")?;
        match self.file.text(&key)?.unwrap_or(if old.is_some() { "linear" } else { "none" }) {
            "none" => Ok(RopeScaling::None),
            "linear" => match self.float("rope.scaling.factor")?.or(old) {
                Some(factor) if factor > 0.0 => Ok(RopeScaling::Linear { factor }),
                _ => {
                    Err(self.file.error(format!("metadata {key} is linear, and its factor is missing or not above 0")))
                }
            },
            other => Err(self
                .file
                .error(format!("metadata {key}: rope scaling {other:?} is not supported; linear and llama3 are"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rope: RopeScaling) -> ModelConfig {
        ModelConfig {
            vocabulary: 1,
            hidden: 1,
            feed_forward: 1,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_width: 32,
            context: 1024,
            rope_base: 10_000.0,
            rope,
            norm_epsilon: 1e-5,
            qkv_bias: false,
            qk_norm: false,
            sliding_window: None,
            tied_head: true,
        }
    }

    #[test]
    fn llama3_scaling_keeps_short_waves_and_stretches_long_ones() {
        let plain = config(RopeScaling::None).rope_frequencies();
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 256,
        };
        let scaled = config(scaling).rope_frequencies();
        let ratios: Vec<f32> = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect();
        assert_eq!((ratios[0], ratios[15]), (1.0, 8.0));
        assert!(ratios.windows(2).all(|pair| pair[0] <= pair[1]), "{ratios:?}");
        assert!(ratios.iter().any(|&ratio| ratio > 1.01 && ratio < 7.9), "{ratios:?}");
        let linear = config(RopeScaling::Linear { factor: 2.0 }).rope_frequencies();
        assert_eq!(linear, plain.iter().map(|frequency| frequency / 2.0).collect::<Vec<_>>());
    }

    #[test]
    fn impossible_scalings_are_refused() {
        let message = config(RopeScaling::Factors(vec![0.0; 16])).check().unwrap_err();
        assert!(message.contains("not finite"), "{message}");
        assert!(config(RopeScaling::None).check().is_ok());
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let message = |change: fn(&mut ModelConfig)| {
            let mut config = config(RopeScaling::None);
            change(&mut config);
            config.check().unwrap_err()
        };
        assert!(message(|c| c.context = 1_000_000_000_000).starts_with("a context of 1000000000000 tokens"));
        assert!(message(|c| (c.context, c.head_width) = (1 << 21, 1 << 24)).contains("2097152 positions of heads"));
        assert!(message(|c| c.vocabulary = 0).starts_with("a size of 0"));
        assert!(message(|c| c.sliding_window = Some(0)).starts_with("a sliding window of 0"));
        let mut long = config(RopeScaling::None);
        (long.context, long.head_width) = (1 << 20, 128);
        assert!(long.check().is_ok());
    }
}
