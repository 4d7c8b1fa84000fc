//! How is a mount table read? The host's is kept open, because the kernel then says when it has
//! changed. One of another namespace is not: an open table would keep its mounts alive.

use std::{
    fs::File,
    io::{self, BufReader, Seek as _},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{AtFlags, Mode, OFlags, open, openat, readlinkat, statat},
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

/// The table of `namespace`, by one of its processes; `None` if this is none, or none whose root is
/// that of the namespace.
pub fn of_process(pid: u32, namespace: u32, limit_bytes: usize) -> io::Result<Option<Mounts>> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let process = open(format!("/proc/{pid}"), directory, Mode::empty())?;
    let is_there = || -> io::Result<bool> {
        let found = statat(&process, "ns/mnt", AtFlags::empty())?;
        let root = readlinkat(&process, "root", Vec::new())?;
        Ok(found.st_ino == u64::from(namespace) && root.as_bytes() == b"/")
    };
    if !is_there()? {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let table = openat(process.as_fd(), "mountinfo", flags, Mode::empty())?;
    let mounts = Mounts::read(lines(&File::from(table)), limit_bytes)?;
    // It can have gone elsewhere before the table was opened.
    Ok(is_there()?.then_some(mounts))
}

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
            let found = of_process(std::process::id(), table.namespace, 1 << 20);
            let found = found.expect("own table").expect("of that namespace");
            assert_eq!(found.place(b"/proc/self"), Some(place));
        }
        let elsewhere = of_process(std::process::id(), 1, 1 << 20).expect("own table");
        assert!(elsewhere.is_none());
        assert!(of_process(5_000_000, table.namespace, 1 << 20).is_err());
        assert!(table.read(100).is_err(), "no room");
    }
}
