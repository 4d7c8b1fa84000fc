//! A family as lines: the ancestors as one stem, the subject, and below it everything it started.

use super::family::{Exit, Family, Process};
use crate::{color::Style, compact::signal_name, display, terminal::Terminal, when::Clock};

/// Deeper than a terminal is wide helps nobody; deeper levels stay at this indent.
const MAX_INDENT: usize = 40;

pub fn draw(family: &Family, subject: &str, terminal: &Terminal, clock: &Clock) -> String {
    let mut stem = vec![subject];
    while let Some(parent) = stem.last().and_then(|id| family.parent(id)) {
        if stem.contains(&parent) {
            break;
        }
        stem.push(parent);
    }
    stem.reverse();
    let mut out = String::new();
    for (depth, id) in stem.iter().enumerate() {
        let prefix = match depth {
            0 => String::new(),
            _ => "   ".repeat((depth - 1).min(MAX_INDENT)) + terminal.glyphs.last,
        };
        line(
            &mut out,
            &prefix,
            family.process(id),
            *id == subject,
            terminal,
            clock,
        );
    }
    let indent = "   ".repeat(stem.len().saturating_sub(1).min(MAX_INDENT));
    // A stack instead of recursion: a chain of a thousand forks must not end this program.
    let mut rest: Vec<(String, &str, bool)> = Vec::new();
    push_children(&mut rest, family, subject, &indent);
    while let Some((prefix, id, last)) = rest.pop() {
        let glyphs = terminal.glyphs;
        let branch = if last { glyphs.last } else { glyphs.branch };
        line(
            &mut out,
            &format!("{prefix}{branch}"),
            family.process(id),
            false,
            terminal,
            clock,
        );
        let deeper = display::width(&prefix) / 3 < MAX_INDENT;
        let below = match (deeper, last) {
            (false, _) => prefix,
            (true, true) => prefix + "   ",
            (true, false) => prefix + glyphs.bar,
        };
        push_children(&mut rest, family, id, &below);
    }
    out
}

fn push_children<'a>(
    rest: &mut Vec<(String, &'a str, bool)>,
    family: &'a Family,
    id: &str,
    prefix: &str,
) {
    for (at, child) in family.children(id).into_iter().rev().enumerate() {
        rest.push((prefix.to_owned(), child, at == 0));
    }
}

fn line(
    out: &mut String,
    prefix: &str,
    process: Option<&Process>,
    is_subject: bool,
    terminal: &Terminal,
    clock: &Clock,
) {
    let unknown = Process::default();
    let p = process.unwrap_or(&unknown);
    let name = if p.name.is_empty() { "?" } else { &p.name };
    let pid = p.pid.map(|pid| format!("[{pid}]")).unwrap_or_default();
    let start = p
        .start
        .map_or_else(|| "before the agent".to_owned(), |start| clock.local(start));
    let mut parts = vec![
        (Style::Dim, prefix.to_owned()),
        (
            if is_subject { Style::Bold } else { Style::Cyan },
            format!("{}{pid}", display::safe(name)),
        ),
        (
            Style::Plain,
            format!(
                " {}",
                display::safe(if p.user.is_empty() { "-" } else { &p.user })
            ),
        ),
        (Style::Dim, format!(" {start}  ")),
    ];
    let ending = p.exit.as_ref().map(exit);
    let ending_columns = ending.as_ref().map_or(0, |(_, text)| display::width(text));
    let taken: usize = parts
        .iter()
        .map(|(_, text)| display::width(text))
        .sum::<usize>()
        + ending_columns;
    let command = command(p);
    let room = terminal
        .width
        .map_or(usize::MAX, |width| width.saturating_sub(taken).max(12));
    parts.push((
        Style::Plain,
        display::fit(&command, room, terminal.glyphs.ellipsis).into_owned(),
    ));
    parts.extend(ending);
    for (style, text) in &parts {
        out.push_str(&terminal.palette.paint(*style, text));
    }
    out.push('\n');
}

/// Each program that the process became; what others said of it where no exec was seen.
fn command(p: &Process) -> String {
    if p.execs.is_empty() {
        let said = display::command_line(&p.said_argv);
        return if p.start.is_some() && said.is_empty() {
            "(no exec)".to_owned()
        } else {
            said
        };
    }
    let lines: Vec<_> = p
        .execs
        .values()
        .map(|argv| display::command_line(argv))
        .collect();
    lines.join(" => ")
}

fn exit(exit: &Exit) -> (Style, String) {
    let lasted = exit
        .duration_ns
        .map(|ns| format!(" ({})", display::duration(ns)))
        .unwrap_or_default();
    match (exit.signal, exit.code) {
        (Some(signal), _) => {
            let core = if exit.core_dumped {
                ", core dumped"
            } else {
                ""
            };
            (
                Style::Red,
                format!("  signal {signal}{}{core}{lasted}", signal_name(signal)),
            )
        }
        (None, Some(0)) => (Style::Dim, format!("  exit 0{lasted}")),
        (None, Some(code)) => (Style::Yellow, format!("  exit {code}{lasted}")),
        (None, None) => (Style::Dim, format!("  ended{lasted}")),
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use serde_json::json;

    use super::*;
    use crate::{
        color::Palette,
        display::{ASCII, UNICODE},
    };

    fn family() -> Family {
        let mut family = Family::default();
        let exec = |at: i64, id: &str, parent: &str| json!({"kind": "exec", "at": at, "process_exec_id": id, "process_pid": at, "process_name": id, "process_user": "root", "process_argv": [id, "x\n"], "parent_exec_id": parent, "parent_pid": 1, "parent_name": "init", "parent_argv": ["/sbin/init"]});
        for row in [
            exec(2, "sh", "init"),
            exec(3, "make", "sh"),
            exec(4, "cc", "make"),
            exec(5, "ls", "sh"),
        ] {
            family.add(&row);
        }
        family.add(&json!({"kind": "exit", "at": 9, "process_exec_id": "cc", "exit_code": 1, "exit_duration_ns": 310_000_000}));
        family
    }

    fn drawn(glyphs: display::Glyphs, width: Option<usize>) -> String {
        let terminal = Terminal {
            palette: Palette::OFF,
            error_palette: Palette::OFF,
            glyphs,
            width,
            error_is_terminal: false,
        };
        let clock = Clock {
            now: jiff::Timestamp::UNIX_EPOCH,
            zone: TimeZone::UTC,
        };
        draw(&family(), "sh", &terminal, &clock)
    }

    #[test]
    fn ancestors_subject_and_descendants_make_one_tree() {
        let expected = "\
init[1] - before the agent  /sbin/init
└─ sh[2] root 00:00:00.000  sh $'x\\n'
   ├─ make[3] root 00:00:00.000  make $'x\\n'
   │  └─ cc[4] root 00:00:00.000  cc $'x\\n'  exit 1 (0.3 s)
   └─ ls[5] root 00:00:00.000  ls $'x\\n'
";
        assert_eq!(drawn(UNICODE, None), expected);
        let ascii = expected
            .replace("├─", "|-")
            .replace("└─", "`-")
            .replace('│', "|");
        assert_eq!(drawn(ASCII, None), ascii);
    }

    #[test]
    fn a_chain_deeper_than_the_stack_is_drawn() {
        let mut family = Family::default();
        for n in 0..2000 {
            family.add(&json!({"kind": "fork", "at": n, "process_exec_id": n.to_string(), "target_process_exec_id": (n + 1).to_string()}));
        }
        let terminal = Terminal {
            palette: Palette::OFF,
            error_palette: Palette::OFF,
            glyphs: UNICODE,
            width: Some(80),
            error_is_terminal: false,
        };
        let text = draw(&family, "0", &terminal, &Clock::system());
        assert_eq!(text.lines().count(), 2001);
    }
}
