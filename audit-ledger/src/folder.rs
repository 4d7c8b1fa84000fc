//! An export's files: which of them hold batches, and which batches are in one?

use std::io::{self, Read};

use audit_proto::{MAX_MESSAGE_BYTES, Message as _, v1::Batch};

const PREFIX: &str = "batches-";

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("it ends within the batch at byte {0}")]
    Cut(u64),
    #[error("at byte {at} is no batch: it would be {length} bytes long")]
    Long { at: u64, length: u32 },
    #[error("at byte {at} is no batch: {source}")]
    NoBatch { at: u64, source: prost::DecodeError },
    #[error("at byte {at}: {source}")]
    Io { at: u64, source: io::Error },
}

/// The name of the file of this number, from 1.
pub fn batch_file(number: u64) -> String {
    format!("{PREFIX}{number:08}")
}

/// Of the files of a folder, those that hold batches, in order; and what of them is not there, although
/// later ones are.
pub fn batch_files<'a>(names: impl Iterator<Item = &'a str>) -> (Vec<String>, Vec<String>) {
    let number = |name: &str| {
        let number = name.strip_prefix(PREFIX)?.parse().ok()?;
        (number > 0 && batch_file(number) == name).then_some(number)
    };
    let mut numbers: Vec<u64> = names.filter_map(number).collect();
    numbers.sort_unstable();
    let mut absent = Vec::new();
    let mut next = 1;
    for number in &numbers {
        if next < *number {
            let (first, last) = (batch_file(next), batch_file(number - 1));
            absent.push(format!(
                "{first} to {last}: not there, although later ones are"
            ));
        }
        next = number.saturating_add(1);
    }
    (numbers.into_iter().map(batch_file).collect(), absent)
}

/// The batches of one file. What cannot be read is an error in its place; behind one that hides where
/// the next batch begins there is nothing.
pub struct Batches<R> {
    file: R,
    at: u64,
    is_done: bool,
}

impl<R: Read> Batches<R> {
    pub fn new(file: R) -> Self {
        Self {
            file,
            at: 0,
            is_done: false,
        }
    }

    /// So many bytes; fewer at the end of the file.
    fn read(&mut self, length: u32) -> Result<Vec<u8>, FolderError> {
        let mut bytes = Vec::new();
        let mut part = self.file.by_ref().take(length.into());
        match part.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(source) => Err(FolderError::Io {
                at: self.at,
                source,
            }),
        }
    }

    fn encoded(&mut self) -> Result<Option<Vec<u8>>, FolderError> {
        let prefix = self.read(4)?;
        if prefix.is_empty() {
            return Ok(None);
        }
        let Ok(length) = prefix.try_into().map(u32::from_le_bytes) else {
            return Err(FolderError::Cut(self.at));
        };
        if length as usize > MAX_MESSAGE_BYTES {
            return Err(FolderError::Long {
                at: self.at,
                length,
            });
        }
        let encoded = self.read(length)?;
        match encoded.len() == length as usize {
            true => Ok(Some(encoded)),
            false => Err(FolderError::Cut(self.at)),
        }
    }
}

impl<R: Read> Iterator for Batches<R> {
    type Item = Result<Batch, FolderError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let at = self.at;
        match self.encoded() {
            Ok(Some(encoded)) => {
                self.at += 4 + encoded.len() as u64;
                let batch = Batch::decode(&encoded[..]);
                Some(batch.map_err(|source| FolderError::NoBatch { at, source }))
            }
            Ok(None) => None,
            Err(error) => {
                self.is_done = true;
                Some(Err(error))
            }
        }
    }
}
