//! The safetensors files of a Hugging Face folder: one file, or several with an index.
//!
//! Files are mapped, not read. Every length and offset is checked before it is believed; an error names the file and
//! the tensor. Old PyTorch pickles are deliberately not read: they can run code.

use crate::{LlmError, map::map, quants::Format};
use memmap2::Mmap;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// All tensors of a folder.
pub(crate) struct Shards {
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Tensor>,
}

/// Where and how a tensor is stored.
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) format: Format,
    file: usize,
    /// Bytes of the file: first and one past the last.
    span: (usize, usize),
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl Shards {
    /// Opens a folder's files and reads their headers.
    ///
    /// # Errors
    /// [`LlmError::Read`] when a file cannot be opened, [`LlmError::File`] when it is cut, malformed, or lacks a tensor
    /// that the index promises.
    pub(crate) fn open(folder: &Path) -> Result<Self, LlmError> {
        let mut shards = Self { files: Vec::new(), tensors: BTreeMap::new() };
        if folder.join(SINGLE).exists() {
            shards.add(folder.join(SINGLE))?;
        } else if folder.join(INDEX).exists() {
            shards.add_indexed(folder)?;
        } else {
            return Err(no_weights(folder));
        }
        Ok(shards)
    }

    pub(crate) fn get(&self, name: &str) -> Option<(&Tensor, &[u8])> {
        let tensor = self.tensors.get(name)?;
        Some((tensor, &self.files[tensor.file].1[tensor.span.0..tensor.span.1]))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The file that holds a tensor; for one that is nowhere, the first file.
    pub(crate) fn file_of(&self, name: &str) -> &Path {
        let file = self.tensors.get(name).map_or(0, |tensor| tensor.file);
        &self.files[file].0
    }

    fn add_indexed(&mut self, folder: &Path) -> Result<(), LlmError> {
        let path = folder.join(INDEX);
        let wrong = |what: String| LlmError::File { path: path.clone(), what };
        let text = std::fs::read(&path).map_err(|source| LlmError::Read { path: path.clone(), source })?;
        let index: Index = serde_json::from_slice(&text).map_err(|error| wrong(format!("malformed: {error}")))?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        if names.is_empty() {
            return Err(wrong("weight_map is empty".into()));
        }
        for name in names {
            // The index comes from outside and must not point out of the folder.
            if Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(wrong(format!("weight_map names {name:?}, which is not a file of the folder")));
            }
            self.add(folder.join(name))?;
        }
        for (tensor, file) in &index.weight_map {
            if self.tensors.get(tensor).is_none_or(|found| self.files[found.file].0 != folder.join(file)) {
                return Err(wrong(format!("tensor {tensor} is missing in {file}: pull the folder again")));
            }
        }
        Ok(())
    }

    fn add(&mut self, path: PathBuf) -> Result<(), LlmError> {
        let bytes = map(&path)?;
        let header = parse(&bytes).map_err(|what| LlmError::File { path: path.clone(), what })?;
        for (name, (shape, format, span)) in header {
            let tensor = Tensor { shape, format, file: self.files.len(), span };
            if self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(LlmError::File {
                    path,
                    what: format!("tensor {name} is in another file of the folder too"),
                });
            }
        }
        self.files.push((path, bytes));
        Ok(())
    }
}

fn no_weights(folder: &Path) -> LlmError {
    let error = |path: PathBuf, what: &str| LlmError::File { path, what: what.into() };
    for pickle in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        if folder.join(pickle).exists() {
            let what = "PyTorch pickles can run code and are not read; save the model with save_pretrained of transformers, which writes safetensors";
            return error(folder.join(pickle), what);
        }
    }
    error(folder.join(SINGLE), "it is missing, and so is model.safetensors.index.json: the folder has no weights")
}

/// Shape, format and bytes of a tensor: first in the file and one past the last.
type Place = (Vec<usize>, Format, (usize, usize));
type Header = BTreeMap<String, Place>;

/// Reads a file's header: 8 bytes with its length, then JSON.
fn parse(bytes: &[u8]) -> Result<Header, String> {
    let cut = || format!("the file ends at byte {}, within its header: it is cut short, pull it again", bytes.len());
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(cut)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok();
    let (header, data) = length.and_then(|length| rest.split_at_checked(length)).ok_or_else(cut)?;
    let entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)
        .map_err(|error| format!("the header is malformed ({error}); is it a safetensors file?"))?;
    let start = bytes.len() - data.len();
    let entries = entries.into_iter().filter(|(name, _)| name != "__metadata__");
    let tensor = |(name, entry)| {
        let read = read_entry(entry, start, bytes.len()).map_err(|what| format!("tensor {name}: {what}"))?;
        Ok((name, read))
    };
    entries.map(tensor).collect()
}

fn read_entry(entry: serde_json::Value, start: usize, length: usize) -> Result<Place, String> {
    let entry: Entry = serde_json::from_value(entry).map_err(|error| error.to_string())?;
    let format = match entry.dtype.as_str() {
        "F32" => Format::F32,
        "F16" => Format::F16,
        "BF16" => Format::BF16,
        other => {
            return Err(format!(
                "type {other} is not supported; F32, F16 and BF16 are: use the unquantized model, or a GGUF file"
            ));
        }
    };
    let (first, last) = entry.data_offsets;
    let size = entry.shape.iter().try_fold(format.block().1, |size, &count| size.checked_mul(count));
    if last.checked_sub(first).is_none_or(|bytes| Some(bytes) != size) {
        return Err(format!("shape {:?} does not take the bytes {first} to {last}", entry.shape));
    }
    match start.checked_add(last) {
        Some(end) if end <= length => Ok((entry.shape, format, (start + first, end))),
        _ => Err(format!(
            "it ends at byte {}, but the file has {length}: it is cut short, pull it again",
            start.saturating_add(last)
        )),
    }
}
