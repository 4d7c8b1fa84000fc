//! What `up` shows while it runs: alerts as they come, and on a terminal one line of numbers that
//! is rewritten in place.

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::Result;
use audit_proto::v1::{AlertsRequest, StatusRequest, StatusResponse};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::{
    client::{self, Client},
    color::Style,
    display,
    terminal::Terminal,
};

const NUMBERS_EVERY: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);

/// Does not end by itself.
pub async fn watch(client: Client, terminal: &Terminal, since: i64) -> Result<()> {
    tokio::select! {
        outcome = alerts(client.clone(), terminal, since) => outcome,
        outcome = numbers(client, terminal) => outcome,
    }
}

async fn alerts(mut client: Client, terminal: &Terminal, since: i64) -> Result<()> {
    let mut request = AlertsRequest {
        after: 0,
        follow: true,
        since_time: Some(since),
    };
    let mut compact = terminal.compact();
    loop {
        match client.alerts(request).await {
            Ok(stream) => {
                let mut stream = stream.into_inner();
                while let Ok(Some(message)) = stream.message().await {
                    let Some(alert) = message.alert else { continue };
                    request.after = alert.number;
                    clear(terminal);
                    let mut out = io::stdout().lock();
                    writeln!(out, "{}", compact.alert(&alert))?;
                    out.flush()?;
                }
            }
            Err(status) if !client::is_passing(&status) => return Err(client::plain(&status)),
            Err(_) => {}
        }
        sleep(RETRY).await;
    }
}

/// Only for a person: a log does not want it.
async fn numbers(mut client: Client, terminal: &Terminal) -> Result<()> {
    let mut ticks = interval(NUMBERS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<(Instant, i64)> = None;
    loop {
        ticks.tick().await;
        let Ok(status) = client.status(StatusRequest {}).await else {
            continue;
        };
        let status = status.into_inner();
        let now = Instant::now();
        let rate = before.map(|(then, events)| {
            (status.stored_events - events) as f64 / (now - then).as_secs_f64().max(0.001)
        });
        before = Some((now, status.stored_events));
        if terminal.error_is_terminal {
            clear(terminal);
            let text = numbers_line(&status, rate);
            let columns = terminal.width.unwrap_or(80).saturating_sub(1);
            let text = display::fit(&text, columns, terminal.glyphs.ellipsis);
            eprint!("{}", terminal.error_palette.paint(Style::Dim, &text));
        }
        for problem in &status.problems {
            tracing::warn!(problem, "the collector needs attention");
        }
    }
}

/// The line of numbers makes way for what stays.
fn clear(terminal: &Terminal) {
    if terminal.error_is_terminal {
        eprint!("\r\x1b[K");
    }
}

fn numbers_line(status: &StatusResponse, rate: Option<f64>) -> String {
    let rate = rate
        .map(|r| format!("{} events/s, ", display::count(r.round() as i64)))
        .unwrap_or_default();
    let lost = status.agents.iter().map(|a| a.lost);
    let lost = lost.fold(0, i64::saturating_add);
    format!(
        "{rate}{} stored, {} lost, {}",
        display::count(status.stored_events),
        display::count(lost),
        display::plural(status.alerts, "alert")
    )
}

#[cfg(test)]
mod tests {
    use audit_proto::v1::AgentStatus;

    use super::*;

    #[test]
    fn losses_of_all_agents_are_added() {
        let agent = |lost| AgentStatus {
            lost,
            ..Default::default()
        };
        let status = StatusResponse {
            stored_events: 1500,
            alerts: 1,
            agents: vec![agent(1), agent(2)],
            ..Default::default()
        };
        assert_eq!(
            numbers_line(&status, Some(12.4)),
            "12 events/s, 1,500 stored, 3 lost, 1 alert"
        );
    }
}
