//! What can an agent do that signs whatever it likes?
//!
//! Guarantee: of any headers with sound signatures, in any order, nothing panics or overflows; what
//! [`Past::follow`] accepts has the agent, number, predecessor, key and sum of events that
//! docs/ledger.md asks for; a record is complete only if each history in it is one batch after the
//! other from the first, each whole; and no events are counted that are not there.

use std::collections::BTreeMap;

use audit_ledger::{Gap, Header, Past, Report, Verdict, Verifier, header, open};
use audit_proto::v1::{Batch, BatchHeader, BatchRange, ClassCount, Lost};

use crate::{
    input::Input,
    sealing::{Keys, frame, hash, is_signed, pack},
};

const MAX_BATCHES: usize = 24;

/// Signs as it is told, each header after the one before it.
struct Agent {
    keys: &'static Keys,
    last: BatchHeader,
    hash: Vec<u8>,
}

impl Agent {
    fn new(number: u8) -> Self {
        let last = BatchHeader {
            epoch: 1,
            sealed_time: 1_000_000,
            ..BatchHeader::default()
        };
        Self {
            keys: Keys::of_agent(number),
            last,
            hash: Vec::new(),
        }
    }

    /// An honest header, then what the input changes of it.
    fn seal(&mut self, input: &mut Input<'_>, changes: usize) -> Batch {
        let last = &self.last;
        let evolved = i64::from(last.batch > 0 && input.byte().is_multiple_of(4));
        let epoch = last.epoch.wrapping_add(evolved);
        let mut fields = BatchHeader {
            agent_id: self.keys.agent_id.clone(),
            host_id: "host".to_owned(),
            batch: last.batch.wrapping_add(1),
            previous_hash: self.hash.clone(),
            sealed_time: last.sealed_time.wrapping_add(1_000_000),
            epoch,
            public_key: self.keys.public(epoch),
            next_public_key: self.keys.public(epoch.wrapping_add(1)),
            events_before: last.events_before.wrapping_add(last.event_count.into()),
            next_within_ms: 10_000,
            ..BatchHeader::default()
        };
        let events: Vec<Vec<u8>> = (0..input.byte() % 4).map(|n| vec![n; n.into()]).collect();
        let packed = pack(&frame(&events, &mut fields));
        for _ in 0..changes {
            change(&mut fields, input);
        }
        let signer = match input.byte() {
            255 => input.number(epoch),
            _ => fields.epoch,
        };
        let batch = self.keys.sign(signer, &fields, packed);
        self.hash = hash(&[&batch.header]).to_vec();
        self.last = fields;
        batch
    }
}

fn change(fields: &mut BatchHeader, input: &mut Input<'_>) {
    let other = Keys::of_agent(1);
    match input.byte() % 18 {
        0 => fields.batch = input.number(fields.batch),
        1 => fields.epoch = input.number(fields.epoch),
        2 => fields.events_before = input.number(fields.events_before),
        3 => fields.event_count = input.number(fields.event_count.into()) as i32,
        4 => fields.event_bytes = input.number(fields.event_bytes),
        5 => fields.next_within_ms = input.number(0),
        6 => fields.sealed_time = input.number(fields.sealed_time),
        7 => fields.first_time = input.number(0),
        8 => fields.last_time = input.number(0),
        9 => {
            fields.former_batch = input.number(3);
            fields.former_agent_id = Keys::of_agent(input.byte()).agent_id.clone();
        }
        10 | 11 => fields.gaps.push(BatchRange {
            first_batch: input.number(fields.batch),
            last_batch: input.number(fields.batch),
        }),
        12 => fields.losses.push(Lost {
            class: i32::from(input.byte() % 6),
            place: ["ring", "spool", ""][input.below(3)].to_owned(),
            count: input.flag().then(|| input.number(1)),
            ..Lost::default()
        }),
        13 => fields.classes.push(ClassCount {
            class: i32::from(input.byte() % 6),
            events: input.number(1),
        }),
        14 => input.edit(&mut fields.previous_hash),
        15 => fields.public_key = other.public(input.number(1)),
        16 => fields.agent_id = other.agent_id.clone(),
        _ => input.edit(&mut fields.root),
    }
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let is_part = input.byte() % 4 == 3;
    let mut agents = [Agent::new(0), Agent::new(1)];
    let mut stored: Vec<Batch> = Vec::new();
    let mut forks = Vec::new();
    while !input.is_empty() && stored.len() < MAX_BATCHES {
        let agent = &mut agents[usize::from(input.byte() % 8 == 7)];
        let choice = input.byte() % 16;
        let batch = match choice {
            // Something that is there already, perhaps not as it was.
            0..3 if !stored.is_empty() => {
                let mut batch = stored[input.below(stored.len())].clone();
                match choice {
                    1 => batch.events = pack(input.piece()).into(),
                    2 => batch.signature = input.piece().to_vec().into(),
                    _ => {}
                }
                batch
            }
            3..8 => agent.seal(&mut input, 0),
            choice => {
                let mut batch = agent.seal(&mut input, usize::from(choice % 4));
                if choice > 13 {
                    let epoch = input.number(agent.last.epoch);
                    agent.keys.drop_events(epoch, &mut batch);
                }
                batch
            }
        };
        match choice {
            12 => forks.push(batch),
            _ => stored.push(batch),
        }
    }
    let now = input.number(agents[0].last.sealed_time);
    let is_sound = follow(&stored);
    let report = verify(is_part, &stored, &forks, now);
    check(&report, &stored);
    if report.verdict() == Verdict::Complete && !is_part {
        assert!(is_sound, "complete, and not one batch after the other");
    }
    let plain = |header: &Header| header.fields.former_agent_id.is_empty();
    let all_plain = stored
        .iter()
        .all(|b| b.dropped.is_none() && header(b).is_ok_and(|h| plain(&h)));
    if is_sound && all_plain && forks.is_empty() {
        let findings = report
            .histories
            .iter()
            .all(|history| history.findings.is_empty());
        assert!(findings && report.findings.is_empty(), "{report:?}");
    }
}

fn verify(is_part: bool, stored: &[Batch], forks: &[Batch], now: i64) -> Report {
    let mut verifier = match is_part {
        true => Verifier::of_part(),
        false => Verifier::new(),
    };
    stored.iter().for_each(|batch| verifier.batch(batch));
    forks.iter().for_each(|batch| verifier.fork(batch));
    verifier.finish(now)
}

fn check(report: &Report, stored: &[Batch]) {
    assert!(
        (0..=stored.len() as i64).contains(&report.batches()),
        "{report:?}"
    );
    let here = |batch: &Batch| Some(open(batch, &header(batch).ok()?.fields).ok()?.len());
    let events: usize = stored.iter().filter_map(here).sum();
    assert!((0..=events as i64).contains(&report.events()), "{report:?}");
    for history in &report.histories {
        assert!((0..=events as i64).contains(&history.events), "{history:?}");
        assert!(
            history
                .findings
                .iter()
                .all(|finding| !finding.what.is_empty())
        );
    }
}

/// Whether every history is one batch after the other from batch 1, whole, with nothing missing.
fn follow(stored: &[Batch]) -> bool {
    let mut pasts: BTreeMap<String, Past> = BTreeMap::new();
    let mut is_sound = true;
    for batch in stored {
        let Ok(header) = header(batch) else {
            is_sound = false;
            continue;
        };
        let agent_id = header.fields.agent_id.clone();
        let next = match pasts.get(&agent_id) {
            None => Past::begin(batch, &header).inspect(|_| is_sound &= header.fields.batch == 1),
            Some(past) => {
                if let Ok(next) = past.follow(batch, &header, Gap::Allowed) {
                    accepted(past, batch, &header, &next);
                }
                let next = past.follow(batch, &header, Gap::Refused);
                if let Ok(next) = &next {
                    assert_eq!(header.fields.batch, past.batch + 1);
                    accepted(past, batch, &header, next);
                }
                next
            }
        };
        is_sound &= next.is_ok() && open(batch, &header.fields).is_ok();
        is_sound &= batch.dropped.is_none() || header.fields.event_count == 0;
        is_sound &= header.fields.losses.is_empty();
        if let Ok(next) = next {
            pasts.insert(agent_id, next);
        }
    }
    is_sound
}

/// What docs/ledger.md asks of a batch behind another.
fn accepted(past: &Past, batch: &Batch, header: &Header, next: &Past) {
    let fields = &header.fields;
    assert_eq!(fields.agent_id, past.agent_id);
    assert!(fields.batch > past.batch && fields.epoch >= past.epoch);
    assert!(is_signed(batch, fields));
    let follows = fields.batch == past.batch + 1;
    if follows {
        assert_eq!(fields.previous_hash, past.hash);
        assert_eq!(fields.events_before, past.events);
    }
    match fields.epoch - past.epoch {
        0 => assert_eq!(fields.public_key, past.public_key),
        1 => assert_eq!(fields.public_key, past.next_public_key),
        _ => assert!(!follows),
    }
    assert!(fields.events_before >= past.events);
    assert_eq!(*next, Past::of(header));
}
