//! How is a mount table read? The host's is kept open, because the kernel then says when it has
//! changed. One of another namespace is not: an open table would keep its mounts alive.

use std::{
    fs::File,
    io::{self, BufReader, Seek as _},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{AtFlags, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2, readlinkat, statat},
};

use super::mounts::Mounts;

/// A line is some 200 bytes.
const BUFFER_BYTES: usize = 16 << 10;

/// The mount table of the first process, which is the host's as far as the agent can see.
#[derive(Debug)]
pub struct HostTable {
    file: File,
    /// Inode, as in /proc/PID/ns/mnt.
    pub namespace: u32,
}

impl HostTable {
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            file: File::open("/proc/1/mountinfo")?,
            namespace: namespace_of_first()?,
        })
    }

    /// Whether it has changed since this was asked the last time.
    pub fn has_changed(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.file, PollFlags::PRI)];
        poll(&mut polled, Some(&Timespec::default()))?;
        let [polled] = polled;
        let changed = PollFlags::PRI | PollFlags::ERR;
        Ok(polled.revents().intersects(changed))
    }

    pub fn read(&mut self, limit_bytes: usize) -> io::Result<Mounts> {
        self.file.rewind()?;
        Mounts::read(lines(&self.file), limit_bytes)
    }
}

fn lines(file: &File) -> BufReader<&File> {
    BufReader::with_capacity(BUFFER_BYTES, file)
}

fn namespace_of_first() -> io::Result<u32> {
    let inode = |process: &str| {
        let metadata = std::fs::metadata(Path::new("/proc").join(process).join("ns/mnt"))?;
        u32::try_from(metadata.ino()).map_err(io::Error::other)
    };
    inode("1").or_else(|error| {
        // Not everybody may look. The kernel gives a mount's number to no other that is there.
        let first = |process: &str| {
            let path = Path::new("/proc").join(process).join("mountinfo");
            let text = std::fs::read_to_string(path).ok()?;
            Some(text.split_ascii_whitespace().next()?.to_owned())
        };
        match (first("1"), first("self")) {
            (Some(of_first), Some(own)) if of_first == own => inode("self"),
            _ => Err(error),
        }
    })
}

/// A process by which a mount namespace can be seen: it is in it, and its root is the namespace's.
pub struct Witness {
    process: OwnedFd,
    namespace: u32,
}

impl Witness {
    /// The first of these processes (or threads) that is one.
    pub fn of(namespace: u32, pids: impl IntoIterator<Item = u32>) -> Option<Self> {
        pids.into_iter().find_map(|pid| {
            let process = open(format!("/proc/{pid}"), DIRECTORY, Mode::empty()).ok()?;
            let witness = Self { process, namespace };
            witness.is_one().unwrap_or(false).then_some(witness)
        })
    }

    fn is_one(&self) -> io::Result<bool> {
        let found = statat(&self.process, "ns/mnt", AtFlags::empty())?;
        let root = readlinkat(&self.process, "root", Vec::new())?;
        Ok(found.st_ino == u64::from(self.namespace) && root.as_bytes() == b"/")
    }

    /// The mount table of its namespace.
    pub fn table(&self, limit_bytes: usize) -> io::Result<Mounts> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let table = openat(&self.process, "mountinfo", flags, Mode::empty())?;
        let mounts = Mounts::read(lines(&File::from(table)), limit_bytes)?;
        // It can have gone elsewhere before the table was opened.
        match self.is_one()? {
            true => Ok(mounts),
            false => Err(io::Error::other("the process has left the namespace")),
        }
    }

    /// Whether `path` leads to the file with this inode; or, where that is not known, whether its
    /// directory is there.
    pub fn sees(&self, path: &[u8], inode: Option<i64>) -> io::Result<bool> {
        let root = openat(&self.process, "root", DIRECTORY, Mode::empty())?;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let look = |path: &[u8], flags: OFlags| {
            let found = openat2(
                &root,
                path,
                OFlags::PATH | OFlags::CLOEXEC | flags,
                Mode::empty(),
                within,
            )?;
            fstat(found)
        };
        match inode {
            Some(inode) => Ok(look(path, OFlags::NOFOLLOW)?.st_ino == inode as u64),
            None => {
                let slash = path.iter().rposition(|byte| *byte == b'/');
                let directory = &path[..slash.map_or(0, |at| at + 1)];
                look(directory, OFlags::DIRECTORY)?;
                Ok(true)
            }
        }
    }
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_table_leads_where_the_host_goes() {
        let mut table = HostTable::open().expect("/proc");
        assert!(!table.has_changed().expect("poll"));
        let mounts = table.read(1 << 20).expect("read");
        // Whatever is mounted here, this is on some file system of the host's, unless the test
        // runs in a namespace of its own.
        let own = std::fs::metadata("/proc/self/ns/mnt").expect("own").ino();
        if own == u64::from(table.namespace) {
            let place = mounts.place(b"/proc/self").expect("a place");
            assert_eq!(mounts.find(&place).as_deref(), Some(&b"/proc/self"[..]));
            let witness = Witness::of(table.namespace, [5_000_000, std::process::id()]);
            let witness = witness.expect("this process");
            let found = witness.table(1 << 20).expect("own table");
            assert_eq!(found.place(b"/proc/self"), Some(place));
            let inode = std::fs::metadata("/proc").expect("/proc").ino() as i64;
            assert!(witness.sees(b"/proc", Some(inode)).expect("/proc"));
            assert!(!witness.sees(b"/proc", Some(inode + 1)).expect("/proc"));
            assert!(witness.sees(b"/proc/never", None).expect("/proc"));
            assert!(witness.sees(b"/proc/never/there", None).is_err());
        }
        assert!(Witness::of(1, [std::process::id()]).is_none());
        assert!(Witness::of(table.namespace, [5_000_000]).is_none());
        assert!(table.read(100).is_err(), "no room");
    }
}
