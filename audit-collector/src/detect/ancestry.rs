//! Who started whom, as far as recent events told.
//!
//! Bounds: `detect.ancestry_entries`, and [`KEPT_BYTES`] of each text; the process first heard of goes
//! first. Then an alert's ancestry is shorter, nothing else.

use std::collections::VecDeque;

use ahash::{AHashMap, AHashSet};
use audit_proto::{
    columns::{self, COLUMNS, Content, Row, at},
    v1::{Ancestor, Event, Kind},
};

use super::bounds::{KEPT_BYTES, keep, kept};

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
    /// Processes and parents, by their numbers, in the rows at hand that were looked at.
    seen: AHashSet<(u32, u32)>,
}

impl Ancestry {
    pub fn new(bound: usize) -> Self {
        Self {
            entries: AHashMap::new(),
            order: VecDeque::new(),
            bound,
            seen: AHashSet::new(),
        }
    }

    /// Rows of another batch follow.
    pub fn begin_rows(&mut self) {
        self.seen.clear();
    }

    pub fn learn(&mut self, row: &impl Row) {
        let is = |kind: Kind| {
            let name = columns::kind_name(kind.into());
            name.is_some_and(|name| text(row, at::KIND, |found| found == name))
        };
        let (is_exec, is_fork) = (is(Kind::Exec), is(Kind::Fork));
        let same = |column: usize| row.same(COLUMNS[column].part?);
        if !is_exec
            && !is_fork
            && let Some(process) = same(at::PROCESS_EXEC_ID)
            // A process without a parent has none in other rows either.
            && !self.seen.insert((process, same(at::PARENT_EXEC_ID).unwrap_or(u32::MAX)))
        {
            return;
        }
        let process = owned(row, at::PROCESS_EXEC_ID);
        let parent = owned(row, at::PARENT_EXEC_ID);
        if process.is_empty() || process.len().max(parent.len()) > KEPT_BYTES {
            return;
        }
        if is_exec || !self.entries.contains_key(&process) {
            let entry = Entry {
                parent: parent.clone(),
                ..entry(row, at::PROCESS_PID, at::PROCESS_EXE, at::PROCESS_ARGV)
            };
            self.insert(process.clone(), entry);
        }
        if !parent.is_empty() && !self.entries.contains_key(&parent) {
            let entry = entry(row, at::PARENT_PID, at::PARENT_EXE, at::PARENT_ARGV);
            self.insert(parent, entry);
        }
        if is_fork {
            let child = owned(row, at::TARGET_PROCESS_EXEC_ID);
            if (1..=KEPT_BYTES).contains(&child.len()) {
                let entry = Entry {
                    parent: process,
                    ..entry(
                        row,
                        at::TARGET_PROCESS_PID,
                        at::PROCESS_EXE,
                        at::PROCESS_ARGV,
                    )
                };
                self.insert(child, entry);
            }
        }
    }

    fn insert(&mut self, exec_id: String, entry: Entry) {
        if self.entries.insert(exec_id.clone(), entry).is_none() {
            self.order.push_back(exec_id);
        }
        while self.order.len() > self.bound {
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
                // It may come again in these rows.
                self.seen.clear();
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

/// Whether a column has a text for which `test` holds.
fn text(row: &impl Row, column: usize, test: impl Fn(&str) -> bool) -> bool {
    let mut holds = false;
    row.each(column, |content| {
        holds |= matches!(content, Content::Text(found) if test(found));
    });
    holds
}

/// Empty where there is none.
fn owned(row: &impl Row, column: usize) -> String {
    let mut owned = String::new();
    row.each(column, |content| {
        if let Content::Text(text) = content {
            text.clone_into(&mut owned);
        }
    });
    owned
}

/// Without a parent.
fn entry(row: &impl Row, pid: usize, exe: usize, argv: usize) -> Entry {
    let mut entry = Entry {
        pid: 0,
        exe: kept(&owned(row, exe)).to_owned(),
        argv: Vec::new(),
        parent: String::new(),
    };
    row.each(pid, |content| {
        if let Content::Int(pid) = content {
            entry.pid = pid;
        }
    });
    row.each(argv, |content| {
        if let Content::Item(argument) = content {
            keep(&mut entry.argv, argument);
        }
    });
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_proto::{
        Message as _,
        v1::{Parent, Process},
    };

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
        ancestry.learn(&exec("c", "/other", "b"));
        let now = &ancestry.of(&exec("c", "", ""))[0];
        assert_eq!(now.exe, "/other", "a process becomes another program");
        ancestry.learn(&exec("d", "/d", "c"));
        assert_eq!(ancestry.entries.len(), 3);
        let looped = exec("e", "/e", "e");
        ancestry.learn(&looped);
        assert_eq!(ancestry.of(&looped).len(), MAX_DEPTH);
    }
    /// In rows that share them, where `same` says which process a row is of.
    #[test]
    fn a_process_that_made_room_is_learned_again_of_the_same_rows() {
        let of = |id: &str, kind: Kind| Event {
            kind: kind.into(),
            parent: None,
            ..exec(id, id, "")
        };
        let old = of("old", Kind::Open);
        let rows = [&old, &of("new", Kind::Exec), &of("newer", Kind::Exec), &old];
        let encoded = rows.map(Event::encode_to_vec);
        let mut builder = audit_columns::RowsBuilder::new(4);
        let pushed = builder.push_encoded(encoded.iter().map(Vec::as_slice));
        pushed.expect("events");
        let rows = builder.finish();
        let mut ancestry = Ancestry::new(2);
        let mut view = audit_columns::View::new(&rows);
        ancestry.begin_rows();
        for row in 0..rows.len() {
            view.set_row(row);
            ancestry.learn(&view);
        }
        assert_eq!(ancestry.of(&old).len(), 1);
    }
}
