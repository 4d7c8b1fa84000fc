//! `hostaudit pki`: an authority, and certificates from it. What needs the authority's directory is
//! here; what asks a collector is in [`join`].

mod join;

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use audit_pki::{
    Authority, CERTIFICATE_FILE, Certificate, ClientFiles, KEY_FILE, Peer, Role,
    authority::{Grant, TokenGrant, Which},
    certificate::{Validity, expiry},
    request::{Request, existing_key},
};

use crate::{client::Target, output::Output, table::Table, terminal::Terminal, when};

const AUTHORITY: &str = "/var/lib/hostaudit/authority";
const DAY: Duration = Duration::from_secs(86_400);
/// A year and some days: who forgets one for longer has forgotten it.
const MAX_DAYS: u32 = 398;
/// For a fleet that grows. A token lies about somewhere until it is used.
const MAX_TTL: Duration = DAY.saturating_mul(MAX_DAYS);
/// More than any cluster has nodes.
const MAX_USES: u32 = 100_000;

const EXAMPLES: &str = "\
On the collector's host, once:
  sudo hostaudit pki init
  sudo hostaudit pki issue --role collector --name collector --host collector.example.org \\
       --out /etc/hostaudit/collector-tls
  # in collector.yaml: listen.tls.{certificate,key,authority}, listen.tcp: 0.0.0.0:4620
For each host:
  sudo hostaudit pki token                                  on the collector's host; prints TOKEN
  sudo hostaudit pki enroll --server https://collector.example.org:4620 --token TOKEN
  # in agent.yaml: server: https://collector.example.org:4620
For a fleet, whose hosts come and go:
  sudo hostaudit pki token --uses 500 --ttl 90d
For a person:
  sudo hostaudit pki token --role analyst --name alice
  HOSTAUDIT_TLS_DIR=~/.hostaudit hostaudit pki enroll --server https://... --token TOKEN
Every day, where a certificate is in use:
  hostaudit pki rotate --if-ending --server https://collector.example.org:4620
When a key is lost:
  sudo hostaudit pki revoke --name alice

Roles: agent (delivers its own host's record), reader (status, tail, alerts), analyst (and SQL),
admin (everything but delivering), collector (answers). docs/identity.md says what is checked where.";

/// Certificates: make an authority, let hosts join, renew, revoke
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Pki {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make an authority
    Init {
        /// Its directory; the collector must be able to read it, so that hosts can join
        #[arg(default_value = AUTHORITY)]
        directory: PathBuf,
        /// Do nothing where there is one already
        #[arg(long)]
        if_needed: bool,
    },
    /// Make a key and a certificate here, for the collector or for somebody who cannot enroll
    Issue {
        #[command(flatten)]
        authority: AuthorityDir,
        #[command(flatten)]
        subject: Subject,
        /// Host id of an agent, or name of a person or service
        #[arg(long)]
        name: String,
        /// Directory for ca.pem, cert.pem and key.pem, which then belong to its owner
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Do nothing while there is a certificate of which more than a fifth of its life is left, and
        /// replace any other
        #[arg(long)]
        if_needed: bool,
    },
    /// Print a join token, with which one host or person gets one certificate, or a fleet one each
    Token {
        #[command(flatten)]
        authority: AuthorityDir,
        #[command(flatten)]
        subject: Subject,
        /// Whom it is for: an agent's host id, or a name; without one an agent joins as its host's id
        #[arg(long)]
        name: Option<String>,
        /// How long the token may be used: 30m, 1h, 2d
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = time)]
        ttl: Duration,
        /// How many hosts may join with it, each once; who has it can pretend to be a host that has not
        /// joined yet
        #[arg(long, default_value_t = 1, value_name = "N", conflicts_with = "name",
            value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_USES)))]
        uses: u32,
    },
    Enroll(join::Enroll),
    Rotate(join::Rotate),
    /// Revoke certificates; collectors that read this authority's list end their connections at once
    Revoke {
        #[command(flatten)]
        authority: AuthorityDir,
        #[command(flatten)]
        which: Revoked,
    },
    /// List certificates: who, until when, revoked or not
    List {
        #[command(flatten)]
        authority: AuthorityDir,
    },
}

#[derive(Debug, clap::Args)]
struct AuthorityDir {
    /// Directory of the authority
    #[arg(long = "authority", default_value = AUTHORITY, value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Subject {
    /// agent, reader, analyst, admin or collector
    #[arg(long, default_value = "agent")]
    role: Role,
    /// DNS name or address under which a collector answers; may be repeated
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// How long the certificate is good
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS)))]
    days: u32,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Revoked {
    /// All certificates of this name
    #[arg(long)]
    name: Option<String>,
    /// The one with this serial number, as `hostaudit pki list` prints it
    #[arg(long)]
    serial: Option<String>,
}

/// As after `--since`, here counted from now on.
fn time(text: &str) -> Result<Duration, String> {
    let read = when::duration(text).map(jiff::SignedDuration::unsigned_abs);
    read.filter(|time| !time.is_zero() && *time <= MAX_TTL)
        .ok_or_else(|| format!("write how long it may be used: 30m, 1h, 2d; at most {MAX_DAYS}d"))
}

pub async fn run(args: &Pki, target: &Target, terminal: &Terminal) -> Result<()> {
    match &args.command {
        Command::Init {
            directory,
            if_needed,
        } => match Authority::open(directory) {
            Ok(_) if *if_needed => Ok(()),
            _ => init(directory),
        },
        Command::Issue {
            authority,
            subject,
            name,
            out,
            if_needed,
        } => issue(&open(authority)?, subject, name, out, *if_needed),
        Command::Token {
            authority,
            subject,
            name,
            ttl,
            uses,
        } => token(&open(authority)?, subject, name.as_deref(), *ttl, *uses),
        Command::Enroll(args) => join::enroll(args, target).await,
        Command::Rotate(args) => join::rotate(args, target).await,
        Command::Revoke { authority, which } => revoke(&open(authority)?, which),
        Command::List { authority } => list(&open(authority)?, terminal),
    }
}

fn open(authority: &AuthorityDir) -> Result<Authority> {
    Authority::open(&authority.directory).context("the authority")
}

fn say(text: &str) -> Result<()> {
    let mut out = Output::new();
    out.text(text)?;
    Ok(out.flush()?)
}

fn init(directory: &Path) -> Result<()> {
    let authority = Authority::create(directory, SystemTime::now())?;
    say(&format!(
        "made an authority in {}, SHA-256 {}\n\
         Keep a copy of ca.key where nobody reads it: who has it can be anybody.\n\
         Next, the collector's certificate: hostaudit pki issue --role collector --name collector \
         --host NAME --out DIR\n",
        directory.display(),
        authority.fingerprint()
    ))
}

impl Subject {
    /// Clients dial a name; one that the certificate does not have is no collector's for them.
    fn check(&self) -> Result<()> {
        match (self.role, self.hosts.is_empty()) {
            (Role::Collector, true) => {
                bail!("a collector needs --host, the name or address that agents dial")
            }
            (Role::Collector, false) | (_, true) => Ok(()),
            (role, false) => {
                bail!("--host is for collectors; a certificate of role {role} answers nobody")
            }
        }
    }

    fn lifetime(&self) -> Duration {
        DAY * self.days
    }
}

fn issue(
    authority: &Authority,
    subject: &Subject,
    name: &str,
    out: &Path,
    if_needed: bool,
) -> Result<()> {
    subject.check()?;
    if !if_needed {
        refuse_existing(out)?;
    } else if has_valid(out, Validity::is_ending) {
        return Ok(());
    }
    let request = Request::new()?;
    let grant = Grant {
        peer: Peer::new(subject.role, name)?,
        hosts: subject.hosts.clone(),
        lifetime: subject.lifetime(),
    };
    let chain = authority.issue(&request.csr, &grant, SystemTime::now())?;
    let certificate = request.keep(&chain, Some(authority.fingerprint()), out)?;
    say(&kept(&certificate, out))
}

/// Whether a directory of credentials has a certificate that need not be replaced.
fn has_valid(directory: &Path, is_over: impl Fn(&Validity, SystemTime) -> bool) -> bool {
    let validity = ClientFiles::within(directory).validity();
    validity.is_ok_and(|validity| !is_over(&validity, SystemTime::now()))
}

fn refuse_existing(directory: &Path) -> Result<()> {
    match existing_key(directory) {
        Some(key) => bail!(
            "{} is there already; `hostaudit pki rotate` replaces it while its certificate is valid; \
             remove it to begin anew",
            key.display()
        ),
        None => Ok(()),
    }
}

fn kept(certificate: &Certificate, directory: &Path) -> String {
    let left = certificate.validity.expires_in(SystemTime::now());
    format!(
        "{}: {}, {}, in {CERTIFICATE_FILE} and {KEY_FILE}\n",
        directory.display(),
        certificate.peer,
        expiry(left)
    )
}

fn token(
    authority: &Authority,
    subject: &Subject,
    name: Option<&str>,
    ttl: Duration,
    uses: u32,
) -> Result<()> {
    subject.check()?;
    if let Some(name) = name {
        Peer::new(subject.role, name)?;
    } else if subject.role != Role::Agent {
        bail!(
            "a token of role {} needs --name: who joins cannot choose one",
            subject.role
        );
    }
    let grant = TokenGrant {
        role: subject.role,
        name: name.map(str::to_owned),
        hosts: subject.hosts.clone(),
        lifetime: subject.lifetime(),
        uses,
    };
    let token = authority.token(&grant, ttl, SystemTime::now())?;
    // Nothing else, so that a script can take it.
    say(&format!("{token}\n"))
}

fn revoke(authority: &Authority, which: &Revoked) -> Result<()> {
    let which = match (&which.name, &which.serial) {
        (Some(name), _) => Which::Name(name.clone()),
        (None, Some(serial)) => Which::Serial(serial.clone()),
        (None, None) => bail!("--name or --serial says which"),
    };
    let revoked = authority.revoke(&which, SystemTime::now())?;
    let lines = revoked
        .iter()
        .map(|one| format!("revoked {} {}\n", one.serial, one.peer));
    say(&lines.collect::<String>())
}

fn list(authority: &Authority, terminal: &Terminal) -> Result<()> {
    let now = SystemTime::now();
    let clock = when::Clock::system();
    let mut table = Table::new(["serial", "who", "until", "state"]);
    for one in authority.issued()? {
        let state = match one.revoked_s {
            Some(_) => "revoked",
            None if one.is_valid(now) => "valid",
            None => "expired",
        };
        let until = clock.local(one.not_after_s.saturating_mul(1_000_000));
        table.row([
            one.serial.clone(),
            one.peer.clone(),
            until,
            state.to_owned(),
        ]);
    }
    say(&table.render(terminal.width, terminal.palette, terminal.glyphs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::color::Choice;

    #[test]
    fn times_have_a_number_and_a_unit() {
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("2d"), Ok(DAY * 2));
        for bad in ["", "h", "0h", "1", "1y", "-1h", "1.5h", "1ä", "399d"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_authority_issues_lists_and_revokes_and_overwrites_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (ca, out) = (dir.path().join("ca"), dir.path().join("tls"));
        init(&ca).expect("made");
        let authority = open(&AuthorityDir {
            directory: ca.clone(),
        })
        .expect("opens");
        let mut subject = Subject {
            role: Role::Collector,
            hosts: Vec::new(),
            days: 90,
        };
        let error = issue(&authority, &subject, "c", &out, false).expect_err("no host");
        assert!(error.to_string().contains("--host"), "{error}");
        subject.hosts = vec!["localhost".to_owned()];
        issue(&authority, &subject, "c", &out, false).expect("issued");
        issue(&authority, &subject, "c", &out, true).expect("nothing to do");
        assert_eq!(authority.issued().expect("list").len(), 1);
        let error = issue(&authority, &subject, "c", &out, false).expect_err("there already");
        assert!(error.to_string().contains("pki rotate"), "{error}");
        subject.role = Role::Admin;
        let error = issue(&authority, &subject, "c", &out, false).expect_err("hosts");
        assert!(error.to_string().contains("for collectors"), "{error}");
        subject.hosts.clear();
        let error = token(&authority, &subject, None, DAY, 1).expect_err("nameless");
        assert!(error.to_string().contains("--name"), "{error}");
        token(&authority, &subject, Some("alice"), DAY, 1).expect("token");
        list(&authority, &Terminal::detect(Choice::Never)).expect("listed");
        let which = |name: &str| Revoked {
            name: Some(name.to_owned()),
            serial: None,
        };
        revoke(&authority, &which("c")).expect("revoked");
        revoke(&authority, &which("c")).expect_err("nothing is left");
        assert!(init(&ca).is_err(), "never twice");
    }
}
