//! `cargo xtask ebpf --stats`: how much has the kernel's verifier to check of each program, on this
//! kernel and on others, and does that leave room? A program that the verifier gives up is a hook that
//! is missing, and newer verifiers tell more states apart than older ones.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, vm};

/// The verifier's limit is to be at least so many times what a program takes.
const HEADROOM: u64 = 2;
const AGENT: &str = "audit-agent";
const STATS: &str = "--verifier-stats";
const PAGE: &str = "docs/verifier.md";

/// Of one kernel: instructions and limit of each program, or why there are none.
type Programs = BTreeMap<String, Result<(u64, u64), String>>;

/// On this kernel, or on those asked for; all that `cargo xtask vm` tests become a page.
pub fn run(kernels: &[String]) -> Result<ExitCode> {
    let all = kernels == ["all"];
    let found = if kernels.is_empty() {
        vec![("here".to_owned(), of(&here()?)?)]
    } else {
        let asked = if all { &[][..] } else { kernels };
        let outputs = vm::outputs(asked, &[AGENT, STATS])?;
        let parsed = outputs
            .into_iter()
            .map(|(series, text)| Ok((series, of(&text)?)));
        parsed.collect::<Result<_>>()?
    };
    let table = table(&found);
    print!("{table}");
    if all {
        let page = cargo::root().join(PAGE);
        fs::write(&page, format!("{}{table}", head()))?;
        eprintln!("written: {}", page.display());
    }
    let wrong = wrong(&found);
    for line in &wrong {
        eprintln!("xtask: {line}");
    }
    Ok(if wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn here() -> Result<String> {
    let agent = cargo::built("debug", AGENT);
    let output = Command::new(&agent).arg(STATS).output();
    let output = output.with_context(|| format!("cannot start {}", agent.display()))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}: {}",
        agent.display(),
        error.trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn head() -> String {
    format!(
        "# What the verifier checks\n\n\
         Written by `cargo xtask ebpf --stats all`: instructions that each kernel's verifier goes through\n\
         for each program, of at most 1,000,000. The command fails where a program takes more than\n\
         1/{HEADROOM} of that. \"-\": this kernel has no place for the program, or refuses it; docs/kernels.md\n\
         says which hooks that leaves.\n\n"
    )
}

/// Lines of a program, its instructions and the limit, separated by tabs.
fn of(text: &str) -> Result<Programs> {
    let mut programs = Programs::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.trim_end().split('\t').collect();
        let (name, processed) = match fields[..] {
            [name, instructions, limit] => (name, Ok((instructions.parse()?, limit.parse()?))),
            [name, reason] => (name, Err(reason.to_owned())),
            // What else the guest says.
            _ => continue,
        };
        programs.insert(name.to_owned(), processed);
    }
    ensure!(!programs.is_empty(), "the agent told of no program: {text}");
    Ok(programs)
}

/// The largest programs first.
fn table(found: &[(String, Programs)]) -> String {
    let most = |name: &str| {
        let of_each = found
            .iter()
            .filter_map(|(_, programs)| programs.get(name)?.as_ref().ok());
        of_each
            .map(|(instructions, _)| *instructions)
            .max()
            .unwrap_or(0)
    };
    let mut names: Vec<&String> = found
        .iter()
        .flat_map(|(_, programs)| programs.keys())
        .collect();
    names.sort();
    names.dedup();
    names.sort_by_key(|name| std::cmp::Reverse(most(name)));
    let mut text = String::from("| program |");
    for (kernel, _) in found {
        let _ = write!(text, " {kernel} |");
    }
    text.push_str(" headroom |\n|---|");
    text.push_str(&"---:|".repeat(found.len() + 1));
    text.push('\n');
    for name in names {
        let _ = write!(text, "| `{name}` |");
        for (_, programs) in found {
            match programs.get(name) {
                Some(Ok((instructions, _))) => {
                    let _ = write!(text, " {instructions} |");
                }
                _ => text.push_str(" - |"),
            }
        }
        let least = found
            .iter()
            .filter_map(|(_, programs)| headroom(programs.get(name)?));
        match least.reduce(f64::min) {
            Some(times) if times >= 100.0 => text.push_str(" > 100 |\n"),
            Some(times) => {
                let _ = writeln!(text, " {times:.1} |");
            }
            None => text.push_str(" - |\n"),
        }
    }
    text
}

fn headroom(processed: &Result<(u64, u64), String>) -> Option<f64> {
    let (instructions, limit) = processed.as_ref().ok()?;
    Some(*limit as f64 / (*instructions).max(1) as f64)
}

fn wrong(found: &[(String, Programs)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (kernel, programs) in found {
        for (name, processed) in programs {
            match processed {
                Ok((instructions, limit)) if instructions * HEADROOM > *limit => wrong.push(format!(
                    "Linux {kernel}: {name} takes {instructions} of {limit}: less than {HEADROOM} times the room"
                )),
                _ => {}
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_stand_side_by_side_and_large_ones_fail() {
        let old = of("vm: up after 3 s\nexec\t900\t1000000\ncall\t600000\t1000000\n").unwrap();
        let new = of("exec\t1000\t1000000\ncall\tcall: Invalid argument\n").unwrap();
        let found = [("5.10".to_owned(), old), ("7.2".to_owned(), new)];
        let table = table(&found);
        for line in [
            "| program | 5.10 | 7.2 | headroom |",
            "| `call` | 600000 | - | 1.7 |",
            "| `exec` | 900 | 1000 | > 100 |",
        ] {
            assert!(table.contains(line), "{line} is not in\n{table}");
        }
        assert!(table.find("call") < table.find("exec"));
        let wrong = wrong(&found);
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].contains("Linux 5.10: call"), "{wrong:?}");
        assert!(of("audit-agent: not permitted\n").is_err());
    }
}
