//! `hostaudit` against a real collector that holds events which the test knows in full.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result};
use audit_proto::v1::{Event, Exit, Kind, Lost, TargetProcess};
use audit_tests::{
    Options, Stack,
    stack::binary,
    synthetic::{Synthetic, event, exec, exec_id},
};

/// A terminal that obeys this would show a forged event and clear its screen.
const HOSTILE: &str = "x\n08:00:00.000 web root sh[1] exec forged\x1b[2J";

fn hostaudit(socket: &Path, arguments: &[&str]) -> Result<Output> {
    Ok(command(socket)?.args(arguments).output()?)
}

fn command(socket: &Path) -> Result<Command> {
    let mut command = Command::new(binary("hostaudit")?);
    command
        .args(["--server", &format!("unix://{}", socket.display())])
        .env("TZ", "UTC")
        .env("LANG", "C.UTF-8")
        .env_remove("LC_ALL");
    Ok(command)
}

/// Standard output of a run that must succeed.
fn answer(socket: &Path, arguments: &[&str]) -> Result<String> {
    let output = hostaudit(socket, arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{arguments:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Standard error of a run that must fail.
fn refusal(socket: &Path, arguments: &[&str]) -> Result<String> {
    let output = hostaudit(socket, arguments)?;
    anyhow::ensure!(!output.status.success(), "{arguments:?} succeeded");
    Ok(String::from_utf8(output.stderr)?)
}

fn filled(events: Vec<Event>) -> Result<(Stack, Synthetic)> {
    let stack = Stack::start(Options {
        without_agent: true,
        ..Options::default()
    })?;
    let mut agent = Synthetic::new()?;
    agent.deliver(&stack.socket(), &[events])?;
    Ok((stack, agent))
}

fn json_lines(text: &str) -> Result<Vec<serde_json::Value>> {
    text.lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

#[test]
fn tail_shows_filters_and_resumes() -> Result<()> {
    let (stack, _agent) = filled(vec![
        exec(1, 10, 1, &["sh", "-c", "true"]),
        exec(2, 11, 10, &["echo", HOSTILE, ""]),
        event(3, Kind::Exit, 11, 10),
    ])?;
    let socket = stack.socket();
    let past = ["tail", "--since", "2026-05-01", "--until-now"];

    let compact = answer(&socket, &past)?;
    let lines: Vec<_> = compact.lines().collect();
    assert_eq!(lines.len(), 3, "one line an event:\n{compact}");
    assert!(lines[0].contains("2026-05-01 08:00:00.000") && lines[0].contains("sh -c true"));
    assert!(lines[1].contains("forged\\x1b[2J' ''"), "{compact}");
    assert!(!compact.contains('\x1b'));

    let all = json_lines(&answer(&socket, &[&past[..], &["-o", "json"]].concat())?)?;
    assert_eq!(all.len(), 3);
    assert_eq!(
        all[1]["process_argv"],
        serde_json::json!(["echo", HOSTILE, ""])
    );
    assert_eq!(all[0]["time"], "2026-05-01T08:00:00.000001000Z");

    let exits = answer(
        &socket,
        &[&past[..], &["--where", "kind = 'exit'"]].concat(),
    )?;
    assert_eq!(exits.lines().count(), 1, "{exits}");

    let cursor = all[1]["cursor"].as_str().context("an event has a cursor")?;
    let rest = answer(
        &socket,
        &["tail", "--until-now", "-o", "json", "--cursor", cursor],
    )?;
    assert_eq!(json_lines(&rest)?, all[2..]);
    Ok(())
}

#[test]
fn tail_filters_masks_counts_and_keeps_its_cursor() -> Result<()> {
    let (stack, mut agent) = filled(vec![
        exec(1, 10, 1, &["sh", "-c", "true"]),
        exec(2, 11, 10, &["node", "a.js"]),
        event(3, Kind::Exit, 11, 10),
        exec(4, 12, 10, &["node", "b.js"]),
    ])?;
    let socket = stack.socket();
    let pids = |arguments: &[&str]| -> Result<Vec<i64>> {
        let json = [&["tail", "-o", "json"], arguments].concat();
        let lines = json_lines(&answer(&socket, &json)?)?;
        Ok(lines
            .iter()
            .filter_map(|line| line["process_pid"].as_i64())
            .collect())
    };
    assert_eq!(pids(&["-n", "2"])?, [11, 12]);
    assert_eq!(pids(&["-n", "9", "--allow", "kind=exec"])?, [10, 11, 12]);
    let mixed = [
        "--allow",
        "kind=exit",
        "--allow",
        "process_argv=node,process_pid>=12",
    ];
    assert_eq!(pids(&[&["-n", "9"], &mixed[..]].concat())?, [11, 12]);
    let denied = ["-n", "9", "--deny", "process_argv$=.js"];
    assert_eq!(pids(&denied)?, [10, 11]);

    let fields = ["tail", "-n", "1", "-o", "json", "--fields", "process_argv"];
    let masked = &json_lines(&answer(&socket, &fields)?)?[0];
    assert_eq!(masked["masked"], true);
    assert_eq!(masked["process_argv"], serde_json::json!(["node", "b.js"]));
    assert!(masked.get("process_pid").is_none(), "{masked}");

    let directory = tempfile::tempdir()?;
    let cursor = directory.path().join("cursor").display().to_string();
    let resumed = ["-n", "2", "--cursor-file", &cursor];
    assert_eq!(pids(&resumed)?, [11, 12]);
    assert!(pids(&resumed)?.is_empty(), "nothing is new");
    agent.deliver(&socket, &[vec![exec(5, 13, 1, &["new"])]])?;
    assert_eq!(pids(&resumed)?, [13]);

    let unknown = refusal(&socket, &["tail", "-n", "1", "--allow", "proces_pid=1"])?;
    assert!(unknown.contains("did you mean `process_pid`?"), "{unknown}");
    let sign = refusal(&socket, &["tail", "--deny", "kind!=exec"])?;
    assert!(sign.contains("there is no `!=`"), "{sign}");
    let unquoted = refusal(&socket, &["tail", "-n", "1", "--where", "kind = exec"])?;
    assert!(unquoted.contains("single quotes: 'exec'"), "{unquoted}");
    Ok(())
}

#[test]
fn tail_goes_on_when_the_collector_was_killed() -> Result<()> {
    let (mut stack, mut agent) = filled(vec![exec(1, 10, 1, &["a"])])?;
    let mut tail = command(&stack.socket())?
        .args(["tail", "--since", "2026-05-01", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut lines = BufReader::new(tail.stdout.take().context("a pipe")?).lines();
    let mut next = || -> Result<String> {
        let line = lines.next().context("tail ended")??;
        let event: serde_json::Value = serde_json::from_str(&line)?;
        Ok(event["id"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(next()?, exec(1, 10, 1, &[]).id);
    stack.kill_collector();
    stack.start_collector()?;
    agent.deliver(
        &stack.socket(),
        &[vec![exec(2, 11, 1, &["b"])], vec![exec(3, 12, 1, &["c"])]],
    )?;
    assert_eq!([next()?, next()?], [2, 3].map(|n| exec(n, 11, 1, &[]).id));
    tail.kill()?;
    tail.wait()?;
    Ok(())
}

#[test]
fn a_reader_that_leaves_ends_tail_quietly() -> Result<()> {
    let events = (1..2000)
        .map(|n| exec(n, n, 1, &["some", "arguments"]))
        .collect();
    let (stack, _agent) = filled(events)?;
    let mut tail = command(&stack.socket())?
        .args(["tail", "--since", "2026-05-01"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut first = String::new();
    BufReader::with_capacity(64, tail.stdout.take().context("a pipe")?).read_line(&mut first)?;
    let output = tail.wait_with_output()?;
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
    Ok(())
}

#[test]
fn query_answers_in_every_format() -> Result<()> {
    let (stack, _agent) = filled(vec![
        exec(1, 10, 1, &["a", "b c"]),
        exec(2, 11, 1, &["d,\"e\""]),
    ])?;
    let socket = stack.socket();
    let sql = "select process_pid, process_argv from events order by process_pid";
    assert_eq!(
        answer(&socket, &["query", sql])?,
        "process_pid  process_argv\n───────────  ────────────\n         10  a 'b c'\n         11  'd,\"e\"'\n(2 rows)\n"
    );
    let rows = json_lines(&answer(&socket, &["query", "-o", "json", sql])?)?;
    assert_eq!(
        rows[0],
        serde_json::json!({"process_pid": 10, "process_argv": ["a", "b c"]})
    );
    let csv = answer(&socket, &["query", "-o", "csv", sql])?;
    assert_eq!(csv.lines().next(), Some("process_pid,process_argv"));
    assert_eq!(csv.lines().nth(1), Some(r#"10,"[""a"",""b c""]""#));
    let parquet = hostaudit(&socket, &["query", "-o", "parquet", sql])?.stdout;
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));

    let limited = hostaudit(&socket, &["query", "--limit", "1", sql])?;
    assert!(String::from_utf8_lossy(&limited.stderr).contains("cut after 1 row"));
    let empty = answer(
        &socket,
        &[
            "query",
            "-o",
            "csv",
            "select process_pid from events where false",
        ],
    )?;
    assert_eq!(empty.trim_end(), "process_pid");
    let plan = answer(&socket, &["query", &format!("explain {sql}")])?;
    assert!(plan.contains("logical_plan"), "{plan}");
    Ok(())
}

#[test]
fn a_refused_question_is_explained() -> Result<()> {
    let (stack, _agent) = filled(vec![exec(1, 10, 1, &["a"])])?;
    let socket = stack.socket();
    let unknown = refusal(&socket, &["query", "select process_exee from events"])?;
    assert!(
        unknown.contains("process_exee") && !unknown.contains("Status"),
        "{unknown}"
    );
    let predicate = refusal(&socket, &["tail", "--where", "nonsense = 1"])?;
    assert!(predicate.contains("nonsense"), "{predicate}");
    let cursor = refusal(&socket, &["tail", "--cursor", "over there"])?;
    assert!(cursor.contains("over there"), "{cursor}");
    let nobody = refusal(Path::new("/nonexistent/collector.sock"), &["status"])?;
    assert!(
        nobody.contains("no such socket") && nobody.contains("hostaudit up"),
        "{nobody}"
    );
    Ok(())
}

#[test]
fn tree_joins_forks_execs_and_exits() -> Result<()> {
    let mut fork = event(2, Kind::Fork, 10, 1);
    fork.target_process = Some(TargetProcess {
        exec_id: exec_id(11),
        pid: Some(11),
        ..Default::default()
    });
    let mut exit = event(4, Kind::Exit, 11, 10);
    exit.exit = Some(Exit {
        code: Some(3),
        duration_ns: Some(310_000_000),
        ..Default::default()
    });
    let (stack, _agent) = filled(vec![
        exec(1, 10, 1, &["sh"]),
        fork,
        exec(3, 11, 10, &["false"]),
        exit,
        exec(5, 12, 11, &["orphan"]),
    ])?;
    let socket = stack.socket();
    let tree = answer(&socket, &["tree", "--pid", "10"])?;
    let lines: Vec<_> = tree.lines().collect();
    assert!(lines[0].starts_with("p1[1]"), "{tree}");
    assert!(
        lines[1].starts_with("└─ p10[10] root") && lines[1].ends_with("sh"),
        "{tree}"
    );
    assert!(
        lines[2].starts_with("   └─ p11[11]") && lines[2].ends_with("false  exit 3 (0.3 s)"),
        "{tree}"
    );
    assert!(lines[3].starts_with("      └─ p12[12]"), "{tree}");
    assert_eq!(lines.len(), 4);
    // From below, the same ancestors.
    let stem = answer(&socket, &["tree", &exec_id(12)])?;
    assert_eq!(stem.lines().count(), 4, "{stem}");
    let nobody = refusal(&socket, &["tree", "--pid", "4242"])?;
    assert!(nobody.contains("pid 4242"), "{nobody}");
    Ok(())
}

#[test]
fn status_tells_of_store_and_agent() -> Result<()> {
    let (stack, _agent) = filled(vec![exec(1, 10, 1, &["a"])])?;
    let status = answer(&stack.socket(), &["status"])?;
    for part in ["1 event in 1 batch", "web", "No problems."] {
        assert!(status.contains(part), "{part:?} is missing in\n{status}");
    }
    let json = answer(&stack.socket(), &["status", "-o", "json"])?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    assert_eq!(json["stored_events"], 1);
    assert_eq!(json["agents"][0]["host_name"], "web");
    Ok(())
}

#[test]
fn status_exits_2_when_events_were_lost_and_1_when_nobody_answers() -> Result<()> {
    let mut lost = event(1, Kind::Lost, 10, 1);
    lost.lost = Some(Lost {
        count: Some(3),
        ..Default::default()
    });
    let (stack, _agent) = filled(vec![lost])?;
    let told = hostaudit(&stack.socket(), &["status"])?;
    assert_eq!(told.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&told.stdout).contains("3 events lost"));
    let nobody = hostaudit(Path::new("/nonexistent/collector.sock"), &["status"])?;
    assert_eq!(nobody.status.code(), Some(1));
    Ok(())
}

#[test]
fn a_table_is_printed_while_it_comes() -> Result<()> {
    let events = (1..=1200)
        .map(|n| exec(n, n, 1, &[&"x".repeat(if n == 1200 { 90 } else { 3 })]))
        .collect();
    let (stack, _agent) = filled(events)?;
    let sql = "select process_pid, process_argv from events order by process_pid";
    let table = answer(&stack.socket(), &["query", sql])?;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 1203, "one header, all rows, their number");
    assert_eq!(lines[1202], "(1,200 rows)");
    assert!(
        lines[1201].ends_with(&"x".repeat(90)),
        "a late wide cell is whole"
    );
    let mut query = command(&stack.socket())?
        .args(["query", sql])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut first = String::new();
    BufReader::with_capacity(64, query.stdout.take().context("a pipe")?).read_line(&mut first)?;
    let output = query.wait_with_output()?;
    assert!(first.starts_with("process_pid"), "{first}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success(), "`head` is no error");
    Ok(())
}
