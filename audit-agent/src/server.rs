//! Where is the collector, and how is it reached?
//!
//! Invariant: an address that parses says all that a connection needs.

use std::{io, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the collector listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    Unix(PathBuf),
    Http(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    #[error("server: `{0}` is neither unix:///path nor http://host:port")]
    Form(String),
    #[error(
        "server: `{0}`: TLS is not supported yet; use http:// over loopback or a tunnel, or unix:///path"
    )]
    Tls(String),
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        let malformed = || ServerError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(malformed())
            };
        }
        if text.starts_with("https://") {
            return Err(ServerError::Tls(text.to_owned()));
        }
        let uri: Uri = text.parse().map_err(|_| malformed())?;
        let whole =
            uri.scheme_str() == Some("http") && uri.host().is_some() && uri.port().is_some();
        if whole {
            Ok(Self::Http(text.to_owned()))
        } else {
            Err(malformed())
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Http(uri) => f.write_str(uri),
        }
    }
}

impl Server {
    /// Whether the collector runs on this host.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Http(uri) => {
                let uri = uri.parse::<Uri>().ok();
                let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
                let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
                host == "localhost" || address.is_ok_and(|address| address.is_loopback())
            }
        }
    }

    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let configure = |endpoint: Endpoint| {
            endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(10))
                .keep_alive_while_idle(true)
                .tcp_nodelay(true)
        };
        match self {
            Self::Http(uri) => {
                configure(Endpoint::from_shared(uri.clone())?)
                    .connect()
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_or_say_what_is_wrong() {
        let unix: Server = "unix:///run/x.sock".parse().expect("unix");
        assert_eq!(unix, Server::Unix("/run/x.sock".into()));
        assert_eq!(unix.to_string(), "unix:///run/x.sock");
        let http: Server = "http://[::1]:4620".parse().expect("http");
        assert!(http.is_local() && unix.is_local());
        let far: Server = "http://collector.example:4620".parse().expect("http");
        assert!(!far.is_local());
        for bad in [
            "",
            "unix://relative",
            "http://host",
            "tcp://h:1",
            "/run/x.sock",
        ] {
            assert!(
                matches!(bad.parse::<Server>(), Err(ServerError::Form(_))),
                "{bad}"
            );
        }
        assert!(matches!(
            "https://h:1".parse::<Server>(),
            Err(ServerError::Tls(_))
        ));
    }
}
