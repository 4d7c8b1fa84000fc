//! Every place that knows kinds, in the order of an event's life; CONTRIBUTING.md lists them.

use anyhow::{Result, ensure};

use super::{Kind, Source, numbers::Call, tree::Tree};

const KINDS: &str = "audit-common/src/kind.rs";
const PROTO: &str = "proto/audit/v1/event.proto";
const CALLS: &str = "audit-agent/src/calls.rs";
const HOOKS: &str = "audit-agent/src/probe/hooks.rs";
const PROBE: &str = "audit-agent/src/probe/empty.rs";
const DECODE: &str = "audit-agent/src/decode.rs";
const SAMPLE: &str = "audit-agent/src/sample.rs";
const CATALOGUE: &str = "audit-agent/src/catalogue/events.rs";
const RECORD: &str = "audit-common/src/record.rs";
const PROGRAMS: &str = "audit-ebpf/src/main.rs";
const EMPTY: &str = "audit-ebpf/src/empty.rs";
const COMPACT: &str = "audit-cli/src/compact/action.rs";
const WORKLOAD: &str = "tests/src/workload.rs";

/// Changes `tree`; what a person has to do then.
pub fn write(kind: &Kind, tree: &mut Tree) -> Result<Vec<String>> {
    table(kind, tree)?;
    contract(kind, tree)?;
    let mut left = Vec::new();
    if kind.means.starts_with("DESCRIBE") {
        left.push(format!(
            "{KINDS}: write what `{}` means, in one sentence.",
            kind.name
        ));
    }
    match &kind.source {
        Source::Calls(calls) => {
            rows(kind, calls, tree)?;
            left.push(format!(
                "{CALLS}, {}: say which arguments are a path, a descriptor, a text (path, path_at, \
                 follow, descriptor, text), which calls are not told (values, bits, only_success), \
                 and name flags, mode, size ... The kinds above it are examples.",
                kind.constant
            ));
            left.push(
                "audit-agent/src/decode/call.rs: nothing, unless a text or structure belongs into a \
                 column of its own; then an arm of `call`, and a field in the proto."
                    .to_owned(),
            );
        }
        Source::Tracepoint(tracepoint) => {
            program(kind, tracepoint, tree)?;
            decoder(kind, tree)?;
            left.extend(left_of_tracepoint(kind, tracepoint));
        }
    }
    workload(kind, tree)?;
    line(kind, tree)?;
    left.push(format!(
        "{COMPACT}: the word and colour that `hostaudit tail` has for Kind::{}.",
        kind.ty
    ));
    left.push(format!(
        "tests/src/workload/{0}.rs: perform it and ask for it; `cargo test -p audit-tests --test \
         ground_truth` fails until then.",
        kind.name
    ));
    left.push("audit-agent/src/catalogue/limits.rs: what is left out on purpose.".to_owned());
    left.push("cargo xtask events; cargo xtask bench overhead before and after.".to_owned());
    Ok(left)
}

fn left_of_tracepoint(kind: &Kind, tracepoint: &str) -> [String; 4] {
    let Kind { name, ty, .. } = kind;
    [
        format!(
            "audit-ebpf/src/{name}.rs: the arguments of {tracepoint} (include/trace/events of the kernel's \
             source), and when it is not told. In an interrupt it needs the class FLOW: see class.rs."
        ),
        format!("{RECORD}: the fields of `{ty}`."),
        format!("audit-agent/src/decode/{name}.rs: the columns that they become."),
        format!("{HOOKS}: the kernel structs whose fields the program reads, in `needs`."),
    ]
}

/// The row's place is by number.
fn table(kind: &Kind, tree: &mut Tree) -> Result<()> {
    let text = tree.read(KINDS)?;
    let mut place = None;
    let (mut offset, mut documented) = (0, None);
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        inside |= trimmed == "events! {";
        if inside && trimmed.starts_with("///") {
            documented.get_or_insert(offset);
        } else if inside && trimmed == "}" {
            place.get_or_insert(offset);
            break;
        } else if inside && let Some((number, name)) = row(trimmed) {
            ensure!(number != kind.number, "number {number} is `{name}`");
            ensure!(
                name != kind.name,
                "`{name}` is there already, as number {number}"
            );
            if number > kind.number {
                place.get_or_insert(documented.unwrap_or(offset));
            }
            documented = None;
        }
        offset += line.len();
    }
    let at = place.unwrap_or(offset);
    let new = format!(
        "    /// {}\n    {} {} {:?} {};\n",
        kind.means,
        kind.number,
        kind.constant,
        kind.name,
        kind.class.constant()
    );
    tree.replace(KINDS, format!("{}{new}{}", &text[..at], &text[at..]));
    Ok(())
}

/// `40 OPEN "open" FILE;`
fn row(line: &str) -> Option<(u16, &str)> {
    let mut words = line.strip_suffix(';')?.split(' ');
    let number = words.next()?.parse().ok()?;
    Some((number, words.nth(1)?.trim_matches('"')))
}

fn contract(kind: &Kind, tree: &mut Tree) -> Result<()> {
    let text = tree.read(PROTO)?;
    let mut next = "}".to_owned();
    for line in text.lines() {
        let Some((name, number)) = line.trim().strip_prefix("KIND_").and_then(|rest| {
            let (name, number) = rest.strip_suffix(';')?.split_once(" = ")?;
            Some((name, number.parse::<u16>().ok()?))
        }) else {
            continue;
        };
        ensure!(
            number != kind.number,
            "number {number} is KIND_{name} in {PROTO}"
        );
        if number > kind.number {
            next = format!("  KIND_{name} = {number};");
            break;
        }
    }
    let new = format!("  KIND_{} = {};\n", kind.constant, kind.number);
    tree.insert(PROTO, "enum Kind {", &next, &new)
}

fn rows(kind: &Kind, calls: &[Call], tree: &mut Tree) -> Result<()> {
    let known = tree.read(CALLS)?;
    let mut new = format!("pub const {}: &[Row] = &[\n", kind.constant);
    for Call { name, numbers, x32 } in calls {
        let taken = known
            .split(&format!("\"{name}\","))
            .next()
            .filter(|before| before.len() < known.len());
        if let Some(before) = taken {
            let table = before.rsplit("pub const ").next().unwrap_or_default();
            let table = table.split(':').next().unwrap_or_default();
            anyhow::bail!(
                "{name} is a row of {table} in {CALLS} already; a call is told as one kind"
            );
        }
        let x32 = match x32 {
            0 => String::new(),
            number => format!(".x32({number})"),
        };
        new += &format!(
            "    call({name:?}, {numbers:?}, shape(kind::{})){x32},\n",
            kind.constant
        );
    }
    new += "];\n\n";
    tree.insert(CALLS, "pub const XATTR", "#[cfg(test)]", &new)?;
    let name = format!("    {},\n", kind.constant);
    tree.insert(CALLS, "const ALL: &[&[Row]] = &[", "];", &name)?;
    let Kind { name, constant, .. } = kind;
    let hook = format!("    calls({name:?}, &[kind::{constant}], &[calls::{constant}], FILES),\n");
    hooks(&hook, tree)
}

fn hooks(row: &str, tree: &mut Tree) -> Result<()> {
    tree.insert(HOOKS, "pub const HOOKS: &[Hook] = &[", "];\n\n", row)
}

/// The kernel's side of a tracepoint.
fn program(kind: &Kind, tracepoint: &str, tree: &mut Tree) -> Result<()> {
    let Kind {
        name, constant, ty, ..
    } = kind;
    let known = tree.read(HOOKS)?;
    ensure!(
        !known.contains(&format!("\"{tracepoint}\"")),
        "{tracepoint} has a program already ({HOOKS}); tell the new kind from that one"
    );
    let file = PROGRAM
        .replace("@name@", name)
        .replace("@constant@", constant)
        .replace("@type@", ty)
        .replace("@tracepoint@", tracepoint)
        .replace("@class@", kind.class.constant());
    tree.create(&format!("audit-ebpf/src/{name}.rs"), file)?;
    module(PROGRAMS, name, tree)?;
    let payload = format!(
        "/// [`crate::kind::{constant}`].\n#[repr(C)]\n\
         #[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]\n\
         pub struct {ty} {{\n    pub argument: u64,\n}}\n\n"
    );
    tree.insert(RECORD, "pub struct Open", "pub mod section {", &payload)?;
    let empty = format!(
        "#[btf_tracepoint(function = {tracepoint:?})]\npub fn empty_{name}(_: BtfTracePointContext) -> i32 {{\n    0\n}}\n\n"
    );
    tree.insert(EMPTY, "use aya_ebpf", "#[btf_tracepoint(", &empty)?;
    let arm = format!("{tracepoint:?} => \"empty_{name}\",\n                ");
    tree.insert(
        PROBE,
        "let program = match tracepoint",
        "_ => \"empty",
        &arm,
    )?;
    let hook = format!(
        "    points({name:?}, &[kind::{constant}], &[point({name:?}, {tracepoint:?})], &[]),\n"
    );
    hooks(&hook, tree)
}

const PROGRAM: &str = r#"//! The program of `@name@`.

use audit_common::{class, kind, record::@type@};
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    preemption,
    process::argument,
    record::{BTF_TRACEPOINT, Writer},
};

/// `@tracepoint@(...)`
#[btf_tracepoint(function = "@tracepoint@")]
pub fn @name@(ctx: BtfTracePointContext) -> i32 {
    preemption::without(|| {
        try_@name@(&ctx);
    })
}

#[inline(always)]
fn try_@name@(ctx: &BtfTracePointContext) -> Option<()> {
    let (writer, payload) = Writer::begin::<@type@>(class::@class@, kind::@constant@, BTF_TRACEPOINT)?;
    payload.argument = argument(ctx, 0);
    writer.send();
    Some(())
}
"#;

/// The agent's side of it.
fn decoder(kind: &Kind, tree: &mut Tree) -> Result<()> {
    let Kind {
        name, constant, ty, ..
    } = kind;
    let file = format!(
        "//! What does a record of `{name}` say?\n\n\
         use audit_common::record::{{self, Record}};\nuse audit_proto::v1::{{Event, Syscall}};\n\n\
         pub(super) fn {name}(record: &Record<'_>, event: &mut Event) -> Option<()> {{\n    \
             let payload: record::{ty} = record.payload()?;\n    \
             event.syscall = Some(Syscall {{\n        a0: Some(payload.argument as i64),\n        \
             ..Syscall::default()\n    }});\n    Some(())\n}}\n"
    );
    tree.create(&format!("audit-agent/src/decode/{name}.rs"), file)?;
    module(DECODE, name, tree)?;
    let arm = format!("kind::{constant} => {name}::{name}(record, event),\n        ");
    tree.insert(DECODE, "fn of_kind(", "unknown => return Err", &arm)?;
    let arm = format!(
        "kind::{constant} => sample(\n            kind,\n            \
         &audit_common::record::{ty} {{ argument: 1 }},\n        ),\n        "
    );
    tree.insert(SAMPLE, "pub fn record(kind: u16)", "kind::OPEN => {", &arm)?;
    let arm = format!("kind::{constant} => vec![plain()],\n        ");
    tree.insert(
        CATALOGUE,
        "fn own_forms(kind: u16)",
        "_ => Vec::new()",
        &arm,
    )
}

/// Declares the module `name` in its alphabetical place among the private ones of `path`.
fn module(path: &str, name: &str, tree: &mut Tree) -> Result<()> {
    let text = tree.read(path)?;
    let modules = text
        .lines()
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    let modules: Vec<&str> = modules.collect();
    ensure!(
        !modules.contains(&name),
        "{path} has a module {name} already; choose another name"
    );
    let new = format!("mod {name};\n");
    let next = modules.iter().find(|module| **module > name);
    match (next, modules.last()) {
        (Some(next), _) => tree.insert(path, "\n", &format!("mod {next};\n"), &new),
        (None, Some(last)) => tree.insert(path, &format!("mod {last};\n"), "", &new),
        (None, None) => anyhow::bail!("{path} declares no modules"),
    }
}

/// How a line of `hostaudit tail` tells it: the match has an arm for every kind.
fn line(kind: &Kind, tree: &mut Tree) -> Result<()> {
    let arm = format!(
        "Kind::{} => ({:?}, Style::Plain, objects(event, glyphs)),\n            ",
        kind.ty, kind.name
    );
    tree.insert(
        COMPACT,
        "let (verb, style, mut object",
        "Kind::Unspecified =>",
        &arm,
    )
}

/// A group of its own, which fails until it performs something.
fn workload(kind: &Kind, tree: &mut Tree) -> Result<()> {
    let name = &kind.name;
    let file = format!(
        "//! What the record must have of `{name}`.\n\n\
         use anyhow::{{Result, bail}};\n\nuse super::Workload;\n\n\
         pub fn {name}(work: &mut Workload) -> Result<()> {{\n    \
             // Perform it in `work.directory`, once well and once so that it fails; then for each:\n    \
             // work.once(\"what was done\", format!(\"kind = '{name}' and {{}} and ...\", ours()));\n    \
             bail!(\"`{name}` is not performed yet in {{}}\", work.directory.display())\n}}\n"
    );
    tree.create(&format!("tests/src/workload/{name}.rs"), file)?;
    module(WORKLOAD, name, tree)?;
    let text = tree.read(WORKLOAD)?;
    let count = text
        .split_once("pub const GROUPS: [&str; ")
        .and_then(|(_, rest)| rest.split(']').next()?.parse::<usize>().ok());
    let Some(count) = count else {
        anyhow::bail!(
            "{WORKLOAD} has no GROUPS: it has changed; correct xtask/src/new_event/places.rs"
        )
    };
    let text = text.replacen(
        &format!("GROUPS: [&str; {count}]"),
        &format!("GROUPS: [&str; {}]", count + 1),
        1,
    );
    tree.replace(WORKLOAD, text);
    tree.insert(
        WORKLOAD,
        "pub const GROUPS",
        "];",
        &format!("    {name:?},\n"),
    )?;
    let arm = format!("{name:?} => {name}::{name}(&mut work)?,\n            ");
    tree.insert(WORKLOAD, "match group {", "other => bail!", &arm)
}
