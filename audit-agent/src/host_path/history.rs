//! Which mount table did the host have at some moment? The one in force and the one before it, with
//! the times at which they are known to have held.
//!
//! The kernel says that the table has changed, some time after it did; events of mount calls say
//! when. A change that no event tells counts from when it was noticed.

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
    /// When it was noticed that it is not any more.
    noticed_ns: Option<u64>,
}

impl History {
    pub fn open() -> io::Result<Self> {
        let mut table = HostTable::open()?;
        let current = read(&mut table)?;
        Ok(Self {
            table,
            current,
            previous: None,
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
        if self.current.noticed_ns.is_some() {
            return;
        }
        let now_ns = now_ns();
        match self.table.has_changed() {
            Ok(false) => self.current.held_ns = now_ns,
            Ok(true) => self.current.noticed_ns = Some(now_ns),
            Err(error) => {
                tracing::debug!(%error, "the host's mount table cannot be watched");
                self.current.noticed_ns = Some(now_ns);
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
        if time_ns >= self.end_of(&self.current) {
            self.read_again();
        }
        self.at(time_ns)?.find(place)
    }

    /// When a table stopped to hold, as far as it is known.
    fn end_of(&self, version: &Version) -> u64 {
        let Some(noticed_ns) = version.noticed_ns else {
            return u64::MAX;
        };
        let mut later = self.changes.iter();
        let first = later.find(|change| **change > version.held_ns);
        first.map_or(noticed_ns, |first| noticed_ns.min(*first))
    }

    /// The table of that moment.
    fn at(&self, time_ns: u64) -> Option<&Mounts> {
        let current = &self.current;
        if let Some(previous) = &self.previous
            && time_ns < self.end_of(previous)
        {
            return (time_ns >= previous.begun_ns).then_some(&previous.mounts);
        }
        let began = match &self.previous {
            // After the last change before it was read.
            Some(previous) => {
                let known = self.changes.iter().rev();
                let last = known.copied().find(|change| *change < current.begun_ns);
                last.unwrap_or(0).max(self.end_of(previous))
            }
            None => current.begun_ns,
        };
        (time_ns >= began && time_ns < self.end_of(current)).then_some(&current.mounts)
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
                noticed_ns: None,
            });
        }
    }
    Err(io::Error::other("it changes while it is read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host whose root is on this device.
    fn version(device: u32, [begun_ns, held_ns, noticed_ns]: [u64; 3]) -> Version {
        let text = format!("20 1 0:{device} / / rw - ext4 x rw\n");
        Version {
            mounts: Mounts::read(text.as_bytes(), 1 << 20).expect("a table"),
            begun_ns,
            held_ns,
            noticed_ns: Some(noticed_ns),
        }
    }

    /// Device 1 from 10 to 20, which was noticed to have changed at 25; device 2 from 30 to 40, 45.
    fn history(changes: &[u64]) -> History {
        let mut history = History {
            table: HostTable::open().expect("/proc"),
            current: version(2, [30, 40, 45]),
            previous: Some(version(1, [10, 20, 25])),
            next_read_ns: u64::MAX,
            changes: Vec::new(),
            reads: 0,
        };
        changes.iter().for_each(|change| history.learn(*change));
        history
    }

    /// Which device the host's root is found on then.
    fn found(history: &mut History, time_ns: u64) -> Option<u32> {
        let mut devices = [1, 2].into_iter().filter(|device| {
            let (device, path) = (*device, b"/f".to_vec());
            history.find(&Place { device, path }, time_ns).is_some()
        });
        let found = devices.next();
        assert_eq!(devices.next(), None, "both");
        found
    }

    #[test]
    fn a_change_that_no_event_tells_counts_from_when_it_was_noticed() {
        let mut history = history(&[]);
        for (time_ns, device) in [
            (9, None),
            (10, Some(1)),
            (24, Some(1)),
            (25, Some(2)),
            (44, Some(2)),
            (45, None),
        ] {
            assert_eq!(found(&mut history, time_ns), device, "at {time_ns}");
        }
    }

    #[test]
    fn events_tell_when_it_changed() {
        let mut history = history(&[22, 27, 42]);
        for (time_ns, device) in [
            (21, Some(1)),
            (22, None),
            (26, None),
            (27, Some(2)),
            (41, Some(2)),
            (42, None),
        ] {
            assert_eq!(found(&mut history, time_ns), device, "at {time_ns}");
        }
    }

    #[test]
    fn many_changes_keep_the_first_and_the_last() {
        let mut history = history(&[15]);
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
        assert!(history.current.noticed_ns.is_some() || history.reads == 1);
    }
}
