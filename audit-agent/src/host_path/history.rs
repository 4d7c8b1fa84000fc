//! Which mount table did the host have at some moment? The one in force and the one before it, with
//! the times at which they are known to have held.
//!
//! Invariant: in between, where nobody knows which of the two it was, both are answered, and what
//! they say must be the same.

use std::io;

use super::{
    TABLE_BYTES,
    mounts::{Mounts, Place},
    reading::HostTable,
};
use crate::clock::boot_time_ns;

/// Reading may take a tenth of the time: after it, nine times as long passes without.
const REST: u64 = 9;
/// After a reading that failed.
const RETRY_NS: u64 = 1_000_000_000;
/// While a table is read others may change it.
const TRIES: usize = 3;
/// Changes told by events since the last table that is known to have held.
const CHANGES: usize = 256;

#[derive(Debug)]
pub struct History {
    table: HostTable,
    current: Version,
    previous: Option<Version>,
    /// The current one does not hold any more.
    changed: bool,
    next_read_ns: u64,
    changes: Vec<u64>,
    pub reads: u64,
}

#[derive(Debug)]
struct Version {
    mounts: Mounts,
    /// It was the host's from here to there at least.
    begun_ns: u64,
    held_ns: u64,
}

impl History {
    pub fn open() -> io::Result<Self> {
        let mut table = HostTable::open()?;
        let current = read(&mut table)?;
        Ok(Self {
            table,
            current,
            previous: None,
            changed: false,
            next_read_ns: 0,
            changes: Vec::new(),
            reads: 1,
        })
    }

    pub fn namespace(&self) -> u32 {
        self.table.namespace
    }

    /// Asks whether the table has changed.
    pub fn refresh(&mut self) {
        if self.changed {
            return;
        }
        let now_ns = now_ns();
        match self.table.has_changed() {
            Ok(false) => self.current.held_ns = now_ns,
            Ok(true) => self.changed = true,
            Err(error) => {
                tracing::debug!(%error, "the host's mount table cannot be watched");
                self.changed = true;
            }
        }
    }

    /// An event tells a change of the host's mounts.
    pub fn learn(&mut self, time_ns: u64) {
        let since = self.previous.as_ref().unwrap_or(&self.current).held_ns;
        self.changes.retain(|change| *change > since);
        if self.changes.len() >= CHANGES {
            // The first and the last tell when the table was between two states.
            self.changes.pop();
        }
        self.changes.push(time_ns);
    }

    /// Where the host's path leads now.
    #[cfg(test)]
    pub fn place(&self, path: &[u8]) -> Option<Place> {
        self.current.mounts.place(path)
    }

    /// The host's path of `place` as it was then; `None` where it had none or that is not known.
    pub fn find(&mut self, place: &Place, time_ns: u64) -> Option<Vec<u8>> {
        if self.changed && time_ns > self.current.held_ns {
            self.read_again();
        }
        let (one, other) = self.at(time_ns)?;
        let path = one.find(place)?;
        let same = other.is_none_or(|other| other.find(place).as_ref() == Some(&path));
        same.then_some(path)
    }

    /// The table of that moment; or both between which it was.
    fn at(&self, time_ns: u64) -> Option<(&Mounts, Option<&Mounts>)> {
        let current = &self.current;
        if time_ns >= current.begun_ns {
            let holds = !self.changed || time_ns <= current.held_ns;
            return holds.then_some((&current.mounts, None));
        }
        let previous = self.previous.as_ref()?;
        if time_ns < previous.begun_ns {
            return None;
        }
        let between = |change: &&u64| (previous.held_ns..current.begun_ns).contains(*change);
        let known = self.changes.iter().filter(between);
        let (first, last) = (known.clone().min(), known.max());
        Some(
            if time_ns <= previous.held_ns || first.is_some_and(|first| time_ns < *first) {
                (&previous.mounts, None)
            } else if last.is_some_and(|last| time_ns >= *last) {
                (&current.mounts, None)
            } else {
                (&previous.mounts, Some(&current.mounts))
            },
        )
    }

    fn read_again(&mut self) {
        let begun_ns = now_ns();
        if begun_ns < self.next_read_ns {
            return;
        }
        self.reads += 1;
        match read(&mut self.table) {
            Ok(version) => {
                self.previous = Some(std::mem::replace(&mut self.current, version));
                self.changed = false;
                let ended_ns = now_ns();
                self.next_read_ns = ended_ns + REST * (ended_ns - begun_ns);
            }
            Err(error) => {
                tracing::warn!(%error, "the host's mount table cannot be read; events of containers leave without the host's path of their files");
                self.next_read_ns = begun_ns + RETRY_NS;
            }
        }
    }
}

fn now_ns() -> u64 {
    u64::try_from(boot_time_ns()).unwrap_or(0)
}

/// A table that was the same from the beginning of its reading to the end.
fn read(table: &mut HostTable) -> io::Result<Version> {
    for _ in 0..TRIES {
        table.has_changed()?;
        let begun_ns = now_ns();
        let mounts = table.read(TABLE_BYTES)?;
        let held_ns = now_ns();
        if !table.has_changed()? {
            return Ok(Version {
                mounts,
                begun_ns,
                held_ns,
            });
        }
    }
    Err(io::Error::other("it changes while it is read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host whose root is on this device.
    fn version(device: u32, begun_ns: u64, held_ns: u64) -> Version {
        let text = format!("20 1 0:{device} / / rw - ext4 x rw\n");
        Version {
            mounts: Mounts::read(text.as_bytes(), 1 << 20).expect("a table"),
            begun_ns,
            held_ns,
        }
    }

    /// Two tables that held from 10 to 20 and from 30 to 40, of these devices.
    fn history(devices: [u32; 2]) -> History {
        let [first, second] = devices;
        History {
            table: HostTable::open().expect("/proc"),
            current: version(second, 30, 40),
            previous: Some(version(first, 10, 20)),
            changed: true,
            next_read_ns: u64::MAX,
            changes: Vec::new(),
            reads: 0,
        }
    }

    /// Whether a file of this device is found then.
    fn finds(history: &mut History, device: u32, time_ns: u64) -> bool {
        let path = b"/f".to_vec();
        history.find(&Place { device, path }, time_ns).is_some()
    }

    #[test]
    fn a_table_counts_while_it_is_known_to_have_held() {
        let mut history = history([1, 2]);
        let answers = [
            (9, [false, false]),
            (10, [true, false]),
            (20, [true, false]),
            (25, [false, false]),
            (30, [false, true]),
            (40, [false, true]),
            (41, [false, false]),
        ];
        for (time_ns, found) in answers {
            let both = [1, 2].map(|device| finds(&mut history, device, time_ns));
            assert_eq!(both, found, "at {time_ns}");
        }
    }

    #[test]
    fn between_two_tables_changes_tell_or_both_must_agree() {
        let mut same = history([1, 1]);
        assert!(finds(&mut same, 1, 25));
        let mut told = history([1, 2]);
        told.learn(24);
        told.learn(26);
        for (time_ns, found) in [
            (23, [true, false]),
            (24, [false, false]),
            (25, [false, false]),
            (26, [false, true]),
            (29, [false, true]),
        ] {
            let both = [1, 2].map(|device| finds(&mut told, device, time_ns));
            assert_eq!(both, found, "at {time_ns}");
        }
    }

    #[test]
    fn many_changes_keep_the_first_and_the_last() {
        let mut history = history([1, 2]);
        history.learn(15);
        for time_ns in 21..21 + 2 * CHANGES as u64 {
            history.learn(time_ns);
        }
        let last = 20 + 2 * CHANGES as u64;
        let ends = (history.changes.first(), history.changes.last());
        assert_eq!(ends, (Some(&21), Some(&last)));
        assert_eq!(history.changes.len(), CHANGES);
    }

    #[test]
    fn a_host_that_stays_is_read_once() {
        let mut history = History::open().expect("/proc");
        let now = now_ns();
        history.refresh();
        let place = history.current.mounts.place(b"/").expect("a root");
        assert_eq!(history.find(&place, now).as_deref(), Some(&b"/"[..]));
        assert_eq!(history.find(&place, 0), None, "before the agent");
        assert!(history.changed || history.reads == 1);
    }
}
