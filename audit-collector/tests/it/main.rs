//! The collector from outside: real gRPC over unix sockets, real files, real kills.

mod alerts;
mod crash;
mod damage;
mod delivery;
mod full_disk;
mod ledger;
mod network;
mod query;
mod support;
mod tail;
