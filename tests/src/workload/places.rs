//! Where a path is not where the host sees it: mounts of a process's own, another root.

use std::fs;

use anyhow::Result;

use super::{Workload, ours, quoted, system};

/// In a mount namespace of its own: a directory seen twice, and a file system that nobody else sees.
pub fn mounts(work: &mut Workload) -> Result<()> {
    let (original, seen, memory) = (
        work.path("original"),
        work.path("seen"),
        work.path("memory"),
    );
    for directory in [&original, &seen, &memory] {
        fs::create_dir(directory)?;
    }
    system::own_mounts()?;
    system::bind_mount(&original, &seen)?;
    system::mount_tmpfs(&memory)?;
    fs::create_dir_all(memory.join("below"))?;
    let namespace = namespace("mnt")?;
    for (what, path) in [
        ("through a bind mount", seen.join("made")),
        ("on a file system of its own", memory.join("below/made")),
    ] {
        fs::write(&path, "x")?;
        let moved = path.with_file_name("moved");
        fs::rename(&path, &moved)?;
        fs::remove_file(&moved)?;
        let (us, path, moved) = (ours(), quoted(path), quoted(moved));
        let inside = format!("{us} and process_mount_namespace = {namespace}");
        work.once(
            what,
            format!("kind = 'open' and {inside} and file_path = {path} and file_access = 'create'"),
        );
        work.once(
            format!("rename {what}"),
            format!(
                "kind = 'rename' and {inside} and file_path = {path} and target_file_path = {moved}"
            ),
        );
        work.once(
            format!("unlink {what}"),
            format!("kind = 'unlink' and {inside} and file_path = {moved}"),
        );
    }
    Ok(())
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
    let (us, root) = (ours(), quoted(root));
    let inside = format!("{us} and process_root = {root}");
    work.once(
        "an open below another root",
        format!("kind = 'open' and {inside} and file_path = '/etc/made'"),
    );
    work.once(
        "a rename below another root",
        format!(
            "kind = 'rename' and {us} and file_path = '/etc/made' and target_file_path = '/moved'"
        ),
    );
    work.once(
        "an unlink below another root",
        format!("kind = 'unlink' and {us} and file_path = '/moved'"),
    );
    Ok(())
}
