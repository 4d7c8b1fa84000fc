//! Which events can a kind become? Records in every form that the kernel programs send, decoded and
//! enriched as in the pipeline. Records of calls have what the call's shape says that they have.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, sync::Arc, time::Instant};

use audit_common::{
    call::{NONE, flags},
    kind,
    record::{
        Bpf, Call, Dns, Exec, ExecFailed, Exit, Fork, Header, Open, Record, Signal, Socket,
        section, section_flags, socket_flags,
    },
};
use audit_proto::{
    columns,
    v1::{Amendment, Container, Event, Host},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    calls::{self, Row},
    clock::Clock,
    container::{Amended, Containers},
    decode, dns,
    enrich::Enricher,
    own,
    probe::OBJECT_KINDS,
    process::{Key, Limits, Table},
    sample::{self, Sample},
    source::{Loss, Round, ShedCount, Skip},
    users::Users,
};

/// A host on which everything can be found out about the samples' process.
pub struct Bench {
    enricher: Enricher,
    directory: tempfile::TempDir,
    mount_namespace: u32,
    pid_namespace: u32,
    cgroup: u64,
}

impl Bench {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (passwd, group) = (directory.path().join("p"), directory.path().join("g"));
        fs::write(&passwd, "alice:x:1000:1000\n").expect("written");
        fs::write(&group, "staff:x:1000:\n").expect("written");
        let limits = Limits {
            entries: 100,
            bytes: 1 << 20,
        };
        let table = Table::new("0123456789abcdef", limits);
        let users = Users::new(&passwd, &group);
        let mut enricher = Enricher::new(table, Containers::of_host(&[]), users);
        enricher.refresh(&Round::default(), Instant::now());
        let namespace = |name: &str| {
            let about = fs::metadata(format!("/proc/self/ns/{name}"));
            about.expect("/proc").ino() as u32
        };
        let mut bench = Self {
            enricher,
            directory,
            mount_namespace: namespace("mnt"),
            pid_namespace: namespace("pid"),
            cgroup: 4711,
        };
        // A parent, and a process that everything else happens to.
        let mut parent = sample::record(kind::EXEC);
        bench.place(&mut parent.header);
        parent.header.pid = parent.header.parent_pid;
        parent.header.start_time_ns = parent.header.parent_start_time_ns;
        bench.complete(&parent);
        // The samples' peer has a name.
        let name = dns::sample_answer("www.example", [192, 0, 2, 7].into());
        bench.complete(&dns_of(&name));
        bench
    }

    /// The samples' actor is this very process, so that what it names can be looked up.
    fn place(&self, header: &mut Header) {
        header.pid = std::process::id();
        header.mount_namespace = self.mount_namespace;
        header.pid_namespace = self.pid_namespace;
        header.cgroup_id = self.cgroup;
    }

    fn complete(&mut self, sample: &Sample) -> Event {
        let mut event = sample.event();
        if sample.header.kind == kind::CONTAINER {
            return of_container(event);
        }
        let bytes = sample.bytes();
        let record = Record::parse(&bytes).expect("well formed");
        let container = Container {
            id: "0".repeat(64),
            runtime: "docker".to_owned(),
            pod_uid: "a-pod".to_owned(),
            cgroup: "/a/b".to_owned(),
            ..a_container()
        };
        let key = Key::of(&sample.header);
        let table = &mut self.enricher.table;
        table.set_container(key, self.cgroup, Some(Arc::new(container)));
        self.enricher
            .complete(&record, &mut event, &mut None, Instant::now());
        if sample.header.kind == kind::DNS
            && let Some(captured) = decode::captured_dns(&record)
        {
            let mut messages = self.enricher.messages(&captured, sample.header.time_ns);
            event.dns = messages.pop();
        }
        event.host = Some(Host {
            id: "host".to_owned(),
            name: "name".to_owned(),
            boot_id: "boot".to_owned(),
            run: "run".to_owned(),
        });
        event.sequence = Some(1);
        event.id = "id".to_owned();
        event
    }

    /// Columns that events of `kind` can fill.
    pub fn columns(&mut self, kind: u16) -> BTreeSet<usize> {
        let mut filled = BTreeSet::new();
        // What the actor runs is known from its exec; a kind must not find it changed by another.
        // Of a long argv the table keeps a part.
        let mut started = with(sample::record(kind::EXEC), |exec: &mut Exec| {
            exec.argv_bytes += 9;
        });
        self.place(&mut started.header);
        for mut sample in self.samples(kind) {
            self.complete(&started);
            self.place(&mut sample.header);
            for flags in [0, section_flags::TRUNCATED, section_flags::DELETED] {
                let mut sample = sample.clone();
                for section in &mut sample.sections {
                    section.1 |= flags;
                }
                fill(&mut filled, &self.complete(&sample));
            }
            for section in &mut sample.sections {
                below_root(section);
            }
            fill(&mut filled, &self.complete(&sample));
        }
        filled
    }

    fn samples(&self, kind: u16) -> Vec<Sample> {
        let rows = (0..audit_common::call::SLOTS).filter_map(calls::of_slot);
        let of_kind = rows.filter(|(row, _)| row.shape.kind == kind && row.program == "call");
        let mut names = BTreeSet::new();
        let mut samples = Vec::new();
        for (row, _) in of_kind.filter(|(row, _)| names.insert(row.name)) {
            for (result, unless) in [(0, flags::ONLY_FAILURE), (-13, flags::ONLY_SUCCESS)] {
                if row.shape.flags & unless == 0 {
                    samples.push(self.call(row, result));
                }
            }
        }
        samples.extend(own_forms(kind));
        if OBJECT_KINDS.contains(&kind) {
            let seen = samples.iter().map(|sample| {
                let sample = sample.clone().walked(section::OBJECT, "/tmp/object");
                sample.walked(section::TARGET_OBJECT, "/tmp/other")
            });
            let seen: Vec<Sample> = seen.collect();
            samples.extend(seen);
        }
        samples
    }

    /// With a section for each thing that the call's shape names.
    fn call(&self, row: &Row, result: i64) -> Sample {
        let mut sample = sample::call(row.shape.kind, row.name);
        let mut payload = sample.payload_as::<Call>();
        let target = usize::from(row.meaning.target_pid);
        if let Some(target) = payload.arguments.get_mut(target) {
            *target = std::process::id().into();
        }
        payload.result = result;
        payload.file = sample::record(kind::EXEC).payload_as::<Exec>().file;
        payload.namespaces.as_mut_bytes().fill(1);
        sample.payload = payload.as_bytes().to_vec();
        let shape = &row.shape;
        let directory = self.directory.path().display().to_string();
        if shape.path != NONE {
            sample = sample
                .copied(section::GIVEN, b"p")
                .walked(section::BASE, &directory);
        }
        if shape.target_path != NONE {
            sample = sample.copied(section::TARGET_GIVEN, format!("{directory}/./x").as_bytes());
        }
        if shape.descriptor != NONE {
            sample = sample.walked(section::PATH, "/memfd:name");
            pseudo(&mut sample);
        }
        if shape.text != NONE {
            sample = sample.section(section::TEXT, b"text");
        }
        if shape.second_text != NONE {
            sample = sample.section(section::SECOND_TEXT, b"more");
        }
        if shape.structure != NONE {
            sample = sample.section(section::STRUCTURE, &[1; 16]);
        }
        sample
    }
}

fn fill(filled: &mut BTreeSet<usize>, event: &Event) {
    let all = 0..columns::COLUMNS.len();
    filled.extend(all.filter(|column| columns::get(event, *column).is_some()));
}

/// A container's start, with all that its runtime can say of it.
fn of_container(event: Event) -> Event {
    let told = event.container.unwrap_or_default();
    Event {
        container: Some(Container {
            id: told.id,
            runtime: "docker".to_owned(),
            pod_uid: told.pod_uid,
            cgroup: told.cgroup,
            action: told.action,
            ..a_container()
        }),
        ..event
    }
}

/// All that can be known of one.
fn a_container() -> Container {
    let text = || "text".to_owned();
    Container {
        name: text(),
        image: text(),
        pod_name: text(),
        pod_namespace: text(),
        cgroup_id: Some(4711),
        state: text(),
        ..Container::default()
    }
}

/// The last section was walked to an object that never had a name.
fn pseudo(sample: &mut Sample) {
    if let Some(section) = sample.sections.last_mut() {
        section.1 |= section_flags::PSEUDO;
        section.3 = b"memfd:name\0".to_vec();
        section.2 = section.3.len() as u16;
    }
}

fn nameless(mut sample: Sample) -> Sample {
    pseudo(&mut sample);
    sample
}

/// The process's root is a directory above what the section walked to.
fn below_root((tag, _, _, bytes): &mut (u8, u8, u16, Vec<u8>)) {
    if [section::PATH, section::OBJECT, section::BASE].contains(tag) {
        bytes.extend_from_slice(b"root\0");
    }
}

fn with<T: FromBytes + IntoBytes + Immutable>(
    mut sample: Sample,
    change: impl FnOnce(&mut T),
) -> Sample {
    let mut payload = sample.payload_as::<T>();
    change(&mut payload);
    sample.payload = payload.as_bytes().to_vec();
    sample
}

/// A DNS message of its own.
fn dns_of(message: &[u8]) -> Sample {
    let sample = with(sample::record(kind::DNS), |dns: &mut Dns| {
        dns.wire_bytes = message.len() as u64;
    });
    sample.section(section::DNS, message)
}

/// What programs send that serve one kind.
fn own_forms(kind: u16) -> Vec<Sample> {
    let plain = || sample::record(kind);
    match kind {
        kind::EXEC => {
            let mut memfd = plain().walked(section::PATH, "memfd:name");
            pseudo(&mut memfd);
            let more = with(memfd, |exec: &mut Exec| exec.argv_bytes += 9);
            vec![plain(), more]
        }
        kind::EXEC_FAILED => vec![
            with(plain(), |failed: &mut ExecFailed| {
                failed.unread_arguments = 1;
            })
            .copied(section::GIVEN, b"./missing"),
        ],
        kind::FORK => vec![with(plain(), |fork: &mut Fork| fork.user_namespace += 1)],
        kind::EXIT => vec![plain(), with(plain(), |exit: &mut Exit| exit.status = 9)],
        kind::CONNECT => vec![
            plain(),
            with(plain(), |socket: &mut Socket| {
                socket.flags = socket_flags::OUTCOME;
            }),
        ],
        kind::ACCEPT | kind::DATAGRAM => vec![with(plain(), |socket: &mut Socket| {
            socket.result = 3; // those that fail are not told
        })],
        kind::LISTEN => vec![with(plain(), |socket: &mut Socket| socket.backlog = 7)],
        kind::UNIX_CONNECT => vec![
            with(plain(), |socket: &mut Socket| {
                (socket.local_port, socket.peer_port) = (0, 0);
            }),
            with(plain(), |socket: &mut Socket| {
                (socket.result, socket.socket_type) = (0, 1);
                (socket.local_port, socket.peer_port) = (0, 0);
                socket.peer_pid = std::process::id();
            }),
        ],
        kind::SIGNAL => vec![with(plain(), |signal: &mut Signal| {
            signal.target_pid = std::process::id();
            signal.target_start_time_ns = sample::header(kind).start_time_ns;
        })],
        kind::SOCKET_SPECIAL => vec![with(plain(), |socket: &mut Socket| {
            (socket.family, socket.socket_type) = (17, 3);
            (socket.local_port, socket.peer_port) = (0, 0);
            (socket.local_address, socket.peer_address) = ([0; 16], [0; 16]);
        })],
        kind::BPF => vec![plain(), with(plain(), |bpf: &mut Bpf| bpf.result = -1)],
        kind::OPEN => {
            let mut refused = with(plain(), |open: &mut Open| open.result = -13);
            refused
                .sections
                .retain(|section| section.0 != section::PATH);
            let refused = refused
                .copied(section::GIVEN, b"./name")
                .walked(section::BASE, "/tmp");
            vec![plain(), nameless(plain()), refused]
        }
        kind::CLOSE_WRITE => vec![plain(), nameless(plain())],
        kind::BIND | kind::CLOSE_FLOW | kind::CONTAINER => vec![plain()],
        kind::DNS => {
            let mut cut = dns::sample_answer("www.example", [192, 0, 2, 7].into());
            cut[2] |= 2; // TC: the resolver left answers out
            cut[7] += 1; // and one of those that it counts is missing
            vec![
                plain(),
                dns_of(&dns::sample_query("www.example")),
                dns_of(&cut),
            ]
        }
        _ => Vec::new(),
    }
}

fn amended() -> Amended {
    let text = || "text".to_owned();
    Amended {
        amendment: Amendment {
            subject: text(),
            fields: vec![text()],
            source: text(),
            event_id: text(),
        },
        container: Container {
            id: text(),
            runtime: text(),
            pod_uid: text(),
            cgroup: text(),
            ..a_container()
        },
    }
}

fn totals() -> own::Totals {
    own::Totals {
        classes: vec!["file".to_owned()],
        filters: vec!["rule".to_owned()],
        ..own::Totals::default()
    }
}

/// Columns of what the agent says about itself: `lost`, `shed`, `amendment`, `heartbeat`, `agent`.
pub fn of_agent() -> [(&'static str, &'static str, BTreeSet<usize>); 5] {
    let clock = Clock::from_offset(0);
    let loss = Loss {
        class: 1,
        cpu: 0,
        first_sequence: 1,
        last_sequence: 1,
        cause: "full",
        place: "ring",
    };
    let of = |events: &[Event]| {
        let mut filled = BTreeSet::new();
        events.iter().for_each(|event| fill(&mut filled, event));
        filled
    };
    let detail = || "detail".to_owned();
    [
        (
            "lost",
            "Events are missing: which numbers of which stream, and where they were lost.",
            of(&[
                own::lost(&clock, &loss, 1, 1),
                own::lost_without_stream(&clock, "unknown kind"),
                own::skipped(
                    &clock,
                    &Skip {
                        hook: "exec".to_owned(),
                        runs: 1,
                    },
                ),
            ]),
        ),
        (
            "shed",
            "A cgroup made more events than `capture.budgets` allows; these were left out for it, and \
             are counted. At most one event a second for each cgroup and class.",
            of(&[own::shed(
                &clock,
                &ShedCount {
                    class: 3,
                    cgroup_id: Some(1),
                    shed: 1,
                    sampled: 1,
                },
                "/a".to_owned(),
            )]),
        ),
        (
            "amendment",
            "Something became known of events that had left.",
            of(&[own::amendment(&clock, amended())]),
        ),
        (
            "heartbeat",
            "The agent is alive: totals of this run.",
            of(&[own::heartbeat(&clock, "hash", totals(), detail())]),
        ),
        (
            "agent",
            "The agent started, ended, or what it depends on changed.",
            of(&[own::action(&clock, "hash", "start", detail())]),
        ),
    ]
}
