//! A collector: the rules of [`audit_collector::history`] over a real log on a simulated disk. What is
//! left out is what no rule depends on: columns, tables, detection.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
};

use audit_collector::{
    history::{self, History, InOrder, Place, Unfit},
    streams::Streams,
};
use audit_ledger::{Header, Past, Report, Verifier};
use audit_proto::{
    Message as _,
    v1::{Batch, Hello},
};
use audit_wal::{
    Log, Options,
    simulated::{Random, Simulated},
};

use crate::wire::{Answer, Gone, Request, Wire};

const IN_FLIGHT: usize = 6;
const DIR: &str = "/wal";

pub struct Collector {
    pub disk: Simulated,
    pub running: Option<Running>,
    /// When somebody starts it again.
    pub starts_at: u64,
    /// Until when its disk takes its time.
    pub slow_until: u64,
    /// Evidence; the store keeps it in files of its own.
    forks: Vec<Batch>,
}

pub struct Running {
    log: Log<Simulated>,
    streams: Streams,
    sessions: BTreeMap<u64, Session>,
    /// The newest of each agent.
    live: BTreeMap<String, u64>,
    queue: VecDeque<Submission>,
}

struct Session {
    hello: Option<Hello>,
    /// None until an earlier session of the same agent has finished.
    history: Option<History>,
    waiting: usize,
    /// No more requests are read; it ends when nothing waits.
    ending: Option<Answer>,
    is_over: bool,
}

struct Submission {
    connection: u64,
    record: Vec<u8>,
    header: Header,
    after: i64,
    past: Past,
}

fn options() -> Options {
    Options {
        segment_bytes: 64 << 10,
        max_record_bytes: 1 << 20,
    }
}

impl Collector {
    pub fn new(seed: u64) -> Self {
        Self {
            disk: Simulated::new(seed),
            running: None,
            starts_at: 0,
            slow_until: 0,
            forks: Vec::new(),
        }
    }

    /// As the store reads back its log.
    pub fn start(&mut self) -> Result<(), String> {
        let opened = Log::open_on(self.disk.clone(), Path::new(DIR), options());
        let (log, recovery) = opened.map_err(|error| error.to_string())?;
        if !recovery.damaged.is_empty() {
            return Err(format!("damage without a cause: {:?}", recovery.damaged));
        }
        let mut streams = Streams::default();
        for record in records(&log) {
            let header = audit_ledger::header(&record).map_err(|error| error.to_string())?;
            let agent_id = &header.fields.agent_id;
            let stored = streams.get(agent_id).map_or(0, |state| state.past.batch);
            if header.fields.batch > stored {
                streams.entry(agent_id).advance(&header, Past::of(&header));
            }
        }
        self.running = Some(Running {
            log,
            streams,
            sessions: BTreeMap::new(),
            live: BTreeMap::new(),
            queue: VecDeque::new(),
        });
        Ok(())
    }

    pub fn step(&mut self, wire: &mut Wire, now: u64, random: &mut Random) {
        let Some(running) = &mut self.running else {
            return;
        };
        for id in wire.open() {
            running.serve(id, wire, now, random, &mut self.forks);
        }
        if now >= self.slow_until {
            running.commit(wire, now, random);
        }
        running.finish(wire, now, random);
    }

    /// Everything that is stored, in order, as `hostaudit verify` reads it, and what it says.
    pub fn verify(&self, now_us: i64) -> (Vec<Batch>, Report) {
        let mut verifier = Verifier::new();
        let batches = self
            .running
            .as_ref()
            .map_or_else(Vec::new, |running| records(&running.log));
        batches.iter().for_each(|batch| verifier.batch(batch));
        self.forks.iter().for_each(|batch| verifier.fork(batch));
        (batches, verifier.finish(now_us))
    }
}

fn records(log: &Log<Simulated>) -> Vec<Batch> {
    let records = log.read_from(0).expect("a log that is open can be read");
    let record = |record: Result<(u64, Vec<u8>), _>| {
        let (_, bytes) = record.expect("no damage");
        Batch::decode(&bytes[..]).expect("a batch was written")
    };
    records.map(record).collect()
}

impl Running {
    fn serve(
        &mut self,
        id: u64,
        wire: &mut Wire,
        now: u64,
        random: &mut Random,
        forks: &mut Vec<Batch>,
    ) {
        let session = self.sessions.entry(id).or_insert_with(|| Session {
            hello: None,
            history: None,
            waiting: 0,
            ending: None,
            is_over: false,
        });
        if session.is_over || session.ending.is_some() {
            return;
        }
        if session.hello.is_some() && session.history.is_none() {
            self.enter(id, wire, now, random);
            return;
        }
        if session.waiting >= IN_FLIGHT {
            return;
        }
        match wire.request(id, now) {
            Some(Request::Hello(hello)) => {
                if let Some(older) = self.live.insert(hello.agent_id.clone(), id)
                    && let Some(older) = self.sessions.get_mut(&older)
                {
                    older.end("a newer session took over", None);
                }
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.hello = Some(hello);
                }
            }
            Some(Request::Batch(batch)) => self.batch(id, batch, wire, now, random, forks),
            None if wire.collector_is_over(id, now) => session.is_over = true,
            None => {}
        }
    }

    /// Begins when no earlier session of the same agent is left.
    fn enter(&mut self, id: u64, wire: &mut Wire, now: u64, random: &mut Random) {
        let Some(hello) = self.sessions.get(&id).and_then(|s| s.hello.clone()) else {
            return;
        };
        let mut earlier = self.sessions.range(..id);
        let is_same = |session: &Session| {
            let other = session.hello.as_ref();
            other.is_some_and(|other| other.agent_id == hello.agent_id)
        };
        if earlier.any(|(_, session)| is_same(session)) {
            return;
        }
        let mut history = History::begin(&hello, self.streams.get(&hello.agent_id).cloned());
        let welcome = history.welcome();
        wire.answer(id, Answer::Welcome(welcome), now, random);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.history = Some(history);
        }
    }

    fn batch(
        &mut self,
        id: u64,
        batch: Batch,
        wire: &mut Wire,
        now: u64,
        random: &mut Random,
        forks: &mut Vec<Batch>,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let Some(at) = &mut session.history else {
            return session.end("a batch before Hello", None);
        };
        let header = audit_ledger::header(&batch).expect("agents send whole batches");
        let number = header.fields.batch;
        let streams = &self.streams;
        let place = at.place(&header, || streams.get(&header.fields.agent_id).cloned());
        let checked = match place {
            Ok(Place::Stored(stored)) => {
                if let Some(batch) = stored {
                    wire.answer(id, Answer::Ack(batch), now, random);
                }
                return;
            }
            Ok(Place::Next(gap)) => history::follow(at.past(), &batch, &header, gap),
            Err(unfit) => Err(unfit),
        };
        let past = match checked {
            Ok(past) => past,
            Err(Unfit::Fork) => {
                forks.push(batch);
                return session.end("a fork", None);
            }
            Err(Unfit::Refused(reason)) => return session.end(&reason, Some(number)),
            Err(Unfit::Early(reason)) => return session.end(&reason, None),
        };
        if batch.dropped.is_none() {
            audit_ledger::open(&batch, &header.fields).expect("events are what was sealed");
        }
        let after = at.last();
        at.take(past.clone());
        session.waiting += 1;
        self.queue.push_back(Submission {
            connection: id,
            record: batch.encode_to_vec(),
            header,
            after,
            past,
        });
    }

    /// As the writer does: one group, one sync, then answers.
    fn commit(&mut self, wire: &mut Wire, now: u64, random: &mut Random) {
        if self.queue.is_empty() || random.once_in(3) {
            return;
        }
        let size = 1 + random.below(self.queue.len() as u64) as usize;
        let mut in_order = InOrder::default();
        let mut group = Vec::new();
        for submission in self.queue.drain(..size) {
            let stored = || {
                let state = self.streams.get(&submission.past.agent_id);
                state.map_or(0, |state| state.past.batch)
            };
            match in_order.follows(&submission.past, submission.after, stored) {
                true => group.push(submission),
                false => fail(&mut self.sessions, submission.connection, "a gap"),
            }
        }
        let records: Vec<&[u8]> = group.iter().map(|s| s.record.as_slice()).collect();
        let written = match records.is_empty() {
            true => Ok(Vec::new()),
            false => self.log.append_all(&records),
        };
        for submission in group {
            let id = submission.connection;
            if written.is_err() {
                fail(&mut self.sessions, id, "the disk fails");
                continue;
            }
            let batch = submission.past.batch;
            let stream = self.streams.entry(&submission.past.agent_id);
            stream.advance(&submission.header, submission.past);
            let Some(session) = self.sessions.get_mut(&id) else {
                continue;
            };
            session.waiting -= 1;
            if let Some(history) = &mut session.history {
                history.store(batch);
            }
            wire.answer(id, Answer::Ack(batch), now, random);
        }
    }

    /// Sessions for which nothing waits any more.
    fn finish(&mut self, wire: &mut Wire, now: u64, random: &mut Random) {
        let over = |session: &mut Session| {
            session.waiting == 0 && (session.is_over || session.ending.is_some())
        };
        let over: Vec<(u64, Session)> = self.sessions.extract_if(.., |_, s| over(s)).collect();
        for (id, session) in over {
            if let Some(answer) = session.ending {
                wire.answer(id, answer, now, random);
            }
            wire.close(id, Gone::Collector, now, random);
            if let Some(hello) = session.hello
                && self.live.get(&hello.agent_id) == Some(&id)
            {
                self.live.remove(&hello.agent_id);
            }
        }
    }
}

fn fail(sessions: &mut BTreeMap<u64, Session>, id: u64, reason: &str) {
    if let Some(session) = sessions.get_mut(&id) {
        session.waiting -= 1;
        session.end(reason, None);
    }
}

impl Session {
    fn end(&mut self, reason: &str, refused: Option<i64>) {
        if self.ending.is_none() {
            let reason = reason.to_owned();
            self.ending = Some(Answer::End { reason, refused });
        }
    }
}
