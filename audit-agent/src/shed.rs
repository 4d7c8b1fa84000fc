//! Whose events were more than the budget allows? Counts by cgroup and class become `shed` events.
//!
//! Invariant: every record that a budget kept from the ring is in exactly one of these counts.

use std::path::PathBuf;

use ahash::AHashMap;
use audit_proto::{text::escape, v1::Event};

use crate::{clock::Clock, container, own, policy::places, source::ShedCount};

/// Paths of cgroups remembered; those that shed. When full it is emptied and fills again.
const CACHED: usize = 1024;

/// Finds the paths of cgroups that shed.
pub struct Shedding {
    hierarchy: Option<PathBuf>,
    paths: AHashMap<u64, Vec<u8>>,
}

impl Shedding {
    pub fn of_host() -> Self {
        Self {
            hierarchy: places::hierarchy(),
            paths: AHashMap::new(),
        }
    }

    /// One event for each count.
    pub fn events(&mut self, clock: &Clock, counts: &[ShedCount]) -> Vec<Event> {
        let ids = || counts.iter().filter_map(|count| count.cgroup_id);
        if ids().any(|id| !self.paths.contains_key(&id)) {
            self.look_for(&ids().collect::<Vec<_>>());
        }
        counts
            .iter()
            .map(|count| self.event(clock, count))
            .collect()
    }

    /// One walk for all; those that are gone are remembered too, without a path.
    fn look_for(&mut self, ids: &[u64]) {
        if self.paths.len() + ids.len() > CACHED {
            self.paths.clear();
        }
        let found: AHashMap<u64, Vec<u8>> = match &self.hierarchy {
            Some(root) => container::walk(root).into_iter().collect(),
            None => AHashMap::new(),
        };
        for id in ids {
            let path = found.get(id).cloned().unwrap_or_default();
            self.paths.insert(*id, path);
        }
    }

    fn event(&self, clock: &Clock, count: &ShedCount) -> Event {
        let path = count.cgroup_id.and_then(|id| self.paths.get(&id));
        let path = path.map_or(&[][..], Vec::as_slice);
        let mut event = own::shed(clock, count, escape(path).into_owned());
        event.container = container::path::container(path).filter(|found| !found.id.is_empty());
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_common::class;
    use audit_proto::v1::Kind;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_count_names_its_cgroup_and_the_rest_has_none() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a.slice/b");
        std::fs::create_dir_all(&path).expect("dirs");
        let id = std::fs::metadata(&path).expect("stat").ino();
        let mut shedding = Shedding {
            hierarchy: Some(dir.path().to_owned()),
            paths: AHashMap::new(),
        };
        let count = |cgroup_id, shed| ShedCount {
            class: class::FILE,
            cgroup_id,
            shed,
            sampled: 2,
        };
        let counts = [count(Some(id), 7), count(Some(id + 1), 8), count(None, 9)];
        let events = shedding.events(&Clock::from_offset(0), &counts);
        let told: Vec<_> = events
            .iter()
            .map(|event| {
                let shed = event.shed.as_ref().expect("shed");
                (shed.cgroup.as_str(), shed.cgroup_id, shed.count, shed.class)
            })
            .collect();
        let known = i64::try_from(id).expect("inode");
        assert_eq!(
            told,
            [
                ("/a.slice/b", Some(known), Some(7), 3),
                ("", Some(known + 1), Some(8), 3),
                ("", None, Some(9), 3)
            ]
        );
        assert!(
            events
                .iter()
                .all(|event| event.kind == i32::from(Kind::Shed))
        );
    }
}
