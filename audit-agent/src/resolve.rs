//! Where does a path given to unlink, rename or execve lead? The kernel programs tell the directory
//! that it starts from and the text; this joins them, and looks the parent directory up where a
//! symbolic link or ".." on the way could make joining wrong.
//!
//! Invariants: the final component is followed only for calls that act on what it leads to (chmod,
//! mount); unlink, rename and their like act on the name itself.
//! Paths are as the process's root sees them. A lookup happens after the call, so what it says is
//! marked "lookup"; when it cannot be made, the joined path stays and is marked "lexical".

use std::{
    borrow::Cow,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    },
};

use audit_common::{
    call::flags,
    record::{Call, Record, Section, form, section, section_flags},
};
use audit_proto::{
    text::escape,
    v1::{Event, File},
};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat, StatxAttributes, StatxFlags, fstat, open,
    openat, openat2, readlinkat, statx,
};

use crate::{calls, decode::text::walked_bytes, process::proc_fs};

/// A path joined from directory and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// "." is gone; ".." is gone where it leaves the directory that the kernel told, and kept
    /// behind a component that might be a link.
    pub path: Vec<u8>,
    /// Nothing on the way could be a link: the path is what the kernel acted on.
    pub exact: bool,
}

/// Joins `given` to `base`, the walked directory that it starts from (`None` for an absolute path,
/// or when it is not known).
pub fn join(base: Option<&[u8]>, given: &[u8]) -> Joined {
    if given.is_empty() {
        let path = base.unwrap_or_default().to_vec();
        return Joined {
            exact: path.starts_with(b"/"),
            path,
        };
    }
    let absolute = given.starts_with(b"/");
    let base = if absolute {
        b"/".as_slice()
    } else {
        base.unwrap_or_default()
    };
    let anchored = base.starts_with(b"/");
    let mut known: Vec<&[u8]> = parts(base).collect();
    let mut unsure: Vec<&[u8]> = Vec::new();
    for part in parts(given) {
        match part {
            b"." => {}
            b".." if unsure.is_empty() && anchored => {
                known.pop();
            }
            part => unsure.push(part),
        }
    }
    let mut path = Vec::with_capacity(base.len() + given.len() + 1);
    for (at, part) in known.iter().chain(&unsure).enumerate() {
        if at > 0 || anchored {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if path.is_empty() && anchored {
        path.push(b'/');
    }
    Joined {
        path,
        exact: anchored && unsure.len() <= 1,
    }
}

fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty())
}

/// Looks directories up. Holds one descriptor, the agent's root; opens at most four more a lookup.
#[derive(Debug)]
pub struct Resolver {
    /// The agent's own root, and the mount namespace in which it is the top.
    own: Option<(OwnedFd, i64)>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new()
    }
}

impl Resolver {
    pub fn new() -> Self {
        Self { own: own_root() }
    }

    /// Whether the record has paths that [`Self::finish`] may replace.
    pub fn concerns(record: &Record<'_>) -> bool {
        record
            .sections()
            .any(|section| matches!(section.header.tag, section::GIVEN | section::TARGET_GIVEN))
    }

    /// Replaces joined paths by looked up ones where joining did not settle them. `at_top` says that
    /// the process was started at the root of its mount namespace. Answers where in that namespace
    /// the process's root was, if something was looked up.
    pub fn finish(&self, record: &Record<'_>, at_top: bool, event: &mut Event) -> Option<Vec<u8>> {
        let process = event.process.as_ref()?;
        if record.section(section::OBJECT).is_some() {
            return None; // a hook saw it
        }
        let actor = Actor {
            pid: record.header.pid,
            start_time_ns: record.header.start_time_ns,
            mount_namespace: process.mount_namespace,
            at_top,
        };
        let follow = follows(record);
        let pairs = [
            (&mut event.file, section::GIVEN, section::BASE),
            (
                &mut event.target_file,
                section::TARGET_GIVEN,
                section::TARGET_BASE,
            ),
        ];
        let mut root = None;
        for (file, given, base) in pairs {
            let Some(file) = file else { continue };
            let Some(given) = record.section(given) else {
                continue;
            };
            let base = record.section(base);
            let looked_up = if follow {
                let found = self.follow(&actor, base, given, file);
                if found.is_none() {
                    file.path_source = "lexical".to_owned();
                }
                found
            } else if file.path_source == "lexical" {
                self.refine(&actor, base, given, file)
            } else {
                None
            };
            root = root.or(looked_up);
        }
        root
    }

    /// Where the whole path leads, its last component followed, and what is there. Answers the root
    /// that it was looked up from; `None` when it cannot be looked up.
    fn follow(
        &self,
        actor: &Actor,
        base: Option<Section<'_>>,
        given: Section<'_>,
        file: &mut File,
    ) -> Option<Vec<u8>> {
        if is_cut(base, given) {
            return None;
        }
        let base = base.map(|base| walked_bytes(&base));
        let whole = whole(base.as_deref(), given.bytes)?;
        let root = self.root_of(actor)?;
        let whole = from_own_root(actor, &root, &whole).unwrap_or(whole);
        let (path, stat) = object(root.fd(), root.prefix(), &whole).ok()?;
        told(file, &path, given.bytes);
        file.inode = Some(stat.st_ino as i64);
        file.device = Some(kernel_device(stat.st_dev));
        file.mode = Some(stat.st_mode.into());
        file.owner_uid = Some(stat.st_uid.into());
        file.owner_gid = Some(stat.st_gid.into());
        file.size_bytes = Some(stat.st_size);
        Some(root.prefix().to_vec())
    }

    fn refine(
        &self,
        actor: &Actor,
        base: Option<Section<'_>>,
        given: Section<'_>,
        file: &mut File,
    ) -> Option<Vec<u8>> {
        if is_cut(base, given) {
            return None;
        }
        let base = base.map(|base| walked_bytes(&base));
        let (parent, name) = split(base.as_deref(), given.bytes)?;
        let root = self.root_of(actor)?;
        let parent = from_own_root(actor, &root, &parent).unwrap_or(parent);
        let mut path = directory(root.fd(), root.prefix(), &parent).ok()?;
        if !name.is_empty() {
            if !path.ends_with(b"/") {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        told(file, &path, given.bytes);
        Some(root.prefix().to_vec())
    }

    fn root_of(&self, actor: &Actor) -> Option<Root<'_>> {
        let own = self
            .own
            .as_ref()
            .filter(|(_, namespace)| Some(*namespace) == actor.mount_namespace);
        let link = readlinkat(CWD, format!("/proc/{}/root", actor.pid), Vec::new());
        match (link, own) {
            (Ok(link), Some((fd, _))) if link.as_bytes() == b"/" => Some(Root::Own(fd.as_fd())),
            (Ok(_), _) => foreign_root(actor),
            // Gone already, as most programs that remove files are. It had our root if it shared
            // our mount namespace and was started at its top. (Had it called chroot since without
            // an exec, a lookup could follow a link of ours: that is why it says "lookup".)
            (Err(_), Some((fd, _))) if actor.at_top => Some(Root::Own(fd.as_fd())),
            (Err(_), _) => None,
        }
    }
}

/// `path` without a way by the link in /proc to the process's own root, where the kernel jumps
/// whatever the link says. (Those to its working directory and open files may lead elsewhere by now.)
fn from_own_root(actor: &Actor, root: &Root<'_>, path: &[u8]) -> Option<Vec<u8>> {
    // Elsewhere /proc may be another, with other numbers.
    let Root::Own(_) = root else { return None };
    let mut names = parts(path);
    let number = actor.pid.to_string();
    let own = [b"self".as_slice(), number.as_bytes()];
    let is_link =
        names.next()? == b"proc" && own.contains(&names.next()?) && names.next()? == b"root";
    is_link.then(|| {
        let names: Vec<&[u8]> = names.collect();
        [b"/", names.join(&b'/').as_slice()].concat()
    })
}

fn is_cut(base: Option<Section<'_>>, given: Section<'_>) -> bool {
    let cut = section_flags::TRUNCATED | section_flags::UNREACHABLE;
    given.header.flags & cut != 0 || base.is_some_and(|base| base.header.flags & cut != 0)
}

/// Writes a path that was looked up.
fn told(file: &mut File, path: &[u8], given: &[u8]) {
    file.path = escape(path).into_owned();
    file.path_source = "lookup".to_owned();
    let given = escape(given);
    file.path_given = if given == file.path {
        String::new()
    } else {
        given.into_owned()
    };
}

/// Does the call act on what a final link leads to?
fn follows(record: &Record<'_>) -> bool {
    if record.header.form != form::CALL {
        return false;
    }
    let call = record.payload::<Call>();
    let row = call.and_then(|call| calls::of_slot(call.slot));
    row.is_some_and(|(row, _)| row.shape.flags & flags::FOLLOW != 0)
}

/// The path from the process's root.
fn whole(base: Option<&[u8]>, given: &[u8]) -> Option<Vec<u8>> {
    if given.starts_with(b"/") {
        return Some(given.to_vec());
    }
    let base = base.filter(|base| base.starts_with(b"/"))?;
    Some([base, b"/", given].concat())
}

/// From stat's form of a device to the kernel's own.
fn kernel_device(device: u64) -> i64 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    i64::from(major) << 20 | i64::from(minor)
}

/// Whose view counts.
struct Actor {
    pid: u32,
    start_time_ns: u64,
    mount_namespace: Option<i64>,
    at_top: bool,
}

enum Root<'a> {
    Own(BorrowedFd<'a>),
    /// With its path as the agent sees it; empty for the top of another mount namespace.
    Foreign(OwnedFd, Vec<u8>),
}

impl Root<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => *fd,
            Self::Foreign(fd, _) => fd.as_fd(),
        }
    }

    fn prefix(&self) -> &[u8] {
        match self {
            Self::Own(_) => b"",
            Self::Foreign(_, prefix) => prefix,
        }
    }
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn own_root() -> Option<(OwnedFd, i64)> {
    let namespace = fs::metadata("/proc/self/ns/mnt").ok()?.ino();
    // In a chroot our root is not what other processes of the mount namespace mean by it.
    let about = statx(CWD, "/", AtFlags::empty(), StatxFlags::BASIC_STATS).ok()?;
    if !about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return None;
    }
    let fd = open("/", DIRECTORY, Mode::empty()).ok()?;
    Some((fd, namespace as i64))
}

/// The root of a process in a chroot or in another mount namespace.
fn foreign_root(actor: &Actor) -> Option<Root<'static>> {
    let process = open(format!("/proc/{}", actor.pid), DIRECTORY, Mode::empty()).ok()?;
    if !proc_fs::started_at(process.as_fd(), actor.start_time_ns) {
        return None;
    }
    let root = openat(&process, "root", DIRECTORY, Mode::empty()).ok()?;
    let mut prefix = path_of(root.as_fd()).ok()?;
    if prefix == b"/" {
        prefix.clear();
    }
    Some(Root::Foreign(root, prefix))
}

/// The directory in which the call acted, relative to the process's root, and the final name (empty
/// where the path ends in "." or "..").
fn split<'a>(base: Option<&[u8]>, given: &'a [u8]) -> Option<(Vec<u8>, &'a [u8])> {
    let absolute = given.starts_with(b"/");
    let end = given.iter().rposition(|byte| *byte != b'/')? + 1;
    let given = &given[..end];
    let (dir, name) = match given.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&given[..=at], &given[at + 1..]),
        None => (&given[..0], given),
    };
    let (dir, name) = if matches!(name, b"." | b"..") {
        (given, &given[..0])
    } else {
        (dir, name)
    };
    let parent = if absolute {
        dir.to_vec()
    } else {
        [base.filter(|base| base.starts_with(b"/"))?, b"/", dir].concat()
    };
    Some((parent, name))
}

/// What `path` below `root` leads to, and its real path.
fn object(root: BorrowedFd<'_>, prefix: &[u8], path: &[u8]) -> io::Result<(Vec<u8>, Stat)> {
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let object = openat2(root, path, flags, Mode::empty(), within)?;
    let stat = fstat(&object)?;
    if stat.st_nlink == 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok((below(prefix, path_of(object.as_fd())?)?, stat))
}

/// A path as seen from the root at `prefix`.
fn below(prefix: &[u8], path: Vec<u8>) -> io::Result<Vec<u8>> {
    if path == prefix {
        return Ok(b"/".to_vec());
    }
    match path.strip_prefix(prefix) {
        Some(below) if below.starts_with(b"/") => Ok(below.to_vec()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// The real path of directory `path` below `root`, links within that root followed.
fn directory(root: BorrowedFd<'_>, prefix: &[u8], path: &[u8]) -> io::Result<Vec<u8>> {
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let relative: Cow<'_, [u8]> = match parts(path).next() {
        Some(_) => Cow::Borrowed(path),
        None => Cow::Borrowed(b"."),
    };
    let dir = openat2(root, relative.as_ref(), DIRECTORY, Mode::empty(), within)?;
    if fstat(&dir)?.st_nlink == 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    below(prefix, path_of(dir.as_fd())?)
}

fn path_of(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    use std::os::fd::AsRawFd as _;
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(link.into_os_string().into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use audit_common::kind;
    use std::os::unix::fs::symlink;

    fn joined(base: &str, given: &str) -> (String, bool) {
        let joined = join(Some(base.as_bytes()), given.as_bytes());
        (String::from_utf8(joined.path).expect("utf-8"), joined.exact)
    }

    #[test]
    fn joining_keeps_what_may_be_a_link() {
        assert_eq!(joined("/a/b", "c"), ("/a/b/c".into(), true));
        assert_eq!(joined("/a/b", "./c/"), ("/a/b/c".into(), true));
        assert_eq!(joined("/a/b", "../c"), ("/a/c".into(), true));
        assert_eq!(joined("/a", "../../c"), ("/c".into(), true));
        assert_eq!(joined("/a", "c/../d"), ("/a/c/../d".into(), false));
        assert_eq!(joined("/a", "/x"), ("/x".into(), true));
        assert_eq!(joined("/a", "/x//y"), ("/x/y".into(), false));
        assert_eq!(joined("/a", ".."), ("/".into(), true));
        assert_eq!(joined("/a", ""), ("/a".into(), true));
        assert_eq!(joined("", "x"), ("x".into(), false));
        let unknown = join(None, b"../x");
        assert_eq!(
            (unknown.path.as_slice(), unknown.exact),
            (b"../x".as_slice(), false)
        );
    }

    /// The event after a lookup on behalf of this very process.
    fn finish(base: &str, given: &str) -> File {
        finish_for(std::process::id(), false, base, given)
    }

    fn finish_for(pid: u32, at_top: bool, base: &str, given: &str) -> File {
        let mut sample = sample::record(kind::UNLINK)
            .section(section::GIVEN, given.as_bytes())
            .walked(section::BASE, base);
        sample.header.pid = pid;
        let namespace = fs::metadata("/proc/self/ns/mnt").expect("ns").ino();
        sample.header.mount_namespace = namespace as u32;
        let bytes = sample.bytes();
        let mut event = sample.event();
        let record = Record::parse(&bytes).expect("parse");
        Resolver::new().finish(&record, at_top, &mut event);
        event.file.expect("file")
    }

    #[test]
    fn links_on_the_way_are_followed_and_the_last_is_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = fs::canonicalize(dir.path()).expect("canonical");
        fs::create_dir(root.join("real")).expect("dir");
        symlink("real", root.join("link")).expect("link");
        symlink("target", root.join("real/last")).expect("link");
        let root = root.to_str().expect("utf-8");

        let file = finish(root, "link/last");
        assert_eq!(file.path, format!("{root}/real/last"));
        assert_eq!(
            (file.path_source.as_str(), file.path_given.as_str()),
            ("lookup", "link/last")
        );
        let file = finish(root, &format!("{root}/real/gone"));
        assert_eq!(
            (file.path_source.as_str(), file.path_given.as_str()),
            ("lookup", "")
        );
        assert_eq!(finish(root, "link/../gone").path, format!("{root}/gone"));
        let file = finish(root, "nowhere/x");
        assert_eq!(
            (file.path, file.path_source.as_str()),
            (format!("{root}/nowhere/x"), "lexical")
        );
        assert_eq!(finish(root, "gone").path_source, "argument");
        let file = finish(root, &format!("/proc/self/root{root}/link/../gone"));
        assert_eq!(
            (file.path, file.path_source.as_str()),
            (format!("{root}/gone"), "lookup")
        );
        // Who knows where it was then.
        let file = finish(root, "/proc/self/cwd/gone");
        assert_eq!(file.path_source, "lexical");

        // No process has this pid (the kernel's limit is 2^22).
        let gone = finish_for(5_000_000, true, root, "link/last");
        assert_eq!(gone.path, format!("{root}/real/last"));
        let gone = finish_for(5_000_000, false, root, "link/last");
        assert_eq!(
            (gone.path, gone.path_source.as_str()),
            (format!("{root}/link/last"), "lexical")
        );
    }

    #[test]
    fn a_chroot_is_seen_from_inside() {
        let dir = tempfile::tempdir().expect("tempdir");
        let jail = fs::canonicalize(dir.path()).expect("canonical");
        fs::create_dir_all(jail.join("var/lib")).expect("dir");
        symlink("/var/lib", jail.join("data")).expect("link");
        let fd = open(&jail, DIRECTORY, Mode::empty()).expect("open");
        let prefix = path_of(fd.as_fd()).expect("path");
        let found = |path: &[u8]| directory(fd.as_fd(), &prefix, path).expect("lookup");
        assert_eq!(found(b"/data/"), b"/var/lib");
        assert_eq!(found(b"/"), b"/");
        assert_eq!(found(b"/../../data/.."), b"/var");
    }

    #[test]
    fn splitting_finds_the_parent() {
        let of = |given: &'static str| {
            let (parent, name) = split(Some(b"/b"), given.as_bytes()).expect("split");
            (
                String::from_utf8(parent).expect("utf-8"),
                String::from_utf8(name.to_vec()).expect("utf-8"),
            )
        };
        assert_eq!(of("x"), ("/b/".into(), "x".into()));
        assert_eq!(of("/c/x//"), ("/c/".into(), "x".into()));
        assert_eq!(of("c/.."), ("/b/c/..".into(), String::new()));
        assert_eq!(split(None, b"x"), None);
        assert_eq!(split(Some(b"/b"), b"//"), None);
    }
}
