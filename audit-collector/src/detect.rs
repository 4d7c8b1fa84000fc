//! Which stored events are alerts? A reader of the WAL with a cursor of its own.
//!
//! Alerts are stored first, then the cursor; after a crash between the two, events are evaluated
//! again and alerts already stored are recognised by (event id, rule id). The WAL keeps what the
//! cursor has not passed, so a slow rule set lags and skips nothing.

mod ancestry;
mod rules;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use audit_columns::NotDecoded;
use audit_proto::{
    Message as _,
    columns::Cells,
    v1::{Alert, Event},
};

use crate::{
    alerts::{AlertLog, AlertsError, identity},
    problems::Problems,
    store::{Refused, Store, end_position, frames, position, replace_file},
};
use ancestry::Ancestry;
use rules::Memory;
pub use rules::{Rules, builtin};

/// How often the cursor is written while events flow; what is evaluated twice after a crash.
const CURSOR_EVERY: Duration = Duration::from_secs(1);
/// How soon a sleeping detector notices new events and the stop.
const TICK: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    #[error("write-ahead log: {0}")]
    Wal(#[from] audit_wal::WalError),
    #[error("record {index}: {source}")]
    Record { index: u64, source: Refused },
    #[error(transparent)]
    Alerts(#[from] AlertsError),
}

pub struct Detector {
    rules: Arc<Rules>,
    memory: Memory,
    store: Arc<Store>,
    alerts: Arc<AlertLog>,
    problems: Arc<Problems>,
    ancestry: Ancestry,
    /// The last record evaluated.
    cursor: u64,
    saved: u64,
    saved_at: Instant,
    /// Alerts of events after the cursor as it was at this start; about a second's.
    raised: HashSet<(String, String)>,
    cursor_path: PathBuf,
}

impl Detector {
    pub fn new(
        rules: Arc<Rules>,
        store: Arc<Store>,
        alerts: Arc<AlertLog>,
        problems: Arc<Problems>,
        ancestry_entries: usize,
    ) -> Result<Self, DetectError> {
        let cursor_path = store.dir().join("cursors/detect");
        let cursor = std::fs::read_to_string(&cursor_path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        store.set_detected(cursor);
        let raised = alerts.raised_after(end_position(cursor))?;
        Ok(Self {
            memory: rules.memory(),
            rules,
            store,
            alerts,
            problems,
            ancestry: Ancestry::new(ancestry_entries),
            cursor,
            saved: cursor,
            saved_at: Instant::now(),
            raised,
            cursor_path,
        })
    }

    /// Ancestry from records already evaluated, as far as the WAL still has them. Not before the
    /// collector listens: of some millions of events this takes half a minute.
    fn remember_processes(&mut self, stop: &AtomicBool) -> Result<(), DetectError> {
        for item in self.store.read_from(0)? {
            let (index, record) = item?;
            if index > self.cursor || stop.load(Ordering::Acquire) {
                break;
            }
            self.learn(&record)
                .map_err(|source| DetectError::Record { index, source })?;
        }
        Ok(())
    }

    pub fn run(&mut self, stop: &AtomicBool) {
        if let Err(error) = self.remember_processes(stop) {
            tracing::warn!(%error, "alerts of earlier processes will lack some of their ancestry");
        }
        while !stop.load(Ordering::Acquire) {
            match self.advance(stop) {
                Ok(()) => {
                    self.problems.clear("detection");
                    self.save(false);
                    std::thread::sleep(TICK);
                }
                Err(error) => {
                    let message = format!("rules are not evaluated: {error}; trying again");
                    self.problems.set("detection", message);
                    let since = Instant::now();
                    while since.elapsed() < RETRY && !stop.load(Ordering::Acquire) {
                        std::thread::sleep(TICK);
                    }
                }
            }
        }
        self.save(true);
    }

    /// Evaluates what is durable and not evaluated yet.
    fn advance(&mut self, stop: &AtomicBool) -> Result<(), DetectError> {
        let durable = (*self.store.present().borrow() >> 20) as u64;
        if durable <= self.cursor {
            return Ok(());
        }
        for item in self.store.read_from(self.cursor + 1)? {
            let (index, record) = item?;
            if index > durable || stop.load(Ordering::Acquire) {
                break;
            }
            let alerts = self
                .evaluate(index, &record)
                .map_err(|source| DetectError::Record { index, source })?;
            if !alerts.is_empty() {
                self.alerts.append(alerts)?;
            }
            self.cursor = index;
            self.save(false);
        }
        Ok(())
    }

    /// The alerts of one record's events. Most events match no rule and are of processes that are known:
    /// those are not decoded.
    fn evaluate(&mut self, index: u64, record: &[u8]) -> Result<Vec<Alert>, Refused> {
        let frames = frames(record)?;
        let (mut cells, mut alerts) = (Cells::default(), Vec::new());
        for (at, encoded) in frames.events().enumerate() {
            let is_quiet =
                cells.read(encoded).is_some() && !self.rules.any(&cells, &mut self.memory);
            if is_quiet && self.ancestry.knows(&cells) {
                continue;
            }
            let event = Event::decode(encoded).map_err(|source| NotDecoded { at, source })?;
            self.ancestry.learn(&event);
            if !is_quiet {
                self.raise(position(index, at), &event, &mut alerts);
            }
        }
        Ok(alerts)
    }

    fn raise(&mut self, cursor: i64, event: &Event, alerts: &mut Vec<Alert>) {
        for rule in self.rules.evaluate(event, &mut self.memory) {
            let alert = Alert {
                number: 0,
                time: event.time,
                rule: Some(rule.clone()),
                ancestry: self.ancestry.of(event),
                event: Some(event.clone()),
                cursor: cursor.to_string(),
            };
            if self.raised.is_empty() || !self.raised.contains(&identity(&alert)) {
                alerts.push(alert);
            }
        }
    }

    fn learn(&mut self, record: &[u8]) -> Result<(), Refused> {
        let frames = frames(record)?;
        let mut cells = Cells::default();
        for (at, encoded) in frames.events().enumerate() {
            if cells.read(encoded).is_none() || !self.ancestry.knows(&cells) {
                let event = Event::decode(encoded).map_err(|source| NotDecoded { at, source })?;
                self.ancestry.learn(&event);
            }
        }
        Ok(())
    }

    fn save(&mut self, now: bool) {
        if self.saved == self.cursor || (!now && self.saved_at.elapsed() < CURSOR_EVERY) {
            return;
        }
        self.saved_at = Instant::now();
        match replace_file(&self.cursor_path, self.cursor.to_string().as_bytes()) {
            Ok(()) => {
                self.saved = self.cursor;
                self.store.set_detected(self.cursor);
                self.problems.clear("detection cursor");
            }
            Err(error) => {
                self.problems.set(
                    "detection cursor",
                    format!(
                        "{}: {error}; the WAL is kept meanwhile",
                        self.cursor_path.display()
                    ),
                );
            }
        }
    }
}
