//! A model's weights as the decoder sees them, whatever the format: by Hugging Face names, as they lie in the file.
//!
//! Nothing is copied or converted here: a [`Stored`] tensor points into the mapped file. Shapes and numbers are checked
//! when a tensor is taken, with errors that name the file and the tensor. A tensor that the configured decoder does not
//! use is refused at opening: leaving it out would compute another model than the file's.

use crate::{
    LlmError,
    config::ModelConfig,
    folder,
    gguf::GgufFile,
    quants::{Format, dequantize},
    text::ModelText,
};
use rayon::prelude::*;
use std::{borrow::Cow, path::Path};

/// Blocks that one task checks for numbers that are not finite.
const CHECKED_BLOCKS: usize = 1 << 14;

/// Weights by their Hugging Face names, for example `model.layers.3.self_attn.q_proj.weight`.
pub(crate) trait Checkpoint: Send + Sync {
    /// Shape of the decoder that the weights are for.
    fn config(&self) -> &ModelConfig;
    /// A tensor, `None` when it is absent. The output head of a model with a tied one is absent.
    fn tensor(&self, name: &str) -> Option<Stored<'_>>;
    /// The file that a tensor lies in, or should.
    fn file_of(&self, name: &str) -> &Path;
    /// A tensor's name as the file has it.
    fn own_name<'a>(&self, name: &'a str) -> Cow<'a, str>;
}

impl dyn Checkpoint + '_ {
    /// An error that names a tensor and its file.
    pub(crate) fn error(&self, name: &str, what: &str) -> LlmError {
        LlmError::File { path: self.file_of(name).into(), what: format!("tensor {} {what}", self.own_name(name)) }
    }

    /// A tensor that must be there, \[rows, columns\], with finite values.
    ///
    /// # Errors
    /// [`LlmError::File`] when it is missing, of another shape, or holds a NaN or an infinite number.
    pub(crate) fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Stored<'_>, LlmError> {
        let stored = self.tensor(name).ok_or_else(|| self.error(name, "is missing"))?;
        if (stored.rows, stored.columns) != (rows, columns) {
            let what = format!(
                "has shape [{}, {}], and the configuration wants [{rows}, {columns}]",
                stored.rows, stored.columns
            );
            return Err(self.error(name, &what));
        }
        if !stored.is_finite() {
            let what = "has values that are NaN or infinite: the file is damaged, pull it again";
            return Err(self.error(name, what));
        }
        Ok(stored)
    }

    /// The values of a vector that must be there.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, LlmError> {
        Ok(self.matrix(name, 1, length)?.values())
    }
}

/// A tensor as it lies in a file: rows one after another, \[outputs, inputs\]. A vector is one row.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) format: Format,
    pub(crate) bytes: &'a [u8],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Head width when the rows (of a vector: the values) lie in llama.cpp's rope order, see [`Self::stored_row`].
    pub(crate) interleaved: Option<usize>,
}

impl<'a> Stored<'a> {
    /// Where logical row `row` lies. llama.cpp stores a head's rows as 0, half, 1, half + 1, …; logically the two
    /// halves follow one another, as the rotary embedding pairs them.
    pub(crate) fn stored_row(&self, row: usize) -> usize {
        let Some(width) = self.interleaved else { return row };
        let (head, i, half) = (row / width * width, row % width, width / 2);
        head + if i < half { 2 * i } else { 2 * (i - half) + 1 }
    }

    /// The bytes of a logical row: whole blocks.
    pub(crate) fn row_bytes(&self, row: usize) -> &'a [u8] {
        let (values, bytes) = self.format.block();
        let size = self.columns / values * bytes;
        let at = if self.rows == 1 { 0 } else { self.stored_row(row) * size };
        &self.bytes[at..at + size]
    }

    /// The values of a logical row, as 32-bit floats.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        dequantize(self.format, self.row_bytes(row), out);
    }

    /// All values in logical order, as 32-bit floats.
    pub(crate) fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.columns];
        if self.rows == 1 {
            self.row(0, &mut values);
            return match self.interleaved {
                Some(_) => (0..values.len()).map(|i| values[self.stored_row(i)]).collect(),
                None => values,
            };
        }
        values.par_chunks_exact_mut(self.columns).enumerate().for_each(|(row, out)| self.row(row, out));
        values
    }

    fn is_finite(&self) -> bool {
        let size = self.format.block().1 * CHECKED_BLOCKS;
        self.bytes.par_chunks(size).all(|bytes| self.format.is_finite(bytes))
    }
}

/// A tensor's shape as a matrix's: all its dimensions but the last one are rows. A shape that a file claims may have more
/// rows than there are numbers, beside a dimension of 0: such a tensor has none.
pub(crate) fn rows_and_columns(shape: &[usize]) -> (usize, usize) {
    let (columns, rows) = shape.split_last().unwrap_or((&1, &[]));
    let rows = if shape.contains(&0) { 0 } else { rows.iter().product() };
    (rows, *columns)
}

/// What a model's files hold.
pub(crate) struct ModelFiles {
    pub(crate) weights: Box<dyn Checkpoint>,
    pub(crate) text: ModelText,
    pub(crate) defaults: SamplingDefaults,
}

/// The sampling that a model's makers recommend, where the files say so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Draws from the smallest set of tokens with this probability.
    pub top_p: Option<f32>,
    /// Draws from this many most probable tokens.
    pub top_k: Option<usize>,
}

impl ModelFiles {
    /// Opens a GGUF file, or a Hugging Face folder.
    pub(crate) fn open(path: &Path) -> Result<Self, LlmError> {
        if path.is_dir() {
            return folder::open(path);
        }
        let file = GgufFile::open(path)?;
        let text = ModelText::of_gguf(&file)?;
        let weights = Box::new(GgufCheckpoint::new(file)?);
        Ok(Self { weights, text, defaults: SamplingDefaults::default() })
    }
}

/// Tensors outside the blocks: Hugging Face and GGUF name.
const OUTER: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    (HEAD, "output.weight"),
];
/// Modules of a block: Hugging Face and GGUF name.
const BLOCK: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];
const BLOCKS: (&str, &str) = ("model.layers.", "blk.");
/// The output head.
pub(crate) const HEAD: &str = "lm_head.weight";

/// Whether the configured decoder uses a tensor, or may leave it out without harm.
pub(crate) fn is_used(config: &ModelConfig, name: &str) -> bool {
    if OUTER.iter().any(|(known, _)| *known == name) {
        return true;
    }
    let Some((index, module, part)) = in_block(name, BLOCKS.0) else { return false };
    let known = BLOCK.iter().any(|(known, _)| *known == module);
    let normal = match (module, part) {
        ("self_attn.q_norm" | "self_attn.k_norm", "weight") => config.qk_norm,
        ("self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj", "bias") => config.qkv_bias,
        (_, part) => part == "weight",
    };
    // Old files carry the rotary embedding's frequencies, which follow from the configuration.
    index < config.layers && (known && normal || module == "self_attn.rotary_emb" && part == "inv_freq")
}

/// Splits `PREFIX3.MODULE.weight` into the number, the module and the part.
fn in_block<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str, &'a str)> {
    let (index, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    let (module, part) = rest.rsplit_once('.')?;
    Some((index.parse().ok()?, module, part))
}

/// A name in the other vocabulary: `from` and `to` pick the sides of the tables.
fn renamed(name: &str, from: fn((&'static str, &'static str)) -> (&'static str, &'static str)) -> Option<String> {
    if let Some(to) = OUTER.into_iter().map(from).find(|(known, _)| *known == name) {
        return Some(to.1.to_owned());
    }
    let (prefix, new_prefix) = from(BLOCKS);
    let (index, module, part) = in_block(name, prefix)?;
    let (_, module) = BLOCK.into_iter().map(from).find(|(known, _)| *known == module)?;
    Some(format!("{new_prefix}{index}.{module}.{part}"))
}

/// A GGUF file as a checkpoint.
struct GgufCheckpoint {
    file: GgufFile,
    config: ModelConfig,
    /// Query and key rows lie in llama.cpp's rope order. Only the converter of Llama models sorts them so.
    interleaved: bool,
}

impl GgufCheckpoint {
    fn new(file: GgufFile) -> Result<Self, LlmError> {
        let config = ModelConfig::from_gguf(&file)?;
        let interleaved = file.text("general.architecture")? == Some("llama");
        for own in file.tensor_names().filter(|own| *own != "rope_freqs.weight") {
            let name = renamed(own, |(hf, gguf)| (gguf, hf));
            if !name.is_some_and(|name| is_used(&config, &name)) {
                return Err(file.error(format!("tensor {own} {NOT_USED}")));
            }
        }
        Ok(Self { file, config, interleaved })
    }
}

/// Of a tensor that the decoder would leave out.
pub(crate) const NOT_USED: &str =
    "is not part of a decoder of this configuration; models with such weights are not supported";

impl Checkpoint for GgufCheckpoint {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, name: &str) -> Option<Stored<'_>> {
        let own = self.own_name(name);
        let info = self.file.tensor(&own)?;
        let (rows, columns) = rows_and_columns(&info.shape);
        let rotated = name.contains(".self_attn.q_proj.") || name.contains(".self_attn.k_proj.");
        Some(Stored {
            format: info.format,
            bytes: self.file.bytes(info),
            rows,
            columns,
            interleaved: (self.interleaved && rotated).then_some(self.config.head_width),
        })
    }

    fn file_of(&self, _name: &str) -> &Path {
        self.file.path()
    }

    fn own_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        renamed(name, |pair| pair).map_or(Cow::Borrowed(name), Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated_both_ways() {
        for (hf, gguf) in [
            ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
            ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
            ("lm_head.weight", "output.weight"),
        ] {
            assert_eq!(renamed(hf, |pair| pair).as_deref(), Some(gguf));
            assert_eq!(renamed(gguf, |(hf, gguf)| (gguf, hf)).as_deref(), Some(hf));
        }
        assert_eq!(renamed("model.layers.x.mlp.down_proj.weight", |pair| pair), None);
    }

    #[test]
    fn a_shape_is_that_of_a_matrix() {
        assert_eq!(rows_and_columns(&[5, 3, 2]), (15, 2));
        assert_eq!((rows_and_columns(&[7]), rows_and_columns(&[])), ((1, 7), (1, 1)));
        // The product of these dimensions alone overflows.
        assert_eq!(rows_and_columns(&[0, 1 << 40, 1 << 40, 32]), (0, 32));
        assert_eq!(rows_and_columns(&[1 << 40, 1 << 40, 0]), (0, 0));
    }

    #[test]
    fn rows_of_a_head_are_sorted_into_halves() {
        // Two heads of width 4, rows of width 1, named by what they are: head, half, index.
        let stored = [0.00_f32, 0.10, 0.01, 0.11, 1.00, 1.10, 1.01, 1.11];
        let bytes: Vec<u8> = stored.iter().flat_map(|value| value.to_le_bytes()).collect();
        let sorted = [0.00, 0.01, 0.10, 0.11, 1.00, 1.01, 1.10, 1.11];
        for (rows, columns) in [(8, 1), (1, 8)] {
            let stored = Stored { format: Format::F32, bytes: &bytes, rows, columns, interleaved: Some(4) };
            assert_eq!(stored.values(), sorted);
        }
    }
}
