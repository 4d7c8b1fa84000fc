//! Debian packages: which are missing, and their installation without questions.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{is_root, timed};
use crate::cargo::on_path;

const OPTIONS: [&str; 6] = [
    "-y",
    "--no-install-recommends",
    "-o",
    "Acquire::Retries=3",
    // Another apt may be at work, for example unattended upgrades.
    "-o",
    "DPkg::Lock::Timeout=300",
];

pub fn usable() -> bool {
    on_path("apt-get") && on_path("dpkg-query")
}

/// Whether this system's package lists, refreshed if need be, offer all of them.
pub fn known(packages: &[&str]) -> Result<bool> {
    if missing(packages)?.is_empty() || all_offered(packages)? {
        return Ok(true);
    }
    if is_root() {
        timed("apt-get update", update)?;
    }
    all_offered(packages)
}

fn all_offered(packages: &[&str]) -> Result<bool> {
    let output = Command::new("apt-cache")
        .args(["policy"])
        .args(packages)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let offered = text
        .lines()
        .filter(|line| line.trim_start().starts_with("Candidate:") && !line.contains("(none)"));
    Ok(offered.count() == packages.len())
}

/// Installs what is missing of `packages`.
pub fn install(packages: &[&str]) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root() {
        bail!(
            "these packages are missing: {list}\nInstall them: sudo apt-get install --no-install-recommends {list}"
        );
    }
    timed(&format!("apt-get install {list}"), || {
        if apt(&missing).is_ok() {
            return Ok(());
        }
        // The usual reason is a list of packages that is empty or too old.
        update()?;
        apt(&missing)
    })
}

fn apt(packages: &[&str]) -> Result<()> {
    quiet(
        Command::new("apt-get")
            .args(OPTIONS)
            .arg("install")
            .args(packages),
    )
}

fn update() -> Result<()> {
    quiet(Command::new("apt-get").args(["-o", "Acquire::Retries=3", "update"]))
}

/// The output is shown only on failure.
fn quiet(command: &mut Command) -> Result<()> {
    let output = command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("cannot start apt-get")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("apt-get: {}\n{}", output.status, text.trim());
    }
    Ok(())
}

fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()
        .context("cannot start dpkg-query")?;
    let listing = String::from_utf8_lossy(&output.stdout);
    Ok(packages
        .iter()
        .copied()
        .filter(|package| !installed(&listing, package))
        .collect())
}

fn installed(listing: &str, package: &str) -> bool {
    listing
        .lines()
        .any(|line| line.split_once(' ') == Some((package, "installed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_package_with_its_configuration_left_is_missing() {
        let listing = "gcc installed\nauditd config-files\n";
        assert!(installed(listing, "gcc"));
        assert!(!installed(listing, "auditd"));
        assert!(!installed(listing, "g"));
    }
}
