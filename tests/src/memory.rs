//! How is a program held to a limit of memory? By a cgroup of its own, of version 1 or 2. What the
//! kernel allocates for it (rings, maps) counts there too, and mapped pages count once.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// Where version 1 has its memory controller, and version 2 everything.
const V1: &str = "/sys/fs/cgroup/memory";
const V2: &str = "/sys/fs/cgroup";

/// Removed when dropped; whatever is in it must have ended.
pub struct MemoryCgroup {
    path: PathBuf,
    names: &'static Names,
}

struct Names {
    usage: &'static str,
    highest: &'static str,
    limit: &'static str,
    events: &'static str,
}

const V1_NAMES: Names = Names {
    usage: "memory.usage_in_bytes",
    highest: "memory.max_usage_in_bytes",
    limit: "memory.limit_in_bytes",
    events: "memory.oom_control",
};
const V2_NAMES: Names = Names {
    usage: "memory.current",
    highest: "memory.peak",
    limit: "memory.max",
    events: "memory.events",
};

impl MemoryCgroup {
    /// An error says why there is none to be had here.
    pub fn new(name: &str) -> Result<Self> {
        let (parent, names) = if Path::new(V1).join("memory.limit_in_bytes").exists() {
            (V1, &V1_NAMES)
        } else {
            let controllers = Path::new(V2).join("cgroup.controllers");
            let known = fs::read_to_string(&controllers)
                .with_context(|| format!("no memory controller: {}", controllers.display()))?;
            ensure!(
                known.split_ascii_whitespace().any(|name| name == "memory"),
                "no memory controller in {}",
                controllers.display()
            );
            write(&Path::new(V2).join("cgroup.subtree_control"), "+memory")?;
            (V2, &V2_NAMES)
        };
        let path = Path::new(parent).join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, names })
    }

    /// For [`crate::Options::agent_cgroup`].
    pub fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// The kernel takes back what it can at once, and kills what does not fit.
    pub fn limit(&self, bytes: u64) -> Result<()> {
        write(&self.path.join(self.names.limit), &bytes.to_string())
    }

    pub fn usage_bytes(&self) -> Result<u64> {
        Ok(self.read(self.names.usage)?.trim().parse()?)
    }

    /// None where the kernel does not keep it (version 2 before Linux 5.19).
    pub fn highest_bytes(&self) -> Option<u64> {
        self.read(self.names.highest).ok()?.trim().parse().ok()
    }

    /// Processes that were killed for going over the limit.
    pub fn killed(&self) -> Result<u64> {
        let text = self.read(self.names.events)?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        let line = line.with_context(|| format!("{} tells no oom_kill", self.names.events))?;
        Ok(line.trim().parse()?)
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.path.join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // The kernel lets go of what has just ended with a delay.
        for _ in 0..100 {
            match fs::remove_dir(&self.path) {
                Ok(()) => return,
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(50)),
            }
        }
        eprintln!(
            "{} is still in use; remove it: rmdir {0}",
            self.path.display()
        );
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
}
