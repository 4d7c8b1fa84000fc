//! What this host's kernel offers and what this process may do, as /proc and /sys tell it.

use std::{fs, path::Path};

/// Effective user id 0 is not enough in a container; see [`Capabilities`].
pub fn is_root() -> bool {
    status_field("Uid:")
        .and_then(|ids| ids.split_whitespace().nth(1).map(|uid| uid == "0"))
        .unwrap_or(false)
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    pub const DAC_READ_SEARCH: u32 = 2;
    pub const SYS_PTRACE: u32 = 19;
    pub const SYS_ADMIN: u32 = 21;
    pub const PERFMON: u32 = 38;
    pub const BPF: u32 = 39;

    pub fn own() -> Option<Self> {
        u64::from_str_radix(&status_field("CapEff:")?, 16)
            .ok()
            .map(Self)
    }

    pub fn has(self, number: u32) -> bool {
        self.0 & (1 << number) != 0
    }

    /// What loading and attaching needs and this process lacks, by name.
    pub fn missing(self) -> Vec<&'static str> {
        let needed = [(Self::BPF, "CAP_BPF"), (Self::PERFMON, "CAP_PERFMON")];
        let helpful = [
            (Self::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
            (Self::SYS_PTRACE, "CAP_SYS_PTRACE"),
        ];
        // CAP_SYS_ADMIN includes the two that it was split into.
        let needed = needed.into_iter().filter(|_| !self.has(Self::SYS_ADMIN));
        needed
            .chain(helpful)
            .filter(|(number, _)| !self.has(*number))
            .map(|(_, name)| name)
            .collect()
    }
}

/// "6.18.0-1-amd64" as (6, 18).
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The mode in brackets, "none" where the kernel has no lockdown.
pub fn lockdown(file: &str) -> &str {
    file.split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
        .unwrap_or("none")
}

/// "v2", "hybrid" or "v1", from the text of /proc/mounts.
pub fn cgroup_mode(mounts: &str) -> &'static str {
    let kinds = |kind: &str| {
        mounts
            .lines()
            .any(|line| line.split(' ').nth(2) == Some(kind))
    };
    match (kinds("cgroup2"), kinds("cgroup")) {
        (true, false) => "v2",
        (true, true) => "hybrid",
        (false, true) => "v1",
        (false, false) => "not mounted",
    }
}

/// Bytes this process may lock; None for unlimited or unknown.
pub fn memlock_bytes(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

pub fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_read_as_the_kernel_writes_them() {
        assert_eq!(kernel_version("6.18.0-1-amd64\n"), Some((6, 18)));
        assert_eq!(kernel_version("5.10"), Some((5, 10)));
        assert_eq!(kernel_version("rolling"), None);
        assert_eq!(lockdown("none [integrity] confidentiality\n"), "integrity");
        assert_eq!(lockdown(""), "none");
        assert_eq!(cgroup_mode("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"), "v2");
        assert_eq!(
            cgroup_mode("a /b cgroup rw 0 0\nc /d cgroup2 rw 0 0\n"),
            "hybrid"
        );
        assert_eq!(
            memlock_bytes(
                "Max locked memory         8388608              8388608              bytes\n"
            ),
            Some(8388608)
        );
        assert_eq!(
            memlock_bytes("Max locked memory         unlimited  unlimited  bytes\n"),
            None
        );
    }

    #[test]
    fn admin_includes_bpf_and_perfmon() {
        let bits = |numbers: &[u32]| Capabilities(numbers.iter().fold(0, |all, n| all | 1 << n));
        assert!(bits(&[21, 2, 19]).missing().is_empty());
        assert!(bits(&[38, 39, 2, 19]).missing().is_empty());
        assert_eq!(
            bits(&[38]).missing(),
            ["CAP_BPF", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"]
        );
        assert!(Capabilities::own().is_some());
    }
}
