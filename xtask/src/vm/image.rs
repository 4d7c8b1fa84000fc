//! What is on the guest's disk? An ext4 file system with a few programs of this host, what they are
//! linked to, and the files that a run names, all at their own paths.
//!
//! Invariants: an image that is there is complete (it is moved there when made), and a guest that
//! has it open keeps it; nothing secret of this host is in it (its accounts are made up here).

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context as _, Result, ensure};

/// Programs of this host that tests start; busybox has the others. Missing ones are left out.
const PROGRAMS: [&str; 24] = [
    "sh", "bash", "true", "false", "sleep", "cat", "ls", "cp", "mv", "rm", "mkdir", "ln", "chmod",
    "mount", "umount", "env", "id", "timeout", "kill", "dd", "touch", "head", "tail", "strace",
];
/// What hosts keep as links to /usr.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
const EMPTY: [&str; 12] = [
    "proc", "sys", "dev", "run", "tmp", "root", "etc", "mnt", "var/tmp", "var/lib", "var/log",
    "results",
];
const ETC: [(&str, u32, &str); 6] = [
    (
        "passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    (
        "group",
        0o644,
        "root:x:0:\ndaemon:x:1:\nshadow:x:42:\nnogroup:x:65534:\n",
    ),
    (
        "shadow",
        0o640,
        "root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n",
    ),
    ("hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n"),
    ("hostname", 0o644, "guest\n"),
    (
        "nsswitch.conf",
        0o644,
        "passwd: files\ngroup: files\nhosts: files\n",
    ),
];
/// Room for what a guest writes.
const FREE_BYTES: u64 = 2 << 30;

/// The image with these files, made when one of them has changed.
pub fn make(directory: &Path, busybox: &Path, files: &[PathBuf]) -> Result<PathBuf> {
    let mut wanted: BTreeSet<PathBuf> = files.iter().cloned().collect();
    wanted.extend(PROGRAMS.iter().filter_map(|name| host_program(name)));
    let libraries = libraries(&wanted)?;
    wanted.extend(libraries);
    let image = directory.join("root.ext4");
    let (list, text) = (directory.join("root.list"), fingerprint(&wanted, busybox)?);
    if image.exists() && fs::read_to_string(&list).is_ok_and(|old| old == text) {
        return Ok(image);
    }
    eprintln!("vm: making the guest's disk ({} files) ...", wanted.len());
    let root = directory.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    layout(&root, busybox)?;
    let stripped = directory.join("stripped");
    fs::create_dir_all(&stripped)?;
    for path in &wanted {
        place(path, &root, &stripped)?;
    }
    let new = image.with_extension("new");
    file_system(&root, &new)?;
    fs::remove_dir_all(&root)?;
    fs::rename(&new, &image)?;
    fs::write(&list, text)?;
    Ok(image)
}

fn layout(root: &Path, busybox: &Path) -> Result<()> {
    for name in EMPTY {
        fs::create_dir_all(root.join(name))?;
    }
    for name in MERGED {
        fs::create_dir_all(root.join("usr").join(name))?;
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    for (name, mode, text) in ETC {
        let path = root.join("etc").join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    for name in ["tmp", "var/tmp"] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o1777))?;
    }
    fs::create_dir_all(root.join("opt/busybox"))?;
    fs::copy(busybox, root.join("opt/busybox/busybox"))?;
    Ok(())
}

/// As /usr/bin/NAME or so, with links like sh still links.
fn host_program(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/usr/sbin"]
        .iter()
        .map(|place| Path::new(place).join(name))
        .find(|path| path.exists())
}

/// Every shared library and loader that one of `programs` names.
fn libraries(programs: &BTreeSet<PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs.iter().filter(|path| path.is_file()) {
        let output = Command::new("ldd")
            .arg(program)
            .output()
            .context("cannot start ldd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(line) = text.lines().find(|line| line.contains("not found")) {
            anyhow::bail!("{}: {}", program.display(), line.trim());
        }
        found.extend(text.lines().filter_map(library));
    }
    Ok(found)
}

/// `libm.so.6 => /lib/.../libm.so.6 (0x...)` or `/lib64/ld-linux-x86-64.so.2 (0x...)`
fn library(line: &str) -> Option<PathBuf> {
    line.split_ascii_whitespace()
        .find(|word| word.starts_with('/'))
        .map(PathBuf::from)
}

/// Changes when a file does.
fn fingerprint(files: &BTreeSet<PathBuf>, busybox: &Path) -> Result<String> {
    use std::fmt::Write as _;
    let mut text = format!("layout {EMPTY:?} {ETC:?} {}\n", busybox.display());
    for path in files {
        let metadata =
            fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let modified = metadata
            .modified()?
            .duration_since(SystemTime::UNIX_EPOCH)?;
        writeln!(
            text,
            "{} {} {}",
            path.display(),
            metadata.len(),
            modified.as_nanos()
        )?;
        if metadata.is_dir() {
            let mut below: Vec<PathBuf> = entries(path)?;
            below.sort();
            text.push_str(&fingerprint(&below.into_iter().collect(), busybox)?);
        }
    }
    Ok(text)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// Puts `path`, with the links that lead to it, below `root`.
fn place(path: &Path, root: &Path, stripped: &Path) -> Result<()> {
    let target = path
        .canonicalize()
        .with_context(|| format!("cannot find {}", path.display()))?;
    if target.is_dir() {
        fs::create_dir_all(within(root, path))?;
        for below in entries(path)? {
            place(&below, root, stripped)?;
        }
        return Ok(());
    }
    copy(&target, &within(root, &target), stripped)?;
    let link = within(root, path);
    if link.exists() || link.is_symlink() {
        return Ok(());
    }
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent)?;
    }
    symlink(&target, &link)?;
    Ok(())
}

/// The place of a host's path below `root`. Its directories in / may be links there (/bin), which
/// are relative, so that following them stays below `root`.
fn within(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn copy(from: &Path, to: &Path, stripped: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let lean = without_debug_information(from, stripped)?;
    let source = lean.as_deref().unwrap_or(from);
    fs::copy(source, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// Binaries of this tree are mostly debug information. A stripped copy is kept; None for what is no
/// program of this tree.
fn without_debug_information(from: &Path, stripped: &Path) -> Result<Option<PathBuf>> {
    let built = from.starts_with(crate::cargo::target());
    let program = fs::metadata(from)?.permissions().mode() & 0o111 != 0;
    let Some(name) = from.file_name().filter(|_| built && program) else {
        return Ok(None);
    };
    let copy = stripped.join(name);
    let age = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    if age(&copy) > age(from) {
        return Ok(Some(copy));
    }
    let status = Command::new("strip").arg("-o").args([&copy, from]).status();
    // Without binutils, or for a script, the whole file has to do.
    Ok(status.is_ok_and(|status| status.success()).then_some(copy))
}

fn file_system(root: &Path, image: &Path) -> Result<()> {
    let output = Command::new("du")
        .args(["-s", "-B1"])
        .arg(root)
        .output()
        .context("cannot start du")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let used: u64 = text
        .split_ascii_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .context("du says no size")?;
    let _ = fs::remove_file(image);
    // Sparse: free room costs nothing here.
    let size_kib = (used + FREE_BYTES) / 1024;
    let program = ["/usr/sbin/mke2fs", "/sbin/mke2fs"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .context("no mke2fs: apt-get install e2fsprogs")?;
    let output = Command::new(program)
        .args(["-q", "-F", "-t", "ext4", "-m", "0"])
        .args(["-E", "lazy_itable_init=1,root_owner=0:0", "-d"])
        .args([root, image])
        .arg(format!("{size_kib}k"))
        .output()?;
    ensure!(
        output.status.success(),
        "mke2fs: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(
            library("\tlibm.so.6 => /lib/x/libm.so.6 (0x7f)"),
            Some(PathBuf::from("/lib/x/libm.so.6"))
        );
        assert_eq!(
            library("\t/lib64/ld-linux-x86-64.so.2 (0x7f)"),
            Some(PathBuf::from("/lib64/ld-linux-x86-64.so.2"))
        );
    }

    #[test]
    fn a_disk_is_made_of_files_at_their_own_paths() {
        let directory = std::env::temp_dir().join(format!("xtask-image-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("given");
        fs::write(&file, "text").unwrap();
        let link = directory.join("link");
        symlink(&file, &link).unwrap();
        let root = directory.join("root");
        place(&link, &root, &directory).unwrap();
        let inside = within(&root, &file);
        assert_eq!(fs::read_to_string(inside).unwrap(), "text");
        assert_eq!(fs::read_link(within(&root, &link)).unwrap(), file);
        fs::remove_dir_all(&directory).unwrap();
    }
}
