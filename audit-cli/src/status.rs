//! `hostaudit status`: how the collector and the agents that deliver to it are doing.
//!
//! Exit code: 0 no problems, 1 no answer, 2 problems, or events lost or missing.

mod json;

use std::process::ExitCode;

use anyhow::Result;
use audit_proto::v1::{AgentStatus, StatusRequest, StatusResponse};

use crate::{
    client::{self, Target},
    color::{Palette, Style},
    display::{self, Glyphs},
    output::Output,
    table::Table,
    terminal::Terminal,
    when::Clock,
};

const EXAMPLES: &str = "\
Examples:
  hostaudit status
  hostaudit status --data /var/lib/hostaudit
  hostaudit status --rules                 also each rule that cannot fire here, and why
  hostaudit status -o json                 everything, as one JSON object
  hostaudit status > /dev/null || page     exit code: 0 no problems; 1 no collector answers;
                                           2 problems, or events were lost or are missing

Of each connected agent, as of its last heartbeat (every 10 seconds) and since it started: what became
of the records of each class (filtered: hidden by capture.filters, unwatched reads, the agent's own;
shed: beyond capture.budgets; lost: told by `lost` events), and what each filter has hidden.";

/// Show the state of the collector, its agents and anything that needs attention
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Status {
    /// List the rules that cannot fire here, with the reason
    #[arg(long)]
    rules: bool,
    /// text: to read; json: one object with everything
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// What "No problems." is not said of.
fn has_problems(status: &StatusResponse) -> bool {
    lost(status) > 0 || status.missing_events > 0 || !status.problems.is_empty()
}

fn lost(status: &StatusResponse) -> i64 {
    let lost = status.agents.iter().map(|agent| agent.lost);
    lost.fold(0, i64::saturating_add)
}

pub async fn run(args: &Status, target: &Target, terminal: &Terminal) -> Result<ExitCode> {
    let mut client = target.connect().await?;
    let status = client
        .status(StatusRequest {})
        .await
        .map_err(|s| client::plain(&s))?
        .into_inner();
    let mut out = Output::new();
    let text = match args.output {
        Format::Json => format!("{}\n", json::status(&status)),
        Format::Text => report(
            &status,
            args.rules,
            &Clock::system(),
            terminal.width,
            terminal.palette,
            terminal.glyphs,
        ),
    };
    out.text(&text)?;
    out.flush()?;
    Ok(match has_problems(&status) {
        true => ExitCode::from(2),
        false => ExitCode::SUCCESS,
    })
}

struct Report<'a> {
    status: &'a StatusResponse,
    clock: &'a Clock,
    palette: Palette,
    out: String,
}

impl Report<'_> {
    fn say(&mut self, name: &str, text: &str) {
        let name = format!("{name:<10}");
        let name = self.palette.paint(Style::Bold, &name);
        self.out.push_str(&format!("{name} {text}\n"));
    }

    fn collector(&mut self) {
        let s = self.status;
        let up = (self.clock.now.as_microsecond() - s.start_time).max(0);
        let (version, data) = (display::safe(&s.version), display::safe(&s.data_dir));
        let up = display::duration(up.saturating_mul(1000));
        self.say(
            "collector",
            &format!("{version}, pid {}, up {up}, data in {data}", s.pid),
        );
    }

    fn store(&mut self) {
        let s = self.status;
        let stored = display::plural(s.stored_events, "event");
        let fresh = display::count(s.uncompacted_events);
        let batches = batches(s.stored_batches);
        self.say(
            "stored",
            &format!("{stored} in {batches}; not yet in Parquet {fresh}"),
        );
        if s.missing_events > 0 {
            let missing = display::plural(s.missing_events, "stored event");
            self.say("missing", &format!("{missing}, see the problems below"));
        }
        let (log, table) = (display::bytes(s.wal_bytes), display::bytes(s.table_bytes));
        let files = display::plural(s.table_files, "file");
        self.say("on disk", &format!("log {log}, table {table} in {files}"));
        if s.duplicate_batches + s.rejected_batches > 0 {
            let again = self::batches(s.duplicate_batches);
            let invalid = self::batches(s.rejected_batches);
            self.say(
                "refused",
                &format!("{again} sent again and dropped, {invalid} not valid"),
            );
        }
    }

    fn detection(&mut self, rules: bool) {
        let s = self.status;
        let loaded = display::plural(s.rules_loaded, "rule");
        let alerts = display::plural(s.alerts, "alert");
        let idle = s.rules_idle.len();
        self.say(
            "detection",
            &format!("{loaded} loaded, {idle} cannot fire here, {alerts}"),
        );
        for idle in s.rules_idle.iter().filter(|_| rules) {
            self.out
                .push_str(&format!("           {}\n", display::safe(idle)));
        }
    }

    fn problems(&mut self) {
        let lost = lost(self.status);
        if lost > 0 {
            let text = format!(
                "{} lost; where and why: select * from events where kind = 'lost'",
                display::plural(lost, "event")
            );
            self.out.push_str(&self.palette.paint(Style::Alarm, &text));
            self.out.push('\n');
        } else if !has_problems(self.status) {
            let text = self.palette.paint(Style::Green, "No problems.");
            self.out.push_str(&format!("{text}\n"));
        }
        for problem in &self.status.problems {
            let text = format!("Problem: {}", display::safe(problem));
            self.out.push_str(&self.palette.paint(Style::Alarm, &text));
            self.out.push('\n');
        }
    }
}

fn report(
    status: &StatusResponse,
    rules: bool,
    clock: &Clock,
    width: Option<usize>,
    palette: Palette,
    glyphs: Glyphs,
) -> String {
    let mut report = Report {
        status,
        clock,
        palette,
        out: String::new(),
    };
    report.collector();
    report.store();
    report.detection(rules);
    report.out.push('\n');
    if status.agents.is_empty() {
        report.out.push_str("No agent has delivered yet.\n");
    } else {
        let agents = agents(&status.agents, clock).render(width, palette, glyphs);
        report.out.push_str(&agents);
        for table in [classes(&status.agents), filters(&status.agents)]
            .into_iter()
            .flatten()
        {
            report.out.push('\n');
            report.out.push_str(&table.render(width, palette, glyphs));
        }
    }
    report.out.push('\n');
    report.problems();
    report.out
}

/// "batch" is the word that `display::plural` cannot do.
pub fn batches(number: i64) -> String {
    format!(
        "{} {}",
        display::count(number),
        if number == 1 { "batch" } else { "batches" }
    )
}

fn agents(agents: &[AgentStatus], clock: &Clock) -> Table {
    let now = clock.now.as_microsecond();
    let mut table = Table::new([
        "host",
        "agent",
        "state",
        ">events",
        ">lost",
        ">batch",
        "latest event",
    ]);
    for a in agents {
        let latest = if a.last_time == 0 {
            "-".to_owned()
        } else {
            let ago = (now - a.last_time).max(0).saturating_mul(1000);
            format!(
                "{} ({} ago)",
                clock.local(a.last_time),
                display::duration(ago)
            )
        };
        table.row([
            name(a),
            agent(a),
            if a.connected { "connected" } else { "away" }.to_owned(),
            display::count(a.events),
            display::count(a.lost),
            display::count(a.last_batch),
            latest,
        ]);
    }
    table
}

fn name(agent: &AgentStatus) -> String {
    if agent.host_name.is_empty() {
        agent.host_id.clone()
    } else {
        agent.host_name.clone()
    }
}

/// Enough of its name to tell agents apart.
fn agent(agent: &AgentStatus) -> String {
    agent.agent_id.chars().take(12).collect()
}

/// What became of each class, of agents that are connected; as of their last heartbeats.
fn classes(agents: &[AgentStatus]) -> Option<Table> {
    let mut table = Table::new([
        "host",
        "agent",
        "class",
        ">seen",
        ">filtered",
        ">shed",
        ">lost",
        ">sent",
    ]);
    let mut rows = 0;
    for a in agents.iter().filter(|agent| agent.connected) {
        for class in &a.classes {
            rows += 1;
            table.row([
                name(a),
                agent(a),
                class.class.clone(),
                display::count(class.seen),
                display::count(class.filtered),
                display::count(class.shed),
                display::count(class.lost),
                display::count(class.sent),
            ]);
        }
    }
    (rows > 0).then_some(table)
}

/// What each rule of their configuration has hidden.
fn filters(agents: &[AgentStatus]) -> Option<Table> {
    let mut table = Table::new(["host", "agent", "filter", ">hidden"]);
    let mut rows = 0;
    for a in agents.iter().filter(|agent| agent.connected) {
        for filter in &a.filters {
            rows += 1;
            table.row([
                name(a),
                agent(a),
                filter.name.clone(),
                display::count(filter.hidden),
            ]);
        }
    }
    (rows > 0).then_some(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_proto::v1::{ClassStatus, FilterStatus};

    #[test]
    fn agents_losses_and_problems_are_all_told() {
        let status = StatusResponse {
            version: "0.1.0".to_owned(),
            stored_events: 1_234_567,
            rejected_batches: 2,
            rules_loaded: 20,
            rules_idle: vec!["x.yml: no such field".to_owned()],
            agents: vec![AgentStatus {
                host_name: "web".to_owned(),
                lost: 3,
                connected: true,
                classes: vec![ClassStatus {
                    class: "file".to_owned(),
                    seen: 900,
                    filtered: 201,
                    shed: 302,
                    lost: 3,
                    sent: 394,
                }],
                filters: vec![FilterStatus {
                    name: "container-layers".to_owned(),
                    hidden: 198,
                }],
                ..Default::default()
            }],
            problems: vec!["the disk is full".to_owned()],
            missing_events: 17,
            ..Default::default()
        };
        let text = report(
            &status,
            true,
            &Clock::system(),
            None,
            Palette::OFF,
            display::UNICODE,
        );
        for part in [
            "1,234,567 events",
            "2 batches not valid",
            "x.yml: no such field",
            "connected",
            "Problem: the disk is full",
            "201",
            "302",
            "394",
            "container-layers",
            "198",
            "17 stored events, see",
            "3 events lost; where and why",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains("No problems"));
        assert!(has_problems(&status));
        assert!(!has_problems(&StatusResponse::default()));

        let value = json::status(&status);
        assert_eq!(value["stored_events"], 1_234_567);
        assert_eq!(value["problems"][0], "the disk is full");
        assert_eq!(value["agents"][0]["host_name"], "web");
        assert_eq!(value["agents"][0]["classes"][0]["shed"], 302);
        assert_eq!(value["agents"][0]["filters"][0]["hidden"], 198);
    }
}
