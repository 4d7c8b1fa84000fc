//! `hostaudit verify`: is the record complete, is something known to be missing, or was it changed? The
//! batches are checked here, not where they are stored.

use std::{collections::HashMap, path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use audit_collector::json::rfc3339;
use audit_ledger::{History, Loss, Report, Verdict, Verifier};
use audit_proto::v1::{Batch, Class, StatusRequest};
use serde_json::json;

use crate::{
    client::Target,
    color::Style,
    display,
    export::{self, Part, Sink},
    output::Output,
    terminal::Terminal,
    when::Clock,
};

const EXAMPLES: &str = "\
Examples:
  hostaudit verify                             all that the collector has
  hostaudit verify --host web --from 1d        one host, the last day
  hostaudit verify --export evidence           a folder of `hostaudit export`, without a collector

The answer is one of, with the exit status in front:
  0  complete, N events          every batch from the first to the last is here, signed and unchanged
  1  incomplete: N events lost   and which, where and when; or a host has been silent since, or a
                                 history is not known to be whole
  2  TAMPERED                    which batch, and what is wrong with it
  3  it could not be found out   (no collector, no such folder)";

/// Find out whether the record is complete and unchanged
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Verify {
    /// Check a folder that `hostaudit export` has written, instead of a collector's store
    #[arg(long, value_name = "DIR", conflicts_with_all = ["host", "from", "to"])]
    export: Option<PathBuf>,
    #[command(flatten)]
    part: Part,
    /// text: to read; json: one object
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

impl Sink for Verifier {
    fn batch(&mut self, batch: Batch) -> Result<()> {
        Verifier::batch(self, &batch);
        Ok(())
    }
}

/// Its errors have an exit status of their own: 1 and 2 are answers.
pub async fn run(args: &Verify, target: &Target, terminal: &Terminal) -> ExitCode {
    match answer(args, target, terminal).await {
        Ok(verdict) => ExitCode::from(match verdict {
            Verdict::Complete => 0,
            Verdict::Incomplete => 1,
            Verdict::Tampered => 2,
        }),
        Err(error) => {
            let label = terminal.error_palette.paint(Style::Alarm, "hostaudit:");
            eprintln!("{label} {error:#}");
            ExitCode::from(3)
        }
    }
}

async fn answer(args: &Verify, target: &Target, terminal: &Terminal) -> Result<Verdict> {
    let (report, names) = match &args.export {
        Some(dir) => (offline(dir)?, HashMap::new()),
        None => online(args, target, terminal).await?,
    };
    if report.batches() == 0 && report.findings.is_empty() {
        bail!(
            "there is no batch to check, of that host or time; `hostaudit status` lists the agents"
        );
    }
    let mut out = Output::new();
    match args.output {
        Format::Text => out.text(&text(&report, &names, terminal))?,
        Format::Json => out.line(&object(&report, &names).to_string())?,
    }
    out.flush()?;
    Ok(report.verdict())
}

fn offline(dir: &std::path::Path) -> Result<Report> {
    let mut verifier = Verifier::of_part();
    let (about, forks) = export::read(dir, &mut verifier)?;
    if about.whole {
        verifier.is_whole();
    }
    Ok(finish(verifier, &forks, about.unreadable, about.time))
}

async fn online(
    args: &Verify,
    target: &Target,
    terminal: &Terminal,
) -> Result<(Report, HashMap<String, String>)> {
    let mut client = target.connect().await?;
    let status = client.status(StatusRequest {}).await;
    let agents = status.map_or_else(|_| Vec::new(), |status| status.into_inner().agents);
    let names = agents.into_iter().map(|a| (a.agent_id, a.host_name));
    let mut verifier = match args.part.is_whole() {
        true => Verifier::new(),
        false => Verifier::of_part(),
    };
    let end = export::receive(target, &args.part, terminal, &mut verifier).await?;
    let report = finish(verifier, &end.forks, end.unreadable, end.time);
    Ok((report, names.collect()))
}

fn finish(mut verifier: Verifier, forks: &[Batch], unreadable: Vec<String>, time: i64) -> Report {
    forks.iter().for_each(|fork| verifier.fork(fork));
    unreadable
        .into_iter()
        .for_each(|what| verifier.unreadable(what));
    verifier.finish(time)
}

fn host<'a>(history: &'a History, names: &'a HashMap<String, String>) -> &'a str {
    let name = names.get(&history.agent_id).map(String::as_str);
    let name = name.filter(|name| !name.is_empty());
    name.unwrap_or(&history.host_id)
}

fn class(number: i32) -> String {
    match Class::try_from(number) {
        Ok(Class::Unspecified) | Err(_) => String::new(),
        Ok(class) => {
            let name = class.as_str_name().trim_start_matches("CLASS_");
            format!("{} ", name.to_lowercase())
        }
    }
}

fn loss(loss: &Loss, clock: &Clock) -> String {
    let count = match loss.count {
        Some(count) => display::count(count),
        None => "an unknown number of".to_owned(),
    };
    let place = match loss.place.as_str() {
        "" => String::new(),
        place => format!(" ({})", display::safe(place)),
    };
    let times = match (loss.first_time, loss.last_time) {
        (0, last) => format!("before {}", clock.local(last)),
        (first, last) => format!("between {} and {}", clock.local(first), clock.local(last)),
    };
    format!("{count} {}events lost{place}, {times}", class(loss.class))
}

fn headline(report: &Report) -> String {
    let events = display::plural(report.events(), "event");
    match report.verdict() {
        Verdict::Complete => format!("complete, {events}"),
        Verdict::Incomplete => {
            let losses = || report.histories.iter().flat_map(|h| &h.losses);
            let counts = losses().filter_map(|loss| loss.count);
            let known = counts.fold(0_i64, i64::saturating_add);
            let unknown = losses().any(|loss| loss.count.is_none());
            let silent = report.histories.iter().filter(|h| h.is_silent).count();
            let mut parts = Vec::new();
            if losses().next().is_some() {
                let more = match unknown {
                    true => " and an unknown number more",
                    false => "",
                };
                parts.push(format!("{}{more} lost", display::plural(known, "event")));
            }
            if report.histories.iter().any(|h| !h.lacking.is_empty()) {
                parts.push("not known to be whole".to_owned());
            }
            if silent > 0 {
                parts.push(format!(
                    "{} silent",
                    display::plural(silent as i64, "agent")
                ));
            }
            format!("incomplete: {}, of {events}", parts.join(", "))
        }
        Verdict::Tampered => {
            let findings = report.histories.iter().flat_map(|h| &h.findings);
            let count = findings.chain(&report.findings).count() as i64;
            format!("TAMPERED: {}", display::plural(count, "finding"))
        }
    }
}

fn text(report: &Report, names: &HashMap<String, String>, terminal: &Terminal) -> String {
    let clock = Clock::system();
    let style = match report.verdict() {
        Verdict::Complete => Style::Plain,
        Verdict::Incomplete | Verdict::Tampered => Style::Alarm,
    };
    let headline = headline(report);
    let mut lines = vec![terminal.palette.paint(style, &headline).to_string()];
    for finding in &report.findings {
        let what = display::safe(&finding.what);
        lines.push(format!("  {}: {what}", finding.tampering.name()));
    }
    for one in &report.histories {
        history(one, host(one, names), &clock, &mut lines);
    }
    if report.is_part {
        lines.push("  this is a part: what came before it was not looked at".to_owned());
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Enough of an agent's name to tell it apart. Whoever seals can say what he likes there.
fn short(agent_id: &str) -> String {
    let short: String = agent_id.chars().take(12).collect();
    display::safe(&short).into_owned()
}

fn history(history: &History, host: &str, clock: &Clock, lines: &mut Vec<String>) {
    lines.push(format!(
        "  {} (agent {}): {} in batches {} to {}, {} to {}",
        display::safe(host),
        short(&history.agent_id),
        display::plural(history.events, "event"),
        history.first_batch,
        history.last_batch,
        clock.local(history.first_time),
        clock.local(history.last_time),
    ));
    for finding in &history.findings {
        let what = display::safe(&finding.what);
        lines.push(format!("    {}: {what}", finding.tampering.name()));
    }
    for lost in &history.losses {
        lines.push(format!("    {}", loss(lost, clock)));
    }
    for what in &history.lacking {
        lines.push(format!("    {}", display::safe(what)));
    }
    if history.is_silent {
        lines.push(format!(
            "    silent since {}: it had promised more. It is down, cut off, its tail was removed, or a clock \
             is wrong",
            clock.local(history.last_time)
        ));
    }
    if let Some(former) = &history.former {
        lines.push(format!(
            "    takes the place of agent {}, of which it knew batch {}",
            short(&former.agent_id),
            former.batch
        ));
    }
}

fn object(report: &Report, names: &HashMap<String, String>) -> serde_json::Value {
    let finding = |finding: &audit_ledger::Finding| {
        json!({
            "tampering": finding.tampering.name(), "batch": finding.batch, "what": finding.what,
        })
    };
    let lost = |loss: &Loss| {
        json!({
            "class": class(loss.class).trim(), "place": loss.place, "count": loss.count,
            "first_time": rfc3339(loss.first_time, 0), "last_time": rfc3339(loss.last_time, 0),
        })
    };
    let history = |history: &History| {
        json!({
            "agent_id": history.agent_id, "host_id": history.host_id,
            "host_name": names.get(&history.agent_id), "verdict": history.verdict().to_string(),
            "first_batch": history.first_batch, "last_batch": history.last_batch,
            "batches": history.batches, "events": history.events,
            "first_time": rfc3339(history.first_time, 0),
            "last_time": rfc3339(history.last_time, 0),
            "silent": history.is_silent, "lacking": history.lacking,
            "findings": history.findings.iter().map(finding).collect::<Vec<_>>(),
            "losses": history.losses.iter().map(lost).collect::<Vec<_>>(),
        })
    };
    json!({
        "verdict": report.verdict().to_string(), "events": report.events(),
        "batches": report.batches(), "part": report.is_part,
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "agents": report.histories.iter().map(history).collect::<Vec<_>>(),
    })
}
