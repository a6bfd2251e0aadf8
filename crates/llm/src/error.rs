//! What can go wrong with a language model, by what the caller should do about it.

use std::path::PathBuf;

/// A language model's failure. Messages name the file and tensor or the row, and the way out.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    /// A model file cannot be opened or mapped. Try again when the file is there.
    #[error("cannot read the model file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model file is cut short, malformed, or of a kind that is not supported. Pull it again or use another.
    #[error("model file {path}: {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// The place in it, what is wrong, and what would be right.
        what: String,
    },
    /// The chat template cannot be rendered for these messages.
    #[error("chat template: {0}")]
    Template(String),
    /// A text cannot be tokenized or tokens cannot be turned into text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// One row's prompt cannot be computed. The batch's other rows are not touched.
    #[error("prompt {row}: {what}")]
    Prompt {
        /// Position in the list of prompts.
        row: usize,
        /// What is wrong with it.
        what: String,
    },
    /// An adapter is malformed, of a kind that is not supported, or of another model.
    #[error("adapter: {0}")]
    Adapter(String),
    /// A saved state of a training cannot be continued. Begin again.
    #[error("saved state of a training: {0}")]
    State(String),
    /// The loss, its gradients or the adapter are not numbers any more.
    #[error(
        "the loss became {loss}, or its gradients or the adapter infinite, in step {step} of tuning; lower learning_rate"
    )]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// Its mean loss, or that of a sample which is not finite.
        loss: f64,
    },
    /// An argument that makes no sense, such as a temperature below 0.
    #[error("{0}")]
    Argument(String),
    /// The device is not there, or this build cannot use it.
    #[error("device {name:?}: {what}")]
    Device {
        /// The name as given.
        name: String,
        /// Why not, and what to use instead.
        what: String,
    },
    /// The caller's progress callback asked to stop.
    #[error("cancelled")]
    Cancelled,
}
