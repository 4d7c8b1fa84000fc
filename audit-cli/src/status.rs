//! `hostaudit status`: how the collector and the agents that deliver to it are doing.

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
  hostaudit status --rules                 also each rule that cannot fire here, and why";

/// Show the state of the collector, its agents and anything that needs attention
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Status {
    /// List the rules that cannot fire here, with the reason
    #[arg(long)]
    rules: bool,
}

pub async fn run(args: &Status, target: &Target, terminal: &Terminal) -> Result<()> {
    let mut client = target.connect().await?;
    let status = client
        .status(StatusRequest {})
        .await
        .map_err(|s| client::plain(&s))?
        .into_inner();
    let mut out = Output::new();
    out.text(&report(
        &status,
        args.rules,
        &Clock::system(),
        terminal.width,
        terminal.palette,
        terminal.glyphs,
    ))?;
    out.flush()?;
    Ok(())
}

fn report(
    status: &StatusResponse,
    rules: bool,
    clock: &Clock,
    width: Option<usize>,
    palette: Palette,
    glyphs: Glyphs,
) -> String {
    let now = clock.now.as_microsecond();
    let mut out = String::new();
    let mut say = |name: &str, text: String| {
        let name = format!("{name:<10}");
        out.push_str(&format!("{} {text}\n", palette.paint(Style::Bold, &name)));
    };
    say(
        "collector",
        format!(
            "{}, pid {}, up {}, data in {}",
            display::safe(&status.version),
            status.pid,
            display::duration((now - status.start_time).max(0).saturating_mul(1000)),
            display::safe(&status.data_dir),
        ),
    );
    say(
        "stored",
        format!(
            "{} in {}; not yet in Parquet {}",
            display::plural(status.stored_events, "event"),
            batches(status.stored_batches),
            display::count(status.uncompacted_events),
        ),
    );
    say(
        "on disk",
        format!(
            "log {}, table {} in {}",
            display::bytes(status.wal_bytes),
            display::bytes(status.table_bytes),
            display::plural(status.table_files, "file"),
        ),
    );
    if status.duplicate_batches + status.rejected_batches > 0 {
        say(
            "refused",
            format!(
                "{} sent again and dropped, {} not valid",
                batches(status.duplicate_batches),
                batches(status.rejected_batches),
            ),
        );
    }
    say(
        "detection",
        format!(
            "{} loaded, {} cannot fire here, {}",
            display::plural(status.rules_loaded, "rule"),
            status.rules_idle.len(),
            display::plural(status.alerts, "alert"),
        ),
    );
    if rules {
        for idle in &status.rules_idle {
            out.push_str(&format!("           {}\n", display::safe(idle)));
        }
    }
    out.push('\n');
    if status.agents.is_empty() {
        out.push_str("No agent has delivered yet.\n");
    } else {
        out.push_str(&agents(&status.agents, clock).render(width, palette, glyphs));
    }
    out.push('\n');
    if status.problems.is_empty() {
        out.push_str(&format!(
            "{}\n",
            palette.paint(Style::Green, "No problems.")
        ));
    }
    for problem in &status.problems {
        out.push_str(&palette.paint(
            Style::Alarm,
            &format!("Problem: {}", display::safe(problem)),
        ));
        out.push('\n');
    }
    out
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
        "run",
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
            if a.host_name.is_empty() {
                a.host_id.clone()
            } else {
                a.host_name.clone()
            },
            a.run.clone(),
            if a.connected { "connected" } else { "away" }.to_owned(),
            display::count(a.events),
            display::count(a.lost),
            display::count(a.last_batch),
            latest,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

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
                ..Default::default()
            }],
            problems: vec!["the disk is full".to_owned()],
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
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains("No problems"));
    }
}
