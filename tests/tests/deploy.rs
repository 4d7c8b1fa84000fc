//! The files that people install: systemd and the Kubernetes schema accept them, and the programs
//! accept the configuration in them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use audit_tests::stack::binary;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn both(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Verifies a copy of the unit in which programs of /usr/bin that are not installed here are
/// replaced by one that is.
fn verify_unit(name: &str, change: impl Fn(String) -> String) -> Result<Option<Output>> {
    let directory = tempfile::tempdir()?;
    let text = fs::read_to_string(deploy().join(name))?;
    let mut text = change(text);
    for program in ["/usr/bin/audit-agent", "/usr/bin/audit-collector"] {
        text = text.replace(program, "/bin/true");
    }
    let path = directory.path().join(name);
    fs::write(&path, text)?;
    match Command::new("systemd-analyze")
        .arg("verify")
        .arg(&path)
        .output()
    {
        Ok(output) => Ok(Some(output)),
        Err(_) => {
            eprintln!("SKIPPED: no systemd-analyze: cargo xtask setup --test");
            Ok(None)
        }
    }
}

#[test]
fn systemd_accepts_the_units_without_a_word() -> Result<()> {
    for name in ["hostaudit-agent.service", "hostaudit-collector.service"] {
        let Some(output) = verify_unit(name, |text| text)? else {
            return Ok(());
        };
        assert!(output.status.success(), "{name}: {}", both(&output));
        assert_eq!(both(&output), "", "{name}");
    }
    Ok(())
}

/// That the check above can fail.
#[test]
fn systemd_refuses_a_misspelt_key() -> Result<()> {
    let misspelt = |text: String| text.replace("Restart=always", "Restrat=always");
    let Some(output) = verify_unit("hostaudit-agent.service", misspelt)? else {
        return Ok(());
    };
    assert!(both(&output).contains("Restrat"), "{}", both(&output));
    Ok(())
}

#[test]
fn the_agent_unit_grants_what_the_agent_needs_and_no_more() -> Result<()> {
    let unit = fs::read_to_string(deploy().join("hostaudit-agent.service"))?;
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let mut granted: Vec<&str> = line.context("no bounding set")?.split(' ').collect();
    granted.sort_unstable();
    let needed = [
        "BPF",
        "DAC_READ_SEARCH",
        "PERFMON",
        "SYS_NICE",
        "SYS_PTRACE",
        "SYS_RESOURCE",
    ];
    assert_eq!(granted, needed.map(|name| format!("CAP_{name}")));
    Ok(())
}

fn validate(manifest: &Path) -> Result<Option<Output>> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| deploy().join("../target"), PathBuf::from);
    let program = target.join("test-tools/bin/kubernetes-validate");
    if !program.is_file() {
        eprintln!(
            "SKIPPED: no {}: cargo xtask setup --test",
            program.display()
        );
        return Ok(None);
    }
    Ok(Some(
        Command::new(program)
            .arg("--strict")
            .arg(manifest)
            .output()?,
    ))
}

#[test]
fn the_kubernetes_schema_accepts_the_manifest_and_refuses_a_misspelt_key() -> Result<()> {
    let manifest = deploy().join("kubernetes/hostaudit.yaml");
    let Some(output) = validate(&manifest)? else {
        return Ok(());
    };
    assert!(output.status.success(), "{}", both(&output));
    let passed = both(&output).matches("passed").count();
    let documents = fs::read_to_string(&manifest)?.split("\n---\n").count();
    assert_eq!(
        passed,
        documents,
        "every document is checked: {}",
        both(&output)
    );

    let directory = tempfile::tempdir()?;
    let broken = directory.path().join("broken.yaml");
    fs::write(
        &broken,
        fs::read_to_string(&manifest)?.replace("hostPID:", "hostPIDs:"),
    )?;
    let output = validate(&broken)?.context("it was there a moment ago")?;
    assert!(!output.status.success(), "accepted: {}", both(&output));
    Ok(())
}

/// The value of a ConfigMap's one key, which is an indented block.
fn config_map(manifest: &str, key: &str) -> Result<String> {
    let block = manifest
        .split_once(&format!("\n  {key}: |\n"))
        .with_context(|| format!("no {key}"))?
        .1;
    let lines = block.lines().take_while(|line| line.starts_with("    "));
    Ok(lines
        .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)))
        .collect())
}

/// Runs the program's own check on a configuration, away from this host's directories.
fn dry_run(program: &str, config: &Path, overrides: &[String]) -> Result<()> {
    let mut command = Command::new(binary(program)?);
    command.arg("--config").arg(config).arg("--dry-run");
    for setting in overrides {
        command.args(["-o", setting]);
    }
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{program} refuses {}: {}",
        config.display(),
        both(&output)
    );
    Ok(())
}

#[test]
fn the_programs_accept_every_configuration_that_is_installed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let manifest = fs::read_to_string(deploy().join("kubernetes/hostaudit.yaml"))?;
    for key in ["agent.yaml", "collector.yaml"] {
        fs::write(directory.path().join(key), config_map(&manifest, key)?)?;
    }
    let own = directory.path().display();
    let away = [
        format!("data_dir={own}/data"),
        format!("listen.unix={own}/collector.sock"),
    ];
    for collector in [
        directory.path().join("collector.yaml"),
        deploy().join("collector.yaml"),
    ] {
        dry_run("audit-collector", &collector, &away)?;
    }
    for agent in [
        directory.path().join("agent.yaml"),
        deploy().join("agent.yaml"),
    ] {
        dry_run("audit-agent", &agent, &[])?;
    }
    Ok(())
}
