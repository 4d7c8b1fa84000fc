//! INTERIM until crate audit-wal lands.
use std::{fs::{self, File}, io::{self, Read as _, Write as _, Seek as _}, path::{Path, PathBuf}};

#[derive(Debug, Clone)]
pub struct Options { pub segment_bytes: u64, pub max_record_bytes: u32 }
#[derive(Debug, thiserror::Error)]
pub enum WalError { #[error("{0}")] Io(#[from] io::Error) }
#[derive(Debug, Default)]
pub struct Recovery { pub records: u64, pub truncated_bytes: u64, pub damaged: Option<String> }
#[derive(Debug)]
pub struct Log { path: PathBuf, file: File, next: u64, bytes: u64 }
pub struct Reader { rest: io::BufReader<File>, next: u64, from: u64 }

fn sum(b: &[u8]) -> u32 { b.iter().fold(0x811c9dc5, |h, x| (h ^ u32::from(*x)).wrapping_mul(0x01000193)) }

impl Iterator for Reader {
    type Item = Result<(u64, Vec<u8>), WalError>;
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut head = [0u8; 8];
            self.rest.read_exact(&mut head).ok()?;
            let n = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
            let s = u32::from_le_bytes(head[4..].try_into().ok()?);
            let mut b = vec![0; n];
            self.rest.read_exact(&mut b).ok()?;
            if n == 0 || sum(&b) != s { return None; }
            let at = self.next; self.next += 1;
            if at >= self.from { return Some(Ok((at, b))); }
        }
    }
}
impl Log {
    pub fn open(dir: &Path, _: Options) -> Result<(Self, Recovery), WalError> {
        fs::create_dir_all(dir)?;
        let path = dir.join("log");
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        let mut reader = Reader { rest: io::BufReader::new(File::open(&path)?), next: 1, from: 1 };
        let mut bytes = 0;
        let mut next = 1;
        for item in reader.by_ref() { let (i, b) = item?; next = i + 1; bytes += 8 + b.len() as u64; }
        let len = file.metadata()?.len();
        file.set_len(bytes)?;
        file.seek(io::SeekFrom::Start(bytes))?;
        Ok((Self { path, file, next, bytes }, Recovery { records: next - 1, truncated_bytes: len - bytes, damaged: None }))
    }
    pub fn append(&mut self, record: &[u8]) -> Result<u64, WalError> {
        let mut b = (record.len() as u32).to_le_bytes().to_vec();
        b.extend(sum(record).to_le_bytes()); b.extend(record);
        self.file.write_all(&b)?; self.bytes += b.len() as u64; self.next += 1; Ok(self.next - 1)
    }
    pub fn sync(&mut self) -> Result<u64, WalError> { self.file.sync_data()?; Ok(self.next - 1) }
    pub fn first_index(&self) -> u64 { 1 }
    pub fn next_index(&self) -> u64 { self.next }
    pub fn bytes(&self) -> u64 { self.bytes }
    pub fn read_from(&self, index: u64) -> Result<Reader, WalError> {
        Ok(Reader { rest: io::BufReader::new(File::open(&self.path)?), next: 1, from: index })
    }
    pub fn drop_before(&mut self, _: u64) -> Result<(), WalError> { Ok(()) }
}
