//! The wire: what coordinator and workers send each other, and the only conversions between that and the domain.
//!
//! Generated types stop here: they are private, so that nothing else can come to depend on how a message is laid
//! out. Decoding checks everything that the domain types promise. The embedded run's queue carries the same bytes
//! as a cluster's. The exception is [`api`], the coordinator's gRPC interface, which is what it says on the wire.

mod convert;
mod fleet;
mod offer;
mod report;

#[expect(unreachable_pub, reason = "generated from the .proto files, which are commented")]
mod v1 {
    include!(concat!(env!("OUT_DIR"), "/rallrec.v1.rs"));
}

/// The coordinators' gRPC interfaces: servers, clients and messages.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    reason = "generated from the .proto files, which are commented"
)]
pub mod api {
    tonic::include_proto!("rallrec.api.v1");
}

pub use fleet::{
    BeatMessage, LeaderBeat, Order, decode_beat, decode_leader, decode_order, encode_beat, encode_leader, encode_order,
};
pub use offer::{decode_offer, encode_offer};
pub use report::{decode_report, encode_report};

/// Bytes that are not a message of this version. The sender runs another version of the program, or the queue is
/// shared with something else; the message should be dropped and told of.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not a protobuf message of this type.
    #[error("not a message of this program: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A field that must be there is not.
    #[error("message lacks `{field}`; coordinator and worker must be of one version")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field has a value that this version does not know.
    #[error(
        "message has `{value}` as `{field}`, which this version does not know; coordinator and worker must be of one version"
    )]
    Unknown {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// Parameters that are not JSON.
    #[error("the stage's parameters are not JSON: {0}")]
    Params(serde_json::Error),
}
