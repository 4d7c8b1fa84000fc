//! `hostaudit doctor`: can this host be recorded, by which hooks, and what would make it better?
//!
//! Works without a collector. Exit code: 0 everything, 1 degraded, 2 cannot run.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Result;
use audit_proto::v1::StatusRequest;

use crate::{
    client::Target,
    color::{Palette, Style},
    display,
    host::{self, Capabilities},
    output::Output,
    probe::{self, Hook},
    terminal::Terminal,
};

const EXAMPLES: &str = "\
Examples:
  hostaudit doctor                                  as root, also tries every hook
  hostaudit doctor --config /etc/hostaudit/agent.yaml
  hostaudit doctor || echo \"exit code $?\"           0 everything, 1 degraded, 2 cannot run

Each hook has a ladder of attach points, the best first; doctor shows the rung it got and why the
rungs above it were refused.";

/// Check what this host's kernel and this process's rights allow, hook by hook
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Doctor {
    /// The agent's configuration, for ring sizes and hooks
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Fine,
    Degraded,
    CannotRun,
}

#[derive(Debug)]
struct Check {
    name: String,
    verdict: Verdict,
    found: String,
    /// What to do about it.
    advice: String,
}

impl Check {
    fn fine(name: &str, found: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            verdict: Verdict::Fine,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn bad(
        name: &str,
        verdict: Verdict,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            verdict,
            found: found.into(),
            advice: advice.into(),
        }
    }
}

pub async fn run(args: &Doctor, target: &Target, terminal: &Terminal) -> Result<ExitCode> {
    let config = probe::agent_config(args.config.as_deref(), &[])?;
    let mut checks = host_checks();
    checks.push(rings(&config));
    checks.push(restart(&config));
    checks.push(collector(target).await);
    // Hooks are tried for real, so nothing is tried where it cannot work.
    let fatal = checks.iter().find(|c| c.verdict == Verdict::CannotRun);
    let hooks = match fatal {
        Some(check) => Err(format!("not tried: {}", check.found)),
        None => tokio::task::spawn_blocking(move || probe::hooks(&config)).await?,
    };
    let report = report(&checks, &hooks, terminal.palette);
    let mut out = Output::new();
    out.text(&report.0)?;
    out.flush()?;
    Ok(ExitCode::from(report.1 as u8))
}

fn host_checks() -> Vec<Check> {
    vec![
        kernel(&host::read("/proc/sys/kernel/osrelease")),
        btf(),
        rights(),
        lockdown(),
        memlock(),
        cgroups(),
    ]
}

fn kernel(release: &str) -> Check {
    let found = format!("{} {}", release.trim(), std::env::consts::ARCH);
    match host::kernel_version(release) {
        Some(version) if version >= (5, 10) => Check::fine("kernel", found),
        Some(_) => Check::bad(
            "kernel",
            Verdict::CannotRun,
            found,
            "Linux 5.10 or later is needed",
        ),
        None => Check::bad(
            "kernel",
            Verdict::Degraded,
            found,
            "its version is not understood; 5.10 or later is needed",
        ),
    }
}

fn btf() -> Check {
    let path = "/sys/kernel/btf/vmlinux";
    match fs::metadata(path) {
        Ok(meta) => Check::fine(
            "BTF",
            format!("{path}, {}", display::bytes(meta.len() as i64)),
        ),
        Err(e) => Check::bad(
            "BTF",
            Verdict::CannotRun,
            format!("{path}: {e}"),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' are; in a container mount /sys",
        ),
    }
}

fn rights() -> Check {
    let Some(own) = Capabilities::own() else {
        return Check::bad(
            "rights",
            Verdict::CannotRun,
            "/proc/self/status cannot be read",
            "mount /proc",
        );
    };
    let missing = own.missing();
    if missing.is_empty() {
        return Check::fine("rights", "all capabilities that the agent uses");
    }
    let found = format!("missing {}", missing.join(", "));
    let fatal = missing
        .iter()
        .any(|name| matches!(*name, "CAP_BPF" | "CAP_PERFMON"));
    let verdict = if fatal {
        Verdict::CannotRun
    } else {
        Verdict::Degraded
    };
    let advice = if host::is_root() {
        "add them to the container's securityContext or the unit's CapabilityBoundingSet"
    } else {
        "run as root: sudo hostaudit doctor"
    };
    Check::bad("rights", verdict, found, advice)
}

fn lockdown() -> Check {
    let text = host::read("/sys/kernel/security/lockdown");
    match host::lockdown(&text) {
        "confidentiality" => Check::bad(
            "lockdown",
            Verdict::CannotRun,
            "confidentiality: kernel memory may not be read",
            "boot with lockdown=integrity or without",
        ),
        mode => Check::fine("lockdown", mode),
    }
}

fn memlock() -> Check {
    let version = host::kernel_version(&host::read("/proc/sys/kernel/osrelease"));
    match host::memlock_bytes(&host::read("/proc/self/limits")) {
        None => Check::fine("memlock", "unlimited"),
        Some(bytes) => {
            let found = display::bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
            if version.is_none_or(|v| v >= (5, 11)) {
                return Check::fine(
                    "memlock",
                    format!("{found}; this kernel does not count rings against it"),
                );
            }
            Check::bad(
                "memlock",
                Verdict::Degraded,
                found,
                "raise it: ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit",
            )
        }
    }
}

fn cgroups() -> Check {
    match host::cgroup_mode(&host::read("/proc/mounts")) {
        "not mounted" => Check::bad(
            "cgroups",
            Verdict::Degraded,
            "not mounted",
            "containers cannot be told apart; mount /sys/fs/cgroup",
        ),
        mode => Check::fine("cgroups", mode),
    }
}

fn rings(config: &audit_agent::Config) -> Check {
    let size = |bytes: u32| display::bytes(bytes.into());
    let rings = &config.rings;
    let found = format!(
        "process {}, network {}, file {}",
        size(rings.process_bytes),
        size(rings.network_bytes),
        size(rings.file_bytes)
    );
    match config.validate() {
        Ok(_) => Check::fine("rings", found),
        Err(e) => Check::bad(
            "rings",
            Verdict::CannotRun,
            e.to_string(),
            "correct the agent's configuration",
        ),
    }
}

/// What happens to capture while no agent runs.
fn restart(config: &audit_agent::Config) -> Check {
    let stop = if config.capture.pin.keep_at_stop {
        "a kill and an orderly stop"
    } else {
        "a kill"
    };
    match audit_agent::probe::outlives(config) {
        None => Check::fine(
            "restart",
            "capture ends with the agent: capture.pin.directory is not set",
        ),
        Some(Ok(())) => Check::fine(
            "restart",
            format!(
                "capture outlives {stop} of the agent, in {}",
                config.capture.pin.directory.display()
            ),
        ),
        Some(Err(error)) => Check::bad(
            "restart",
            Verdict::Degraded,
            error.to_string(),
            "capture ends with the agent until then",
        ),
    }
}

/// A collector that does not run says nothing about this host.
async fn collector(target: &Target) -> Check {
    match target.connect().await {
        Ok(mut client) => match client.status(StatusRequest {}).await {
            Ok(answer) => {
                let status = answer.into_inner();
                let found = format!("{}, data in {}", status.version, status.data_dir);
                match status.problems.first() {
                    None => Check::fine("collector", display::safe(&found)),
                    Some(problem) => Check::bad(
                        "collector",
                        Verdict::Degraded,
                        display::safe(problem),
                        "see hostaudit status",
                    ),
                }
            }
            Err(status) => Check::bad(
                "collector",
                Verdict::Degraded,
                status.message(),
                "look at the collector's log",
            ),
        },
        Err(_) if target.server.is_none() && target.data.is_none() => {
            Check::fine("collector", "none found here; `hostaudit up` starts one")
        }
        Err(error) => Check::bad(
            "collector",
            Verdict::Degraded,
            "does not answer",
            format!("{error}"),
        ),
    }
}

fn report(
    checks: &[Check],
    hooks: &Result<Vec<Hook>, String>,
    palette: Palette,
) -> (String, Verdict) {
    let mut out = String::new();
    let mut worst = Verdict::Fine;
    let mut problems = 0;
    for check in checks {
        worst = worst.max(check.verdict);
        line(
            &mut out,
            palette,
            check.verdict,
            &format!("{:<10} {}", check.name, check.found),
        );
        if !check.advice.is_empty() {
            problems += 1;
            out.push_str(&format!(
                "                {}\n",
                palette.paint(Style::Bold, &format!("do: {}", check.advice))
            ));
        }
    }
    out.push_str("\nHooks\n");
    match hooks {
        Err(reason) => {
            worst = worst.max(Verdict::Degraded);
            problems += 1;
            line(
                &mut out,
                palette,
                Verdict::CannotRun,
                &display::safe(reason),
            );
        }
        Ok(hooks) => {
            let dead = hooks.iter().filter(|hook| hook.is_dead()).count();
            problems += dead;
            worst = worst.max(match dead {
                0 => Verdict::Fine,
                _ if dead == hooks.len() => Verdict::CannotRun,
                _ => Verdict::Degraded,
            });
            for hook in hooks {
                describe(&mut out, palette, hook);
            }
        }
    }
    let (style, text) = match worst {
        Verdict::Fine => (
            Style::Green,
            "Verdict: everything that hostaudit records can be recorded here.".to_owned(),
        ),
        Verdict::Degraded => (
            Style::Yellow,
            format!(
                "Verdict: degraded, {}; what to do stands above.",
                display::plural(problems as i64, "problem")
            ),
        ),
        Verdict::CannotRun => (
            Style::Alarm,
            "Verdict: cannot run here; what to do stands above.".to_owned(),
        ),
    };
    out.push_str(&format!("\n{}\n", palette.paint(style, &text)));
    (out, worst)
}

fn line(out: &mut String, palette: Palette, verdict: Verdict, text: &str) {
    let (style, mark) = match verdict {
        Verdict::Fine => (Style::Green, "ok  "),
        Verdict::Degraded => (Style::Yellow, "warn"),
        Verdict::CannotRun => (Style::Alarm, "FAIL"),
    };
    out.push_str(&format!("{} {text}\n", palette.paint(style, mark)));
}

/// Of a verifier's log, what fits on a few lines of a terminal.
const REASON_COLUMNS: usize = 400;

fn describe(out: &mut String, palette: Palette, hook: &Hook) {
    let verdict = match hook.is_dead() {
        false => Verdict::Fine,
        true => Verdict::Degraded,
    };
    let got = match &hook.attached {
        Some(rung) => rung,
        None if hook.off => "off (capture.off_kinds)",
        None => "not attached",
    };
    let kinds = if hook.kinds == hook.name {
        ""
    } else {
        &*hook.kinds
    };
    let (name, got) = (display::safe(&hook.name), display::safe(got));
    let text = format!("{name:<14} {got:<12} {}", display::safe(kinds));
    line(out, palette, verdict, text.trim_end());
    // Rungs that were refused for the same reason share a line.
    for refused in hook.refused.chunk_by(|a, b| a.1 == b.1) {
        let rungs: Vec<&str> = refused.iter().map(|(rung, _)| &**rung).collect();
        let reason = refused
            .first()
            .map(|(_, reason)| &**reason)
            .unwrap_or_default();
        let text = format!("                not {}: {reason}", rungs.join(", "));
        let text = display::safe(&text);
        let text = display::fit(&text, REASON_COLUMNS, "...");
        out.push_str(&format!("{}\n", palette.paint(Style::Dim, &text)));
    }
    let found = [&hook.objects, &hook.names].into_iter().flatten();
    for text in found.filter(|_| hook.attached.is_some()) {
        let text = format!("                {}", display::safe(text));
        out.push_str(&format!("{}\n", palette.paint(Style::Dim, &text)));
    }
    if hook.is_dead() {
        let advice = format!(
            "                do: nothing of kind {} is recorded; try a newer kernel, or report the reason above",
            display::safe(&hook.kinds)
        );
        out.push_str(&format!("{}\n", palette.paint(Style::Bold, &advice)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(attached: Option<&str>) -> Hook {
        Hook {
            name: "exec".to_owned(),
            kinds: "exec".to_owned(),
            attached: attached.map(str::to_owned),
            off: false,
            objects: Some("objects seen by kprobe".to_owned()),
            names: None,
            refused: vec![("fentry".to_owned(), "not permitted".to_owned())],
        }
    }

    #[test]
    fn the_worst_check_is_the_verdict() {
        let verdict =
            |checks: &[Check], hooks: Vec<Hook>| report(checks, &Ok(hooks), Palette::OFF).1;
        let fine = || Check::fine("a", "b");
        let bad = |verdict| Check::bad("a", verdict, "b", "c");
        assert_eq!(
            verdict(&[fine()], vec![hook(Some("tracepoint"))]),
            Verdict::Fine
        );
        assert_eq!(
            verdict(&[fine(), bad(Verdict::Degraded)], vec![hook(Some("x"))]),
            Verdict::Degraded
        );
        assert_eq!(
            verdict(&[fine()], vec![hook(Some("x")), hook(None)]),
            Verdict::Degraded
        );
        assert_eq!(verdict(&[fine()], vec![hook(None)]), Verdict::CannotRun);
        let off = Hook {
            off: true,
            ..hook(None)
        };
        assert_eq!(
            verdict(&[fine()], vec![hook(Some("x")), off]),
            Verdict::Fine
        );
        assert_eq!(
            verdict(&[bad(Verdict::CannotRun)], vec![hook(Some("x"))]),
            Verdict::CannotRun
        );
    }

    #[test]
    fn each_rung_refused_and_each_remedy_is_told() {
        let checks = [Check::bad(
            "BTF",
            Verdict::CannotRun,
            "absent",
            "use another kernel",
        )];
        let (text, _) = report(&checks, &Ok(vec![hook(Some("tracepoint"))]), Palette::OFF);
        for part in [
            "FAIL BTF",
            "do: use another kernel",
            "tracepoint",
            "not fentry: not permitted",
            "Verdict: cannot run",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    #[test]
    fn an_old_kernel_cannot_run() {
        assert_eq!(kernel("5.4.0-1").verdict, Verdict::CannotRun);
        assert_eq!(kernel("5.10.0").verdict, Verdict::Fine);
    }
}
