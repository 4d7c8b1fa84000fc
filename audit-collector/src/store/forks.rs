//! What was offered in an agent's name, beside the stored batch of its number? Kept as evidence, in a log of
//! its own that only grows, up to a bound.

use std::{path::Path, sync::Mutex};

use audit_proto::{Message as _, v1::Batch};
use audit_wal::{Log, Options, WalError};

use super::{MAX_RECORD_BYTES, OpenError, Store, lock, report_recovery};
use crate::problems::Problems;

const NAME: &str = "forks";
/// Enough to prove what happened; an agent with a copied state offers the same batch again and again.
const MAX_BYTES: u64 = 16 << 20;
/// Allocated ahead, though most collectors never need any.
const SEGMENT_BYTES: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    #[error("{NAME}: {0}")]
    Log(#[from] WalError),
    #[error("{NAME} has {MAX_BYTES} bytes already")]
    Full,
}

pub struct Forks(Mutex<Log>);

impl Forks {
    pub fn open(dir: &Path, problems: &Problems) -> Result<Self, OpenError> {
        let path = dir.join(NAME);
        let options = Options {
            segment_bytes: SEGMENT_BYTES,
            max_record_bytes: MAX_RECORD_BYTES,
        };
        let (log, recovery) =
            Log::open(&path, options).map_err(|source| OpenError::Wal { path, source })?;
        report_recovery(NAME, &recovery, problems);
        Ok(Self(Mutex::new(log)))
    }
}

impl Store {
    /// Durable when it returns. The same batch is kept once; beyond the bound none is, which is told.
    pub fn keep_fork(&self, batch: &Batch) -> Result<(), ForkError> {
        let mut log = lock(&self.forks.0);
        if read(&log).any(|kept| kept.is_ok_and(|kept| kept == *batch)) {
            return Ok(());
        }
        let encoded = batch.encode_to_vec();
        if log.bytes() + encoded.len() as u64 > MAX_BYTES {
            return Err(ForkError::Full);
        }
        log.append_all(&[&encoded])?;
        Ok(())
    }

    /// Those that are kept; an error is of one that cannot be read.
    pub fn forks(&self) -> Vec<Result<Batch, String>> {
        read(&lock(&self.forks.0)).collect()
    }
}

fn read(log: &Log) -> impl Iterator<Item = Result<Batch, String>> {
    let (records, error) = match log.read_from(log.first_index()) {
        Ok(records) => (Some(records), None),
        Err(error) => (None, Some(Err(format!("{NAME}: {error}")))),
    };
    let decode = |record: Result<(u64, Vec<u8>), WalError>| {
        let (index, bytes) = record.map_err(|error| format!("{NAME}: {error}"))?;
        Batch::decode(&bytes[..]).map_err(|error| format!("{NAME}: record {index}: {error}"))
    };
    records.into_iter().flatten().map(decode).chain(error)
}
