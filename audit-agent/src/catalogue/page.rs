//! The page itself, as Markdown. Lines that begin with "Columns: " are read by the ground truth
//! test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use audit_common::{
    call::{NONE, SLOTS, flags},
    class,
    kind::{self, Kind},
};
use audit_proto::columns::{self, COLUMNS, ColumnType};

use super::{
    events::{self, Bench},
    limits,
};
use crate::{
    Config,
    calls::{self, Row},
    probe::{HOOKS, OBJECT_KINDS, Place},
};

type Filled = BTreeMap<u16, BTreeSet<usize>>;

/// `None` where paths cannot be looked up, or the host's mounts are not this process's, so that not
/// every column is known.
pub fn page() -> Option<String> {
    let mut bench = Bench::new();
    let filled: Filled = kind::ALL
        .iter()
        .map(|row| (row.number, bench.columns(row.number)))
        .collect();
    for found_by_looking in ["file_inode", "file_host_path"] {
        let column = columns::index(found_by_looking)?;
        if !filled.get(&kind::MODE)?.contains(&column) {
            return None;
        }
    }
    let mut out = INTRODUCTION.to_owned();
    index(&mut out);
    for (name, text) in limits::GENERAL {
        paragraph(&mut out, &format!("**{name}.** {text}"));
    }
    let shared = shared(&filled);
    out.push_str("## Every event\n\n");
    paragraph(
        &mut out,
        "Who did it, when, in which container, and where it was counted. What the host does not \
         know is absent. `lost`, `shed`, `heartbeat` and `agent` have no process.",
    );
    list(&mut out, &shared);
    for row in kind::ALL {
        of_kind(&mut out, row, &own(row.number, &filled, &shared));
    }
    argument_race(&mut out, &filled, &shared);
    for (name, text, columns) in events::of_agent() {
        let _ = writeln!(
            out,
            "## `{name}`\n\n{text} Class agent: from the agent itself.\n"
        );
        let of_it = columns.difference(&shared).copied().collect();
        list(&mut out, &of_it);
    }
    all_columns(&mut out);
    Some(out.trim_end().to_owned() + "\n")
}

const INTRODUCTION: &str = "\
# Events

Written by `cargo xtask events` from the tables that the agent and its kernel programs run with
(`audit-common/src/kind.rs`, `audit-agent/src/{calls,probe/hooks}.rs`, `proto/audit/v1/event.proto`)
and from what its decoder makes of records of each kind. Do not edit it; a test fails when it is stale.

`hostaudit query --columns` lists the columns of the table `events`; `capture.off_kinds` of the agent's
configuration takes names from the first column here.

";

/// Text in lines of at most 100 characters.
fn paragraph(out: &mut String, text: &str) {
    wrapped(out, text, "");
    out.push('\n');
}

fn wrapped(out: &mut String, text: &str, indent: &str) {
    let mut column = 0;
    for word in text.split_whitespace() {
        if column > 0 && column + 1 + word.chars().count() > 100 {
            out.push('\n');
            out.push_str(indent);
            column = indent.len();
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.chars().count();
    }
    out.push('\n');
}

fn index(out: &mut String) {
    out.push_str("| kind | number | class | what it means |\n|---|---|---|---|\n");
    for row in kind::ALL {
        let Kind {
            number,
            name,
            class,
            doc,
        } = row;
        let class = class::name(*class).unwrap_or_default();
        let _ = writeln!(
            out,
            "| [`{name}`](#{name}) | {number} | {class} | {} |",
            doc.trim()
        );
    }
    out.push('\n');
}

/// Columns about the event itself and its actor.
fn is_shared(name: &str) -> bool {
    const ENVELOPE: [&str; 9] = [
        "id",
        "time",
        "time_remainder_ns",
        "boot_time_ns",
        "kind",
        "class",
        "cpu",
        "sequence",
        "via",
    ];
    let of = ["host_", "process_", "parent_", "container_"];
    ENVELOPE.contains(&name) || of.iter().any(|prefix| name.starts_with(prefix))
}

/// Those that more than one kind fills.
fn shared(filled: &Filled) -> BTreeSet<usize> {
    let kinds_of = |column: &usize| filled.values().filter(|set| set.contains(column)).count();
    let all = 0..COLUMNS.len();
    all.filter(|column| is_shared(COLUMNS[*column].name) && kinds_of(column) > 1)
        .collect()
}

fn own(kind: u16, filled: &Filled, shared: &BTreeSet<usize>) -> BTreeSet<usize> {
    let of_kind = filled.get(&kind).into_iter().flatten().copied();
    of_kind.filter(|column| !shared.contains(column)).collect()
}

fn list(out: &mut String, columns: &BTreeSet<usize>) {
    let names: Vec<String> = columns
        .iter()
        .map(|column| format!("`{}`", COLUMNS[*column].name))
        .collect();
    let _ = writeln!(out, "Columns: {}\n", names.join(", "));
}

fn of_kind(out: &mut String, row: &Kind, columns: &BTreeSet<usize>) {
    let name = row.name;
    let class = class::name(row.class).unwrap_or_default();
    // Some say so themselves.
    let off = Config::default().capture.is_off(name) && !row.doc.contains("Off by default");
    let _ = writeln!(out, "## `{name}`\n");
    paragraph(
        out,
        &format!("{} Number {}, class {class}.", row.doc.trim(), row.number),
    );
    if off {
        paragraph(
            out,
            "Off by default: take it out of `capture.off_kinds` to have it.",
        );
    }
    let (points, probes) = points(row.number);
    if !points.is_empty() {
        let first = HOOKS
            .iter()
            .any(|hook| hook.probes_first && hook.kinds.contains(&row.number));
        let probes = probes.join(", ");
        let or = match (probes.is_empty(), first) {
            (true, _) => String::new(),
            (false, true) => format!("; where there are kprobes by one on {probes} instead"),
            (false, false) => {
                format!("; from Linux 6.19 on by a kprobe on {probes}, where there are kprobes")
            }
        };
        paragraph(
            out,
            &format!("Told by the tracepoint {}{or}.", points.join(", ")),
        );
    }
    if OBJECT_KINDS.contains(&row.number) {
        paragraph(
            out,
            "Where the kernel asks BPF programs as a security module, or has kprobes, they see the \
             object that a successful call acts on, and its path is told with source `kernel`.",
        );
    }
    table_of_calls(out, row.number);
    list(out, columns);
    for limit in limits::of(row.number) {
        out.push_str("- ");
        wrapped(out, limit, "  ");
    }
    if !limits::of(row.number).is_empty() {
        out.push('\n');
    }
}

/// Made of a record of another kind: it has that event's columns, and its own.
fn argument_race(out: &mut String, filled: &Filled, shared: &BTreeSet<usize>) {
    let rows = rows();
    let of_path = |kind: u16| {
        rows.iter()
            .any(|row| row.shape.kind == kind && row.shape.path != NONE)
    };
    let kinds = filled.iter().filter(|(kind, _)| of_path(**kind));
    let mut columns: BTreeSet<usize> = kinds.flat_map(|(_, columns)| columns).copied().collect();
    let own = COLUMNS.iter().enumerate();
    columns.extend(
        own.filter_map(|(at, column)| column.name.starts_with("argument_race_").then_some(at)),
    );
    columns.retain(|column| !shared.contains(column));
    out.push_str("## `argument_race`\n\n");
    paragraph(
        out,
        "A path was changed in the caller's memory while the kernel used it. Follows the event of the \
         call, in the same class and with the same columns. Number 93; it cannot be switched off, but \
         comes only with an event that is told.",
    );
    list(out, &columns);
}

/// Tracepoints, and the kprobes that later kernels have instead.
fn points(kind: u16) -> (Vec<String>, Vec<String>) {
    // The hook `connect` serves unix sockets by its calls alone.
    let hooks = HOOKS
        .iter()
        .filter(|hook| hook.kinds.contains(&kind) && kind != kind::UNIX_CONNECT);
    let (mut points, mut probes) = (Vec::new(), Vec::new());
    for point in hooks.flat_map(|hook| hook.points.iter().chain(hook.probes)) {
        let (list, name) = match point.place {
            Place::Tracepoint(name) | Place::RawTracepoint(name) | Place::Iterator(name) => {
                (&mut points, format!("`{name}`"))
            }
            Place::Kprobe(name) | Place::Fentry(name) | Place::Lsm(name) => {
                (&mut probes, format!("`{name}`"))
            }
        };
        if !list.contains(&name) {
            list.push(name);
        }
    }
    (points, probes)
}

/// Each row once, in the order of its first slot.
fn rows() -> Vec<&'static Row> {
    let mut names = BTreeSet::new();
    let rows = (0..SLOTS).filter_map(calls::of_slot).map(|(row, _)| row);
    rows.filter(|row| names.insert(row.name)).collect()
}

fn table_of_calls(out: &mut String, kind: u16) {
    let also = limits::also(kind);
    let mut rows = rows();
    rows.retain(|row| match kind {
        // The connection's end is told by the tracepoint.
        kind::CLOSE_FLOW => false,
        _ => row.shape.kind == kind || also.contains(&row.name),
    });
    if rows.is_empty() {
        return;
    }
    out.push_str("| system call | x86_64 | i386 | x32 | arm64 | about | told |\n");
    out.push_str("|---|---|---|---|---|---|---|\n");
    for row in rows {
        let numbers = row.numbers().map(|(_, number)| match number {
            0 => "-".to_owned(),
            calls::ZERO => "0".to_owned(),
            number => number.to_string(),
        });
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} |",
            row.name,
            numbers.join(" | "),
            about(row),
            told(row)
        );
    }
    out.push('\n');
}

fn about(row: &Row) -> String {
    let shape = &row.shape;
    let mut parts = Vec::new();
    if shape.path != NONE {
        parts.push(match shape.flags & flags::FOLLOW {
            0 => "a name",
            _ => "what a name leads to",
        });
    }
    if shape.target_path != NONE {
        parts.push("a second name");
    }
    if shape.descriptor != NONE {
        parts.push("a descriptor's file");
    }
    if row.program == "exit_exec" {
        parts.push("arguments");
    } else if shape.text != NONE {
        parts.push("a text");
    }
    if shape.structure != NONE {
        parts.push("a structure");
    }
    parts.join(", ")
}

/// When is a return of this call told?
fn told(row: &Row) -> String {
    if let Some(told) = limits::told_when(row.program) {
        return told.to_owned();
    }
    assert_eq!(
        row.program, "call",
        "limits::told_when has nothing about this program"
    );
    let shape = &row.shape;
    let mut when = Vec::new();
    if shape.flags & flags::ONLY_SUCCESS != 0 {
        when.push("when it succeeds".to_owned());
    }
    if shape.flags & flags::ONLY_FAILURE != 0 {
        when.push("when it fails".to_owned());
    }
    if shape.flags & flags::STRUCTURE_SET != 0 {
        when.push("when it changes something".to_owned());
    }
    if shape.filter != NONE && shape.flags & flags::VALUES == 0 {
        when.push(format!(
            "argument {} has a bit of {:#x}",
            shape.filter, shape.mask
        ));
    }
    if shape.flags & flags::VALUES != 0 {
        let low = (0..32).filter(|value| shape.mask >> value & 1 != 0);
        let values: BTreeSet<u32> = low.chain([shape.also]).collect();
        let values = values.iter().map(|value| match value {
            0..32 => value.to_string(),
            value => format!("{value:#x}"),
        });
        let values: Vec<String> = values.collect();
        when.push(format!(
            "argument {} is {}",
            shape.filter,
            values.join(", ")
        ));
    }
    match when.is_empty() {
        true => "always".to_owned(),
        false => when.join("; "),
    }
}

fn all_columns(out: &mut String) {
    out.push_str("## All columns\n\n| column | type | what it says |\n|---|---|---|\n");
    for column in &COLUMNS {
        let ty = match column.ty {
            ColumnType::Int => "integer",
            ColumnType::Time => "time",
            ColumnType::Bool => "boolean",
            ColumnType::Text => "text",
            ColumnType::TextList => "list of texts",
            ColumnType::Enum => "name",
        };
        let doc = column.doc.replace('|', "\\|");
        let _ = writeln!(out, "| `{}` | {ty} | {doc} |", column.name);
    }
}
