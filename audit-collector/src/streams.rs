//! How far has each agent's history of batches come?
//!
//! Its batches count from 1 without a gap, each naming the hash of the header before it and signed by
//! a key that the one before it let follow ([`audit_ledger::Past`]): that is what makes "exactly once"
//! and "nothing removed" checkable.

use std::collections::{HashMap, VecDeque};

use audit_ledger::{Header, Past};
use serde::{Deserialize, Serialize};

/// What is known of one agent, as of some WAL record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamState {
    pub past: Past,
    pub host_id: String,
    pub host_name: String,
    /// Of its last batch.
    pub boot_id: String,
    pub run: String,
    /// Stored here.
    pub events: i64,
    pub last_time: i64,
    /// Sum of the counts in the agent's own loss records.
    pub lost: i64,
    #[serde(default)]
    pub totals: Totals,
    /// Hashes of its last headers, to tell a batch that comes again from another one of its number.
    #[serde(skip)]
    recent: VecDeque<(i64, [u8; 32])>,
}

/// What the agent's last heartbeat said; see [`audit_proto::totals`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    pub classes: Vec<String>,
    pub filters: Vec<String>,
}

/// Agents remembered. Beyond them the one that was silent longest is forgotten; its batches stay, and
/// if it comes back it begins where it says.
const MAX_STREAMS: usize = 100_000;
/// An agent sends again what was not acknowledged, which is at most what is in flight.
const RECENT: usize = 64;

impl StreamState {
    /// Takes in a header that is stored.
    pub fn advance(&mut self, header: &Header, past: Past) {
        let number = header.fields.batch;
        self.past = past;
        self.host_id.clone_from(&header.fields.host_id);
        self.boot_id.clone_from(&header.fields.boot_id);
        self.run.clone_from(&header.fields.run);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((number, header.hash));
    }

    /// Its last batches, oldest first.
    pub fn recent(&self) -> impl Iterator<Item = (i64, [u8; 32])> {
        self.recent.iter().copied()
    }

    /// Is it the stored batch of its number? `None` where that one is too old to say.
    pub fn is_stored(&self, header: &Header) -> Option<bool> {
        let number = header.fields.batch;
        if number == self.past.batch {
            return Some(self.past.hash == header.hash);
        }
        let known = self.recent.iter().find(|(stored, _)| *stored == number);
        known.map(|(_, hash)| *hash == header.hash)
    }
}

#[derive(Debug, Clone, Default)]
pub struct Streams(HashMap<String, StreamState>);

impl Streams {
    pub fn from_states(states: Vec<StreamState>) -> Self {
        let keyed = states.into_iter();
        Self(keyed.map(|s| (s.past.agent_id.clone(), s)).collect())
    }

    pub fn states(&self) -> Vec<StreamState> {
        let mut states: Vec<_> = self.0.values().cloned().collect();
        states.sort_by(|a, b| {
            (&a.host_id, a.last_time, &a.past.agent_id).cmp(&(
                &b.host_id,
                b.last_time,
                &b.past.agent_id,
            ))
        });
        states
    }

    pub fn get(&self, agent_id: &str) -> Option<&StreamState> {
        self.0.get(agent_id)
    }

    /// The state to advance; the oldest makes room when there are too many.
    pub fn entry(&mut self, agent_id: &str) -> &mut StreamState {
        if self.0.len() >= MAX_STREAMS
            && !self.0.contains_key(agent_id)
            && let Some(oldest) = self
                .0
                .iter()
                .min_by_key(|(_, s)| s.last_time)
                .map(|(k, _)| k.clone())
        {
            tracing::warn!(agent_id = oldest, "agent forgotten: too many");
            self.0.remove(&oldest);
        }
        self.0.entry(agent_id.to_owned()).or_default()
    }
}
