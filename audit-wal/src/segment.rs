//! Which frames of a segment file belong to the log, and which bytes do not?

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Damage, WalError,
    disk::Disk,
    frame::{self, Salt},
    header,
};

/// Distance of remembered offsets: a reader skips at most this much to find its index.
const MARK_BYTES: u64 = 256 << 10;
const EXTENSION: &str = "seg";
/// No log gets as far. A file with a greater number for a name is none of its segments, and nothing
/// that is added to a smaller one overflows.
const MAX_FIRST: u64 = 1 << 62;

/// What is known of a segment file.
#[derive(Debug, Clone)]
pub struct Segment {
    pub path: Arc<PathBuf>,
    pub first: u64,
    /// Without one it holds no record that can be told from other bytes, and takes none.
    pub salt: Option<Salt>,
    /// Where its frames are. More than one only where damage lies between them.
    pub runs: Vec<Run>,
}

/// Frames without a gap.
#[derive(Debug, Clone)]
pub struct Run {
    pub end: u64,
    /// (index, offset) of its first frame, and of others now and then.
    pub marks: Vec<(u64, u64)>,
}

impl Run {
    fn new(index: u64, offset: u64) -> Self {
        Self {
            end: offset,
            marks: vec![(index, offset)],
        }
    }

    pub fn add(&mut self, index: u64, bytes: u64) {
        let marked = self.marks.last().map_or(0, |(_, offset)| *offset);
        if self.end - marked >= MARK_BYTES {
            self.marks.push((index, self.end));
        }
        self.end += bytes;
    }

    /// An offset at or shortly before the frame of `index`.
    pub fn offset_of(&self, index: u64) -> u64 {
        let after = self.marks.partition_point(|(marked, _)| *marked <= index);
        let mark = self.marks.get(after.saturating_sub(1));
        mark.map_or(self.end, |(_, offset)| *offset)
    }
}

impl Segment {
    pub fn new(dir: &Path, first: u64, salt: Option<Salt>) -> Self {
        Self {
            path: Arc::new(path(dir, first)),
            first,
            salt,
            runs: vec![Run::new(first, header::BYTES as u64)],
        }
    }

    /// Where the next frame goes.
    pub fn end(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.end)
    }

    pub fn last_run(&mut self) -> Option<&mut Run> {
        self.runs.last_mut()
    }
}

fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:016x}.{EXTENSION}"))
}

/// The segments in `dir`, in order of their first index.
pub fn list<D: Disk>(disk: &D, dir: &Path) -> Result<Vec<u64>, WalError> {
    let paths = disk.list(dir).map_err(WalError::at(dir))?;
    let mut firsts: Vec<u64> = paths
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == EXTENSION))
        .filter_map(|found| {
            let first = u64::from_str_radix(found.file_stem()?.to_str()?, 16).ok()?;
            // Another spelling of the number is another file.
            ((1..=MAX_FIRST).contains(&first) && path(dir, first) == *found).then_some(first)
        })
        .collect();
    firsts.sort_unstable();
    Ok(firsts)
}

/// What a scan found.
pub struct Scan {
    pub segment: Segment,
    pub records: u64,
    /// The index after the last record.
    pub next: u64,
    pub damage: Vec<Damage>,
    /// The last frames, of which no later one says that they were durable: offset and content.
    pub unproven: (u64, Vec<u8>),
    /// What is behind the last frame, if it is not zeros.
    pub tail: Option<Vec<u8>>,
}

/// What a scan knows before it begins.
#[derive(Clone, Copy)]
pub struct Bounds {
    /// The first index of the next segment: it ends this one, and proves that all before it were
    /// durable.
    pub limit: Option<u64>,
    pub max_record_bytes: u32,
}

/// Reads the whole segment of `dir` that begins with `first`.
pub fn scan<D: Disk>(disk: &D, dir: &Path, first: u64, bounds: Bounds) -> Result<Scan, WalError> {
    let path = path(dir, first);
    let bytes = disk.read(&path).map_err(WalError::at(&path))?;
    let salt = header::read(&bytes);
    let mut scan = Scan {
        segment: Segment::new(dir, first, salt),
        records: 0,
        next: first,
        damage: Vec::new(),
        unproven: (0, Vec::new()),
        tail: None,
    };
    match salt {
        Some(salt) => scan.frames(&bytes, salt, bounds),
        // Frames are only written behind a durable header: of at least one record it is gone.
        None if bytes.iter().skip(header::BYTES).any(|byte| *byte != 0) => {
            let next = bounds.limit.unwrap_or(first + 1);
            scan.skip(0, next - 1);
            scan.next = next;
        }
        None => scan.end(0, bounds),
    }
    Ok(scan)
}

/// Where a frame is missing, until a later one proves that it was durable; and what had been found.
struct Doubtful {
    at: usize,
    next: u64,
    records: u64,
    runs: usize,
    damage: usize,
    unproven: VecDeque<(u64, usize)>,
}

impl Scan {
    fn frames(&mut self, bytes: &[u8], salt: Salt, bounds: Bounds) {
        let mut unproven = VecDeque::new();
        let mut doubtful: Option<Doubtful> = None;
        let within = |index: u64| bounds.limit.is_none_or(|limit| index < limit);
        let mut at = header::BYTES;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            match frame::read(rest, salt, bounds.max_record_bytes) {
                Some(frame) if frame.index == self.next && within(frame.index) => {
                    let size = frame::size(frame.record.len());
                    doubtful = doubtful.filter(|gap| frame.durable < gap.next);
                    while unproven
                        .front()
                        .is_some_and(|(index, _)| *index <= frame.durable)
                    {
                        unproven.pop_front();
                    }
                    unproven.push_back((frame.index, at));
                    self.accept(frame.index, size as u64);
                    at += size;
                }
                _ => {
                    let Some((found, index)) = behind(bytes, at, self.next, salt, bounds) else {
                        break;
                    };
                    let unproven = std::mem::take(&mut unproven);
                    if doubtful.is_none() && bounds.limit.is_none() {
                        doubtful = Some(self.doubtful(at, unproven));
                    }
                    if index > self.next {
                        self.skip(at as u64, index - 1);
                    }
                    self.segment.runs.push(Run::new(index, found as u64));
                    self.next = index;
                    at = found;
                }
            }
        }
        if let Some(gap) = doubtful {
            self.back_to(&gap);
            (at, unproven) = (gap.at, gap.unproven);
        }
        self.end(at, bounds);
        let tail = bytes.get(at..).unwrap_or_default();
        if tail.iter().any(|byte| *byte != 0) {
            self.tail = Some(tail.to_vec());
        }
        let from = unproven.front().map_or(at, |(_, offset)| *offset);
        let last = bytes.get(from..at.min(bytes.len())).unwrap_or_default();
        self.unproven = (from as u64, last.to_vec());
    }

    fn doubtful(&self, at: usize, unproven: VecDeque<(u64, usize)>) -> Doubtful {
        Doubtful {
            at,
            next: self.next,
            records: self.records,
            runs: self.segment.runs.len(),
            damage: self.damage.len(),
            unproven,
        }
    }

    /// Nothing behind the gap was written later than the sync of what is missing.
    fn back_to(&mut self, gap: &Doubtful) {
        self.next = gap.next;
        self.records = gap.records;
        self.segment.runs.truncate(gap.runs);
        self.damage.truncate(gap.damage);
    }

    /// No frame is found at `at` or behind it.
    fn end(&mut self, at: usize, bounds: Bounds) {
        if let Some(limit) = bounds.limit
            && self.next < limit
        {
            self.skip(at as u64, limit - 1);
            self.next = limit;
        }
    }

    fn accept(&mut self, index: u64, bytes: u64) {
        if let Some(run) = self.segment.last_run() {
            run.add(index, bytes);
        }
        self.records += 1;
        self.next = index + 1;
    }

    fn skip(&mut self, offset: u64, last_index: u64) {
        self.damage.push(Damage {
            path: self.segment.path.to_path_buf(),
            offset,
            first_index: self.next,
            last_index,
        });
    }
}

/// The next frame behind `at`, where that of `missing` should be.
fn behind(
    bytes: &[u8],
    at: usize,
    missing: u64,
    salt: Salt,
    bounds: Bounds,
) -> Option<(usize, u64)> {
    let limit = bounds.limit.unwrap_or(u64::MAX);
    let plausible = |found: usize, index: u64, durable: u64| {
        // The frames of those between were between.
        let most = ((found - at) / frame::size(1)) as u64;
        (missing..limit.min(missing.saturating_add(most + 1))).contains(&index) && durable < index
    };
    frame::find(bytes, at + 1, salt, bounds.max_record_bytes, plausible)
        .map(|(found, frame)| (found, frame.index))
}
