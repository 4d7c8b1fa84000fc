//! May this process load and attach kernel programs? Says what it lacks before the kernel's bare
//! "operation not permitted" does.

use std::fs;

/// Numbers of linux/capability.h. CAP_SYS_ADMIN stands for both others.
const SYS_ADMIN: u32 = 21;
const NEEDED: [(u32, &str); 2] = [(38, "CAP_PERFMON"), (39, "CAP_BPF")];

/// What is missing, as the end of a sentence; `None` when nothing is.
pub(super) fn missing() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    lacking(effective(&status)?)
}

fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn lacking(effective: u64) -> Option<String> {
    let has = |bit: u32| effective >> bit & 1 == 1;
    if has(SYS_ADMIN) {
        return None;
    }
    let lacking = NEEDED.iter().filter(|(bit, _)| !has(*bit));
    let names: Vec<_> = lacking.map(|(_, name)| *name).collect();
    (!names.is_empty()).then(|| format!("this process lacks {}", names.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000004000000000\n";
        let effective = effective(status).expect("mask");
        assert_eq!(effective, 1 << 38);
        assert_eq!(
            lacking(effective).as_deref(),
            Some("this process lacks CAP_BPF")
        );
        assert_eq!(
            lacking(0).as_deref(),
            Some("this process lacks CAP_PERFMON and CAP_BPF")
        );
        assert_eq!(lacking(1 << 38 | 1 << 39), None);
        assert_eq!(lacking(1 << SYS_ADMIN), None);
    }
}
