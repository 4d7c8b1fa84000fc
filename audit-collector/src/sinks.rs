//! Where alerts go, and what happens when a receiver is slow or gone.
//!
//! Each sink is a thread with its own cursor into the durable alert log, written after delivery: it
//! lags, retries and resumes alone, and needs no queue. At least once: a crash between delivery and
//! the cursor repeats the last alert. A new sink starts at the present.
//!
//! Files of events are [`events`]: they read the record, not the alerts.

pub mod events;
mod file;
mod stdout;
mod webhook;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use audit_proto::v1::Alert;

use crate::{alerts::AlertLog, config, problems::Problems, store::replace_file};

/// Why one delivery failed.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Worth another attempt.
    #[error("{0}")]
    Retry(String),
    /// The receiver will never take this alert.
    #[error("{0}")]
    Refused(String),
}

trait Sink: Send {
    fn deliver(&mut self, alert: &Alert) -> Result<(), SinkError>;
}

struct Runner {
    name: String,
    sink: Box<dyn Sink>,
    alerts: Arc<AlertLog>,
    problems: Arc<Problems>,
    /// `None` where an alert shown again would help nobody.
    cursor_path: Option<PathBuf>,
    cursor: u64,
    max_attempts: u32,
    failed: u64,
    stop: Arc<AtomicBool>,
}

/// Name, sink, where its cursor is kept, attempts for one alert.
type Configured = (String, Box<dyn Sink>, Option<&'static str>, u32);

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How soon a sleeping sink notices new alerts and the stop.
const TICK: Duration = Duration::from_millis(100);

/// Starts the configured sinks.
pub fn start(
    config: &config::Sinks,
    data_dir: &std::path::Path,
    alerts: &Arc<AlertLog>,
    problems: &Arc<Problems>,
    stop: &Arc<AtomicBool>,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let mut sinks: Vec<Configured> = Vec::new();
    if config.stdout {
        sinks.push(("stdout".to_owned(), Box::new(stdout::Stdout), None, 1));
    }
    if !config.file.as_os_str().is_empty() {
        let file = file::JsonLines::new(config.file.clone());
        sinks.push((
            "file".to_owned(),
            Box::new(file),
            Some("sink-file"),
            u32::MAX,
        ));
    }
    for hook in &config.webhooks {
        let sink = Box::new(webhook::Webhook::new(hook));
        sinks.push((hook.name.clone(), sink, Some("webhook-"), hook.max_attempts));
    }
    let mut threads = Vec::new();
    for (name, sink, cursor, max_attempts) in sinks {
        let cursor_path = cursor.map(|prefix| {
            let file = if prefix.ends_with('-') {
                format!("{prefix}{name}")
            } else {
                prefix.to_owned()
            };
            data_dir.join("cursors").join(file)
        });
        let saved = cursor_path
            .as_ref()
            .and_then(|p| std::fs::read_to_string(p).ok());
        let now = *alerts.last().borrow();
        let cursor = saved
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(now)
            .min(now);
        let mut runner = Runner {
            name: name.clone(),
            sink,
            alerts: alerts.clone(),
            problems: problems.clone(),
            cursor_path,
            cursor,
            max_attempts,
            failed: 0,
            stop: stop.clone(),
        };
        runner.save_cursor();
        let thread = std::thread::Builder::new().name(format!("sink-{name}"));
        threads.push(thread.spawn(move || runner.run())?);
    }
    Ok(threads)
}

impl Runner {
    fn run(&mut self) {
        let last = self.alerts.last();
        while !self.stopping() {
            if *last.borrow() <= self.cursor {
                std::thread::sleep(TICK);
                continue;
            }
            let alerts = match self.alerts.after(self.cursor) {
                Ok(alerts) => alerts,
                Err(error) => {
                    self.problem(format!("alerts cannot be read: {error}"));
                    self.pause(LONGEST_WAIT);
                    continue;
                }
            };
            for alert in alerts {
                match alert {
                    Ok(alert) => {
                        if !self.deliver(&alert) {
                            return;
                        }
                        self.cursor = alert.number as u64;
                    }
                    Err(error) => {
                        self.problem(error.to_string());
                        self.cursor += 1;
                        self.failed += 1;
                    }
                }
                self.save_cursor();
            }
        }
    }

    /// False when stopped before the alert was delivered or given up.
    fn deliver(&mut self, alert: &Alert) -> bool {
        let mut wait = FIRST_WAIT;
        for attempt in 1.. {
            let error = match self.sink.deliver(alert) {
                Ok(()) => {
                    if self.failed == 0 {
                        self.problems.clear(&self.key());
                    }
                    return true;
                }
                Err(error) => error,
            };
            if matches!(error, SinkError::Refused(_)) || attempt >= self.max_attempts {
                self.failed += 1;
                self.problem(format!(
                    "{} alerts were not delivered; the last, number {}, after {attempt} attempts: \
                     {error}; `hostaudit alerts` has them all",
                    self.failed, alert.number
                ));
                return true;
            }
            self.problem(format!(
                "alert {} waits, attempt {attempt}: {error}",
                alert.number
            ));
            if !self.pause(wait) {
                return false;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        true
    }

    fn save_cursor(&self) {
        if let Some(path) = &self.cursor_path
            && let Err(error) = replace_file(path, self.cursor.to_string().as_bytes())
        {
            self.problem(format!(
                "{}: {error}; alerts may be sent again",
                path.display()
            ));
        }
    }

    fn key(&self) -> String {
        format!("sink {}", self.name)
    }

    fn problem(&self, message: String) {
        self.problems.set(&self.key(), message);
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// False when stopped meanwhile.
    fn pause(&self, wait: Duration) -> bool {
        let until = std::time::Instant::now() + wait;
        while std::time::Instant::now() < until {
            if self.stopping() {
                return false;
            }
            std::thread::sleep(TICK);
        }
        !self.stopping()
    }
}
