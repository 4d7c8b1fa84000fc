//! Has the record holes where the agent begins, ends, is killed or replaced? Programs and files,
//! counted by who made them, against what is in the store; and what was there before the agent.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use audit_tests::{Options, Stack, load::Load, pins::Pins, stack};

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

#[test]
fn orderly_restarts_miss_nothing() -> Result<()> {
    let Some(pins) = Pins::new("orderly")? else {
        return Ok(());
    };
    let agent = pins.options(&["capture.pin.keep_at_stop=true"]);
    let mut stack = Stack::start(Options {
        agent,
        ..Options::default()
    })?;
    let mut load = Load::start()?;
    for round in 0..3 {
        pause(400);
        stack.stop_agent()?;
        ensure!(pins.exist(), "capture ended with the agent");
        pause(300 * round);
        stack.start_agent()?;
    }
    load.check_whole(&mut stack)?;
    let log = stack.agent_log();
    ensure!(log.contains("took over the programs"), "{log}");
    unpinned(&mut stack, &pins)
}

#[test]
fn killed_agents_miss_nothing() -> Result<()> {
    let Some(pins) = Pins::new("killed")? else {
        return Ok(());
    };
    let mut stack = Stack::start(Options {
        agent: pins.options(&[]),
        ..Options::default()
    })?;
    let mut load = Load::start()?;
    for round in 0..8 {
        pause(150 + 37 * round);
        stack.kill_agent();
        pause(100 * (round % 3));
        stack.start_agent()?;
    }
    load.check_whole(&mut stack)?;
    // Without keep_at_stop an orderly stop leaves nothing.
    stack.stop_agent()?;
    ensure!(!pins.exist(), "pins are left");
    Ok(())
}

/// An agent that ends capture at its stop leaves what it knew of its programs; the programs of the
/// next one count from the beginning, and none of their events may be taken for one of those.
#[test]
fn an_agent_after_an_orderly_end_misses_nothing() -> Result<()> {
    let Some(pins) = Pins::new("ended")? else {
        return Ok(());
    };
    let mut stack = Stack::start(Options {
        agent: pins.options(&[]),
        ..Options::default()
    })?;
    let mut before = Load::start()?;
    pause(1000);
    before.check_whole(&mut stack)?;
    stack.stop_agent()?;
    ensure!(!pins.exist(), "pins are left");
    stack.start_agent()?;
    let mut after = Load::start()?;
    pause(1000);
    after.check_whole(&mut stack)?;
    stack.stop_agent()
}

/// The collector is away while the agent dies: what was sealed is not lost with it.
#[test]
fn an_agent_killed_without_a_collector_misses_nothing() -> Result<()> {
    let Some(pins) = Pins::new("alone")? else {
        return Ok(());
    };
    let mut stack = Stack::start(Options {
        agent: pins.options(&[]),
        ..Options::default()
    })?;
    let mut load = Load::start()?;
    pause(300);
    stack.kill_collector();
    pause(900);
    stack.kill_agent();
    pause(200);
    stack.start_collector()?;
    stack.start_agent()?;
    load.check_whole(&mut stack)?;
    stack.stop_agent()
}

/// Another configuration is another set of programs, as another version is: the new set is attached
/// before the old one is detached, and each event is of one of them.
#[test]
fn replaced_programs_miss_nothing_and_tell_nothing_twice() -> Result<()> {
    let Some(pins) = Pins::new("replaced")? else {
        return Ok(());
    };
    let mut stack = Stack::start(Options {
        agent: pins.options(&["capture.pin.keep_at_stop=true"]),
        ..Options::default()
    })?;
    let mut load = Load::start()?;
    for round in 0..6 {
        pause(200);
        let watched = format!("capture.watch_reads=[/etc/shadow, /etc/test-{round}]");
        stack.agent_options(pins.options(&["capture.pin.keep_at_stop=true", &watched]));
        // By a stop, and by a kill.
        if round % 2 == 0 {
            stack.stop_agent()?;
        } else {
            stack.kill_agent();
        }
        stack.start_agent()?;
    }
    load.check_whole(&mut stack)?;
    let sets = std::fs::read_dir(&pins.0)?.flatten();
    let sets = sets.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("set-") || name.starts_with("ended-")
    });
    let sets: Vec<_> = sets.map(|entry| entry.file_name()).collect();
    ensure!(sets.len() == 1, "sets that nobody needs: {sets:?}");
    unpinned(&mut stack, &pins)
}

/// What programs saw that were replaced is counted by the agent that reads it: it cannot have sent more
/// than was seen.
#[test]
fn what_replaced_programs_saw_is_counted() -> Result<()> {
    let Some(pins) = Pins::new("counted")? else {
        return Ok(());
    };
    let mut stack = Stack::start(Options {
        agent: pins.options(&["capture.pin.keep_at_stop=true"]),
        ..Options::default()
    })?;
    stack.stop_agent()?;
    let mut load = Load::start()?;
    pause(1000);
    load.finish();
    let others = "capture.watch_reads=[/etc/shadow]";
    stack.agent_options(pins.options(&["capture.pin.keep_at_stop=true", others]));
    stack.start_agent()?;
    let mut files = None;
    let heartbeat = Duration::from_secs(30);
    stack.wait_until("a heartbeat's counts", heartbeat, |stack| {
        let agents = stack.status()?.agents.into_iter();
        let classes = agents
            .filter(|agent| agent.connected)
            .flat_map(|agent| agent.classes);
        files = classes
            .filter(|class| class.class == "file")
            .find(|class| class.sent > 0);
        Ok(files.is_some())
    })?;
    let files = files.context("of files")?;
    ensure!(files.sent > 1000, "{files:?}: the test says little");
    ensure!(files.seen >= files.sent, "{files:?}");
    unpinned(&mut stack, &pins)
}

/// Rules are an agent's and not its programs': who takes these over puts its own into force, and tells
/// what the former one's have hidden while nobody could tell it.
#[test]
fn who_takes_over_brings_its_rules() -> Result<()> {
    let Some(pins) = Pins::new("rules")? else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let act = |numbers: std::ops::Range<u32>| -> Result<()> {
        for number in numbers {
            let path = directory.path().join(number.to_string());
            File::create(&path)?;
            std::fs::remove_file(&path)?;
        }
        Ok(())
    };
    let own = std::env::current_exe()?;
    let rule = |name: &str, kind: &str| {
        let own = own.display();
        format!("capture.filters=[{{name: {name}, kinds: [{kind}], exes: ['{own}']}}]")
    };
    let mut stack = Stack::start(Options {
        agent: pins.options(&[&rule("removals", "unlink")]),
        ..Options::default()
    })?;
    act(0..50)?;
    stack.kill_agent();
    act(50..100)?;
    stack.agent_options(pins.options(&[&rule("openings", "open")]));
    stack.start_agent()?;
    act(100..150)?;
    stack.barrier()?;
    let log = stack.agent_log();
    ensure!(log.contains("took over the programs"), "{log}");
    for (kind, range) in [("open", 0..100), ("unlink", 100..150)] {
        let of = format!(
            "kind = '{kind}' and file_path like '{}/%'",
            directory.path().display()
        );
        let stored = stack.number(&format!("select count(*) from events where {of}"))?;
        let numbers = i64::from(range.end - range.start);
        ensure!(
            stored == numbers,
            "{kind}: {stored} stored, {numbers} of {range:?}"
        );
    }
    let mut hidden = Vec::new();
    let waited = stack.wait_until("the rules' counts", Duration::from_secs(60), |stack| {
        let agents = stack.status()?.agents.into_iter();
        let filters = agents
            .filter(|agent| agent.connected)
            .flat_map(|agent| agent.filters);
        hidden = filters.map(|filter| (filter.name, filter.hidden)).collect();
        Ok(hidden
            .iter()
            .any(|(name, count)| name == "openings" && *count > 0))
    });
    waited.with_context(|| format!("hidden: {hidden:?}"))?;
    hidden.sort();
    // The first of the former agent had no heartbeat to be told in.
    let expected = [("openings".to_owned(), 50), ("removals".to_owned(), 100)];
    ensure!(hidden == expected, "hidden: {hidden:?}");
    stack.stop_agent()?;
    ensure!(!pins.exist(), "pins are left");
    Ok(())
}

/// What does not fit into the rings while nobody reads is counted.
#[test]
fn what_the_rings_cannot_hold_is_told() -> Result<()> {
    let Some(pins) = Pins::new("small")? else {
        return Ok(());
    };
    let small = ["capture.pin.keep_at_stop=true", "rings.file_bytes=65536"];
    let mut stack = Stack::start(Options {
        agent: pins.options(&small),
        ..Options::default()
    })?;
    let mut load = Load::start()?;
    pause(300);
    stack.kill_agent();
    pause(1500);
    stack.start_agent()?;
    load.finish();
    stack.barrier()?;
    let lost = "from events where kind = 'lost' and lost_place = 'ring'";
    let lost_programs = stack.number(&format!(
        "select count(*) {lost} and lost_class = 'process'"
    ))?;
    let mut missing = 0;
    for (kind, made, stored, different) in load.found(&mut stack)? {
        ensure!(
            stored == different,
            "{kind}: {stored} stored, {different} different"
        );
        ensure!(stored <= made, "{kind}: {made} made, {stored} stored");
        ensure!(
            kind != "exec" || stored == made,
            "{made} programs, {stored} stored"
        );
        missing += made - stored;
    }
    ensure!(missing > 0, "the ring held everything");
    // Others on this host make files too. The last are overdue a little later.
    let files = format!("select sum(lost_count) {lost} and lost_class = 'file'");
    let mut told = 0;
    let waited = stack.wait_until("the losses", Duration::from_secs(5), |stack| {
        told = stack.number(&files)?;
        Ok(missing <= told)
    });
    waited.with_context(|| format!("{missing} records of files are missing, {told} told"))?;
    ensure!(lost_programs == 0, "a flood of files cost programs");
    unpinned(&mut stack, &pins)
}

/// Without the file that says how far a killed agent had got, nobody knows what is missing.
#[test]
fn what_nobody_knows_is_told() -> Result<()> {
    let Some(pins) = Pins::new("unknown")? else {
        return Ok(());
    };
    let mut stack = Stack::start(Options {
        agent: pins.options(&[]),
        ..Options::default()
    })?;
    let mut load = Load::start()?;
    pause(500);
    let unknown = "select count(*) from events where kind = 'lost' and lost_place = 'agent' and lost_count is null";
    ensure!(stack.number(unknown)? == 0, "nobody was killed yet");
    stack.kill_agent();
    let data = stack.data_dir();
    let state = data.parent().context("the stack's directory")?;
    std::fs::remove_dir_all(state.join("spool"))?;
    stack.start_agent()?;
    load.finish();
    stack.barrier()?;
    ensure!(stack.number(unknown)? == 1, "{}", stack.agent_log());
    for (kind, made, stored, different) in load.found(&mut stack)? {
        // What had left its round, while others of its draining had not.
        const MOST_TWICE: i64 = 200;
        ensure!(
            0 < different && different <= made && stored - different < MOST_TWICE,
            "{kind}: {made} made, {stored} stored, {different} different"
        );
    }
    let numbered = stack.number(
        "select sum(lost_count) from events where kind = 'lost' and lost_class in ('process', 'file')",
    )?;
    ensure!(numbered == 0, "{numbered} told as lost that were delivered");
    stack.stop_agent()
}

/// Whatever keeps the program for last closes from one, the next file at its place in memory shows it.
#[test]
fn a_last_close_that_no_program_sees_is_told() -> Result<()> {
    const FILES: i64 = 3000;
    let Some(pins) = Pins::new("closes")? else {
        return Ok(());
    };
    let mut stack = Stack::start(Options {
        agent: pins.options(&[]),
        ..Options::default()
    })?;
    stack.kill_agent();
    let mut detached = 0;
    for set in fs::read_dir(&pins.0)? {
        let Ok(links) = fs::read_dir(set?.path().join("links")) else {
            continue;
        };
        for link in links {
            let link = link?;
            let name = link.file_name().to_string_lossy().into_owned();
            if name.starts_with("close_write_kprobe-") || name.starts_with("freed-") {
                fs::remove_file(link.path())?;
                detached += 1;
            }
        }
    }
    ensure!(detached > 0, "no link of the program for last closes");
    stack.start_agent()?;
    let directory = tempfile::tempdir()?;
    for number in 0..FILES {
        File::create(directory.path().join(number.to_string()))?;
    }
    let like = format!("file_path like '{}/%'", directory.path().display());
    let opened = format!("select count(*) from events where kind = 'open' and {like}");
    stack.wait_until("the opens are there", Duration::from_secs(20), |stack| {
        Ok(stack.number(&opened)? == FILES)
    })?;
    let closed = format!("select count(*) from events where kind = 'close_write' and {like}");
    ensure!(stack.number(&closed)? == 0, "its program is still attached");
    let lost = "select coalesce(sum(lost_count), 0) from events where lost_class = 'file'";
    stack.wait_until(
        "closes are told as lost",
        Duration::from_secs(20),
        |stack| Ok(stack.number(lost)? > 0),
    )?;
    let lost = stack.number(lost)?;
    eprintln!("{lost} of {FILES} last closes are told as lost");
    stack.stop_agent()
}

/// `audit-agent --unpin` leaves nothing behind, and is refused while an agent runs.
fn unpinned(stack: &mut Stack, pins: &Pins) -> Result<()> {
    let unpin = || -> Result<std::process::Output> {
        let mut command = Command::new(stack::binary("audit-agent")?);
        command.arg("--unpin");
        for option in pins.options(&[]) {
            command.args(["-o", &option]);
        }
        Ok(command.output()?)
    };
    let refused = unpin()?;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && error.contains("in use"),
        "{error}"
    );
    stack.kill_agent();
    let done = unpin()?;
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success() && !pins.exist(), "{error}");
    Ok(())
}

#[test]
fn what_was_there_before_is_known() -> Result<()> {
    if let Some(reason) = stack::missing_for_live_tests() {
        eprintln!("SKIPPED: {reason}");
        return Ok(());
    }
    let directory = tempfile::Builder::new()
        .prefix("hostaudit-before-")
        .tempdir()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let mut out = TcpStream::connect(listener.local_addr()?)?;
    let out_port = out.local_addr()?.port();
    let (mut incoming, _) = listener.accept()?;
    let path = directory.path().join("open");
    let open = File::create(&path)?;
    let unix_path = directory.path().join("socket");
    let unix = UnixListener::bind(&unix_path)?;

    let mut stack = Stack::start(Options::default())?;
    let later = TcpStream::connect(listener.local_addr()?)?;
    let later_port = later.local_addr()?.port();
    drop(listener.accept()?);
    open.set_permissions(std::fs::Permissions::from_mode(0o640))?;
    drop(UnixStream::connect(&unix_path)?);
    drop(unix);
    out.write_all(b"12345")?;
    incoming.read_exact(&mut [0; 5])?;
    drop(out);
    // The other end sees it, and ends too.
    ensure!(incoming.read(&mut [0; 1])? == 0);
    drop(incoming);
    stack.barrier()?;

    let ports = Ports {
        listener: port,
        old: out_port,
        later: later_port,
    };
    let expected = expected_of_before(ports, &path, &unix_path);
    for (what, condition) in expected {
        let found = stack.number(&format!("select count(*) from events where {condition}"))?;
        ensure!(found == 1, "{what}: {found} events\n{condition}");
    }
    stack.stop_agent().context("stop")
}

/// Of the listener, and of the ends that connected to it.
#[derive(Clone, Copy)]
struct Ports {
    listener: u16,
    old: u16,
    later: u16,
}

/// What the record must have, once each.
fn expected_of_before(ports: Ports, path: &Path, unix_path: &Path) -> [(&'static str, String); 6] {
    let own = format!("process_pid = {}", std::process::id());
    let (path, unix_path) = (path.display(), unix_path.display());
    let Ports {
        listener: port,
        old: out_port,
        later: later_port,
    } = ports;
    let ends = format!(
        "kind = 'close_flow' and flow_duration_ns is null and socket_direction is null and {own}"
    );
    [
        (
            "the listener",
            format!(
                "kind = 'listen' and via = 'snapshot' and {own} and socket_local_port = {port} and socket_local_address = '127.0.0.1' and result_value is null and process_exe like '%restart%'"
            ),
        ),
        (
            "a connection to it",
            format!(
                "kind = 'accept' and {own} and socket_local_port = {port} and socket_peer_port = {later_port}"
            ),
        ),
        (
            "the end of the old connection",
            format!(
                "{ends} and socket_local_port = {out_port} and socket_peer_port = {port} and flow_bytes_sent = 5"
            ),
        ),
        (
            "its other end",
            format!(
                "{ends} and socket_local_port = {port} and socket_peer_port = {out_port} and flow_bytes_received = 5"
            ),
        ),
        (
            "a mode by an old descriptor",
            format!("kind = 'mode' and {own} and file_path = '{path}'"),
        ),
        (
            "a connect to an old unix socket",
            format!(
                "kind = 'unix_connect' and {own} and socket_path = '{unix_path}' and target_process_pid = {}",
                std::process::id()
            ),
        ),
    ]
}
