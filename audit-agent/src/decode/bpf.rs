//! BPF programs and maps: what was done, and to which.

use audit_common::record::{self, Record};
use audit_proto::{
    text::escape,
    v1::{Bpf, Event},
};

use super::result;

pub(super) fn bpf(record: &Record<'_>, event: &mut Event) -> Option<()> {
    let bpf: record::Bpf = record.payload()?;
    let known = bpf.object_id != 0;
    let kind = if bpf.is_program != 0 {
        PROGRAM_TYPES
    } else {
        MAP_TYPES
    };
    let tag = bpf.tag.iter().map(|byte| format!("{byte:02x}"));
    let end = bpf.name.iter().position(|byte| *byte == 0);
    event.bpf = Some(Bpf {
        command: named(COMMANDS, bpf.command),
        r#type: if known {
            named(kind, bpf.object_type)
        } else {
            String::new()
        },
        name: escape(&bpf.name[..end.unwrap_or(bpf.name.len())]).into_owned(),
        tag: if bpf.tag == [0; 8] {
            String::new()
        } else {
            tag.collect()
        },
        id: known.then_some(bpf.object_id.into()),
    });
    event.result = result(bpf.result);
    Some(())
}

fn named(names: &[&str], number: u32) -> String {
    match names.get(number as usize) {
        Some(name) if !name.is_empty() => (*name).to_owned(),
        _ => number.to_string(),
    }
}

/// `enum bpf_cmd` of include/uapi/linux/bpf.h (Linux 6.18), in lower case.
const COMMANDS: &[&str] = &[
    "map_create",
    "map_lookup_elem",
    "map_update_elem",
    "map_delete_elem",
    "map_get_next_key",
    "prog_load",
    "obj_pin",
    "obj_get",
    "prog_attach",
    "prog_detach",
    "prog_test_run",
    "prog_get_next_id",
    "map_get_next_id",
    "prog_get_fd_by_id",
    "map_get_fd_by_id",
    "obj_get_info_by_fd",
    "prog_query",
    "raw_tracepoint_open",
    "btf_load",
    "btf_get_fd_by_id",
    "task_fd_query",
    "map_lookup_and_delete_elem",
    "map_freeze",
    "btf_get_next_id",
    "map_lookup_batch",
    "map_lookup_and_delete_batch",
    "map_update_batch",
    "map_delete_batch",
    "link_create",
    "link_update",
    "link_get_fd_by_id",
    "link_get_next_id",
    "enable_stats",
    "iter_create",
    "link_detach",
    "prog_bind_map",
    "token_create",
];

/// `enum bpf_prog_type`.
const PROGRAM_TYPES: &[&str] = &[
    "",
    "socket_filter",
    "kprobe",
    "sched_cls",
    "sched_act",
    "tracepoint",
    "xdp",
    "perf_event",
    "cgroup_skb",
    "cgroup_sock",
    "lwt_in",
    "lwt_out",
    "lwt_xmit",
    "sock_ops",
    "sk_skb",
    "cgroup_device",
    "sk_msg",
    "raw_tracepoint",
    "cgroup_sock_addr",
    "lwt_seg6local",
    "lirc_mode2",
    "sk_reuseport",
    "flow_dissector",
    "cgroup_sysctl",
    "raw_tracepoint_writable",
    "cgroup_sockopt",
    "tracing",
    "struct_ops",
    "ext",
    "lsm",
    "sk_lookup",
    "syscall",
    "netfilter",
];

/// `enum bpf_map_type`.
const MAP_TYPES: &[&str] = &[
    "",
    "hash",
    "array",
    "prog_array",
    "perf_event_array",
    "percpu_hash",
    "percpu_array",
    "stack_trace",
    "cgroup_array",
    "lru_hash",
    "lru_percpu_hash",
    "lpm_trie",
    "array_of_maps",
    "hash_of_maps",
    "devmap",
    "sockmap",
    "cpumap",
    "xskmap",
    "sockhash",
    "cgroup_storage",
    "reuseport_sockarray",
    "percpu_cgroup_storage",
    "queue",
    "stack",
    "sk_storage",
    "devmap_hash",
    "struct_ops",
    "ringbuf",
    "inode_storage",
    "task_storage",
    "bloom_filter",
    "user_ringbuf",
    "cgrp_storage",
    "arena",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use audit_common::kind;

    #[test]
    fn a_program_is_told_by_names() {
        let bpf = sample::record(kind::BPF).event().bpf.expect("bpf");
        assert_eq!(bpf.command, "prog_load");
        assert_eq!((bpf.r#type.as_str(), bpf.name.as_str()), ("kprobe", "spy"));
        assert_eq!((bpf.tag.as_str(), bpf.id), ("0102030405060708", Some(7)));
        assert_eq!(named(COMMANDS, 500), "500");
    }
}
