//! Which process started which, from rows of `events` in any order.
//!
//! Invariant: who forked a process is its parent for good; the parent that an exec names counts
//! only where no fork was seen, because an orphan has been given to another by then.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

#[derive(Debug, Default)]
pub struct Family {
    processes: BTreeMap<String, Process>,
    asked: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub struct Process {
    pub pid: Option<i64>,
    pub name: String,
    pub user: String,
    /// Microseconds; when it was forked, else its first exec.
    pub start: Option<i64>,
    /// Each program it became, by time.
    pub execs: BTreeMap<i64, Vec<String>>,
    pub exit: Option<Exit>,
    /// What others' events said about it as their parent, for processes older than the agent.
    pub said_argv: Vec<String>,
    forked_by: Option<String>,
    child_of: Option<(i64, String)>,
}

#[derive(Debug)]
pub struct Exit {
    pub code: Option<i64>,
    pub signal: Option<i64>,
    pub core_dumped: bool,
    pub duration_ns: Option<i64>,
}

fn text<'a>(row: &'a Value, name: &str) -> Option<&'a str> {
    row[name].as_str().filter(|t| !t.is_empty())
}

fn number(row: &Value, name: &str) -> Option<i64> {
    row[name].as_i64()
}

fn list(row: &Value, name: &str) -> Vec<String> {
    let items = row[name].as_array().into_iter().flatten();
    items
        .map(|item| item.as_str().unwrap_or_default().to_owned())
        .collect()
}

fn fill(slot: &mut String, value: Option<&str>) {
    if let (true, Some(value)) = (slot.is_empty(), value) {
        value.clone_into(slot);
    }
}

fn base(path: Option<&str>) -> Option<&str> {
    path?.rsplit('/').next()
}

impl Family {
    pub fn len(&self) -> usize {
        self.processes.len()
    }

    pub fn knows(&self, id: &str) -> bool {
        self.processes.contains_key(id)
    }

    pub fn process(&self, id: &str) -> Option<&Process> {
        self.processes.get(id)
    }

    pub fn parent(&self, id: &str) -> Option<&str> {
        let process = self.processes.get(id)?;
        let named = process.child_of.as_ref().map(|(_, id)| id);
        process
            .forked_by
            .as_ref()
            .or(named)
            .map(String::as_str)
            .filter(|parent| *parent != id)
    }

    /// By start, the earliest first.
    pub fn children(&self, id: &str) -> Vec<&str> {
        let mut children: Vec<_> = self
            .processes
            .keys()
            .filter(|child| self.parent(child) == Some(id))
            .map(|c| &**c)
            .collect();
        children.sort_by_key(|child| self.processes.get(*child).and_then(|p| p.start));
        children
    }

    /// The children of `level` whose own events were not yet asked for; marks them as asked.
    pub fn children_not_asked(&mut self, level: &[String]) -> Vec<String> {
        let level: BTreeSet<&str> = level.iter().map(|id| &**id).collect();
        let next: Vec<String> = self
            .processes
            .keys()
            .filter(|id| {
                self.parent(id).is_some_and(|p| level.contains(p)) && !self.asked.contains(*id)
            })
            .cloned()
            .collect();
        self.asked.extend(next.iter().cloned());
        next
    }

    pub fn add(&mut self, row: &Value) {
        let kind = text(row, "kind").unwrap_or_default();
        let at = number(row, "at").unwrap_or_default();
        let Some(id) = text(row, "process_exec_id") else {
            return;
        };
        let process = self.processes.entry(id.to_owned()).or_default();
        process.pid = process.pid.or(number(row, "process_pid"));
        if kind == "exec" || process.name.is_empty() {
            process.name.clear();
            fill(
                &mut process.name,
                text(row, "process_name").or(base(text(row, "process_exe"))),
            );
        }
        fill(
            &mut process.user,
            text(row, "process_effective_user").or(text(row, "process_user")),
        );
        match kind {
            "exec" => {
                process.start = Some(process.start.map_or(at, |start| start.min(at)));
                process.execs.insert(at, list(row, "process_argv"));
            }
            "exit" => {
                process.exit = Some(Exit {
                    code: number(row, "exit_code"),
                    signal: number(row, "exit_signal"),
                    core_dumped: row["exit_core_dumped"] == true,
                    duration_ns: number(row, "exit_duration_ns"),
                });
            }
            _ if process.execs.is_empty() => process.said_argv = list(row, "process_argv"),
            _ => {}
        }
        if let Some(parent) = text(row, "parent_exec_id") {
            if process
                .child_of
                .as_ref()
                .is_none_or(|(earlier, _)| at < *earlier)
            {
                process.child_of = Some((at, parent.to_owned()));
            }
            self.said_of_parent(parent, row);
        }
        if let (Some(child), "fork") = (text(row, "target_process_exec_id"), kind) {
            let name = text(row, "process_name").map(str::to_owned);
            let forker = id.to_owned();
            let child = self.processes.entry(child.to_owned()).or_default();
            child.pid = child.pid.or(number(row, "target_process_pid"));
            child.start = Some(at);
            fill(&mut child.name, name.as_deref());
            child.forked_by = Some(forker);
        }
    }

    fn said_of_parent(&mut self, id: &str, row: &Value) {
        let parent = self.processes.entry(id.to_owned()).or_default();
        parent.pid = parent.pid.or(number(row, "parent_pid"));
        fill(
            &mut parent.name,
            text(row, "parent_name").or(base(text(row, "parent_exe"))),
        );
        fill(&mut parent.user, text(row, "parent_user"));
        if parent.said_argv.is_empty() {
            parent.said_argv = list(row, "parent_argv");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fork(at: i64, parent: &str, child: &str) -> Value {
        json!({"kind": "fork", "at": at, "process_exec_id": parent, "process_name": "sh", "target_process_exec_id": child, "target_process_pid": 9})
    }

    fn exec(at: i64, id: &str, parent: &str) -> Value {
        json!({"kind": "exec", "at": at, "process_exec_id": id, "process_name": id, "process_argv": [id, ""], "parent_exec_id": parent, "parent_name": "p", "parent_argv": ["old"]})
    }

    #[test]
    fn who_forked_wins_over_who_adopted() {
        for swap in [false, true] {
            let mut rows = [fork(1, "a", "b"), exec(5, "b", "init")];
            if swap {
                rows.reverse();
            }
            let mut family = Family::default();
            rows.iter().for_each(|row| family.add(row));
            assert_eq!(family.parent("b"), Some("a"));
            assert_eq!(family.children("a"), ["b"]);
            assert_eq!(family.process("b").map(|p| &*p.name), Some("b"));
        }
    }

    #[test]
    fn a_process_older_than_the_agent_is_known_by_what_its_child_says() {
        let mut family = Family::default();
        family.add(&exec(5, "b", "a"));
        let a = family.process("a").expect("known");
        assert_eq!((&*a.name, &*a.said_argv), ("p", &["old".to_owned()][..]));
        assert_eq!(family.parent("a"), None);
        assert_eq!(family.children_not_asked(&["a".to_owned()]), ["b"]);
        assert!(family.children_not_asked(&["a".to_owned()]).is_empty());
    }

    #[test]
    fn every_program_of_a_process_is_kept_in_order() {
        let mut family = Family::default();
        family.add(&exec(7, "b", "a"));
        family.add(&exec(5, "b", "a"));
        family.add(&json!({"kind": "exit", "at": 9, "process_exec_id": "b", "exit_code": 3, "exit_duration_ns": 5}));
        let b = family.process("b").expect("known");
        assert_eq!(b.execs.keys().copied().collect::<Vec<_>>(), [5, 7]);
        assert_eq!(b.start, Some(5));
        assert_eq!(b.exit.as_ref().and_then(|e| e.code), Some(3));
    }
}
