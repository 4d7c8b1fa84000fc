//! Does a batch follow what is known of its agent's history?
//!
//! Invariant: a history that only grew by [`Past::follow`] was signed batch by batch by keys of which
//! each named the next, back to where it began.

use audit_proto::v1::{Batch, BatchHeader};
use serde::{Deserialize, Serialize};

use crate::{
    batch::{BatchError, Header},
    key,
};

/// What of a history decides how it may go on: its last batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Past {
    pub agent_id: String,
    pub batch: i64,
    /// SHA-256 of the header.
    pub hash: Vec<u8>,
    pub epoch: i64,
    pub public_key: Vec<u8>,
    pub next_public_key: Vec<u8>,
    /// Up to this batch, with those that are not here.
    pub events: i64,
}

/// Why a batch does not belong where it was met. What each says is a sentence about "batch N".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("is of agent {0}, not of this one")]
    Agent(String),
    #[error("is numbered {0}; numbers begin at 1")]
    Number(i64),
    #[error("comes again after batch {0}")]
    Again(i64),
    #[error("comes after batch {last}: batches {first} to {upto} are missing", first = last + 1, upto = found - 1)]
    Missing { last: i64, found: i64 },
    #[error("names another batch before it than batch {0} that is here: the history has two ends")]
    Previous(i64),
    #[error("is not signed by the key that its agent's name is made of")]
    FirstKey,
    #[error("is of epoch {found} with another key than batch {last} (epoch {epoch}) lets follow")]
    Key { found: i64, last: i64, epoch: i64 },
    #[error("has a signature that is not of its header and its key")]
    Signature,
    #[error("says that {found} events came before it, and {known} did")]
    Events { found: i64, known: i64 },
    #[error("says that it has {0} events")]
    Count(i32),
    #[error("says that its events were dropped, and the signature of that is not of its key")]
    Dropped,
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

impl From<BatchError> for ChainError {
    fn from(error: BatchError) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// May batches be missing before the next one?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    Refused,
    /// Whoever calls tells it.
    Allowed,
}

impl Past {
    /// Of a batch that is known to belong there.
    pub fn of(header: &Header) -> Self {
        let BatchHeader {
            agent_id,
            batch,
            epoch,
            public_key,
            next_public_key,
            events_before,
            event_count,
            ..
        } = &header.fields;
        Self {
            agent_id: agent_id.clone(),
            batch: *batch,
            hash: header.hash.to_vec(),
            epoch: *epoch,
            public_key: public_key.clone(),
            next_public_key: next_public_key.clone(),
            events: events_before.saturating_add((*event_count).into()),
        }
    }

    /// The past of a history that is first met with this batch. One that does not begin with batch 1
    /// is believed its key.
    pub fn begin(batch: &Batch, header: &Header) -> Result<Self, ChainError> {
        let fields = &header.fields;
        if fields.batch < 1 {
            return Err(ChainError::Number(fields.batch));
        }
        let first = fields.batch == 1;
        if first
            && (fields.epoch != 1
                || !fields.previous_hash.is_empty()
                || fields.events_before != 0
                || key::agent_id(&fields.public_key) != fields.agent_id)
        {
            return Err(ChainError::FirstKey);
        }
        signatures(batch, header)?;
        if fields.event_count < 0 {
            return Err(ChainError::Count(fields.event_count));
        }
        Ok(Self::of(header))
    }

    /// The past that has this batch too.
    pub fn follow(&self, batch: &Batch, header: &Header, gap: Gap) -> Result<Self, ChainError> {
        let fields = &header.fields;
        if fields.agent_id != self.agent_id {
            return Err(ChainError::Agent(fields.agent_id.clone()));
        }
        if fields.batch <= self.batch {
            return Err(ChainError::Again(self.batch));
        }
        let missing = fields.batch > self.batch + 1;
        if missing && gap == Gap::Refused {
            return Err(ChainError::Missing {
                last: self.batch,
                found: fields.batch,
            });
        }
        if !missing && fields.previous_hash != self.hash {
            return Err(ChainError::Previous(self.batch));
        }
        let known = match fields.epoch.saturating_sub(self.epoch) {
            0 => fields.public_key == self.public_key,
            1 => fields.public_key == self.next_public_key,
            // Those between were named by headers that are not here.
            later => missing && later > 1,
        };
        if !known {
            return Err(ChainError::Key {
                found: fields.epoch,
                last: self.batch,
                epoch: self.epoch,
            });
        }
        signatures(batch, header)?;
        let counts = match missing {
            true => fields.events_before >= self.events,
            false => fields.events_before == self.events,
        };
        if !counts {
            return Err(ChainError::Events {
                found: fields.events_before,
                known: self.events,
            });
        }
        if fields.event_count < 0 {
            return Err(ChainError::Count(fields.event_count));
        }
        Ok(Self::of(header))
    }
}

pub(crate) fn signatures(batch: &Batch, header: &Header) -> Result<(), ChainError> {
    if !key::signed_batch(&header.fields.public_key, &header.hash, &batch.signature) {
        return Err(ChainError::Signature);
    }
    match &batch.dropped {
        Some(dropped)
            if dropped.epoch < header.fields.epoch
                || !key::signed_dropped(dropped, &header.hash) =>
        {
            Err(ChainError::Dropped)
        }
        _ => Ok(()),
    }
}
