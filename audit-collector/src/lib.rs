//! The collector: takes sealed batches from agents, keeps them, and answers questions about them.
//!
//! Life of a batch: `ingest` (history) -> `store::prepare_batch` (root, columns) -> `writer` (WAL,
//! fsync) -> acknowledged and visible -> `detect` -> `alerts` -> `sinks`; `store::compact` moves
//! rows to Parquet. Readers: `query`, `tail`, `export`, `service`. Before all of them: `transport` (who
//! is at the other end) and `access` (who may call what). `pipeline` wires them.

#![forbid(unsafe_code)]

mod access;
mod alerts;
mod check;
pub mod config;
mod detect;
mod export;
mod filter;
pub mod history;
mod identity;
mod ingest;
pub mod json;
mod metrics;
mod pipeline;
mod problems;
mod query;
mod server;
mod service;
mod sinks;
mod status;
mod store;
pub mod streams;
mod tail;
mod transport;
mod writer;

pub use check::check;
pub use config::Config;
pub use detect::builtin as builtin_rules;
pub use pipeline::{Addresses, CollectorError, Running, give_way, run, start};
