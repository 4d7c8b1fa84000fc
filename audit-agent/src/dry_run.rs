//! What would an agent do on this host? The page of `--dry-run`.

use std::fmt::{self, Write as _};

use anyhow::Result;
use audit_agent::{
    Config, filter,
    policy::{Action, Policy, places},
    probe::{self, HookStatus},
};
use audit_common::class;

pub fn describe(config: &Config) -> Result<String> {
    let mut page = String::new();
    let valid = config.validate()?;
    let names = filter::watch_names(&config.capture.watch_reads)?;
    let names: Vec<_> = names
        .iter()
        .map(|name| String::from_utf8_lossy(name))
        .collect();
    let rings = &config.rings;
    writeln!(page, "configuration  valid, hash {}", config.hash())?;
    writeln!(page, "collector      {}", valid.server)?;
    if let Some((certificate, _)) = valid.server.certificate() {
        writeln!(page, "  certificate  {certificate}")?;
    }
    writeln!(
        page,
        "rings          process {} KiB, network {} KiB, file {} KiB",
        rings.process_bytes >> 10,
        rings.network_bytes >> 10,
        rings.file_bytes >> 10
    )?;
    writeln!(
        page,
        "watched reads  {} patterns",
        config.capture.watch_reads.len()
    )?;
    writeln!(page, "  by name      {}", names.join(" "))?;
    describe_policy(&mut page, &valid.policy)?;
    let outlives = match probe::outlives(config) {
        None => "stops with the agent (capture.pin.directory is not set)".to_owned(),
        Some(Ok(())) => format!(
            "goes on without it: {}",
            config.capture.pin.directory.display()
        ),
        Some(Err(error)) => format!("stops with the agent: {error}"),
    };
    writeln!(page, "capture        {outlives}")?;
    writeln!(page, "hooks")?;
    for hook in probe::check(config)? {
        writeln!(page, "  {:<14} {}", hook.name, describe_hook(&hook))?;
    }
    Ok(page)
}

fn describe_policy(page: &mut String, policy: &Policy) -> fmt::Result {
    writeln!(page, "filters        {} rules", policy.rules.len())?;
    for rule in &policy.rules {
        let action = match rule.action {
            Action::Exclude => "hides",
            Action::Include => "keeps",
        };
        let place = if rule.needs_path() {
            "in the kernel; where it does not know the path for sure, by the agent"
        } else {
            "in the kernel"
        };
        writeln!(page, "  {:<14} {action}, {place}", rule.name)?;
    }
    for missing in places::find(policy, places::hierarchy().as_deref()).missing {
        writeln!(page, "  not there (yet): {missing}")?;
    }
    for class in class::ALL {
        let budget = policy.budgets.get(usize::from(class));
        if let Some(budget) = budget.filter(|budget| budget.interval_ns != 0) {
            writeln!(
                page,
                "budget         {}: one event in {} us per cgroup, in the kernel",
                class::name(class).unwrap_or_default(),
                budget.interval_ns / 1000
            )?;
        }
    }
    Ok(())
}

fn describe_hook(hook: &HookStatus) -> String {
    let got = match (hook.attached, hook.tried.last()) {
        _ if hook.off => "off: capture.off_kinds".to_owned(),
        (Some(rung), _) => rung.to_string(),
        (None, Some((_, reason))) => format!("not available: {reason}"),
        (None, None) => "not available".to_owned(),
    };
    let objects = match &hook.objects {
        _ if hook.attached.is_none() => String::new(),
        Some(Ok(rung)) => format!(", objects by {rung}"),
        Some(Err(reason)) => format!(", no objects: {reason}"),
        None => String::new(),
    };
    let texts = match &hook.texts {
        _ if hook.attached.is_none() => String::new(),
        Some(Ok(())) => ", names as the kernel copied them".to_owned(),
        Some(Err(reason)) => format!(", names as the caller's memory has them after: {reason}"),
        None => String::new(),
    };
    format!("{got}{objects}{texts}")
}
