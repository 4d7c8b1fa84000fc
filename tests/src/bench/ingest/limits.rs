//! What of an ingest could this machine do alone? Each part on batches of the same run, on one thread but
//! for gRPC, so that the share of each is visible.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use audit_ledger::{leaves, root_of};
use audit_wal::{Log, Options};

use super::{EVENTS_PER_BATCH, Encoded, echo, host, seal, sealer};

/// Batches of one sync, as many as a busy collector takes together.
const GROUP: usize = 32;
/// Long enough for a rate, short enough beside the bench.
const TIME: Duration = Duration::from_millis(700);

/// Events a second.
pub struct Limits {
    hash: f64,
    seal: f64,
    open: f64,
    sync: f64,
    echo: f64,
}

impl Limits {
    pub fn measure(encoded: &[Vec<Encoded>]) -> Result<Self> {
        let batches = encoded.first().context("an agent")?;
        let mut sealer = sealer(&host(1 << 40));
        let sealed: Vec<_> = batches
            .iter()
            .take(GROUP)
            .map(|batch| seal(&mut sealer, batch))
            .collect();
        let directory = tempfile::tempdir()?;
        let options = Options {
            segment_bytes: 64 << 20,
            max_record_bytes: audit_proto::MAX_MESSAGE_BYTES as u32,
        };
        let (mut log, _) = Log::open(directory.path(), options)?;
        let records: Vec<Vec<u8>> = sealed
            .iter()
            .map(audit_proto::Message::encode_to_vec)
            .collect();
        let slices: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        Ok(Self {
            hash: rate(batches.len(), |at| {
                black_box(root_of(leaves(batches[at].0.events())));
                Ok(1)
            })?,
            seal: rate(batches.len(), |at| {
                black_box(seal(&mut sealer, &batches[at]));
                Ok(1)
            })?,
            open: rate(sealed.len(), |at| {
                let header = audit_ledger::header(&sealed[at])?;
                black_box(audit_ledger::open(&sealed[at], &header.fields)?);
                Ok(1)
            })?,
            sync: rate(1, |_| {
                log.append_all(&slices)?;
                Ok(slices.len())
            })?,
            echo: echo::rate(&sealed, TIME)?,
        })
    }

    pub fn rates(&self) -> [(&'static str, f64); 5] {
        [
            ("SHA-256 and Merkle root", self.hash),
            ("seal: root, zstd, signature", self.seal),
            ("open: unpack, root", self.open),
            ("write and fsync, 32 batches at once", self.sync),
            (
                "gRPC there and back, both processors, without TLS",
                self.echo,
            ),
        ]
    }
}

/// `work` is called with numbers below `count`, and says how many batches it did.
fn rate(count: usize, mut work: impl FnMut(usize) -> Result<usize>) -> Result<f64> {
    let began = Instant::now();
    let mut batches = 0;
    let mut at = 0;
    while began.elapsed() < TIME {
        batches += work(at % count)?;
        at += 1;
    }
    Ok((batches as u64 * EVENTS_PER_BATCH) as f64 / began.elapsed().as_secs_f64())
}
