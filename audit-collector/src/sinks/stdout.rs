//! An alert as one line for a person or a log collector.

use std::io::Write as _;

use audit_proto::v1::Alert;

use super::{Sink, SinkError};

pub struct Stdout;

impl Sink for Stdout {
    fn deliver(&mut self, alert: &Alert) -> Result<(), SinkError> {
        let rule = alert.rule.clone().unwrap_or_default();
        let event = alert.event.clone().unwrap_or_default();
        let process = event.process.unwrap_or_default();
        let host = event.host.unwrap_or_default();
        // Debug form: a control character in a command line must not reach a terminal.
        let line = format!(
            "ALERT {} {} host={} pid={} exe={:?} argv={:?} rule={}\n",
            rule.level,
            rule.title,
            host.name,
            process.pid.unwrap_or_default(),
            process.exe,
            process.argv,
            rule.id,
        );
        let mut out = std::io::stdout().lock();
        out.write_all(line.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| SinkError::Refused(error.to_string()))
    }
}
