//! `hostaudit alerts`: what the rules found, oldest first, and on as it comes.

use std::time::Duration;

use anyhow::{Result, anyhow};
use audit_proto::v1::AlertsRequest;
use tokio::time::sleep;

use crate::{
    client::{self, Target},
    display, json,
    output::Output,
    tail::Format,
    terminal::Terminal,
    when::Clock,
};

const EXAMPLES: &str = "\
Examples:
  hostaudit alerts                        every alert kept
  hostaudit alerts --since 1h --follow    the last hour, then on
  hostaudit alerts -o json | jq '.rule.title, .event.process_argv'

An alert names the rule; `-o json` adds its author, description and tags, the whole event and the
processes above the one that acted. `hostaudit tree EXEC_ID` shows what else that process did.";

const RETRY: Duration = Duration::from_secs(1);

/// Show what the detection rules found
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Alerts {
    /// Wait for more
    #[arg(short, long)]
    follow: bool,
    /// Only alerts since: 10m, 2h, 1d, RFC 3339 or local time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// compact: a line to read; json: one object a line
    #[arg(short, long, value_enum, default_value_t = Format::Compact)]
    output: Format,
}

pub async fn run(args: &Alerts, target: &Target, terminal: &Terminal) -> Result<()> {
    let since = args
        .since
        .as_deref()
        .map(|text| Clock::system().parse(text))
        .transpose()
        .map_err(|e| anyhow!("--since {e}"))?;
    let mut client = target.connect().await?;
    let mut request = AlertsRequest {
        after: 0,
        follow: args.follow,
        since_time: since,
    };
    let mut compact = terminal.compact();
    let mut shown = 0;
    loop {
        let mut stream = match client.alerts(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Err(client::plain(&status)),
        };
        let broken = loop {
            let alert = match stream.message().await {
                Ok(Some(message)) => message.alert,
                Ok(None) => break None,
                Err(status) => break Some(status),
            };
            let Some(alert) = alert else { continue };
            let mut out = Output::new();
            out.line(&match args.output {
                Format::Compact => compact.alert(&alert),
                Format::Json => json::alert(&alert),
            })?;
            out.flush()?;
            request.after = alert.number;
            shown += 1;
        };
        match broken {
            Some(status) if !args.follow || !client::is_passing(&status) => {
                return Err(client::plain(&status));
            }
            None if !args.follow => break,
            _ => {}
        }
        client = again(target).await;
    }
    if terminal.error_is_terminal && args.output == Format::Compact {
        eprintln!("{}", display::plural(shown, "alert"));
    }
    Ok(())
}

async fn again(target: &Target) -> client::Client {
    eprintln!("hostaudit: the collector went away; waiting for it");
    loop {
        sleep(RETRY).await;
        if let Ok(client) = target.connect().await {
            return client;
        }
    }
}
