//! What of the kernel side outlives the agent, and where? Programs, links and maps, pinned into a
//! directory of a bpf file system, so that capture goes on while no agent runs, and the next one
//! takes over.
//!
//! ```text
//! DIRECTORY/GATE, DECIDED                          which set records; every version shares them
//! DIRECTORY/shared-LAYOUT/MAP                      what programs remember from event to event
//! DIRECTORY/set-GENERATION-LAYOUT-FINGERPRINT/     a set: maps, programs, links
//! DIRECTORY/ended-GENERATION-...                   a set that is detached and not read to its end
//! DIRECTORY/new/                                   a set that is being made
//! ```
//!
//! Invariants: one agent at a time (a lock on the directory); a set appears under its name when it is
//! complete; names have no dots, which a bpf file system refuses.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use audit_common::{config::gate, record::LAYOUT};
use aya::maps::{Array, Map, MapData};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open, statfs};

/// Programs that were under way when a map was changed have ended: they take microseconds, and are
/// not preempted.
const GRACE: Duration = Duration::from_millis(50);
const NEW: &str = "new";
/// Of a set.
const PARTS: [&str; 3] = ["maps", "programs", "links"];
const GATE: &str = "GATE";
/// Maps of every version.
const COMMON: [&str; 2] = [GATE, "DECIDED"];
/// Maps that sets of one layout share: what has begun under one set ends under the next.
const SHARED: &[&str] = &[
    "PENDING",
    "FLOWS",
    "PEERS",
    "SEEN",
    "COPIES",
    "WRITTEN",
    "CONNECTIONS",
    "URING_REQUESTS_KEPT",
    "URING_ACCEPTING",
    "IGNORED",
    // Rules and budgets, so that a generation of them means the same to every set.
    "CURRENT",
    "POLICIES",
    "KIND_RULES",
    "CALL_RULES",
    "USER_RULES",
    "CGROUP_RULES",
    "PROGRAM_RULES",
    "PATH_RULES",
    "HIDDEN_BY",
    "BUCKETS",
    "SHED",
    "SHED_REST",
];

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(
        "{} is not on a bpf file system: mount -t bpf bpf /sys/fs/bpf, and name a directory below", .0.display()
    )]
    NotBpf(PathBuf),
    #[error("{} is in use: another agent runs with it", .0.display())]
    Busy(PathBuf),
    #[error("{}: {source}", path.display())]
    Failed { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Kernel(String),
}

impl PinError {
    /// The agent can do without pins, and says so.
    pub fn is_of_host(&self) -> bool {
        matches!(self, Self::NotBpf(_) | Self::Kernel(_))
    }
}

/// The directory, held by this agent.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: OwnedFd,
}

/// A complete set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub generation: u32,
    pub layout: u32,
    pub fingerprint: String,
    pub is_ended: bool,
    pub path: PathBuf,
}

/// A set that is being made.
#[derive(Debug)]
pub struct Making {
    path: PathBuf,
    shared: PathBuf,
    common: PathBuf,
    pub generation: u32,
    fingerprint: String,
}

fn failed(path: &Path, source: io::Error) -> PinError {
    PinError::Failed {
        path: path.to_owned(),
        source,
    }
}

/// Is there a bpf file system at `path`, or where it will be made?
pub fn usable(path: &Path) -> Result<(), PinError> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let there = path.ancestors().find(|path| path.exists());
    let there = there.unwrap_or(path);
    let found = statfs(there).map_err(|e| failed(there, e.into()))?;
    // As unsigned as the kernel means it, whatever the field's type here.
    if found.f_type as u32 != BPF_FS_MAGIC as u32 {
        return Err(PinError::NotBpf(path.to_owned()));
    }
    Ok(())
}

impl Directory {
    pub fn open(path: &Path) -> Result<Self, PinError> {
        usable(path)?;
        fs::create_dir_all(path).map_err(|e| failed(path, e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = open(path, flags, Mode::empty()).map_err(|e| failed(path, e.into()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(PinError::Busy(path.to_owned())),
            Err(error) => return Err(failed(path, error.into())),
        }
        let directory = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        remove(&path.join(NEW))?;
        Ok(directory)
    }

    /// Complete sets, oldest first.
    pub fn sets(&self) -> Result<Vec<Set>, PinError> {
        let entries = fs::read_dir(&self.path).map_err(|e| self.failed(e))?;
        let mut sets: Vec<Set> = entries
            .flatten()
            .filter_map(|entry| Set::named(entry.path()))
            .collect();
        sets.sort_by_key(|set| set.generation);
        Ok(sets)
    }

    /// The set that records; `None` before there was one.
    pub fn active(&self) -> Option<u32> {
        let gate = self.gate().ok()?;
        let value = gate.get(&0, 0).ok()?;
        Some(gate::active(value)).filter(|generation| *generation > 0)
    }

    fn gate(&self) -> Result<Array<MapData, u64>, PinError> {
        let path = self.path.join(GATE);
        let gate = MapData::from_pin(&path).and_then(|data| Array::try_from(Map::Array(data)));
        gate.map_err(|error| failed(&path, io::Error::other(error)))
    }

    /// Begins a set; nothing of it is found before [`Directory::finish`].
    pub fn begin(&self, generation: u32, fingerprint: &str) -> Result<Making, PinError> {
        let making = Making {
            path: self.path.join(NEW),
            shared: self.path.join(shared(LAYOUT)),
            common: self.path.clone(),
            generation,
            fingerprint: fingerprint.to_owned(),
        };
        let parts = PARTS.map(|part| making.path.join(part));
        for directory in parts.iter().chain([&making.shared]) {
            fs::create_dir_all(directory).map_err(|e| self.failed(e))?;
        }
        Ok(making)
    }

    /// What could not be made is not left attached.
    pub fn abandon(&self, making: &Making) {
        if let Err(error) = remove(&making.path) {
            tracing::warn!(%error, "capture.pin.directory");
        }
    }

    pub fn finish(&self, making: &Making) -> Result<Set, PinError> {
        let set = Set {
            generation: making.generation,
            layout: LAYOUT,
            fingerprint: making.fingerprint.clone(),
            is_ended: false,
            path: PathBuf::new(),
        };
        let set = Set {
            path: self.path.join(set.name()),
            ..set
        };
        fs::rename(&making.path, &set.path).map_err(|e| self.failed(e))?;
        Ok(set)
    }

    /// From now on `set` records, and no other: no event twice, none by nobody.
    pub fn switch(&self, set: &Set) -> Result<(), PinError> {
        let mut gate = self.gate()?;
        let to = set.generation;
        let mut put = |value| {
            let done = gate.set(0, value, 0);
            done.map_err(|e| self.failed(io::Error::other(e.to_string())))
        };
        match self.active() {
            Some(from) if from != to => {
                // Everybody has to have seen that a switch comes before it comes, and to have seen
                // it before the agreement ends.
                put(gate::switching(from))?;
                std::thread::sleep(GRACE);
                put(gate::switching(to))?;
                std::thread::sleep(GRACE);
            }
            _ => {}
        }
        put(gate::steady(to))
    }

    /// Detaches a set; its records stay, to be read.
    pub fn end(&self, set: &mut Set) -> Result<(), PinError> {
        if !set.is_ended {
            set.is_ended = true;
            let ended = self.path.join(set.name());
            fs::rename(&set.path, &ended).map_err(|e| self.failed(e))?;
            set.path = ended;
        }
        remove(&set.path.join("links"))?;
        std::thread::sleep(GRACE);
        Ok(())
    }

    /// Removes a set, with what it holds that was not read; the last of a layout takes with it what
    /// its like share.
    pub fn forget(&self, set: &Set) -> Result<(), PinError> {
        remove(&set.path)?;
        if set.layout != LAYOUT && self.sets()?.iter().all(|other| other.layout != set.layout) {
            remove(&self.path.join(shared(set.layout)))?;
        }
        Ok(())
    }

    /// Removes everything of ours, and the directory if nothing else is in it.
    pub fn clear(&self) -> Result<(), PinError> {
        let sets = self.sets()?;
        // What attaches first, whatever else fails.
        for set in &sets {
            remove(&set.path.join("links"))?;
        }
        for set in &sets {
            remove(&set.path)?;
            remove(&set.path.with_file_name(shared(set.layout)))?;
        }
        remove(&self.path.join(shared(LAYOUT)))?;
        for name in COMMON {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.failed(error));
                }
                _ => {}
            }
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                Err(self.failed(error))
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, error: io::Error) -> PinError {
        failed(&self.path, error)
    }
}

fn remove(path: &Path) -> Result<(), PinError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, error)),
        _ => Ok(()),
    }
}

/// The directory of maps that sets of a layout share.
fn shared(layout: u32) -> String {
    format!("shared-{layout}")
}

impl Set {
    fn name(&self) -> String {
        let state = if self.is_ended { "ended" } else { "set" };
        let Self {
            generation,
            layout,
            fingerprint,
            ..
        } = self;
        format!("{state}-{generation}-{layout}-{fingerprint}")
    }

    fn named(path: PathBuf) -> Option<Self> {
        let mut parts = path.file_name()?.to_str()?.splitn(4, '-');
        let is_ended = match parts.next()? {
            "set" => false,
            "ended" => true,
            _ => return None,
        };
        let generation = parts.next()?.parse().ok()?;
        let layout = parts.next()?.parse().ok()?;
        let fingerprint = parts.next()?.to_owned();
        Some(Self {
            generation,
            layout,
            fingerprint,
            is_ended,
            path,
        })
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.path.join("maps").join(name)
    }

    /// A map that sets of its layout share.
    pub fn shared(&self, name: &str) -> PathBuf {
        self.path.with_file_name(shared(self.layout)).join(name)
    }

    /// Names and paths of the pinned programs.
    pub fn programs(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let mut found: Vec<(String, PathBuf)> = fs::read_dir(self.path.join("programs"))?
            .flatten()
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
            .collect();
        found.sort();
        Ok(found)
    }
}

impl Making {
    /// Forgets what was pinned so far: it is made otherwise.
    pub fn start_again(&self) -> Result<(), PinError> {
        for part in PARTS {
            let path = self.path.join(part);
            fs::remove_dir_all(&path).map_err(|e| failed(&path, e))?;
            fs::create_dir(&path).map_err(|e| failed(&path, e))?;
        }
        Ok(())
    }

    /// Maps that the object is to be loaded with, or to leave for the next set.
    pub fn shared(&self) -> impl Iterator<Item = (&'static str, PathBuf)> + use<'_> {
        let common = COMMON.map(|name| (name, self.common.join(name)));
        let shared = SHARED.iter().map(|name| (*name, self.shared.join(name)));
        common.into_iter().chain(shared)
    }

    /// Where a map of its own is pinned; `None` for those that are shared or have no name of ours.
    pub fn map(&self, name: &str) -> Option<PathBuf> {
        let own = !name.contains('.') && !COMMON.contains(&name) && !SHARED.contains(&name);
        own.then(|| self.path.join("maps").join(name))
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.path.join("programs").join(name)
    }

    pub fn link(&self, program: &str, place: &str) -> PathBuf {
        let name = format!("{program}-{place}").replace('.', "_");
        self.path.join("links").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_named_by_what_they_are() {
        let set = Set {
            generation: 12,
            layout: 3,
            fingerprint: "0123abcd".to_owned(),
            is_ended: false,
            path: PathBuf::from("/p/set-12-3-0123abcd"),
        };
        assert_eq!(Set::named(set.path.clone()), Some(set.clone()));
        let ended = Set {
            is_ended: true,
            ..set
        };
        assert_eq!(ended.name(), "ended-12-3-0123abcd");
        for other in ["new", "GATE", "shared-1", "set-x-1-a", "set-1-2"] {
            assert_eq!(Set::named(PathBuf::from(other)), None, "{other}");
        }
    }

    #[test]
    fn another_file_system_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let error = Directory::open(&dir.path().join("pins")).expect_err("no bpffs");
        assert!(error.is_of_host(), "{error}");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
    }
}
