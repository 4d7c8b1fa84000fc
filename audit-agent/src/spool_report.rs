//! What `audit-agent spool stat` and `spool fsck` say.

use std::fmt::Write as _;

use anyhow::Result;
use audit_agent::{Config, identity::Identity, spool};

pub struct Report(Vec<spool::Stat>);

/// Opens the spool as an agent would at its start, which cuts off a write that was not finished.
pub fn read(config: &Config) -> Result<Report> {
    let identity = Identity::of_host(&config.state_dir)?;
    Ok(Report(spool::stat(&config.state_dir, &identity)?))
}

impl Report {
    pub fn stat(&self) -> String {
        if self.0.is_empty() {
            return "no spool: no agent has run with this state_dir\n".to_owned();
        }
        let mut text = String::new();
        for history in &self.0 {
            let state = match history.is_current {
                true => "goes on",
                false => "ended, to be delivered",
            };
            // Into a String, which cannot fail.
            let _ = writeln!(text, "{}  {state}", history.agent_id);
            let _ = match (history.numbers, &history.past) {
                (Some((first, last)), _) => writeln!(
                    text,
                    "  batches {first} to {last} are here; which of them the collector has, it says itself"
                ),
                (None, Some(past)) => {
                    writeln!(text, "  no batch waits; the last was {}", past.batch)
                }
                (None, None) => writeln!(text, "  no batch yet"),
            };
            if let Some(past) = &history.past {
                let _ = writeln!(
                    text,
                    "  {} events up to now, key of epoch {}",
                    past.events, past.epoch
                );
            }
            let _ = writeln!(
                text,
                "  {} bytes in {}",
                history.bytes,
                history.dir.display()
            );
        }
        text
    }

    pub fn fsck(&self) -> String {
        let mut text = String::new();
        for history in &self.0 {
            let report = &history.report;
            let _ = writeln!(
                text,
                "{}  {} records in {} files",
                history.agent_id, report.records, report.segments
            );
            if report.tail_bytes > 0 {
                let _ = writeln!(
                    text,
                    "  {} bytes of a write that was not finished were cut off; nobody was sent any of it",
                    report.tail_bytes
                );
            }
            for damage in &report.damaged {
                let _ = writeln!(text, "  damaged: {damage}");
            }
            if let Some(problem) = &history.problem {
                let _ = writeln!(
                    text,
                    "  cannot go on: {problem}. The next start of the agent begins a new history, says so \
                     in the record, and delivers what is here"
                );
            }
        }
        if self.is_sound() {
            text.push_str("sound\n");
        }
        text
    }

    pub fn is_sound(&self) -> bool {
        let sound = |history: &spool::Stat| {
            history.report.damaged.is_empty() && (history.problem.is_none() || !history.is_current)
        };
        self.0.iter().all(sound)
    }
}
