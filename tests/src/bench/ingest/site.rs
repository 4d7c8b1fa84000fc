//! An authority of its own, a collector's certificate on loopback, and one for each agent.

use std::{
    net::TcpListener,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use audit_agent::server::Server;
use audit_pki::{
    ClientFiles, Credentials, Peer, Role,
    authority::{Authority, Grant},
    request::Request,
};

const DAY: Duration = Duration::from_secs(86_400);

/// Names in certificates.
pub const COLLECTOR: &str = "collector";
pub const SHIPPER: &str = "shipper";

pub struct Site {
    directory: tempfile::TempDir,
    address: String,
}

impl Site {
    pub fn new(agents: impl Iterator<Item = String>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // Free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let site = Self { directory, address };
        let authority = Authority::create(&site.path("authority"), SystemTime::now())?;
        site.issue(&authority, Role::Collector, COLLECTOR, &["127.0.0.1"])?;
        for agent in agents {
            site.issue(&authority, Role::Agent, &agent, &[])?;
        }
        Ok(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn issue(&self, authority: &Authority, role: Role, name: &str, hosts: &[&str]) -> Result<()> {
        let request = Request::new()?;
        let grant = Grant {
            peer: Peer::new(role, name)?,
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            lifetime: DAY,
        };
        let chain = authority.issue(&request.csr, &grant, SystemTime::now())?;
        request.keep(&chain, None, &self.path(name))?;
        Ok(())
    }

    pub fn collector(&self) -> ClientFiles {
        ClientFiles::within(self.path(COLLECTOR))
    }

    /// For a program that is to be compared, as an agent has them.
    pub fn shipper(&self) -> Result<ClientFiles> {
        let authority = Authority::open(&self.path("authority"))?;
        self.issue(&authority, Role::Agent, SHIPPER, &[])?;
        Ok(ClientFiles::within(self.path(SHIPPER)))
    }

    /// Of the collector.
    pub fn options(&self) -> Result<Vec<String>> {
        let path = |name: &str| self.path(name).display().to_string();
        let files = self.collector();
        Ok(vec![
            format!("listen.tcp={}", self.address),
            format!("listen.tls.certificate={}", files.certificate.display()),
            format!("listen.tls.key={}", files.key.display()),
            format!("listen.tls.authority={}", path("authority")),
        ])
    }

    /// For one agent.
    pub fn server(&self, agent: &str) -> Result<Server> {
        let credentials = Credentials::Files(ClientFiles::within(self.path(agent)));
        Ok(Server::parse(
            &format!("https://{}", self.address),
            credentials,
        )?)
    }
}
