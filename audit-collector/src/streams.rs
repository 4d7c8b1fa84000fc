//! How far has each agent's stream of batches come?
//!
//! A stream is (host id, boot id, run). Its batches count from 1 without a gap, each naming the
//! hash of the header before it; that chain is what makes "exactly once" and "nothing removed"
//! checkable.

use std::collections::HashMap;

use audit_proto::v1::{BatchHeader, Hello};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StreamKey {
    pub host_id: String,
    pub boot_id: String,
    pub run: String,
}

impl StreamKey {
    pub fn of_hello(hello: &Hello) -> Self {
        Self {
            host_id: hello.host_id.clone(),
            boot_id: hello.boot_id.clone(),
            run: hello.run.clone(),
        }
    }

    pub fn of_header(header: &BatchHeader) -> Self {
        Self {
            host_id: header.host_id.clone(),
            boot_id: header.boot_id.clone(),
            run: header.run.clone(),
        }
    }
}

/// What is known of one stream, as of some WAL record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamState {
    pub host_id: String,
    pub host_name: String,
    pub boot_id: String,
    pub run: String,
    pub last_batch: i64,
    /// SHA-256 of the last header's encoding.
    pub last_hash: Vec<u8>,
    pub events: i64,
    pub last_time: i64,
    /// Sum of the counts in the stream's own loss records.
    pub lost: i64,
    #[serde(default)]
    pub totals: Totals,
}

/// What the stream's last heartbeat said; see [`audit_proto::totals`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    pub classes: Vec<String>,
    pub filters: Vec<String>,
}

/// Streams remembered. An agent makes one with each start, so old ones must go some time; then a
/// late batch of such a stream is refused as a gap, never stored twice.
const MAX_STREAMS: usize = 100_000;

#[derive(Debug, Clone, Default)]
pub struct Streams(HashMap<StreamKey, StreamState>);

impl Streams {
    pub fn from_states(states: Vec<StreamState>) -> Self {
        let keyed = states.into_iter().map(|state| {
            let key = StreamKey {
                host_id: state.host_id.clone(),
                boot_id: state.boot_id.clone(),
                run: state.run.clone(),
            };
            (key, state)
        });
        Self(keyed.collect())
    }

    pub fn states(&self) -> Vec<StreamState> {
        let mut states: Vec<_> = self.0.values().cloned().collect();
        states.sort_by(|a, b| {
            (&a.host_id, a.last_time, &a.run).cmp(&(&b.host_id, b.last_time, &b.run))
        });
        states
    }

    pub fn get(&self, key: &StreamKey) -> Option<&StreamState> {
        self.0.get(key)
    }

    /// The state to advance; the oldest stream makes room when there are too many.
    pub fn entry(&mut self, key: &StreamKey) -> &mut StreamState {
        if self.0.len() >= MAX_STREAMS
            && !self.0.contains_key(key)
            && let Some(oldest) = self
                .0
                .iter()
                .min_by_key(|(_, s)| s.last_time)
                .map(|(k, _)| k.clone())
        {
            tracing::warn!(
                host = oldest.host_id,
                run = oldest.run,
                "stream forgotten: too many"
            );
            self.0.remove(&oldest);
        }
        self.0.entry(key.clone()).or_insert_with(|| StreamState {
            host_id: key.host_id.clone(),
            boot_id: key.boot_id.clone(),
            run: key.run.clone(),
            ..StreamState::default()
        })
    }
}
