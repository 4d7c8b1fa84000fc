//! The collector from outside: real gRPC over unix sockets and TLS, real files, real kills.

mod access;
mod alerts;
mod crash;
mod damage;
mod delivery;
mod events_files;
mod filters;
mod full_disk;
mod ledger;
mod metrics;
mod network;
mod pki;
mod query;
mod slow_reader;
mod support;
mod tail;
