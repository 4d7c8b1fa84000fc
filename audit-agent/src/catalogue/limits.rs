//! What is left out on purpose, and what must be known to read an event? Only what the tables do not
//! say by themselves: conditions of calls that are rows of [`crate::calls`] are written from there.

use audit_common::kind;

/// True of many kinds.
pub const GENERAL: &[(&str, &str)] = &[
    (
        "Calls",
        "A call is told when it returns, by its result and by the registers that the kernel saved at \
         its entry. Structures, and texts that are no paths, are in the caller's memory and read at \
         the return: another thread can have changed them. What an event says of a file that was \
         opened, a descriptor or a socket comes from the kernel's object instead.",
    ),
    (
        "Raced arguments",
        "The kernel copies a path out of the caller's memory and works with the copy. Where it shows \
         its copies (Linux 6.1 to 6.18; `hostaudit doctor` says it), \
         names are told by them (`file_path_copied`), those of failed calls too; and where the \
         caller's memory says another thing when the call returns, an `argument_race` follows the \
         event, with both. The directory that a relative path starts from is that of the call's end, \
         unless `file_path_source` is `kernel`.",
    ),
    (
        "Ways of calling",
        "64-bit calls, x32 calls and i386 calls (also by `int 0x80` from a 64-bit program) are all \
         seen; `syscall_abi` says which it was. Operations of io_uring are told as the calls that they \
         are the same as, with `via` = `io_uring`.",
    ),
    (
        "Paths",
        "`file_path_source` says how a path was found. `kernel`: by the object that the kernel acted \
         on. `argument`: by the name that was given, in a directory that the kernel named. `lookup`: a link or `..` stood on the way, or the call follows a final link, so the \
         agent looked the path up after the call. `lexical`: it could not be looked up, and the path \
         is directory and name put together. All but the first can be wrong where somebody changes \
         links meanwhile, or, without `file_path_copied`, another thread the name. Paths begin at the process's root; \
         `process_root` says where that is after a chroot. Paths end at 4096 bytes and 256 \
         components; `file_path_truncated_bytes` says so.",
    ),
    (
        "Files",
        "`file_device`, `file_inode` and `file_generation` say which file it was, whatever it was called \
         and whoever got its number since. Of overlayfs these are the overlay's own; `file_layer`, \
         `file_real_inode` and `file_real_device` say whether it is as its image has it and which file of \
         the host holds it. They are absent where overlayfs is a module that was not loaded when the \
         agent began, or is one on a kernel before 5.11. What was seen before an open copied a file up is told as it was: `lower`.",
    ),
    (
        "Paths of the host",
        "`file_host_path` is the path by which the host finds a file of a process that has mounts of its \
         own or another root: a container's, a service's that systemd confines, one after chroot. It is \
         absent for the host's own processes, whose paths are the host's, and where no mount of the \
         host shows the file: a tmpfs or an overlay that is mounted only inside. The host is what \
         process 1 sees: an agent in a container needs the host's processes (`hostPID`), else its own \
         container is the host to it. Mount tables (`/proc/PID/mountinfo`) are read after mounts \
         have changed, not for each event; in the first hundredths of a second after that the agent \
         looks whether the file is there. It is absent, and never guessed, where every process of \
         a namespace had ended before that or the file was gone, where mounts changed between event and reading, where the \
         file's device is not the table's, where the path is `lexical` or cut, or a table is larger \
         than 640 KiB (some 3,000 mounts). Of several paths that by the mount which shows most of the \
         file system is told. Where `mount` is off or hidden by a filter, changes may go unnoticed for \
         5 s, except where the device tells; and those that are no change of mounts, the renaming of a \
         directory above a mountpoint, until the host's mounts change (5 s in a container). `host_paths`, `host_paths_absent` and `mount_tables_read` in \
         the heartbeat count.",
    ),
    (
        "Containers",
        "A process is in the container whose id its cgroup's path names, never in one that was guessed. \
         `container_state` is `pending` where the path was not known when the event left, and an \
         `amendment` follows; `unknown` where it was sought in vain, or where processes share one cgroup \
         (cgroup version 1 beside 2) and the process was gone.",
    ),
    (
        "Results",
        "`result_value` is what the call returned, `result_error` the name of its error. Failed \
         calls are told too, unless the table of the kind says otherwise.",
    ),
    (
        "Losses",
        "Each class has its own numbers and its own ring (flow shares that of network). What did not \
         fit is told by a `lost` event with the missing numbers; what the kernel skipped before it \
         had a number, by one with the place `hook` and the most that it can be. A `lost` event \
         with the place `agent` has no number: an agent was killed, and nothing says how far it had \
         got, or the collector refuses what it had left.",
    ),
    (
        "Before the agent",
        "When it begins, the agent looks at every process's open files, once. Listening TCP sockets \
         are told as `listen` with `via` = `snapshot`, established connections when they end. What \
         calls do with older descriptors and sockets is told as with any, because it is read from \
         the kernel's object. With `capture.pin.directory` capture goes on while no agent runs: \
         events wait in the rings, nothing is told twice, and there is no such look at the next \
         start.",
    ),
    (
        "Columns",
        "Each kind's list names the columns that its events can have; in one event those are absent \
         that it has no value for.",
    ),
    (
        "Left out",
        "The agent itself, and by its configuration: kinds in `capture.off_kinds`, what \
         `capture.filters` hides (`agent_filter_totals` of `heartbeat` counts it by rule), and what \
         is beyond `capture.budgets` (told by `shed`). `exec`, `fork`, `exit` and `container` are never \
         left out.",
    ),
];

/// Of one kind.
pub fn of(kind: u16) -> &'static [&'static str] {
    match kind {
        kind::EXEC => &[
            "argv is read from the new program's memory, whole up to 2 MiB; `process_argv_truncated_bytes` counts what is missing.",
            "`process_script` is put together from working directory and given name, not looked up.",
            "Credentials are those of the new program: a setuid program shows here, not as `credentials`.",
        ],
        kind::EXEC_FAILED => &[
            "`target_process_argv` is what was asked for, at most 256 arguments of 4096 bytes each, read after the call.",
        ],
        kind::FORK => &[
            "`new_namespaces_*` is there when the child begins in other namespaces than its parent.",
        ],
        kind::EXIT => &["Told once, when the last thread of a process ends; threads are not told."],
        kind::CREDENTIALS => &[
            "Told for every such call, whether or not it changed something. libc makes the call in each thread of a process: one event for each.",
        ],
        kind::PTRACE => &[
            "Reading another process (PEEK, process_vm_readv, /proc/PID/mem) is not told here; attaching comes before it.",
        ],
        kind::SIGNAL => &[
            "Delivered signals are told by the kernel where they are generated, one event for each process that gets one, also when it ignores it; the calls tell those that failed.",
            "Not signals to oneself, nor those that the kernel sends (faults, timers, a child's end).",
        ],
        kind::NAMESPACE => &[
            "A process that begins in new namespaces (clone) is a `fork` with `new_namespaces_*`.",
        ],
        kind::BPF => &[
            "Programs and maps made, attached and detached, links made and detached, raw tracepoints opened. Writing to a map is told for the agent's own maps only; reading is not.",
        ],
        kind::MOUNT => &[
            "fsopen, fsmount, open_tree and mount_setattr are not told; move_mount, which makes their result visible, is.",
        ],
        kind::TIME_CHANGE => &[
            "`syscall_time_step_ns` is told for clock_settime (of CLOCK_REALTIME), settimeofday and stime.",
        ],
        kind::CONNECT..=kind::SOCKET_SPECIAL => of_socket(kind),
        kind::OPEN => &[
            "Opens for writing and opens that made the file are told always. Reads are told for the files in `capture.watch_reads`; O_PATH never.",
            "Of failed opens those with EACCES or EPERM are told, with the name that was given.",
        ],
        kind::CLOSE_WRITE => &[
            "Told when the last descriptor, mapping or message goes that holds the open file, whoever drops it; that process is the event's. A kernel thread is, where the kernel had put it off.",
            "Regular files only, memfds among them, that were open for writing, whether or not something was written.",
            "`file_bytes_read` and `file_bytes_written` count what the calls above have moved, of at most 16,384 open files at a time. Not what went through memory mappings, io_uring and io_submit. They are absent where the open was not seen: before the agent began, by a memfd, by the kernel itself.",
            "`file_access` is `truncate` or `create` as the open was, as far as it was seen.",
            "When a process ends it has left its root and its namespaces before it lets go of its files. Paths are told as the root of who opened the file sees them then, or, where that is not known, from the root of the mount namespace.",
            "Without kprobes it is told when the file's memory is freed (Linux 6.7 to 6.18, else not): a name that was removed before is told all the same, size and owner of its file are not.",
        ],
        kind::CONTAINER => &[
            "By the container's own cgroup (version 2): `start` when the first process comes into it, `stop` when the last is gone, whoever began or ended it; no process is told. A container that is started again is told again.",
            "Of a container that ran before the agent only the stop is told.",
            "Name, image and pod come from files of its runtime (`containers.state_files`). What comes within 30 s after the start is told by an `amendment`.",
        ],
        kind::UNLINK => &["`syscall_flags` 512 says that a directory was removed, rmdir included."],
        kind::LINK => {
            &["A symbolic link is `target_file_path`; what it says is `target_file_link_text`."]
        }
        kind::TRUNCATE => &[
            "An open with O_TRUNC is an `open` whose `file_access` is `truncate`.",
            "Of truncate64 and ftruncate64 (i386) `file_new_size_bytes` is the lower half of the size.",
        ],
        _ => &[],
    }
}

fn of_socket(kind: u16) -> &'static [&'static str] {
    match kind {
        kind::CONNECT => &[
            "A connect that does not wait is told twice: EINPROGRESS from the call, and how it ended with `socket_outcome`, for at most 16,384 such sockets at a time.",
            "A connection begun by sendto with MSG_FASTOPEN is not told.",
        ],
        kind::ACCEPT => &["Only when a connection was accepted, of IPv4 and IPv6."],
        kind::BIND => &["IPv4 and IPv6 sockets only."],
        kind::LISTEN => &[
            "IPv4 and IPv6 sockets only.",
            "With `via` = `snapshot`: a TCP socket that listened when the agent began, once for each process that has it open; `result_value` and `socket_backlog` are absent, `time` is that of the look.",
        ],
        kind::CLOSE_FLOW => &[
            "TCP connections whose connect or accept was seen, or that were there when the agent began, at most 16,384 at a time; of others the end is not told.",
            "The process is the one that connected or accepted. Of a connection that is older than the agent it is the first that had it open, and `socket_direction` and `flow_duration_ns` are absent.",
        ],
        kind::DATAGRAM => &[
            "The first datagram of a process to an address, port and protocol in each minute, of IPv4 and IPv6, when it was sent; a connected socket is told by connect. The last 16,384 peers are remembered.",
            "A sendmmsg is told for each of its peers; `result_value` is what the whole call returned.",
        ],
        kind::DNS => &[
            "Messages over TCP are put together from the calls that carried them; one event a message.",
            "Not DNS over TLS or HTTPS, and not what another process or an earlier number of the descriptor was connected for.",
        ],
        kind::UNIX_CONNECT => {
            &["Datagrams to a unix socket that is not connected, and socketpair, are not told."]
        }
        kind::SOCKET_SPECIAL => &[
            "Raw sockets of any family but unix, and all packet, vsock and crypto (AF_ALG) sockets; of netlink the kernel's audit.",
        ],
        _ => &[],
    }
}

/// When a program of its own tells a call; what the shared program `call` tells is in its rows.
pub fn told_when(program: &str) -> Option<&'static str> {
    Some(match program {
        "exit_exec" => "when it fails",
        "exit_open" => "see below",
        "exit_accept" | "exit_sendto" | "exit_sendmsg" | "exit_sendmmsg" => "when it succeeds",
        "exit_bpf" => "for the commands below",
        "exit_socket" => "for the families below",
        "exit_connect" | "exit_bind" | "exit_listen" => "always",
        "exit_socketcall" => "as the call that it stands for",
        "exit_recvfrom" | "exit_recvmsg" | "exit_recvmmsg" => "of and to port 53",
        "exit_read" | "exit_readv" | "exit_write" | "exit_writev" => {
            "of descriptors that the process connected to port 53; by counts, when a file is closed"
        }
        "exit_moved" => "by counts, when the file is closed",
        _ => return None,
    })
}

/// Calls that tell a kind besides those whose rows name it.
pub fn also(kind: u16) -> &'static [&'static str] {
    match kind {
        kind::UNIX_CONNECT => &["connect", "socketcall"],
        kind::ACCEPT | kind::BIND | kind::LISTEN | kind::DATAGRAM | kind::SOCKET_SPECIAL => {
            &["socketcall"]
        }
        kind::DNS => &["sendto", "sendmsg", "sendmmsg", "socketcall"],
        kind::CLOSE_WRITE => &["read", "readv", "write", "writev"],
        _ => &[],
    }
}
