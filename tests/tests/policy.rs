//! Do filters and budgets leave out exactly what they say, and is everything that they leave out
//! counted? On the live kernel: what was issued is what was recorded, hidden, shed and lost.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use audit_proto::v1::AgentStatus;
use audit_tests::{Options, Stack, stack};

/// A heartbeat tells the counts every ten seconds.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// A stack, and a directory that everybody may write to.
fn start() -> Result<Option<(Stack, tempfile::TempDir)>> {
    if let Some(reason) = stack::missing_for_live_tests() {
        eprintln!("SKIPPED: {reason}");
        return Ok(None);
    }
    let directory = tempfile::Builder::new()
        .prefix("hostaudit-policy-")
        .tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
    // One event for an open, so that what is issued can be counted.
    let options = Options {
        agent: vec!["capture.off_kinds=[close_write, memory_exec]".to_owned()],
        ..Options::default()
    };
    Ok(Some((Stack::start(options)?, directory)))
}

/// Runs `shell` with a script whose $D is a new directory of that name, for everybody.
fn run(shell: &Path, place: &Path, script: &str, change: impl FnOnce(&mut Command)) -> Result<()> {
    fs::create_dir_all(place)?;
    fs::set_permissions(place, fs::Permissions::from_mode(0o777))?;
    let mut command = Command::new(shell);
    command.args(["-c", script]).env("D", place);
    // Cargo names directories there that other users may not search: each would be a failed open
    // of the loader's, recorded and hidden like the script's own.
    command.env_remove("LD_LIBRARY_PATH");
    change(&mut command);
    let status = command.status()?;
    ensure!(status.success(), "{script}: {status}");
    Ok(())
}

/// Makes that many files, one open each.
fn make(number: u32) -> String {
    format!("i=0; while [ $i -lt {number} ]; do : > \"$D/$i\"; i=$((i+1)); done")
}

/// Events of a kind whose path begins so.
fn recorded(stack: &mut Stack, kind: &str, place: &Path) -> Result<i64> {
    stack.number(&format!(
        "select count(*) from events where kind = '{kind}' and starts_with(file_path, '{}/')",
        place.display()
    ))
}

/// Records that were surely lost, and events that at most were, because the kernel skipped a program
/// (Linux 6.19 and later, where programs are preempted).
fn lost(stack: &mut Stack) -> Result<(i64, i64)> {
    let mut sum = |condition| {
        let sql = format!("select sum(lost_count) from events where kind = 'lost' and {condition}");
        stack.number(&sql)
    };
    let found = (sum("lost_place <> 'hook'")?, sum("lost_place = 'hook'")?);
    if found != (0, 0) {
        let sql = "select lost_place, lost_class, lost_cause, sum(lost_count) as n \
                   from events where kind = 'lost' group by 1, 2, 3";
        println!("lost: {:?}", stack.query(sql)?);
    }
    Ok(found)
}

/// Is it what was issued, but for what the kernel may have skipped?
fn accounted(issued: i64, counted: i64, skipped: i64) -> Result<()> {
    let missing = issued - counted;
    ensure!(
        (0..=skipped).contains(&missing),
        "{issued} issued, {counted} counted; {missing} are missing, of at most {skipped} skipped"
    );
    Ok(())
}

fn agent(stack: &mut Stack) -> Result<AgentStatus> {
    let status = stack.status()?;
    let mut agents = status.agents.into_iter();
    agents.find(|agent| agent.connected).context("no agent")
}

/// What a rule has hidden, as the status tells it.
fn hidden(stack: &mut Stack, rule: &str) -> Result<i64> {
    let agent = agent(stack)?;
    let found = agent.filters.iter().find(|filter| filter.name == rule);
    Ok(found.map_or(0, |filter| filter.hidden))
}

fn wait_for_hidden(stack: &mut Stack, rule: &str, number: i64) -> Result<()> {
    let mut last = 0;
    let waited = stack.wait_until("the rule's count", HEARTBEAT, |stack| {
        last = hidden(stack, rule)?;
        Ok(last >= number)
    });
    waited.with_context(|| format!("`{rule}` has hidden {last}, not {number}"))?;
    ensure!(last == number, "`{rule}` has hidden {last}, not {number}");
    Ok(())
}

/// Cgroups of this test, in the hierarchy of version 2; removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    /// `None` where this host has no hierarchy that can be written to.
    fn make(name: &str) -> Option<Self> {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let root = roots
            .into_iter()
            .map(Path::new)
            .find(|root| root.join("cgroup.procs").exists())?;
        let path = root.join(format!("hostaudit-test-{}-{name}", std::process::id()));
        fs::create_dir_all(path.join("below")).ok()?;
        Some(Self(path))
    }

    /// As a rule names it.
    fn name(&self) -> String {
        format!("/{}", self.0.file_name().unwrap_or_default().display())
    }

    /// What a shell runs to be in the cgroup below this one.
    fn enter(&self) -> String {
        format!("echo $$ > {}/below/cgroup.procs; ", self.0.display())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its last process may still be on its way out.
        for _ in 0..100 {
            let _ = fs::remove_dir(self.0.join("below"));
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} is left behind", self.0.display());
    }
}

const SHELL: &str = "/bin/sh";

/// One rule for each thing that rules can ask for.
fn rules(root: &Path, quiet: &Path, cgroup: &str) -> String {
    format!(
        "capture:
  filters:
    - {{name: user, kinds: [open], uids: ['54000-54321']}}
    - {{name: program, kinds: [open], exes: [{quiet}]}}
    - {{name: group, kinds: [open], cgroups: [{cgroup}]}}
    - {{name: place, paths: [{root}/hidden/]}}
    - {{name: keep, action: include, paths: [{root}/hidden/keep]}}
    - {{name: call, syscalls: [mkdir, mkdirat], paths: [{root}/calls/]}}
",
        quiet = quiet.display(),
        root = root.display(),
    )
}

/// What the rules hide, and beside each what they do not.
fn perform(root: &Path, quiet: &Path, cgroup: Option<&Cgroup>) -> Result<()> {
    let place = |name: &str| root.join(name);
    let plain = Path::new(SHELL);
    run(plain, &place("plain"), &make(20), |_| {})?;
    run(plain, &place("user"), &make(21), |command| {
        command.uid(54_321);
    })?;
    run(plain, &place("other-user"), &make(5), |command| {
        command.uid(54_322);
    })?;
    run(quiet, &place("program"), &make(22), |_| {})?;
    // Replaced, as by an upgrade: the rule means what is there now, from the next second on.
    fs::copy(SHELL, place("new-sh"))?;
    fs::rename(place("new-sh"), quiet)?;
    thread::sleep(Duration::from_millis(3500));
    run(quiet, &place("program-again"), &make(8), |_| {})?;
    if let Some(cgroup) = cgroup {
        let script = cgroup.enter() + &make(23);
        run(plain, &place("group"), &script, |_| {})?;
    }
    let hidden = place("hidden");
    run(
        plain,
        &hidden,
        &(make(24) + "; : > \"$D/keep-this\""),
        |_| {},
    )?;
    // A new name elsewhere is not hidden, though the old one is.
    let renames = "mv $D/1 $D/../plain/moved; mv $D/2 $D/renamed";
    run(plain, &hidden, renames, |_| {})?;
    let calls = "for i in 1 2 3 4 5 6 7; do mkdir $D/$i; done; rmdir $D/*";
    run(plain, &place("calls"), calls, |_| {})
}

#[test]
fn a_rule_hides_what_it_says_and_nothing_else() -> Result<()> {
    let Some((mut stack, directory)) = start()? else {
        return Ok(());
    };
    let root = directory.path().canonicalize()?;
    let quiet = root.join("quiet-sh");
    fs::copy(SHELL, &quiet)?;
    let cgroup = Cgroup::make("rule");
    let named = cgroup.as_ref().map_or("/none".to_owned(), Cgroup::name);
    stack.reload_agent(&rules(&root, &quiet, &named))?;
    perform(&root, &quiet, cgroup.as_ref())?;
    stack.barrier()?;

    let mut wrong = Vec::new();
    for (kind, name, expected) in [
        ("open", "plain", 20),
        ("open", "user", 0),
        ("open", "other-user", 5),
        ("open", "program", 0),
        ("open", "program-again", 0),
        ("open", "group", 0),
        ("open", "hidden", 1),
        ("rename", "hidden", 1),
        ("mkdir_mknod", "calls", 0),
        ("unlink", "calls", 7),
    ] {
        let found = recorded(&mut stack, kind, &root.join(name))?;
        if found != expected {
            wrong.push(format!(
                "{kind} in {name}: {found} recorded, not {expected}"
            ));
        }
    }
    let execs = stack.number(&format!(
        "select count(*) from events where kind = 'exec' and process_exe = '{}'",
        quiet.display()
    ))?;
    if execs != 2 {
        wrong.push(format!(
            "{execs} execs of the hidden program recorded, not 2"
        ));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let of_group = if cgroup.is_some() { 23 } else { 0 };
    // Of those in the hidden place, one file was renamed within it.
    for (rule, number) in [
        ("user", 21),
        ("program", 22 + 8),
        ("group", of_group),
        ("place", 24 + 1),
        ("call", 7),
        ("keep", 0),
    ] {
        wait_for_hidden(&mut stack, rule, number)?;
    }
    ensure!(lost(&mut stack)?.0 == 0, "lost");
    Ok(())
}

#[test]
fn a_reload_under_load_loses_nothing_and_takes_effect() -> Result<()> {
    let Some((mut stack, directory)) = start()? else {
        return Ok(());
    };
    let place = directory.path().canonicalize()?.join("load");
    fs::create_dir(&place)?;
    let rule = |more: &str| format!("capture: {{filters: [{{name: load{more}}}]}}");
    let by_path = rule(&format!(", paths: [{}/]", place.display()));
    let by_call = rule(&format!(
        ", syscalls: [openat], paths: [{}/]",
        place.display()
    ));
    let nothing = rule(", paths: [/nowhere/]");
    let done = AtomicBool::new(false);
    let (issued, reloaded) = thread::scope(|scope| {
        let load = |name: u32| {
            let (place, done) = (&place, &done);
            scope.spawn(move || {
                let mut issued = 0;
                while !done.load(Ordering::Relaxed) {
                    fs::File::create(place.join(name.to_string()))?;
                    issued += 1;
                    thread::sleep(Duration::from_micros(200));
                }
                Ok::<i64, std::io::Error>(issued)
            })
        };
        let threads = [load(1), load(2), load(3)];
        let reloaded = (|| {
            for yaml in [&by_path, &by_call, &nothing, &by_path, &nothing] {
                stack.reload_agent(yaml)?;
            }
            Ok::<(), anyhow::Error>(())
        })();
        done.store(true, Ordering::Relaxed);
        let mut issued = 0;
        for thread in threads {
            issued += thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok::<_, anyhow::Error>((issued, reloaded))
    })?;
    reloaded?;
    stack.barrier()?;
    let recorded = recorded(&mut stack, "open", &place)?;
    let (lost, skipped) = lost(&mut stack)?;
    ensure!(recorded > 0 && recorded < issued, "{recorded} of {issued}");
    ensure!(lost == 0, "{lost} lost");
    let least = issued - recorded - skipped;
    stack.wait_until("the rule's count", HEARTBEAT, |stack| {
        Ok(hidden(stack, "load")? >= least)
    })?;
    // What it hides now is nothing: the next heartbeat says the same.
    let hidden = hidden(&mut stack, "load")?;
    println!("{issued} opens, {recorded} recorded, {hidden} hidden, {skipped} skipped at most");
    accounted(issued, recorded + hidden, skipped)?;

    // What cannot work changes nothing, and the log says why.
    stack.hang_up_agent("capture: {filters: [{name: x, kinds: [exec]}]}")?;
    stack.wait_until("the refusal", HEARTBEAT, |stack| {
        let log = stack.agent_log();
        Ok(log.contains("not reloaded") && log.contains("`exec` cannot be hidden"))
    })?;
    stack.barrier()
}

const FLOOD: u32 = 20_000;
const CALM: u32 = 60;

/// Opens in both cgroups: as many as it can in one, within the budget in the other.
fn flood(flooded: &Path, loud: &Cgroup, quiet: &Path, calm: &Cgroup) -> Result<()> {
    let (flooding, paced) = thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            let script = loud.enter() + &make(FLOOD);
            run(Path::new(SHELL), flooded, &script, |_| {})
        });
        let paced = make(CALM).replace("i=$((i+1))", "i=$((i+1)); sleep 0.02");
        let script = calm.enter() + &paced;
        let paced = run(Path::new(SHELL), quiet, &script, |_| {});
        (flooding.join(), paced)
    });
    paced?;
    flooding.map_err(|_| anyhow::anyhow!("the flood panicked"))?
}

#[test]
fn a_flood_in_one_cgroup_is_shed_and_counted_and_another_loses_nothing() -> Result<()> {
    let Some((mut stack, directory)) = start()? else {
        return Ok(());
    };
    let (Some(loud), Some(calm)) = (Cgroup::make("loud"), Cgroup::make("calm")) else {
        eprintln!("SKIPPED: no hierarchy of cgroup v2 to make cgroups in");
        return Ok(());
    };
    let root = directory.path().canonicalize()?;
    let (flooded, quiet) = (root.join("flood"), root.join("calm"));
    stack.reload_agent(
        "capture: {budgets: {file: {events_per_second: 100, burst: 200, sample: 50, sampled_per_second: 5}}}",
    )?;
    flood(&flooded, &loud, &quiet, &calm)?;
    stack.barrier()?;
    let name = loud.name();
    let of = |column: &str, cgroup: &str| {
        format!(
            "select sum({column}) from events where kind = 'shed' and shed_class = 'file' \
             and starts_with(shed_cgroup, '{cgroup}/')"
        )
    };
    let (shed_sql, sampled_sql) = (of("shed_count", &name), of("shed_sampled", &name));
    let recorded_loud = recorded(&mut stack, "open", &flooded)?;
    let (lost, skipped) = lost(&mut stack)?;
    let missing = i64::from(FLOOD) - recorded_loud - lost;
    stack.wait_until("the shed events are told", HEARTBEAT, |stack| {
        Ok(stack.number(&shed_sql)? >= missing - skipped)
    })?;
    let shed = stack.number(&shed_sql)?;
    let sampled = stack.number(&sampled_sql)?;
    println!(
        "{FLOOD} opens: {recorded_loud} recorded ({sampled} of them as a sample), {shed} shed, {lost} lost"
    );
    accounted(i64::from(FLOOD), recorded_loud + lost + shed, skipped)?;
    ensure!(shed > i64::from(FLOOD) / 2, "only {shed} shed");
    ensure!(
        sampled > 0 && sampled < recorded_loud,
        "{sampled} sampled of {recorded_loud}"
    );
    let told = recorded(&mut stack, "open", &quiet)?;
    ensure!(
        told == i64::from(CALM),
        "{told} of the calm cgroup's {CALM} recorded"
    );
    let shed_calm = stack.number(&of("shed_count", &calm.name()))?;
    ensure!(shed_calm == 0, "{shed_calm} shed of the calm cgroup");
    let kept = stack.number(&format!(
        "select count(*) from events where kind = 'exit' and starts_with(process_argv[3], 'echo $$ > {}')",
        loud.0.display()
    ))?;
    ensure!(kept == 1, "{kept} exits of the flooding process recorded");
    let shed_of_class = |stack: &mut Stack| -> Result<i64> {
        let agent = agent(stack)?;
        let file = agent.classes.iter().find(|class| class.class == "file");
        Ok(file.map_or(0, |class| class.shed))
    };
    stack.wait_until("status tells what was shed", HEARTBEAT, |stack| {
        Ok(shed_of_class(stack)? >= shed)
    })
}
