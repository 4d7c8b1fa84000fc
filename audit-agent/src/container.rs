//! In which container does a process run? Its cgroup says.
//!
//! Invariants: never a guess: a container is named only where the cgroup path names it. The kernel
//! tells the path of each cgroup that is made while the agent runs. That of an older one is found
//! through the process while it lives (and only believed when it leads to the same inode), else by
//! a scan of the cgroup file system.

pub mod path;

use std::{
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ahash::AHashMap;
use audit_proto::v1::Container;

use crate::process::{Key, proc_fs};

/// Cgroups remembered; a node has some hundreds. When full it is emptied and fills again.
const CACHED: usize = 8192;
/// Directories visited by one scan.
const SCANNED: usize = 65_536;
/// At most one scan in this time, so that short-lived cgroups cannot make the agent walk all day.
const SCAN_EVERY: Duration = Duration::from_millis(500);
/// How long a cgroup that was not found is not looked for again.
const MISSING_FOR: Duration = Duration::from_secs(2);

type Found = Option<Arc<Container>>;

/// Finds containers by cgroup id.
#[derive(Debug)]
pub struct Containers {
    /// Where cgroup v2 is mounted.
    root: Option<Mount>,
    known: AHashMap<u64, Found>,
    missing: AHashMap<u64, Instant>,
    scanned: Option<Instant>,
    unknown: u64,
}

#[derive(Debug)]
struct Mount {
    path: PathBuf,
    inode: u64,
    /// Controllers live in v1 hierarchies: a container may not have a v2 cgroup of its own.
    hybrid: bool,
}

impl Containers {
    pub fn of_host() -> Self {
        let pure = Path::new("/sys/fs/cgroup");
        let mounted = |path: &Path, hybrid| {
            path.join("cgroup.procs").exists().then_some(())?;
            Some(Mount {
                path: path.to_owned(),
                inode: fs::metadata(path).ok()?.ino(),
                hybrid,
            })
        };
        Self::new(mounted(pure, false).or_else(|| mounted(&pure.join("unified"), true)))
    }

    fn new(root: Option<Mount>) -> Self {
        Self {
            root,
            known: AHashMap::new(),
            missing: AHashMap::new(),
            scanned: None,
            unknown: 0,
        }
    }

    /// Lookups that found no path since the start.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// True where the cgroup id alone does not tell containers apart: the process must be asked.
    pub fn is_shared(&self, cgroup: u64) -> bool {
        self.root
            .as_ref()
            .is_none_or(|root| root.hybrid && root.inode == cgroup)
    }

    /// The container of a process in `cgroup`; an error means "not known now, ask again".
    pub fn find(&mut self, cgroup: u64, key: Key, now: Instant) -> Result<Found, Unknown> {
        if !self.is_shared(cgroup) {
            if let Some(found) = self.known.get(&cgroup) {
                return Ok(found.clone());
            }
            if self.missing.get(&cgroup).is_some_and(|until| now < *until) {
                return Err(Unknown);
            }
        }
        let text = proc_fs::cgroup(key.pid, key.start_time_ns);
        if self.is_shared(cgroup) {
            return text.map(|text| of_hierarchies(&text)).ok_or(Unknown);
        }
        let of_process = text
            .as_deref()
            .and_then(|text| path::unified(text))
            .filter(|path| self.inode_of(path) == Some(cgroup));
        match of_process {
            Some(path) => Ok(self.remember(cgroup, path)),
            None => self.scan(cgroup, now),
        }
    }

    /// The path of a new cgroup, as the kernel tells it.
    pub fn learn(&mut self, cgroup: u64, path: &[u8]) {
        self.missing.remove(&cgroup);
        self.remember(cgroup, path);
    }

    fn inode_of(&self, path: &[u8]) -> Option<u64> {
        let root = self.root.as_ref()?;
        let below = path.strip_prefix(b"/")?;
        let path = root.path.join(std::ffi::OsStr::from_bytes(below));
        Some(fs::metadata(path).ok()?.ino())
    }

    fn remember(&mut self, cgroup: u64, path: &[u8]) -> Found {
        if self.known.len() >= CACHED {
            self.known.clear();
        }
        let found = path::container(path).map(Arc::new);
        self.known.insert(cgroup, found.clone());
        found
    }

    /// Learns the paths of all cgroups at once.
    fn scan(&mut self, cgroup: u64, now: Instant) -> Result<Found, Unknown> {
        let due = self
            .scanned
            .is_none_or(|scanned| now >= scanned + SCAN_EVERY);
        if due && let Some(root) = &self.root {
            self.scanned = Some(now);
            for (inode, path) in walk(&root.path) {
                self.remember(inode, &path);
            }
        }
        if let Some(found) = self.known.get(&cgroup) {
            return Ok(found.clone());
        }
        self.unknown += 1;
        if self.missing.len() >= CACHED {
            self.missing.clear();
        }
        self.missing.insert(cgroup, now + MISSING_FOR);
        Err(Unknown)
    }
}

/// The cgroup's path could not be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown;

/// Of /proc/PID/cgroup: the first hierarchy that names a container, else the unified path.
fn of_hierarchies(text: &[u8]) -> Found {
    let mut other = None;
    for path in path::hierarchies(text) {
        match path::container(path) {
            Some(container) if !container.id.is_empty() => return Some(Arc::new(container)),
            container => other = other.or(container),
        }
    }
    other.map(Arc::new)
}

/// All cgroups below `root`: id, and path from there.
pub(crate) fn walk(root: &Path) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        if found.len() >= SCANNED {
            tracing::warn!(
                limit = SCANNED,
                "more cgroups than one scan visits; some processes stay without container"
            );
            break;
        }
        if let Ok(metadata) = fs::metadata(&dir)
            && let Ok(below) = dir.strip_prefix(root)
        {
            found.push((
                metadata.ino(),
                [b"/", below.as_os_str().as_bytes()].concat(),
            ));
        }
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        let dirs = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|ty| ty.is_dir()));
        pending.extend(dirs.map(|entry| entry.path()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f4cbb4f1bb8a52d1a1a6f2f8d0b7c9f3f4cbb4f1bb8a52d1a1a6f2f8d0b7c9f";

    fn tree() -> (tempfile::TempDir, Containers) {
        let dir = tempfile::tempdir().expect("tempdir");
        let metadata = fs::metadata(dir.path()).expect("metadata");
        let containers = Containers::new(Some(Mount {
            path: dir.path().to_owned(),
            inode: metadata.ino(),
            hybrid: false,
        }));
        (dir, containers)
    }

    /// Of no process: the scan alone must find it.
    const NOBODY: Key = Key {
        pid: 0,
        start_time_ns: 0,
    };

    #[test]
    fn a_scan_finds_the_cgroup_by_its_inode() {
        let (dir, mut containers) = tree();
        let path = dir.path().join("docker").join(ID);
        fs::create_dir_all(&path).expect("dirs");
        let inode = fs::metadata(&path).expect("metadata").ino();
        let found = containers
            .find(inode, NOBODY, Instant::now())
            .expect("found");
        let found = found.expect("container");
        assert_eq!((found.id.as_str(), found.runtime.as_str()), (ID, "docker"));
        assert_eq!(found.cgroup, format!("/docker/{ID}"));
    }

    #[test]
    fn a_missing_cgroup_is_looked_for_again_later() {
        let (dir, mut containers) = tree();
        let now = Instant::now();
        assert_eq!(containers.find(1, NOBODY, now), Err(Unknown));
        let path = dir.path().join("a.service");
        fs::create_dir(&path).expect("dir");
        let inode = fs::metadata(&path).expect("metadata").ino();
        assert_eq!(
            containers.find(inode, NOBODY, now),
            Err(Unknown),
            "scans are rare"
        );
        assert_eq!(containers.unknown(), 2);
        let found = containers
            .find(inode, NOBODY, now + MISSING_FOR)
            .expect("found");
        assert_eq!(found.expect("cgroup").cgroup, "/a.service");
    }

    #[test]
    fn without_own_cgroup_the_v1_hierarchies_tell() {
        let text = format!("9:name=systemd:/\n4:memory:/docker/{ID}\n0::/\n");
        let found = of_hierarchies(text.as_bytes()).expect("container");
        assert_eq!((found.id.as_str(), found.runtime.as_str()), (ID, "docker"));
        assert_eq!(of_hierarchies(b"4:memory:/\n0::/\n"), None);
    }
}
