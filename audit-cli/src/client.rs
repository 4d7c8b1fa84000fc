//! Which collector to talk to, and how: `--server`, else the socket of a data directory, else the
//! system's. What was tried and why it did not answer is part of the error.

use std::{
    env,
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, anyhow, bail};
use audit_agent::server::Server;
use audit_pki::{ClientFiles, Credentials, client::ConnectError};
use audit_proto::{
    MAX_MESSAGE_BYTES,
    v1::{collector_client::CollectorClient, ledger_client::LedgerClient},
};
use tonic::{
    Status,
    codec::CompressionEncoding,
    transport::{Channel, Endpoint},
};

/// Where a collector's socket is inside its data directory.
pub const SOCKET_NAME: &str = "collector.sock";
/// What `up` uses, relative to the current directory.
pub const DEFAULT_DATA: &str = "hostaudit-data";
const TLS_DIR: &str = "/etc/hostaudit/tls";
const SYSTEM_SOCKET: &str = "/run/hostaudit/collector.sock";
/// A local socket answers at once; a collector elsewhere may be a slow link away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub type Client = CollectorClient<Channel>;

/// The options that say which collector is meant.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Target {
    /// Collector to ask: unix:///path/to/collector.sock, https://host:port or http://host:port
    #[arg(long, global = true, value_name = "ADDR")]
    pub server: Option<String>,
    /// Data directory of the collector (its socket is DIR/collector.sock)
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub tls: Tls,
}

/// Who we are for an https collector, and which authority it has to be of.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Tls {
    /// Authority of an https collector [default: ca.pem in $HOSTAUDIT_TLS_DIR or /etc/hostaudit/tls]
    #[arg(long = "tls-ca", global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Own certificate [default: cert.pem there]
    #[arg(long = "tls-cert", global = true, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Own private key [default: key.pem there]
    #[arg(long = "tls-key", global = true, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// The directory with credentials, unless single files are named.
pub fn tls_dir() -> PathBuf {
    env::var_os("HOSTAUDIT_TLS_DIR").map_or_else(|| PathBuf::from(TLS_DIR), PathBuf::from)
}

impl Tls {
    pub fn files(&self) -> ClientFiles {
        let usual = ClientFiles::within(tls_dir());
        ClientFiles {
            ca: self.ca.clone().unwrap_or(usual.ca),
            certificate: self.certificate.clone().unwrap_or(usual.certificate),
            key: self.key.clone().unwrap_or(usual.key),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Socket(PathBuf),
    Http(String),
    Https { url: String, files: ClientFiles },
}

impl Target {
    /// In the order in which they are tried.
    pub fn candidates(&self, current: &Path) -> Result<Vec<Address>> {
        if let Some(server) = &self.server {
            return Ok(vec![self.address(server)?]);
        }
        if let Some(data) = &self.data {
            return Ok(vec![Address::Socket(current.join(data).join(SOCKET_NAME))]);
        }
        Ok(vec![
            Address::Socket(current.join(DEFAULT_DATA).join(SOCKET_NAME)),
            Address::Socket(SYSTEM_SOCKET.into()),
        ])
    }

    pub async fn connect(&self) -> Result<Client> {
        self.channel().await.map(client)
    }

    /// The same collector's sealed batches.
    pub async fn ledger(&self) -> Result<LedgerClient<Channel>> {
        let channel = self.channel().await?;
        Ok(LedgerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    async fn channel(&self) -> Result<Channel> {
        let mut tried = String::new();
        for address in self.candidates(&env::current_dir()?)? {
            match address.channel().await {
                Ok(channel) => return Ok(channel),
                Err(reason) => write!(tried, "\n  {address}: {reason}")?,
            }
        }
        bail!(
            "no collector answers. Tried:{tried}\nStart one with `hostaudit up`, or say where it \
             is with --data DIR or --server ADDR."
        )
    }

    fn address(&self, server: &str) -> Result<Address> {
        if let Some(path) = server.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return Ok(Address::Socket(path.into()));
        }
        if server.starts_with("http://") {
            return Ok(Address::Http(server.to_owned()));
        }
        if server.starts_with("https://") {
            return Ok(Address::Https {
                url: server.to_owned(),
                files: self.tls.files(),
            });
        }
        bail!(
            "--server {server:?}: write unix:///path/to/collector.sock, https://host:port or \
             http://host:port"
        )
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Socket(path) => write!(f, "{}", path.display()),
            Address::Http(url) | Address::Https { url, .. } => f.write_str(url),
        }
    }
}

impl Address {
    pub async fn connect(&self) -> Result<Client, String> {
        self.channel().await.map(client)
    }

    async fn channel(&self) -> Result<Channel, String> {
        match self {
            Address::Https { url, files } => secure(url, Credentials::Files(files.clone())).await,
            _ => self.plain().await,
        }
    }

    async fn plain(&self) -> Result<Channel, String> {
        let url = match self {
            Address::Socket(path) => {
                probe(path).await?;
                format!("unix://{}", path.display())
            }
            Address::Http(url) | Address::Https { url, .. } => url.clone(),
        };
        Endpoint::from_shared(url)
            .map_err(|e| format!("not an address: {e}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .connect()
            .await
            .map_err(|e| root_cause(&e))
    }
}

fn client(channel: Channel) -> Client {
    CollectorClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .accept_compressed(CompressionEncoding::Zstd)
}

/// A connection on which both ends have proved who they are.
pub async fn secure(url: &str, credentials: Credentials) -> Result<Channel, String> {
    let server = Server::parse(url, credentials).map_err(|e| e.to_string())?;
    server.connect().await.map_err(|e| root_cause(&e))
}

/// Says what is wrong with a socket in words; a channel only says "transport error".
async fn probe(path: &Path) -> Result<(), String> {
    match tokio::net::UnixStream::connect(path).await {
        Ok(_) => Ok(()),
        Err(e) => Err(match e.kind() {
            io::ErrorKind::NotFound => "no such socket".to_owned(),
            io::ErrorKind::ConnectionRefused => "nobody listens there any more".to_owned(),
            io::ErrorKind::PermissionDenied => {
                "permission denied; run as root or as a member of the socket's group".to_owned()
            }
            _ => e.to_string(),
        }),
    }
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    // It says all of its own causes.
    while !cause.is::<ConnectError>()
        && let Some(source) = cause.source()
    {
        cause = source;
    }
    cause.to_string()
}

/// A refused request as a person reads it.
pub fn plain(status: &Status) -> anyhow::Error {
    use tonic::Code;
    match status.code() {
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::DataLoss => anyhow!("{}", status.message()),
        Code::Unimplemented => anyhow!(
            "this collector does not know the request; is it a hostaudit collector of this version?"
        ),
        Code::Unavailable => anyhow!("the collector went away: {}", status.message()),
        Code::PermissionDenied | Code::Unauthenticated | Code::AlreadyExists => {
            anyhow!("the collector refuses: {}", status.message())
        }
        code => anyhow!("the collector answers {code:?}: {}", status.message()),
    }
}

/// Whether asking again later can help.
pub fn is_passing(status: &Status) -> bool {
    use tonic::Code;
    // A server that stops mid-stream shows as Unknown, Internal or Cancelled, by where it was.
    !matches!(
        status.code(),
        Code::InvalidArgument
            | Code::OutOfRange
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::DataLoss
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(server: Option<&str>, data: Option<&str>) -> Result<Vec<Address>> {
        let target = Target {
            server: server.map(str::to_owned),
            data: data.map(PathBuf::from),
            ..Target::default()
        };
        target.candidates(Path::new("/home/a"))
    }

    #[test]
    fn server_wins_over_data_wins_over_the_defaults() {
        let socket = |path: &str| Address::Socket(path.into());
        assert_eq!(
            candidates(Some("unix:///run/x.sock"), Some("d")).expect("ok"),
            [socket("/run/x.sock")]
        );
        assert_eq!(
            candidates(Some("http://[::1]:4620"), None).expect("ok"),
            [Address::Http("http://[::1]:4620".to_owned())]
        );
        assert_eq!(
            candidates(None, Some("d")).expect("ok"),
            [socket("/home/a/d/collector.sock")]
        );
        assert_eq!(
            candidates(None, None).expect("ok"),
            [
                socket("/home/a/hostaudit-data/collector.sock"),
                socket("/run/hostaudit/collector.sock")
            ]
        );
    }

    #[test]
    fn an_address_of_another_form_is_refused_by_name() {
        for bad in ["localhost:4620", "ftp://a", "/run/x.sock"] {
            let error = candidates(Some(bad), None).expect_err(bad).to_string();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[tokio::test]
    async fn an_https_collector_without_credentials_names_the_file_that_is_missing() {
        let mut target = Target {
            server: Some("https://127.0.0.1:1".to_owned()),
            ..Target::default()
        };
        target.tls.ca = Some("/nowhere/ca.pem".into());
        target.tls.certificate = Some("/nowhere/mine.pem".into());
        let error = target.connect().await.expect_err("none").to_string();
        assert!(error.contains("/nowhere/mine.pem"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_told_and_not_asked_for_again() {
        let status = Status::data_loss("x.parquet: the file is damaged");
        assert!(!is_passing(&status));
        assert_eq!(plain(&status).to_string(), status.message());
    }

    #[tokio::test]
    async fn no_collector_tells_what_was_tried() {
        let dir = tempfile::tempdir().expect("a directory");
        let target = Target {
            server: None,
            data: Some(dir.path().into()),
            ..Target::default()
        };
        let error = target
            .connect()
            .await
            .expect_err("nobody there")
            .to_string();
        assert!(
            error.contains("collector.sock: no such socket") && error.contains("hostaudit up"),
            "{error}"
        );

        let listener =
            std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET_NAME)).expect("bound");
        drop(listener);
        let error = target.connect().await.expect_err("stale").to_string();
        assert!(error.contains("nobody listens"), "{error}");
    }
}
