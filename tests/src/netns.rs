//! Another host, for whoever needs a network between two programs: a network namespace, joined to this
//! one by a pair of interfaces that are gone with it.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Removed when dropped.
pub struct Netns {
    name: String,
    link: String,
    address: String,
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("ip (iproute2) is needed")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "ip {}: {error}",
        arguments.join(" ")
    );
    Ok(())
}

impl Netns {
    /// Both ends have addresses of TEST-NET-2, which nobody routes.
    pub fn new() -> Result<Self> {
        let pid = std::process::id();
        let netns = Self {
            name: format!("hostaudit-{pid}"),
            link: format!("ha{pid}"),
            address: "198.51.100.2".to_owned(),
        };
        let Self {
            name,
            link,
            address,
        } = &netns;
        let peer = format!("{link}p");
        ip(&["netns", "add", name])?;
        ip(&[
            "link", "add", link, "type", "veth", "peer", "name", &peer, "netns", name,
        ])?;
        ip(&["addr", "add", "198.51.100.1/24", "dev", link])?;
        ip(&["link", "set", link, "up"])?;
        let within = ["netns", "exec", name, "ip"];
        let inside = |words: &[&str]| ip(&[&within[..], words].concat());
        inside(&["addr", "add", &format!("{address}/24"), "dev", &peer])?;
        inside(&["link", "set", &peer, "up"])?;
        inside(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Words before a command that is to run there.
    pub fn within(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name]
            .map(str::to_owned)
            .to_vec()
    }

    /// Of the other host.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Nothing passes, and nobody is told: as when a cable is pulled further away.
    pub fn cut(&self) -> Result<()> {
        let qdisc = [
            "qdisc", "add", "dev", &self.link, "root", "netem", "loss", "100%",
        ];
        let output = Command::new("tc").args(qdisc).output()?;
        if output.status.success() {
            return Ok(());
        }
        // A kernel without netem: the link itself.
        ip(&["link", "set", &self.link, "down"])
    }

    pub fn mend(&self) -> Result<()> {
        let _ = Command::new("tc")
            .args(["qdisc", "del", "dev", &self.link, "root"])
            .output();
        ip(&["link", "set", &self.link, "up"])
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The other end goes with it.
        let _ = ip(&["link", "del", &self.link]);
        let _ = ip(&["netns", "del", &self.name]);
    }
}
