//! What does the host know about an event that its record does not say? Programs, parents, names of
//! users, containers, where given paths lead and how the host calls them, and the names of the peers
//! of sockets.
//!
//! Invariant: what is not known is left absent; nothing here drops an event.

use std::{net::IpAddr, os::unix::fs::MetadataExt as _, sync::Arc, time::Instant};

use audit_common::{
    kind,
    record::{Call, Credentials, Exec, Fork, Header, Record, section},
};
use audit_proto::v1::{self, Event};

use crate::{
    calls,
    container::{Containers, Unknown},
    decode::{self, Captured, Form, text::number},
    dns::Names,
    host_path::{self, HostPaths},
    process::{self, Ended, Key, Rights, Table},
    resolve::Resolver,
    source::Round,
    users::{self, Users},
};

#[derive(Debug)]
pub struct Enricher {
    pub table: Table,
    pub containers: Containers,
    users: Users,
    resolver: Resolver,
    host_paths: HostPaths,
    names: Names,
    /// Our own.
    pid_namespace: Option<u32>,
}

/// What enrichment found out about an event as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Event,
    /// An exit that was told before.
    Repeated,
}

/// What an event's actor was written from, apart from the record: while it is the same, the same
/// would be written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    processes: process::Edition,
    users: users::Edition,
    containers: u64,
}

impl Enricher {
    pub fn new(table: Table, containers: Containers, users: Users) -> Self {
        Self {
            table,
            containers,
            users,
            resolver: Resolver::new(),
            host_paths: HostPaths::of_host(),
            names: Names::default(),
            pid_namespace: own_pid_namespace(),
        }
    }

    /// Once per round.
    pub fn refresh(&mut self, round: &Round, now: Instant) {
        self.users.refresh(now);
        self.host_paths.look_ahead(round);
    }

    /// Completes a decoded event, and lets the process table learn from it. `told` is what the
    /// event's actor was written from, if it tells this record's; none afterwards where another
    /// record must not use it again.
    pub fn complete(
        &mut self,
        record: &Record<'_>,
        event: &mut Event,
        told: &mut Option<Stamp>,
        now: Instant,
    ) -> Verdict {
        let header = &record.header;
        let before = match has_new_rights(event) || has_left(header) {
            true => self.table.rights(Key::of(header)),
            false => None,
        };
        if let (true, Some(before)) = (has_left(header), before) {
            name_namespaces(&before, event);
        }
        if self.learn(record, event) == Ended::Again {
            return Verdict::Repeated;
        }
        change_of_rights(before, event);
        self.name_target(header, event);
        self.name_peer(record, event);
        let own = is_of_record(header, event);
        if own || *told != Some(self.stamp(header)) {
            let settled = self.describe(header, event, now);
            *told = (settled && !own).then(|| self.stamp(header));
        }
        let at_top = || self.table.is_at_top(Key::of(header));
        let looked_up = Resolver::concerns(record)
            .then(|| self.resolver.finish(record, at_top(), event))
            .flatten();
        if self.host_paths.concerns(event)
            && let Some(root) = host_path::root(record, looked_up.as_deref(), at_top, event)
        {
            self.host_paths.complete(header, &root, event);
        }
        Verdict::Event
    }

    fn stamp(&self, header: &Header) -> Stamp {
        Stamp {
            processes: self.table.edition(header),
            users: self.users.edition(),
            containers: self.containers.edition(),
        }
    }

    /// Writes the actor; false where more may be known of it a moment later.
    fn describe(&mut self, header: &Header, event: &mut Event, now: Instant) -> bool {
        self.table
            .describe(header, header.kind != kind::EXEC, event);
        let parent_uid = self.table.describe_parent(header, event);
        self.name_users(event, parent_uid);
        self.place(header, event, now)
    }

    /// The messages that a record of DNS ends; of one record, they take some hundred KiB at most.
    /// What is not one is counted.
    pub fn messages(&mut self, captured: &Captured<'_>, time_ns: u64) -> Vec<v1::Dns> {
        let Captured {
            namespace,
            way,
            socket,
            form,
        } = *captured;
        match form {
            Form::Datagram(bytes) => {
                let message = self.names.datagram(namespace, way, bytes, time_ns);
                message.iter().map(decode::told_dns).collect()
            }
            Form::Piece(piece) => {
                let mut told = Vec::new();
                let place = (namespace, way);
                self.names.piece(place, socket, &piece, time_ns, |message| {
                    told.push(decode::told_dns(message));
                });
                told
            }
        }
    }

    pub fn host_paths(&self) -> host_path::Counters {
        self.host_paths.counters()
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    fn learn(&mut self, record: &Record<'_>, event: &mut Event) -> Ended {
        let header = &record.header;
        match header.kind {
            kind::EXEC => {
                let argv = record
                    .section(section::ARGV)
                    .map_or(&[][..], |section| section.bytes);
                let argv_bytes = record.payload::<Exec>().map_or(0, |exec| exec.argv_bytes);
                if let Some(process) = &event.process {
                    self.table.exec(header, process, argv, argv_bytes);
                }
            }
            kind::FORK => {
                if let Some(target) = &mut event.target_process {
                    let child = Key {
                        pid: target.pid.unwrap_or_default() as u32,
                        start_time_ns: target.start_time_ns.unwrap_or_default() as u64,
                    };
                    if let Some(fork) = record.payload::<Fork>() {
                        self.table.fork(header, child, &fork);
                        if fork.network_namespace != header.network_namespace {
                            self.names.ended(fork.network_namespace);
                        }
                    }
                }
            }
            kind::EXIT => return self.table.exit(header),
            kind::NAMESPACE if made_network(record) => {
                self.names.ended(header.network_namespace);
                self.table.meet(header);
            }
            _ if has_left(header) => {}
            _ => self.table.meet(header),
        }
        Ended::First
    }

    /// Who the target is. A pid that the caller gave counts in the caller's pid namespace, so it
    /// says who only where that is ours.
    fn name_target(&self, header: &Header, event: &mut Event) {
        let Some(target) = &mut event.target_process else {
            return;
        };
        let Some(pid) = target.pid.and_then(|pid| u32::try_from(pid).ok()) else {
            return;
        };
        let from_kernel = target.start_time_ns.is_some() || header.kind == kind::UNIX_CONNECT;
        let key = match target.start_time_ns {
            Some(start) => Some(Key {
                pid,
                start_time_ns: start as u64,
            }),
            None if from_kernel || self.pid_namespace == Some(header.pid_namespace) => {
                self.table.latest(pid)
            }
            None => None,
        };
        if let Some(key) = key {
            self.table.describe_target(key, target);
        }
    }

    /// For what name the process knows the peer that it connects or sends to.
    fn name_peer(&mut self, record: &Record<'_>, event: &mut Event) {
        let header = &record.header;
        if !matches!(
            header.kind,
            kind::CONNECT | kind::DATAGRAM | kind::CLOSE_FLOW
        ) {
            return;
        }
        let outgoing = event.socket.as_mut().filter(|s| s.direction == "out");
        let Some(peer) = outgoing.and_then(|socket| socket.peer.as_mut()) else {
            return;
        };
        if let Ok(address) = peer.address.parse::<IpAddr>()
            && let Some(name) =
                self.names
                    .name_of(header.network_namespace, address, header.time_ns)
        {
            peer.name.push_str(name);
        }
    }

    fn name_users(&self, event: &mut Event, parent_uid: Option<u32>) {
        if let Some(process) = &mut event.process {
            let user = |id: Option<i64>, name: &mut String| {
                name.clear();
                name.push_str(id.map_or("", |id| self.users.user(id)));
            };
            user(process.uid, &mut process.user);
            user(process.euid, &mut process.effective_user);
            user(process.loginuid, &mut process.login_user);
            process.group.clear();
            process
                .group
                .push_str(process.gid.map_or("", |gid| self.users.group(gid)));
        }
        if let (Some(parent), Some(uid)) = (&mut event.parent, parent_uid) {
            parent.user.push_str(self.users.user(uid.into()));
        }
    }

    fn place(&mut self, header: &Header, event: &mut Event, now: Instant) -> bool {
        let (key, cgroup) = (Key::of(header), header.cgroup_id);
        // Where the id does not tell, a runtime's child may have moved between fork and exec.
        let moved = header.kind == kind::EXEC && self.containers.is_shared(cgroup);
        let known = self.table.container(key, cgroup).filter(|_| !moved);
        let found = known.ok_or(()).or_else(|()| {
            let found = self.containers.find(cgroup, key, now)?;
            self.table.set_container(key, cgroup, found.clone());
            Ok::<_, Unknown>(found)
        });
        let settled = found.is_ok();
        let found = found.unwrap_or_else(|Unknown| {
            let pending = self.containers.pending(cgroup, now);
            Some(Arc::new(pending))
        });
        let named = found
            .as_deref()
            .and_then(|found| self.containers.named(cgroup, found));
        let found = match named {
            Some(named) => {
                let named = Some(named);
                self.table.set_container(key, cgroup, named.clone());
                named
            }
            None => found,
        };
        match (&mut event.container, found) {
            (slot, None) => *slot = None,
            (Some(slot), Some(found)) => slot.clone_from(&found),
            (slot, Some(found)) => *slot = Some(Arc::unwrap_or_clone(found)),
        }
        settled
    }
}

/// The record itself tells more of its actor than every record does: what an exec runs, what the
/// process might do before the call, where it is.
fn is_of_record(header: &Header, event: &Event) -> bool {
    let process = event.process.as_ref();
    header.kind == kind::EXEC
        || has_new_rights(event)
        || has_left(header)
        || process.is_some_and(|process| !process.root.is_empty() || !process.cwd.is_empty())
}

fn has_new_rights(event: &Event) -> bool {
    event.new_credentials.is_some() || event.new_namespaces.is_some()
}

/// The process is so far at its end that it has left its namespaces.
fn has_left(header: &Header) -> bool {
    header.mount_namespace == 0
}

/// Those that the process was in, as far as the event does not say it.
fn name_namespaces(rights: &Rights, event: &mut Event) {
    let Some(process) = &mut event.process else {
        return;
    };
    for (place, inode) in [
        (&mut process.mount_namespace, rights.mount_namespace),
        (&mut process.network_namespace, rights.network_namespace),
    ] {
        if place.is_none() && inode != 0 {
            *place = Some(inode.into());
        }
    }
}

/// The process has made itself a network namespace. Its number may be that of one which ended.
fn made_network(record: &Record<'_>) -> bool {
    let Some(call) = record.payload::<Call>() else {
        return false;
    };
    let is_unshare = calls::of_slot(call.slot).is_some_and(|(row, _)| row.name == "unshare");
    is_unshare && call.result == 0 && call.arguments[0] & libc::CLONE_NEWNET as u64 != 0
}

fn own_pid_namespace() -> Option<u32> {
    let metadata = std::fs::metadata("/proc/self/ns/pid").ok()?;
    u32::try_from(metadata.ino()).ok()
}

/// A record tells what a process may do after the call; the table, what it could before. Where the
/// table does not know, `process` does not tell it.
fn change_of_rights(before: Option<Rights>, event: &mut Event) {
    let Some(process) = &mut event.process else {
        return;
    };
    if let Some(new) = &mut event.new_credentials {
        let old = before.map(|before| before.credentials);
        let of = |field: fn(&Credentials) -> u32| old.as_ref().and_then(|old| number(field(old)));
        process.uid = of(|old| old.uid);
        process.gid = of(|old| old.gid);
        process.euid = of(|old| old.euid);
        process.egid = of(|old| old.egid);
        process.suid = of(|old| old.suid);
        process.sgid = of(|old| old.sgid);
        process.fsuid = of(|old| old.fsuid);
        process.fsgid = of(|old| old.fsgid);
        let capabilities = before.map(|before| before.capabilities_effective as i64);
        process.capabilities_effective = capabilities;
        new.privileges_grew = before.map(|before| {
            let added =
                new.capabilities_effective.unwrap_or(0) as u64 & !before.capabilities_effective;
            added != 0 || (new.euid == Some(0) && before.credentials.euid != 0)
        });
    }
    if event.new_namespaces.is_some() && event.kind == i32::from(kind::NAMESPACE) {
        let of = |field: fn(&Rights) -> u32| {
            let inode = before.as_ref().map(field).filter(|inode| *inode != 0);
            inode.map(i64::from)
        };
        process.pid_namespace = of(|before| before.pid_namespace);
        process.mount_namespace = of(|before| before.mount_namespace);
        process.network_namespace = of(|before| before.network_namespace);
        process.user_namespace = of(|before| before.user_namespace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{process::Limits, sample};
    use std::fs;

    fn enricher(dir: &std::path::Path) -> Enricher {
        let (passwd, group) = (dir.join("passwd"), dir.join("group"));
        fs::write(&passwd, "alice:x:1000:1000\n").expect("write");
        fs::write(&group, "staff:x:1000:\n").expect("write");
        let limits = Limits {
            entries: 100,
            bytes: 1 << 20,
        };
        let table = Table::new("0123456789abcdef", limits);
        let mut enricher =
            Enricher::new(table, Containers::of_host(&[]), Users::new(&passwd, &group));
        enricher.refresh(&Round::default(), Instant::now());
        enricher
    }

    /// The enricher takes in an answer that gave `name` this address.
    fn answer(enricher: &mut Enricher, name: &str, address: [u8; 4]) -> Vec<v1::Dns> {
        let message = crate::dns::sample_answer(name, address.into());
        let sample = sample::record(kind::DNS).section(section::DNS, &message);
        let bytes = sample.bytes();
        let record = Record::parse(&bytes).expect("parse");
        let captured = decode::captured_dns(&record).expect("of DNS");
        enricher.messages(&captured, record.header.time_ns)
    }

    fn peer_name(enricher: &mut Enricher, sample: &sample::Sample) -> String {
        let (_, event) = complete(enricher, sample);
        event.socket.and_then(|s| s.peer).expect("peer").name
    }

    #[test]
    fn what_an_answer_said_names_the_peers_of_its_namespace() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut enricher = enricher(dir.path());
        let told = answer(&mut enricher, "www.example", [192, 0, 2, 7]);
        assert_eq!(told[0].query_name, "www.example");
        assert_eq!(told[0].answers, ["192.0.2.7"]);
        for kind in [kind::CONNECT, kind::DATAGRAM, kind::CLOSE_FLOW] {
            let name = peer_name(&mut enricher, &sample::record(kind));
            assert_eq!(name, "www.example", "kind {kind}");
        }
        // Who came in did not look the name up.
        assert_eq!(peer_name(&mut enricher, &sample::record(kind::ACCEPT)), "");
        let mut elsewhere = sample::record(kind::CONNECT);
        elsewhere.header.network_namespace += 1;
        assert_eq!(peer_name(&mut enricher, &elsewhere), "");
    }

    #[test]
    fn a_new_network_namespace_begins_without_names() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut enricher = enricher(dir.path());
        let slots = 0..audit_common::call::SLOTS;
        let unshare = slots
            .clone()
            .find(|slot| calls::of_slot(*slot).is_some_and(|(row, _)| row.name == "unshare"))
            .expect("unshare");
        let mut sample = sample::record(kind::NAMESPACE);
        let mut call = sample.payload_as::<Call>();
        call.slot = unshare;
        for (flags, result, left) in [
            (libc::CLONE_NEWNS, 0, "a.example"),
            (libc::CLONE_NEWNET, -1, "a.example"),
            (libc::CLONE_NEWNET | libc::CLONE_NEWNS, 0, ""),
        ] {
            answer(&mut enricher, "a.example", [192, 0, 2, 7]);
            (call.arguments[0], call.result) = (flags as u64, result);
            sample.payload = zerocopy::IntoBytes::as_bytes(&call).to_vec();
            complete(&mut enricher, &sample);
            let name = peer_name(&mut enricher, &sample::record(kind::CONNECT));
            assert_eq!(name, left, "{flags:x} {result}");
        }
        answer(&mut enricher, "a.example", [192, 0, 2, 7]);
        let mut fork = sample::record(kind::FORK);
        fork.header.network_namespace += 1;
        complete(&mut enricher, &fork);
        assert_eq!(peer_name(&mut enricher, &sample::record(kind::CONNECT)), "");
    }

    fn complete(enricher: &mut Enricher, sample: &sample::Sample) -> (Verdict, Event) {
        let bytes = sample.bytes();
        let record = Record::parse(&bytes).expect("parse");
        let mut event = sample.event();
        let verdict = enricher.complete(&record, &mut event, &mut None, Instant::now());
        (verdict, event)
    }

    #[test]
    fn what_an_exec_told_is_known_of_later_events_and_of_children() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut enricher = enricher(dir.path());
        let (_, exec) = complete(&mut enricher, &sample::record(kind::EXEC));
        let told = exec.process.expect("process");
        assert_eq!(
            (told.user.as_str(), told.group.as_str()),
            ("alice", "staff")
        );
        assert_eq!(
            (told.login_user.as_str(), told.exe_inode),
            ("alice", Some(42))
        );

        let (_, open) = complete(&mut enricher, &sample::record(kind::OPEN));
        let later = open.process.expect("process");
        assert_eq!((&later.exe, &later.argv), (&told.exe, &told.argv));
        assert_eq!(
            (&later.exec_id, &later.script),
            (&told.exec_id, &told.script)
        );
        assert_eq!((later.exe_inode, later.cwd.as_str()), (None, ""));

        let (_, fork) = complete(&mut enricher, &sample::record(kind::FORK));
        let child_id = fork.target_process.expect("target").exec_id;
        let mut child = sample::record(kind::OPEN);
        child.header.parent_pid = child.header.pid;
        child.header.parent_start_time_ns = child.header.start_time_ns;
        child.header.pid = 4321;
        child.header.start_time_ns = 77_000_000;
        let (_, event) = complete(&mut enricher, &child);
        let process = event.process.expect("process");
        assert_eq!((process.exec_id, &process.exe), (child_id, &told.exe));
        let parent = event.parent.expect("parent");
        assert_eq!((parent.exec_id, parent.exe), (told.exec_id, told.exe));
        assert_eq!((parent.user.as_str(), parent.argv), ("alice", told.argv));
    }

    #[test]
    fn a_repeated_exit_is_told_apart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut enricher = enricher(dir.path());
        let exit = sample::record(kind::EXIT);
        assert_eq!(complete(&mut enricher, &exit).0, Verdict::Event);
        assert_eq!(complete(&mut enricher, &exit).0, Verdict::Repeated);
    }
}
