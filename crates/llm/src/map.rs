//! Maps model files into memory: weights are read where they lie, and paged in as they are needed.

use crate::LlmError;
use memmap2::Mmap;
use std::{fs::File, path::Path};

/// A file's bytes.
///
/// # Errors
/// [`LlmError::Read`] when it cannot be opened or mapped.
pub(crate) fn map(path: &Path) -> Result<Mmap, LlmError> {
    let read = |source| LlmError::Read { path: path.into(), source };
    let file = File::open(path).map_err(read)?;
    // SAFETY: the map is read-only. Model files are pulled once and never changed in place; a file that another program
    // truncates meanwhile ends this process, as for every mapped file.
    #[expect(unsafe_code, reason = "a memory map: weights are read in place")]
    unsafe { Mmap::map(&file) }.map_err(read)
}
