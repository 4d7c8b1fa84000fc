//! Who started whom, as far as recent events told.
//!
//! Bound: `detect.ancestry_entries`; the process first heard of goes first. Then an alert's
//! ancestry is shorter, nothing else.

use std::collections::VecDeque;

use ahash::AHashMap;
use audit_proto::{
    columns::{Content, Row, at},
    v1::{Ancestor, Event, Kind},
};

/// Longer chains are loops or shells started by shells on purpose.
const MAX_DEPTH: usize = 32;

struct Entry {
    pid: i64,
    exe: String,
    argv: Vec<String>,
    parent: String,
}

pub struct Ancestry {
    entries: AHashMap<String, Entry>,
    order: VecDeque<String>,
    bound: usize,
}

impl Ancestry {
    pub fn new(bound: usize) -> Self {
        Self {
            entries: AHashMap::new(),
            order: VecDeque::new(),
            bound,
        }
    }

    /// Whether there is nothing to learn of it.
    pub fn knows(&self, row: &impl Row) -> bool {
        let mut knows = true;
        row.each(at::KIND, |kind| {
            knows &= !matches!(kind, Content::Text("exec" | "fork"));
        });
        for column in [at::PROCESS_EXEC_ID, at::PARENT_EXEC_ID] {
            row.each(column, |content| {
                if let Content::Text(exec_id) = content {
                    knows &= self.entries.contains_key(exec_id);
                }
            });
        }
        knows
    }

    pub fn learn(&mut self, event: &Event) {
        let Some(process) = &event.process else {
            return;
        };
        if process.exec_id.is_empty() {
            return;
        }
        let parent = event.parent.as_ref();
        if event.kind == Kind::Exec as i32 || !self.entries.contains_key(&process.exec_id) {
            let entry = Entry {
                pid: process.pid.unwrap_or_default(),
                exe: process.exe.clone(),
                argv: process.argv.clone(),
                parent: parent.map(|p| p.exec_id.clone()).unwrap_or_default(),
            };
            self.insert(process.exec_id.clone(), entry);
        }
        if let Some(parent) = parent.filter(|p| !p.exec_id.is_empty())
            && !self.entries.contains_key(&parent.exec_id)
        {
            let entry = Entry {
                pid: parent.pid.unwrap_or_default(),
                exe: parent.exe.clone(),
                argv: parent.argv.clone(),
                parent: String::new(),
            };
            self.insert(parent.exec_id.clone(), entry);
        }
        if event.kind == Kind::Fork as i32
            && let Some(child) = event
                .target_process
                .as_ref()
                .filter(|c| !c.exec_id.is_empty())
        {
            let entry = Entry {
                pid: child.pid.unwrap_or_default(),
                exe: process.exe.clone(),
                argv: process.argv.clone(),
                parent: process.exec_id.clone(),
            };
            self.insert(child.exec_id.clone(), entry);
        }
    }

    fn insert(&mut self, exec_id: String, entry: Entry) {
        if self.entries.insert(exec_id.clone(), entry).is_none() {
            self.order.push_back(exec_id);
        }
        while self.order.len() > self.bound {
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
    }

    /// The acting process first.
    pub fn of(&self, event: &Event) -> Vec<Ancestor> {
        let mut chain = Vec::new();
        let mut next = event
            .process
            .as_ref()
            .map(|p| p.exec_id.clone())
            .unwrap_or_default();
        while let Some(entry) = self.entries.get(&next)
            && chain.len() < MAX_DEPTH
        {
            chain.push(Ancestor {
                exec_id: next,
                pid: entry.pid,
                exe: entry.exe.clone(),
                argv: entry.argv.clone(),
            });
            next = entry.parent.clone();
        }
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_proto::v1::{Parent, Process};

    fn exec(id: &str, exe: &str, parent: &str) -> Event {
        Event {
            kind: Kind::Exec.into(),
            process: Some(Process {
                exec_id: id.into(),
                exe: exe.into(),
                ..Process::default()
            }),
            parent: Some(Parent {
                exec_id: parent.into(),
                ..Parent::default()
            }),
            ..Event::default()
        }
    }

    #[test]
    fn chains_follow_parents_and_stay_bounded() {
        let mut ancestry = Ancestry::new(3);
        ancestry.learn(&exec("b", "/b", "a"));
        ancestry.learn(&exec("c", "/c", "b"));
        let chain: Vec<String> = ancestry
            .of(&exec("c", "", ""))
            .into_iter()
            .map(|a| a.exec_id)
            .collect();
        assert_eq!(chain, ["c", "b", "a"]);
        let of_c = Event {
            kind: Kind::Open.into(),
            ..exec("c", "/c", "b")
        };
        assert!(ancestry.knows(&of_c));
        assert!(
            !ancestry.knows(&exec("c", "/c", "b")),
            "it may be another program now"
        );
        let of_d = Event {
            kind: Kind::Open.into(),
            ..exec("d", "/d", "c")
        };
        assert!(!ancestry.knows(&of_d));
        ancestry.learn(&exec("d", "/d", "c"));
        assert_eq!(ancestry.entries.len(), 3);
        let looped = exec("e", "/e", "e");
        ancestry.learn(&looped);
        assert_eq!(ancestry.of(&looped).len(), MAX_DEPTH);
    }
}
