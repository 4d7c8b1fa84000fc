//! Files by every kind of name, and opens of every kind.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    os::{
        fd::AsFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{MetadataExt as _, symlink},
        },
    },
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags};

use super::{Workload, ours, quoted, system};

impl Workload {
    /// Exactly one open of `path` by this process, of that kind.
    pub(super) fn opened(&mut self, action: &str, path: &Path, access: &str) {
        let (us, path) = (ours(), quoted(path));
        self.once(
            action,
            format!("kind = 'open' and {us} and file_path = {path} and file_access = '{access}'"),
        );
        self.once(
            format!("{action}: and no other open of it"),
            format!("kind = 'open' and {us} and file_path = {path}"),
        );
    }

    fn renamed(&mut self, action: &str, from: &Path, to: &Path, result: &str) {
        self.once(
            action,
            format!(
                "kind = 'rename' and {} and file_path = {} and target_file_path = {} and {result}",
                ours(),
                quoted(from),
                quoted(to)
            ),
        );
    }

    fn unlinked(&mut self, action: &str, path: &Path, result: &str) {
        self.once(
            action,
            format!(
                "kind = 'unlink' and {} and file_path = {} and {result}",
                ours(),
                quoted(path)
            ),
        );
    }
}

const WELL: &str = "result_error is null";

/// Names that lead there by detours.
pub fn paths(work: &mut Workload) -> Result<()> {
    let inner = work.path("a/b");
    fs::create_dir_all(&inner)?;
    symlink(&inner, work.path("link"))?;
    symlink("b/through-a-link", work.path("a/soft"))?;

    fs::write(work.path("link/../b/dots"), "x")?;
    work.opened("symlink and ..", &inner.join("dots"), "create");
    fs::write(work.path("a/soft"), "x")?;
    work.opened(
        "a link that is the file",
        &inner.join("through-a-link"),
        "create",
    );
    let odd = OsStr::from_bytes(b"new\nline \xff\\ 'quote'");
    fs::write(inner.join(odd), "x")?;
    work.opened(
        "a name with newline and other bytes",
        &inner.join(odd),
        "create",
    );
    let directory = File::open(&inner)?;
    let at =
        |name: &str, flags| rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o600));
    at("./../b//of-a-descriptor", OFlags::CREATE | OFlags::WRONLY)?;
    work.opened(
        "openat of a directory",
        &inner.join("of-a-descriptor"),
        "create",
    );

    renames(work, &inner, directory.as_fd())?;
    removals(work, &inner, directory.as_fd())?;
    deep(work)
}

fn renames(
    work: &mut Workload,
    inner: &Path,
    directory: std::os::fd::BorrowedFd<'_>,
) -> Result<()> {
    let here = |name: &str| work.directory.join(name);
    let (across, back) = (here("across"), inner.join("back"));
    let (one, other) = (here("one"), here("other"));
    fs::rename(here("link/dots"), &across)?;
    rustix::fs::renameat(CWD, &across, directory, "back")?;
    fs::write(&one, "1")?;
    fs::write(&other, "2")?;
    rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE)?;
    ensure!(rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::NOREPLACE).is_err());
    fs::rename(&one, &other)?;
    ensure!(fs::rename(here("absent"), here("nowhere/x")).is_err());

    work.renamed(
        "across directories, through a link",
        &inner.join("dots"),
        &across,
        WELL,
    );
    work.renamed("renameat to a descriptor's directory", &across, &back, WELL);
    // One failed with NOREPLACE; exchange and replace did not.
    let refused = "result_error = 'EEXIST' and syscall_flags = 1";
    work.renamed("no replace", &one, &other, refused);
    let exchanged = "result_error is null and syscall_flags = 2";
    work.renamed("exchange", &one, &other, exchanged);
    let well = format!(
        "kind = 'rename' and {} and file_path = {} and target_file_path = {} and {WELL}",
        ours(),
        quoted(&one),
        quoted(&other)
    );
    work.number("exchange, then replace", well, 2);
    work.renamed(
        "a rename that fails",
        &work.path("absent"),
        &work.path("nowhere/x"),
        "result_error = 'ENOENT'",
    );
    Ok(())
}

fn removals(
    work: &mut Workload,
    inner: &Path,
    directory: std::os::fd::BorrowedFd<'_>,
) -> Result<()> {
    fs::remove_file(work.path("link/back"))?;
    work.unlinked("unlink through a link", &inner.join("back"), WELL);
    rustix::fs::unlinkat(directory, "of-a-descriptor", AtFlags::empty())?;
    work.unlinked("unlinkat", &inner.join("of-a-descriptor"), WELL);
    fs::remove_file(work.path("a/soft"))?;
    work.unlinked(
        "unlink of a link, not of its target",
        &work.path("a/soft"),
        WELL,
    );
    let empty = inner.join("empty");
    fs::create_dir(&empty)?;
    fs::remove_dir(&empty)?;
    fs::create_dir(&empty)?;
    rustix::fs::unlinkat(directory, "empty", AtFlags::REMOVEDIR)?;
    work.number(
        "rmdir, then unlinkat with AT_REMOVEDIR",
        format!(
            "kind = 'unlink' and {} and file_path = {} and syscall_flags = 512 and {WELL}",
            ours(),
            quoted(&empty)
        ),
        2,
    );
    ensure!(fs::remove_file(inner.join("never")).is_err());
    work.unlinked(
        "an unlink that fails",
        &inner.join("never"),
        "result_error = 'ENOENT'",
    );
    ensure!(fs::remove_dir(inner).is_err());
    work.unlinked("a rmdir that fails", inner, "result_error = 'ENOTEMPTY'");
    Ok(())
}

/// A hundred directories down, by names relative to a working directory.
fn deep(work: &mut Workload) -> Result<()> {
    let start = std::env::current_dir()?;
    let mut place = work.path("deep");
    fs::create_dir(&place)?;
    std::env::set_current_dir(&place)?;
    let component = "component-of-the-path-0123456789";
    for _ in 0..100 {
        fs::create_dir(component)?;
        std::env::set_current_dir(component)?;
        place.push(component);
    }
    fs::write("made", "x")?;
    fs::rename("made", "../moved")?;
    fs::remove_file("../moved")?;
    std::env::set_current_dir(start)?;
    let moved = place.with_file_name("moved");
    let made = place.join("made");
    ensure!(made.as_os_str().len() > 3000);
    work.opened("100 directories deep", &made, "create");
    work.renamed("a rename there", &made, &moved, WELL);
    work.unlinked("an unlink there", &moved, WELL);
    Ok(())
}

/// Every way to open for writing, and the reads that are left out.
pub fn opens(work: &mut Workload) -> Result<()> {
    old_files(work)?;
    new_files(work)?;
    File::open("/etc/shadow")?;
    work.opened("a read of a watched file", Path::new("/etc/shadow"), "read");
    let (only_read, by_path) = (existing(work, "read")?, existing(work, "path")?);
    File::open(&only_read)?;
    rustix::fs::open(&by_path, OFlags::PATH, Mode::empty())?;
    for (what, path) in [("a read of another", only_read), ("O_PATH", by_path)] {
        let us = ours();
        let condition = format!("kind = 'open' and {us} and file_path = {}", quoted(path));
        work.number(what, condition, 0);
    }
    opened_otherwise(work)
}

/// A message queue is a file that no open call opens; the next open is not of it.
fn opened_otherwise(work: &mut Workload) -> Result<()> {
    let name = format!("hostaudit-queue-{}", std::process::id());
    // Not every kernel has them (CONFIG_POSIX_MQUEUE).
    let Ok(queue) = system::message_queue(&name) else {
        return Ok(());
    };
    let only_read = existing(work, "read-after-queue")?;
    File::open(&only_read)?;
    drop(queue);
    let of_queue = format!("kind = 'open' and {} and file_path like '%{name}%'", ours());
    work.number("a read after a message queue was made", of_queue, 0);
    Ok(())
}

/// A file that was made under another name, so that the next open is the only one of its path.
fn existing(work: &Workload, name: &str) -> Result<PathBuf> {
    let (made, path) = (work.path(name), work.path(format!("{name}-file")));
    fs::write(&made, "before")?;
    fs::rename(&made, &path)?;
    Ok(path)
}

fn old_files(work: &mut Workload) -> Result<()> {
    let write = existing(work, "write")?;
    let both = existing(work, "both")?;
    let append = existing(work, "append")?;
    let cut = existing(work, "cut")?;
    let again = existing(work, "again")?;
    let options = OpenOptions::new;
    let file = options().write(true).open(&write)?;
    let inode = file.metadata()?.ino();
    options().read(true).write(true).open(&both)?;
    options().append(true).open(&append)?;
    options().write(true).truncate(true).open(&cut)?;
    fs::write(&again, "after")?;
    work.opened("write", &write, "write");
    work.once(
        "the inode behind it",
        format!(
            "kind = 'open' and file_path = {} and file_inode = {inode}",
            quoted(&write)
        ),
    );
    work.opened("read and write", &both, "write");
    work.opened("append", &append, "write");
    work.opened("truncate", &cut, "truncate");
    work.opened("create of a file that is there", &again, "truncate");
    Ok(())
}

fn new_files(work: &mut Workload) -> Result<()> {
    let exclusive = work.path("exclusive");
    let creat = work.path("creat");
    let open_how = work.path("open-how");
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).open(&exclusive)?;
    system::creat(&creat)?;
    rustix::fs::openat2(
        CWD,
        &open_how,
        OFlags::CREATE | OFlags::RDWR,
        Mode::from_raw_mode(0o640),
        ResolveFlags::NO_MAGICLINKS,
    )?;
    work.opened("create with O_EXCL", &exclusive, "create");
    work.opened("creat(2)", &creat, "create");
    work.opened("openat2", &open_how, "create");
    work.once(
        "openat2's flags and mode",
        format!(
            "kind = 'open' and file_path = {} and file_mode = {} \
             and file_open_flags % 4 = 2 and file_owner_uid = 0",
            quoted(&open_how),
            0o100_640
        ),
    );
    Ok(())
}
