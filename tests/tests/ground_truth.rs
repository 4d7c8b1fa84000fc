//! Does the collector's record say exactly what was done? Known actions on the live kernel, then
//! questions to the collector: each is there once, with exact values.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use audit_proto::columns::COLUMNS;
use audit_tests::{
    Options, Stack,
    report::Report,
    stack,
    workload::{Expectation, GROUPS},
};
use tempfile::TempDir;

/// Performs a group in an empty directory.
fn perform(group: &str, directory: &TempDir) -> Result<Vec<Expectation>> {
    let output = Command::new(env!("CARGO_BIN_EXE_workload"))
        .arg(group)
        .arg(directory.path())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "{group}: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(Expectation::parse).collect()
}

/// What the record has instead, for the person who reads the failure.
fn nearest(stack: &mut Stack, expectation: &Expectation) -> String {
    let Some((_, condition)) = expectation.sql.split_once(" where ") else {
        return String::new();
    };
    // The first two conditions are kind and process.
    let first: Vec<&str> = condition.splitn(3, " and ").take(2).collect();
    let rows = stack.query(&format!(
        "select * from events where {} order by position limit 5",
        first.join(" and ")
    ));
    // A question that joins cannot be shortened like this; then its text has to do.
    let rows = rows.unwrap_or_default();
    let shown = rows.iter().map(|row| {
        let mut row = row.clone();
        row.retain(|_, value| !value.is_null());
        serde_json::to_string(&row).unwrap_or_default()
    });
    shown.collect::<Vec<_>>().join("\n")
}

/// What came of performing everything once.
struct Attempt {
    expectations: usize,
    wrong: Vec<String>,
    /// What the record itself says that it lacks.
    lost: Vec<String>,
}

/// A record that says of itself that it lacks something keeps its promise, and shows nothing about the rest:
/// an interrupt came where the kernel then leaves a program out. So that is tried again, once, and said.
#[test]
fn each_action_is_recorded_once_with_exact_values() -> Result<()> {
    if let Some(reason) = stack::missing_for_live_tests() {
        eprintln!("SKIPPED: {reason}");
        return Ok(());
    }
    let mut tried = attempt()?;
    if !tried.lost.is_empty() {
        eprintln!(
            "REPEATED: the record tells losses: {}\nand so: {}",
            tried.lost.join("\n"),
            tried.wrong.join("\n\n")
        );
        tried = attempt()?;
    }
    let wrong: Vec<String> = tried.wrong.into_iter().chain(tried.lost).collect();
    ensure!(
        wrong.is_empty(),
        "{} wrong, of {} expectations:\n\n{}",
        wrong.len(),
        tried.expectations,
        wrong.join("\n\n")
    );
    println!("{} expectations met", tried.expectations);
    Ok(())
}

fn attempt() -> Result<Attempt> {
    let mut report = Report::from_environment()?;
    let mut stack = Stack::start(Options::default())?;
    let (mut expected, mut directories) = (Vec::new(), Vec::new());
    let mut wrong = Vec::new();
    for group in GROUPS {
        let directory = tempfile::Builder::new()
            .prefix("hostaudit-workload-")
            .tempdir()?;
        let of_group = match perform(group, &directory) {
            Ok(of_group) => of_group,
            Err(error) => {
                report.not_performed(group, &format!("{error:#}"))?;
                wrong.push(format!("{error:#}"));
                continue;
            }
        };
        // The agent looks up after the call where a link in a name led; it must still lead there.
        directories.push(directory);
        ensure!(!of_group.is_empty(), "{group} expects nothing");
        expected.extend(of_group.into_iter().map(|e| (group, e)));
    }
    stack.barrier()?;
    for (group, expectation) in &expected {
        let Expectation {
            action,
            sql,
            number,
        } = expectation;
        let found = stack.number(sql).with_context(|| action.clone())?;
        report.add(group, action, sql, *number, found)?;
        if found != *number {
            let short: String = sql.chars().take(600).collect();
            let near: String = nearest(&mut stack, expectation)
                .chars()
                .take(3000)
                .collect();
            wrong.push(format!(
                "{group}: {action}: {found}, not {number}: {short}\n{near}"
            ));
        }
    }
    wrong.extend(incomplete(&mut stack, &mut report)?);
    wrong.extend(undocumented(&mut stack)?);
    Ok(Attempt {
        expectations: expected.len(),
        wrong,
        lost: losses(&mut stack)?,
    })
}

/// Nothing is lost, nothing is there twice, and the numbers of each stream have no gap; else what is.
fn incomplete(stack: &mut Stack, report: &mut Report) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (what, sql) in [
        (
            "events lost",
            "select sum(lost_count) from events where kind = 'lost'",
        ),
        (
            "ids stored twice",
            "select count(*) - count(distinct id) from events",
        ),
        (
            "streams with a gap",
            "select count(*) from (select class, cpu, max(sequence) - count(*) as gap \
             from events group by class, cpu) where gap <> 0",
        ),
    ] {
        let found = stack.number(sql)?;
        report.add("completeness", what, "", 0, found)?;
        if found != 0 {
            wrong.push(format!("{found} {what}"));
        }
    }
    Ok(wrong)
}

fn losses(stack: &mut Stack) -> Result<Vec<String>> {
    let rows = stack.query(
        "select lost_place, lost_cause, lost_class, sum(lost_count) as lost from events \
         where kind = 'lost' group by lost_place, lost_cause, lost_class",
    )?;
    rows.iter()
        .map(|row| Ok(serde_json::to_string(row)?))
        .collect()
}

/// What users are promised.
const EVENTS: &str = include_str!("../../docs/events.md");

/// The columns that the page lists for each heading.
fn promised() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut promised: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let mut heading = "";
    for line in EVENTS.lines() {
        if let Some(text) = line.strip_prefix("## ") {
            heading = text.trim_matches('`');
        } else if let Some(columns) = line.strip_prefix("Columns: ") {
            let names = columns.split(", ").map(|name| name.trim_matches('`'));
            promised.entry(heading).or_default().extend(names);
        }
    }
    promised
}

/// Columns that an event of a kind has and docs/events.md does not name for that kind.
fn undocumented(stack: &mut Stack) -> Result<Vec<String>> {
    let promised = promised();
    let every = promised.get("Every event").context("no shared columns")?;
    let counts: Vec<String> = COLUMNS
        .iter()
        .map(|column| format!("count({0}) as {0}_n", column.name))
        .collect();
    let sql = format!(
        "select kind as of_kind, {} from events group by kind",
        counts.join(", ")
    );
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for row in stack.query(&sql)? {
        let kind = row["of_kind"].as_str().unwrap_or_default();
        let own = promised.get(kind).cloned().unwrap_or_default();
        for column in &COLUMNS {
            let filled = row[&format!("{}_n", column.name)].as_i64().unwrap_or(0);
            if filled > 0 && !every.contains(column.name) && !own.contains(column.name) {
                let name = column.name;
                wrong.push(format!(
                    "docs/events.md does not say that `{kind}` has `{name}` ({filled} events have it)"
                ));
            }
        }
        seen += 1;
    }
    ensure!(seen > 20, "{seen} kinds in the store");
    Ok(wrong)
}
