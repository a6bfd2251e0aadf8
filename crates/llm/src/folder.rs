//! Reads a Hugging Face folder: `config.json`, safetensors, `tokenizer.json` and what lies beside them.
//!
//! What the files say is taken as transformers takes it, its defaults included. Code in the folder is never run, and a
//! setting that the decoder cannot compute is refused with its key.

use crate::{
    LlmError,
    chat::ChatTemplate,
    checkpoint::{Checkpoint, HEAD, ModelFiles, NOT_USED, SamplingDefaults, Stored, is_used, rows_and_columns},
    config::{ModelConfig, RopeScaling},
    shards::Shards,
    text::ModelText,
    tokenizer::{Marks, TextTokenizer},
};
use serde_json::{Map, Value};
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};
use tokenizers::Tokenizer;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

/// Opens a folder.
pub(crate) fn open(folder: &Path) -> Result<ModelFiles, LlmError> {
    let json = Json::read(folder.join(CONFIG))?.ok_or_else(|| LlmError::File {
        path: folder.join(CONFIG),
        what: "it is missing: the folder is not a Hugging Face model (name the file itself to read a GGUF file)".into(),
    })?;
    let config = read_config(&json)?;
    let shards = Shards::open(folder)?;
    for name in shards.names() {
        if !is_used(&config, name) {
            return Err(LlmError::File {
                path: shards.file_of(name).into(),
                what: format!("tensor {name} {NOT_USED}"),
            });
        }
    }
    let generation = Json::read(folder.join(GENERATION))?;
    let text = read_text(folder, Some(&json), generation.as_ref())?;
    let defaults = match &generation {
        Some(generation) => SamplingDefaults {
            temperature: generation.number("temperature")?.map(|number| number as f32),
            top_p: generation.number("top_p")?.map(|number| number as f32),
            top_k: generation.count("top_k")?,
        },
        None => SamplingDefaults::default(),
    };
    Ok(ModelFiles { weights: Box::new(FolderCheckpoint { config, shards }), text, defaults })
}

/// Opens a folder's tokenizer and chat template. Neither weights nor `config.json` need be there.
pub(crate) fn open_text(folder: &Path) -> Result<ModelText, LlmError> {
    let (config, generation) = (Json::read(folder.join(CONFIG))?, Json::read(folder.join(GENERATION))?);
    read_text(folder, config.as_ref(), generation.as_ref())
}

fn read_text(folder: &Path, config: Option<&Json>, generation: Option<&Json>) -> Result<ModelText, LlmError> {
    let settings = Json::read(folder.join("tokenizer_config.json"))?;
    let tokenizer = open_tokenizer(folder, config, generation, settings.as_ref())?;
    let template = match template_source(folder, settings.as_ref())? {
        Some(source) => Some(ChatTemplate::of_tokenizer(&source, &tokenizer)?),
        None => None,
    };
    let context = config.map(|config| config.count("max_position_embeddings")).transpose()?.flatten();
    Ok(ModelText { tokenizer, template, context })
}

struct FolderCheckpoint {
    config: ModelConfig,
    shards: Shards,
}

impl Checkpoint for FolderCheckpoint {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, name: &str) -> Option<Stored<'_>> {
        // Some files keep a copy of the tied head; the embedding is what counts.
        let (tensor, bytes) = self.shards.get(name).filter(|_| name != HEAD || !self.config.tied_head)?;
        let (rows, columns) = rows_and_columns(&tensor.shape);
        Some(Stored { format: tensor.format, bytes, rows, columns, interleaved: None })
    }

    fn file_of(&self, name: &str) -> &Path {
        self.shards.file_of(name)
    }

    fn own_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        name.into()
    }
}

/// A JSON object in a file; the getters' errors name the file and the key.
struct Json {
    path: PathBuf,
    values: Map<String, Value>,
}

impl Json {
    /// Reads a file, `None` when it is not there.
    fn read(path: PathBuf) -> Result<Option<Self>, LlmError> {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LlmError::Read { path, source }),
        };
        match serde_json::from_slice(&text) {
            Ok(values) => Ok(Some(Self { path, values })),
            Err(error) => Err(LlmError::File { path, what: format!("it is not a JSON object: {error}") }),
        }
    }

    fn error(&self, what: impl Into<String>) -> LlmError {
        LlmError::File { path: self.path.clone(), what: what.into() }
    }

    /// A value that is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LlmError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.error(format!("key {key} is {value}, not {kind}")))
    }

    fn count(&self, key: &str) -> Result<Option<usize>, LlmError> {
        self.typed(key, "a count", |value| usize::try_from(value.as_u64()?).ok())
    }

    /// A count that must be there and not 0.
    fn size(&self, key: &str) -> Result<usize, LlmError> {
        match self.count(key)? {
            Some(0) => Err(self.error(format!("key {key} is 0"))),
            Some(count) => Ok(count),
            None => Err(self.error(format!("key {key} is missing"))),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, LlmError> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, LlmError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn text(&self, key: &str) -> Result<Option<&str>, LlmError> {
        self.typed(key, "a text", Value::as_str)
    }

    /// One token id or several.
    fn ids(&self, key: &str) -> Result<Vec<u32>, LlmError> {
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let read = |value: &Value| match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => Some(vec![id(one)?]),
        };
        Ok(self.typed(key, "a token id or a list of them", read)?.unwrap_or_default())
    }

    /// A special token: its text, or an object with its text as `content`.
    fn token(&self, key: &str) -> Result<Option<&str>, LlmError> {
        self.typed(key, "a token's text", |value| value.as_str().or_else(|| value.get("content")?.as_str()))
    }
}

fn read_config(json: &Json) -> Result<ModelConfig, LlmError> {
    let kind = json.text("model_type")?.ok_or_else(|| json.error("key model_type is missing"))?;
    if !matches!(kind, "llama" | "mistral" | "qwen2" | "qwen3") {
        return Err(json.error(format!("model_type {kind:?} is not supported; llama, mistral, qwen2 and qwen3 are")));
    }
    refuse_settings(json)?;
    let (hidden, heads, layers) =
        (json.size("hidden_size")?, json.size("num_attention_heads")?, json.size("num_hidden_layers")?);
    let kv_heads = match json.count("num_key_value_heads")? {
        Some(count) => count,
        None if kind == "llama" => heads,
        None => return Err(json.error("key num_key_value_heads is missing")),
    };
    let head_width = match json.count("head_dim")? {
        Some(width) if kind != "qwen2" => width,
        None if kind == "qwen3" => 128,
        _ => hidden / heads,
    };
    let context = json.size("max_position_embeddings")?;
    let (rope_base, rope) = read_rope(json, context)?;
    let config = ModelConfig {
        vocabulary: json.size("vocab_size")?,
        hidden,
        feed_forward: json.size("intermediate_size")?,
        layers,
        heads,
        kv_heads,
        head_width,
        context,
        rope_base,
        rope,
        norm_epsilon: json.number("rms_norm_eps")?.ok_or_else(|| json.error("key rms_norm_eps is missing"))? as f32,
        qkv_bias: kind == "qwen2",
        qk_norm: kind == "qwen3",
        sliding_window: read_window(json, kind, layers)?.filter(|&window| window < context),
        tied_head: json.flag("tie_word_embeddings")?.unwrap_or(false),
    };
    config.check().map_err(|what| json.error(what))?;
    Ok(config)
}

fn refuse_settings(json: &Json) -> Result<(), LlmError> {
    for key in ["attention_bias", "mlp_bias"] {
        if json.flag(key)? == Some(true) {
            return Err(json.error(format!("key {key}: biases are only supported as Qwen 2 has them")));
        }
    }
    if let Some(activation) = json.text("hidden_act")?.filter(|activation| !matches!(*activation, "silu" | "swish")) {
        return Err(json.error(format!("key hidden_act: {activation:?} is not supported; silu is")));
    }
    if let Some(quantized) = json.get("quantization_config") {
        let method = quantized.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        let what = "weights are not supported in a folder; use the unquantized model, or a GGUF file";
        return Err(json.error(format!("key quantization_config: {method} {what}")));
    }
    if json.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(json.error("key partial_rotary_factor: rope over a part of each head is not supported"));
    }
    Ok(())
}

/// Base and scaling of the rotary embedding: `rope_parameters` as transformers 5 writes them, or `rope_theta` and
/// `rope_scaling`.
fn read_rope(json: &Json, context: usize) -> Result<(f32, RopeScaling), LlmError> {
    let key = if json.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let values = json.typed(key, "an object", |value| value.as_object().cloned())?.unwrap_or_default();
    if values.values().any(Value::is_object) {
        return Err(json.error(format!("key {key}: different ropes for different layers are not supported")));
    }
    let path = json.path.clone();
    let inner = Json { path, values };
    let number = |name: &str| {
        let missing = || json.error(format!("key {key}.{name} is missing"));
        inner.number(name)?.map(|number| number as f32).ok_or_else(missing)
    };
    let base = match inner.number("rope_theta")? {
        Some(base) => Some(base),
        None => json.number("rope_theta")?,
    };
    let kind = match inner.text("rope_type")? {
        Some(kind) => Some(kind),
        None => inner.text("type")?,
    };
    let scaling = match kind.unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_frequency_factor: number("low_freq_factor")?,
            high_frequency_factor: number("high_freq_factor")?,
            original_context: inner.count("original_max_position_embeddings")?.unwrap_or(context),
        },
        other => {
            return Err(
                json.error(format!("key {key}: rope scaling {other:?} is not supported; linear and llama3 are"))
            );
        }
    };
    Ok((base.unwrap_or(10_000.0) as f32, scaling))
}

/// The sliding window in force, if there is one.
fn read_window(json: &Json, kind: &str, layers: usize) -> Result<Option<usize>, LlmError> {
    // Transformers' default where the key is not there at all; null switches it off.
    let window = if json.values.contains_key("sliding_window") { json.count("sliding_window")? } else { Some(4096) };
    match kind {
        "llama" => return Ok(None),
        "mistral" => return Ok(window),
        _ => {}
    }
    if json.flag("use_sliding_window")? != Some(true) {
        return Ok(None);
    }
    let sliding = match json.typed("layer_types", "a list", Value::as_array)? {
        Some(types) => types.iter().filter(|kind| kind.as_str() == Some("sliding_attention")).count(),
        None => layers.saturating_sub(json.count("max_window_layers")?.unwrap_or(28)),
    };
    match window.filter(|_| sliding > 0) {
        Some(_) if sliding < layers => Err(json.error(format!(
            "key use_sliding_window: a sliding window in {sliding} of {layers} layers is not supported; all or none is"
        ))),
        window => Ok(window),
    }
}

fn open_tokenizer(
    folder: &Path,
    config: Option<&Json>,
    generation: Option<&Json>,
    settings: Option<&Json>,
) -> Result<TextTokenizer, LlmError> {
    let path = folder.join("tokenizer.json");
    let wrong = |what: String| LlmError::File { path: path.clone(), what };
    if !path.exists() {
        let what =
            "it is missing; load the tokenizer with transformers and save it with save_pretrained, which writes it";
        return Err(wrong(what.into()));
    }
    let text = std::fs::read(&path).map_err(|source| LlmError::Read { path: path.clone(), source })?;
    let tokenizer = Tokenizer::from_bytes(&text).map_err(|error| wrong(format!("not a tokenizer: {error}")))?;
    let special = |key: &str| -> Result<Option<u32>, LlmError> {
        let Some(settings) = settings else { return Ok(None) };
        let Some(text) = settings.token(key)? else { return Ok(None) };
        let unknown = || settings.error(format!("key {key}: token {text:?} is not in tokenizer.json"));
        tokenizer.token_to_id(text).map(Some).ok_or_else(unknown)
    };
    let ids = |json: Option<&Json>, key: &str| json.map_or_else(|| Ok(Vec::new()), |json| json.ids(key));
    let begin = match special("bos_token")? {
        Some(begin) => Some(begin),
        None if settings.is_none() => ids(config, "bos_token_id")?.first().copied(),
        None => None,
    };
    let mut ends: Vec<u32> = special("eos_token")?.into_iter().collect();
    let listed = ids(generation, "eos_token_id")?;
    ends.extend(if listed.is_empty() { ids(config, "eos_token_id")? } else { listed });
    let add_begin = match settings.map(|settings| settings.flag("add_bos_token")).transpose()?.flatten() {
        Some(add) => add,
        None => {
            // Told by the post-processor alone: see what it does.
            let sample = tokenizer.encode_fast("a", true).map_err(|error| wrong(error.to_string()))?;
            begin.is_some() && sample.get_ids().first().copied() == begin
        }
    };
    TextTokenizer::new(tokenizer, Marks { begin, ends, add_begin }).map_err(|error| wrong(error.to_string()))
}

/// The chat template's source: `chat_template.jinja`, or in `tokenizer_config.json` one text or a list of named ones.
fn template_source(folder: &Path, settings: Option<&Json>) -> Result<Option<String>, LlmError> {
    let path = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(source) => return Ok(Some(source)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(LlmError::Read { path, source }),
    }
    let Some((settings, value)) = settings.and_then(|settings| Some((settings, settings.get("chat_template")?))) else {
        return Ok(None);
    };
    let source = match value {
        Value::String(source) => Some(source.as_str()),
        Value::Array(named) => named
            .iter()
            .find(|one| one.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|one| one.get("template")?.as_str()),
        _ => None,
    };
    let source =
        source.ok_or_else(|| settings.error("key chat_template is no text, nor a list with one named default"))?;
    Ok(Some(source.to_owned()))
}
