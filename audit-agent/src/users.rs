//! What is the name of a uid or gid on this host? /etc/passwd and /etc/group, read again when they
//! change.
//!
//! Invariant: a number without an entry has no name; nothing is asked over the network.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use ahash::AHashMap;
use audit_proto::text::escape;

/// How often a change is looked for.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Largest database read; 2 MiB are some 25,000 users. Larger ones are a directory's, which is not
/// kept in these files.
const MAX_FILE_BYTES: u64 = 2 << 20;

/// Both databases. Bounded by the two files, at most [`MAX_FILE_BYTES`] each.
#[derive(Debug)]
pub struct Users {
    passwd: Database,
    group: Database,
    checked: Option<Instant>,
}

/// Which reading of the two files names come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edition(u64);

impl Users {
    pub fn new(passwd: &Path, group: &Path) -> Self {
        Self {
            passwd: Database::new(passwd),
            group: Database::new(group),
            checked: None,
        }
    }

    pub fn of_host() -> Self {
        Self::new(Path::new("/etc/passwd"), Path::new("/etc/group"))
    }

    /// Reads again what changed; call once per round, it looks at most once a second.
    pub fn refresh(&mut self, now: Instant) {
        if self
            .checked
            .is_some_and(|checked| now < checked + CHECK_EVERY)
        {
            return;
        }
        self.checked = Some(now);
        self.passwd.refresh();
        self.group.refresh();
    }

    pub fn edition(&self) -> Edition {
        Edition(self.passwd.read + self.group.read)
    }

    /// Name of a uid; empty when it has none.
    pub fn user(&self, uid: i64) -> &str {
        self.passwd.name(uid)
    }

    pub fn group(&self, gid: i64) -> &str {
        self.group.name(gid)
    }
}

#[derive(Debug)]
struct Database {
    path: PathBuf,
    names: AHashMap<i64, String>,
    /// Modification time and size of what was read.
    version: Option<(SystemTime, u64)>,
    /// How often it was.
    read: u64,
    failing: bool,
}

impl Database {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            names: AHashMap::new(),
            version: None,
            read: 0,
            failing: false,
        }
    }

    fn name(&self, id: i64) -> &str {
        self.names.get(&id).map_or("", String::as_str)
    }

    fn refresh(&mut self) {
        match self.read_changed() {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !self.failing {
                    tracing::warn!(path = %self.path.display(), %error, "names of users or groups cannot be read; events keep their numbers");
                }
                self.failing = true;
            }
        }
    }

    fn read_changed(&mut self) -> io::Result<()> {
        let metadata = fs::metadata(&self.path)?;
        let version = Some((metadata.modified()?, metadata.len()));
        if version == self.version {
            return Ok(());
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(io::Error::other(format!(
                "larger than {MAX_FILE_BYTES} bytes"
            )));
        }
        self.names = parse(&fs::read(&self.path)?);
        self.version = version;
        self.read += 1;
        Ok(())
    }
}

/// name:password:number:...; of several names for one number the first counts, as in getpwuid.
fn parse(text: &[u8]) -> AHashMap<i64, String> {
    let mut names = AHashMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b':');
        let (Some(name), Some(_), Some(number)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let number = std::str::from_utf8(number)
            .ok()
            .and_then(|n| n.parse::<u32>().ok());
        if let Some(number) = number
            && !name.is_empty()
            && !name.starts_with(b"#")
        {
            names
                .entry(number.into())
                .or_insert_with(|| escape(name).into_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_of_a_number_counts_and_junk_is_skipped() {
        let names =
            parse(b"root:x:0:0::/root:/bin/sh\ntoor:x:0:0\n#c:x:7:\nbad\nb:x:q:1\n+::\nn:x:9");
        assert_eq!(names.get(&0).map(String::as_str), Some("root"));
        assert_eq!(names.get(&9).map(String::as_str), Some("n"));
        assert_eq!(names.len(), 2);
    }

    #[test]
    fn changes_are_seen_once_a_second() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (passwd, group) = (dir.path().join("passwd"), dir.path().join("group"));
        fs::write(&passwd, "a:x:1:1\n").expect("write");
        let mut users = Users::new(&passwd, &group);
        let now = Instant::now();
        users.refresh(now);
        assert_eq!((users.user(1), users.group(1)), ("a", ""));
        fs::write(&passwd, "renamed:x:1:1\n").expect("write");
        fs::write(&group, "staff:x:1:\n").expect("write");
        users.refresh(now + CHECK_EVERY / 2);
        assert_eq!(users.user(1), "a");
        users.refresh(now + CHECK_EVERY);
        assert_eq!((users.user(1), users.group(1)), ("renamed", "staff"));
    }
}
