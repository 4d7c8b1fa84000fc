//! What end-to-end tests and benches share: the real binaries, running as on a host.
//!
//! * [`stack`]: an agent and a collector on a temporary directory, and questions to them;
//! * [`synthetic`]: a collector filled with events that the test knows in full;
//! * [`strace`]: what another witness saw of a program; [`witness`]: what the record must have then;
//! * [`load`]: a busy host, and whether all of it was told; [`pins`]: where programs are pinned;
//! * [`netns`]: a host of its own for the collector, whose link can be cut;
//! * [`site`]: certificates for a collector and its agents;
//! * [`python`]: an interpreter with the packages that a program needs;
//! * [`report`]: what a test found, for a program to read;
//! * [`memory`]: a program under a limit of memory that the kernel enforces;
//! * [`workload`]: known actions on this host, and what the record must have of them;
//! * [`mod@bench`]: the benches behind `cargo xtask bench`.

pub mod bench;
pub mod load;
pub mod memory;
pub mod netns;
pub mod pins;
pub mod python;
pub mod report;
pub mod site;
pub mod stack;
pub mod strace;
pub mod synthetic;
pub mod witness;
pub mod workload;

pub use stack::{Options, Stack};
