//! Whose certificates do a test's collector and agents have? Those of an authority of its own.

use std::{
    net::{SocketAddr, TcpListener},
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

pub struct Site {
    directory: tempfile::TempDir,
    address: SocketAddr,
}

impl Site {
    /// Of a collector on loopback.
    pub fn new() -> Result<Self> {
        // Free a moment ago.
        Self::at(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
    }

    /// Of a collector that will listen there.
    pub fn at(address: SocketAddr) -> Result<Self> {
        let site = Self {
            directory: tempfile::tempdir()?,
            address,
        };
        let authority = Authority::create(&site.path("authority"), SystemTime::now())?;
        let host = address.ip().to_string();
        site.issue(&authority, Role::Collector, COLLECTOR, &[&host])?;
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

    /// Of an agent, or of a program that is to be compared with one.
    pub fn agent(&self, name: &str) -> Result<ClientFiles> {
        let authority = Authority::open(&self.path("authority"))?;
        self.issue(&authority, Role::Agent, name, &[])?;
        Ok(ClientFiles::within(self.path(name)))
    }

    /// Of a program that reads.
    pub fn reader(&self, name: &str) -> Result<PathBuf> {
        let authority = Authority::open(&self.path("authority"))?;
        self.issue(&authority, Role::Reader, name, &[])?;
        Ok(self.path(name))
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Of an agent on the host of this id.
    pub fn agent_options(&self, host_id: &str) -> Result<Vec<String>> {
        let files = self.agent(host_id)?;
        Ok(vec![
            format!("server={}", self.url()),
            format!("tls.ca={}", files.ca.display()),
            format!("tls.certificate={}", files.certificate.display()),
            format!("tls.key={}", files.key.display()),
        ])
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
        let credentials = Credentials::Files(self.agent(agent)?);
        Ok(Server::parse(&self.url(), credentials)?)
    }
}
