//! The kernel programs: what happens in the kernel, written as records into three rings.
//!
//! One hook family per file ([`process`], [`network`], [`dns`], [`file`], [`written`], [`system`], [`cgroup`],
//! [`io_uring`], and [`call`] for what needs no program of its own); each entry function is a shell,
//! the logic is `try_*`.
//! [`syscall`] leads a returning system call to its program; [`objects`] and [`copies`] keep for it what
//! the kernel really used; [`freed`] is where two of these come by. Shared by them: [`record`] builds a record and sends it, [`task`] says who is
//! acting, [`path`] walks dentries and mounts, [`inode`] describes files, [`kernel`] reads kernel memory,
//! [`settings`] is what the agent decided, [`policy`] what it leaves out, [`gate`] which of two sets of
//! programs records. [`snapshot`] tells what was there before.
//!
//! Invariants: a sequence number is taken before the ring is tried; nothing is written to a ring
//! but whole records; every loop has a bound from `audit_common::limits`.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod call;
mod cgroup;
mod copies;
mod dns;
mod empty;
mod file;
mod freed;
mod gate;
mod inode;
mod io_uring;
mod kernel;
mod log;
mod network;
mod objects;
mod path;
mod policy;
mod preemption;
mod process;
mod record;
mod settings;
mod snapshot;
mod syscall;
mod system;
mod task;
mod written;

// bpf_probe_read_kernel and bpf_ringbuf_output are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
