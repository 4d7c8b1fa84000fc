//! Which tokens are there, and what does each grant?

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{AuthorityError, Grant};
use crate::{
    certificate::unix_s,
    files::{self, FileError, For},
    role::{Peer, Role},
    token::Secret,
};

pub const DIRECTORY: &str = "tokens";
const USED: &str = "used";

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenGrant {
    pub role: Role,
    /// Without one, who joins gives its own, which nobody else may have.
    pub name: Option<String>,
    pub hosts: Vec<String>,
    /// Of the certificate.
    pub lifetime: Duration,
    /// How many may join with it. More than one only without a name.
    pub uses: u32,
}

impl TokenGrant {
    pub(super) fn grant(&self, name: &str) -> Result<Grant, AuthorityError> {
        let name = self.name.as_deref().unwrap_or(name);
        Ok(Grant {
            peer: Peer::new(self.role, name)?,
            hosts: self.hosts.clone(),
            lifetime: self.lifetime,
        })
    }
}

/// As kept in a file.
#[derive(Serialize, Deserialize)]
struct Kept {
    role: String,
    name: Option<String>,
    hosts: Vec<String>,
    lifetime_s: u64,
    expires_s: i64,
    #[serde(default = "one")]
    uses: u32,
    #[serde(default)]
    used: u32,
}

fn one() -> u32 {
    1
}

fn path(directory: &Path, secret: &Secret) -> PathBuf {
    directory.join(DIRECTORY).join(secret.hash())
}

/// Keeps a token, and drops those that have expired.
pub fn keep(
    directory: &Path,
    secret: &Secret,
    grant: &TokenGrant,
    expires: SystemTime,
    now: SystemTime,
) -> Result<(), AuthorityError> {
    // That it can be granted is found out now, and not by who joins.
    grant.grant("any")?;
    for host in &grant.hosts {
        super::san(host)?;
    }
    drop_expired(&directory.join(DIRECTORY), now);
    let kept = Kept {
        role: grant.role.to_string(),
        name: grant.name.clone(),
        hosts: grant.hosts.clone(),
        lifetime_s: grant.lifetime.as_secs(),
        expires_s: unix_s(expires),
        uses: grant.uses,
        used: 0,
    };
    write(&path(directory, secret), &kept)
}

fn write(path: &Path, kept: &Kept) -> Result<(), AuthorityError> {
    let text = serde_json::to_vec(kept).map_err(|error| damaged(path, &error))?;
    Ok(files::write(path, &text, For::Owner)?)
}

fn read(path: &Path) -> Result<Kept, AuthorityError> {
    let text = files::read(path)?;
    serde_json::from_slice(&text).map_err(|error| damaged(path, &error))
}

fn damaged(path: &Path, error: &serde_json::Error) -> AuthorityError {
    AuthorityError::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// One that cannot be read or removed is left for another time.
fn drop_expired(directory: &Path, now: SystemTime) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if read(&path).is_ok_and(|kept| kept.expires_s < unix_s(now)) {
            let _ = fs::remove_file(path);
        }
    }
}

pub fn find(
    directory: &Path,
    secret: &Secret,
    now: SystemTime,
) -> Result<TokenGrant, AuthorityError> {
    let path = path(directory, secret);
    if path.with_extension(USED).exists() {
        return Err(AuthorityError::TokenUsed);
    }
    if !path.exists() {
        return Err(AuthorityError::TokenUnknown);
    }
    let kept = read(&path)?;
    if kept.expires_s < unix_s(now) {
        return Err(AuthorityError::TokenExpired);
    }
    Ok(TokenGrant {
        role: kept.role.parse()?,
        name: kept.name,
        hosts: kept.hosts,
        lifetime: Duration::from_secs(kept.lifetime_s),
        uses: kept.uses,
    })
}

/// Once. The caller holds the authority's lock, and has found it.
pub fn use_up(directory: &Path, secret: &Secret) -> Result<(), AuthorityError> {
    let path = path(directory, secret);
    let mut kept = read(&path)?;
    kept.used += 1;
    if kept.used < kept.uses {
        return write(&path, &kept);
    }
    let used = path.with_extension(USED);
    let renamed = fs::rename(&path, &used).and_then(|()| {
        let directory = directory.join(DIRECTORY);
        fs::File::open(directory)?.sync_all()
    });
    Ok(renamed.map_err(|source| FileError { path, source })?)
}
