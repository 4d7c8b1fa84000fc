//! Which files and cgroups are it that rules name? A program is known to the kernel by device and
//! inode, a cgroup by its number. Both may come to be, or become others, while the agent runs: who
//! uses this asks again every second.

use std::{
    fs,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use super::Policy;

/// What was found, and the names of what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Rule, device as the kernel has it, inode.
    pub programs: Vec<(usize, u32, u64)>,
    /// Rule, id.
    pub cgroups: Vec<(usize, u64)>,
    pub missing: Vec<String>,
}

/// Reads what is there now.
pub fn find(policy: &Policy, hierarchy: Option<&Path>) -> Places {
    let mut places = Places::default();
    let names_programs = policy.rules.iter().any(|rule| !rule.exes.is_empty());
    let mounts = names_programs.then(|| fs::read_to_string("/proc/self/mountinfo"));
    let mounts = mounts.and_then(Result::ok).unwrap_or_default();
    for (at, rule) in policy.rules.iter().enumerate() {
        for exe in &rule.exes {
            match program(exe, &mounts) {
                Some((device, inode)) => places.programs.push((at, device, inode)),
                None => places
                    .missing
                    .push(format!("{}: {}", rule.name, exe.display())),
            }
        }
        for cgroup in &rule.cgroups {
            let found = hierarchy.map(|root| root.join(cgroup.trim_start_matches('/')));
            match found.and_then(|path| fs::metadata(path).ok()) {
                Some(metadata) => places.cgroups.push((at, metadata.ino())),
                None => places
                    .missing
                    .push(format!("{}: cgroup {cgroup}", rule.name)),
            }
        }
    }
    places
}

/// Of the file that is there now, links followed.
fn program(path: &Path, mounts: &str) -> Option<(u32, u64)> {
    // Where a file system has many volumes (btrfs), stat tells another device than the kernel uses;
    // the table of mounts has that one.
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    let device = device_of_mount(file.as_raw_fd(), mounts);
    let device = device.unwrap_or_else(|| kernel_device(metadata.dev()));
    Some((device, metadata.ino()))
}

fn device_of_mount(fd: i32, mounts: &str) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?
        .trim();
    device_in(mounts, id)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime ...`
fn device_in(mounts: &str, id: &str) -> Option<u32> {
    let line = mounts
        .lines()
        .find(|line| line.split(' ').next() == Some(id))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some(major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?)
}

/// From the form that user space gets.
fn kernel_device(device: u64) -> u32 {
    libc::major(device) << 20 | libc::minor(device)
}

/// Where cgroup v2 is mounted: alone, or beside version 1.
pub fn hierarchy() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.join("cgroup.procs").exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Budgets, Rule};

    #[test]
    fn what_is_there_is_found_and_the_rest_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let exe = dir.path().join("program");
        fs::write(&exe, "x").expect("write");
        fs::create_dir_all(dir.path().join("a/b")).expect("dir");
        let rule = Rule {
            name: "r".to_owned(),
            exes: vec![exe.clone(), dir.path().join("none")],
            cgroups: vec!["/a/b".to_owned(), "/c".to_owned()],
            ..Rule::default()
        };
        let policy = Policy::new(&[rule], &Budgets::default()).expect("policy");
        let places = find(&policy, Some(dir.path()));
        let inode = fs::metadata(&exe).expect("stat").ino();
        let [(0, _, found)] = places.programs[..] else {
            panic!("{places:?}")
        };
        assert_eq!(found, inode);
        let inode = fs::metadata(dir.path().join("a/b")).expect("stat").ino();
        assert_eq!(places.cgroups, [(0, inode)]);
        assert_eq!(places.missing.len(), 2, "{places:?}");
        assert_eq!(places.missing[1], "r: cgroup /c");
        // Replaced, as an upgrade does it.
        fs::write(dir.path().join("new"), "y").expect("write");
        fs::rename(dir.path().join("new"), &exe).expect("rename");
        assert_ne!(find(&policy, Some(dir.path())), places);
    }

    #[test]
    fn the_device_is_that_of_the_mount() {
        let mounts =
            "21 1 254:1 / / rw - ext4 /dev/vda1 rw\n36 21 0:45 /@ /home rw - btrfs /dev/x rw\n";
        assert_eq!(device_in(mounts, "36"), Some(45));
        assert_eq!(device_in(mounts, "21"), Some(254 << 20 | 1));
        assert_eq!(device_in(mounts, "2"), None);
    }
}
