//! How are packages of other suites had without touching this system? By an apt of our own: its
//! sources, lists and cache are below target/vm, and packages are unpacked, never installed.
//!
//! Invariant: every call passes our configuration, which is read after the system's (so that its
//! proxies and credentials hold) and takes out its hooks.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::sources::Mirror;

/// Kernels and QEMU change weekly; a list of yesterday still leads to packages that are there.
const LISTS_FRESH: Duration = Duration::from_secs(24 * 3600);
/// Where Debian's packages keep the keys of its archives.
const KEYRING: &str = "usr/share/keyrings/debian-archive-keyring.gpg";

pub struct Apt {
    name: &'static str,
    directory: PathBuf,
}

impl Apt {
    /// `directory` is ours alone.
    pub fn new(
        name: &'static str,
        directory: &Path,
        mirror: &Mirror,
        suites: &[&str],
    ) -> Result<Self> {
        let apt = Self {
            name,
            directory: directory.to_owned(),
        };
        for below in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(below))
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        apt.write_changed("sources.list", &apt.source_lines(mirror, suites))?;
        apt.write_changed("apt.conf", &apt.configuration())?;
        Ok(apt)
    }

    fn source_lines(&self, mirror: &Mirror, suites: &[&str]) -> String {
        let keyring = self.keyring();
        let mut lines = String::new();
        for suite in suites {
            let uri = if suite.ends_with("-security") {
                &mirror.security
            } else {
                &mirror.main
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                lines,
                "deb [arch=amd64 signed-by={}] {uri} {suite} main",
                keyring.display()
            );
        }
        lines
    }

    fn configuration(&self) -> String {
        let d = self.directory.display();
        format!(
            "Dir::Etc::sourcelist \"{d}/sources.list\";\n\
             Dir::Etc::sourceparts \"-\";\n\
             Dir::State::lists \"{d}/lists\";\n\
             Dir::Cache \"{d}/cache\";\n\
             Dir::Cache::archives \"archives\";\n\
             Dir::Cache::pkgcache \"pkgcache.bin\";\n\
             Dir::Cache::srcpkgcache \"srcpkgcache.bin\";\n\
             Dir::Log \"{d}/log\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n\
             APT::Architecture \"amd64\";\n\
             APT::Install-Recommends \"false\";\n\
             APT::Sandbox::User \"root\";\n\
             // Nothing of the system is written, so its locks are not ours to take.\n\
             Debug::NoLocking \"true\";\n\
             #clear APT::Update::Pre-Invoke;\n\
             #clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n\
             #clear DPkg::Pre-Install-Pkgs;\n"
        )
    }

    /// Of a newer release when one was unpacked here, else this system's.
    fn keyring(&self) -> PathBuf {
        let newer = self.directory.join("keyring").join(KEYRING);
        if newer.exists() {
            newer
        } else {
            Path::new("/").join(KEYRING)
        }
    }

    fn write_changed(&self, name: &str, text: &str) -> Result<()> {
        let path = self.directory.join(name);
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        // Other sources: the lists that are there do not answer for them.
        let _ = fs::remove_file(self.stamp());
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn stamp(&self) -> PathBuf {
        self.directory.join("updated")
    }

    /// Refreshes the lists when they are old.
    pub fn update(&self) -> Result<()> {
        let age = fs::metadata(self.stamp())
            .and_then(|stamp| stamp.modified())
            .ok()
            .and_then(|then| SystemTime::now().duration_since(then).ok());
        if age.is_some_and(|age| age < LISTS_FRESH) {
            return Ok(());
        }
        eprintln!("vm: package lists of {} ...", self.name);
        // Of a suite that cannot be had, apt keeps quiet unless told that it matters.
        self.get(&["-o", "APT::Update::Error-Mode=any", "update"])
            .with_context(|| format!("cannot refresh the package lists of {}", self.name))?;
        fs::write(self.stamp(), "")?;
        Ok(())
    }

    /// Trusts the keys of a newer release from now on: those in the package debian-archive-keyring
    /// that `trusted` offers, whose own signature this system's keys vouch for.
    pub fn take_newer_keys(&self, trusted: &Self) -> Result<()> {
        trusted.update()?;
        let packages = trusted.download(&["debian-archive-keyring".to_owned()])?;
        unpack(&packages, &self.directory.join("keyring"))?;
        let path = self.directory.join("sources.list");
        let system = Path::new("/").join(KEYRING);
        let text = fs::read_to_string(&path)?.replace(
            &format!("signed-by={}", system.display()),
            &format!("signed-by={}", self.keyring().display()),
        );
        self.write_changed("sources.list", &text)
    }

    /// All package names that begin so.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let output = self
            .command("apt-cache")
            .args(["pkgnames", prefix])
            .output()
            .context("cannot start apt-cache")?;
        ensure!(output.status.success(), "apt-cache: {}", output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The package files, without what they depend on.
    pub fn download(&self, packages: &[String]) -> Result<Vec<PathBuf>> {
        let directory = self.directory.join("cache/archives");
        clear_packages(&directory)?;
        eprintln!("vm: downloading {} ...", packages.join(" "));
        let mut command = self.command("apt-get");
        command.current_dir(&directory);
        command.args(["-q", "download"]).args(packages);
        quiet(&mut command)?;
        package_files(&directory)
    }

    /// The package files with all that this system lacks for them, taken from `suite` where it
    /// has them.
    pub fn download_complete(&self, suite: &str, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let directory = self.directory.join("cache/archives");
        clear_packages(&directory)?;
        eprintln!("vm: downloading {} ...", packages.join(" "));
        let mut arguments = vec!["-q", "-y", "-t", suite, "--download-only", "install"];
        arguments.extend(packages);
        self.get(&arguments)?;
        package_files(&directory)
    }

    fn get(&self, arguments: &[&str]) -> Result<()> {
        quiet(self.command("apt-get").args(arguments))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(self.directory.join("apt.conf"))
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        command
    }
}

/// The output is shown only on failure.
fn quiet(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| {
        format!(
            "cannot start {}; kernels come as Debian packages, through apt",
            command.get_program().display()
        )
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("apt-get: {}\n{}", output.status, text.trim());
    }
    Ok(())
}

fn clear_packages(directory: &Path) -> Result<()> {
    for file in package_files(directory)? {
        fs::remove_file(file)?;
    }
    Ok(())
}

fn package_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
    Ok(entries
        .filter(|path| path.extension().is_some_and(|e| e == "deb"))
        .collect())
}

/// The files of the packages, below `to`; the packages themselves are not kept.
pub fn unpack(packages: &[PathBuf], to: &Path) -> Result<()> {
    ensure!(!packages.is_empty(), "apt-get downloaded nothing");
    fs::create_dir_all(to)?;
    for package in packages {
        let status = Command::new("dpkg-deb")
            .arg("-x")
            .args([package.as_path(), to])
            .status()
            .context("cannot start dpkg-deb")?;
        ensure!(
            status.success(),
            "dpkg-deb -x {}: {status}",
            package.display()
        );
        fs::remove_file(package)?;
    }
    Ok(())
}
