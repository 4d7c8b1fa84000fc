//! INTERIM until crate audit-ledger lands: the batch format of ingest.proto, sealing and (for tests)
//! opening. Replace its two uses by `audit_ledger` and drop zstd and prost from Cargo.toml.

use audit_proto::{
    Message as _,
    v1::{Batch, BatchHeader},
};
use sha2::{Digest as _, Sha256};

#[derive(Debug)]
pub struct Sealer {
    host_id: String,
    boot_id: String,
    run: String,
    batch: i64,
    previous_hash: Vec<u8>,
}

impl Sealer {
    pub fn new(host_id: String, boot_id: String, run: String) -> Self {
        Self {
            host_id,
            boot_id,
            run,
            batch: 0,
            previous_hash: Vec::new(),
        }
    }

    pub fn seal(&mut self, events: &[&[u8]], first_time: i64, last_time: i64) -> Batch {
        self.batch += 1;
        let mut raw = Vec::with_capacity(events.iter().map(|event| event.len() + 5).sum());
        for event in events {
            // Into a Vec, which grows.
            let _ = prost::encode_length_delimiter(event.len(), &mut raw);
            raw.extend_from_slice(event);
        }
        let header = BatchHeader {
            host_id: self.host_id.clone(),
            boot_id: self.boot_id.clone(),
            run: self.run.clone(),
            batch: self.batch,
            previous_hash: std::mem::take(&mut self.previous_hash),
            event_count: events.len() as i32,
            event_bytes: raw.len() as i64,
            first_time,
            last_time,
            root: root(events).to_vec(),
        };
        self.previous_hash = Sha256::digest(header.encode_to_vec()).to_vec();
        #[allow(clippy::expect_used)]
        let events = zstd::bulk::compress(&raw, 1).expect("zstd into memory");
        Batch {
            header: Some(header),
            events: events.into(),
        }
    }
}

/// RFC 6962 tree hash.
fn root(leaves: &[&[u8]]) -> [u8; 32] {
    let hash = |tag: u8, parts: [&[u8]; 2]| -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update([tag]);
        parts.iter().for_each(|part| hash.update(part));
        hash.finalize().into()
    };
    match leaves {
        [] => Sha256::digest(b"").into(),
        [leaf] => hash(0, [leaf, b""]),
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            hash(1, [&root(left), &root(right)])
        }
    }
}

/// The events of a batch, if they are those that were sealed.
#[cfg(test)]
pub fn open(batch: &Batch) -> Option<Vec<Vec<u8>>> {
    let header = batch.header.as_ref()?;
    let raw = zstd::bulk::decompress(&batch.events, header.event_bytes as usize).ok()?;
    let mut rest = &raw[..];
    let mut events = Vec::new();
    while !rest.is_empty() {
        let length = prost::decode_length_delimiter(&mut rest).ok()?;
        let (event, after) = rest.split_at_checked(length)?;
        events.push(event.to_vec());
        rest = after;
    }
    let leaves: Vec<&[u8]> = events.iter().map(Vec::as_slice).collect();
    (root(&leaves)[..] == header.root[..]).then_some(events)
}
