//! Where does a test keep programs pinned, and who removes them when it fails?

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::stack;

const BPF: &str = "/sys/fs/bpf";
const PREFIX: &str = "hostaudit-test-";

/// A directory for pins, which is gone when this is, whatever became of the test.
pub struct Pins(pub PathBuf);

impl Pins {
    /// None, and it is said why, where nothing can be pinned.
    pub fn new(name: &str) -> Result<Option<Self>> {
        if let Some(reason) = stack::missing_for_live_tests() {
            eprintln!("SKIPPED: {reason}");
            return Ok(None);
        }
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        if !mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == Some(BPF))
        {
            eprintln!("SKIPPED: no bpf file system at {BPF}; mount -t bpf bpf {BPF}");
            return Ok(None);
        }
        remove_abandoned()?;
        let name = format!("{PREFIX}{}-{name}", std::process::id());
        Ok(Some(Self(Path::new(BPF).join(name))))
    }

    pub fn options(&self, more: &[&str]) -> Vec<String> {
        let pin = format!("capture.pin.directory={}", self.0.display());
        let more = more.iter().map(|text| (*text).to_owned());
        [pin].into_iter().chain(more).collect()
    }

    pub fn exist(&self) -> bool {
        self.0.exists()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // What removing them should do is tested where it should; this is for when that failed.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Of tests that were killed.
fn remove_abandoned() -> Result<()> {
    for entry in std::fs::read_dir(BPF)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
