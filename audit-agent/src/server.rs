//! Where is the collector, and how is it reached?
//!
//! Invariant: an address that parses says all that a connection needs.

use std::{
    io,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use audit_pki::{Credentials, certificate::expiry, client::ConnectError};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::sleep};
use tonic::transport::{Channel, Endpoint, Uri};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const SECURE_TIMEOUT: Duration = Duration::from_secs(20);
/// It is told early enough that a day more or less is nothing.
const CERTIFICATE_EVERY: Duration = Duration::from_secs(86_400);

/// Where the collector listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    Unix(PathBuf),
    Http(String),
    Https {
        uri: String,
        credentials: Credentials,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    #[error("server: `{0}` is neither unix:///path nor https://host:port nor http://host:port")]
    Form(String),
}

impl Server {
    /// `credentials` are for https.
    pub fn parse(text: &str, credentials: Credentials) -> Result<Self, ServerError> {
        let malformed = || ServerError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(malformed())
            };
        }
        let uri: Uri = text.parse().map_err(|_| malformed())?;
        if uri.host().is_none() || uri.port().is_none() {
            return Err(malformed());
        }
        let uri = text.to_owned();
        match text.split_once("://") {
            Some(("http", _)) => Ok(Self::Http(uri)),
            Some(("https", _)) => Ok(Self::Https { uri, credentials }),
            _ => Err(malformed()),
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Http(uri) | Self::Https { uri, .. } => f.write_str(uri),
        }
    }
}

impl Server {
    /// Whether the collector runs on this host.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Http(uri) | Self::Https { uri, .. } => {
                let uri = uri.parse::<Uri>().ok();
                let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
                let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
                host == "localhost" || address.is_ok_and(|address| address.is_loopback())
            }
        }
    }

    /// Reads the credentials anew, so that another certificate is used without a restart.
    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        match self {
            Self::Http(uri) => {
                configure(Endpoint::from_shared(uri.clone())?)
                    .connect()
                    .await
            }
            Self::Https { uri, credentials } => {
                let credentials = credentials.clone();
                let connector = tower::service_fn(move |uri: Uri| {
                    let credentials = credentials.clone();
                    async move {
                        let (host, port) = (uri.host(), uri.port_u16());
                        // Both are there, or it would not have parsed.
                        let (host, port) = (host.unwrap_or_default(), port.unwrap_or_default());
                        let stream = credentials.connect(host, port).await?;
                        Ok::<_, ConnectError>(TokioIo::new(stream))
                    }
                });
                configure(Endpoint::from_shared(uri.clone())?)
                    // It has deadlines of its own, and says which one has passed.
                    .connect_timeout(SECURE_TIMEOUT)
                    .connect_with_connector(connector)
                    .await
            }
            Self::Unix(path) => {
                let path = path.clone();
                let connector = tower::service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
                });
                // The name is never resolved; HTTP/2 wants an authority.
                configure(Endpoint::from_static("http://localhost"))
                    .connect_with_connector(connector)
                    .await
            }
        }
    }

    /// What is to be said of its certificate, and whether it is a warning.
    pub fn certificate(&self) -> Option<(String, bool)> {
        let Self::Https {
            credentials: Credentials::Files(files),
            ..
        } = self
        else {
            return None;
        };
        let now = SystemTime::now();
        let path = files.certificate.display();
        Some(match files.validity() {
            Ok(validity) if validity.is_ending(now) => {
                let left = expiry(validity.expires_in(now));
                (
                    format!("the certificate {path} {left}; hostaudit pki rotate gets another"),
                    true,
                )
            }
            Ok(validity) => (
                format!(
                    "the certificate {path} {}",
                    expiry(validity.expires_in(now))
                ),
                false,
            ),
            Err(error) => (format!("{error}; hostaudit pki enroll makes it"), true),
        })
    }

    /// Says so in the log, day after day, while the certificate is about to end.
    pub async fn watch_certificate(&self) -> ! {
        loop {
            if let Some((text, true)) = self.certificate() {
                tracing::warn!(server = %self, "{text}");
            }
            sleep(CERTIFICATE_EVERY).await;
        }
    }
}

fn configure(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> Credentials {
        Credentials::Files(audit_pki::ClientFiles::within("/tls"))
    }

    fn parse(text: &str) -> Result<Server, ServerError> {
        Server::parse(text, credentials())
    }

    #[test]
    fn addresses_parse_or_say_what_is_wrong() {
        let unix = parse("unix:///run/x.sock").expect("unix");
        assert_eq!(unix, Server::Unix("/run/x.sock".into()));
        assert_eq!(unix.to_string(), "unix:///run/x.sock");
        let http = parse("http://[::1]:4620").expect("http");
        assert!(http.is_local() && unix.is_local());
        let far = parse("https://collector.example:4620").expect("https");
        assert!(!far.is_local() && matches!(far, Server::Https { .. }));
        assert_eq!(far.to_string(), "https://collector.example:4620");
        for bad in [
            "",
            "unix://relative",
            "http://host",
            "https://host",
            "tcp://h:1",
            "/run/x.sock",
        ] {
            assert!(matches!(parse(bad), Err(ServerError::Form(_))), "{bad}");
        }
    }

    #[tokio::test]
    async fn credentials_that_are_not_there_are_told_with_what_makes_them() {
        let server = parse("https://localhost:1").expect("https");
        let (text, warn) = server.certificate().expect("it has one");
        assert!(
            warn && text.contains("/tls/cert.pem") && text.contains("pki enroll"),
            "{text}"
        );
        let error = server.connect().await.expect_err("no files");
        let said = format!("{error:?}");
        assert!(said.contains("/tls/"), "{said}");
        assert!(
            parse("http://localhost:1")
                .expect("http")
                .certificate()
                .is_none()
        );
    }
}
