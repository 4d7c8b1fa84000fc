//! An authority, certificates of every role, and connections that use them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use audit_collector::Config;
use audit_pki::{
    Authority, Certificate, ClientFiles, Credentials, Peer, Role, Token,
    authority::{Grant, TokenGrant, Which},
    client::ConnectError,
    request::Request,
};
use audit_proto::v1::{EnrollRequest, identity_client::IdentityClient};
use hyper_util::rt::TokioIo;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::support::{self, Collector};

pub const DAY: Duration = Duration::from_secs(86_400);

pub struct Pki {
    directory: tempfile::TempDir,
    pub authority: Authority,
}

impl Pki {
    /// With the collector's own certificate in `collector`.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("authority");
        let authority = Authority::create(&path, SystemTime::now()).expect("made");
        let pki = Self {
            directory,
            authority,
        };
        pki.issue_collector(SystemTime::now(), DAY);
        pki
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn issue_collector(&self, now: SystemTime, lifetime: Duration) -> Certificate {
        let hosts = ["localhost", "127.0.0.1"].map(str::to_owned).to_vec();
        self.issue_for(Role::Collector, "collector", hosts, now, lifetime)
    }

    fn issue_for(
        &self,
        role: Role,
        name: &str,
        hosts: Vec<String>,
        now: SystemTime,
        lifetime: Duration,
    ) -> Certificate {
        let request = Request::new().expect("request");
        let peer = Peer::new(role, name).expect("peer");
        let grant = Grant {
            peer,
            hosts,
            lifetime,
        };
        let issued = self.authority.issue(&request.csr, &grant, now);
        let chain = issued.expect("issued");
        let kept = request.keep(&chain, None, &self.path(name));
        kept.expect("kept")
    }

    /// In a directory of that name.
    pub fn issue_at(
        &self,
        role: Role,
        name: &str,
        now: SystemTime,
        lifetime: Duration,
    ) -> Credentials {
        self.issue_for(role, name, Vec::new(), now, lifetime);
        Credentials::Files(ClientFiles::within(self.path(name)))
    }

    pub fn issue(&self, role: Role, name: &str) -> Credentials {
        self.issue_at(role, name, SystemTime::now(), DAY)
    }

    pub fn revoke(&self, name: &str) {
        let which = Which::Name(name.to_owned());
        let revoked = self.authority.revoke(&which, SystemTime::now());
        assert!(!revoked.expect("revoked").is_empty());
    }

    pub fn token(&self, lifetime: Duration, now: SystemTime) -> Token {
        let grant = TokenGrant {
            role: Role::Agent,
            name: None,
            hosts: Vec::new(),
            lifetime: DAY,
            uses: 1,
        };
        let token = self.authority.token(&grant, lifetime, now);
        token.expect("token")
    }

    pub fn joining(&self) -> Credentials {
        Credentials::Joining(self.authority.fingerprint())
    }

    pub fn config(&self, data: &Path) -> Config {
        let mut config = support::config(data);
        config.listen.tcp = "127.0.0.1:0".to_owned();
        config.listen.tls.certificate = self.path("collector/cert.pem");
        config.listen.tls.key = self.path("collector/key.pem");
        config.listen.tls.authority = self.path("authority");
        config
    }

    pub async fn collector(&self, data: &Path) -> Collector {
        Collector::start(self.config(data)).await
    }
}

pub fn address(collector: &Collector) -> SocketAddr {
    collector.running().addresses.tcp.expect("tcp")
}

pub async fn dial(
    address: SocketAddr,
    credentials: &Credentials,
) -> Result<Channel, tonic::transport::Error> {
    let credentials = credentials.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let credentials = credentials.clone();
        async move {
            let stream = credentials.connect("localhost", address.port()).await?;
            Ok::<_, ConnectError>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_shared(format!("https://localhost:{}", address.port()));
    let endpoint = endpoint.expect("address");
    endpoint.connect_with_connector(connector).await
}

pub async fn connect(collector: &Collector, credentials: &Credentials) -> Channel {
    let dialled = dial(address(collector), credentials).await;
    dialled.expect("connects")
}

/// A certificate for a join token, kept in `directory`.
pub async fn enroll(
    address: SocketAddr,
    token: &Token,
    name: &str,
    directory: &Path,
) -> Result<Certificate, Status> {
    let joining = Credentials::Joining(token.authority);
    let channel = dial(address, &joining).await;
    let channel = channel.map_err(|error| Status::unavailable(format!("{error:?}")))?;
    let request = Request::new().expect("request");
    let asked = EnrollRequest {
        secret: token.secret.bytes().to_vec(),
        name: name.to_owned(),
        signing_request: request.csr.clone(),
    };
    let answer = IdentityClient::new(channel).enroll(asked).await?;
    let certificates = answer.into_inner().certificates.into_iter();
    let chain: Vec<_> = certificates.map(audit_pki::CertificateDer::from).collect();
    let kept = request.keep(&chain, Some(token.authority), directory);
    Ok(kept.expect("a good answer"))
}
