//! How does an agent close a batch? With a header that names the one before it, signed with the key
//! of the epoch.

use audit_proto::{
    Message as _,
    v1::{Batch, BatchHeader, BatchRange, ClassCount, Dropped, Lost},
};

use crate::{Frames, Key, Past, batch::Header, key, leaves, root_of};

/// zstd's level: higher ones cost the audited host more than the wire gains.
const COMPRESSION: i32 = 1;
/// What the sealer keeps for packing: an ordinary batch. One huge event may need more for a moment.
const KEPT_BYTES: usize = 4 << 20;
/// Losses that one header tells apart; of more, those of one class and place are added up.
pub const MAX_LOSSES: usize = 64;

/// Who seals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    pub host_id: String,
    pub boot_id: String,
    pub run: String,
}

/// What the header says about a batch's events, beyond what they say themselves.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Microseconds since the Unix epoch.
    pub sealed_time: i64,
    /// Event times, the least and the greatest, in microseconds since the Unix epoch.
    pub first_time: i64,
    pub last_time: i64,
    pub classes: Vec<ClassCount>,
    pub losses: Vec<Lost>,
    /// 0 for the last batch of a run.
    pub next_within_ms: i64,
    pub gaps: Vec<BatchRange>,
}

/// The history that could not go on, and the last batch of it that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Former {
    pub agent_id: String,
    pub batch: i64,
}

/// Closes the batches of one history.
pub struct Sealer {
    key: Key,
    agent_id: String,
    origin: Origin,
    past: Option<Past>,
    former: Option<Former>,
    /// Both reused from batch to batch: large buffers that come and go leave holes in the heap.
    zstd: zstd::bulk::Compressor<'static>,
    packed: Vec<u8>,
}

impl Sealer {
    /// Begins a history, with a key of epoch 1.
    pub fn begin(key: Key, origin: Origin, former: Option<Former>) -> Self {
        let agent_id = key::agent_id(&key.public());
        Self::new(key, agent_id, origin, None, former)
    }

    /// Goes on behind `past`, with the key of its epoch or of the next.
    pub fn resume(key: Key, origin: Origin, past: Past) -> Self {
        Self::new(key, past.agent_id.clone(), origin, Some(past), None)
    }

    fn new(
        key: Key,
        agent_id: String,
        origin: Origin,
        past: Option<Past>,
        former: Option<Former>,
    ) -> Self {
        #[expect(
            clippy::expect_used,
            reason = "the level is a constant that zstd knows, and nothing else can be refused"
        )]
        let zstd = zstd::bulk::Compressor::new(COMPRESSION).expect("zstd's level");
        Self {
            key,
            agent_id,
            origin,
            past,
            former,
            zstd,
            packed: Vec::new(),
        }
    }

    pub fn agent_id(&self) -> &str {
        &self.agent_id
    }

    pub fn past(&self) -> Option<&Past> {
        self.past.as_ref()
    }

    pub fn key(&self) -> &Key {
        &self.key
    }

    /// May the key evolve? Only one that has signed: a header names its successor, and no other.
    pub fn may_evolve(&self) -> bool {
        self.past
            .as_ref()
            .is_some_and(|past| past.epoch == self.key.epoch())
    }

    /// Signs with the next key from now on; the caller keeps that one first, in place of this one.
    pub fn evolve(&mut self) {
        self.key.evolve();
    }

    /// Closes the next batch.
    pub fn seal(&mut self, frames: &Frames, summary: Summary) -> Batch {
        let past = self.past.take().unwrap_or_default();
        let former = self.former.take();
        let fields = BatchHeader {
            agent_id: self.agent_id.clone(),
            batch: past.batch + 1,
            previous_hash: past.hash,
            host_id: self.origin.host_id.clone(),
            boot_id: self.origin.boot_id.clone(),
            run: self.origin.run.clone(),
            sealed_time: summary.sealed_time,
            event_count: frames.len() as i32,
            event_bytes: frames.bytes() as i64,
            first_time: summary.first_time,
            last_time: summary.last_time,
            root: root_of(leaves(frames.events())).to_vec(),
            epoch: self.key.epoch(),
            public_key: self.key.public().to_vec(),
            next_public_key: self.key.next_public().to_vec(),
            classes: summary.classes,
            losses: bounded(summary.losses),
            next_within_ms: summary.next_within_ms,
            events_before: past.events,
            gaps: summary.gaps,
            former_batch: former.as_ref().map_or(0, |former| former.batch),
            former_agent_id: former.map(|former| former.agent_id).unwrap_or_default(),
        };
        let bytes = fields.encode_to_vec();
        let header = Header {
            hash: crate::hash(&bytes),
            fields,
        };
        let signature = self.key.sign_batch(&header.hash);
        self.past = Some(Past::of(&header));
        Batch {
            header: bytes.into(),
            events: self.pack(&frames.bytes).into(),
            signature: signature.to_vec().into(),
            dropped: None,
        }
    }

    /// The same batch without its events, and the statement that they were dropped here.
    pub fn drop_events(&self, batch: &Batch, reason: &str) -> Batch {
        let signature = self.key.sign_dropped(&crate::hash(&batch.header), reason);
        Batch {
            header: batch.header.clone(),
            events: bytes::Bytes::new(),
            signature: batch.signature.clone(),
            dropped: Some(Dropped {
                epoch: self.key.epoch(),
                public_key: self.key.public().to_vec(),
                signature: signature.to_vec(),
                reason: reason.to_owned(),
            }),
        }
    }

    /// Compressed, in no more memory than it needs: a batch may wait long.
    fn pack(&mut self, raw: &[u8]) -> Vec<u8> {
        self.packed.clear();
        self.packed
            .reserve(zstd::zstd_safe::compress_bound(raw.len()));
        #[expect(
            clippy::expect_used,
            reason = "compressing into memory only fails without memory"
        )]
        self.zstd
            .compress_to_buffer(raw, &mut self.packed)
            .expect("zstd into memory");
        let events = self.packed.as_slice().to_vec();
        self.packed.shrink_to(KEPT_BYTES);
        events
    }
}

/// At most [`MAX_LOSSES`]; of more, what is of one class and place becomes one without numbers. An
/// unknown count stays unknown.
fn bounded(losses: Vec<Lost>) -> Vec<Lost> {
    let plain = losses.into_iter().map(|lost| Lost {
        cause: String::new(),
        ..lost
    });
    let losses: Vec<Lost> = plain.collect();
    if losses.len() <= MAX_LOSSES {
        return losses;
    }
    let mut sums: Vec<Lost> = Vec::new();
    for lost in losses {
        let alike = |sum: &&mut Lost| {
            sum.class == lost.class
                && sum.place == lost.place
                && sum.count.is_some() == lost.count.is_some()
        };
        match sums.iter_mut().find(alike) {
            Some(sum) => sum.count = sum.count.zip(lost.count).map(|(a, b)| a.saturating_add(b)),
            None => sums.push(Lost {
                cpu: None,
                first_sequence: None,
                last_sequence: None,
                ..lost
            }),
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_losses_are_added_up_and_none_is_forgotten() {
        let losses: Vec<Lost> = (0..500)
            .map(|n| Lost {
                class: 1 + n % 3,
                cpu: Some(n),
                count: (n % 7 != 0).then_some(n.into()),
                place: "ring".to_owned(),
                ..Lost::default()
            })
            .collect();
        let told: i64 = losses.iter().filter_map(|lost| lost.count).sum();
        let bounded = bounded(losses);
        assert!(bounded.len() <= MAX_LOSSES);
        assert_eq!(
            bounded.iter().filter_map(|lost| lost.count).sum::<i64>(),
            told
        );
        let unknown: Vec<i32> = bounded
            .iter()
            .filter(|lost| lost.count.is_none())
            .map(|lost| lost.class)
            .collect();
        assert_eq!(unknown, [1, 2, 3]);
    }
}
