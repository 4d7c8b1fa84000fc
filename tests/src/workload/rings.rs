//! What is done through io_uring instead of system calls: plain, by the kernel's workers, and by its
//! polling thread. The record must have it as if it had been the calls.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use io_uring::{
    IoUring, Probe,
    opcode::{
        FSetXattr, Ftruncate, LinkAt, MkDirAt, OpenAt, OpenAt2, RenameAt, SetXattr, SymlinkAt,
        UnlinkAt,
    },
    squeue::{Entry, Flags},
    types::{DestinationSlot, Fd, Fixed, OpenHow},
};

use super::{Workload, ours, quoted, ring_sockets};

const HERE: Fd = Fd(libc::AT_FDCWD);

/// A way to use a ring, and a ring of that way.
pub(super) struct Ring {
    pub way: &'static str,
    ring: IoUring,
    flags: Flags,
    probe: Probe,
    /// Completions tell the record which request they are of (Linux 6.0).
    tells_results: bool,
}

impl Ring {
    fn new(way: &'static str) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        if way == "sqpoll" {
            builder.setup_sqpoll(1000);
        }
        let ring = builder.build(32)?;
        let flags = if way == "async" {
            Flags::ASYNC
        } else {
            Flags::empty()
        };
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        Ok(Self {
            way,
            ring,
            flags,
            probe,
            tells_results: tells_results(),
        })
    }

    pub fn tells_results(&self) -> bool {
        self.tells_results
    }

    pub fn supports(&self, operation: u8) -> bool {
        self.probe.is_supported(operation)
    }

    /// Has all `entries` done at once; what each returned.
    pub fn ask(&mut self, entries: impl IntoIterator<Item = Entry>) -> Result<Vec<i32>> {
        let number = self.submit(entries)?;
        let mut results = vec![None; number];
        while results.contains(&None) {
            self.ring.submit_and_wait(1)?;
            for done in self.ring.completion() {
                if let Some(result) = results.get_mut(done.user_data() as usize) {
                    *result = Some(done.result());
                }
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// One entry.
    pub fn one(&mut self, entry: Entry) -> Result<i32> {
        Ok(self.ask([entry])?.first().copied().unwrap_or(i32::MIN))
    }

    /// All at once, for the polling thread would cut a chain; each has its position as its number.
    #[expect(unsafe_code, reason = "the entries point to memory")]
    pub fn submit(&mut self, entries: impl IntoIterator<Item = Entry>) -> Result<usize> {
        let numbered = entries.into_iter().zip(0..);
        // Flags are added to those that the entry has.
        let entries: Vec<Entry> = numbered
            .map(|(entry, number)| entry.user_data(number).flags(self.flags))
            .collect();
        while {
            let queue = self.ring.submission();
            queue.capacity() - queue.len() < entries.len()
        } {
            self.ring.submitter().squeue_wait()?;
        }
        // SAFETY: every caller keeps what its entries point to until it has the results.
        unsafe { self.ring.submission().push_multiple(&entries) }?;
        self.ring.submit()?;
        Ok(entries.len())
    }

    /// The results of the next `number` completions, of whatever.
    pub fn next(&mut self, number: usize) -> Result<Vec<i32>> {
        let mut results = Vec::new();
        while results.len() < number {
            self.ring.submit_and_wait(1)?;
            results.extend(self.ring.completion().map(|done| done.result()));
        }
        Ok(results)
    }

    /// What the record must have of a result.
    pub fn result(&self, result: &str) -> String {
        let result = if self.tells_results {
            result
        } else {
            "result_value is null"
        };
        format!("via = 'io_uring' and {result}")
    }

    pub fn well(&self) -> String {
        self.result("result_value >= 0 and result_error is null")
    }

    pub fn name(&self, action: &str) -> String {
        format!("{} ring: {action}", self.way)
    }
}

fn tells_results() -> bool {
    let release = rustix::system::uname();
    let major = release.release().to_string_lossy();
    let major = major.split('.').next().and_then(|major| major.parse().ok());
    major.is_none_or(|major: u32| major >= 6)
}

fn text(path: impl AsRef<Path>) -> Result<CString> {
    Ok(CString::new(path.as_ref().as_os_str().as_bytes())?)
}

/// The descriptor that a request returned, to be closed.
#[expect(unsafe_code, reason = "a number becomes a descriptor")]
pub(super) fn descriptor(result: i32) -> Result<OwnedFd> {
    ensure!(result >= 0, "{}", io::Error::from_raw_os_error(-result));
    // SAFETY: the kernel has made it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

pub fn io_uring(work: &mut Workload) -> Result<()> {
    let mut ways = Vec::new();
    for way in ["plain", "async", "sqpoll"] {
        match Ring::new(way) {
            Ok(ring) => ways.push(ring),
            Err(error) => eprintln!(
                "SKIPPED: io_uring, {way}: {error}; see /proc/sys/kernel/io_uring_disabled"
            ),
        }
    }
    for ring in &mut ways {
        let place = work.path(ring.way);
        fs::create_dir(&place)?;
        opens(work, ring, &place)?;
        names(work, ring, &place)?;
        removals(work, ring, &place)?;
        chains(work, ring, &place)?;
        own_files(work, ring, &place)?;
        contents(work, ring, &place)?;
        quiet(work, ring, &place)?;
        crowded(work, ring, &place)?;
        ring_sockets::sockets(work, ring)?;
    }
    let reads = format!(
        "kind = 'open' and {} and via = 'io_uring' and file_path = '/etc/shadow' \
         and file_access = 'read'",
        ours()
    );
    // Each way once by its descriptor, once in a slot.
    work.number("reads of a watched file", reads, 2 * ways.len() as i64);
    Ok(())
}

impl Workload {
    /// Exactly one event of `kind` about `path` by this process, and that of a ring.
    fn by_ring(&mut self, ring: &Ring, action: &str, kind: &str, path: &Path, more: &str) {
        let us = ours();
        let path = quoted(path);
        self.once(
            ring.name(action),
            format!("kind = '{kind}' and {us} and file_path = {path} and {more}"),
        );
    }

    fn opened_by_ring(&mut self, ring: &Ring, action: &str, path: &Path, access: &str) {
        let well = ring.well();
        // Without a result, what was asked for is known: O_CREAT may have found a file.
        let more = match ring.tells_results {
            true => format!("file_access = '{access}' and file_inode > 0 and {well}"),
            false => well,
        };
        self.by_ring(ring, action, "open", path, &more);
        self.by_ring(ring, &format!("{action}: once"), "open", path, "true");
    }
}

/// A file that was made under another name, so that the next open is the only one of its path.
fn existing(place: &Path, name: &str) -> Result<PathBuf> {
    let (made, path) = (place.join(format!("{name}-made")), place.join(name));
    fs::write(&made, "before")?;
    fs::rename(&made, &path)?;
    Ok(path)
}

fn opens(work: &mut Workload, ring: &mut Ring, place: &Path) -> Result<()> {
    let directory = File::open(place)?;
    let at = Fd(directory.as_raw_fd());
    let cut = existing(place, "cut")?;
    let read = existing(place, "read")?;
    let (made_name, cut_name, read_name) = (c"./made", text(&cut)?, text(&read)?);
    let how_name = text(place.join("../").join(ring.way).join("how"))?;
    let how = OpenHow::new()
        .flags((libc::O_CREAT | libc::O_RDWR) as u64)
        .mode(0o640);
    let create = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
    let results = ring.ask([
        OpenAt::new(at, made_name.as_ptr())
            .flags(create)
            .mode(0o600)
            .build(),
        OpenAt::new(HERE, cut_name.as_ptr())
            .flags(libc::O_WRONLY | libc::O_TRUNC)
            .build(),
        OpenAt2::new(HERE, how_name.as_ptr(), &raw const how).build(),
        OpenAt::new(HERE, read_name.as_ptr())
            .flags(libc::O_RDONLY)
            .build(),
        OpenAt::new(HERE, c"/etc/shadow".as_ptr())
            .flags(libc::O_RDONLY)
            .build(),
    ])?;
    for result in results {
        descriptor(result)?;
    }
    work.opened_by_ring(ring, "openat, create", &place.join("made"), "create");
    work.opened_by_ring(ring, "openat, truncate", &cut, "truncate");
    work.opened_by_ring(ring, "openat2, create", &place.join("how"), "create");
    if ring.tells_results {
        let unwatched = format!(
            "kind = 'open' and {} and file_path = {}",
            ours(),
            quoted(&read)
        );
        work.number(ring.name("a read that nobody watches"), unwatched, 0);
    }
    refused(work, ring, place)
}

/// An open with the credentials of nobody, which the ring was told of.
fn refused(work: &mut Workload, ring: &mut Ring, place: &Path) -> Result<()> {
    if !ring.tells_results {
        return Ok(());
    }
    let secret = existing(place, "secret")?;
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let name = text(&secret)?;
    let number = ring.ring.as_raw_fd();
    let nobody = std::thread::spawn(move || {
        super::system::thread_becomes_nobody()?;
        super::system::register_personality(number)
    });
    let nobody = nobody.join().expect("the thread")?;
    let entry = OpenAt::new(HERE, name.as_ptr())
        .flags(libc::O_RDONLY)
        .build();
    ensure!(ring.one(entry.personality(nobody))? == -libc::EACCES);
    let refused = "result_error = 'EACCES' and file_access = 'read' and process_fsuid = 65534";
    let refused = ring.result(refused);
    work.by_ring(ring, "an open as nobody", "open", &secret, &refused);
    Ok(())
}

fn names(work: &mut Workload, ring: &mut Ring, place: &Path) -> Result<()> {
    let directory = File::open(place)?;
    let at = Fd(directory.as_raw_fd());
    let old = existing(place, "old")?;
    let (old_name, soft_name) = (text(&old)?, text(place.join("soft"))?);
    if ring.supports(LinkAt::CODE) {
        let results = ring.ask([
            LinkAt::new(HERE, old_name.as_ptr(), at, c"hard".as_ptr()).build(),
            SymlinkAt::new(HERE, c"else/where".as_ptr(), soft_name.as_ptr()).build(),
            MkDirAt::new(at, c"below".as_ptr()).mode(0o750).build(),
        ])?;
        ensure!(results == [0, 0, 0], "{results:?}");
        let to = |name: &str| {
            format!(
                "target_file_path = {} and {}",
                quoted(place.join(name)),
                ring.well()
            )
        };
        work.by_ring(ring, "linkat", "link", &old, &to("hard"));
        work.once(
            ring.name("symlinkat"),
            format!(
                "kind = 'link' and {} and target_file_link_text = 'else/where' and {}",
                ours(),
                to("soft")
            ),
        );
        let made = format!("file_new_mode = {} and {}", 0o750, ring.well());
        work.by_ring(ring, "mkdirat", "mkdir_mknod", &place.join("below"), &made);
    } else {
        fs::create_dir(place.join("below"))?;
    }
    let rename = RenameAt::new(at, c"old".as_ptr(), at, c"below/../new".as_ptr());
    ensure!(ring.one(rename.build())? == 0);
    let again = RenameAt::new(at, c"new".as_ptr(), at, c"read".as_ptr()).flags(1);
    ensure!(ring.one(again.build())? == -libc::EEXIST);
    let to = |name: &str| format!("target_file_path = {}", quoted(place.join(name)));
    let well = format!(
        "{} and syscall_name = 'renameat2' and {}",
        to("new"),
        ring.well()
    );
    work.by_ring(ring, "renameat", "rename", &old, &well);
    let refused = ring.result("result_error = 'EEXIST' and syscall_flags = 1");
    let refused = format!("{} and {refused}", to("read"));
    work.by_ring(
        ring,
        "a rename that fails",
        "rename",
        &place.join("new"),
        &refused,
    );
    Ok(())
}

fn removals(work: &mut Workload, ring: &mut Ring, place: &Path) -> Result<()> {
    let directory = File::open(place)?;
    let at = Fd(directory.as_raw_fd());
    let gone = existing(place, "gone")?;
    fs::create_dir(place.join("empty"))?;
    let name = text(&gone)?;
    let results = ring.ask([
        UnlinkAt::new(HERE, name.as_ptr()).build(),
        UnlinkAt::new(at, c"empty".as_ptr())
            .flags(libc::AT_REMOVEDIR)
            .build(),
        UnlinkAt::new(at, c"never".as_ptr()).build(),
    ])?;
    ensure!(results == [0, 0, -libc::ENOENT], "{results:?}");
    let well = ring.well();
    work.by_ring(ring, "unlinkat", "unlink", &gone, &well);
    let removed = format!("syscall_flags = 512 and {well}");
    work.by_ring(
        ring,
        "a directory",
        "unlink",
        &place.join("empty"),
        &removed,
    );
    let failed = ring.result("result_error = 'ENOENT'");
    work.by_ring(
        ring,
        "an unlink that fails",
        "unlink",
        &place.join("never"),
        &failed,
    );
    Ok(())
}

/// Requests that wait for each other; and one that is never done, because the one before failed.
fn chains(work: &mut Workload, ring: &mut Ring, place: &Path) -> Result<()> {
    let directory = File::open(place)?;
    let at = Fd(directory.as_raw_fd());
    let linked = |entry: Entry| entry.flags(Flags::IO_LINK);
    let old = existing(place, "chained")?;
    let results = ring.ask([
        linked(RenameAt::new(at, c"chained".as_ptr(), at, c"link-1".as_ptr()).build()),
        linked(RenameAt::new(at, c"link-1".as_ptr(), at, c"link-2".as_ptr()).build()),
        UnlinkAt::new(at, c"link-2".as_ptr()).build(),
        linked(OpenAt::new(at, c"no-such-file".as_ptr()).build()),
        UnlinkAt::new(at, c"read".as_ptr()).build(),
    ])?;
    ensure!(
        results == [0, 0, 0, -libc::ENOENT, -libc::ECANCELED],
        "{results:?}"
    );
    let well = ring.well();
    work.by_ring(ring, "the first of a chain", "rename", &old, &well);
    work.by_ring(ring, "the second", "rename", &place.join("link-1"), &well);
    work.by_ring(ring, "the last", "unlink", &place.join("link-2"), &well);
    let cancelled = ring.result("result_error = 'ECANCELED'");
    work.by_ring(ring, "not done", "unlink", &place.join("read"), &cancelled);
    ensure!(place.join("read").exists());
    Ok(())
}

/// Files that have no descriptor, but a slot of the ring.
fn own_files(work: &mut Workload, ring: &mut Ring, place: &Path) -> Result<()> {
    ring.ring.submitter().register_files(&[-1; 4])?;
    let slot = |at: u32| {
        let slot = DestinationSlot::try_from_slot_target(at);
        slot.map_err(|at| anyhow::anyhow!("no slot {at}"))
    };
    let name = text(place.join("slot"))?;
    let create = libc::O_CREAT | libc::O_WRONLY;
    let results = ring.ask([
        OpenAt::new(HERE, name.as_ptr())
            .flags(create)
            .mode(0o600)
            .file_index(Some(slot(1)?))
            .build(),
        OpenAt::new(HERE, c"/etc/shadow".as_ptr())
            .flags(libc::O_RDONLY)
            .file_index(Some(slot(2)?))
            .build(),
    ])?;
    ensure!(results == [0, 0], "{results:?}");
    work.opened_by_ring(ring, "an open into a slot", &place.join("slot"), "create");
    if ring.supports(Ftruncate::CODE) {
        ensure!(ring.one(Ftruncate::new(Fixed(1), 7).build())? == 0);
        let size = format!("file_new_size_bytes = 7 and {}", ring.well());
        work.by_ring(
            ring,
            "ftruncate of a slot",
            "truncate",
            &place.join("slot"),
            &size,
        );
    }
    ring.ring.submitter().unregister_files()?;
    Ok(())
}

fn contents(work: &mut Workload, ring: &mut Ring, place: &Path) -> Result<()> {
    let path = existing(place, "contents")?;
    let file = File::options().write(true).open(&path)?;
    let at = Fd(file.as_raw_fd());
    if ring.supports(Ftruncate::CODE) {
        ensure!(ring.one(Ftruncate::new(at, 3).build())? == 0);
        let size = format!("file_new_size_bytes = 3 and {}", ring.well());
        work.by_ring(ring, "ftruncate", "truncate", &path, &size);
    }
    if ring.supports(SetXattr::CODE) {
        let (attribute, name) = (c"trusted.hostaudit", text(&path)?);
        let value = b"1".as_ptr().cast();
        let results = ring.ask([
            SetXattr::new(attribute.as_ptr(), value, name.as_ptr(), 1).build(),
            FSetXattr::new(at, attribute.as_ptr(), value, 1).build(),
        ])?;
        ensure!(results == [0, 0], "{results:?}");
        for call in ["setxattr", "fsetxattr"] {
            let more = format!(
                "syscall_name = '{call}' and file_attribute = 'trusted.hostaudit' and {}",
                ring.well()
            );
            work.by_ring(ring, call, "xattr", &path, &more);
        }
    }
    Ok(())
}

/// A request that wants to hear of its failure only.
fn quiet(work: &mut Workload, ring: &mut Ring, place: &Path) -> Result<()> {
    if !ring.tells_results {
        return Ok(()); // such kernels have it not
    }
    let path = existing(place, "quiet")?;
    let name = text(&path)?;
    let entry = UnlinkAt::new(HERE, name.as_ptr()).build();
    let hard = entry.flags(Flags::SKIP_SUCCESS | Flags::IO_LINK);
    // What is linked to it comes after it, and answers.
    let after = text(place.join("after-quiet"))?;
    ring.submit([hard, MkDirAt::new(HERE, after.as_ptr()).mode(0o700).build()])?;
    ensure!(ring.next(1)? == [0]);
    ensure!(!path.exists());
    let unknown = "via = 'io_uring' and result_value is null";
    work.by_ring(
        ring,
        "an unlink that says nothing",
        "unlink",
        &path,
        unknown,
    );
    let well = ring.well();
    work.by_ring(
        ring,
        "what comes after",
        "mkdir_mknod",
        &place.join("after-quiet"),
        &well,
    );
    Ok(())
}

/// More results than the queue has room for: 32 entries, so 64 results.
fn crowded(work: &mut Workload, ring: &mut Ring, place: &Path) -> Result<()> {
    const ROUNDS: usize = 3;
    const EACH: usize = 30;
    if !ring.tells_results {
        return Ok(());
    }
    let crowd = place.join("crowd");
    fs::create_dir(&crowd)?;
    let paths = (0..ROUNDS * EACH).map(|n| text(crowd.join(n.to_string())));
    let paths = paths.collect::<Result<Vec<_>>>()?;
    for round in paths.chunks(EACH) {
        let made = |name: &CString| MkDirAt::new(HERE, name.as_ptr()).mode(0o700).build();
        ring.submit(round.iter().map(made))?;
    }
    let results = ring.next(ROUNDS * EACH)?;
    ensure!(results.iter().all(|result| *result == 0), "{results:?}");
    let of = format!(
        "from events where kind = 'mkdir_mknod' and {} and starts_with(file_path, {})",
        ours(),
        quoted(crowd.join(""))
    );
    let number = (ROUNDS * EACH) as i64;
    work.answer(
        ring.name("more than there is room for"),
        format!("select count(*) {of}"),
        number,
    );
    let well = ring.well();
    work.answer(
        ring.name("each once, with its result"),
        format!("select count(distinct file_path) {of} and {well}"),
        number,
    );
    Ok(())
}
