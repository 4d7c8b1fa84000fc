//! The files that people install: systemd and the Kubernetes schema accept them, and the programs
//! accept the configuration in them.

use std::{
    fs,
    net::TcpListener,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use audit_tests::{
    Options, Stack,
    stack::{self, binary},
};

const PATIENCE: Duration = Duration::from_secs(60);

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

/// The value of one key of the ConfigMap of that name, which is an indented block.
fn config_map(name: &str, key: &str) -> Result<String> {
    let manifest = fs::read_to_string(deploy().join("kubernetes/hostaudit.yaml"))?;
    let map = manifest
        .split("\n---\n")
        .find(|document| {
            document.contains("kind: ConfigMap") && document.contains(&format!("name: {name}\n"))
        })
        .with_context(|| format!("no ConfigMap {name}"))?;
    let block = map
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
    let agent = config_map("agent", "agent.yaml")?;
    fs::write(directory.path().join("agent.yaml"), agent)?;
    let own = directory.path().display();
    let collector = config_map("collector", "collector.yaml")?;
    let collector = collector.replace("/var/lib/hostaudit", &own.to_string());
    fs::write(directory.path().join("collector.yaml"), collector)?;
    run_script(
        &config_map("collector", "certificate.sh")?.replace("/var/lib/hostaudit", &own.to_string()),
        &["once"],
    )?;
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

/// Of the manifest, away from this host's directories, with the programs that are tested.
fn run_script(script: &str, arguments: &[&str]) -> Result<()> {
    let mut command = script_command(script)?;
    let output = command.args(arguments).output()?;
    ensure!(output.status.success(), "{script}: {}", both(&output));
    Ok(())
}

fn script_command(script: &str) -> Result<Command> {
    let programs = binary("hostaudit")?;
    let programs = programs.parent().context("a directory")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "certificate.sh"])
        .env("PATH", format!("{}:{path}", programs.display()));
    Ok(command)
}

/// A script of the manifest that goes on until it is told to end, with what it has started.
struct Sidecar(Child);

impl Sidecar {
    fn start(script: &str) -> Result<Self> {
        let mut command = script_command(script)?;
        Ok(Self(command.process_group(0).spawn()?))
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let group = format!("kill -s TERM -- -{}", self.0.id());
        let _ = Command::new("sh").args(["-c", &group]).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a kubelet runs, without one: the manifest's scripts and configurations, with other directories and
/// another name of the collector.
#[test]
fn the_manifests_agent_records_before_it_has_joined_and_delivers_afterwards() -> Result<()> {
    if let Some(reason) = stack::missing_for_live_tests() {
        eprintln!("SKIPPED: {reason}");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let place = |name: &str| directory.path().join(name).display().to_string();
    // Free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let elsewhere = |text: String, home: &str| {
        text.replace("/var/lib/hostaudit", &place(home))
            .replace("/join", &place("join"))
            .replace("collector.hostaudit.svc:4620", &format!("localhost:{port}"))
            .replace("collector.hostaudit.svc", "localhost")
    };
    fs::create_dir(place("join"))?;
    let certify = elsewhere(config_map("collector", "certificate.sh")?, "collector");
    run_script(&certify, &["once"])?;
    run_script(&certify, &["once"]).context("as every later start")?;

    let files = |name: &str| place(&format!("collector/collector-tls/{name}"));
    let mut stack = Stack::start(Options {
        without_agent: true,
        collector: vec![
            format!("listen.tcp=127.0.0.1:{port}"),
            format!("listen.tls.certificate={}", files("cert.pem")),
            format!("listen.tls.key={}", files("key.pem")),
            format!("listen.tls.authority={}", place("collector/authority")),
        ],
        ..Options::default()
    })?;
    stack.agent_config(&elsewhere(config_map("agent", "agent.yaml")?, "agent"))?;
    stack.agent_options(vec![format!("server=https://localhost:{port}")]);
    stack.spawn_agent()?;
    let began = Instant::now();
    while !stack.agent_log().contains("kernel hooks attached") {
        ensure!(began.elapsed() < PATIENCE, "{}", stack.agent_log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let unjoined = Command::new("/bin/echo").arg("before it joined").output()?;
    ensure!(unjoined.status.success());

    let join = elsewhere(config_map("agent", "certificate.sh")?, "agent");
    ensure!(join.contains("sleep 10 &"), "the test waits less: {join}");
    let join = join.replace("sleep 10 &", "sleep 0.2 &");
    let _sidecar = Sidecar::start(&join)?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(
        !Path::new(&place("agent/tls/cert.pem")).exists(),
        "joined without a token"
    );
    // As the head of the manifest says.
    let token = format!(
        "hostaudit pki token --authority {} --uses 1000 --ttl 365d > {}",
        place("collector/authority"),
        place("join/token")
    );
    run_script(&token, &[])?;
    stack.barrier()?;
    let before = stack.number(
        "select count(*) from events where kind = 'exec' and process_argv[2] = 'before it joined'",
    )?;
    ensure!(before == 1, "{before} of it are stored");
    Ok(())
}
