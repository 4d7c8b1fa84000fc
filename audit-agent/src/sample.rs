//! Well-formed records for tests, one per kind, to change before use.

use audit_common::{
    class, kind,
    record::{
        Bpf, Call, CloseWrite, Credentials, Dns, Exec, ExecFailed, Exit, FileObject, Flow, Fork,
        Header, Open, Populated, Record, SectionHeader, Signal, Socket, form, layer, open_outcome,
        section, section_flags, via,
    },
};
use audit_proto::v1::Event;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

use crate::{calls, clock::Clock, decode, dns};

/// A record in parts.
#[derive(Debug, Clone)]
pub struct Sample {
    pub header: Header,
    pub payload: Vec<u8>,
    /// Tag, flags, root_at, bytes.
    pub sections: Vec<(u8, u8, u16, Vec<u8>)>,
}

impl Sample {
    pub fn bytes(&self) -> Vec<u8> {
        let mut tail = Vec::new();
        for (tag, flags, root_at, bytes) in &self.sections {
            let header = SectionHeader {
                tag: *tag,
                flags: *flags,
                root_at: *root_at,
                size: bytes.len() as u32,
            };
            tail.extend_from_slice(header.as_bytes());
            tail.extend_from_slice(bytes);
        }
        let mut header = self.header;
        header.payload_size = self.payload.len() as u16;
        header.size = (size_of::<Header>() + self.payload.len() + tail.len()) as u32;
        [header.as_bytes(), &self.payload, &tail].concat()
    }

    pub fn event(&self) -> Event {
        let bytes = self.bytes();
        let record = Record::parse(&bytes).expect("well formed");
        let mut event = Event::default();
        decode::decode(&record, &Clock::from_offset(0), &mut event).expect("decodes");
        event
    }

    pub fn payload_as<T: FromBytes>(&self) -> T {
        T::read_from_bytes(&self.payload).expect("payload of that type")
    }

    pub fn section(mut self, tag: u8, bytes: &[u8]) -> Self {
        self.sections.retain(|section| section.0 != tag);
        self.sections.push((tag, 0, 0, bytes.to_vec()));
        self
    }

    /// A text that is the kernel's own copy.
    pub fn copied(mut self, tag: u8, bytes: &[u8]) -> Self {
        self.sections.retain(|section| section.0 != tag);
        let bytes = bytes.to_vec();
        self.sections.push((tag, section_flags::COPIED, 0, bytes));
        self
    }

    /// `path` as the kernel walks it.
    pub fn walked(mut self, tag: u8, path: &str) -> Self {
        let mut bytes = Vec::new();
        for component in path
            .split('/')
            .rev()
            .filter(|component| !component.is_empty())
        {
            bytes.extend_from_slice(component.as_bytes());
            bytes.push(0);
        }
        self.sections.retain(|section| section.0 != tag);
        self.sections.push((tag, 0, bytes.len() as u16, bytes));
        self
    }
}

fn file_object() -> FileObject {
    FileObject {
        inode: 42,
        size_bytes: 5,
        device: 8 << 20 | 1,
        mode: 0o100_755,
        owner_uid: 1000,
        owner_gid: 1000,
        generation: 3,
        layer: layer::UPPER,
        real_device: 8 << 20 | 2,
        reserved: 0,
        real_inode: 43,
    }
}

pub fn header(kind: u16) -> Header {
    let mut header = Header::new_zeroed();
    header.time_ns = 55_000_123;
    header.sequence = 1;
    header.kind = kind;
    header.class = kind::from_number(kind).map_or(class::PROCESS, |row| row.class);
    header.via = via::BTF_TRACEPOINT;
    header.pid = 1234;
    header.tid = 1235;
    header.start_time_ns = 50_000_123;
    header.parent_pid = 1000;
    header.parent_start_time_ns = 40_000_000;
    header.loginuid = 1000;
    header.session = 7;
    header.pid_namespace = 4_026_531_836;
    header.mount_namespace = 4_026_531_841;
    header.network_namespace = 4_026_531_840;
    header.user_namespace = 4_026_531_837;
    header.credentials = Credentials {
        uid: 1000,
        gid: 1000,
        suid: 1000,
        sgid: 1000,
        euid: 1000,
        egid: 1000,
        fsuid: 1000,
        fsgid: 1000,
    };
    header.capabilities_effective = 0x1ff;
    header.comm[..6].copy_from_slice(b"sample");
    header
}

fn sample(kind: u16, payload: &(impl IntoBytes + Immutable + KnownLayout)) -> Sample {
    Sample {
        header: header(kind),
        payload: payload.as_bytes().to_vec(),
        sections: Vec::new(),
    }
}

/// The sample of `kind`.
pub fn record(kind: u16) -> Sample {
    match kind {
        kind::EXEC | kind::EXEC_FAILED | kind::FORK | kind::EXIT => of_process(kind),
        kind::CONNECT
        | kind::ACCEPT
        | kind::BIND
        | kind::LISTEN
        | kind::DATAGRAM
        | kind::SOCKET_SPECIAL
        | kind::UNIX_CONNECT
        | kind::CLOSE_FLOW
        | kind::DNS => of_socket(kind),
        kind::CONTAINER => {
            let populated = Populated {
                cgroup_id: 4711,
                populated: 1,
            };
            let mut sample = sample(kind, &populated);
            sample.header.pid = 0;
            let path = format!("/kubepods/pod{}/{}", "0f".repeat(16), "ab".repeat(32));
            sample.section(section::CGROUP, path.as_bytes())
        }
        kind::SIGNAL => {
            let mut signal = Signal::new_zeroed();
            signal.signal = 9;
            signal.target_pid = 77;
            sample(kind, &signal)
        }
        kind::BPF => sample(kind, &bpf()),
        kind::OPEN => {
            let open = Open {
                file: file_object(),
                result: 3,
                flags: 0o1101,
                outcome: open_outcome::CREATED | open_outcome::WRITE,
            };
            sample(kind, &open).walked(section::PATH, "/tmp/out")
        }
        kind::CLOSE_WRITE => {
            let closed = CloseWrite {
                file: file_object(),
                opened_ns: 55_000_000,
                bytes_read: 0,
                bytes_written: 9,
                position_bytes: 9,
                outcome: open_outcome::TRUNCATE | open_outcome::WRITE,
                inode_gone: 0,
            };
            sample(kind, &closed).walked(section::PATH, "/tmp/out")
        }
        kind::UNLINK => call(kind, "unlinkat")
            .section(section::GIVEN, b"gone")
            .walked(section::BASE, "/tmp"),
        kind::RENAME => call(kind, "renameat2")
            .section(section::GIVEN, b"old")
            .walked(section::BASE, "/tmp")
            .section(section::TARGET_GIVEN, b"/srv/a/new"),
        kind::TIME_CHANGE => call(kind, "clock_settime"),
        kind::MEMFD => call(kind, "memfd_create").section(section::TEXT, b"name"),
        other => call(other, first_call_of(other)),
    }
}

fn of_process(kind: u16) -> Sample {
    match kind {
        kind::EXEC => {
            let argv = b"/bin/sh\0./run.sh\0\0";
            let exec = Exec {
                file: file_object(),
                argv_bytes: argv.len() as u64,
                argc: 3,
                reserved: 0,
            };
            sample(kind, &exec)
                .walked(section::PATH, "/usr/bin/dash")
                .section(section::INVOKED, b"./run.sh")
                .section(section::INTERPRETER, b"/bin/sh")
                .walked(section::CWD, "/home/u")
                .section(section::ARGV, argv)
        }
        kind::EXEC_FAILED => {
            let failed = ExecFailed {
                result: -2,
                unread_arguments: 0,
                reserved: 0,
            };
            sample(kind, &failed)
                .section(section::GIVEN, b"./missing")
                .walked(section::BASE, "/home/u")
                .section(section::ARGV, b"missing\0-x\0")
        }
        kind::FORK => sample(
            kind,
            &Fork {
                child_start_time_ns: 77_000_000,
                child_pid: 4321,
                pid_namespace: 4_026_531_836,
                mount_namespace: 4_026_531_841,
                network_namespace: 4_026_531_840,
                user_namespace: 4_026_531_837,
                reserved: 0,
            },
        ),
        _ => sample(
            kind,
            &Exit {
                user_time_ns: 1,
                system_time_ns: 2,
                max_rss_pages: 10,
                status: 0,
                reserved: 0,
            },
        ),
    }
}

fn of_socket(kind: u16) -> Sample {
    match kind {
        kind::UNIX_CONNECT => {
            let mut socket = socket();
            socket.family = 1;
            sample(kind, &socket).section(section::SOCKET_NAME, b"/run/a.sock\0")
        }
        kind::CLOSE_FLOW => {
            let mut flow = Flow::new_zeroed();
            flow.socket = socket();
            flow.begin_ns = 50_000_000;
            flow.bytes_sent = 10;
            sample(kind, &flow)
        }
        kind::DNS => {
            let mut payload = Dns::new_zeroed();
            payload.socket = socket();
            payload.socket.protocol = 17;
            payload.socket.peer_port = 53;
            payload.network_namespace = 4_026_531_840;
            let answer = dns::sample_answer("www.example", [198, 51, 100, 7].into());
            payload.wire_bytes = answer.len() as u64;
            sample(kind, &payload).section(section::DNS, &answer)
        }
        _ => sample(kind, &socket()),
    }
}

/// Any call that is told as `kind`.
fn first_call_of(kind: u16) -> &'static str {
    let rows = (0..audit_common::call::SLOTS).filter_map(calls::of_slot);
    let mut of_kind = rows.filter(|(row, _)| row.shape.kind == kind && row.program == "call");
    let (row, _) = of_kind.next().expect("a call of that kind");
    row.name
}

fn socket() -> Socket {
    let mut socket = Socket::new_zeroed();
    socket.result = -115;
    socket.inode = 99;
    socket.local_address[..4].copy_from_slice(&[10, 0, 0, 1]);
    socket.peer_address[..4].copy_from_slice(&[192, 0, 2, 7]);
    socket.local_port = 40_000;
    socket.peer_port = 443;
    socket.family = 2;
    socket.protocol = 6;
    socket
}

fn bpf() -> Bpf {
    let mut bpf = Bpf::new_zeroed();
    bpf.result = 5;
    bpf.command = 5;
    bpf.is_program = 1;
    bpf.object_type = 2;
    bpf.object_id = 7;
    bpf.tag = [1, 2, 3, 4, 5, 6, 7, 8];
    bpf.name[..3].copy_from_slice(b"spy");
    bpf
}

/// A record of the call `name`, with arguments that count from zero (its flags: 2).
pub fn call(kind: u16, name: &str) -> Sample {
    let slot = (0..audit_common::call::SLOTS)
        .find(|slot| calls::of_slot(*slot).is_some_and(|(row, _)| row.name == name));
    let slot = slot.expect(name);
    let (row, _) = calls::of_slot(slot).expect(name);
    let mut call = Call::new_zeroed();
    call.slot = slot;
    if let Some(flags) = call.arguments.get_mut(usize::from(row.meaning.flags)) {
        *flags = 2;
    }
    let mut sample = sample(kind, &call);
    sample.header.form = form::CALL;
    sample
}
