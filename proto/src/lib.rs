//! The public contract: what agents send, collectors answer, and everyone else may build on.
//!
//! * [`v1`]: messages and services generated from `proto/audit/v1`.
//! * [`columns`]: the event as a flat row, derived from the descriptor. Store, detection, filters
//!   and documentation use it, so that none of them has code per event kind.
//! * [`filter`]: how a filter of events is written on a command line and in configuration.
//! * [`text`]: the one reversible escape for bytes that are not UTF-8.
//! * [`totals`]: the lines of totals in a heartbeat.

#![forbid(unsafe_code)]

#[expect(
    clippy::useless_conversion,
    clippy::too_many_lines,
    reason = "half of it is generated, one arm per column"
)]
pub mod columns;
pub mod filter;
pub mod text;
pub mod totals;

/// Generated from `proto/audit/v1`.
#[allow(
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    missing_docs,
    reason = "generated code is as its generators write it"
)]
pub mod v1 {
    tonic::include_proto!("audit.v1");
}

pub use prost::Message;

/// For gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Metadata of the answer to a batch that a collector will never take: its number, 0 where not even
/// that can be read.
pub const REFUSED_BATCH: &str = "hostaudit-refused-batch";

/// Largest gRPC message that agent and collector accept: one batch of events, of which one may
/// carry the 2 MiB of argv that Linux allows, or one piece of a query result.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
