//! Who is this process, and who started it? A bounded table of processes, fed by fork, exec and
//! exit, seeded from /proc at the start.
//!
//! Invariants: a process is (pid, start time), so a reused pid is another process. What is evicted
//! (exited first, then the oldest) costs later events their `process.exe` and `process.argv`, never
//! an event, and is counted. An exited process stays for a while, because its children name it.

pub mod proc_fs;

use std::{collections::VecDeque, sync::Arc};

use ahash::AHashMap;
use audit_common::{
    limits::COMM_BYTES,
    record::{Credentials, Fork, Header},
};
use audit_proto::v1::{Container, Event, Process, TargetProcess};

use crate::decode::{split_arguments, text};
use proc_fs::Seed;

/// Bytes of argv that the table keeps per program, for the process's later events; the exec event
/// has all of it. Covers 97 of 100 real command lines.
pub const KEPT_ARGV_BYTES: usize = 4096;
/// An exited process is forgotten after this, by the boot clock.
const EXITED_KEPT_NS: u64 = 300_000_000_000;
/// What an entry costs apart from its program, for the table's account: its slot in a hash table
/// that is half empty, its exec_id, its place in two queues.
const ENTRY_BYTES: usize = 2 * size_of::<(Key, Entry)>() + 48 + 6 * size_of::<Key>();
/// The allocator's share in a piece of text.
const TEXT_BYTES: usize = 16;
/// Of the table's bytes, what processes read at the start and not met yet may take.
const SEEDS_SHARE: usize = 2;

/// How much the table may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub entries: usize,
    /// Entries, the programs that they share, and what was read at the start.
    pub bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub pid: u32,
    pub start_time_ns: u64,
}

impl Key {
    pub fn of(header: &Header) -> Self {
        Self {
            pid: header.pid,
            start_time_ns: header.start_time_ns,
        }
    }

    fn of_parent(header: &Header) -> Self {
        Self {
            pid: header.parent_pid,
            start_time_ns: header.parent_start_time_ns,
        }
    }
}

/// What a process runs; shared by the processes that forked from it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Program {
    pub exe: String,
    pub exe_invoked: String,
    pub script: String,
    pub argv: Vec<String>,
    pub argv_truncated_bytes: Option<i64>,
    /// It was started with the root of its mount namespace as its root.
    pub at_top: bool,
}

impl Program {
    /// From the parts of an exec; `argv` is raw, `argv_bytes` its whole length.
    fn new(
        [exe, exe_invoked, script]: [String; 3],
        argv: &[u8],
        argv_bytes: u64,
        at_top: bool,
    ) -> Self {
        let kept = &argv[..argv.len().min(KEPT_ARGV_BYTES)];
        let missing = argv_bytes.saturating_sub(kept.len() as u64);
        Self {
            exe,
            exe_invoked,
            script,
            argv: split_arguments(kept),
            argv_truncated_bytes: (missing > 0).then_some(missing as i64),
            at_top,
        }
    }

    fn bytes(&self) -> usize {
        let argv: usize = self
            .argv
            .iter()
            .map(|a| a.len() + size_of::<String>() + TEXT_BYTES)
            .sum();
        size_of::<Self>() + self.exe.len() + self.exe_invoked.len() + self.script.len() + argv
    }
}

#[derive(Debug)]
struct Entry {
    exec_id: String,
    program: Option<Arc<Program>>,
    /// Comm and uid at the process's latest event, for its children's `parent`.
    comm: [u8; COMM_BYTES],
    uid: Option<u32>,
    /// At its latest event.
    rights: Option<Rights>,
    /// With the cgroup that it was found for.
    container: Option<(u64, Option<Arc<Container>>)>,
    exited: bool,
    /// Of the table's changes, the last that changed what events of this process tell.
    change: u64,
}

/// What events tell of a process and its parent comes from the table in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edition {
    own: Option<u64>,
    /// With what children tell besides.
    parent: Option<(u64, [u8; COMM_BYTES], Option<u32>)>,
}

/// What a process may do and where it is: what `credentials` and `namespace` events change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    pub credentials: Credentials,
    pub capabilities_effective: u64,
    pub pid_namespace: u32,
    pub mount_namespace: u32,
    pub network_namespace: u32,
    pub user_namespace: u32,
}

impl Rights {
    fn of(header: &Header) -> Self {
        Self {
            credentials: header.credentials,
            capabilities_effective: header.capabilities_effective,
            pid_namespace: header.pid_namespace,
            mount_namespace: header.mount_namespace,
            network_namespace: header.network_namespace,
            user_namespace: header.user_namespace,
        }
    }
}

/// What an exit was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    First,
    /// This process had ended before; the kernel can tell twice when two threads end it at once.
    Again,
}

#[derive(Debug)]
pub struct Table {
    entries: AHashMap<Key, Entry>,
    /// The youngest process of each pid.
    by_pid: AHashMap<u32, Key>,
    /// Every key, oldest first; may name entries that are gone. Bounded by twice the entries.
    order: VecDeque<Key>,
    exited: VecDeque<(Key, u64)>,
    /// Read from /proc and not met in a record yet.
    seeds: AHashMap<u32, Seed>,
    bytes: usize,
    limits: Limits,
    boot: String,
    evicted: u64,
    changes: u64,
}

impl Table {
    /// `boot_id` as in /proc/sys/kernel/random/boot_id.
    pub fn new(boot_id: &str, limits: Limits) -> Self {
        Self {
            entries: AHashMap::new(),
            by_pid: AHashMap::new(),
            order: VecDeque::new(),
            exited: VecDeque::new(),
            seeds: AHashMap::new(),
            bytes: 0,
            limits,
            boot: boot_id.chars().filter(|c| *c != '-').take(12).collect(),
            evicted: 0,
            changes: 0,
        }
    }

    /// Adds what /proc said at the start, as far as its share of the table goes; what has no room
    /// is counted as evicted.
    pub fn seed(&mut self, seeds: impl IntoIterator<Item = Seed>) {
        for seed in seeds {
            let bytes = seed.bytes();
            if self.bytes + bytes > self.limits.bytes / SEEDS_SHARE {
                self.evicted += 1;
            } else if self.seeds.insert(seed.pid, seed).is_none() {
                self.bytes += bytes;
            }
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries given up for room since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    pub fn exec_id(&self, key: Key) -> String {
        format!("{}-{}-{:x}", self.boot, key.pid, key.start_time_ns)
    }

    /// The header's process runs another program from now on, as `process` (from the exec's decode)
    /// and its raw arguments say.
    pub fn exec(&mut self, header: &Header, process: &Process, argv: &[u8], argv_bytes: u64) {
        let texts = [&process.exe, &process.exe_invoked, &process.script].map(String::clone);
        let at_top = process.root.is_empty() && process.exe.starts_with('/');
        let program = Program::new(texts, argv, argv_bytes, at_top);
        self.meet(header);
        self.set_program(Key::of(header), Some(Arc::new(program)));
    }

    /// A child: it runs what its parent runs, in the same container.
    pub fn fork(&mut self, header: &Header, child: Key, fork: &Fork) {
        self.meet(header);
        let parent = self.entries.get(&Key::of(header));
        let program = parent.and_then(|entry| entry.program.clone());
        let container = parent.and_then(|entry| entry.container.clone());
        if !self.entries.contains_key(&child) {
            self.insert(child, header.comm, Some(header.credentials.uid));
        }
        // An exec of the child that overtook this record knows better.
        if let Some(entry) = self.entries.get_mut(&child)
            && entry.program.is_none()
        {
            entry.rights = Some(Rights {
                pid_namespace: fork.pid_namespace,
                mount_namespace: fork.mount_namespace,
                network_namespace: fork.network_namespace,
                user_namespace: fork.user_namespace,
                ..Rights::of(header)
            });
            entry.container = container;
            self.set_program(child, program);
        }
    }

    pub fn exit(&mut self, header: &Header) -> Ended {
        self.meet(header);
        self.expire(header.time_ns);
        let key = Key::of(header);
        match self.entries.get_mut(&key) {
            Some(entry) if entry.exited => Ended::Again,
            Some(entry) => {
                entry.exited = true;
                self.exited.push_back((key, header.time_ns));
                Ended::First
            }
            None => Ended::First,
        }
    }

    /// Makes sure that the header's process has an entry, and notes its comm and uid.
    pub fn meet(&mut self, header: &Header) {
        let key = Key::of(header);
        let uid = Some(header.credentials.uid);
        match self.entries.get_mut(&key) {
            Some(entry) => {
                entry.comm = header.comm;
                entry.uid = uid;
                entry.rights = Some(Rights::of(header));
            }
            None => {
                self.insert(key, header.comm, uid);
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.rights = Some(Rights::of(header));
                }
            }
        }
        let parent = Key::of_parent(header);
        if parent.pid != 0
            && !self.entries.contains_key(&parent)
            && self.seeds.contains_key(&parent.pid)
        {
            self.insert(parent, [0; COMM_BYTES], None);
        }
    }

    /// While it is the same, [`Self::describe`] and [`Self::describe_parent`] write the same.
    pub fn edition(&self, header: &Header) -> Edition {
        let parent = self.entries.get(&Key::of_parent(header));
        Edition {
            own: self.entries.get(&Key::of(header)).map(|entry| entry.change),
            parent: parent.map(|entry| (entry.change, entry.comm, entry.uid)),
        }
    }

    /// Writes what the table knows of the acting process; its program too unless `own` is false: an
    /// exec tells its program itself.
    pub fn describe(&self, header: &Header, own: bool, event: &mut Event) {
        let process = event.process.get_or_insert_default();
        let entry = self.entries.get(&Key::of(header));
        match entry {
            Some(entry) => process.exec_id.clone_from(&entry.exec_id),
            None => process.exec_id = self.exec_id(Key::of(header)),
        }
        if own {
            write_program(entry.and_then(|entry| entry.program.as_deref()), process);
        }
    }

    /// Writes `event.parent` from the header's parent; `user` is its uid, for the caller to name.
    pub fn describe_parent(&self, header: &Header, event: &mut Event) -> Option<u32> {
        let key = Key::of_parent(header);
        if key.pid == 0 {
            event.parent = None;
            return None;
        }
        let parent = event.parent.get_or_insert_default();
        parent.pid = Some(key.pid.into());
        parent.name.clear();
        parent.user.clear();
        let Some(entry) = self.entries.get(&key) else {
            parent.exec_id = self.exec_id(key);
            parent.exe.clear();
            parent.argv.clear();
            return None;
        };
        parent.exec_id.clone_from(&entry.exec_id);
        match entry.program.as_deref() {
            Some(program) => {
                parent.exe.clone_from(&program.exe);
                parent.argv.clone_from(&program.argv);
            }
            None => {
                parent.exe.clear();
                parent.argv.clear();
            }
        }
        text::comm(&entry.comm, &mut parent.name);
        entry.uid
    }

    /// As of the process's latest event; every thread of it is taken to have the same.
    pub fn rights(&self, key: Key) -> Option<Rights> {
        self.entries.get(&key)?.rights
    }

    /// The latest process with this pid, and what it runs.
    pub fn latest(&self, pid: u32) -> Option<Key> {
        self.by_pid.get(&pid).copied()
    }

    /// Names the process that an event was done to.
    pub fn describe_target(&self, key: Key, target: &mut TargetProcess) {
        target.exec_id = self.exec_id(key);
        target.start_time_ns = Some(key.start_time_ns as i64);
        let program = self
            .entries
            .get(&key)
            .and_then(|entry| entry.program.as_deref());
        if let Some(program) = program {
            target.exe.clone_from(&program.exe);
            target.argv.clone_from(&program.argv);
        }
    }

    /// True when the process was started at the root of its mount namespace.
    pub fn is_at_top(&self, key: Key) -> bool {
        let program = self
            .entries
            .get(&key)
            .and_then(|entry| entry.program.as_ref());
        program.is_some_and(|program| program.at_top)
    }

    /// The container found earlier for this process in this cgroup.
    pub fn container(&self, key: Key, cgroup: u64) -> Option<Option<Arc<Container>>> {
        let (found, container) = self.entries.get(&key)?.container.as_ref()?;
        (*found == cgroup).then(|| container.clone())
    }

    pub fn set_container(&mut self, key: Key, cgroup: u64, container: Option<Arc<Container>>) {
        if let Some(entry) = self.entries.get_mut(&key) {
            self.changes += 1;
            entry.change = self.changes;
            entry.container = Some((cgroup, container));
        }
    }

    fn insert(&mut self, key: Key, comm: [u8; COMM_BYTES], uid: Option<u32>) {
        let mut entry = Entry {
            exec_id: self.exec_id(key),
            program: None,
            comm,
            uid,
            rights: None,
            container: None,
            exited: false,
            change: 0, // set_program sets it
        };
        let mut program = None;
        let seed = self.seeds.remove(&key.pid);
        self.bytes -= seed.as_ref().map_or(0, Seed::bytes);
        if let Some(seed) = seed.filter(|seed| seed.started_at(key.start_time_ns)) {
            if uid.is_none() {
                entry.comm = seed.comm;
                entry.uid = seed.uid;
            }
            let texts = [seed.exe, String::new(), String::new()];
            let argv_bytes = seed.argv.len() as u64;
            program = Some(Arc::new(Program::new(
                texts,
                &seed.argv,
                argv_bytes,
                seed.at_top,
            )));
        }
        self.make_room();
        self.bytes += ENTRY_BYTES;
        self.entries.insert(key, entry);
        let youngest = self.by_pid.entry(key.pid).or_insert(key);
        if youngest.start_time_ns < key.start_time_ns {
            *youngest = key;
        }
        self.order.push_back(key);
        self.set_program(key, program);
    }

    fn set_program(&mut self, key: Key, program: Option<Arc<Program>>) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let added = program
            .as_ref()
            .filter(|program| Arc::strong_count(program) == 1);
        self.bytes += added.map_or(0, |program| program.bytes());
        self.changes += 1;
        entry.change = self.changes;
        let old = std::mem::replace(&mut entry.program, program);
        self.release(old);
    }

    /// Takes a program off the account with its last user.
    fn release(&mut self, program: Option<Arc<Program>>) {
        if let Some(program) = program.and_then(Arc::into_inner) {
            self.bytes = self.bytes.saturating_sub(program.bytes());
        }
    }

    fn make_room(&mut self) {
        while self.entries.len() >= self.limits.entries.max(2) || self.bytes > self.limits.bytes {
            let key = match self.exited.pop_front() {
                Some((key, _)) => key,
                None => match self.order.pop_front() {
                    Some(key) => key,
                    None => return,
                },
            };
            if self.remove(key) {
                self.evicted += 1;
            }
        }
        if self.order.len() > 2 * self.entries.len() + 1024 {
            let entries = &self.entries;
            self.order.retain(|key| entries.contains_key(key));
        }
    }

    fn expire(&mut self, now_ns: u64) {
        while let Some((key, since_ns)) = self.exited.front().copied()
            && since_ns.saturating_add(EXITED_KEPT_NS) < now_ns
        {
            self.exited.pop_front();
            self.remove(key);
        }
    }

    fn remove(&mut self, key: Key) -> bool {
        let Some(entry) = self.entries.remove(&key) else {
            return false;
        };
        if self.by_pid.get(&key.pid) == Some(&key) {
            self.by_pid.remove(&key.pid);
        }
        self.bytes = self.bytes.saturating_sub(ENTRY_BYTES);
        self.release(entry.program);
        true
    }
}

fn write_program(program: Option<&Program>, process: &mut Process) {
    match program {
        Some(program) => {
            process.exe.clone_from(&program.exe);
            process.exe_invoked.clone_from(&program.exe_invoked);
            process.script.clone_from(&program.script);
            process.argv.clone_from(&program.argv);
            process.argv_truncated_bytes = program.argv_truncated_bytes;
        }
        None => {
            process.exe.clear();
            process.exe_invoked.clear();
            process.script.clear();
            process.argv.clear();
            process.argv_truncated_bytes = None;
        }
    }
    // The exec told them; repeating them with every event would only cost room.
    process.exe_deleted = None;
    process.exe_memfd = None;
    process.exe_inode = None;
    process.exe_device = None;
    process.exe_mode = None;
    process.exe_owner_uid = None;
    process.exe_owner_gid = None;
    process.exe_generation = None;
    process.exe_layer.clear();
    process.exe_real_inode = None;
    process.exe_real_device = None;
}

#[cfg(test)]
mod tests;
