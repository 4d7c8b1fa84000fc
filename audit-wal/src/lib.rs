//! A crash-safe log of records in segment files: what is on disk after `sync`, and what a crash or
//! a bad disk may take.
//!
//! Frame: length u32, CRC-32C u32 (of index and record), index u64, record; little-endian. Indexes
//! start at 1 and grow by one. A segment file is named by its first index; a new one begins when
//! the next frame does not fit.
//!
//! Invariants: what `sync` returned survives a crash; a frame that does not check out at the end of
//! the last segment was never synced, and is cut off (kept beside it as `.cut`); one elsewhere is
//! damage: it is reported, the rest of its segment is skipped, later segments are served. After a
//! failed write or sync the log is as it was at the last sync.

#![forbid(unsafe_code)]

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

const HEAD: usize = 16;
/// Distance of remembered offsets: a reader skips at most this much to find its index.
const MARK_BYTES: u64 = 256 << 10;

#[derive(Debug, Clone)]
pub struct Options {
    pub segment_bytes: u64,
    pub max_record_bytes: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("a record of {0} bytes is empty or longer than {1}")]
    Size(usize, u32),
}

/// What opening found.
#[derive(Debug, Default)]
pub struct Recovery {
    pub records: u64,
    pub truncated_bytes: u64,
    pub damaged: Option<String>,
}

#[derive(Debug, Clone)]
struct Segment {
    path: Arc<PathBuf>,
    first: u64,
    bytes: u64,
    /// (index, offset) now and then.
    marks: Vec<(u64, u64)>,
}

/// The one writer.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    options: Options,
    segments: Vec<Segment>,
    file: File,
    next: u64,
    /// Length of the last segment and next index as of the last sync.
    synced: (u64, u64),
    frame: Vec<u8>,
}

/// Records up to the end of the moment it was made, with file handles of its own.
pub struct Reader {
    segments: std::vec::IntoIter<Segment>,
    file: Option<io::BufReader<File>>,
    from: u64,
    until: u64,
    max_record_bytes: u32,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> WalError + '_ {
    move |source| WalError::Io {
        path: path.to_path_buf(),
        source,
    }
}

fn checksum(index: u64, record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&index.to_le_bytes()), record)
}

/// The next frame; `None` at the end or where nothing valid follows.
fn read_frame(file: &mut impl io::Read, max: u32) -> io::Result<Option<(u64, Vec<u8>)>> {
    let mut head = [0u8; HEAD];
    let ended = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Ok(None),
        _ => Err(error),
    };
    if let Err(error) = file.read_exact(&mut head) {
        return ended(error);
    }
    let (length, rest) = head.split_at(4);
    let (sum, index) = rest.split_at(4);
    let length = u32::from_le_bytes(length.try_into().unwrap_or_default());
    let sum = u32::from_le_bytes(sum.try_into().unwrap_or_default());
    let index = u64::from_le_bytes(index.try_into().unwrap_or_default());
    if length == 0 || length > max {
        return Ok(None);
    }
    let mut record = vec![0; length as usize];
    if let Err(error) = file.read_exact(&mut record) {
        return ended(error);
    }
    Ok((checksum(index, &record) == sum).then_some((index, record)))
}

impl Log {
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Recovery), WalError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let mut names: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(dir).map_err(at(dir))? {
            let path = entry.map_err(at(dir))?.path();
            let first = path
                .file_stem()
                .and_then(|s| u64::from_str_radix(s.to_str()?, 16).ok());
            if let (Some(first), true) = (first, path.extension().is_some_and(|e| e == "seg")) {
                names.push((first, path));
            }
        }
        names.sort();
        let mut recovery = Recovery::default();
        let mut segments = Vec::new();
        let mut next = names.first().map_or(1, |(first, _)| *first);
        let count = names.len();
        for (at_index, (first, path)) in names.into_iter().enumerate() {
            next = first;
            let last = at_index + 1 == count;
            let segment = scan(path, first, &mut next, last, &options, &mut recovery)?;
            segments.push(segment);
        }
        let mut log = Self {
            dir: dir.to_path_buf(),
            file: File::open(dir).map_err(at(dir))?,
            options,
            segments,
            next,
            synced: (0, next),
            frame: Vec::new(),
        };
        match log.segments.last() {
            Some(segment) => {
                let path = segment.path.clone();
                log.file = File::options()
                    .write(true)
                    .open(&*path)
                    .map_err(at(&path))?;
                log.synced = (segment.bytes, next);
            }
            None => log.roll()?,
        }
        Ok((log, recovery))
    }

    fn roll(&mut self) -> Result<(), WalError> {
        let path = self.dir.join(format!("{:016x}.seg", self.next));
        // A segment left empty by a crash at this very point has the same name.
        let file = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&path);
        self.file = file.map_err(at(&path))?;
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(at(&self.dir))?;
        self.segments.push(Segment {
            path: Arc::new(path),
            first: self.next,
            bytes: 0,
            marks: Vec::new(),
        });
        self.synced = (0, self.next);
        Ok(())
    }

    /// Writes a record; durable only after `sync`. After an error nothing since the last sync is kept.
    pub fn append(&mut self, record: &[u8]) -> Result<u64, WalError> {
        let max = self.options.max_record_bytes;
        let length = u32::try_from(record.len())
            .ok()
            .filter(|l| (1..=max).contains(l));
        let length = length.ok_or(WalError::Size(record.len(), max))?;
        let bytes = self.segments.last().map_or(0, |s| s.bytes);
        if bytes > 0 && bytes + (HEAD + record.len()) as u64 > self.options.segment_bytes {
            self.sync()?;
            self.roll()?;
        }
        self.frame.clear();
        self.frame.extend_from_slice(&length.to_le_bytes());
        self.frame
            .extend_from_slice(&checksum(self.next, record).to_le_bytes());
        self.frame.extend_from_slice(&self.next.to_le_bytes());
        self.frame.extend_from_slice(record);
        let Some(segment) = self.segments.last_mut() else {
            return Err(WalError::Size(0, 0));
        };
        if let Err(source) = self.file.write_all_at(&self.frame, segment.bytes) {
            let path = segment.path.to_path_buf();
            self.roll_back();
            return Err(WalError::Io { path, source });
        }
        segment.mark(self.next, segment.bytes);
        segment.bytes += self.frame.len() as u64;
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Everything appended is durable; the last index.
    pub fn sync(&mut self) -> Result<u64, WalError> {
        if let Err(source) = self.file.sync_data() {
            let path = self
                .segments
                .last()
                .map(|s| s.path.to_path_buf())
                .unwrap_or_default();
            self.roll_back();
            return Err(WalError::Io { path, source });
        }
        self.synced = (self.segments.last().map_or(0, |s| s.bytes), self.next);
        Ok(self.next - 1)
    }

    fn roll_back(&mut self) {
        let (bytes, next) = self.synced;
        if let Some(segment) = self.segments.last_mut() {
            segment.bytes = bytes;
            segment.marks.retain(|(index, _)| *index < next);
        }
        self.next = next;
        if let Err(error) = self.file.set_len(bytes) {
            // Harmless: the next append overwrites it, and indexes tell old from new.
            tracing::warn!(%error, "unfinished write stays in the log");
        }
    }

    pub fn first_index(&self) -> u64 {
        self.segments.first().map_or(self.next, |s| s.first)
    }

    pub fn next_index(&self) -> u64 {
        self.next
    }

    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// Records from `index` on, to the end of now.
    pub fn read_from(&self, index: u64) -> Result<Reader, WalError> {
        let skip = self
            .segments
            .partition_point(|s| s.first <= index)
            .saturating_sub(1);
        let segments: Vec<Segment> = self.segments.get(skip..).unwrap_or_default().to_vec();
        Ok(Reader {
            segments: segments.into_iter(),
            file: None,
            from: index,
            until: self.next,
            max_record_bytes: self.options.max_record_bytes,
        })
    }

    /// Deletes segments of which every record is before `index`; the last one stays.
    pub fn drop_before(&mut self, index: u64) -> Result<(), WalError> {
        while let [first, second, ..] = &self.segments[..]
            && second.first <= index
        {
            fs::remove_file(&*first.path).map_err(at(&first.path))?;
            self.segments.remove(0);
        }
        Ok(())
    }
}

impl Segment {
    fn mark(&mut self, index: u64, offset: u64) {
        if self
            .marks
            .last()
            .is_none_or(|(_, last)| offset - last >= MARK_BYTES)
        {
            self.marks.push((index, offset));
        }
    }
}

/// Checks a segment's frames and cuts what was never synced.
fn scan(
    path: PathBuf,
    first: u64,
    next: &mut u64,
    last: bool,
    options: &Options,
    recovery: &mut Recovery,
) -> Result<Segment, WalError> {
    let mut segment = Segment {
        path: Arc::new(path.clone()),
        first,
        bytes: 0,
        marks: Vec::new(),
    };
    let mut file = io::BufReader::new(File::open(&path).map_err(at(&path))?);
    while let Some((index, record)) =
        read_frame(&mut file, options.max_record_bytes).map_err(at(&path))?
    {
        if index != *next {
            break;
        }
        segment.mark(index, segment.bytes);
        segment.bytes += (HEAD + record.len()) as u64;
        recovery.records += 1;
        *next += 1;
    }
    let length = fs::metadata(&path).map_err(at(&path))?.len();
    let rest = length - segment.bytes.min(length);
    if rest == 0 {
        return Ok(segment);
    }
    if last {
        let mut cut = Vec::new();
        file.seek(SeekFrom::Start(segment.bytes))
            .map_err(at(&path))?;
        file.read_to_end(&mut cut).map_err(at(&path))?;
        fs::write(path.with_extension("cut"), cut).map_err(at(&path))?;
        let writable = File::options().write(true).open(&path).map_err(at(&path))?;
        writable
            .set_len(segment.bytes)
            .and_then(|()| writable.sync_all())
            .map_err(at(&path))?;
        recovery.truncated_bytes += rest;
    } else {
        recovery.damaged = Some(format!(
            "{}: no valid record at byte {}; {rest} bytes after it are skipped",
            path.display(),
            segment.bytes
        ));
    }
    Ok(segment)
}

impl Reader {
    fn open(&mut self, segment: &Segment) -> Result<(), WalError> {
        let mut file = File::open(&*segment.path).map_err(at(&segment.path))?;
        let mark = segment
            .marks
            .partition_point(|(index, _)| *index <= self.from);
        let offset = mark.checked_sub(1).map_or(0, |mark| segment.marks[mark].1);
        file.seek(SeekFrom::Start(offset))
            .map_err(at(&segment.path))?;
        self.file = Some(io::BufReader::with_capacity(64 << 10, file));
        Ok(())
    }
}

impl Iterator for Reader {
    type Item = Result<(u64, Vec<u8>), WalError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(file) = &mut self.file else {
                let segment = self.segments.next()?;
                match self.open(&segment) {
                    Ok(()) => continue,
                    Err(error) => return Some(Err(error)),
                }
            };
            match read_frame(file, self.max_record_bytes) {
                Ok(Some((index, _))) if index >= self.until => return None,
                Ok(Some((index, record))) if index >= self.from => {
                    return Some(Ok((index, record)));
                }
                Ok(Some(_)) => {}
                Ok(None) => self.file = None,
                Err(source) => {
                    self.file = None;
                    return Some(Err(WalError::Io {
                        path: PathBuf::new(),
                        source,
                    }));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options = Options {
        segment_bytes: 1000,
        max_record_bytes: 500,
    };

    fn record(index: u64) -> Vec<u8> {
        format!("record {index} {}", "x".repeat(index as usize % 90)).into_bytes()
    }

    fn all(log: &Log, from: u64) -> Vec<(u64, Vec<u8>)> {
        log.read_from(from)
            .expect("reader")
            .collect::<Result<_, _>>()
            .expect("reads")
    }

    #[test]
    fn records_survive_reopening_and_whole_segments_are_dropped() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut log, _) = Log::open(dir.path(), OPTIONS).expect("opens");
        for index in 1..=100 {
            assert_eq!(log.append(&record(index)).expect("append"), index);
        }
        assert_eq!(log.sync().expect("sync"), 100);
        drop(log);
        let (mut log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
        assert_eq!((recovery.records, recovery.truncated_bytes), (100, 0));
        assert_eq!(all(&log, 1).len(), 100);
        assert_eq!(all(&log, 77)[0], (77, record(77)));
        log.drop_before(50).expect("drops");
        let first = log.first_index();
        assert!(first > 1 && first <= 50, "{first}");
        assert_eq!(log.append(&record(101)).expect("append"), 101);
        log.sync().expect("sync");
        assert_eq!(all(&log, 0).first().map(|r| r.0), Some(first));
        assert_eq!(all(&log, 101), [(101, record(101))]);
        assert!(matches!(
            log.append(&[0; 501]),
            Err(WalError::Size(501, 500))
        ));
    }

    #[test]
    fn any_cut_of_the_end_loses_only_what_was_cut() {
        let dir = tempfile::tempdir().expect("tempdir");
        let big = Options {
            segment_bytes: 1 << 20,
            max_record_bytes: 500,
        };
        let (mut log, _) = Log::open(dir.path(), big.clone()).expect("opens");
        for index in 1..=5 {
            log.append(&record(index)).expect("append");
        }
        log.sync().expect("sync");
        let path = dir.path().join(format!("{:016x}.seg", 1));
        let whole = fs::read(&path).expect("read");
        let fifth = whole.len() - HEAD - record(5).len();
        for length in fifth..whole.len() {
            fs::write(&path, &whole[..length]).expect("write");
            let (mut log, recovery) = Log::open(dir.path(), big.clone()).expect("opens");
            assert_eq!(recovery.truncated_bytes, (length - fifth) as u64);
            assert_eq!(all(&log, 1).len(), 4);
            assert_eq!(log.append(b"again").expect("append"), 5);
            assert_eq!(all(&log, 5), [(5, b"again".to_vec())]);
        }
    }

    #[test]
    fn damage_in_the_middle_is_reported_and_later_segments_are_served() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut log, _) = Log::open(dir.path(), OPTIONS).expect("opens");
        for index in 1..=60 {
            log.append(&record(index)).expect("append");
        }
        log.sync().expect("sync");
        let second = log.segments[1].clone();
        let file = File::options()
            .write(true)
            .open(&*second.path)
            .expect("open");
        file.write_all_at(&[0xff; 8], 4).expect("write");
        let (log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
        let damage = recovery.damaged.expect("damage");
        assert!(damage.contains("skipped"), "{damage}");
        let found: Vec<u64> = all(&log, 1).into_iter().map(|r| r.0).collect();
        assert_eq!(found.first(), Some(&1));
        assert_eq!(found.last(), Some(&60));
        assert!(!found.contains(&second.first));
    }
}
