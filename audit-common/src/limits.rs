//! Every bound of the kernel side, with its reason.

/// A task's comm, the kernel's TASK_COMM_LEN.
pub const COMM_BYTES: usize = 16;
/// Longest path that is kept: the kernel's PATH_MAX, which bounds what a call can name.
pub const PATH_BYTES: usize = 4096;
/// Longest path component with its NUL, the kernel's NAME_MAX + 1.
pub const NAME_BYTES: usize = 256;
/// Components walked of one path. Deeper paths are marked as cut.
pub const PATH_COMPONENTS: usize = 256;
/// Steps of such a walk: a component or a mount each.
pub const PATH_STEPS: usize = PATH_COMPONENTS + 32;
/// Where a record's variable part may still begin a section: half of the scratch buffer, so that
/// one section of the other half always fits behind it and the verifier can see that it does.
pub const TAIL_BYTES: usize = 16 << 10;
/// The per-CPU buffer in which a record is built; 32 KiB is the most a per-CPU map value may have.
pub const SCRATCH_BYTES: usize = 32 << 10;
/// Bytes of argv in one record; longer argv continue in EXEC_ARGS records.
pub const ARGS_CHUNK_BYTES: usize = TAIL_BYTES - 1;
/// Continuations of one argv: 128 x 16 KiB is the 2 MiB that Linux allows with the default stack.
pub const ARGS_CHUNKS: usize = 128;
/// Arguments read one by one from a failed exec, whose argv is still scattered.
pub const FAILED_ARGS: usize = 256;
/// Bytes of one such argument.
pub const FAILED_ARG_BYTES: usize = 4096;
/// Connects that returned before they were decided.
pub const PENDING_CONNECTS: u32 = 16 << 10;
/// Processes left out of the record: the agent, the collector.
pub const IGNORED_PROCESSES: u32 = 64;
/// Names (of files or their directories) whose reads are reported.
pub const WATCHED_NAMES: u32 = 1024;
/// Longest watched name with its NUL.
pub const WATCHED_NAME_BYTES: usize = 64;
/// Our own maps, some fifty.
pub const OWN_MAPS: u32 = 128;
/// Connections whose end will be reported; beyond it the end of a connection is not.
pub const FLOWS: u32 = 16 << 10;
/// Peers of datagrams that are remembered, so that each is told once a minute.
pub const DATAGRAM_PEERS: u32 = 16 << 10;
/// How long a peer is remembered.
pub const DATAGRAM_INTERVAL_NS: u64 = 60_000_000_000;
/// Messages of one sendmmsg or recvmmsg, the kernel's UIO_MAXIOV.
pub const MESSAGES: u32 = 1024;
/// Calls between the security hook that saw their objects and their end.
pub const OBJECTS: u32 = 1024;
/// Two walked paths with their headers; longer ones are told by the caller's text.
pub const OBJECT_BYTES: usize = 4096;
/// Threads whose texts, as the kernel has copied them, are kept until their call ends, which is at
/// once: 8 KiB each. The longest unused is forgotten, and then told by what its memory says.
pub const COPIES: u32 = 512;
/// Files open for writing whose bytes are counted; the close of more is told without counts. A busy
/// host has some thousand.
pub const WRITTEN_FILES: u32 = 16 << 10;
/// Kept of a DNS datagram, or of what one call moved of a DNS stream. UDP answers end at the 4096
/// bytes that resolvers offer at most; of a stream, so much leaves the record within the half of
/// the buffer where its section may begin.
pub const DNS_BYTES: u64 = 12 << 10;
/// Descriptors connected to port 53 that are remembered; the longest unused is forgotten, and then
/// what it is read and written by plain read and write is not seen. Resolvers keep some dozens.
pub const DNS_CONNECTIONS: u32 = 4 << 10;
/// Pieces of the caller's memory that they are gathered from; glibc uses four.
pub const DNS_SEGMENTS: u32 = 8;
/// The fixed beginning of a DNS message: a shorter datagram is none.
pub const DNS_HEADER_BYTES: u64 = 12;
/// Requests of io_uring that wait for their result, of the operations that are told. Beyond it a
/// request is told when it is submitted, without its result.
pub const URING_REQUESTS: u32 = 2048;
/// The record that waits with such a request: two paths of some 700 bytes. A longer one is told when
/// the request is submitted. Taken from the kernel only while requests wait: 4 MiB at most.
pub const URING_RECORD_BYTES: usize = 2048;
/// The record of a socket that waits: a header and a [`crate::record::Socket`].
pub const URING_SOCKET_BYTES: usize = 256;
/// Numbers of operations of io_uring; 63 are taken in Linux 6.18.
pub const URING_OPERATIONS: u32 = 128;
/// Requests looked at, of those that a ring is done with, for the one that found no room in the
/// completion queue. The kernel tells them in batches of far fewer, but for a submission of more.
pub const URING_BATCH: u32 = 1024;
/// Filter rules: each is a bit of a word. Their selectors are lists.
pub const FILTER_RULES: usize = 64;
/// Numbers of kinds that rules can name.
pub const FILTER_KINDS: u32 = 128;
/// Programs that rules name, in both banks. As all of these: what is refused is only a configuration
/// that names more.
pub const FILTER_PROGRAMS: u32 = 2048;
/// Cgroups that rules name, in both banks; those below need no place.
pub const FILTER_CGROUPS: u32 = 2048;
/// How many cgroups are looked at, from the task's own on upwards; Kubernetes nests five. What is
/// deeper below a cgroup that a rule names is not hidden.
pub const FILTER_CGROUP_LEVELS: usize = 32;
/// Blocks of user ids (a range is one to 62), in both banks.
pub const FILTER_USERS: u32 = 4096;
/// Beginnings of paths, in both banks.
pub const FILTER_PREFIXES: u32 = 2048;
/// Longest beginning of a path that rules compare. A name is copied behind it with one mask, so a
/// power of two less the byte for the bank.
pub const FILTER_PREFIX_BYTES: usize = 127;
/// Names from the root on that may be part of such a beginning: a name and its "/" are two bytes.
pub const FILTER_COMPONENTS: usize = 64;
/// Cgroups (times classes) of which the use of a budget is known; the longest unused is forgotten
/// and begins with a full burst. 200 KiB.
pub const BUDGET_BUCKETS: u32 = 8192;
/// Cgroups (times classes) that shed within two seconds, in both banks; of further ones only the sum
/// is told.
pub const SHED_CGROUPS: u32 = 2048;
