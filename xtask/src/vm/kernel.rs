//! Which kernels are there, and where is one's image? Names of packages are looked up when asked:
//! Debian puts the ABI into them, and old ones go.
//!
//! Invariant: a kernel below target/vm/kernels is complete (it is moved there when unpacked).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::apt::{self, Apt};

/// Where the kernels of [`DEFAULT`] are, the newest last.
pub const SUITES: [&str; 4] = [
    "bullseye-security",
    "bookworm-security",
    "bookworm-backports",
    "trixie-backports",
];

/// The long-term kernels that hosts run, and the newest.
pub const DEFAULT: [&str; 6] = ["5.10", "6.1", "6.12", "6.18", "6.18-nolsm", "7"];

/// Behind a kernel's name: it is not told to ask BPF programs as a security module, as on most hosts.
pub const NO_LSM: &str = "-nolsm";

/// The oldest and a new one; docs/kernels.md says what the others do.
pub const QUICK: [&str; 2] = ["5.10", "6.18"];

/// Small, and configured as the full kernel is but for drivers and the x32 ABI.
pub const FLAVOUR: &str = "cloud-amd64";

/// What `uname -r` says, for example `6.12.117+deb12-cloud-amd64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub name: String,
    numbers: Vec<u64>,
}

impl Release {
    fn parse(name: &str, flavour: &str) -> Option<Self> {
        let version = name.strip_suffix(flavour)?.strip_suffix('-')?;
        // Others are of another flavour ("rt-amd64") or build ("amd64-unsigned").
        let own = version.ends_with(|c: char| c.is_ascii_digit());
        let numbers = numbers(version);
        // Two numbers are the name of a package that depends on the newest.
        (own && numbers.len() > 2).then(|| Self {
            name: name.to_owned(),
            numbers,
        })
    }

    /// For example "6.12".
    pub fn series(&self) -> String {
        let first: Vec<String> = self.numbers.iter().take(2).map(u64::to_string).collect();
        first.join(".")
    }

    /// "6.12", "7", "7.x" or the whole name.
    fn is(&self, asked: &str) -> bool {
        let short = asked.trim_end_matches(".x");
        self.name == asked
            || short.split('.').all(|part| part.parse::<u64>().is_ok())
                && self.numbers.starts_with(&numbers(short))
    }
}

fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// All kernels of these package names, the oldest first.
fn releases(packages: &[String], flavour: &str) -> Vec<Release> {
    let has = |kind: &str, release: &Release| {
        let name = format!("linux-{kind}-{}", release.name);
        packages.contains(&name)
    };
    let mut found: Vec<Release> = packages
        .iter()
        .filter_map(|package| Release::parse(package.strip_prefix("linux-image-")?, flavour))
        // Newer kernels are split into three packages, and a suite drops old ones one by one.
        .filter(|release| !has("binary", release) || has("modules", release))
        .collect();
    found.sort_by(|a, b| a.numbers.cmp(&b.numbers));
    found.dedup();
    found
}

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub release: Release,
    pub directory: PathBuf,
    /// It asks BPF programs as a security module.
    pub bpf_lsm: bool,
}

impl Kernel {
    /// Its series, and how it is started: "6.18", "6.18-nolsm".
    pub fn name(&self) -> String {
        let started = if self.bpf_lsm { "" } else { NO_LSM };
        format!("{}{started}", self.release.series())
    }

    /// The image that boots.
    pub fn image(&self) -> Result<PathBuf> {
        let name = &self.release.name;
        let places = [
            format!("boot/vmlinuz-{name}"),
            format!("usr/lib/modules/{name}/vmlinuz"),
        ];
        places
            .iter()
            .map(|place| self.directory.join(place))
            .find(|path| path.exists())
            .with_context(|| format!("no image in {}", self.directory.display()))
    }

    pub fn modules(&self) -> Result<PathBuf> {
        ["usr/lib/modules", "lib/modules"]
            .iter()
            .map(|place| self.directory.join(place).join(&self.release.name))
            .find(|path| path.is_dir())
            .with_context(|| format!("no modules in {}", self.directory.display()))
    }
}

/// All kernels to choose from.
pub struct Kernels {
    apt: Apt,
    directory: PathBuf,
    flavour: String,
    offered: Vec<Release>,
    packages: Vec<String>,
}

impl Kernels {
    pub fn new(apt: Apt, directory: &Path, flavour: &str) -> Result<Self> {
        let packages = apt.names("linux-")?;
        let offered = releases(&packages, flavour);
        Ok(Self {
            packages,
            apt,
            directory: directory.to_owned(),
            flavour: flavour.to_owned(),
            offered,
        })
    }

    /// The newest of each series.
    pub fn newest(&self) -> Vec<&Release> {
        let mut newest: Vec<&Release> = Vec::new();
        for release in &self.offered {
            match newest.last_mut() {
                Some(last) if last.series() == release.series() => *last = release,
                _ => newest.push(release),
            }
        }
        newest
    }

    pub fn is_here(&self, release: &Release) -> bool {
        self.directory.join(&release.name).is_dir()
    }

    /// The newest that is asked for.
    pub fn find(&self, asked: &str) -> Option<&Release> {
        self.offered.iter().rev().find(|release| release.is(asked))
    }

    /// The same, downloaded if need be.
    pub fn get(&self, asked: &str) -> Result<Kernel> {
        let (asked, bpf_lsm) = match asked.strip_suffix(NO_LSM) {
            Some(kernel) => (kernel, false),
            None => (asked, true),
        };
        let release = self.find(asked).with_context(|| {
            let series: Vec<String> = self.newest().iter().map(|r| r.series()).collect();
            format!(
                "no kernel {asked} ({}) in {}; there are: {}",
                self.flavour,
                SUITES.join(", "),
                series.join(" ")
            )
        })?;
        let directory = self.directory.join(&release.name);
        if !directory.is_dir() {
            self.fetch(release, &directory)?;
        }
        Ok(Kernel {
            release: release.clone(),
            directory,
            bpf_lsm,
        })
    }

    fn fetch(&self, release: &Release, directory: &Path) -> Result<()> {
        let mut packages = ["image", "binary", "modules"]
            .map(|kind| format!("linux-{kind}-{}", release.name))
            .to_vec();
        packages.retain(|package| self.packages.contains(package));
        let files = self.apt.download(&packages)?;
        let unpacked = self.directory.join(format!("{}.new", release.name));
        if unpacked.exists() {
            fs::remove_dir_all(&unpacked)?;
        }
        apt::unpack(&files, &unpacked)?;
        let kernel = Kernel {
            release: release.clone(),
            directory: unpacked.clone(),
            bpf_lsm: true,
        };
        kernel.image().and(kernel.modules())?;
        fs::rename(&unpacked, directory)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> Vec<String> {
        let full = |name: &&str| match name.strip_prefix('=') {
            Some(package) => package.to_owned(),
            None => format!("linux-image-{name}"),
        };
        all.iter().map(full).collect()
    }

    #[test]
    fn the_newest_is_found_by_number_not_by_letter() {
        let all = names(&[
            "6.1.0-56-cloud-amd64",
            "6.1.0-0.deb11.52-cloud-amd64",
            "6.1.0-9-cloud-amd64",
            "6.1-cloud-amd64",
            "6.12.9+deb12-cloud-amd64",
            "6.12.117+deb12-cloud-amd64",
            "6.12.117+deb12-rt-amd64",
            "6.12.117+deb12-amd64-unsigned",
            "cloud-amd64",
            // Its modules are gone.
            "6.12.118+deb12-cloud-amd64",
            "=linux-binary-6.12.118+deb12-cloud-amd64",
        ]);
        let found = releases(&all, FLAVOUR);
        let names: Vec<&str> = found.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "6.1.0-0.deb11.52-cloud-amd64",
                "6.1.0-9-cloud-amd64",
                "6.1.0-56-cloud-amd64",
                "6.12.9+deb12-cloud-amd64",
                "6.12.117+deb12-cloud-amd64",
            ]
        );
        let newest = |asked: &str| {
            let found = found.iter().rev().find(|release| release.is(asked));
            found.map(|release| release.name.clone())
        };
        assert_eq!(newest("6.1").as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(newest("6").as_deref(), Some("6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest("6.x").as_deref(), Some("6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest("7"), None);
        assert_eq!(newest("six"), None);
        // The full flavour is another one.
        assert!(releases(&all, "amd64").is_empty());
    }
}
