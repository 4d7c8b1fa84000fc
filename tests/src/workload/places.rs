//! Where a path is not where the host sees it: mounts of a process's own, another root.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use rustix::fs::CWD;

use super::{Expectation, Workload, ours, quoted, system};
use crate::stack::patience;

/// The agent reads mount tables some hundredths of a second after the mounts have changed, and looks
/// paths up as late, by a process that is there: as long as the shortest life of which these tests
/// promise something.
const LIFE: Duration = Duration::from_secs(1);

fn live() -> Result<()> {
    std::thread::sleep(patience::stretched(LIFE)?);
    Ok(())
}

/// What the host calls it, if it can.
fn by_host(columns: &str, path: Option<&Path>) -> String {
    match path {
        Some(path) => format!("{columns}host_path = {}", quoted(path)),
        None => format!("{columns}host_path is null"),
    }
}

/// In a mount namespace of its own: directories seen twice, and a file system that nobody else sees.
pub fn mounts(work: &mut Workload) -> Result<()> {
    let (original, seen, memory) = (
        work.path("original"),
        work.path("seen"),
        work.path("memory"),
    );
    let odd = work.path(OsStr::from_bytes(b"odd \n\xff\\ 'name'"));
    let plain = work.path("plain");
    for directory in [&original, &seen, &memory, &odd, &plain] {
        fs::create_dir(directory)?;
    }
    let (of_host, at_home) = (work.path("of-host"), namespace("mnt")?);
    fs::write(&of_host, "x")?;
    let nothing = format!("process_mount_namespace = {at_home} and file_host_path is null");
    for kind in ["open", "close_write"] {
        work.about("the host's path is the path", kind, &of_host, &nothing);
    }
    system::own_mounts()?;
    system::bind_mount(&original, &seen)?;
    system::bind_mount(&odd, &plain)?;
    system::bind_mount(&plain, &odd)?;
    system::mount_tmpfs(&memory)?;
    fs::create_dir_all(memory.join("below"))?;
    live()?;
    let namespace = namespace("mnt")?;
    for (what, path, on_host) in [
        ("through a bind mount", seen.join("made"), Some(&original)),
        (
            "below a name with other bytes",
            odd.join("made"),
            Some(&odd),
        ),
        ("by such a bind mount", plain.join("made"), Some(&odd)),
        (
            "on a file system of its own",
            memory.join("below/made"),
            None,
        ),
    ] {
        make_move_remove(work, what, path, on_host.map(PathBuf::as_path), &namespace)?;
    }
    live()?;
    Ok(())
}

/// Makes, renames and removes a file at `path`, whose directory is `on_host` to the host.
fn make_move_remove(
    work: &mut Workload,
    what: &str,
    path: PathBuf,
    on_host: Option<&Path>,
    namespace: &str,
) -> Result<()> {
    fs::write(&path, "x")?;
    let moved = path.with_file_name("moved");
    fs::rename(&path, &moved)?;
    fs::remove_file(&moved)?;
    let there = |name: &str| on_host.map(|directory| directory.join(name));
    let made = by_host("file_", there("made").as_deref());
    let renamed = by_host("target_file_", there("moved").as_deref());
    let removed = by_host("file_", there("moved").as_deref());
    let (us, path, moved) = (ours(), quoted(path), quoted(moved));
    let inside = format!("{us} and process_mount_namespace = {namespace}");
    work.once(
        what,
        format!(
            "kind = 'open' and {inside} and file_path = {path} and file_access = 'create' \
             and {made}"
        ),
    );
    work.once(
        format!("close {what}"),
        format!("kind = 'close_write' and {inside} and file_path = {path} and {made}"),
    );
    work.once(
        format!("rename {what}"),
        format!(
            "kind = 'rename' and {inside} and file_path = {path} and target_file_path = {moved} \
             and {made} and {renamed}"
        ),
    );
    work.once(
        format!("unlink {what}"),
        format!("kind = 'unlink' and {inside} and file_path = {moved} and {removed}"),
    );
    Ok(())
}

/// As a container's runtime does it: an overlay is mounted on the host, and a process makes it its
/// root.
pub fn container(work: &mut Workload) -> Result<()> {
    let disk = Mounted::tmpfs(work.path("disk"))?;
    let [lower, upper, inner, merged] =
        ["lower", "upper", "work", "merged"].map(|name| disk.0.join(name));
    for directory in [&lower, &upper, &inner, &merged] {
        fs::create_dir(directory)?;
    }
    system::mount_overlay(&lower, &upper, &inner, &merged)?;
    let merged = Mounted(merged);
    let output = Command::new(std::env::current_exe()?)
        .args(["container-inside".as_ref(), merged.0.as_os_str()])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "inside: {}", output.status);
    for line in String::from_utf8(output.stdout)?.lines() {
        work.expected.push(Expectation::parse(line)?);
    }
    Ok(())
}

/// Is mounted on the host until it goes.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: PathBuf) -> Result<Self> {
        fs::create_dir(&at)?;
        system::mount_tmpfs(&at)?;
        Ok(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = system::detach(&self.0) {
            eprintln!("{} stays mounted: {error}", self.0.display());
        }
    }
}

/// The process in the container whose root the directory is on the host.
pub fn container_inside(work: &mut Workload) -> Result<()> {
    let host = work.directory.clone();
    system::own_mounts()?;
    std::env::set_current_dir(&host)?;
    rustix::process::pivot_root(".", ".")?;
    system::detach(Path::new("."))?;
    std::env::set_current_dir("/")?;
    fs::create_dir_all("/etc/jail")?;
    fs::create_dir("/tmp")?;
    system::mount_tmpfs(Path::new("/tmp"))?;
    live()?;
    fs::write("/etc/inside", "x")?;
    fs::write("/tmp/inside", "x")?;
    rustix::fs::renameat(CWD, "etc/inside", CWD, "/moved")?;
    fs::remove_file("/moved")?;
    // What is looked up is so before the root is another.
    live()?;
    rustix::process::chroot("/etc/jail")?;
    fs::write("/jailed", "x")?;
    inside_is_told(work, &host);
    Ok(())
}

/// Of what [`container_inside`] did below the host's directory.
fn inside_is_told(work: &mut Workload, host: &Path) {
    let of = |name: &str| quoted(host.join(name));
    let us = format!("{} and process_mount_namespace is not null", ours());
    for (what, kind, condition) in [
        (
            "a file of an overlay that the host mounted",
            "open",
            format!(
                "file_path = '/etc/inside' and file_host_path = {}",
                of("etc/inside")
            ),
        ),
        (
            "its close",
            "close_write",
            format!(
                "file_path = '/etc/inside' and file_host_path = {}",
                of("etc/inside")
            ),
        ),
        (
            "its rename",
            "rename",
            format!(
                "file_path = '/etc/inside' and file_host_path = {} \
                 and target_file_host_path = {}",
                of("etc/inside"),
                of("moved")
            ),
        ),
        (
            "its unlink",
            "unlink",
            format!("file_path = '/moved' and file_host_path = {}", of("moved")),
        ),
        (
            "a file of a mount that only the container has",
            "open",
            "file_path = '/tmp/inside' and file_host_path is null".to_owned(),
        ),
        (
            "a file below another root in the container",
            "open",
            format!(
                "file_path = '/jailed' and process_root = '/etc/jail' \
                 and file_host_path = {}",
                of("etc/jail/jailed")
            ),
        ),
    ] {
        work.once(what, format!("kind = '{kind}' and {us} and {condition}"));
    }
}

/// The number of this thread's namespace.
pub fn namespace(name: &str) -> Result<String> {
    let link = fs::read_link(format!("/proc/thread-self/ns/{name}"))?;
    let text = link.to_string_lossy();
    let digits = text.trim_matches(|c: char| !c.is_ascii_digit());
    Ok(digits.to_owned())
}

/// After chroot, paths begin at the new root, and the record says where that is.
pub fn root(work: &mut Workload) -> Result<()> {
    let root = work.path("root");
    fs::create_dir_all(root.join("etc"))?;
    rustix::process::chroot(&root)?;
    std::env::set_current_dir("/etc")?;
    fs::write("made", "x")?;
    fs::rename("made", "/moved")?;
    fs::remove_file("../../moved")?;
    let made = by_host("file_", Some(&root.join("etc/made")));
    let renamed = by_host("target_file_", Some(&root.join("moved")));
    let removed = by_host("file_", Some(&root.join("moved")));
    let inside = format!("{} and process_root = {}", ours(), quoted(root));
    work.once(
        "an open below another root",
        format!("kind = 'open' and {inside} and file_path = '/etc/made' and {made}"),
    );
    work.once(
        "a rename below another root",
        format!(
            "kind = 'rename' and {inside} and file_path = '/etc/made' \
             and target_file_path = '/moved' and {made} and {renamed}"
        ),
    );
    work.once(
        "an unlink below another root",
        format!("kind = 'unlink' and {inside} and file_path = '/moved' and {removed}"),
    );
    Ok(())
}
