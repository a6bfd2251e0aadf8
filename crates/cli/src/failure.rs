//! How a command can end, and the exit code of each ending: the contract with scripts and CI systems.

use crate::sources::SourceError;
use rallrec_core::ids::RunId;
use rallrec_store::StoreError;

/// Exit code of a command that did what it was asked.
pub const DONE: u8 = 0;

/// A command that did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A stage failed; the rest of the run that did not need it was done.
    #[error("{0}")]
    Stage(String),
    /// A pipeline was refused. The text is its diagnostics, each with its own `FILE:LINE:COL: error:`.
    #[error("{0}")]
    Pipeline(String),
    /// A run is worse than its baseline.
    #[error("{0}")]
    Regression(String),
    /// Nothing is shown, and a run may be worse than its baseline all the same.
    #[error("{0}")]
    TooFew(String),
    /// Something else that the user gave is wrong.
    #[error("{0}")]
    Invalid(String),
    /// A file, a folder or a service that is needed cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// Stopped by Ctrl-C; the run can be resumed.
    #[error("interrupted; run {run} keeps what was finished\nresume it with: {resume}")]
    Interrupted {
        /// The run.
        run: RunId,
        /// The command line that goes on with it.
        resume: String,
    },
    /// Anything else: most likely a bug.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Stage(_) | Self::Regression(_) | Self::Other(_) => 1,
            Self::Pipeline(_) | Self::Invalid(_) => 2,
            Self::Unreachable(_) => 3,
            Self::TooFew(_) => 4,
            Self::Interrupted { .. } => 130,
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        if error.is_invalid_input() { Self::Invalid(error.to_string()) } else { Self::Unreachable(error.to_string()) }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Object { .. } | StoreError::Folder { .. } | StoreError::Unfit { .. } => {
                Self::Unreachable(error.to_string())
            }
            _ => Self::Other(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io, path::PathBuf};

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let run = RunId("r".into());
        let cases = [
            (Failure::Stage("x".into()), 1),
            (Failure::Regression("x".into()), 1),
            (Failure::Other(anyhow::anyhow!("x")), 1),
            (Failure::Pipeline("x".into()), 2),
            (Failure::Invalid("x".into()), 2),
            (Failure::Unreachable("x".into()), 3),
            (Failure::TooFew("x".into()), 4),
            (Failure::Interrupted { run, resume: "rallrec run p.yaml".into() }, 130),
        ];
        for (failure, code) in cases {
            assert_eq!(failure.exit_code(), code, "{failure:?}");
        }
    }

    #[test]
    fn wrong_files_are_invalid_and_absent_ones_unreachable() {
        let mismatch =
            SourceError::Mismatch { name: "n".into(), path: PathBuf::new(), reasons: vec![], official: String::new() };
        assert_eq!(Failure::from(mismatch).exit_code(), 2);
        let io = SourceError::Io { path: PathBuf::new(), error: io::Error::other("x") };
        assert_eq!(Failure::from(io).exit_code(), 3);
        let offline = SourceError::Offline { name: "n".into(), folder: PathBuf::new(), command: "data" };
        assert_eq!(Failure::from(offline).exit_code(), 3);
    }

    #[test]
    fn an_interruption_says_how_to_go_on() {
        let failure = Failure::Interrupted { run: RunId("20261123-1".into()), resume: "rallrec run p.yaml".into() };
        assert!(failure.to_string().ends_with("resume it with: rallrec run p.yaml"));
    }
}
