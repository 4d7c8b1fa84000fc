//! An alert as an HTTP POST of JSON.

use std::time::Duration;

use audit_proto::v1::Alert;

use super::{Sink, SinkError};
use crate::{alerts::to_json, config};

pub struct Webhook {
    agent: ureq::Agent,
    url: String,
    headers: Vec<(String, String)>,
}

impl Webhook {
    pub fn new(config: &config::Webhook) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(config.timeout_s)))
            .http_status_as_error(false)
            .user_agent(concat!("hostaudit/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self {
            agent,
            url: config.url.clone(),
            headers: config.headers.clone().into_iter().collect(),
        }
    }
}

impl Sink for Webhook {
    fn deliver(&mut self, alert: &Alert) -> Result<(), SinkError> {
        let mut request = self
            .agent
            .post(&self.url)
            .header("content-type", "application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let response = request
            .send(to_json(alert).to_string())
            .map_err(|error| SinkError::Retry(format!("{}: {error}", self.url)))?;
        let status = response.status();
        let message = format!("{} answered {status}", self.url);
        match status.as_u16() {
            200..=299 => Ok(()),
            // The request itself is wrong; it would be wrong again. 408 and 429 mean "later".
            400..=407 | 409..=428 | 430..=499 => Err(SinkError::Refused(message)),
            _ => Err(SinkError::Retry(message)),
        }
    }
}
