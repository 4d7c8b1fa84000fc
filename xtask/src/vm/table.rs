//! How do the results of several kernels read side by side? As Markdown: docs/kernels.md.

use std::fmt::Write as _;

use super::capture::{Entry, Tested};

/// Of a kernel's failed expectations, what is shown.
const MAX_FAILURES: usize = 12;
/// Of one reason, for example a verifier's log.
const MAX_REASON_CHARS: usize = 300;

/// The page; `date` is the day of the run.
pub fn page(tested: &[Tested], date: &str) -> String {
    let mut text = format!(
        "# Kernels\n\n\
         Written by `cargo xtask vm` on {date}: the programs of this tree in the dev profile, on Debian's\n\
         cloud kernels, in QEMU without KVM, two processors. Each guest runs `audit-agent --dry-run`, then\n\
         an agent, a collector and the known actions of `tests/src/workload`; each action is a question\n\
         to the collector with one right answer (`tests/tests/ground_truth.rs`).\n\n"
    );
    text.push_str(&results(tested));
    text.push_str("\n## What each hook attaches to\n\n");
    text.push_str(&hooks(tested));
    text.push_str("\n## What failed, and why not better\n\n");
    text.push_str(&failures(tested));
    text
}

/// For a terminal: a line a kernel.
pub fn summary(tested: &[Tested]) -> String {
    let mut text = String::new();
    for kernel in tested {
        let verdict = match &kernel.failure {
            None => "passed".to_owned(),
            Some(reason) => format!("FAILED  {}", short(reason)),
        };
        let _ = writeln!(
            text,
            "  {:<5} {:<28} {:>4} of {:<4} {:>5.0} s  {verdict}",
            kernel.name,
            kernel.release,
            kernel.met(),
            kernel.entries.len(),
            kernel.took.as_secs_f64()
        );
    }
    text
}

/// Rows: the kernel, everything, each group, each kind. "met of asked".
fn results(tested: &[Tested]) -> String {
    let mut text = header("", tested);
    row(&mut text, "release", tested, |kernel| {
        kernel.release.clone()
    });
    row(&mut text, "expectations met", tested, |kernel| {
        if kernel.entries.is_empty() {
            "none asked".to_owned()
        } else {
            format!("**{} of {}**", kernel.met(), kernel.entries.len())
        }
    });
    for group in names(tested, |entry| vec![entry.group.clone()]) {
        let label = format!("group `{group}`");
        row(&mut text, &label, tested, |kernel| {
            share(kernel, |entry| entry.group == group)
        });
    }
    for kind in names(tested, |entry| entry.kinds.clone()) {
        let label = format!("kind `{kind}`");
        row(&mut text, &label, tested, |kernel| {
            share(kernel, |entry| entry.kinds.contains(&kind))
        });
    }
    text
}

fn hooks(tested: &[Tested]) -> String {
    let mut kinds: Vec<String> = Vec::new();
    for hook in tested.iter().flat_map(|kernel| &kernel.hooks) {
        if !kinds.contains(&hook.kind) {
            kinds.push(hook.kind.clone());
        }
    }
    let mut text = header("hook", tested);
    for kind in kinds {
        row(&mut text, &format!("`{kind}`"), tested, |kernel| {
            let hook = kernel.hooks.iter().find(|hook| hook.kind == kind);
            hook.map_or("-", |hook| name(&hook.rung)).to_owned()
        });
    }
    text
}

/// What stands before the reason, which stands below the table.
fn name(rung: &str) -> &str {
    let end = rung.find([':', ';', ',', '(']).unwrap_or(rung.len());
    rung[..end].trim_end()
}

/// Reasons, each once with the kinds for which it holds.
fn reasons(kernel: &Tested) -> Vec<String> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for hook in &kernel.hooks {
        if name(&hook.rung) == hook.rung {
            continue;
        }
        let (reason, kind) = (short(&hook.rung), format!("`{}`", hook.kind));
        match found.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, kinds)) => kinds.push(kind),
            None => found.push((reason, vec![kind])),
        }
    }
    found
        .into_iter()
        .map(|(reason, kinds)| format!("{}: {reason}", kinds.join(" ")))
        .collect()
}

fn failures(tested: &[Tested]) -> String {
    let mut text = String::new();
    for kernel in tested {
        let mut lines: Vec<String> = Vec::new();
        lines.extend(kernel.failure.as_deref().map(short));
        lines.extend(reasons(kernel));
        let failed: Vec<&Entry> = kernel.entries.iter().filter(|entry| !entry.met).collect();
        lines.extend(failed.iter().take(MAX_FAILURES).map(|entry| {
            format!(
                "`{}`, {}: {} instead of {}",
                entry.group,
                short(&entry.action),
                entry.found,
                entry.expected
            )
        }));
        if failed.len() > MAX_FAILURES {
            lines.push(format!("and {} more", failed.len() - MAX_FAILURES));
        }
        for line in lines {
            let _ = writeln!(text, "- {}: {line}", kernel.name);
        }
    }
    if text.is_empty() {
        text.push_str("Nothing.\n");
    }
    text
}

fn header(first: &str, tested: &[Tested]) -> String {
    let mut text = format!("| {first} |");
    for kernel in tested {
        let _ = write!(text, " {} |", kernel.name);
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(tested.len()));
    text.push('\n');
    text
}

fn row(text: &mut String, label: &str, tested: &[Tested], cell: impl Fn(&Tested) -> String) {
    let _ = write!(text, "| {label} |");
    for kernel in tested {
        let _ = write!(text, " {} |", cell(kernel).replace('|', "/"));
    }
    text.push('\n');
}

/// In the order in which they appear.
fn names(tested: &[Tested], of: impl Fn(&Entry) -> Vec<String>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for name in tested.iter().flat_map(|k| &k.entries).flat_map(of) {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

fn share(kernel: &Tested, of: impl Fn(&Entry) -> bool) -> String {
    let all: Vec<&Entry> = kernel.entries.iter().filter(|entry| of(entry)).collect();
    let met = all.iter().filter(|entry| entry.met).count();
    match all.len() {
        0 => "-".to_owned(),
        asked if asked == met => asked.to_string(),
        asked => format!("**{met} of {asked}**"),
    }
}

/// One line, not too long.
fn short(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default().trim();
    if line.chars().count() <= MAX_REASON_CHARS {
        return line.to_owned();
    }
    let cut: String = line.chars().take(MAX_REASON_CHARS).collect();
    format!("{cut} ...")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::capture::Hook, *};

    fn kernel(name: &str, verdicts: &[bool], failure: Option<&str>) -> Tested {
        let entries = verdicts.iter().map(|met| Entry {
            group: "lives".into(),
            action: "an exit".into(),
            kinds: vec!["exit".into()],
            expected: "1".into(),
            found: if *met { "1" } else { "0" }.into(),
            met: *met,
        });
        Tested {
            name: name.into(),
            release: format!("{name}.1-cloud"),
            hooks: vec![Hook {
                kind: "exit".into(),
                rung: if failure.is_some() {
                    "not available: a | b"
                } else {
                    "tracepoint"
                }
                .into(),
            }],
            entries: entries.collect(),
            failure: failure.map(str::to_owned),
            took: Duration::from_secs(40),
        }
    }

    #[test]
    fn kernels_stand_side_by_side_and_failures_have_reasons() {
        let tested = [
            kernel(
                "5.10",
                &[true, false],
                Some("exit status 101: 1 wrong\nmore"),
            ),
            kernel("6.1", &[true, true], None),
        ];
        let page = page(&tested, "2026-01-02");
        for part in [
            "on 2026-01-02",
            "|  | 5.10 | 6.1 |\n|---|---|---|\n",
            "| expectations met | **1 of 2** | **2 of 2** |",
            "| group `lives` | **1 of 2** | 2 |",
            "| `exit` | not available | tracepoint |",
            "- 5.10: exit status 101: 1 wrong\n",
            "- 5.10: `exit`: not available: a | b\n",
            "- 5.10: `lives`, an exit: 0 instead of 1\n",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        let summary = summary(&tested);
        assert!(summary.contains("2 of 2       40 s  passed"), "{summary}");
        assert!(summary.contains("FAILED  exit status 101"), "{summary}");
    }
}
