//! The collector from outside: real gRPC over unix sockets and TLS, real files, real kills.

mod access;
mod alerts;
mod crash;
mod damage;
mod delivery;
mod full_disk;
mod ledger;
mod network;
mod pki;
mod query;
mod support;
mod tail;
