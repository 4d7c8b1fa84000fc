//! What had a killed agent taken from the kernel and not delivered? A file of sealed batches, each
//! entry with the numbers of the kernel's records up to which the batches so far tell everything.
//!
//! An entry is written before its batches are sent and before their records' room in the rings is
//! given back. So after a kill, whatever moment it came at, each record is either in an entry (its
//! batches are sent again, and the collector drops those that it has) or still in a ring, with a
//! number above the last entry's. Only a process's death is meant: nothing is synced to disk, since
//! the rings are gone with the kernel anyway.
//!
//! Invariants: one writer (a lock on the file); an entry counts when it is whole; the file stays below
//! [`SLACK_BYTES`] and three times the batches that wait.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{File, OpenOptions},
    io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use audit_proto::{Message as _, v1::Batch};
use serde::{Deserialize, Serialize};

const NAME: &str = "unsent";
/// The file is written anew with what waits when it is this much, and twice what waited then.
const SLACK_BYTES: u64 = 4 << 20;
/// Length and checksum.
const HEAD_BYTES: usize = 8;
/// No entry is longer: a round's events, and the state.
const MAX_ENTRY_BYTES: u32 = 256 << 20;
/// A file that is written anew has so much of what waits in an entry, and at least one batch.
const PART_BYTES: usize = 4 << 20;

/// Up to where the batches tell everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub boot_id: String,
    pub sets: Vec<SetState>,
    #[serde(default)]
    pub told: Told,
}

/// What of that which is counted in the kernel, and not recorded, was told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Filter rules of each bank, in the order of their bits, and how much each had hidden.
    pub rules: Vec<Vec<(String, u64)>>,
}

/// Of one set of kernel programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetState {
    pub generation: u32,
    /// The last number of each class, in the order of [`audit_common::class::ALL`], on each CPU.
    pub numbers: Vec<Vec<u64>>,
    /// Runs of each program that the kernel skipped, as far as told.
    pub skipped: BTreeMap<String, u64>,
    /// Of each class, what filters had hidden and budgets shed, as far as told.
    #[serde(default)]
    pub left_out: Vec<[u64; 2]>,
}

/// Where the source stands.
#[derive(Debug)]
pub struct Mark {
    /// Ascending.
    pub number: u64,
    pub state: State,
}

/// Keeps batches, on the thread that seals them, and says so to the one that reads.
#[derive(Debug)]
pub struct Keeper {
    unsent: Unsent,
    /// Number of the last mark that is kept.
    kept: Arc<AtomicU64>,
    failing: bool,
}

impl Keeper {
    /// And where the number of the last mark that it kept is found.
    pub fn new(unsent: Unsent) -> (Self, Arc<AtomicU64>) {
        let kept = Arc::default();
        let keeper = Self {
            unsent,
            kept: Arc::clone(&kept),
            failing: false,
        };
        (keeper, kept)
    }

    /// `batches` are those since the last mark. What cannot be written goes on all the same: only an
    /// agent that is killed would miss it, and the next one says so.
    pub fn keep(&mut self, mark: &Mark, batches: &[Batch], waiting: &dyn Fn() -> Vec<Batch>) {
        let written = self.unsent.append(&mark.state, batches, waiting);
        if let (Err(error), false) = (&written, self.failing) {
            tracing::error!(%error, path = %self.unsent.path.display(), "what is not delivered would be lost if the agent were killed now");
        }
        self.failing = written.is_err();
        self.kept.store(mark.number, Ordering::Release);
    }
}

/// The open file.
#[derive(Debug)]
pub struct Unsent {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Written anew beyond it.
    limit: u64,
    /// The file does not say what it should; it is to be written anew.
    broken: bool,
}

/// What a former agent has left.
#[derive(Debug, Default)]
pub struct Left {
    /// None when there is no entry.
    pub state: Option<State>,
    pub batches: Vec<Batch>,
}

#[derive(Debug, thiserror::Error)]
#[error("{}: {source}; {advice}", path.display())]
pub struct UnsentError {
    path: PathBuf,
    advice: &'static str,
    #[source]
    source: io::Error,
}

impl Unsent {
    /// If there is one.
    pub fn find(state_dir: &Path) -> Result<Option<(Self, Left)>, UnsentError> {
        match state_dir.join(NAME).exists() {
            true => Self::open(state_dir).map(Some),
            false => Ok(None),
        }
    }

    pub fn open(state_dir: &Path) -> Result<(Self, Left), UnsentError> {
        let path = state_dir.join(NAME);
        let failed = |source| UnsentError {
            path: path.clone(),
            advice: "capture that outlives the agent needs a state_dir that it can write to",
            source,
        };
        std::fs::create_dir_all(state_dir).map_err(failed)?;
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        lock(&file).map_err(|source| UnsentError {
            path: path.clone(),
            advice: "another agent uses this state_dir; stop it, or set another",
            source,
        })?;
        let (left, bytes) = read(&file).map_err(failed)?;
        // A torn entry is of an agent that was killed before it sent any of it.
        file.set_len(bytes).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        let unsent = Self {
            path,
            file,
            bytes,
            // What was delivered meanwhile is dropped at the first entry.
            limit: if left.batches.is_empty() {
                SLACK_BYTES
            } else {
                0
            },
            broken: false,
        };
        Ok((unsent, left))
    }

    /// Adds an entry. `waiting` are the batches that nobody has acknowledged, those of this entry
    /// left out.
    pub fn append(
        &mut self,
        state: &State,
        batches: &[Batch],
        waiting: &dyn Fn() -> Vec<Batch>,
    ) -> io::Result<()> {
        let entry = encode(state, batches);
        if self.broken || self.bytes + entry.len() as u64 > self.limit {
            return self.renew(state, batches, waiting());
        }
        if let Err(error) = self.file.write_all(&entry) {
            self.break_off();
            return Err(error);
        }
        self.bytes += entry.len() as u64;
        Ok(())
    }

    /// A new file with what waits, in place of this one.
    fn renew(&mut self, state: &State, batches: &[Batch], mut kept: Vec<Batch>) -> io::Result<()> {
        kept.extend_from_slice(batches);
        let temporary = self.path.with_extension("new");
        let renewed = || -> io::Result<(File, u64)> {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(true);
            let mut file = options.mode(0o600).open(&temporary)?;
            lock(&file)?;
            let mut bytes = 0;
            for part in parts(&kept) {
                let entry = encode(state, part);
                file.write_all(&entry)?;
                bytes += entry.len() as u64;
            }
            std::fs::rename(&temporary, &self.path)?;
            Ok((file, bytes))
        };
        match renewed() {
            Ok((file, bytes)) => {
                self.file = file;
                self.bytes = bytes;
                self.limit = SLACK_BYTES + 2 * self.bytes;
                self.broken = false;
                Ok(())
            }
            Err(error) => {
                self.break_off();
                Err(error)
            }
        }
    }

    /// What it held was delivered, or told as lost.
    pub fn empty(mut self) {
        self.break_off();
    }

    /// An old state would have the next agent send again what was sent: better it finds none, and
    /// says that it does not know.
    fn break_off(&mut self) {
        self.broken = true;
        if let Err(error) = self.file.set_len(0).and_then(|()| self.file.rewind()) {
            tracing::error!(%error, path = %self.path.display(), "cannot be emptied");
        }
        self.bytes = 0;
    }
}

fn lock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(io::Error::from)
}

/// As many batches in a row as [`PART_BYTES`] hold, or one; at least one part, for the state.
fn parts(batches: &[Batch]) -> Vec<&[Batch]> {
    let mut parts = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (at, batch) in batches.iter().enumerate() {
        bytes += batch.encoded_len();
        if bytes > PART_BYTES && at > first {
            parts.push(&batches[first..at]);
            (first, bytes) = (at, batch.encoded_len());
        }
    }
    parts.push(&batches[first..]);
    parts
}

/// Length, checksum; length and JSON of the state; length and message of each batch.
fn encode(state: &State, batches: &[Batch]) -> Vec<u8> {
    let state = serde_json::to_vec(state).unwrap_or_default();
    let lengths: usize = batches.iter().map(|batch| 4 + batch.encoded_len()).sum();
    let mut entry = vec![0; HEAD_BYTES];
    entry.reserve(4 + state.len() + lengths);
    entry.extend_from_slice(&(state.len() as u32).to_le_bytes());
    entry.extend_from_slice(&state);
    for batch in batches {
        entry.extend_from_slice(&(batch.encoded_len() as u32).to_le_bytes());
        // A Vec grows as needed, so encoding cannot run out of room.
        batch.encode_raw(&mut entry);
    }
    let body = &entry[HEAD_BYTES..];
    let (length, sum) = (body.len() as u32, crc32c::crc32c(body));
    entry[..4].copy_from_slice(&length.to_le_bytes());
    entry[4..HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
    entry
}

/// Everything up to the first entry that is not whole, and where that begins.
fn read(file: &File) -> io::Result<(Left, u64)> {
    let mut reader = BufReader::new(file);
    let (mut left, mut good) = (Left::default(), 0);
    let mut seen = HashSet::new();
    let mut body = Vec::new();
    while let Some(length) = next_entry(&mut reader, &mut body)? {
        let Some((state, batches)) = decode(&body) else {
            break;
        };
        left.state = Some(state);
        for batch in batches {
            // What waited was written again when the file was.
            let header = batch.header.as_ref();
            let name = header.map(|header| (header.run.clone(), header.batch));
            if seen.insert(name) {
                left.batches.push(batch);
            }
        }
        good += length;
    }
    Ok((left, good))
}

/// The next entry's body; `None` where the file ends or goes wrong.
fn next_entry(reader: &mut impl io::Read, body: &mut Vec<u8>) -> io::Result<Option<u64>> {
    let mut head = [0; HEAD_BYTES];
    let mut have = 0;
    while have < HEAD_BYTES {
        match reader.read(&mut head[have..])? {
            0 => return Ok(None),
            more => have += more,
        }
    }
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&head[at..at + 4]);
        u32::from_le_bytes(word)
    };
    let (length, sum) = (word(0), word(4));
    if length > MAX_ENTRY_BYTES {
        return Ok(None);
    }
    body.clear();
    reader.take(length.into()).read_to_end(body)?;
    let whole = body.len() as u64 == u64::from(length) && crc32c::crc32c(body) == sum;
    Ok(whole.then_some(HEAD_BYTES as u64 + u64::from(length)))
}

fn decode(body: &[u8]) -> Option<(State, Vec<Batch>)> {
    let (state, mut rest) = piece(body)?;
    let state = serde_json::from_slice(state).ok()?;
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let (batch, behind) = piece(rest)?;
        batches.push(Batch::decode(batch).ok()?);
        rest = behind;
    }
    Some((state, batches))
}

fn piece(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_proto::v1::BatchHeader;

    fn batch(number: i64, bytes: usize) -> Batch {
        Batch {
            header: Some(BatchHeader {
                run: "0123456789ab".to_owned(),
                batch: number,
                ..BatchHeader::default()
            }),
            events: vec![7; bytes].into(),
        }
    }

    fn state(number: u64) -> State {
        State {
            boot_id: "b".to_owned(),
            sets: vec![SetState {
                generation: 1,
                numbers: vec![vec![number]],
                skipped: BTreeMap::new(),
                left_out: vec![[1, number]],
            }],
            told: Told {
                rules: vec![vec![("quiet".to_owned(), number)]],
            },
        }
    }

    fn numbers(left: &Left) -> Vec<i64> {
        let headers = left
            .batches
            .iter()
            .filter_map(|batch| batch.header.as_ref());
        headers.map(|header| header.batch).collect()
    }

    #[test]
    fn every_cut_leaves_the_whole_entries() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut unsent, left) = Unsent::open(dir.path()).expect("opens");
        assert!(left.state.is_none() && left.batches.is_empty());
        let mut ends = vec![0];
        for number in 1..=3_u8 {
            let batches = [batch(number.into(), 50)];
            let appended = unsent.append(&state(number.into()), &batches, &Vec::new);
            appended.expect("written");
            ends.push(unsent.bytes);
        }
        drop(unsent);
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).expect("file");
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("cut");
            let (unsent, left) = Unsent::open(dir.path()).expect("opens");
            let entries = ends.iter().filter(|end| **end <= cut as u64).count() - 1;
            assert_eq!(numbers(&left), (1..=entries as i64).collect::<Vec<_>>());
            assert_eq!(left.state, (entries > 0).then(|| state(entries as u64)));
            assert_eq!(unsent.bytes, ends[entries], "cut at {cut}");
        }
    }

    #[test]
    fn it_is_written_anew_with_what_waits_and_stays_bounded() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut unsent, _) = Unsent::open(dir.path()).expect("opens");
        let waiting = || vec![batch(1, 100_000)];
        unsent
            .append(&state(1), &waiting(), &Vec::new)
            .expect("written");
        for number in 2..200 {
            let batches = [batch(number, 100_000)];
            let appended = unsent.append(&state(number as u64), &batches, &waiting);
            appended.expect("written");
            assert!(unsent.bytes < SLACK_BYTES + 3 * 200_000, "{}", unsent.bytes);
        }
        drop(unsent);
        let (_, left) = Unsent::open(dir.path()).expect("opens");
        assert_eq!(left.state, Some(state(199)));
        let numbers = numbers(&left);
        assert_eq!((numbers.first(), numbers.last()), (Some(&1), Some(&199)));
    }

    #[test]
    fn a_long_backlog_is_written_in_parts_and_read_back_whole() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut unsent, _) = Unsent::open(dir.path()).expect("opens");
        unsent.limit = 0;
        let waiting: Vec<Batch> = (1..=12)
            .map(|number| batch(number, PART_BYTES / 3))
            .collect();
        assert!(parts(&waiting).len() > 4, "{}", parts(&waiting).len());
        assert_eq!(parts(&[]).len(), 1, "the state is kept without batches too");
        let waits = || waiting.clone();
        unsent
            .append(&state(13), &[batch(13, 9)], &waits)
            .expect("written");
        drop(unsent);
        let (_, left) = Unsent::open(dir.path()).expect("opens");
        assert_eq!(numbers(&left), (1..=13).collect::<Vec<_>>());
        assert_eq!(left.state, Some(state(13)));
    }

    #[test]
    fn a_second_agent_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (_unsent, _) = Unsent::open(dir.path()).expect("opens");
        let error = Unsent::open(dir.path()).expect_err("locked");
        assert!(error.to_string().contains("another agent"), "{error}");
    }
}
