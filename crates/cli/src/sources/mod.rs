//! Named sources: the data sets and models that pipelines name, where each is found, and what it must contain.
//!
//! The program ships none of them. A source is pulled once into `<home>/sources/<name>/`, checked against pinned
//! SHA-256 sums, and from then on known by its digest, which is part of every task key that depends on it. This
//! module deliberately knows nothing of pipelines, runs or terminals: what happens is told as [`PullEvent`]s.

mod catalogue;
mod digest;
mod download;
mod error;
mod files;
mod hub;
mod model_files;
mod package;
mod pull;
mod record;
mod s3;
#[cfg(test)]
mod tests;

pub use catalogue::{Entry, FilePin, Mirror, Role, Route, Variant, catalogue};
pub use digest::DigestCache;
pub use download::Patience;
pub use error::SourceError;
pub use hub::Hub;
pub use pull::{PullEvent, Sources, is_remote};
pub use record::{RecordedFile, SourceRecord};
