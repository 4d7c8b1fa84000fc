//! In which container does a process run? Its cgroup says.
//!
//! Invariants: never a guess: a container is named only where the cgroup path names it. The kernel
//! tells the path of each cgroup that is made while the agent runs. That of an older one is found
//! through the process while it lives (and only believed when it leads to the same inode), else by
//! a scan of the cgroup file system. Until then events of that cgroup say "pending"; when the path is
//! found an amendment tells it, and after a minute they say "unknown".

pub mod names;
pub mod path;

use std::{
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ahash::AHashMap;
use audit_proto::v1::{Amendment, Container};

use crate::process::{Key, proc_fs};
use names::{Late, Register};

/// Cgroups remembered; a node has some hundreds. When full it is emptied and fills again.
const CACHED: usize = 4096;
/// Directories visited by one scan.
const SCANNED: usize = 65_536;
/// At most one scan in this time, so that short-lived cgroups cannot make the agent walk all day.
const SCAN_EVERY: Duration = Duration::from_millis(500);
/// How long a cgroup that was not found is not looked for again.
const MISSING_FOR: Duration = Duration::from_secs(2);
/// Cgroups whose path is not known yet; that of a new one is told by the kernel, so they are few.
const PENDING: usize = 1024;
/// How long they are looked for.
const PENDING_FOR: Duration = Duration::from_secs(60);

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
    names: Register,
    /// Since when events have left without the path.
    pending: AHashMap<u64, Instant>,
    amendments: Vec<Amended>,
    /// Grows when a container gets a name that events of its processes have left without.
    edition: u64,
}

/// What became known of events that have left.
#[derive(Debug, PartialEq)]
pub struct Amended {
    pub amendment: Amendment,
    pub container: Container,
}

#[derive(Debug)]
struct Mount {
    path: PathBuf,
    inode: u64,
    /// Controllers live in v1 hierarchies: a container may not have a v2 cgroup of its own.
    hybrid: bool,
}

impl Containers {
    /// `state_files`: as of [`names::STATE_FILES`].
    pub fn of_host(state_files: &[String]) -> Self {
        let pure = Path::new("/sys/fs/cgroup");
        let mounted = |path: &Path, hybrid| {
            path.join("cgroup.procs").exists().then_some(())?;
            Some(Mount {
                path: path.to_owned(),
                inode: fs::metadata(path).ok()?.ino(),
                hybrid,
            })
        };
        let root = mounted(pure, false).or_else(|| mounted(&pure.join("unified"), true));
        Self::new(root, state_files)
    }

    fn new(root: Option<Mount>, state_files: &[String]) -> Self {
        Self {
            root,
            known: AHashMap::new(),
            missing: AHashMap::new(),
            scanned: None,
            unknown: 0,
            names: Register::new(state_files),
            pending: AHashMap::new(),
            amendments: Vec::new(),
            edition: 0,
        }
    }

    /// While it is the same, a process's container is told as before.
    pub fn edition(&self) -> u64 {
        self.edition
    }

    /// A container has started or stopped, and learns its names from the files that are there.
    pub fn changed(&mut self, container: &mut Container) {
        if container.action == "start" {
            self.names.look(&container.id);
            self.edition += 1;
        }
        if let Some(names) = self.names.of(&container.id) {
            names.fill(container);
        }
    }

    /// The start of a container has been told by the event `event_id`.
    pub fn told(&mut self, container: &Container, event_id: &str, now: Instant) {
        if container.action == "start" && self.names.of(&container.id).is_none() {
            let nameless = Container {
                action: String::new(),
                ..container.clone()
            };
            self.names.search(&nameless, event_id, now);
        }
    }

    /// `found` with its names, if it has none and they are known by now.
    pub fn named(&mut self, cgroup: u64, found: &Container) -> Option<Arc<Container>> {
        if found.id.is_empty() {
            return None;
        }
        let names = self.names.of(&found.id)?;
        let mut container = found.clone();
        if names.fill(&mut container).is_empty() {
            return None;
        }
        let container = Arc::new(container);
        if let Some(known) = self.known.get_mut(&cgroup) {
            *known = Some(Arc::clone(&container));
        }
        Some(container)
    }

    /// For an event that leaves before the path of its cgroup is known.
    pub fn pending(&mut self, cgroup: u64, now: Instant) -> Container {
        if self.is_shared(cgroup) {
            return state("unknown", None);
        }
        if self.pending.len() >= PENDING {
            self.pending.retain(|_, since| now < *since + PENDING_FOR);
        }
        let room = self.pending.len() < PENDING;
        let since = match self.pending.get(&cgroup) {
            Some(since) => *since,
            None if room => *self.pending.entry(cgroup).or_insert(now),
            None => return state("unknown", Some(cgroup)),
        };
        let late = now >= since + PENDING_FOR;
        state(if late { "unknown" } else { "pending" }, Some(cgroup))
    }

    /// What has become known since the last time.
    pub fn amendments(&mut self, now: Instant) -> Vec<Amended> {
        let mut sought = self.pending.values();
        if sought.any(|since| now < *since + PENDING_FOR)
            && self.scanned.is_none_or(|at| now >= at + MISSING_FOR)
        {
            self.look_around(now);
        }
        let late = self.names.late(now).into_iter().map(of_names);
        self.amendments.extend(late);
        self.edition += self.amendments.len() as u64;
        std::mem::take(&mut self.amendments)
    }

    /// Containers whose names were not searched for, since the start.
    pub fn unsearched(&self) -> u64 {
        self.names.unsearched()
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
            return text.map(|text| self.meet_process(&text)).ok_or(Unknown);
        }
        let of_process = text
            .as_deref()
            .and_then(|text| path::unified(text))
            .filter(|path| self.inode_of(path) == Some(cgroup));
        match of_process {
            Some(path) => Ok(self.meet(cgroup, path)),
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
        let mut found = path::container(path);
        if let Some(container) = &mut found {
            container.cgroup_id = Some(cgroup as i64);
            if let Some(names) = self.names.of(&container.id) {
                names.fill(container);
            }
        }
        if self.pending.remove(&cgroup).is_some() {
            self.amendments.extend(found.clone().map(of_cgroup));
        }
        let found = found.map(Arc::new);
        self.known.insert(cgroup, found.clone());
        found
    }

    /// As [`Self::remember`], of a cgroup that is older than the agent: its container may have names.
    fn meet(&mut self, cgroup: u64, path: &[u8]) -> Found {
        if let Some(container) = path::container(path).filter(|of| !of.id.is_empty())
            && self.names.of(&container.id).is_none()
        {
            self.names.look(&container.id);
        }
        self.remember(cgroup, path)
    }

    /// The same, of a process whose own cgroups must be asked: it may be the first of its container that
    /// is met, before the container is told as started.
    fn meet_process(&mut self, text: &[u8]) -> Found {
        let mut container = of_hierarchies(text)?;
        if !container.id.is_empty() {
            if self.names.of(&container.id).is_none() {
                self.names.look(&container.id);
            }
            if let Some(names) = self.names.of(&container.id) {
                names.fill(&mut container);
            }
        }
        Some(Arc::new(container))
    }

    /// Learns the paths of all cgroups at once.
    fn look_around(&mut self, now: Instant) {
        self.scanned = Some(now);
        let Some(root) = &self.root else { return };
        for (inode, path) in walk(&root.path) {
            if !self.known.contains_key(&inode) {
                self.meet(inode, &path);
            }
        }
    }

    /// The container of a cgroup that is older than the agent, or whose path was not told.
    fn scan(&mut self, cgroup: u64, now: Instant) -> Result<Found, Unknown> {
        let due = self
            .scanned
            .is_none_or(|scanned| now >= scanned + SCAN_EVERY);
        if due {
            self.look_around(now);
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

fn state(state: &str, cgroup: Option<u64>) -> Container {
    Container {
        state: state.to_owned(),
        cgroup_id: cgroup.map(|cgroup| cgroup as i64),
        ..Container::default()
    }
}

fn of_names(late: Late) -> Amended {
    Amended {
        amendment: Amendment {
            subject: "container".to_owned(),
            fields: late.fields,
            source: late.source.display().to_string(),
            event_id: late.event_id,
        },
        container: late.container,
    }
}

/// Of a cgroup whose events have left without its path.
fn of_cgroup(container: Container) -> Amended {
    let Container {
        id,
        runtime,
        pod_uid,
        cgroup,
        name,
        image,
        pod_name,
        pod_namespace,
        action: _,
        cgroup_id: _,
        state: _,
    } = &container;
    let columns = [
        ("container_id", id),
        ("container_runtime", runtime),
        ("container_pod_uid", pod_uid),
        ("container_cgroup", cgroup),
        ("container_name", name),
        ("container_image", image),
        ("container_pod_name", pod_name),
        ("container_pod_namespace", pod_namespace),
    ];
    let told = columns.into_iter().filter(|(_, text)| !text.is_empty());
    Amended {
        amendment: Amendment {
            subject: "cgroup".to_owned(),
            fields: told.map(|(column, _)| column.to_owned()).collect(),
            source: "cgroup".to_owned(),
            event_id: String::new(),
        },
        container,
    }
}

/// The cgroup's path could not be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown;

/// Of /proc/PID/cgroup: the first hierarchy that names a container, else the unified path.
fn of_hierarchies(text: &[u8]) -> Option<Container> {
    let mut other = None;
    for path in path::hierarchies(text) {
        match path::container(path) {
            Some(container) if !container.id.is_empty() => return Some(container),
            container => other = other.or(container),
        }
    }
    other
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
        let mount = Mount {
            path: dir.path().to_owned(),
            inode: metadata.ino(),
            hybrid: false,
        };
        let files = [format!("{}/{{id}}.json", dir.path().display())];
        (dir, Containers::new(Some(mount), &files))
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
    fn a_cgroup_that_is_found_late_is_amended_once() {
        let (dir, mut containers) = tree();
        let now = Instant::now();
        let path = dir.path().join("docker").join(ID);
        fs::create_dir_all(&path).expect("dirs");
        let inode = fs::metadata(&path).expect("metadata").ino();
        // Gone before it could be seen.
        fs::remove_dir(&path).expect("removed");
        assert_eq!(containers.find(inode, NOBODY, now), Err(Unknown));
        let told = containers.pending(inode, now);
        assert_eq!(told.state, "pending");
        assert_eq!(told.cgroup_id, Some(inode as i64));
        let later = now + PENDING_FOR;
        assert_eq!(containers.pending(inode, later).state, "unknown");
        assert_eq!(containers.amendments(later), []);
        containers.learn(inode, format!("/docker/{ID}").as_bytes());
        let amended = containers.amendments(later);
        let [amended] = amended.as_slice() else {
            panic!("{amended:?}")
        };
        assert_eq!(amended.container.id, ID);
        assert_eq!(amended.container.cgroup_id, told.cgroup_id);
        let fields = ["container_id", "container_runtime", "container_cgroup"];
        assert_eq!(amended.amendment.fields, fields);
        assert_eq!(containers.amendments(later), []);
    }

    #[test]
    fn names_are_those_of_the_runtimes_files() {
        let (dir, mut containers) = tree();
        let now = Instant::now();
        let mut started = path::container(format!("/docker/{ID}").as_bytes()).expect("one");
        containers.learn(7, format!("/docker/{ID}").as_bytes());
        started.action = "start".to_owned();
        containers.changed(&mut started);
        assert_eq!(started.name, "");
        containers.told(&started, "event", now);
        let file = dir.path().join(format!("{ID}.json"));
        fs::write(&file, format!("{{\"ID\": \"{ID}\", \"Name\": \"/web\"}}")).expect("written");
        let late = containers.amendments(now + MISSING_FOR);
        let [late] = late.as_slice() else {
            panic!("{late:?}")
        };
        assert_eq!(
            (late.container.name.as_str(), late.container.action.as_str()),
            ("web", "")
        );
        assert_eq!(late.amendment.event_id, "event");
        let found = containers
            .find(7, NOBODY, now)
            .expect("known")
            .expect("one");
        let named = containers.named(7, &found).expect("named");
        assert_eq!(named.name, "web");
        assert_eq!(containers.named(7, &named), None);
        let stopped = &mut Container {
            action: "stop".to_owned(),
            ..started
        };
        containers.changed(stopped);
        assert_eq!(stopped.name, "web");
    }

    #[test]
    fn without_own_cgroup_the_v1_hierarchies_tell() {
        let text = format!("9:name=systemd:/\n4:memory:/docker/{ID}\n0::/\n");
        let found = of_hierarchies(text.as_bytes()).expect("container");
        assert_eq!((found.id.as_str(), found.runtime.as_str()), (ID, "docker"));
        assert_eq!(of_hierarchies(b"4:memory:/\n0::/\n"), None);
    }
}
