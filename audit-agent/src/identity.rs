//! Which host, which boot, which run of the agent? Together they name the stream of batches.
//!
//! Invariants: the host id outlives reboots and reinstalls of the agent; the run is new with every
//! start, so numbers that begin again at 1 never meet older ones.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use audit_proto::{text::escape, v1::Host};
use rustix::rand::{GetRandomFlags, getrandom};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub host_id: String,
    pub host_name: String,
    pub boot_id: String,
    /// 12 hexadecimal digits.
    pub run: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{what} ({}): {source}; {advice}", path.display())]
pub struct IdentityError {
    what: &'static str,
    path: PathBuf,
    advice: &'static str,
    #[source]
    source: io::Error,
}

impl Identity {
    pub fn of_host(state_dir: &Path) -> Result<Self, IdentityError> {
        let name = fs::read("/proc/sys/kernel/hostname").unwrap_or_default();
        Ok(Self {
            host_id: host_id(Path::new("/etc/machine-id"), state_dir)?,
            host_name: escape(name.trim_ascii()).into_owned(),
            boot_id: boot_id()?,
            run: random_hex(6).map_err(|source| IdentityError {
                what: "no randomness for the run's name",
                path: PathBuf::from("getrandom"),
                advice: "the kernel must support getrandom",
                source,
            })?,
        })
    }

    pub fn host(&self) -> Host {
        let Self {
            host_id,
            host_name,
            boot_id,
            run,
        } = self.clone();
        Host {
            id: host_id,
            name: host_name,
            boot_id,
            run,
        }
    }
}

/// As the kernel names this boot.
pub fn boot_id() -> Result<String, IdentityError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(|source| IdentityError {
        what: "the boot id cannot be read",
        path: path.to_owned(),
        advice: "is /proc mounted?",
        source,
    })?;
    Ok(text.trim().to_owned())
}

/// The machine id, else the id kept in `state_dir`, else a new one that is kept there.
fn host_id(machine_id: &Path, state_dir: &Path) -> Result<String, IdentityError> {
    if let Some(id) = read_id(machine_id) {
        return Ok(id);
    }
    let path = state_dir.join("host-id");
    if let Some(id) = read_id(&path) {
        return Ok(id);
    }
    let kept = random_hex(16).and_then(|id| keep(&path, &id).map(|()| id));
    match kept {
        Ok(id) => {
            tracing::info!(host_id = %id, path = %path.display(), "no machine id on this host; made one");
            Ok(id)
        }
        Err(source) => Err(IdentityError {
            what: "this host has no /etc/machine-id and the agent cannot keep an id of its own",
            path,
            advice: "create /etc/machine-id (systemd-machine-id-setup) or make state_dir writable",
            source,
        }),
    }
}

/// 32 hexadecimal digits, not all the same: images ship "uninitialized" or zeros.
fn read_id(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let id = text.trim().to_ascii_lowercase();
    let hex = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let first = id.chars().next()?;
    (hex && !id.chars().all(|c| c == first)).then_some(id)
}

/// Whole or not at all, also when the power fails.
pub fn keep(path: &Path, id: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(dir)?.sync_all()
}

fn random_hex(bytes: usize) -> io::Result<String> {
    let mut found = vec![0_u8; bytes];
    random(&mut found)?;
    Ok(found.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Fills at most 256 bytes.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    // So many come whole.
    let got = getrandom(&mut *bytes, GetRandomFlags::empty())?;
    if got != bytes.len() {
        return Err(io::Error::other("getrandom returned too little"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_machine_id_keeps_one() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (machine, state) = (dir.path().join("machine-id"), dir.path().join("state"));
        fs::write(&machine, "uninitialized\n").expect("write");
        let first = host_id(&machine, &state).expect("made");
        assert_eq!(host_id(&machine, &state).expect("kept"), first);
        fs::write(&machine, "0123456789ABCDEF0123456789abcdef\n").expect("write");
        let given = host_id(&machine, &state).expect("given");
        assert_eq!(given, "0123456789abcdef0123456789abcdef");
        fs::write(&machine, "0".repeat(32)).expect("write");
        assert_eq!(host_id(&machine, &state).expect("zeros are no id"), first);
    }

    #[test]
    fn an_id_that_cannot_be_kept_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("write");
        let error = host_id(Path::new("/nonexistent"), &file.join("below")).expect_err("refused");
        assert!(error.to_string().contains("machine-id"), "{error}");
    }

    #[test]
    fn runs_differ() {
        let dir = tempfile::tempdir().expect("tempdir");
        let a = Identity::of_host(dir.path()).expect("identity");
        let b = Identity::of_host(dir.path()).expect("identity");
        assert_eq!((a.run.len(), a.boot_id.len()), (12, 36));
        assert_ne!(a.run, b.run);
        assert_eq!(a.host_id, b.host_id);
        assert_eq!(a.host().boot_id, a.boot_id);
    }
}
