//! What happens between processes and to the kernel itself: signals, BPF programs and maps.

use audit_common::{
    class, kind,
    record::{self, Signal, section},
};
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    file,
    gate::Place,
    kernel, preemption,
    process::argument,
    record::{BTF_TRACEPOINT, Writer},
    settings::{self, offset},
    syscall::{Call, at_exit},
    task,
};

/// `signal_generate(signal, info, task, group, result)`
#[btf_tracepoint(function = "signal_generate")]
pub fn signal(ctx: BtfTracePointContext) -> i32 {
    preemption::at(Place::Signal, || {
        try_signal(&ctx);
    })
}

/// Signals that a process sends; not those of the kernel, which are results of other events.
#[inline(always)]
fn try_signal(ctx: &BtfTracePointContext) -> Option<()> {
    /// SEND_SIG_NOINFO and SEND_SIG_PRIV stand for "no details" in place of an address.
    const NO_INFO: u64 = 0;
    const KERNEL: u64 = 1;
    const SI_USER: i32 = 0;
    let info = argument(ctx, 1);
    if info == KERNEL {
        return None;
    }
    let code = match info {
        NO_INFO => SI_USER,
        info => kernel::read::<i32>(info, offset!(siginfo_code)),
    };
    // SI_USER, SI_QUEUE (-1), SI_TKILL (-6); timers, AIO and the kernel's own have other codes.
    if code != SI_USER && code != -1 && code != -6 {
        return None;
    }
    let target = argument(ctx, 2);
    let pid: u32 = kernel::read(target, offset!(task_tgid));
    if pid == task::current_pid() {
        return None;
    }
    let (writer, payload) = Writer::begin::<Signal>(class::PROCESS, kind::SIGNAL, BTF_TRACEPOINT)?;
    payload.signal = argument(ctx, 0) as u32;
    payload.code = code;
    payload.group = argument(ctx, 3) as u32;
    payload.target_pid = pid;
    let leader = kernel::pointer(target, offset!(task_group_leader));
    payload.target_start_time_ns = kernel::read(leader, offset!(task_start_boottime));
    writer.send();
    Some(())
}

// `bpf(command, attr, size)`
at_exit!(exit_bpf, exit_bpf_kprobe: |call| {
    try_bpf(&call);
});

const MAP_CREATE: u32 = 0;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
const RAW_TRACEPOINT_OPEN: u32 = 17;
const MAP_UPDATE_BATCH: u32 = 26;
const MAP_DELETE_BATCH: u32 = 27;
const LINK_CREATE: u32 = 28;
const LINK_DETACH: u32 = 34;

#[inline(always)]
fn try_bpf(call: &Call) -> Option<()> {
    /// Enough of `union bpf_attr` for every command that is reported.
    const ATTRIBUTE_BYTES: u64 = 64;
    let command = call.argument::<0>() as u32;
    let attribute = call.argument::<1>();
    // The program or map that the command is about: what it made, or what its descriptor names.
    let (descriptor, is_program) = match command {
        MAP_CREATE => (call.result as u64, false),
        PROG_LOAD => (call.result as u64, true),
        MAP_UPDATE_ELEM | MAP_DELETE_ELEM => (kernel::read_user::<u32>(attribute)?.into(), false),
        MAP_UPDATE_BATCH | MAP_DELETE_BATCH => {
            (kernel::read_user::<u32>(attribute + 36)?.into(), false)
        }
        PROG_ATTACH | PROG_DETACH => (kernel::read_user::<u32>(attribute + 4)?.into(), true),
        RAW_TRACEPOINT_OPEN => (kernel::read_user::<u32>(attribute + 8)?.into(), true),
        LINK_CREATE => (kernel::read_user::<u32>(attribute)?.into(), true),
        LINK_DETACH => (u64::MAX, false),
        _ => return None,
    };
    let file = file::of_descriptor(descriptor);
    let object = kernel::pointer(file, offset!(file_private_data));
    let changes_map = matches!(
        command,
        MAP_UPDATE_ELEM | MAP_DELETE_ELEM | MAP_UPDATE_BATCH | MAP_DELETE_BATCH
    );
    // Writing to maps is what BPF programs' owners do all day; to ours nobody else should.
    if changes_map && !settings::own_map(kernel::read(object, offset!(map_id))) {
        return None;
    }
    let (mut writer, payload) = Writer::begin::<record::Bpf>(class::PROCESS, kind::BPF, call)?;
    payload.result = call.result;
    payload.command = command;
    payload.is_program = is_program.into();
    if file != 0 && is_program {
        payload.object_type = kernel::read(object, offset!(prog_type));
        payload.tag = kernel::read(object, offset!(prog_tag));
        let details = kernel::pointer(object, offset!(prog_aux));
        payload.object_id = kernel::read(details, offset!(prog_aux_id));
        payload.name = kernel::read(details, offset!(prog_aux_name));
    } else if file != 0 {
        payload.object_type = kernel::read(object, offset!(map_type));
        payload.object_id = kernel::read(object, offset!(map_id));
        payload.name = kernel::read(object, offset!(map_name));
    }
    let mut open = writer.section(section::STRUCTURE);
    if !writer.user_bytes(attribute, ATTRIBUTE_BYTES) {
        open.truncated();
    }
    writer.close(open);
    writer.send();
    Some(())
}
