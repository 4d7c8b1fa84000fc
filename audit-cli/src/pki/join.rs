//! `hostaudit pki enroll` and `rotate`: a key made here, a certificate from a collector's authority.

use std::{io::Read as _, path::PathBuf, time::SystemTime};

use anyhow::{Context as _, Result, anyhow, bail};
use audit_pki::{CertificateDer, ClientFiles, Credentials, Token, request::Request};
use audit_proto::v1::{EnrollRequest, RotateRequest, identity_client::IdentityClient};

use super::{has_valid, kept, refuse_existing, say};
use crate::client::{self, Target, secure, tls_dir};

/// A token is 112 characters.
const MAX_TOKEN_BYTES: u64 = 4096;
const STATE_DIR: &str = "/var/lib/hostaudit";

/// Get a first certificate for this host, or for a person, with a join token
#[derive(Debug, clap::Args)]
pub struct Enroll {
    /// What `hostaudit pki token` printed; - reads it from standard input
    #[arg(long)]
    token: String,
    /// Join under this name, unless the token has one [default: this host's id]
    #[arg(long)]
    name: Option<String>,
    /// Directory for ca.pem, cert.pem and key.pem [default: $HOSTAUDIT_TLS_DIR or /etc/hostaudit/tls]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Do nothing while the certificate there is valid, and replace one that has expired
    #[arg(long)]
    if_needed: bool,
}

/// Get another certificate in place of one that is still valid
#[derive(Debug, clap::Args)]
pub struct Rotate {
    /// Do nothing while more than a fifth of its life is left
    #[arg(long)]
    if_ending: bool,
    /// Directory of ca.pem, cert.pem and key.pem [default: $HOSTAUDIT_TLS_DIR or /etc/hostaudit/tls]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

fn server(target: &Target) -> Result<&str> {
    match target.server.as_deref() {
        Some(server) if server.starts_with("https://") => Ok(server),
        _ => bail!(
            "--server https://HOST:PORT says which collector; certificates come only over TLS"
        ),
    }
}

fn chain(certificates: Vec<Vec<u8>>) -> Vec<CertificateDer<'static>> {
    certificates.into_iter().map(CertificateDer::from).collect()
}

pub async fn enroll(args: &Enroll, target: &Target) -> Result<()> {
    let server = server(target)?;
    let dir = args.dir.clone().unwrap_or_else(tls_dir);
    if !args.if_needed {
        refuse_existing(&dir)?;
    } else if has_valid(&dir, |validity, now| validity.expires_in(now).is_zero()) {
        return Ok(());
    }
    let token: Token = read_token(&args.token)?.parse()?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => host_id()?,
    };
    let request = Request::new()?;
    let channel = secure(server, Credentials::Joining(token.authority)).await;
    let channel = channel.map_err(|error| anyhow!("{server}: {error}"))?;
    let asked = EnrollRequest {
        secret: token.secret.bytes().to_vec(),
        name,
        signing_request: request.csr.clone(),
    };
    let answer = IdentityClient::new(channel).enroll(asked).await;
    let answer = answer
        .map_err(|status| client::plain(&status))?
        .into_inner();
    let certificate = request.keep(&chain(answer.certificates), Some(token.authority), &dir)?;
    say(&kept(&certificate, &dir))
}

fn read_token(given: &str) -> Result<String> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut text = String::new();
    let input = std::io::stdin().take(MAX_TOKEN_BYTES);
    { input }
        .read_to_string(&mut text)
        .context("the token on standard input")?;
    if text.trim().is_empty() {
        bail!(
            "no token on standard input; `hostaudit pki token` makes one, on the collector's host"
        );
    }
    Ok(text)
}

/// As the agent of this host will say it.
fn host_id() -> Result<String> {
    let identity = audit_agent::identity::Identity::of_host(STATE_DIR.as_ref());
    Ok(identity.context("--name gives another name")?.host_id)
}

pub async fn rotate(args: &Rotate, target: &Target) -> Result<()> {
    let server = server(target)?;
    let dir = args.dir.clone().unwrap_or_else(tls_dir);
    let files = ClientFiles::within(&dir);
    let validity = files
        .validity()
        .context("hostaudit pki enroll makes the first one")?;
    if args.if_ending && !validity.is_ending(SystemTime::now()) {
        return Ok(());
    }
    let channel = secure(server, Credentials::Files(files)).await;
    let channel = channel.map_err(|error| anyhow!("{server}: {error}"))?;
    let request = Request::new()?;
    let asked = RotateRequest {
        signing_request: request.csr.clone(),
    };
    let answer = IdentityClient::new(channel).rotate(asked).await;
    let answer = answer
        .map_err(|status| client::plain(&status))?
        .into_inner();
    let certificate = request.keep(&chain(answer.certificates), None, &dir)?;
    say(&kept(&certificate, &dir))
}
