//! Which cgroups come to be, and when do processes begin and cease to be in them? A container may be
//! gone before the agent could look where its cgroup was, so the kernel says it first.

use audit_common::{
    class, kind,
    record::{Cgroup, Populated, section},
};
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    gate::Place,
    kernel, preemption,
    process::argument,
    record::{BTF_TRACEPOINT, Writer, kernel_section},
    settings::offset,
};

/// `cgroup_mkdir(cgroup, path)`
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup(ctx: BtfTracePointContext) -> i32 {
    preemption::at(Place::Cgroup, || {
        try_cgroup(argument(&ctx, 0), argument(&ctx, 1));
    })
}

#[inline(always)]
fn try_cgroup(cgroup: u64, path: u64) -> Option<()> {
    if !is_unified(cgroup) {
        return None;
    }
    let (mut writer, payload) =
        Writer::begin::<Cgroup>(class::PROCESS, kind::CGROUP, BTF_TRACEPOINT)?;
    payload.id = id(cgroup);
    kernel_section(&mut writer, section::CGROUP, path);
    writer.send();
    Some(())
}

/// Hierarchy 0 is version 2, of which the ids in records are.
#[inline(always)]
fn is_unified(cgroup: u64) -> bool {
    let root = kernel::pointer(cgroup, offset!(cgroup_root));
    kernel::read::<i32>(root, offset!(cgroup_root_hierarchy_id)) == 0
}

#[inline(always)]
fn id(cgroup: u64) -> u64 {
    let node = kernel::pointer(cgroup, offset!(cgroup_kn));
    kernel::read(node, offset!(kernfs_node_id))
}

/// `cgroup_notify_populated(cgroup, path, populated)`, under a spin lock of the kernel with
/// interrupts off: no other program of this class is interrupted.
#[btf_tracepoint(function = "cgroup_notify_populated")]
pub fn container(ctx: BtfTracePointContext) -> i32 {
    preemption::at(Place::Container, || {
        try_populated(argument(&ctx, 0), argument(&ctx, 1), argument(&ctx, 2));
    })
}

#[inline(always)]
fn try_populated(cgroup: u64, path: u64, populated: u64) -> Option<()> {
    if !is_unified(cgroup) {
        return None;
    }
    let (mut writer, payload) =
        Writer::begin_of_nobody::<Populated>(class::PROCESS, kind::CONTAINER, BTF_TRACEPOINT)?;
    payload.cgroup_id = id(cgroup);
    payload.populated = u64::from(populated as u32 != 0);
    kernel_section(&mut writer, section::CGROUP, path);
    writer.send();
    Some(())
}
