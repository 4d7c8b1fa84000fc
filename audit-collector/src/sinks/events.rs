//! Where do exported events go, and from where do they go on? Each of `sinks.events_files` is a
//! reader of the record like any other, in a thread of its own.
//!
//! Invariants: what was read is in the file before more is read, so a file that cannot be written
//! costs what a reader that stops reading costs; the file itself says how far it has come
//! ([`line_file`]).

mod line_file;
mod resume;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use audit_proto::v1::{EventFilter, Lagged, TailRequest, TailResponse};
use tokio::sync::watch;

use crate::{
    config,
    json::{self, Beside},
    problems::Problems,
    query::Engine,
    tail,
};
use line_file::{Line, LineFile};

/// How soon a file notices that it is old, and the stop.
const TICK: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(1);
/// Further behind than this is a problem.
const LAGGED_EVENTS: i64 = 1_000_000;

struct Exporter {
    name: String,
    allow: Vec<EventFilter>,
    deny: Vec<EventFilter>,
    fields: Vec<String>,
    file: LineFile,
    /// Of events whose table files are gone, since the start.
    missing_events: i64,
    engine: Arc<Engine>,
    problems: Arc<Problems>,
    stop: Arc<AtomicBool>,
}

/// Why an export begins anew from its cursor.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error("{0}; trying again")]
    Tail(String),
    #[error("stopping")]
    Stop,
}

/// Starts the configured files.
pub fn start(
    config: &config::Sinks,
    engine: &Arc<Engine>,
    problems: &Arc<Problems>,
    stop: &Arc<AtomicBool>,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    let store = engine.store();
    for config in &config.events_files {
        let state_path = state_path(store.dir(), &config.name);
        let (allow, deny) = config.filters().map_err(std::io::Error::other)?;
        let mut exporter = Exporter {
            name: config.name.clone(),
            allow,
            deny,
            fields: config.fields.clone(),
            file: LineFile::new(config, state_path, *store.present().borrow()),
            missing_events: 0,
            engine: engine.clone(),
            problems: problems.clone(),
            stop: stop.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("events-{}", config.name));
        threads.push(thread.spawn(move || exporter.run())?);
    }
    Ok(threads)
}

fn state_path(data_dir: &Path, name: &str) -> std::path::PathBuf {
    data_dir.join("cursors").join(format!("events-{name}"))
}

impl Exporter {
    fn run(&mut self) {
        if self.insist(LineFile::recover).is_err() {
            return;
        }
        loop {
            match self.export() {
                Interrupted::Stop => break,
                interrupted @ Interrupted::Tail(_) => self.problem(interrupted.to_string()),
            }
            if self.pause().is_err() {
                break;
            }
        }
        if let Err(error) = self.file.sync() {
            self.problem(format!(
                "{error}; its last lines are checked at the next start"
            ));
        }
    }

    fn export(&mut self) -> Interrupted {
        let request = TailRequest {
            cursor: self.file.cursor().to_string(),
            allow: self.allow.clone(),
            deny: self.deny.clone(),
            fields: self.fields.clone(),
            lagged_events: LAGGED_EVENTS,
            ..TailRequest::default()
        };
        // The walk ends when its responses are dropped.
        let (_running, stop) = watch::channel(false);
        let threads = self.engine.threads().clone();
        let store = self.engine.store().clone();
        let walk = tail::start(request, self.engine.clone(), store, stop);
        let mut responses = match threads.block_on(walk) {
            Ok(responses) => responses,
            Err(status) => return Interrupted::Tail(status.message().to_owned()),
        };
        loop {
            let next = async { tokio::time::timeout(TICK, responses.recv()).await };
            let step = match threads.block_on(next) {
                Err(_) => self.insist(LineFile::tend),
                Ok(Some(Ok(response))) => self.take(&response),
                Ok(Some(Err(status))) => return Interrupted::Tail(status.message().to_owned()),
                Ok(None) => return Interrupted::Tail("the walk ended".to_owned()),
            };
            if let Err(interrupted) = step.and_then(|()| self.running()) {
                return interrupted;
            }
        }
    }

    fn take(&mut self, response: &TailResponse) -> Result<(), Interrupted> {
        let lines: Vec<Line> = response
            .events
            .iter()
            .filter_map(|entry| {
                let beside = Beside {
                    cursor: &entry.cursor,
                    masked: entry.masked,
                };
                Some(Line {
                    cursor: entry.cursor.parse().ok()?,
                    text: json::event(entry.event.as_ref()?, beside),
                })
            })
            .collect();
        self.insist(|file| file.append(&lines))?;
        if let Ok(cursor) = response.cursor.parse() {
            self.file.passed(cursor);
        }
        self.insist(LineFile::tend)?;
        if response.missing_events > 0 {
            self.missing_events += response.missing_events;
            let message = format!(
                "{} stored events are not in the file: their table files are missing",
                self.missing_events
            );
            self.problems
                .set(&format!("{} missing", self.key()), message);
        }
        if let Some(lagged) = &response.lagged {
            self.lagged(lagged);
        }
        Ok(())
    }

    fn lagged(&self, lagged: &Lagged) {
        let key = format!("{} lag", self.key());
        if lagged.over {
            self.problems.clear(&key);
            return;
        }
        let since = json::rfc3339(lagged.since_time, 0);
        let message = format!("it is {} events behind, since {since}", lagged.events);
        self.problems.set(&key, message);
    }

    /// Does it until it succeeds: a full disk has room again some day.
    fn insist(
        &mut self,
        mut work: impl FnMut(&mut LineFile) -> Result<(), line_file::FileError>,
    ) -> Result<(), Interrupted> {
        while let Err(error) = work(&mut self.file) {
            self.problem(format!("{error}; nothing is skipped, it waits"));
            self.pause()?;
        }
        self.problems.clear(&self.key());
        Ok(())
    }

    fn key(&self) -> String {
        format!("events file {}", self.name)
    }

    fn problem(&self, message: String) {
        self.problems.set(&self.key(), message);
    }

    fn running(&self) -> Result<(), Interrupted> {
        match self.stop.load(Ordering::Acquire) {
            true => Err(Interrupted::Stop),
            false => Ok(()),
        }
    }

    fn pause(&self) -> Result<(), Interrupted> {
        let until = std::time::Instant::now() + RETRY;
        while std::time::Instant::now() < until {
            self.running()?;
            std::thread::sleep(TICK);
        }
        Ok(())
    }
}
