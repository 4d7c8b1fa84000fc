//! What have events of the same actor in common? The fields that say who, written and encoded once
//! for the thousands of events that a busy thread makes.
//!
//! Invariant: an event's actor is taken over from an earlier event only while the part of the record
//! that tells it is the same, and so is everything else that it was written from ([`Stamp`]).

use audit_common::{kind, record::Header};
use audit_proto::v1::{Event, Host};

use crate::{encode, enrich::Stamp};

/// Threads remembered: what runs on all processors within a few milliseconds. With few of them an
/// exec, which makes the actor anew anyway, is no slower than it was without.
const ACTORS: usize = 32;
// What may be kept of an actor: 100 KiB where all of it are the shortest arguments, which take 56
// bytes each.
/// The record of its last event; few are larger, and their texts stay with the event.
const KEPT_RECORD_BYTES: usize = 2 << 10;
/// Itself, encoded: with its arguments and its parent's, each as long as the process table has them.
const KEPT_ENCODED_BYTES: usize = 10 << 10;
const KEPT_ARGUMENTS: usize = 512;

/// Latest actors by thread.
#[derive(Debug)]
pub struct Actors {
    slots: [Option<Box<Actor>>; ACTORS],
    host: Host,
}

/// An event that is used again and again, and what is known of who it tells.
#[derive(Debug)]
pub struct Actor {
    pub event: Event,
    /// The header of the last record, without what only that record says.
    who: Header,
    /// What the event's actor was written from; none where another record must not use it again.
    pub stamp: Option<Stamp>,
    /// What the encoded actor was written from.
    encoded_of: Option<Stamp>,
    encoded: Vec<u8>,
}

impl Actors {
    pub fn new(host: Host) -> Self {
        Self {
            slots: [const { None }; ACTORS],
            host,
        }
    }

    /// The actor of a record, with its event: to be given back by [`Self::keep`] once that is told.
    pub fn take(&mut self, header: &Header) -> Box<Actor> {
        let who = who(header);
        let slot = self.slots.get_mut(slot(header)).and_then(Option::take);
        let mut actor = slot.unwrap_or_else(|| {
            Box::new(Actor {
                event: Event {
                    host: Some(self.host.clone()),
                    ..Event::default()
                },
                who,
                stamp: None,
                encoded_of: None,
                encoded: Vec::new(),
            })
        });
        if actor.who != who {
            actor.who = who;
            (actor.stamp, actor.encoded_of) = (None, None);
        }
        actor
    }

    /// What is too large is not kept, nor is an exec's: its arguments are, and the next record's
    /// actor is another.
    pub fn keep(&mut self, header: &Header, actor: Box<Actor>) {
        if header.kind != kind::EXEC
            && header.size as usize <= KEPT_RECORD_BYTES
            && actor.is_small()
            && let Some(slot) = self.slots.get_mut(slot(header))
        {
            *slot = Some(actor);
        }
    }
}

impl Actor {
    fn is_small(&self) -> bool {
        let process = self.event.process.as_ref();
        let parent = self.event.parent.as_ref();
        let arguments = process.map_or(0, |process| process.argv.len())
            + parent.map_or(0, |parent| parent.argv.len());
        arguments <= KEPT_ARGUMENTS && self.encoded.capacity() <= KEPT_ENCODED_BYTES
    }

    /// True when the event tells this actor already.
    pub fn is_told(&self) -> bool {
        self.stamp.is_some()
    }

    /// The event, and its actor encoded.
    pub fn encoded(&mut self) -> (&mut Event, &[u8]) {
        if self.stamp.is_none() || self.encoded_of != self.stamp {
            self.encoded.clear();
            encode::actor(&self.event, &mut self.encoded);
            self.encoded_of = self.stamp;
        }
        (&mut self.event, &self.encoded)
    }
}

fn slot(header: &Header) -> usize {
    header.tid as usize % ACTORS
}

/// What of a header is the actor's.
fn who(header: &Header) -> Header {
    Header {
        time_ns: 0,
        sequence: 0,
        size: 0,
        cpu: 0,
        kind: 0,
        payload_size: 0,
        class: 0,
        via: 0,
        form: 0,
        generation: 0,
        candidates: 0,
        ..*header
    }
}
