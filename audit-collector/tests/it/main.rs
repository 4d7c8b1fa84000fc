//! The collector from outside: real gRPC over unix sockets, real files, real kills.

mod alerts;
mod crash;
mod damage;
mod delivery;
mod events_files;
mod filters;
mod full_disk;
mod network;
mod query;
mod slow_reader;
mod support;
mod tail;
