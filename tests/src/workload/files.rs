//! What is done to files besides opening them: names, modes, owners, sizes, attributes.

use std::{
    fs::{self, File},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    },
    path::Path,
};

use anyhow::{Result, ensure};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, XattrFlags};

use super::{Workload, ours, quoted};

const WELL: &str = "result_error is null";

impl Workload {
    /// Exactly one event of `kind` about `path` by this process.
    pub(super) fn about(&mut self, action: &str, kind: &str, path: &Path, more: &str) {
        self.once(
            action,
            format!(
                "kind = '{kind}' and {} and file_path = {} and {more}",
                ours(),
                quoted(path)
            ),
        );
    }
}

pub fn files(work: &mut Workload) -> Result<()> {
    names(work)?;
    made(work)?;
    modes(work)?;
    owners(work)?;
    sizes(work)?;
    attributes(work)?;
    denied(work)
}

fn names(work: &mut Workload) -> Result<()> {
    let (file, hard, soft) = (work.path("named"), work.path("hard"), work.path("soft"));
    fs::write(&file, "x")?;
    fs::hard_link(&file, &hard)?;
    symlink("named", &soft)?;
    rustix::fs::symlinkat("else/where", CWD, work.path("soft-at"))?;
    let directory = File::open(&work.directory)?;
    rustix::fs::linkat(
        &directory,
        "named",
        CWD,
        work.path("hard-at"),
        AtFlags::empty(),
    )?;
    ensure!(fs::hard_link(&file, &hard).is_err());
    let to = |path: &Path, more: &str| format!("target_file_path = {} and {more}", quoted(path));
    work.about("hard link", "link", &file, &to(&hard, WELL));
    work.about("linkat", "link", &file, &to(&work.path("hard-at"), WELL));
    work.about(
        "hard link that fails",
        "link",
        &file,
        &to(&hard, "result_error = 'EEXIST'"),
    );
    let us = ours();
    for (path, text) in [(soft, "named"), (work.path("soft-at"), "else/where")] {
        work.once(
            format!("symbolic link to {text}"),
            format!(
                "kind = 'link' and {us} and target_file_path = {} \
                 and target_file_link_text = '{text}' and file_path is null and {WELL}",
                quoted(path)
            ),
        );
    }
    Ok(())
}

fn made(work: &mut Workload) -> Result<()> {
    let (directory, pipe, device) = (work.path("made"), work.path("pipe"), work.path("device"));
    rustix::fs::mkdir(&directory, Mode::from_raw_mode(0o750))?;
    rustix::fs::mkdirat(CWD, directory.join("below"), Mode::from_raw_mode(0o700))?;
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, mode, 0)?;
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(CWD, &device, FileType::CharacterDevice, mode, null)?;
    let kind = "mkdir_mknod";
    work.about(
        "mkdir",
        kind,
        &directory,
        &format!("file_new_mode = {} and {WELL}", 0o750),
    );
    let below = directory.join("below");
    work.about(
        "mkdirat",
        kind,
        &below,
        &format!("file_new_mode = {} and {WELL}", 0o700),
    );
    work.about(
        "mkfifo",
        kind,
        &pipe,
        &format!("file_new_mode = {}", 0o010_600),
    );
    work.about(
        "mknod of a device",
        kind,
        &device,
        &format!(
            "file_new_mode = {} and file_new_device = {}",
            0o020_600,
            1 << 20 | 3
        ),
    );
    Ok(())
}

fn modes(work: &mut Workload) -> Result<()> {
    let (file, link) = (work.path("mode"), work.path("mode-link"));
    let by_descriptor = work.path("mode-of-a-descriptor");
    fs::write(&file, "x")?;
    fs::write(&by_descriptor, "x")?;
    symlink("mode", &link)?;
    let inode = fs::metadata(&file)?.ino();
    fs::set_permissions(&link, fs::Permissions::from_mode(0o4755))?;
    rustix::fs::fchmod(File::open(&by_descriptor)?, Mode::from_raw_mode(0o640))?;
    work.about(
        "chmod through a link, setuid",
        "mode",
        &file,
        &format!(
            "file_new_mode = {} and file_inode = {inode} and {WELL}",
            0o4755
        ),
    );
    work.about(
        "fchmod",
        "mode",
        &by_descriptor,
        &format!(
            "file_new_mode = {} and file_path_source = 'kernel' and {WELL}",
            0o640
        ),
    );
    Ok(())
}

fn owners(work: &mut Workload) -> Result<()> {
    let (file, link) = (work.path("owner"), work.path("owner-link"));
    fs::write(&file, "x")?;
    symlink("owner", &link)?;
    std::os::unix::fs::chown(&link, Some(1), Some(2))?;
    std::os::unix::fs::lchown(&link, Some(3), None)?;
    rustix::fs::fchown(
        File::open(&file)?,
        Some(Uid::from_raw(4)),
        Some(Gid::from_raw(5)),
    )?;
    let owner = |uid: i64, gid: i64| {
        format!("file_new_owner_uid = {uid} and file_new_owner_gid = {gid} and {WELL}")
    };
    work.about("chown through a link", "owner", &file, &owner(1, 2));
    work.about("lchown of the link", "owner", &link, &owner(3, -1));
    work.about("fchown", "owner", &file, &owner(4, 5));
    Ok(())
}

fn sizes(work: &mut Workload) -> Result<()> {
    let file = work.path("size");
    fs::write(&file, "0123456789")?;
    File::options().write(true).open(&file)?.set_len(4)?;
    super::system::truncate(&file, 7)?;
    let size = |size: u64| format!("file_new_size_bytes = {size} and {WELL}");
    work.about("ftruncate", "truncate", &file, &size(4));
    work.about("truncate", "truncate", &file, &size(7));
    Ok(())
}

fn attributes(work: &mut Workload) -> Result<()> {
    let file = work.path("attribute");
    fs::write(&file, "x")?;
    // trusted.*: every file system that a test may run on has it; root may write it.
    let name = "trusted.hostaudit";
    rustix::fs::setxattr(&file, name, b"1", XattrFlags::empty())?;
    let open = File::open(&file)?;
    rustix::fs::fsetxattr(open.as_fd(), name, b"2", XattrFlags::REPLACE)?;
    rustix::fs::removexattr(&file, name)?;
    let of =
        |call: &str| format!("syscall_name = '{call}' and file_attribute = '{name}' and {WELL}");
    work.about("setxattr", "xattr", &file, &of("setxattr"));
    work.about("fsetxattr", "xattr", &file, &of("fsetxattr"));
    work.about("removexattr", "xattr", &file, &of("removexattr"));
    Ok(())
}

/// An open that is not permitted, by a thread that is nobody.
fn denied(work: &mut Workload) -> Result<()> {
    let secret = work.path("secret");
    fs::write(&secret, "x")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let path = secret.clone();
    let refused = std::thread::spawn(move || {
        super::system::thread_becomes_nobody()?;
        anyhow::Ok(File::open(&path).is_err())
    });
    ensure!(refused.join().expect("the thread")?, "nobody could read it");
    work.about(
        "an open that is refused",
        "open",
        &secret,
        "result_error = 'EACCES' and process_fsuid = 65534 and file_access = 'read'",
    );
    Ok(())
}
