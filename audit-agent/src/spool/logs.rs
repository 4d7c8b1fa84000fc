//! Which batches are in the two logs of a spool, and what of them may be removed?
//!
//! Batches are read in the order of their numbers, so both logs are only ever read forward.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use audit_ledger::Header;
use audit_proto::{MAX_MESSAGE_BYTES, v1::Batch};
use audit_wal::{Disk, Log, Options, Recovery, System, WalError};

use super::{
    State,
    record::{self, End, Record},
};

/// Headers and statements are some 600 bytes, so their log needs smaller segments.
const DROPPED_PART: u64 = 8;
/// Batches that are found together: a read skips at most so many, or so much.
const RUN: i64 = 256;
const RUN_BYTES: usize = 1 << 20;

/// Both logs, and where in them the batches are.
pub struct Logs<D: Disk = System> {
    disk: D,
    log: Log<D>,
    dropped: Log<D>,
    runs: VecDeque<Run>,
    dropped_runs: VecDeque<Run>,
    /// While it is opened: those whose mark has not been met yet.
    parts: Vec<(u64, usize, Header)>,
    /// Indexes of parts that do not count.
    void: BTreeSet<u64>,
    last: Option<Last>,
    /// Index and content of the last mark.
    mark: Option<(u64, Vec<u8>)>,
    reading: Option<Reading<D>>,
    dir: PathBuf,
}

/// Batches in a row.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: i64,
    last: i64,
    /// Where the first of them is.
    index: u64,
    bytes: usize,
    /// When this process first knew of them: clocks of the wall may jump.
    since: Duration,
}

/// The last batch.
struct Last {
    index: u64,
    end: End,
}

/// Reads on where the last read ended.
struct Reading<D: Disk> {
    of_dropped: bool,
    next: i64,
    records: audit_wal::Reader<D>,
}

/// What opening found.
pub struct Found {
    /// Of the last batch.
    pub end: Option<End>,
    pub state: Option<State>,
    pub recovery: Recovery,
    /// Batches that are there, and events up to the first of them.
    pub numbers: Option<(i64, i64)>,
    pub events_before: i64,
}

/// A kind, and a batch that fits a message.
pub const fn max_record_bytes() -> u32 {
    MAX_MESSAGE_BYTES as u32 + 1
}

fn options(segment_bytes: u64) -> Options {
    Options {
        segment_bytes,
        max_record_bytes: max_record_bytes(),
    }
}

fn add(runs: &mut VecDeque<Run>, number: i64, index: u64, bytes: usize, since: Duration) {
    match runs.back_mut() {
        Some(run)
            if number == run.last + 1 && number - run.first < RUN && run.bytes < RUN_BYTES =>
        {
            run.last = number;
            run.bytes += bytes;
        }
        _ => runs.push_back(Run {
            first: number,
            last: number,
            index,
            bytes,
            since,
        }),
    }
}

impl<D: Disk> Logs<D> {
    /// Whoever opens sees to it that nobody else does.
    pub fn open(disk: D, dir: &Path, segment_bytes: u64) -> Result<(Self, Found), WalError> {
        let (log, recovery) = Log::open_on(disk.clone(), &dir.join("log"), options(segment_bytes))?;
        let (dropped, _) = Log::open_on(
            disk.clone(),
            &dir.join("dropped"),
            options(segment_bytes / DROPPED_PART),
        )?;
        let now = disk.now();
        let mut logs = Self {
            disk,
            log,
            dropped,
            runs: VecDeque::new(),
            dropped_runs: VecDeque::new(),
            parts: Vec::new(),
            void: BTreeSet::new(),
            last: None,
            mark: None,
            reading: None,
            dir: dir.to_owned(),
        };
        let mut found = Found {
            end: None,
            state: None,
            recovery,
            numbers: None,
            events_before: 0,
        };
        for record in logs.log.read_from(logs.log.first_index())? {
            // What cannot be read is in `recovery`.
            let Ok((index, bytes)) = record else { continue };
            logs.meet(index, bytes, &mut found);
        }
        logs.drop_parts()?;
        let first = logs.runs.front().map(|run| run.first);
        for record in logs.dropped.read_from(logs.dropped.first_index())? {
            let Ok((index, bytes)) = record else { continue };
            let length = bytes.len();
            if let Some(Record::Batch(batch)) = record::read(bytes)
                && let Ok(header) = audit_ledger::header(&batch)
                // What a crash left in both logs is whole in the other one.
                && first.is_none_or(|first| header.fields.batch < first)
            {
                found.events_before = match logs.dropped_runs.is_empty() {
                    true => header.fields.events_before,
                    false => found.events_before,
                };
                add(
                    &mut logs.dropped_runs,
                    header.fields.batch,
                    index,
                    length,
                    now,
                );
            }
        }
        found.end = logs.last.as_ref().map(|last| last.end.clone());
        found.numbers = logs.first().zip(logs.runs.back().map(|run| run.last));
        Ok((logs, found))
    }

    fn meet(&mut self, index: u64, bytes: Vec<u8>, found: &mut Found) {
        let (length, is_mark) = (bytes.len(), record::is_mark(&bytes).then(|| bytes.clone()));
        let record = record::read(bytes);
        match &record {
            Some(Record::Part(batch)) => {
                if let Ok(header) = audit_ledger::header(batch) {
                    self.parts.push((index, length, header));
                }
                return;
            }
            Some(Record::Void) => {
                let parts = std::mem::take(&mut self.parts);
                self.void.extend(parts.into_iter().map(|(index, ..)| index));
                return;
            }
            _ => {}
        }
        for (index, length, header) in std::mem::take(&mut self.parts) {
            self.count(index, length, &header, found);
        }
        match record {
            Some(Record::Batch(batch)) => {
                if let Ok(header) = audit_ledger::header(&batch) {
                    self.count(index, length, &header, found);
                }
            }
            Some(Record::Mark(state)) => {
                found.state = Some(state);
                self.mark = is_mark.map(|record| (index, record));
            }
            Some(Record::End(end)) => self.last = Some(Last { index, end }),
            Some(Record::Part(_) | Record::Void) => {}
            None => tracing::warn!(index, "the spool has a record of a kind that is not known"),
        }
    }

    fn count(&mut self, index: u64, length: usize, header: &Header, found: &mut Found) {
        if self.runs.is_empty() {
            found.events_before = header.fields.events_before;
        }
        let now = self.disk.now();
        add(&mut self.runs, header.fields.batch, index, length, now);
        self.last = Some(Last {
            index,
            end: End::of(header),
        });
    }

    /// What a crash left of a group that was not written to its end.
    fn drop_parts(&mut self) -> Result<(), WalError> {
        if self.parts.is_empty() {
            return Ok(());
        }
        self.log.append_all(&[&record::void()])?;
        let parts = std::mem::take(&mut self.parts);
        self.void.extend(parts.into_iter().map(|(index, ..)| index));
        Ok(())
    }

    /// All of it, or nothing.
    pub fn append(
        &mut self,
        unkept: &[Batch],
        batches: &[Batch],
        state: Option<&State>,
    ) -> Result<(), WalError> {
        let all = || unkept.iter().chain(batches);
        let encode = match state {
            Some(_) => record::part,
            None => record::batch,
        };
        let mut records: Vec<Vec<u8>> = all().map(encode).collect();
        records.extend(state.map(record::mark));
        if records.is_empty() {
            return Ok(());
        }
        let slices: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        let indexes = self.log.append_all(&slices)?;
        let now = self.disk.now();
        for ((batch, record), index) in all().zip(&records).zip(&indexes) {
            if let Ok(header) = audit_ledger::header(batch) {
                add(
                    &mut self.runs,
                    header.fields.batch,
                    *index,
                    record.len(),
                    now,
                );
                self.last = Some(Last {
                    index: *index,
                    end: End::of(&header),
                });
            }
        }
        if let (Some(_), Some(index), Some(record)) = (state, indexes.last(), records.pop()) {
            self.mark = Some((*index, record));
        }
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        self.log.bytes() + self.dropped.bytes()
    }

    /// Of the last batch.
    pub fn epoch(&self) -> i64 {
        self.last.as_ref().map_or(0, |last| last.end.past.epoch)
    }

    /// Of batches whose events were dropped.
    pub fn header_bytes(&self) -> u64 {
        self.dropped.bytes()
    }

    /// What is to be said where nothing may be dropped.
    pub fn full(&self) -> WalError {
        self.waits("spool.max_bytes is reached, and spool.when_full is `block`")
    }

    /// As [`Logs::full`], where nothing is left to drop.
    pub fn full_of_headers(&self) -> WalError {
        self.waits(
            "spool.max_bytes is reached by the headers of batches whose events were dropped; capture \
             waits until a collector has them",
        )
    }

    fn waits(&self, why: &str) -> WalError {
        WalError::Io {
            path: self.dir.clone(),
            source: io::Error::other(why),
        }
    }

    /// How long the oldest batch is here.
    pub fn oldest(&self) -> Option<Duration> {
        let oldest = self.runs.front();
        oldest.map(|run| self.disk.now().saturating_sub(run.since))
    }

    pub fn first(&self) -> Option<i64> {
        let runs = self.dropped_runs.front().or(self.runs.front());
        runs.map(|run| run.first)
    }

    /// Where it goes on, if this number is missing.
    pub fn behind_hole(&self, number: i64) -> Option<i64> {
        let runs = self.dropped_runs.iter().chain(&self.runs);
        let next = runs.filter(|run| run.last >= number);
        let next = next.map(|run| run.first).min()?;
        (next > number).then_some(next)
    }

    /// Batches that are missing between those that are there.
    pub fn holes(&self) -> Vec<(i64, i64)> {
        let runs = || self.dropped_runs.iter().chain(&self.runs);
        let pairs = runs().zip(runs().skip(1));
        pairs
            .filter(|(run, next)| next.first > run.last + 1)
            .map(|(run, next)| (run.last + 1, next.first - 1))
            .collect()
    }

    /// Removes segments in which every batch is acknowledged, but for what must stay.
    pub fn remove(&mut self, acknowledged: i64) -> Result<(), WalError> {
        let done = |run: &Run| run.last <= acknowledged;
        let open = self.dropped_runs.iter().find(|run| !done(run));
        let through = open.map_or(self.dropped.next_index(), |run| run.index);
        self.dropped.drop_before(through)?;
        let first = self.dropped.first_index();
        self.dropped_runs.retain(|run| run.index >= first);

        let open = self.runs.iter().find(|run| !done(run));
        let through = open.map_or(self.log.next_index(), |run| run.index);
        let last = self.last.as_ref().map_or(through, |last| last.index);
        let mark = self.mark.as_ref().map_or(through, |(index, _)| *index);
        self.log.drop_before(through.min(last).min(mark))?;
        let first = self.log.first_index();
        self.runs.retain(|run| run.index >= first);
        self.void = self.void.split_off(&first);
        Ok(())
    }

    /// Turns the batches of the oldest segment into what is left of them without events, and removes it.
    /// Returns how many events that were of each class, `None` where there is only one segment.
    pub fn drop_oldest(
        &mut self,
        acknowledged: i64,
        without_events: impl Fn(&Batch) -> Batch,
    ) -> Result<Option<BTreeMap<i32, i64>>, WalError> {
        let Some(end) = self.log.segments().nth(1) else {
            return Ok(None);
        };
        // Where the removal failed the last time, its batches are in the other log already.
        let dropped = self.dropped_runs.back().map_or(0, |run| run.last);
        let done = acknowledged.max(dropped);
        let mut counts = BTreeMap::new();
        let mut left = Vec::new();
        for record in self.log.read_from(self.log.first_index())? {
            let Ok((index, bytes)) = record else { continue };
            if index >= end {
                break;
            }
            if self.void.contains(&index) {
                continue;
            }
            let Some(Record::Batch(batch) | Record::Part(batch)) = record::read(bytes) else {
                continue;
            };
            let Ok(header) = audit_ledger::header(&batch) else {
                continue;
            };
            if header.fields.batch <= done {
                continue;
            }
            let mut rest = i64::from(header.fields.event_count);
            for class in &header.fields.classes {
                *counts.entry(class.class).or_default() += class.events;
                rest -= class.events;
            }
            if rest > 0 {
                *counts.entry(0).or_default() += rest;
            }
            left.push((header.fields.batch, record::batch(&without_events(&batch))));
        }
        self.carry_over(end)?;
        let slices: Vec<&[u8]> = left.iter().map(|(_, record)| record.as_slice()).collect();
        let indexes = match slices.is_empty() {
            true => Vec::new(),
            false => self.dropped.append_all(&slices)?,
        };
        let now = self.disk.now();
        for ((number, record), index) in left.iter().zip(indexes) {
            add(&mut self.dropped_runs, *number, index, record.len(), now);
        }
        while let Some(run) = self.runs.front_mut()
            && run.index < end
        {
            let through = left.last().map_or(done, |(number, _)| *number);
            if run.last <= through {
                self.runs.pop_front();
            } else {
                run.first = through + 1;
                run.index = end;
            }
        }
        self.reading = None;
        let removed = self.log.drop_before(end);
        // What was dropped is told, whatever became of its segment; that is tried again.
        if counts.is_empty() {
            removed?;
        }
        Ok(Some(counts))
    }

    /// What must stay, and is only in the segments before `end`.
    fn carry_over(&mut self, end: u64) -> Result<(), WalError> {
        let mut records = Vec::new();
        let mark = self.mark.as_ref().filter(|(index, _)| *index < end);
        records.extend(mark.map(|(_, record)| record.clone()));
        let has_mark = !records.is_empty();
        let last = self.last.as_ref().filter(|last| last.index < end);
        records.extend(last.map(|last| record::end(&last.end)));
        if records.is_empty() {
            return Ok(());
        }
        let slices: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        let indexes = self.log.append_all(&slices)?;
        for (index, record) in indexes.into_iter().zip(records) {
            match (has_mark, self.mark.as_mut(), self.last.as_mut()) {
                (true, Some(mark), _) if mark.1 == record => mark.0 = index,
                (_, _, Some(last)) => last.index = index,
                _ => {}
            }
        }
        Ok(())
    }

    /// The batch of this number, or the first one after it.
    pub fn read(&mut self, number: i64) -> Option<Batch> {
        let of_dropped = self
            .dropped_runs
            .back()
            .is_some_and(|run| run.last >= number);
        let fits =
            |reading: &Reading<D>| reading.of_dropped == of_dropped && reading.next == number;
        // A reader ends where its log ended when it was made.
        for is_new in [false, true] {
            if is_new || !self.reading.as_ref().is_some_and(fits) {
                self.reading = self.begin(number, of_dropped);
            }
            if let Some(batch) = self.read_on(number) {
                return Some(batch);
            }
        }
        None
    }

    fn begin(&self, number: i64, of_dropped: bool) -> Option<Reading<D>> {
        let (log, runs) = match of_dropped {
            true => (&self.dropped, &self.dropped_runs),
            false => (&self.log, &self.runs),
        };
        let run = runs.iter().find(|run| run.last >= number)?;
        match log.read_from(run.index) {
            Ok(records) => Some(Reading {
                of_dropped,
                next: number,
                records,
            }),
            Err(error) => {
                tracing::error!(%error, "the spool cannot be read");
                None
            }
        }
    }

    fn read_on(&mut self, number: i64) -> Option<Batch> {
        let reading = self.reading.as_mut()?;
        for record in reading.records.by_ref() {
            match record {
                Ok((index, _)) if self.void.contains(&index) => {}
                Ok((_, bytes)) => {
                    if let Some(Record::Batch(batch) | Record::Part(batch)) = record::read(bytes)
                        && let Ok(header) = audit_ledger::header(&batch)
                        && header.fields.batch >= number
                    {
                        reading.next = header.fields.batch + 1;
                        return Some(batch);
                    }
                }
                Err(error) => tracing::error!(%error, "a part of the spool cannot be read"),
            }
        }
        None
    }
}
