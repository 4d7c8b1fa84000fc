//! Where is the key that signs? In a file that each new key takes the place of, with the old one's bytes
//! overwritten: a thief of today's key shall not find yesterday's beside it. On media that write
//! elsewhere (copy on write, flash) the old bytes last until they are reused.

use std::{io, path::Path};

use audit_ledger::{Former, Key};
use audit_wal::{Disk, DiskFile as _};
use serde::{Deserialize, Serialize};

const NAME: &str = "key";

/// As it is in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub agent_id: String,
    epoch: i64,
    /// Secret: 64 hexadecimal digits.
    seed: String,
    /// The history whose place this one takes, and its last batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    former: Option<(String, i64)>,
}

impl Kept {
    pub fn new(agent_id: &str, key: &Key, former: Option<&Former>) -> Self {
        Self {
            agent_id: agent_id.to_owned(),
            epoch: key.epoch(),
            seed: key
                .seed()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            former: former.map(|former| (former.agent_id.clone(), former.batch)),
        }
    }

    pub fn key(&self) -> Option<Key> {
        let digits = self.seed.as_bytes();
        let mut seed = [0; 32];
        if digits.len() != 64 || self.epoch < 1 {
            return None;
        }
        for (byte, pair) in seed.iter_mut().zip(digits.as_chunks::<2>().0) {
            let pair = std::str::from_utf8(pair).ok()?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(Key::new(self.epoch, seed))
    }

    pub fn former(&self) -> Option<Former> {
        let former = self.former.clone();
        former.map(|(agent_id, batch)| Former { agent_id, batch })
    }

    /// Durable, and in place of the key before it, when it returns.
    pub fn write(&self, disk: &impl Disk, dir: &Path) -> io::Result<()> {
        let path = dir.join(NAME);
        let old = disk.open(&path, true).ok();
        let new = serde_json::to_vec(self).map_err(io::Error::from)?;
        disk.replace(&path, &new)?;
        if let Some(old) = old {
            let zeros = vec![0; usize::try_from(old.size_bytes()?).unwrap_or_default()];
            old.write_at(&zeros, 0)?;
            old.sync()?;
        }
        Ok(())
    }

    /// `None` where there is none, or none that can be read.
    pub fn read(disk: &impl Disk, dir: &Path) -> io::Result<Option<Self>> {
        match disk.read(&dir.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            bytes => Ok(serde_json::from_slice(&bytes?).ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::FileExt as _,
    };

    use audit_wal::System;

    use super::*;

    #[test]
    fn the_next_key_takes_the_place_of_the_last_and_nobody_else_reads_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("tempdir");
        let mut key = Key::new(1, [0xa5; 32]);
        Kept::new("a", &key, None)
            .write(&System, dir.path())
            .expect("written");
        // Held open, as a disk holds what was deleted.
        let old = File::open(dir.path().join(NAME)).expect("open");
        key.evolve();
        let former = Former {
            agent_id: "b".to_owned(),
            batch: 7,
        };
        let kept = Kept::new("a", &key, Some(&former));
        kept.write(&System, dir.path()).expect("written");
        let back = Kept::read(&System, dir.path())
            .expect("read")
            .expect("there");
        assert_eq!(back.key().expect("a key").public(), key.public());
        assert_eq!(back.former(), Some(former));
        let mode = fs::metadata(dir.path().join(NAME))
            .expect("file")
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let mut bytes = vec![1; 64];
        old.read_exact_at(&mut bytes, 0).expect("old bytes");
        assert!(bytes.iter().all(|byte| *byte == 0), "the old seed is gone");
    }

    #[test]
    fn what_is_no_key_is_none() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(Kept::read(&System, dir.path()).expect("read").is_none());
        for text in ["", "{}", "\u{0}\u{0}", r#"{"agent_id":"a","epoch":1}"#] {
            fs::write(dir.path().join(NAME), text).expect("write");
            assert!(
                Kept::read(&System, dir.path()).expect("read").is_none(),
                "{text:?}"
            );
        }
        let short = r#"{"agent_id":"a","epoch":1,"seed":"00"}"#;
        fs::write(dir.path().join(NAME), short).expect("write");
        let kept = Kept::read(&System, dir.path())
            .expect("read")
            .expect("a file");
        assert!(kept.key().is_none());
    }
}
