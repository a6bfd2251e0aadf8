//! What can go wrong in a stage, by what the caller should do.

use rallrec_core::task::FailureClass;

/// A stage's failure.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The input or a file is wrong: trying again gives the same. Names the file, line or row and the way out.
    #[error("{0}")]
    Invalid(String),
    /// May pass next time.
    #[error("{0}")]
    Transient(String),
    /// Not enough memory.
    #[error("{0}")]
    Resource(String),
    /// The store does not answer, or is full, which says nothing about the task.
    #[error("{0}")]
    Unavailable(String),
    /// The task was told to stop.
    #[error("cancelled")]
    Cancelled,
}

impl StageError {
    /// What to do about it.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Invalid(_) => FailureClass::Permanent,
            Self::Transient(_) => FailureClass::Transient,
            Self::Resource(_) => FailureClass::Resource,
            Self::Unavailable(_) => FailureClass::Unavailable,
            Self::Cancelled => FailureClass::Lost,
        }
    }
}
