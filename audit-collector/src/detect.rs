//! Which stored events are alerts? A reader of what is stored with a cursor of its own: of fresh rows, as
//! long as they are in memory, and else of the WAL.
//!
//! Alerts are stored first, then the cursor; after a crash between the two, events are evaluated
//! again and alerts already stored are recognised by (event id, rule id). The WAL keeps what the
//! cursor has not passed, so a slow rule set lags and skips nothing.

mod ancestry;
mod bounds;
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

use arrow::{array::AsArray as _, datatypes::Int64Type};
use audit_columns::{NotAnEvent, Rows, View};
use audit_proto::{Message as _, v1::Alert};

use crate::{
    alerts::{AlertLog, AlertsError, identity},
    problems::Problems,
    store::{FreshAfter, Refused, Store, end_position, position, replace_file, rows},
};
use ancestry::Ancestry;
use rules::Memory;
pub use rules::{Rules, builtin};

/// How often the cursor is written while events flow; what is evaluated twice after a crash.
const CURSOR_EVERY: Duration = Duration::from_secs(1);
/// How soon a sleeping detector notices new events and the stop.
const TICK: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(5);
/// Alerts stored at once; a rule that matches every event may make many of a chunk.
const APPEND_BYTES: usize = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    #[error("write-ahead log: {0}")]
    Wal(#[from] audit_wal::WalError),
    #[error("record {index}: {source}")]
    Record { index: u64, source: Refused },
    #[error(transparent)]
    Rows(#[from] NotAnEvent),
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
    /// Alerts stored of rows whose chunk was not evaluated to its end yet.
    appended: HashSet<(String, String)>,
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
        let cursor = within(cursor, store.last_index());
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
            appended: HashSet::new(),
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
            let rows = rows(&record).map_err(|source| DetectError::Record { index, source })?;
            let mut view = View::new(&rows);
            self.ancestry.begin_rows();
            for row in 0..rows.len() {
                view.set_row(row);
                self.ancestry.learn(&view);
            }
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
        while !stop.load(Ordering::Acquire) {
            let chunk = match self.store.fresh_after(self.cursor) {
                FreshAfter::Rows(chunk) => chunk,
                FreshAfter::Compacted => {
                    self.advance_to_fresh(stop)?;
                    continue;
                }
                FreshAfter::None => break,
            };
            let positions = chunk.positions.as_primitive::<Int64Type>().values();
            let done = end_position(self.cursor);
            let from = positions.partition_point(|position| *position <= done);
            self.evaluate(&chunk.columns, from, |row| positions[row])?;
            // Not before the end of a chunk, which may be evaluated from the log record by record instead.
            self.appended.clear();
            self.pass(chunk.last_index());
        }
        Ok(())
    }

    /// Evaluates from the WAL what is in no memory any more: after a start, or when it lags.
    fn advance_to_fresh(&mut self, stop: &AtomicBool) -> Result<(), DetectError> {
        let compacted = self.store.compacted_through();
        for item in self.store.read_from(self.cursor + 1)? {
            let (index, record) = item?;
            if stop.load(Ordering::Acquire) {
                return Ok(());
            }
            if index > compacted {
                break;
            }
            self.tell_gap(index);
            let rows = rows(&record).map_err(|source| DetectError::Record { index, source })?;
            self.evaluate(&rows, 0, |row| position(index, row))?;
            self.pass(index);
        }
        self.tell_gap(compacted + 1);
        self.pass(compacted.max(self.cursor));
        Ok(())
    }

    /// The log may not go back to a cursor that was lost or is old, or be damaged.
    fn tell_gap(&self, next: u64) {
        let first = self.cursor + 1;
        if next > first {
            tracing::warn!(
                first,
                last = next - 1,
                "no rule was evaluated on these records, which the log does not have any more; their \
                 events are in the table: `hostaudit query`"
            );
        }
    }

    fn pass(&mut self, index: u64) {
        self.problems.clear("detection");
        self.cursor = index;
        self.save(false);
    }

    /// Stores the alerts of the rows from `from` on.
    fn evaluate(
        &mut self,
        rows: &Rows,
        from: usize,
        position: impl Fn(usize) -> i64,
    ) -> Result<(), DetectError> {
        let (mut alerts, mut bytes) = (Vec::new(), 0);
        let mut view = View::new(rows);
        self.memory.begin_rows();
        self.ancestry.begin_rows();
        for row in from..rows.len() {
            view.set_row(row);
            self.ancestry.learn(&view);
            let matching = self.rules.matching(&view, &mut self.memory);
            if matching.is_empty() {
                continue;
            }
            let Some(event) = rows.events(&[row], |_| true)?.pop() else {
                continue;
            };
            for rule in matching {
                let alert = bounds::bounded(Alert {
                    number: 0,
                    time: event.time,
                    rule: Some(rule.clone()),
                    ancestry: self.ancestry.of(&event),
                    event: Some(event.clone()),
                    cursor: position(row).to_string(),
                    event_is_cut: false,
                });
                if self.is_new(&alert) {
                    bytes += alert.encoded_len();
                    alerts.push(alert);
                }
            }
            if bytes >= APPEND_BYTES {
                let identities: Vec<_> = alerts.iter().map(identity).collect();
                self.alerts.append(std::mem::take(&mut alerts))?;
                self.appended.extend(identities);
                bytes = 0;
            }
        }
        if !alerts.is_empty() {
            self.alerts.append(alerts)?;
        }
        Ok(())
    }

    /// Not stored by an earlier evaluation of the same rows, which did not come to its end.
    fn is_new(&self, alert: &Alert) -> bool {
        let stored = [&self.raised, &self.appended];
        let mut stored = stored.iter().filter(|set| !set.is_empty()).peekable();
        stored.peek().is_none() || {
            let identity = identity(alert);
            !stored.any(|set| set.contains(&identity))
        }
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

/// A cursor beyond the end is of a log that was longer: the end of it is lost, or a backup was restored.
/// What comes has the numbers again, and was not evaluated.
fn within(cursor: u64, last: u64) -> u64 {
    if cursor > last {
        tracing::warn!(
            cursor,
            last,
            "the log is shorter than it was when rules were evaluated; they go on at its end"
        );
    }
    cursor.min(last)
}
