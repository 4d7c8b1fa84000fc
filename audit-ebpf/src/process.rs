//! Programs of the process class: exec, exec_failed, fork, exit.

use audit_common::{
    class, kind, limits,
    record::{Exec, ExecArgs, ExecFailed, Exit, Fork, section, via},
};
use aya_ebpf::{
    EbpfContext as _,
    macros::{btf_tracepoint, kprobe, map},
    maps::PerCpuArray,
    programs::{BtfTracePointContext, ProbeContext},
};

use crate::{
    copies::{self, FIRST},
    file,
    gate::{self, Place},
    inode::file_object,
    kernel::{self, Struct},
    path::{self, Path},
    preemption,
    record::{BTF_TRACEPOINT, Writer, kernel_section},
    settings::offset,
    syscall::{Call, at_exit},
    task,
};

/// Argument `n` of a BTF tracepoint, as a number.
#[inline(always)]
pub fn argument(ctx: &BtfTracePointContext, n: usize) -> u64 {
    // SAFETY: the context of a tp_btf program is an array of 64-bit arguments.
    unsafe { *ctx.as_ptr().cast::<u64>().add(n) }
}

/// `sched_process_exec(task, old_pid, bprm)`: the new program is in place, nothing of it has run.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec(ctx: BtfTracePointContext) -> i32 {
    preemption::at(Place::Exec, || {
        try_exec(BTF_TRACEPOINT, argument(&ctx, 2));
    })
}

#[inline(always)]
fn try_exec(via: u8, bprm: u64) -> Option<()> {
    let (mut writer, payload) = Writer::begin::<Exec>(class::PROCESS, kind::EXEC, via)?;
    let file = kernel::pointer(bprm, offset!(binprm_file));
    file_object(
        &mut payload.file,
        kernel::pointer(file, offset!(file_inode)),
    );
    payload.argc = kernel::read(bprm, offset!(binprm_argc));
    let mm = kernel::pointer(task::current(), offset!(task_mm));
    let start: u64 = kernel::read(mm, offset!(mm_arg_start));
    let end: u64 = kernel::read(mm, offset!(mm_arg_end));
    let total = end - start;
    payload.argv_bytes = total;

    path::section(&mut writer, section::PATH, Path::of_file(file));
    let invoked = kernel::pointer(bprm, offset!(binprm_filename));
    kernel_section(&mut writer, section::INVOKED, invoked);
    let interpreter = kernel::pointer(bprm, offset!(binprm_interp));
    if interpreter != invoked {
        kernel_section(&mut writer, section::INTERPRETER, interpreter);
    }
    if writer.has_room() {
        path::section(&mut writer, section::CWD, Path::working_directory());
    }
    let sent = arguments(&mut writer, start, total);
    let header = writer.header();
    writer.send();
    let exec_sequence = header.sequence;
    if sent < total {
        let rest = REST.get_ptr_mut(0)?;
        // SAFETY: a per-CPU map value that only this program uses.
        unsafe {
            *rest = Rest {
                exec_sequence,
                start,
                sent,
                total,
            }
        };
        let mut index = 0;
        while index < limits::ARGS_CHUNKS as u32 && continue_arguments(index) == 0 {
            index += 1;
        }
    }
    Some(())
}

#[map]
static REST: PerCpuArray<Rest> = PerCpuArray::with_max_entries(1, 0);

/// An argv of which a part is sent.
#[repr(C)]
struct Rest {
    exec_sequence: u64,
    start: u64,
    sent: u64,
    total: u64,
}

/// A global function, as [`path::climb_steps`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn continue_arguments(index: u32) -> u32 {
    let Some(rest) = REST.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: as in `try_exec`.
    let rest = unsafe { &*rest };
    let sent = rest.sent + u64::from(index) * limits::ARGS_CHUNK_BYTES as u64;
    if sent >= rest.total {
        return 1;
    }
    let Some((mut writer, payload)) =
        Writer::begin::<ExecArgs>(class::PROCESS, kind::EXEC_ARGS, BTF_TRACEPOINT)
    else {
        return 1;
    };
    payload.exec_sequence = rest.exec_sequence;
    payload.offset_bytes = sent;
    arguments(&mut writer, rest.start + sent, rest.total - sent);
    writer.send();
    0
}

/// Writes what fits of an argv; returns how many bytes that were (never 0, so that loops end).
#[inline(always)]
fn arguments(writer: &mut Writer, start: u64, left: u64) -> u64 {
    const MOST: u64 = limits::ARGS_CHUNK_BYTES as u64;
    let take = if left < MOST { left } else { MOST };
    if !writer.has_room() {
        return 0;
    }
    let mut open = writer.section(section::ARGV);
    if !writer.user_bytes(start, take) {
        open.truncated();
    }
    writer.close(open);
    take
}

at_exit!(exit_exec, exit_exec_kprobe: |call| {
    copies::take(&call, true);
    if call.result < 0 {
        try_exec_failed(&call);
    }
});

#[inline(always)]
fn try_exec_failed(call: &Call) -> Option<()> {
    let shape = call.shape()?;
    let (mut writer, payload) =
        Writer::begin::<ExecFailed>(class::PROCESS, kind::EXEC_FAILED, call)?;
    payload.result = call.result;
    copies::section(&mut writer, section::GIVEN, FIRST, shape.path);
    let directory = call.directory(shape.directory);
    let is_absolute = copies::is_absolute(FIRST, shape.path);
    file::base_section(&mut writer, section::BASE, directory, is_absolute);
    copies::now(&mut writer, section::NOW, FIRST, shape.path);

    let mut open = writer.section(section::ARGV);
    let scattered = SCATTERED.get_ptr_mut(0)?;
    // SAFETY: a per-CPU map value that only this program uses.
    let scattered = unsafe { &mut *scattered };
    *scattered = Scattered {
        argv: call.argument_at(shape.text),
        short_pointers: call.has_short_pointers().into(),
        unread: 0,
        truncated: 1,
    };
    writer.suspend();
    let mut index = 0;
    while index < limits::FAILED_ARGS as u32 && gather(index) == 0 {
        index += 1;
    }
    writer.reload();
    payload.unread_arguments = scattered.unread as u32;
    if scattered.truncated != 0 {
        open.truncated();
    }
    writer.close(open);
    writer.send();
    Some(())
}

#[map]
static SCATTERED: PerCpuArray<Scattered> = PerCpuArray::with_max_entries(1, 0);

/// The caller's array of arguments, read one by one.
#[repr(C)]
struct Scattered {
    argv: u64,
    /// Its pointers are of 4 bytes.
    short_pointers: u64,
    unread: u64,
    /// Until the array's end is met, and ever after a text was cut.
    truncated: u64,
}

/// A global function, as [`path::climb_steps`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn gather(index: u32) -> u32 {
    /// Some text was cut.
    const CUT: u64 = 2;
    let Some(scattered) = SCATTERED.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: as in `try_exec_failed`.
    let scattered = unsafe { &mut *scattered };
    let at = u64::from(index);
    let text = if scattered.short_pointers != 0 {
        kernel::read_user::<u32>(scattered.argv + at * 4).map(u64::from)
    } else {
        kernel::read_user::<u64>(scattered.argv + at * 8)
    };
    let Some(text) = text else {
        return 1;
    };
    if text == 0 {
        scattered.truncated &= CUT;
        return 1;
    }
    let Some(mut writer) = Writer::resume(class::PROCESS) else {
        return 1;
    };
    if !writer.has_room() {
        return 1;
    }
    let read = writer.user_text::<{ limits::FAILED_ARG_BYTES as u32 }>(text);
    if read == 0 {
        scattered.unread += 1;
    }
    if read == limits::FAILED_ARG_BYTES as u64 {
        scattered.truncated |= CUT;
    }
    writer.suspend();
    0
}

/// `finalize_exec(bprm)`, a little earlier: everything that the record tells is in place.
#[kprobe]
pub fn exec_kprobe(ctx: ProbeContext) -> u32 {
    if gate::is_open(Place::Exec, 0) {
        try_exec(via::KPROBE, ctx.arg(0).unwrap_or(0));
    }
    0
}

/// `sched_process_fork(parent, child)`
#[btf_tracepoint(function = "sched_process_fork")]
pub fn fork(ctx: BtfTracePointContext) -> i32 {
    preemption::at(Place::Fork, || {
        try_fork(BTF_TRACEPOINT, argument(&ctx, 1));
    })
}

#[inline(always)]
fn try_fork(via: u8, child: u64) -> Option<()> {
    let pid: u32 = kernel::read(child, offset!(task_pid));
    let tgid: u32 = kernel::read(child, offset!(task_tgid));
    if pid != tgid {
        return None; // a thread
    }
    let (writer, payload) = Writer::begin::<Fork>(class::PROCESS, kind::FORK, via)?;
    payload.child_pid = pid;
    payload.child_start_time_ns = kernel::read(child, offset!(task_start_boottime));
    let namespaces = task::namespaces(Struct::at(child));
    payload.pid_namespace = namespaces.pid;
    payload.mount_namespace = namespaces.mount;
    payload.network_namespace = namespaces.network;
    payload.user_namespace = namespaces.user;
    writer.send();
    Some(())
}

/// `wake_up_new_task(child)`, right after it.
#[kprobe]
pub fn fork_kprobe(ctx: ProbeContext) -> u32 {
    if gate::is_open(Place::Fork, 0) {
        try_fork(via::KPROBE, ctx.arg(0).unwrap_or(0));
    }
    0
}

/// `taskstats_exit(task)`, a little earlier.
#[kprobe]
pub fn exit_kprobe(_: ProbeContext) -> u32 {
    if gate::is_open(Place::Exit, 0) {
        try_exit(via::KPROBE);
    }
    0
}

/// `sched_process_exit(task)`, in the context of the task that ends.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn exit(_: BtfTracePointContext) -> i32 {
    preemption::at(Place::Exit, || {
        try_exit(BTF_TRACEPOINT);
    })
}

#[inline(always)]
fn try_exit(via: u8) -> Option<()> {
    /// SIGNAL_GROUP_EXIT
    const GROUP_EXIT: u32 = 4;
    let task = task::current();
    let signal = kernel::pointer(task, offset!(task_signal));
    // Threads still alive. Two last threads may both see 0; the agent merges the two records.
    if kernel::read::<i32>(signal, offset!(signal_live)) != 0 {
        return None;
    }
    let (writer, payload) = Writer::begin::<Exit>(class::PROCESS, kind::EXIT, via)?;
    let flags: u32 = kernel::read(signal, offset!(signal_flags));
    payload.status = if flags & GROUP_EXIT != 0 {
        kernel::read(signal, offset!(signal_group_exit_code))
    } else {
        let leader = kernel::pointer(task, offset!(task_group_leader));
        kernel::read(leader, offset!(task_exit_code))
    };
    payload.user_time_ns = kernel::read::<u64>(signal, offset!(signal_utime))
        + kernel::read::<u64>(task, offset!(task_utime));
    payload.system_time_ns = kernel::read::<u64>(signal, offset!(signal_stime))
        + kernel::read::<u64>(task, offset!(task_stime));
    payload.max_rss_pages = kernel::read(signal, offset!(signal_maxrss));
    writer.send();
    Some(())
}
