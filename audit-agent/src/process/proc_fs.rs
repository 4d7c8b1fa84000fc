//! What does /proc say about processes that began before the agent?

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use audit_common::limits::COMM_BYTES;
use audit_proto::text::escape;
use rustix::fs::{Mode, OFlags, open, openat, readlinkat};

use super::KEPT_ARGV_BYTES;

/// A process as /proc shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    pub pid: u32,
    /// Clock ticks since boot, rounded down.
    pub start_ticks: u64,
    pub comm: [u8; COMM_BYTES],
    pub uid: Option<u32>,
    pub exe: String,
    /// Raw, at most what the table keeps.
    pub argv: Vec<u8>,
    /// Its root is the top of its mount namespace, or of ours.
    pub at_top: bool,
}

impl Seed {
    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        2 * size_of::<(u32, Self)>() + self.exe.len() + self.argv.len()
    }

    /// True when a process with this kernel start time shows this start in /proc. /proc rounds to
    /// ticks, so the two can be one tick apart.
    pub fn started_at(&self, start_time_ns: u64) -> bool {
        same_start(self.start_ticks, start_time_ns)
    }
}

fn same_start(ticks: u64, start_time_ns: u64) -> bool {
    (start_time_ns / tick_ns()).abs_diff(ticks) <= 1
}

fn tick_ns() -> u64 {
    1_000_000_000 / rustix::param::clock_ticks_per_second().max(1)
}

/// When a process began, in ticks since boot.
pub fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let (_, ticks) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
    Ok(ticks)
}

/// Every process that can be read; one that ends meanwhile is left out.
pub fn processes() -> io::Result<impl Iterator<Item = Seed>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        read(pid).ok()
    }))
}

fn read(pid: u32) -> io::Result<Seed> {
    let dir = open(
        format!("/proc/{pid}"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let stat = contents(dir.as_fd(), "stat", 4096)?;
    let (comm, start_ticks) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let exe = readlinkat(&dir, "exe", Vec::new());
    let exe = exe.map_or_else(|_| Vec::new(), std::ffi::CString::into_bytes);
    let exe = exe.strip_suffix(b" (deleted)").unwrap_or(&exe);
    let root = readlinkat(&dir, "root", Vec::new());
    let status = contents(dir.as_fd(), "status", 4096)?;
    Ok(Seed {
        pid,
        start_ticks,
        comm,
        uid: parse_uid(&status),
        exe: escape(exe).into_owned(),
        argv: contents(dir.as_fd(), "cmdline", KEPT_ARGV_BYTES as u64)?,
        at_top: root.is_ok_and(|root| root.as_bytes() == b"/"),
    })
}

/// True when the process behind this /proc directory started then.
pub fn started_at(dir: BorrowedFd<'_>, start_time_ns: u64) -> bool {
    contents(dir, "stat", 4096)
        .ok()
        .and_then(|stat| parse_stat(&stat))
        .is_some_and(|(_, ticks)| same_start(ticks, start_time_ns))
}

/// The text of /proc/PID/cgroup, if the process still is the one that started then.
pub fn cgroup(pid: u32, start_time_ns: u64) -> Option<Vec<u8>> {
    let dir = open(
        format!("/proc/{pid}"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let text = contents(dir.as_fd(), "cgroup", 64 << 10).ok()?;
    started_at(dir.as_fd(), start_time_ns).then_some(text)
}

fn contents(dir: BorrowedFd<'_>, name: &str, limit: u64) -> io::Result<Vec<u8>> {
    let fd: OwnedFd = openat(
        dir,
        Path::new(name),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut bytes = Vec::new();
    File::from(fd).take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// comm and start time; comm may hold anything, so fields count from its last parenthesis.
fn parse_stat(stat: &[u8]) -> Option<([u8; COMM_BYTES], u64)> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let name = stat.get(open + 1..close)?;
    let mut comm = [0; COMM_BYTES];
    let kept = name.len().min(COMM_BYTES);
    comm[..kept].copy_from_slice(&name[..kept]);
    // Field 22, and the first after comm is field 3.
    let field = stat.get(close + 2..)?.split(|byte| *byte == b' ').nth(19)?;
    Some((comm, std::str::from_utf8(field).ok()?.parse().ok()?))
}

fn parse_uid(status: &[u8]) -> Option<u32> {
    let line = status
        .split(|byte| *byte == b'\n')
        .find(|line| line.starts_with(b"Uid:"))?;
    let text = std::str::from_utf8(line).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    #[test]
    fn a_comm_with_parentheses_and_spaces_does_not_shift_fields() {
        let stat = b"12 (a) b (c) S 1 12 12 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 98765 0 0\n";
        let (comm, start) = parse_stat(stat).expect("parse");
        assert_eq!(&comm[..8], b"a) b (c\0");
        assert_eq!(start, 98_765);
        assert_eq!(parse_stat(b"12 (cut"), None);
        assert_eq!(parse_stat(b"12 (x)"), None);
    }

    #[test]
    fn this_process_is_found_with_its_start() {
        let own = processes()
            .expect("/proc")
            .into_iter()
            .find(|seed| seed.pid == std::process::id())
            .expect("own process");
        let exe = std::env::current_exe().expect("exe");
        assert_eq!(own.exe, escape(exe.as_os_str().as_bytes()));
        assert_eq!(own.uid, Some(rustix::process::getuid().as_raw()));
        assert!(!own.argv.is_empty() && own.at_top);
        let start_ns = own.start_ticks * tick_ns();
        assert!(own.started_at(start_ns + 3) && own.started_at(start_ns - 1));
        assert!(!own.started_at(start_ns + 3 * tick_ns()));
        assert!(cgroup(own.pid, start_ns).is_some());
        assert_eq!(cgroup(own.pid, start_ns + 5 * tick_ns()), None);
    }
}
