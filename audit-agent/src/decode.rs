//! What does a record say? One record in, one event out, from the record alone: no table, no file
//! system, no clock but the given one.
//!
//! Invariants: no bytes make it panic; what cannot be decoded is an error that the pipeline counts
//! and reports as a `lost` event; every field of [`Process`] that a record can tell is written for
//! every record, because the caller reuses the event. What the process runs is written here for
//! `exec` only; for other kinds [`crate::process`] knows it.

mod bpf;
mod call;
mod dns;
mod file;
mod network;
mod process;
mod race;
pub mod text;

use audit_common::{
    class, kind,
    record::{Credentials, Header, Malformed, NO_RESULT, Record, form, via},
};
use audit_proto::v1::{self, Event, Process};

use crate::{clock::Clock, errno};
use text::number;

pub use dns::{Captured, Form, captured as captured_dns, told as told_dns};
pub use file::is_watched_read;
pub use process::split_arguments;
pub use race::races;

/// CPU numbers accepted; Linux's largest configuration is 8192.
pub const MAX_CPUS: u32 = 1 << 16;

/// Why a record is not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("record malformed: {0:?}")]
    Malformed(Malformed),
    #[error("record of unknown kind {0}")]
    UnknownKind(u16),
    #[error("record of unknown stream: class {class}, cpu {cpu}")]
    UnknownStream { class: u8, cpu: u32 },
    #[error("payload of kind {0} too short")]
    Payload(u16),
    #[error("no system call has slot {slot}")]
    UnknownCall { slot: u32 },
}

impl DecodeError {
    /// For `lost.cause`.
    pub fn cause(self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed record",
            Self::UnknownKind(_) => "unknown kind",
            Self::UnknownStream { .. } => "unknown stream",
            Self::Payload(_) => "payload too short",
            Self::UnknownCall { .. } => "unknown system call",
        }
    }
}

/// Splits a record and checks that it belongs to a stream.
pub fn parse(bytes: &[u8]) -> Result<Record<'_>, DecodeError> {
    let record = Record::parse(bytes).map_err(DecodeError::Malformed)?;
    let Header { class, cpu, .. } = record.header;
    if class::name(class).is_none() || cpu >= MAX_CPUS {
        return Err(DecodeError::UnknownStream { class, cpu });
    }
    Ok(record)
}

/// Writes into `event` what the record says. `event.host`, ids and sequence are the caller's.
pub fn decode(record: &Record<'_>, clock: &Clock, event: &mut Event) -> Result<(), DecodeError> {
    actor(&record.header, event.process.get_or_insert_default());
    decode_again(record, clock, event)
}

/// As [`decode`], into an event that tells the record's actor already.
pub fn decode_again(
    record: &Record<'_>,
    clock: &Clock,
    event: &mut Event,
) -> Result<(), DecodeError> {
    let kind = record.header.kind;
    if kind::from_number(kind).is_none() {
        return Err(DecodeError::UnknownKind(kind));
    }
    envelope(&record.header, clock, event);
    let process = event.process.get_or_insert_default();
    process.cwd.clear();
    process.root.clear();
    match record.header.form {
        form::CALL => call::call(record, clock, event),
        _ => of_kind(record, event)?.ok_or(DecodeError::Payload(kind)),
    }
}

fn of_kind(record: &Record<'_>, event: &mut Event) -> Result<Option<()>, DecodeError> {
    Ok(match record.header.kind {
        kind::EXEC => process::exec(record, event),
        kind::EXEC_FAILED => process::exec_failed(record, event),
        kind::FORK => process::fork(record, event),
        kind::EXIT => process::exit(record, event),
        kind::SIGNAL => process::signal(record, event),
        kind::BPF => bpf::bpf(record, event),
        kind::CONNECT => network::connect(record, event),
        kind::ACCEPT => network::accept(record, event),
        kind::BIND | kind::LISTEN => network::bind(record, event),
        kind::DATAGRAM => network::connect(record, event),
        kind::DNS => dns::dns(record, event),
        kind::UNIX_CONNECT => network::unix_connect(record, event),
        kind::SOCKET_SPECIAL => network::special(record, event),
        kind::CLOSE_FLOW => network::close_flow(record, event),
        kind::OPEN => file::open(record, event),
        kind::CONTAINER => process::container(record, event),
        kind::CLOSE_WRITE => file::close_write(record, event),
        unknown => return Err(DecodeError::UnknownKind(unknown)),
    })
}

fn envelope(header: &Header, clock: &Clock, event: &mut Event) {
    let Event {
        id: _,
        time,
        time_remainder_ns,
        boot_time_ns,
        kind,
        class,
        cpu,
        sequence: _,
        via,
        host: _,
        process: _,
        parent: _,
        container: _,
        file,
        target_file,
        socket,
        target_process,
        exit,
        result,
        lost,
        agent,
        syscall,
        new_credentials,
        new_namespaces,
        mount,
        module,
        bpf,
        flow,
        dns,
        shed,
        argument_race,
        amendment,
    } = event;
    let wall = clock.wall(header.time_ns as i64);
    *time = wall.micros;
    *time_remainder_ns = wall.remainder_ns;
    *boot_time_ns = header.time_ns as i64;
    *kind = header.kind.into();
    *class = header.class.into();
    *cpu = Some(header.cpu as i32);
    via.clear();
    via.push_str(via::name(header.via).unwrap_or_default());
    *file = None;
    *target_file = None;
    *socket = None;
    *target_process = None;
    *exit = None;
    *result = None;
    *lost = None;
    *agent = None;
    *syscall = None;
    *new_credentials = None;
    *new_namespaces = None;
    *mount = None;
    *module = None;
    *bpf = None;
    *flow = None;
    *dns = None;
    *shed = None;
    *argument_race = None;
    *amendment = None;
}

/// Who did it. exec_id, names of users and what it runs are not in a record.
fn actor(header: &Header, process: &mut Process) {
    let Process {
        exec_id: _,
        pid,
        tid,
        start_time_ns,
        exe: _,
        exe_invoked: _,
        script: _,
        argv: _,
        argv_truncated_bytes: _,
        cwd: _,
        name,
        root: _,
        uid,
        gid,
        euid,
        egid,
        suid,
        sgid,
        fsuid,
        fsgid,
        user: _,
        effective_user: _,
        group: _,
        loginuid,
        login_user: _,
        session,
        capabilities_effective,
        pid_namespace,
        mount_namespace,
        network_namespace,
        user_namespace,
        exe_deleted: _,
        exe_memfd: _,
        exe_inode: _,
        exe_device: _,
        exe_mode: _,
        exe_owner_uid: _,
        exe_owner_gid: _,
        exe_generation: _,
        exe_layer: _,
        exe_real_inode: _,
        exe_real_device: _,
    } = process;
    let credentials: &Credentials = &header.credentials;
    *pid = Some(header.pid.into());
    *tid = Some(header.tid.into());
    *start_time_ns = Some(header.start_time_ns as i64);
    text::comm(&header.comm, name);
    *uid = number(credentials.uid);
    *gid = number(credentials.gid);
    *euid = number(credentials.euid);
    *egid = number(credentials.egid);
    *suid = number(credentials.suid);
    *sgid = number(credentials.sgid);
    *fsuid = number(credentials.fsuid);
    *fsgid = number(credentials.fsgid);
    *loginuid = number(header.loginuid);
    *session = number(header.session);
    *capabilities_effective = Some(header.capabilities_effective as i64);
    *pid_namespace = known(header.pid_namespace);
    *mount_namespace = known(header.mount_namespace);
    *network_namespace = known(header.network_namespace);
    *user_namespace = known(header.user_namespace);
}

/// A namespace; 0 where the kernel could not tell.
fn known(inode: u32) -> Option<i64> {
    (inode != 0).then_some(i64::from(inode))
}

/// What a system call returned; none where it was told before it did.
fn result(value: i64) -> Option<v1::Result> {
    if value == NO_RESULT {
        return None;
    }
    let error = match i32::try_from(value) {
        Ok(value) if value < 0 => match errno::name(-value) {
            Some(name) => name.to_owned(),
            None => format!("{}", -value),
        },
        _ => String::new(),
    };
    Some(v1::Result {
        value: Some(value),
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use proptest::prelude::*;
    use zerocopy::IntoBytes as _;

    #[test]
    fn every_kind_of_the_kernel_table_decodes() {
        for row in kind::ALL {
            let bytes = sample::record(row.number).bytes();
            let record = parse(&bytes).expect(row.name);
            let mut event = Event::default();
            decode(&record, &Clock::from_offset(0), &mut event).expect(row.name);
            assert_eq!(event.kind, i32::from(row.number));
            assert_eq!(event.class, i32::from(row.class));
            assert!(
                v1::Kind::try_from(event.kind).is_ok(),
                "{} in proto",
                row.name
            );
        }
    }

    #[test]
    fn the_actor_is_told_whole() {
        let mut sample = sample::record(kind::EXIT);
        sample.header.loginuid = u32::MAX;
        sample.header.credentials.euid = 0;
        sample.header.user_namespace = 0;
        let mut event = Event::default();
        let bytes = sample.bytes();
        decode(
            &parse(&bytes).expect("parse"),
            &Clock::from_offset(1_000),
            &mut event,
        )
        .expect("decode");
        let process = event.process.expect("process");
        assert_eq!(process.pid, Some(sample.header.pid.into()));
        assert_eq!(process.tid, Some(sample.header.tid.into()));
        assert_eq!(process.name, "sample");
        assert_eq!(process.uid, Some(1000));
        assert_eq!(process.euid, Some(0));
        assert_eq!(process.loginuid, Some(-1));
        assert_eq!(process.session, Some(7));
        assert_eq!(process.capabilities_effective, Some(0x1ff));
        assert_eq!(process.user_namespace, None);
        assert_eq!(process.mount_namespace, Some(4_026_531_841));
        assert_eq!(event.boot_time_ns, sample.header.time_ns as i64);
        assert_eq!(event.time, (sample.header.time_ns as i64 + 1_000) / 1_000);
        assert_eq!(event.via, "tp_btf");
    }

    #[test]
    fn unknown_kinds_streams_and_short_payloads_are_told_apart() {
        let clock = Clock::from_offset(0);
        let error_of = |sample: &sample::Sample| {
            let bytes = sample.bytes();
            parse(&bytes)
                .and_then(|record| decode(&record, &clock, &mut Event::default()))
                .expect_err("bad")
        };
        let mut unknown = sample::record(kind::EXIT);
        unknown.header.kind = 77;
        assert_eq!(error_of(&unknown), DecodeError::UnknownKind(77));
        let mut stream = sample::record(kind::EXIT);
        stream.header.class = 9;
        assert!(matches!(
            error_of(&stream),
            DecodeError::UnknownStream { class: 9, .. }
        ));
        let mut short = sample::record(kind::EXIT);
        short.payload.pop();
        assert_eq!(error_of(&short), DecodeError::Payload(kind::EXIT));
    }

    #[test]
    fn errors_have_names_and_success_has_none() {
        let error = |value| result(value).map(|result| result.error);
        assert_eq!(error(-2).as_deref(), Some("ENOENT"));
        assert_eq!(error(3).as_deref(), Some(""));
        assert_eq!(error(-4095).as_deref(), Some("4095"));
        assert_eq!(error(NO_RESULT), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            at in 0..kind::ALL.len(),
            mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..24),
            cut in any::<prop::sample::Index>(),
            garbage: Vec<u8>,
        ) {
            let mut bytes = sample::record(kind::ALL[at].number).bytes();
            for (index, value) in mutations {
                let index = index.index(bytes.len());
                bytes[index] = value;
            }
            let end = cut.index(bytes.len() + 1);
            for bytes in [&bytes[..], &bytes[..end], &garbage] {
                if let Ok(record) = parse(bytes) {
                    let _ = decode(&record, &Clock::from_offset(i64::MAX), &mut Event::default());
                }
            }
        }

        #[test]
        fn any_payload_decodes(at in 0..kind::ALL.len(), noise: [u8; 32]) {
            let mut sample = sample::record(kind::ALL[at].number);
            for (byte, noise) in sample.payload.iter_mut().zip(noise.iter().cycle()) {
                *byte ^= noise;
            }
            for (byte, noise) in sample.header.credentials.as_mut_bytes().iter_mut().zip(noise) {
                *byte = noise;
            }
            let bytes = sample.bytes();
            let record = parse(&bytes).expect("parse");
            let decoded = decode(&record, &Clock::from_offset(0), &mut Event::default());
            // The noise may have hit the number of a call.
            let fine = matches!(decoded, Ok(()) | Err(DecodeError::UnknownCall { .. }));
            prop_assert!(fine, "{decoded:?}");
        }
    }
}
