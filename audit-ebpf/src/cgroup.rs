//! Which cgroups come to be? A container may be gone before the agent could look where its cgroup
//! was, so the kernel says it first.

use audit_common::{
    class, kind,
    record::{Cgroup, section},
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
    // Hierarchy 0 is version 2, of which the ids in records are.
    let root = kernel::pointer(cgroup, offset!(cgroup_root));
    if kernel::read::<i32>(root, offset!(cgroup_root_hierarchy_id)) != 0 {
        return None;
    }
    let (mut writer, payload) =
        Writer::begin::<Cgroup>(class::PROCESS, kind::CGROUP, BTF_TRACEPOINT)?;
    let node = kernel::pointer(cgroup, offset!(cgroup_kn));
    payload.id = kernel::read(node, offset!(kernfs_node_id));
    kernel_section(&mut writer, section::CGROUP, path);
    writer.send();
    Some(())
}
