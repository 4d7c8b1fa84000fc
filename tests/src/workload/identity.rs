//! Which file it really was: by whatever way it was reached, and in which layer of an overlay it is.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::{Workload, ours, quoted, system};

pub fn identity(work: &mut Workload) -> Result<()> {
    generations(work)?;
    magic_links(work)?;
    resolves(work)?;
    longest(work)?;
    overlay(work)?;
    // Last: it leaves this root behind.
    pivot(work)
}

/// The same number again is not the same file.
fn generations(work: &mut Workload) -> Result<()> {
    let path = work.path("generation");
    let file = File::create(&path)?;
    // Only file systems that can be exported tell it by this call; others have one all the same.
    let told = match system::generation(&file) {
        Ok(generation) => format!("file_generation = {generation}"),
        Err(_) => "true".to_owned(),
    };
    work.opened("a file with a generation", &path, "create");
    for kind in ["open", "close_write"] {
        work.about(&format!("its generation at {kind}"), kind, &path, &told);
    }
    Ok(())
}

/// Names that are no names, but lead to what a process has open.
fn magic_links(work: &mut Workload) -> Result<()> {
    let (place, by_descriptor, removed) = (
        work.path("place"),
        work.path("by-fd"),
        work.path("removed-then"),
    );
    fs::create_dir(&place)?;
    let held = File::create(&by_descriptor)?;
    let made = work.path("held");
    fs::rename(&by_descriptor, &made)?;
    let append = |path: PathBuf| OpenOptions::new().append(true).open(path);
    append(format!("/proc/self/fd/{}", held.as_raw_fd()).into())?;
    work.opened("/proc/self/fd/N", &made, "write");

    let gone = File::create(work.path("to-be-removed"))?;
    fs::rename(work.path("to-be-removed"), &removed)?;
    fs::remove_file(&removed)?;
    append(format!("/proc/self/fd/{}", gone.as_raw_fd()).into())?;
    work.opened(
        "/proc/self/fd/N of a file without a name",
        &removed,
        "write",
    );
    work.about(
        "it is told as deleted",
        "open",
        &removed,
        &format!("file_deleted and file_inode = {}", gone.metadata()?.ino()),
    );

    let before = std::env::current_dir()?;
    std::env::set_current_dir(&place)?;
    fs::write("/proc/self/cwd/below", "x")?;
    work.opened("/proc/self/cwd", &place.join("below"), "create");
    let rooted = Path::new("/proc/self/root").join(place.strip_prefix("/")?);
    fs::write(rooted.join("rooted"), "x")?;
    work.opened("/proc/self/root", &place.join("rooted"), "create");
    let numbered = PathBuf::from(format!("/proc/{}/root", std::process::id()));
    let numbered = numbered.join(place.strip_prefix("/")?);
    fs::rename(rooted.join("rooted"), numbered.join("moved"))?;
    fs::remove_file(rooted.join("moved"))?;
    std::env::set_current_dir(before)?;
    let (from, to) = (place.join("rooted"), place.join("moved"));
    work.about(
        "rename by /proc/self/root and /proc/N/root",
        "rename",
        &from,
        &format!("target_file_path = {}", quoted(&to)),
    );
    work.about(
        "unlink by /proc/self/root",
        "unlink",
        &to,
        "result_error is null",
    );
    Ok(())
}

/// Roots and limits that only one call has.
fn resolves(work: &mut Workload) -> Result<()> {
    let place = work.path("resolve");
    fs::create_dir_all(place.join("in"))?;
    symlink("/in", place.join("absolute"))?;
    symlink("in", place.join("relative"))?;
    let directory = File::open(&place)?;
    let open = |name: &str, resolve| {
        let flags = OFlags::CREATE | OFlags::WRONLY;
        rustix::fs::openat2(&directory, name, flags, Mode::from_raw_mode(0o600), resolve)
    };
    open("/absolute/root", ResolveFlags::IN_ROOT)?;
    open("../../in/above", ResolveFlags::IN_ROOT)?;
    open("relative/beneath", ResolveFlags::BENEATH)?;
    open("in/plain", ResolveFlags::NO_SYMLINKS)?;
    open("in/mount", ResolveFlags::NO_XDEV)?;
    ensure!(open("relative/refused", ResolveFlags::NO_SYMLINKS).is_err());
    ensure!(open("../escape", ResolveFlags::BENEATH).is_err());
    for (what, name) in [
        ("RESOLVE_IN_ROOT, through an absolute link", "root"),
        ("RESOLVE_IN_ROOT, ..", "above"),
        ("RESOLVE_BENEATH, through a link", "beneath"),
        ("RESOLVE_NO_SYMLINKS", "plain"),
        ("RESOLVE_NO_XDEV", "mount"),
    ] {
        work.opened(what, &place.join("in").join(name), "create");
    }
    Ok(())
}

/// As many components, and as many bytes, as are kept whole.
fn longest(work: &mut Workload) -> Result<()> {
    let start = std::env::current_dir()?;
    let above = work.directory.components().count() - 1;
    // This directory's own, one that holds the others, and the file.
    let many = vec!["c".to_owned(); 256 - above - 2];
    let left = 4095 - work.directory.as_os_str().len() - "/long".len();
    let long = long_names(left);
    for (what, name, names) in [
        ("256 components", "many", many),
        ("4095 bytes", "long", long),
    ] {
        let mut place = work.path(name);
        fs::create_dir(&place)?;
        std::env::set_current_dir(&place)?;
        let (file, directories) = names.split_last().context("a name")?;
        for directory in directories {
            fs::create_dir(directory)?;
            std::env::set_current_dir(directory)?;
            place.push(directory);
        }
        File::create(file)?;
        place.push(file);
        ensure!(name == "many" || place.as_os_str().len() == 4095);
        work.opened(what, &place, "create");
        for kind in ["open", "close_write"] {
            work.about(
                &format!("{what}: whole at {kind}"),
                kind,
                &place,
                "file_path_truncated_bytes is null",
            );
        }
    }
    std::env::set_current_dir(start)?;
    Ok(())
}

/// Names that take so many bytes, each with a slash before it.
fn long_names(mut left: usize) -> Vec<String> {
    let mut names = Vec::new();
    while left > 0 {
        // Never one byte left: a name needs two with its slash.
        let take = if left > 256 { 200 } else { left };
        names.push("n".repeat(take - 1));
        left -= take;
    }
    names
}

/// Major and minor number as the record has them.
fn device(metadata: &fs::Metadata) -> u64 {
    let device = metadata.dev();
    u64::from(rustix::fs::major(device)) << 20 | u64::from(rustix::fs::minor(device))
}

/// What columns of a file say that is in this layer; nothing where the kernel does not tell how the
/// module overlayfs keeps it (before Linux 5.11).
fn in_layer(columns: &str, layer: &str, held: &fs::Metadata) -> String {
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    let is_module = modules.lines().any(|line| line.starts_with("overlay "));
    if is_module && !Path::new("/sys/kernel/btf/overlay").exists() {
        return format!("{columns}layer is null and {columns}real_inode is null");
    }
    let (inode, device) = (held.ino(), device(held));
    format!(
        "{columns}layer = '{layer}' and {columns}real_inode = {inode} \
         and {columns}real_device = {device}"
    )
}

/// Files of an image, and what was made or changed since.
fn overlay(work: &mut Workload) -> Result<()> {
    system::own_mounts()?;
    let root = work.path("overlay");
    fs::create_dir(&root)?;
    system::mount_tmpfs(&root)?;
    let [lower, upper, inner, merged] =
        ["lower", "upper", "work", "merged"].map(|name| root.join(name));
    for directory in [&lower, &upper, &inner, &merged] {
        fs::create_dir(directory)?;
    }
    fs::write(lower.join("changed"), "as it was")?;
    fs::copy("/bin/true", lower.join("true"))?;
    system::mount_overlay(&lower, &upper, &inner, &merged)?;
    fs::write(merged.join("made"), "x")?;
    let mut changed = OpenOptions::new()
        .append(true)
        .open(merged.join("changed"))?;
    changed.write_all(b"1")?;
    drop(changed);
    for (what, name) in [("a new file", "made"), ("a changed file", "changed")] {
        let held = fs::metadata(upper.join(name))?;
        work.about(
            &format!("{what} of an overlay"),
            "close_write",
            &merged.join(name),
            &in_layer("file_", "upper", &held),
        );
    }
    fs::copy(merged.join("true"), merged.join("copy"))?;
    for (layer, holder, name) in [("lower", &lower, "true"), ("upper", &upper, "copy")] {
        let program = merged.join(name);
        ensure!(Command::new(&program).status()?.success());
        let held = fs::metadata(holder.join(name))?;
        work.once(
            format!("a program of the {layer} layer"),
            format!(
                "kind = 'exec' and process_exe = {} and {}",
                quoted(&program),
                in_layer("process_exe_", layer, &held)
            ),
        );
    }
    let (us, beside) = (ours(), work.path("beside"));
    fs::write(&beside, "x")?;
    work.once(
        "no layer on another file system",
        format!(
            "kind = 'close_write' and {us} and file_path = {} and file_layer is null \
             and file_real_inode is null",
            quoted(&beside)
        ),
    );
    Ok(())
}

/// As a container's runtime does it: the old root is gone, and paths begin at the new one.
fn pivot(work: &mut Workload) -> Result<()> {
    let root = work.path("pivoted");
    fs::create_dir(&root)?;
    system::own_mounts()?;
    system::mount_tmpfs(&root)?;
    std::env::set_current_dir(&root)?;
    rustix::process::pivot_root(".", ".")?;
    system::detach(Path::new("."))?;
    std::env::set_current_dir("/")?;
    fs::create_dir("/etc")?;
    fs::write("/etc/inside", "x")?;
    rustix::fs::renameat(CWD, "etc/inside", CWD, "/moved")?;
    fs::remove_file("/moved")?;
    // No mount of the host shows it.
    let inside = format!(
        "{} and process_root is null and file_host_path is null",
        ours()
    );
    for (what, condition) in [
        (
            "an open after pivot_root",
            "kind = 'open' and file_path = '/etc/inside' and file_access = 'create'",
        ),
        (
            "a close after pivot_root",
            "kind = 'close_write' and file_path = '/etc/inside' and file_bytes_written = 1",
        ),
        (
            "a rename after pivot_root",
            "kind = 'rename' and file_path = '/etc/inside' and target_file_path = '/moved'",
        ),
        (
            "an unlink after pivot_root",
            "kind = 'unlink' and file_path = '/moved'",
        ),
    ] {
        work.once(what, format!("{condition} and {inside}"));
    }
    Ok(())
}
