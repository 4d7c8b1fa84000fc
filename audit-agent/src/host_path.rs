//! By which path does the host find a file that a process in another mount namespace, or below
//! another root, acted on?
//!
//! The longest mountpoint on the way says which file system the file is on and where in it; the
//! host's mount of the same file system that shows this place gives the host's path. "The host" is
//! the first process as the agent sees it: of an agent in a container without the host's processes
//! that is the container's own.
//!
//! Invariants: never a guess: a table counts for an event only where no change of the namespace's
//! mounts is known between the two, and for a file whose device the kernel told only where it says
//! the same device. Just after it was read, when events of changes before that may still be to come, a
//! look must find the file there too. What the host cannot reach, or what is not known, has no host
//! path. Nothing is read for an event whose table is there. Processes of the host's namespace cost a
//! comparison.

mod history;
mod mounts;
mod reading;

use std::borrow::Cow;

use ahash::AHashMap;
use audit_common::{
    kind,
    record::{Call, Fork, Header, Record, section, section_flags},
};
use audit_proto::{
    text::{escape, unescape},
    v1::{Event, File},
};
use rustix::fs::{CWD, readlinkat};
use zerocopy::FromBytes as _;

use crate::{calls, clock::boot_time_ns, source::Round};
use history::History;
use mounts::{Mounts, Place};
use reading::Witness;

/// Of one mount table: some 3,000 mounts. One that is larger is not kept, and its namespace's files
/// have no host path.
const TABLE_BYTES: usize = 640 << 10;
/// Of all namespaces' tables but the host's; a container's takes some 5 KiB. When full it is emptied
/// and fills again.
const TABLES_BYTES: usize = 1 << 20;
/// Namespaces known, with or without table. When full, as above.
const NAMESPACES: usize = 1024;
/// A table is read again at this age, for changes that no event tells: those that come by
/// propagation, and where `mount` is off or hidden by a filter.
const AGE_NS: u64 = 5_000_000_000;
/// A table that did not fit a file is read again after this at the earliest.
const DOUBT_NS: u64 = 1_000_000_000;
/// Threads of one namespace by which its table is sought in a round, where those before were gone.
const TRIES: u32 = 8;

/// Finds the host's paths.
#[derive(Debug)]
pub struct HostPaths {
    /// None where /proc does not say what the host's mounts are.
    host: Option<History>,
    namespaces: AHashMap<u32, Namespace>,
    /// What the tables take.
    bytes: usize,
    /// Of the round that is worked on.
    changes: Vec<Change>,
    /// When it began.
    now_ns: u64,
    /// The time of its last record: every change before it is known.
    settled_ns: u64,
    counters: Counters,
}

/// Since the start.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counters {
    pub found: u64,
    /// Files of other namespaces without a host path: not reachable, or not known.
    pub absent: u64,
    /// Mount tables read, the host's too.
    pub reads: u64,
}

/// The mounts of a namespace changed then, or it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    namespace: u32,
    time_ns: u64,
}

#[derive(Debug, Default)]
struct Namespace {
    table: Option<Table>,
    /// Of the rounds before this one, the latest.
    changed_ns: u64,
    tried: Tried,
}

/// Attempts to read a table in one round.
#[derive(Debug, Default)]
struct Tried {
    round_ns: u64,
    times: u32,
    /// The thread by which it was tried the last time.
    tid: u32,
}

#[derive(Debug)]
struct Table {
    mounts: Mounts,
    /// It was read between these.
    begun_ns: u64,
    ended_ns: u64,
    /// The latest reading that said the same.
    checked_ns: u64,
}

impl HostPaths {
    pub fn of_host() -> Self {
        let host = History::open();
        if let Err(error) = &host {
            tracing::warn!(%error, "the host's mount table cannot be read; events of containers leave without the host's path of their files");
        }
        Self {
            host: host.ok(),
            namespaces: AHashMap::new(),
            bytes: 0,
            changes: Vec::new(),
            now_ns: 0,
            settled_ns: 0,
            counters: Counters::default(),
        }
    }

    pub fn counters(&self) -> Counters {
        let of_host = self.host.as_ref().map_or(0, |host| host.reads);
        Counters {
            reads: self.counters.reads + of_host,
            ..self.counters
        }
    }

    /// Once per round, before its records: which of them change mounts?
    pub fn look_ahead(&mut self, round: &Round) {
        let Some(host) = &mut self.host else { return };
        for Change { namespace, time_ns } in self.changes.drain(..) {
            if let Some(known) = self.namespaces.get_mut(&namespace) {
                known.changed_ns = known.changed_ns.max(time_ns);
            }
        }
        let of_host = host.namespace();
        for change in round.records().filter_map(|bytes| change(bytes, of_host)) {
            match change.namespace == of_host {
                true => host.learn(change.time_ns),
                false => self.changes.push(change),
            }
        }
        host.refresh();
        self.settled_ns = round.last_ns().unwrap_or(self.settled_ns);
        self.now_ns = now_ns();
    }

    /// Whether [`Self::complete`] may find something for this event.
    pub fn concerns(&self, event: &Event) -> bool {
        let (Some(host), Some(process)) = (&self.host, &event.process) else {
            return false;
        };
        let at_home = process.mount_namespace == Some(host.namespace().into());
        (!at_home || !process.root.is_empty())
            && (event.file.is_some() || event.target_file.is_some())
    }

    /// Writes the host's paths of the event's files, which begin at `root` of the process's namespace.
    pub fn complete(&mut self, header: &Header, root: &str, event: &mut Event) {
        let namespace = event.process.as_ref();
        let namespace = namespace.and_then(|process| process.mount_namespace);
        let Some(namespace) = namespace.and_then(|inode| u32::try_from(inode).ok()) else {
            return;
        };
        for file in [&mut event.file, &mut event.target_file] {
            let Some(file) = file else { continue };
            let Some(path) = in_namespace(root, file) else {
                continue;
            };
            match self.of_file(header, namespace, path, file) {
                Some(path) => {
                    file.host_path = path;
                    self.counters.found += 1;
                }
                None => self.counters.absent += 1,
            }
        }
    }

    fn of_file(
        &mut self,
        header: &Header,
        namespace: u32,
        path: Cow<'_, str>,
        file: &File,
    ) -> Option<String> {
        if self.host.as_ref()?.namespace() == namespace {
            return Some(path.into_owned());
        }
        let bytes = match path.contains('\\') {
            true => Cow::Owned(unescape(&path)?),
            false => Cow::Borrowed(path.as_bytes()),
        };
        let device = match file.path_source.as_str() {
            "kernel" => file.device,
            // That of a lookup is of stat, which has some of its own.
            _ => None,
        };
        let place = self.place(header, namespace, &bytes, device)?;
        let found = self.host.as_mut()?.find(&place, header.time_ns)?;
        let table = self.namespaces.get(&namespace)?.table.as_ref()?;
        if table.ended_ns > self.settled_ns {
            let inode = device.and(file.inode);
            let sees = witness(header, namespace)?.sees(&bytes, inode);
            sees.ok().filter(|sees| *sees)?;
        }
        Some(escape(&found).into_owned())
    }

    /// Where in which file system it is.
    fn place(
        &mut self,
        header: &Header,
        namespace: u32,
        path: &[u8],
        device: Option<i64>,
    ) -> Option<Place> {
        let fits = |place: &Place| device.is_none_or(|device| device == i64::from(place.device));
        let now_ns = self.now_ns;
        let table = self.table(header, namespace)?;
        let age_ns = now_ns.saturating_sub(table.checked_ns);
        let place = table.mounts.place(path)?;
        if fits(&place) {
            return Some(place);
        }
        if age_ns < DOUBT_NS {
            return None;
        }
        self.read(header, namespace);
        let place = self.table(header, namespace)?.mounts.place(path)?;
        fits(&place).then_some(place)
    }

    /// The mount table of the namespace at the moment of the event.
    fn table(&mut self, header: &Header, namespace: u32) -> Option<&Table> {
        let time_ns = header.time_ns;
        let known = self.namespaces.get(&namespace);
        let table = known.and_then(|known| known.table.as_ref());
        let fits = table.is_some_and(|table| {
            let is_old = table.checked_ns + AGE_NS < self.now_ns;
            !is_old && self.holds(namespace, table, time_ns)
        });
        // One that is read now is of after the changes that come after the event.
        let mut coming = self.changes.iter();
        if !fits && !coming.any(|of| of.namespace == namespace && of.time_ns > time_ns) {
            self.read(header, namespace);
        }
        let table = self.namespaces.get(&namespace)?.table.as_ref()?;
        self.holds(namespace, table, time_ns).then_some(table)
    }

    /// No change is known between the reading of the table and then.
    fn holds(&self, namespace: u32, table: &Table, time_ns: u64) -> bool {
        let before = self.namespaces.get(&namespace);
        let before = before.map_or(0, |known| known.changed_ns);
        let (from, to) = (table.begun_ns.min(time_ns), table.ended_ns.max(time_ns));
        let between = |change_ns: u64| from < change_ns && change_ns <= to;
        let mut changes = self.changes.iter();
        !between(before)
            && !changes.any(|change| change.namespace == namespace && between(change.time_ns))
    }

    /// Reads the table by the event's process or its parent.
    fn read(&mut self, header: &Header, namespace: u32) {
        if !self.namespaces.contains_key(&namespace) && self.namespaces.len() >= NAMESPACES {
            self.empty();
        }
        let known = self.namespaces.entry(namespace).or_default();
        if !known.tried.again(self.now_ns, header.tid) {
            return;
        }
        let Some(witness) = witness(header, namespace) else {
            return;
        };
        let begun_ns = now_ns();
        match witness.table(TABLE_BYTES) {
            Ok(mounts) => {
                self.counters.reads += 1;
                let ended_ns = now_ns();
                let table = Table {
                    mounts,
                    begun_ns,
                    ended_ns,
                    checked_ns: ended_ns,
                };
                self.keep(namespace, table);
            }
            Err(error) => tracing::debug!(namespace, %error, "no mount table"),
        }
    }

    fn keep(&mut self, namespace: u32, table: Table) {
        let known = self.namespaces.get(&namespace);
        let old = known.and_then(|known| known.table.as_ref());
        let stays = old.is_some_and(|old| {
            old.mounts.is_same(&table.mounts) && self.holds(namespace, old, table.begun_ns)
        });
        let bytes = table.mounts.bytes();
        if !stays && self.bytes + bytes > TABLES_BYTES {
            self.empty();
        }
        let known = self.namespaces.entry(namespace).or_default();
        if let Some(old) = known.table.as_mut().filter(|_| stays) {
            old.checked_ns = table.checked_ns;
            return;
        }
        let old = known.table.replace(table);
        self.bytes += bytes;
        self.bytes -= old.map_or(0, |old| old.mounts.bytes());
    }

    fn empty(&mut self) {
        self.namespaces.clear();
        self.bytes = 0;
    }
}

/// The event's thread, its process or its parent.
fn witness(header: &Header, namespace: u32) -> Option<Witness> {
    Witness::of(namespace, [header.tid, header.pid, header.parent_pid])
}

fn now_ns() -> u64 {
    u64::try_from(boot_time_ns()).unwrap_or(0)
}

impl Tried {
    /// Whether it is worth another attempt; notes it.
    fn again(&mut self, round_ns: u64, tid: u32) -> bool {
        if self.round_ns != round_ns {
            *self = Self {
                round_ns,
                ..Self::default()
            };
        } else if self.tid == tid || self.times >= TRIES {
            return false;
        }
        self.tid = tid;
        self.times += 1;
        true
    }
}

/// The mounts of a namespace that a record changes.
fn change(bytes: &[u8], host: u32) -> Option<Change> {
    let (header, payload) = Header::read_from_prefix(bytes).ok()?;
    let succeeded = || {
        let (call, _) = Call::read_from_prefix(payload).ok()?;
        (call.result >= 0).then_some(call)
    };
    // New namespaces may have the number of one that ended.
    let begins = |namespace: u32| Some(namespace).filter(|namespace| *namespace != host);
    let namespace = match header.kind {
        kind::MOUNT => succeeded().map(|_| header.mount_namespace),
        kind::NAMESPACE => {
            let (row, _) = calls::of_slot(succeeded()?.slot)?;
            begins(header.mount_namespace).filter(|_| row.name == "unshare")
        }
        kind::FORK => {
            let (fork, _) = Fork::read_from_prefix(payload).ok()?;
            begins(fork.mount_namespace).filter(|new| *new != header.mount_namespace)
        }
        _ => None,
    };
    Some(Change {
        namespace: namespace?,
        time_ns: header.time_ns,
    })
}

/// The root of the acting process, from the root of its mount namespace, where it is known: by a path
/// that the kernel walked, by the lookup that a path came from, or as it is now. `at_top` says that
/// the process was started at the root of its namespace.
pub fn root(
    record: &Record<'_>,
    looked_up: Option<&[u8]>,
    at_top: impl FnOnce() -> bool,
    event: &Event,
) -> Option<String> {
    let process = event.process.as_ref()?;
    let walked = record.sections().any(|section| {
        let unreachable = section.header.flags & section_flags::UNREACHABLE != 0;
        !unreachable
            && matches!(
                section.header.tag,
                section::PATH | section::OBJECT | section::BASE | section::TARGET_BASE
            )
    });
    if walked {
        return Some(process.root.clone());
    }
    if let Some(root) = looked_up {
        return Some(escape(root).into_owned());
    }
    let link = readlinkat(CWD, format!("/proc/{}/root", record.header.pid), Vec::new());
    let is_top = link.map_or_else(|_| at_top(), |link| link.as_bytes() == b"/");
    is_top.then(String::new)
}

/// The file's path from the root of the mount namespace, if it is a path and certain.
fn in_namespace<'a>(root: &str, file: &'a File) -> Option<Cow<'a, str>> {
    let path = file.path.as_str();
    let whole = path.starts_with('/')
        && file.path_truncated_bytes.is_none()
        && file.memfd.is_none()
        && file.path_source != "lexical";
    whole.then(|| match (root, path) {
        ("", path) => Cow::Borrowed(path),
        (root, "/") => Cow::Owned(root.to_owned()),
        (root, path) => Cow::Owned([root, path].concat()),
    })
}

#[cfg(test)]
mod tests;
