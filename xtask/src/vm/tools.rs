//! Where are QEMU and a static busybox? On the PATH; else they are downloaded and unpacked below
//! target/vm, with the libraries that this system lacks for them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    apt::{self, Apt},
    sources::{self, Mirror},
};

const QEMU: &str = "qemu-system-x86_64";
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

pub struct Tools {
    /// Where packages were unpacked.
    unpacked: PathBuf,
}

impl Tools {
    /// Looks first; `apt` is asked for only when something has to be downloaded.
    pub fn get(directory: &Path, apt: impl FnOnce() -> Result<Apt>) -> Result<Self> {
        let tools = Self {
            unpacked: directory.join("tools"),
        };
        if tools.qemu_works().is_ok() && tools.busybox().is_some() {
            return Ok(tools);
        }
        let apt = apt()?;
        apt.update()?;
        let new = tools.unpacked.with_extension("new");
        if new.exists() {
            std::fs::remove_dir_all(&new)?;
        }
        let packages = apt.download(&["busybox-static".to_owned()])?;
        apt::unpack(&packages, &new)?;
        if on_path(QEMU).is_none() {
            // This release's own may be too old for what else is installed here.
            let suite = backports()?;
            let packages = apt.download_complete(&suite, &["qemu-system-x86"])?;
            apt::unpack(&packages, &new)?;
        }
        if tools.unpacked.exists() {
            std::fs::remove_dir_all(&tools.unpacked)?;
        }
        std::fs::rename(&new, &tools.unpacked)?;
        tools.qemu_works()?;
        Ok(tools)
    }

    /// An apt with this system's release, for [`Self::get`].
    pub fn apt(directory: &Path, mirror: &Mirror) -> Result<Apt> {
        let codename = sources::codename()
            .context("QEMU is missing, and this system is not Debian: install qemu-system-x86")?;
        let [security, backports] = ["security", "backports"].map(|s| format!("{codename}-{s}"));
        Apt::new(
            "this release",
            &directory.join("apt-tools"),
            mirror,
            &[&codename, &security, &backports],
        )
    }

    /// QEMU, with the libraries and the firmware that it was unpacked with.
    pub fn qemu(&self) -> Command {
        if let Some(path) = on_path(QEMU) {
            return Command::new(path);
        }
        let mut command = Command::new(self.unpacked.join("usr/bin").join(QEMU));
        let libraries = LIBRARIES.map(|place| self.unpacked.join(place));
        // Two paths without a colon in them: target/ of this tree.
        if let Ok(path) = env::join_paths(&libraries) {
            command.env("LD_LIBRARY_PATH", path);
        }
        command.env("QEMU_MODULE_DIR", libraries[0].join("qemu"));
        for firmware in ["qemu", "seabios"] {
            command
                .arg("-L")
                .arg(self.unpacked.join("usr/share").join(firmware));
        }
        command
    }

    pub fn busybox(&self) -> Option<PathBuf> {
        let ours = self.unpacked.join("bin/busybox");
        let usr = self.unpacked.join("usr/bin/busybox");
        [Some(ours), Some(usr), on_path("busybox")]
            .into_iter()
            .flatten()
            .find(|path| is_static(path))
    }

    fn qemu_works(&self) -> Result<()> {
        let output = self
            .qemu()
            .arg("--version")
            .output()
            .with_context(|| format!("no {QEMU}"))?;
        ensure!(
            output.status.success(),
            "{QEMU} does not start: {}; delete {} and try again, or install qemu-system-x86",
            String::from_utf8_lossy(&output.stderr).trim(),
            self.unpacked.display()
        );
        Ok(())
    }
}

fn backports() -> Result<String> {
    let codename = sources::codename().context("this system is not Debian")?;
    Ok(format!("{codename}-backports"))
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// Whether it runs in a guest that has no library.
fn is_static(path: &Path) -> bool {
    let listed = Command::new("ldd").arg(path).output();
    path.is_file() && listed.is_ok_and(|output| !output.status.success())
}
