//! Which kernel fields the programs read. The agent finds each in the running kernel's BTF and
//! sets the read-only global `OFFSETS`; a field that the kernel lacks is [`MISSING`] and disables
//! the hooks that need it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Offset of a field that this kernel does not have.
pub const MISSING: u32 = u32::MAX;

/// The word of a task that tells a 32-bit call, with the bits [`crate::config::CallAbi`] says.
pub const COMPAT_WORD: &str = if cfg!(target_arch = "aarch64") {
    "task_struct.thread_info.flags"
} else {
    "task_struct.thread_info.status"
};

macro_rules! offsets {
    ($($field:ident: $path:expr,)+) => {
        /// Byte offsets, in the order of [`PATHS`].
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct Offsets { $(#[doc = concat!("`", stringify!($path), "`")] pub $field: u32,)+ }

        /// `struct.member.member` for each field of [`Offsets`].
        pub const PATHS: &[&str] = &[$($path),+];
    };
}

offsets! {
    task_compat: COMPAT_WORD,
    task_flags: "task_struct.flags",
    task_tgid: "task_struct.tgid",
    task_pid: "task_struct.pid",
    task_group_leader: "task_struct.group_leader",
    task_real_parent: "task_struct.real_parent",
    task_start_boottime: "task_struct.start_boottime",
    task_cred: "task_struct.cred",
    task_loginuid: "task_struct.loginuid",
    task_sessionid: "task_struct.sessionid",
    task_nsproxy: "task_struct.nsproxy",
    task_thread_pid: "task_struct.thread_pid",
    task_fs: "task_struct.fs",
    task_files: "task_struct.files",
    task_mm: "task_struct.mm",
    task_signal: "task_struct.signal",
    task_comm: "task_struct.comm",
    task_exit_code: "task_struct.exit_code",
    task_utime: "task_struct.utime",
    task_stime: "task_struct.stime",
    cred_uid: "cred.uid",
    cred_cap_effective: "cred.cap_effective",
    cred_user_ns: "cred.user_ns",
    nsproxy_mnt_ns: "nsproxy.mnt_ns",
    nsproxy_net_ns: "nsproxy.net_ns",
    mnt_namespace_inum: "mnt_namespace.ns.inum",
    net_inum: "net.ns.inum",
    pid_namespace_inum: "pid_namespace.ns.inum",
    user_namespace_inum: "user_namespace.ns.inum",
    pid_level: "pid.level",
    pid_numbers: "pid.numbers",
    fs_root: "fs_struct.root",
    fs_pwd: "fs_struct.pwd",
    path_mnt: "path.mnt",
    path_dentry: "path.dentry",
    dentry_parent: "dentry.d_parent",
    dentry_name: "dentry.d_name.name",
    dentry_inode: "dentry.d_inode",
    dentry_hash_pprev: "dentry.d_hash.pprev",
    vfsmount_root: "vfsmount.mnt_root",
    mount_mnt: "mount.mnt",
    mount_parent: "mount.mnt_parent",
    mount_mountpoint: "mount.mnt_mountpoint",
    inode_ino: "inode.i_ino",
    inode_mode: "inode.i_mode",
    inode_uid: "inode.i_uid",
    inode_gid: "inode.i_gid",
    inode_size: "inode.i_size",
    inode_sb: "inode.i_sb",
    super_block_dev: "super_block.s_dev",
    file_path: "file.f_path",
    file_inode: "file.f_inode",
    file_flags: "file.f_flags",
    file_mode: "file.f_mode",
    file_private_data: "file.private_data",
    binprm_file: "linux_binprm.file",
    binprm_filename: "linux_binprm.filename",
    binprm_interp: "linux_binprm.interp",
    binprm_argc: "linux_binprm.argc",
    mm_arg_start: "mm_struct.arg_start",
    mm_arg_end: "mm_struct.arg_end",
    files_fdt: "files_struct.fdt",
    fdtable_fd: "fdtable.fd",
    fdtable_max_fds: "fdtable.max_fds",
    signal_live: "signal_struct.live",
    signal_group_exit_code: "signal_struct.group_exit_code",
    signal_flags: "signal_struct.flags",
    signal_utime: "signal_struct.utime",
    signal_stime: "signal_struct.stime",
    signal_maxrss: "signal_struct.maxrss",
    socket_sk: "socket.sk",
    socket_file: "socket.file",
    sock_family: "sock.__sk_common.skc_family",
    sock_state: "sock.__sk_common.skc_state",
    sock_num: "sock.__sk_common.skc_num",
    inet_sport: "inet_sock.inet_sport",
    sock_dport: "sock.__sk_common.skc_dport",
    sock_daddr: "sock.__sk_common.skc_daddr",
    sock_rcv_saddr: "sock.__sk_common.skc_rcv_saddr",
    sock_v6_daddr: "sock.__sk_common.skc_v6_daddr",
    sock_v6_rcv_saddr: "sock.__sk_common.skc_v6_rcv_saddr",
    sock_protocol: "sock.sk_protocol",
    sock_socket: "sock.sk_socket",
    sock_err: "sock.sk_err",
    sock_type: "sock.sk_type",
    sock_peer_pid: "sock.sk_peer_pid",
    unix_sock_addr: "unix_sock.addr",
    unix_sock_peer: "unix_sock.peer",
    unix_address_len: "unix_address.len",
    unix_address_name: "unix_address.name",
    nsproxy_uts_ns: "nsproxy.uts_ns",
    nsproxy_ipc_ns: "nsproxy.ipc_ns",
    nsproxy_cgroup_ns: "nsproxy.cgroup_ns",
    nsproxy_pid_ns: "nsproxy.pid_ns_for_children",
    uts_namespace_inum: "uts_namespace.ns.inum",
    ipc_namespace_inum: "ipc_namespace.ns.inum",
    cgroup_namespace_inum: "cgroup_namespace.ns.inum",
    siginfo_code: "kernel_siginfo.si_code",
    prog_type: "bpf_prog.type",
    prog_tag: "bpf_prog.tag",
    prog_aux: "bpf_prog.aux",
    prog_aux_name: "bpf_prog_aux.name",
    prog_aux_id: "bpf_prog_aux.id",
    map_id: "bpf_map.id",
    map_name: "bpf_map.name",
    map_type: "bpf_map.map_type",
    sock_flags: "sock.__sk_common.skc_flags",
    sock_net: "sock.__sk_common.skc_net.net",
    tcp_bytes_sent: "tcp_sock.bytes_sent",
    tcp_bytes_retransmitted: "tcp_sock.bytes_retrans",
    tcp_bytes_received: "tcp_sock.bytes_received",
    tcp_segs_in: "tcp_sock.segs_in",
    tcp_segs_out: "tcp_sock.segs_out",
    tcp_total_retrans: "tcp_sock.total_retrans",
    tcp_copied_seq: "tcp_sock.copied_seq",
    tcp_rcv_nxt: "tcp_sock.rcv_nxt",
    tcp_write_seq: "tcp_sock.write_seq",
    cgroup_root: "cgroup.root",
    cgroup_kn: "cgroup.kn",
    cgroup_root_hierarchy_id: "cgroup_root.hierarchy_id",
    kernfs_node_id: "kernfs_node.id",
}
