//! The one writer of a log: when is a record durable, and what remains after a failure?

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use crate::{
    Options, Recovery, WalError,
    disk::{Disk, DiskFile, System},
    frame::{self, Frame, Salt},
    header, lock,
    reader::Reader,
    segment::{self, Bounds, Segment},
};

/// Segments, and what is appended but not yet synced.
#[derive(Debug)]
pub struct Log<D: Disk = System> {
    disk: D,
    dir: PathBuf,
    options: Options,
    segments: Vec<Segment>,
    /// The last segment and its salt; `None` after a failure, until a new one is made.
    file: Option<(D::File, Salt)>,
    /// Bytes allocated in it.
    room: u64,
    /// The greatest durable index.
    durable: u64,
    /// Frames of the records after it: sizes and bytes.
    sizes: Vec<u64>,
    pending: Vec<u8>,
    removal_unsynced: bool,
    _lock: Option<File>,
}

impl Log {
    /// Opens or makes the log in `dir`, repairs its end, and keeps other writers out.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Recovery), WalError> {
        System.create_dir(dir).map_err(WalError::at(dir))?;
        let lock = lock::take(dir)?;
        let (mut log, recovery) = Log::open_on(System, dir, options)?;
        log._lock = Some(lock);
        Ok((log, recovery))
    }
}

impl<D: Disk> Log<D> {
    /// As [`Log::open`], on another disk and without the lock.
    pub fn open_on(disk: D, dir: &Path, options: Options) -> Result<(Self, Recovery), WalError> {
        disk.create_dir(dir).map_err(WalError::at(dir))?;
        let firsts = segment::list(&disk, dir)?;
        let mut recovery = Recovery::default();
        let mut log = Self {
            disk,
            dir: dir.to_owned(),
            options,
            segments: Vec::new(),
            file: None,
            room: 0,
            durable: 0,
            sizes: Vec::new(),
            pending: Vec::new(),
            removal_unsynced: false,
            _lock: None,
        };
        for (at, first) in firsts.iter().enumerate() {
            let limit = firsts.get(at + 1).copied();
            let bounds = Bounds {
                limit,
                max_record_bytes: log.options.max_record_bytes,
            };
            let scan = segment::scan(&log.disk, dir, *first, bounds)?;
            recovery.records += scan.records;
            recovery.damaged.extend(scan.damage);
            log.durable = scan.next - 1;
            log.segments.push(scan.segment);
            if limit.is_none() {
                log.take_up(&scan.unproven, scan.tail, &mut recovery)?;
            }
        }
        Ok((log, recovery))
    }

    /// Goes on in the last segment, behind its last frame.
    fn take_up(
        &mut self,
        (offset, unproven): &(u64, Vec<u8>),
        tail: Option<Vec<u8>>,
        recovery: &mut Recovery,
    ) -> Result<(), WalError> {
        let Some(segment) = self.segments.last() else {
            return Ok(());
        };
        // A process that was killed may not have made its name durable.
        self.disk
            .sync_dir(&self.dir)
            .map_err(WalError::at(&self.dir))?;
        let Some(salt) = segment.salt else {
            // It takes no record: the next one begins another segment, or this one anew.
            return Ok(());
        };
        let path = segment.path.clone();
        let file = self.disk.open(&path, true).map_err(WalError::at(&path))?;
        if let Some(bytes) = tail {
            let kept = path.with_extension("cut");
            // For whoever wants to look; on a full disk there is no room for it, and no need.
            let kept = self
                .disk
                .create(&kept)
                .and_then(|cut| cut.write_at(&bytes, 0));
            if let Err(error) = kept {
                tracing::warn!(%error, "the unfinished write that is cut off is not kept");
            }
            file.truncate(segment.end()).map_err(WalError::at(&path))?;
            recovery.truncated_bytes += bytes.len() as u64;
        }
        // Where the disk is full, it goes on in what is there and leaves the rest to others.
        let _ = file.allocate(self.options.segment_bytes);
        // What a killed process wrote may be in memory only; and after a failed sync the kernel takes
        // it for written, so it is written again.
        file.write_at(&header::write(salt), 0)
            .and_then(|()| file.write_at(unproven, *offset))
            .map_err(WalError::at(&path))?;
        file.sync().map_err(WalError::at(&path))?;
        self.room = file.size_bytes().map_err(WalError::at(&path))?;
        self.file = Some((file, salt));
        Ok(())
    }

    /// Takes a record in; durable only after [`Log::sync`]. An error takes in nothing, and keeps what
    /// was taken in before.
    pub fn append(&mut self, record: &[u8]) -> Result<u64, WalError> {
        let max = self.options.max_record_bytes;
        if record.is_empty() || record.len() > max as usize {
            return Err(WalError::Size(record.len(), max));
        }
        let index = self.next_index();
        let before = self.pending.len();
        let frame = Frame {
            index,
            durable: self.durable,
            record,
        };
        frame::write(frame, &mut self.pending);
        self.sizes.push((self.pending.len() - before) as u64);
        Ok(index)
    }

    /// Makes everything appended durable, by one write and one sync. Returns the last index. After an
    /// error nothing since the last success is in the log.
    pub fn sync(&mut self) -> Result<u64, WalError> {
        let outcome = self.commit();
        self.pending.clear();
        self.sizes.clear();
        outcome.map(|()| self.durable)
    }

    /// Group commit: all of `records` are durable, or none of them is in the log. Returns their indexes.
    pub fn append_all(&mut self, records: &[&[u8]]) -> Result<Vec<u64>, WalError> {
        let indexes: Result<Vec<u64>, WalError> = records.iter().map(|r| self.append(r)).collect();
        if indexes.is_err() {
            self.pending.clear();
            self.sizes.clear();
        }
        let indexes = indexes?;
        self.sync()?;
        Ok(indexes)
    }

    fn commit(&mut self) -> Result<(), WalError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        // A group is never split, so that it is durable as a whole or not at all.
        let bytes = self.pending.len() as u64;
        let end = self.segments.last().map_or(0, Segment::end);
        if self.file.is_none() || end + bytes > self.room {
            self.roll(bytes)?;
        }
        let (Some((file, salt)), Some(segment)) = (&self.file, self.segments.last_mut()) else {
            return Ok(());
        };
        let mut at = 0;
        for size in &self.sizes {
            frame::stamp(&mut self.pending[at..], *salt);
            at += *size as usize;
        }
        let written = file
            .write_at(&self.pending, segment.end())
            .and_then(|()| file.sync());
        if let Err(source) = written {
            // Unknown what is on disk: never write behind it.
            self.file = None;
            return Err(WalError::at(&segment.path)(source));
        }
        if let Some(run) = segment.last_run() {
            for size in &self.sizes {
                self.durable += 1;
                run.add(self.durable, *size);
            }
        }
        Ok(())
    }

    /// Begins a segment that takes at least `least` bytes.
    fn roll(&mut self, least: u64) -> Result<(), WalError> {
        // From here on a segment of the new name may be on disk, and ends the one before it.
        let full = self.file.take();
        let salt = self.disk.random().map_err(WalError::at(&self.dir))?;
        let segment = Segment::new(&self.dir, self.durable + 1, Some(salt));
        let room = self.options.segment_bytes.max(segment.end() + least);
        let file = self
            .make(&segment.path, room, salt)
            .map_err(WalError::at(&segment.path))?;
        if let (Some((full, _)), Some(last)) = (full, self.segments.last()) {
            // Only space: zeros behind the last frame say the same.
            let _ = full.truncate(last.end());
        }
        if self
            .segments
            .last()
            .is_some_and(|last| last.first == segment.first)
        {
            self.segments.pop();
        }
        self.segments.push(segment);
        self.file = Some((file, salt));
        self.room = room;
        Ok(())
    }

    fn make(&self, path: &Path, room: u64, salt: Salt) -> std::io::Result<D::File> {
        let file = self.disk.create(path)?;
        file.allocate(room)?;
        file.write_at(&header::write(salt), 0)?;
        file.sync()?;
        self.disk.sync_dir(&self.dir)?;
        Ok(file)
    }

    pub fn first_index(&self) -> u64 {
        self.segments.first().map_or(1, |s| s.first)
    }

    /// The index that the next appended record gets.
    pub fn next_index(&self) -> u64 {
        self.durable + self.sizes.len() as u64 + 1
    }

    /// Bytes of durable frames, and of the headers of their segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(Segment::end).sum()
    }

    /// Of each segment, oldest first, the index of its first record.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = u64> {
        self.segments.iter().map(|segment| segment.first)
    }

    /// Durable records from `index` on, to the end of now.
    pub fn read_from(&self, index: u64) -> Result<Reader<D>, WalError> {
        let skip = self.segments.partition_point(|s| s.first <= index);
        let segments = &self.segments[skip.saturating_sub(1)..];
        Ok(Reader::new(
            self.disk.clone(),
            segments.to_vec(),
            index,
            self.options.max_record_bytes,
        ))
    }

    /// Deletes segments of which every record is before `index`; the last one stays.
    pub fn drop_before(&mut self, index: u64) -> Result<(), WalError> {
        while let [first, second, ..] = &self.segments[..]
            && second.first <= index
        {
            let path = first.path.clone();
            self.sync_removal()?;
            self.disk.remove(&path).map_err(WalError::at(&path))?;
            self.removal_unsynced = true;
            self.segments.remove(0);
        }
        self.sync_removal()
    }

    /// One after the other: after a crash, a segment that is back must not have lost its successor.
    fn sync_removal(&mut self) -> Result<(), WalError> {
        if self.removal_unsynced {
            self.disk
                .sync_dir(&self.dir)
                .map_err(WalError::at(&self.dir))?;
            self.removal_unsynced = false;
        }
        Ok(())
    }
}
