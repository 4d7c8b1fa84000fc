//! A host: a kernel that counts and keeps what it records, and an agent that takes it, with the real
//! spool on a simulated disk and the real rules of a session.

use std::{
    collections::{BTreeSet, VecDeque},
    path::Path,
    sync::Arc,
    task::Poll,
};

use audit_agent::{
    identity::Identity,
    ship::session::{Reaction, Refusals, Session, Wrong},
    spool::{self, Limits, Mark, Opened, SetState, Spool, State},
};
use audit_ledger::{Frames, Summary};
use audit_proto::v1::{Batch, BatchRange, ClassCount, Hello, Lost};
use audit_wal::simulated::{Random, Simulated};

use crate::wire::{Answer, Gone, Request, Wire};

const STATE_DIR: &str = "/state";
const CLASS: i32 = 2;
const ACK_TIMEOUT_MS: u64 = 30_000;
const WELCOME_TIMEOUT_MS: u64 = 5_000;

/// What the kernel keeps while no agent reads it. It ends with the host.
#[derive(Debug, Default)]
struct Ring {
    last: u64,
    /// Room was given back.
    was_read: bool,
    held: VecDeque<u64>,
}

pub struct Host {
    pub number: usize,
    pub disk: Simulated,
    pub limits: Limits,
    pub ring_records: usize,
    pub agent: Option<Agent>,
    pub starts_at: u64,
    pub slow_until: u64,
    boot: u64,
    run: u64,
    ring: Option<Ring>,
    /// Everything that the kernel recorded or had to leave out, of all boots.
    pub recorded: BTreeSet<[u64; 3]>,
}

pub struct Agent {
    spool: Arc<Spool<Simulated>>,
    former: VecDeque<Arc<Spool<Simulated>>>,
    /// The last number that was taken.
    taken: u64,
    untold: Vec<Lost>,
    gaps: Vec<BatchRange>,
    /// Sealed, and not yet kept.
    sealed: VecDeque<(Batch, Mark)>,
    marks: u64,
    keep_after: u64,
    ship: Ship,
    refusals: Refusals,
    pub has_ended: bool,
    /// What happened to it, to be told.
    pub story: Vec<String>,
    /// Nothing more is taken.
    is_last: bool,
}

enum Ship {
    Waiting {
        until: u64,
    },
    Greeting {
        id: u64,
        first: i64,
        since: u64,
    },
    Open {
        id: u64,
        session: Session,
        progress: u64,
    },
    Done,
}

fn lost(place: &str, count: Option<i64>) -> Lost {
    Lost {
        class: CLASS,
        count,
        place: place.to_owned(),
        ..Lost::default()
    }
}

fn event(id: [u64; 3]) -> Vec<u8> {
    id.iter().flat_map(|part| part.to_le_bytes()).collect()
}

/// The event that an encoded one is.
pub fn id(event: &[u8]) -> [u64; 3] {
    let mut id = [0; 3];
    for (part, bytes) in id.iter_mut().zip(event.as_chunks::<8>().0) {
        *part = u64::from_le_bytes(*bytes);
    }
    id
}

impl Host {
    pub fn new(number: usize, seed: u64, limits: Limits, ring_records: usize) -> Self {
        Self {
            number,
            disk: Simulated::new(seed),
            limits,
            ring_records,
            agent: None,
            starts_at: 0,
            slow_until: 0,
            boot: 1,
            run: 0,
            ring: None,
            recorded: BTreeSet::new(),
        }
    }

    /// The workload does something.
    pub fn act(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        ring.last += 1;
        self.recorded
            .insert([self.number as u64, self.boot, ring.last]);
        if ring.held.len() < self.ring_records {
            ring.held.push_back(ring.last);
        }
    }

    pub fn kill_agent(&mut self, wire: &mut Wire, now: u64, random: &mut Random) {
        if let Some(agent) = self.agent.take() {
            agent.hang_up(wire, now, random);
        }
        self.starts_at = now + 100 + random.below(2000);
    }

    pub fn lose_power(&mut self, wire: &mut Wire, now: u64, random: &mut Random) {
        self.kill_agent(wire, now, random);
        self.disk.crash();
        self.ring = None;
        self.boot += 1;
    }

    fn boot_id(&self) -> String {
        format!("boot-{}", self.boot)
    }

    pub fn start(&mut self) -> Result<(), String> {
        self.run += 1;
        let identity = Identity {
            host_id: format!("host-{}", self.number),
            host_name: String::new(),
            boot_id: self.boot_id(),
            run: format!("run-{}", self.run),
        };
        let opened = spool::open_on(
            self.disk.clone(),
            Path::new(STATE_DIR),
            &identity,
            self.limits,
        );
        let opened = opened.map_err(|error| error.to_string())?;
        self.agent = Some(Agent::begin(opened, &mut self.ring, &identity.boot_id));
        Ok(())
    }

    pub fn step(&mut self, wire: &mut Wire, now: u64, random: &mut Random) {
        let boot_id = self.boot_id();
        let origin = [self.number as u64, self.boot];
        let (Some(agent), Some(ring)) = (&mut self.agent, &mut self.ring) else {
            return;
        };
        if now >= self.slow_until {
            agent.keep(ring, now);
        }
        let hurries = ring.held.len() * 2 > self.ring_records;
        if !agent.is_last && agent.sealed.len() < 3 && (random.once_in(3) || hurries) {
            let most = 1 + random.below(40) as usize;
            agent.take(ring, origin, &boot_id, most, now);
        }
        agent.ship(self.number, wire, now, random);
    }

    /// An orderly end of the run, when everything before is delivered: the rest is taken and kept.
    pub fn finish(&mut self, now: u64) {
        let boot_id = self.boot_id();
        let origin = [self.number as u64, self.boot];
        let (Some(agent), Some(ring)) = (&mut self.agent, &mut self.ring) else {
            return;
        };
        if agent.is_last || !agent.is_drained() {
            return;
        }
        agent.is_last = true;
        agent.take(ring, origin, &boot_id, usize::MAX, now);
        agent.keep(ring, now);
        agent.spool.close();
    }

    pub fn is_done(&self) -> bool {
        let agent = self.agent.as_ref();
        agent.is_some_and(|agent| agent.is_last && agent.is_drained())
    }
}

impl Agent {
    fn begin(opened: Opened<Simulated>, ring: &mut Option<Ring>, boot_id: &str) -> Self {
        let state = opened.state.filter(|state| state.boot_id == boot_id);
        let known = state.and_then(|state| Some(*state.sets.first()?.numbers.first()?.first()?));
        let is_new = ring.is_none();
        ring.get_or_insert_default();
        let mut untold: Vec<Lost> = opened
            .losses
            .iter()
            .map(|loss| lost(loss.place, None))
            .collect();
        // As the reader and `open_with` have it.
        match known {
            Some(_) if !is_new => {}
            _ => {
                if opened.was_cut {
                    untold.push(lost("agent", None));
                }
                if ring.get_or_insert_default().was_read {
                    untold.push(lost("ring", None));
                }
            }
        }
        let begun = Arc::clone(&opened.spool);
        let gaps = opened.holes.iter();
        let gaps = gaps.map(|(first_batch, last_batch)| BatchRange {
            first_batch: *first_batch,
            last_batch: *last_batch,
        });
        Self {
            gaps: gaps.collect(),
            spool: opened.spool,
            former: opened.former.into(),
            taken: known.filter(|_| !is_new).unwrap_or(0),
            untold,
            sealed: VecDeque::new(),
            marks: 0,
            keep_after: 0,
            ship: Ship::Waiting { until: 0 },
            refusals: Refusals::default(),
            has_ended: false,
            story: vec![format!(
                "history {} from batch {}, taken {:?}, new ring {is_new}",
                &begun.agent_id()[..6],
                begun.last(),
                known
            )],
            is_last: false,
        }
    }

    /// Some of what the ring holds becomes a sealed batch.
    fn take(&mut self, ring: &Ring, [host, boot]: [u64; 2], boot_id: &str, most: usize, now: u64) {
        let mut frames = Frames::default();
        let behind = ring.held.partition_point(|number| *number <= self.taken);
        let mut missing = 0;
        for number in ring.held.range(behind..).take(most) {
            missing += number - self.taken - 1;
            self.taken = *number;
            frames.push(&event([host, boot, *number]));
        }
        if behind + frames.len() == ring.held.len() && self.taken < ring.last {
            missing += ring.last - self.taken;
            self.taken = ring.last;
        }
        if missing > 0 {
            self.untold.push(lost("ring", i64::try_from(missing).ok()));
        }
        let is_news = !frames.is_empty() || !self.untold.is_empty() || !self.gaps.is_empty();
        if !is_news && !self.is_last {
            return;
        }
        let summary = Summary {
            sealed_time: now as i64 * 1000,
            first_time: now as i64 * 1000,
            last_time: now as i64 * 1000,
            classes: vec![ClassCount {
                class: CLASS,
                events: frames.len() as i64,
            }],
            losses: std::mem::take(&mut self.untold),
            next_within_ms: if self.is_last { 0 } else { 10_000 },
            gaps: std::mem::take(&mut self.gaps),
        };
        let batch = self.spool.seal(&frames, summary);
        self.marks += 1;
        let set = SetState {
            generation: 1,
            numbers: vec![vec![self.taken]],
            ..SetState::default()
        };
        let mark = Mark {
            number: self.marks,
            state: State {
                boot_id: boot_id.to_owned(),
                sets: vec![set],
                ..State::default()
            },
            kept: Arc::default(),
        };
        self.sealed.push_back((batch, mark));
    }

    /// What was sealed goes to the spool, and then the ring gives it back.
    fn keep(&mut self, ring: &mut Ring, now: u64) {
        if now < self.keep_after {
            return;
        }
        let batches: Vec<Batch> = self.sealed.iter().map(|(batch, _)| batch.clone()).collect();
        let Some((_, mark)) = self.sealed.back() else {
            return;
        };
        if let Err(unkept) = self.spool.try_keep(&batches, Some(mark))
            && !unkept.is_taken
        {
            self.keep_after = now + 1000;
            return;
        }
        let kept = mark.state.sets[0].numbers[0][0];
        while ring.held.pop_front_if(|number| *number <= kept).is_some() {
            ring.was_read = true;
        }
        self.sealed.clear();
        let _ = self.spool.take_dropped();
    }

    fn is_drained(&self) -> bool {
        let nothing_waits = self.sealed.is_empty() && self.untold.is_empty();
        nothing_waits && self.former.is_empty() && self.spool.depth().batches == 0
    }

    /// The history that is delivered now.
    fn current(&self) -> &Arc<Spool<Simulated>> {
        self.former.front().unwrap_or(&self.spool)
    }

    fn hang_up(&self, wire: &mut Wire, now: u64, random: &mut Random) {
        if let Ship::Greeting { id, .. } | Ship::Open { id, .. } = &self.ship {
            wire.close(*id, Gone::Agent, now, random);
        }
    }

    /// As the shipping task does.
    fn ship(&mut self, host: usize, wire: &mut Wire, now: u64, random: &mut Random) {
        match &mut self.ship {
            Ship::Waiting { until } if now >= *until => self.connect(host, wire, now, random),
            Ship::Waiting { .. } | Ship::Done => {}
            Ship::Greeting { id, first, since } => {
                let (id, first, since) = (*id, *first, *since);
                match wire.answered(id, now) {
                    Some(Answer::Welcome(welcome)) => {
                        match Session::begin(self.current(), first, welcome) {
                            Ok((session, lost)) => self.welcomed(id, session, lost, now),
                            Err(wrong) => self.wrong(wrong, wire, now, random),
                        }
                    }
                    Some(_) => self.again(None, wire, now, random),
                    None if wire.agent_is_over(id, now) || now > since + WELCOME_TIMEOUT_MS => {
                        self.again(None, wire, now, random);
                    }
                    None => {}
                }
            }
            Ship::Open { .. } => self.deliver(wire, now, random),
        }
    }

    fn connect(&mut self, host: usize, wire: &mut Wire, now: u64, random: &mut Random) {
        let spool = self.current();
        if wire.is_cut(host, now) {
            self.ship = Ship::Waiting {
                until: now + 100 + random.below(1000),
            };
            return;
        }
        let hello = Hello {
            agent_id: spool.agent_id().to_owned(),
            host_id: format!("host-{host}"),
            first_batch: spool.begin_at(),
            ..Hello::default()
        };
        let first = hello.first_batch;
        let id = wire.connect(host);
        wire.send(id, Request::Hello(hello), now, random);
        self.ship = Ship::Greeting {
            id,
            first,
            since: now,
        };
    }

    fn welcomed(&mut self, id: u64, session: Session, lost_there: Option<(i64, i64)>, now: u64) {
        if let Some((first_batch, last_batch)) = lost_there {
            self.gaps.push(BatchRange {
                first_batch,
                last_batch,
            });
            self.untold.push(lost("collector", None));
        }
        self.current().acknowledge(session.acknowledged());
        self.ship = Ship::Open {
            id,
            session,
            progress: now,
        };
    }

    fn deliver(&mut self, wire: &mut Wire, now: u64, random: &mut Random) {
        let spool = Arc::clone(self.current());
        let Ship::Open {
            id,
            session,
            progress,
        } = &mut self.ship
        else {
            return;
        };
        let id = *id;
        match wire.answered(id, now) {
            Some(Answer::Ack(batch)) => {
                if let Err(wrong) = session.acknowledge(batch) {
                    return self.wrong(wrong, wire, now, random);
                }
                *progress = now;
                spool.acknowledge(session.acknowledged());
            }
            Some(Answer::End { reason, refused }) => {
                return self.again(refused.map(|batch| (batch, reason)), wire, now, random);
            }
            Some(Answer::Welcome(_)) => return self.again(None, wire, now, random),
            None if wire.agent_is_over(id, now) => return self.again(None, wire, now, random),
            None if session.is_owed() && now > *progress + ACK_TIMEOUT_MS => {
                return self.again(None, wire, now, random);
            }
            None => {}
        }
        if !wire.has_room(id) || random.once_in(4) {
            return;
        }
        match spool.try_after(session.sent()) {
            Poll::Ready(Some(batch)) => {
                if let Err(wrong) = session.check(&batch) {
                    return self.wrong(wrong, wire, now, random);
                }
                if !session.is_owed() {
                    *progress = now;
                }
                session.sending(batch.number);
                wire.send(id, Request::Batch(batch.batch), now, random);
            }
            Poll::Ready(None) if !session.is_owed() => self.delivered(wire, now, random),
            _ => {}
        }
    }

    /// All of a history that has ended is there.
    fn delivered(&mut self, wire: &mut Wire, now: u64, random: &mut Random) {
        self.hang_up(wire, now, random);
        self.ship = match self.former.pop_front() {
            Some(former) => {
                former.remove();
                Ship::Waiting { until: now }
            }
            None => Ship::Done,
        };
    }

    fn wrong(&mut self, wrong: Wrong, wire: &mut Wire, now: u64, random: &mut Random) {
        match wrong {
            Wrong::Hole(_) => self.again(None, wire, now, random),
            Wrong::Diverged(_) => self.diverged(wire, now, random),
        }
    }

    /// The agent ends, and its next start seals anew what is left of the history.
    fn diverged(&mut self, wire: &mut Wire, now: u64, random: &mut Random) {
        self.hang_up(wire, now, random);
        self.ship = Ship::Waiting { until: now };
        let depth = self.current().depth();
        self.story.push(format!("diverged with {depth:?}"));
        self.has_ended = self.current().give_up_history().is_ok();
    }

    fn again(
        &mut self,
        refused: Option<(i64, String)>,
        wire: &mut Wire,
        now: u64,
        random: &mut Random,
    ) {
        self.hang_up(wire, now, random);
        self.ship = Ship::Waiting {
            until: now + 50 + random.below(5000),
        };
        let Some((batch, reason)) = refused else {
            return;
        };
        match self.refusals.refused(batch) {
            Reaction::Again => {}
            Reaction::DropEvents => {
                self.current().refuse(batch, &reason);
            }
            Reaction::GiveUp => self.diverged(wire, now, random),
        }
    }
}
