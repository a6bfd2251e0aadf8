//! Reads GGUF files (versions 2 and 3, little-endian): metadata and the table of tensors.
//!
//! The file is mapped, not read: a tensor's bytes are paged in when it is dequantized. Every count, offset and length
//! in the file is checked before it is believed, and an error names the file and the tensor or metadata key. It
//! deliberately knows nothing of models: what the keys mean is [`crate::config`]'s affair.

use crate::{
    LlmError,
    map::map,
    quants::{Format, dequantize},
};
use memmap2::Mmap;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: usize = 32;
const MAX_DIMENSIONS: usize = 4;
/// Arrays in arrays go no deeper: a guard against a file made to exhaust the stack.
const MAX_NESTING: usize = 4;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// A float of 32 or 64 bits.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Values of one type.
    Array(Vec<Value>),
}

/// Where and how a tensor is stored.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Sizes as in the mathematical notation: rows first, the contiguous dimension last.
    pub shape: Vec<usize>,
    /// How the values are stored.
    pub format: Format,
    /// Bytes of the file: first and one past the last.
    span: (usize, usize),
}

/// A GGUF file that is open for reading.
pub struct GgufFile {
    path: PathBuf,
    bytes: Mmap,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl GgufFile {
    /// Opens a file and reads all but the tensors' values.
    ///
    /// # Errors
    /// [`LlmError::Read`] when it cannot be opened, [`LlmError::File`] when it is cut or malformed.
    pub fn open(path: &Path) -> Result<Self, LlmError> {
        let bytes = map(path)?;
        let (metadata, tensors) = parse(&bytes).map_err(|what| LlmError::File { path: path.into(), what })?;
        Ok(Self { path: path.into(), bytes, metadata, tensors })
    }

    /// The file's path, for error messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Error that names this file.
    pub fn error(&self, what: impl Into<String>) -> LlmError {
        LlmError::File { path: self.path.clone(), what: what.into() }
    }

    /// A metadata value, if the key is there.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// An integer that is not negative, if the key is there.
    ///
    /// # Errors
    /// [`LlmError::File`] when the value is of another type.
    pub fn count(&self, key: &str) -> Result<Option<usize>, LlmError> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(number)) => usize::try_from(*number).ok(),
            Some(Value::Signed(number)) => usize::try_from(*number).ok(),
            Some(_) => None,
        };
        number.map(Some).ok_or_else(|| self.error(format!("metadata {key} is not a count")))
    }

    /// A number, if the key is there.
    ///
    /// # Errors
    /// [`LlmError::File`] when the value is of another type.
    pub fn float(&self, key: &str) -> Result<Option<f64>, LlmError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) => Ok(Some(*number)),
            Some(_) => Err(self.error(format!("metadata {key} is not a float"))),
        }
    }

    /// A text, if the key is there.
    ///
    /// # Errors
    /// [`LlmError::File`] when the value is of another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>, LlmError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(format!("metadata {key} is not a text"))),
        }
    }

    /// A list of texts, if the key is there.
    ///
    /// # Errors
    /// [`LlmError::File`] when the value is of another type.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, LlmError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = match value {
            Value::Array(items) => items
                .iter()
                .map(|item| if let Value::Text(text) = item { Some(text.as_str()) } else { None })
                .collect::<Option<Vec<_>>>(),
            _ => None,
        };
        texts.map(Some).ok_or_else(|| self.error(format!("metadata {key} is not a list of texts")))
    }

    /// Names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Where a tensor is, if there is one of the name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// A tensor's bytes in the mapped file.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.bytes[tensor.span.0..tensor.span.1]
    }

    /// A list of numbers, if the key is there.
    ///
    /// # Errors
    /// [`LlmError::File`] when the value is of another type.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, LlmError> {
        let number = |item: &Value| match item {
            Value::Unsigned(number) => Some(*number as f64),
            Value::Signed(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        };
        let numbers = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array(items)) => items.iter().map(number).collect::<Option<Vec<_>>>(),
            Some(_) => None,
        };
        numbers.map(Some).ok_or_else(|| self.error(format!("metadata {key} is not a list of numbers")))
    }

    /// A truth value, if the key is there.
    ///
    /// # Errors
    /// [`LlmError::File`] when the value is of another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, LlmError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.error(format!("metadata {key} is not a truth value"))),
        }
    }

    /// A tensor's values as 32-bit floats, rows one after another.
    ///
    /// # Errors
    /// [`LlmError::File`] when there is no such tensor or its shape is not `shape`.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LlmError> {
        let info = self.tensors.get(name).ok_or_else(|| self.error(format!("tensor {name} is missing")))?;
        if info.shape != shape {
            return Err(self.error(format!("tensor {name} has shape {:?}, not {shape:?}", info.shape)));
        }
        let mut values = vec![0.0; shape.iter().product()];
        dequantize(info.format, self.bytes(info), &mut values);
        Ok(values)
    }
}

type Contents = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>);

fn parse(bytes: &[u8]) -> Result<Contents, String> {
    let mut cursor = Cursor { bytes, at: 0, place: "header".into() };
    if cursor.take(4)? != MAGIC {
        return Err("not a GGUF file: it does not begin with GGUF".into());
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version {version} is not supported; 2 and 3 are"));
    }
    let (tensor_count, key_count) = (cursor.length(24)?, cursor.length(12)?);
    let mut metadata = BTreeMap::new();
    for number in 0..key_count {
        cursor.place = format!("metadata key {number} of {key_count}");
        let key = cursor.text()?;
        cursor.place = format!("metadata {key}");
        let kind = cursor.u32()?;
        let value = cursor.value(kind, 0)?;
        if metadata.insert(key, value).is_some() {
            return Err(format!("{} is there twice", cursor.place));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => 1 << n.trailing_zeros(),
        Some(other) => return Err(format!("general.alignment is {other:?}, not a power of two")),
    };
    let mut infos = Vec::with_capacity(tensor_count);
    for number in 0..tensor_count {
        cursor.place = format!("entry {number} of the table of {tensor_count} tensors");
        infos.push(cursor.tensor_info()?);
    }
    let data = cursor.at.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, shape, format, offset) in infos {
        let span =
            tensor_span(&shape, format, data, offset, alignment).map_err(|what| format!("tensor {name}: {what}"))?;
        if span.1 > bytes.len() {
            return Err(format!(
                "tensor {name} ends at byte {}, but the file has {}: it is cut short, pull it again",
                span.1,
                bytes.len()
            ));
        }
        if tensors.insert(name.clone(), TensorInfo { shape, format, span }).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
    }
    Ok((metadata, tensors))
}

/// First byte in the file and one past the last.
fn tensor_span(
    shape: &[usize],
    format: Format,
    data: usize,
    offset: u64,
    alignment: usize,
) -> Result<(usize, usize), String> {
    let (block_values, block_bytes) = format.block();
    let row = shape.last().copied().unwrap_or(1);
    if row == 0 || !row.is_multiple_of(block_values) {
        return Err(format!("rows of {row} values are not whole blocks of {block_values}"));
    }
    let size = shape
        .iter()
        .try_fold(1_usize, |product, &size| product.checked_mul(size))
        .and_then(|values| (values / block_values).checked_mul(block_bytes));
    let first = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
    let (Some(size), Some(first)) = (size, first) else {
        return Err(format!("impossible size {shape:?} or offset {offset}"));
    };
    if !(first - data).is_multiple_of(alignment) {
        return Err(format!("offset {offset} is not a multiple of {alignment}"));
    }
    let end = first.checked_add(size).ok_or_else(|| format!("impossible offset {offset}"))?;
    Ok((first, end))
}

/// Reads forward and remembers what it is reading, for the error message.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    place: String,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..count));
        let taken = taken.ok_or_else(|| {
            format!("{}: the file ends at byte {}, it is cut short; pull it again", self.place, self.bytes.len())
        })?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of items that take at least `item_bytes` each: more than the rest of the file can hold is refused
    /// before memory is set aside for them.
    fn length(&mut self, item_bytes: usize) -> Result<usize, String> {
        let count = self.u64()?;
        let room = (self.bytes.len() - self.at) / item_bytes;
        usize::try_from(count).ok().filter(|&count| count <= room).ok_or_else(|| {
            format!("{}: a count of {count} does not fit into the rest of the file; it is cut or damaged", self.place)
        })
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.length(1)?;
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| format!("{}: a text is not UTF-8", self.place))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.array::<1>()?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 => {
                if depth == MAX_NESTING {
                    return Err(format!("{}: arrays are nested too deeply", self.place));
                }
                let kind = self.u32()?;
                let count = self.length(1)?;
                (0..count).map(|_| self.value(kind, depth + 1)).collect::<Result<_, _>>().map(Value::Array)?
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(format!("{}: unknown value type {kind}", self.place)),
        })
    }

    fn tensor_info(&mut self) -> Result<(String, Vec<usize>, Format, u64), String> {
        let name = self.text()?;
        self.place = format!("tensor {name}");
        let dimensions = self.u32()? as usize;
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            return Err(format!("tensor {name} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are possible"));
        }
        // The file lists the contiguous dimension first.
        let mut shape = (0..dimensions)
            .map(|_| usize::try_from(self.u64()?).map_err(|_| format!("tensor {name} is too large")))
            .collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let number = self.u32()?;
        let format = Format::of_ggml_type(number).ok_or_else(|| {
            format!(
                "tensor {name} has GGML type {number}; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K are supported"
            )
        })?;
        Ok((name, shape, format, self.u64()?))
    }
}
