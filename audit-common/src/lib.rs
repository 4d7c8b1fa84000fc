//! What crosses the kernel boundary: the one event table, the records, the limits and the counters.
//!
//! Kernel programs (`audit-ebpf`) write what is defined here into ring buffers and the agent reads
//! it; nothing else knows these layouts. Every struct is `repr(C)` without padding, checked by
//! zerocopy's derives, so the agent decodes without unsafe and no stale kernel byte can leak.
//!
//! * [`kind`], [`class`]: the event table and the sequence streams;
//! * [`call`]: what the arguments of a system call mean;
//! * [`record`]: a record's header, payloads and sections, and the view that reads them;
//! * [`offsets`]: which kernel fields the programs read; the agent resolves them from BTF;
//! * [`config`]: what the agent sets in the programs, and the counters that they keep;
//! * [`policy`]: what the configuration leaves out in the kernel;
//! * [`limits`]: every bound, with its reason.

#![no_std]
#![forbid(unsafe_code)]

pub mod call;
pub mod class;
pub mod config;
pub mod kind;
pub mod limits;
pub mod offsets;
pub mod policy;
pub mod record;
