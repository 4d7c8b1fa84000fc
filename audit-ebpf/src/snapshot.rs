//! What was there before the programs? Walks every process's open files when the agent begins
//! (`iter/task_file`, Linux 5.8): listening sockets are told, and connections are followed from then
//! on as if they had been seen to begin.
//!
//! It runs after the others are attached, so nothing falls between; what they have put into a map by
//! then is newer, and stays. It may be preempted, so it shares no memory with other programs, and
//! numbers nothing: what it tells goes to the agent through the iterator's own file.

use audit_common::{
    kind,
    record::{Header, NO_RESULT, Socket, flow_direction, form, via},
};
use aya_ebpf::{
    bindings::{BPF_NOEXIST, seq_file},
    helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns, bpf_seq_write},
    macros::map,
    maps::PerCpuArray,
};

use crate::{
    dns, kernel,
    network::{self, FLOWS, IPPROTO_TCP, Of, Owned, TCP_CLOSE, TCP_SYN_SENT},
    settings::offset,
    task,
};

const TCP_LISTEN: u64 = 10;

/// `struct bpf_iter__task_file`
#[repr(C)]
pub struct Visit {
    meta: *const Meta,
    task: u64,
    fd: u64,
    file: u64,
}

/// `struct bpf_iter_meta`
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// The record of a listener.
#[repr(C)]
struct Listener {
    header: Header,
    socket: Socket,
}

#[map]
static LISTENER: PerCpuArray<Listener> = PerCpuArray::with_max_entries(1, 0);
#[map]
static FOLLOWED: PerCpuArray<Owned> = PerCpuArray::with_max_entries(1, 0);

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn snapshot(visit: *const Visit) -> i32 {
    // By way of a helper, for plain numbers instead of pointers that may be none.
    let task = kernel::pointer(visit as u64, 8);
    let fd: u32 = kernel::read(visit as u64, 16);
    let file = kernel::pointer(visit as u64, 24);
    if task != 0 && file != 0 {
        try_visit(visit, task, fd, file);
    }
    0
}

#[inline(always)]
fn try_visit(visit: *const Visit, task: u64, fd: u32, file: u64) -> Option<()> {
    let of = Of::file(file)?;
    if !of.is_inet() {
        return None;
    }
    let peer = u16::from_be(kernel::read(of.sock, offset!(sock_dport)));
    dns::was_connected(kernel::read(task, offset!(task_tgid)), fd.into(), peer);
    if kernel::read::<u16>(of.sock, offset!(sock_protocol)) != IPPROTO_TCP {
        return None;
    }
    match state(of.sock) {
        TCP_LISTEN => tell_listener(visit, task, &of),
        TCP_SYN_SENT | TCP_CLOSE => None,
        _ => follow(task, &of),
    }
}

#[inline(always)]
fn state(sock: u64) -> u64 {
    kernel::read::<u8>(sock, offset!(sock_state)).into()
}

#[inline(always)]
fn tell_listener(visit: *const Visit, task: u64, of: &Of) -> Option<()> {
    let listener = LISTENER.get_ptr_mut(0)?;
    // SAFETY: a per-CPU map value of this program; its context is what the kernel says it is.
    unsafe {
        let Listener { header, socket } = &mut *listener;
        *socket = core::mem::zeroed();
        socket.result = NO_RESULT;
        header.kind = kind::LISTEN;
        header.payload_size = size_of::<Socket>() as u16;
        header.size = size_of::<Listener>() as u32;
        header.class = audit_common::class::NETWORK;
        header.via = via::SNAPSHOT;
        header.form = form::OF_KIND;
        header.generation = 0;
        header.candidates = 0;
        header.sequence = 0;
        header.cpu = bpf_get_smp_processor_id();
        header.time_ns = bpf_ktime_get_boot_ns();
        task::fill_of(header, task);
        network::describe(socket, of.sock, of.inode);
        let seq = (*(*visit).meta).seq;
        bpf_seq_write(seq, listener.cast(), size_of::<Listener>() as u32);
    }
    Some(())
}

#[inline(always)]
fn follow(task: u64, of: &Of) -> Option<()> {
    let owned = FOLLOWED.get_ptr_mut(0)?;
    // SAFETY: a per-CPU map value of this program.
    let owned = unsafe { &mut *owned };
    task::fill_of(&mut owned.who, task);
    owned.inode = of.inode;
    owned.begin_ns = 0;
    owned.direction = flow_direction::UNKNOWN.into();
    if FLOWS.insert(of.sock, &*owned, BPF_NOEXIST.into()).is_ok() && state(of.sock) == TCP_CLOSE {
        // It ended meanwhile, before anybody could find it here.
        let _ = FLOWS.remove(of.sock);
    }
    Some(())
}
