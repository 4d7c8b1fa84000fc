use audit_proto::Message as _;
use proptest::prelude::*;
use std::time::Duration;

use super::*;
use crate::{
    batch::Limits as BatchLimits,
    container::Containers,
    identity::Identity,
    process::{Limits, Table},
    sample, seal, spool,
    users::Users,
};

/// A stage, and what its batches go through.
struct Bench {
    stage: Stage,
    opened: spool::Opened,
    /// Its CPU time.
    sealing: std::thread::JoinHandle<Duration>,
    /// What it abandoned.
    keeping: std::thread::JoinHandle<u64>,
    _dir: tempfile::TempDir,
}

impl Bench {
    /// The bytes of all events, as they were sealed.
    fn finish(mut self) -> Vec<Vec<u8>> {
        self.stage.parts.batch.end();
        drop(self.stage);
        self.sealing.join().expect("sealing");
        assert_eq!(self.keeping.join().expect("keeping"), 0);
        let spool = self.opened.spool;
        spool.close();
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.expect("runtime");
        let mut events = Vec::new();
        while let Some(next) = runtime.block_on(spool.after(0)) {
            let header = audit_ledger::header(&next.batch).expect("header");
            let opened = audit_ledger::open(&next.batch, &header.fields).expect("verifies");
            events.extend(opened.events().map(<[u8]>::to_vec));
            spool.acknowledge(next.number);
        }
        events
    }
}

/// Of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn bench() -> Bench {
    let identity = Identity {
        host_id: "0123456789abcdef0123456789abcdef".to_owned(),
        host_name: "test".to_owned(),
        boot_id: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
        run: "0123456789ab".to_owned(),
    };
    let limits = Limits {
        entries: 65_536,
        bytes: 24 << 20,
    };
    let batch = BatchLimits {
        events: 4096,
        bytes: 4 << 20,
        delay: Duration::from_millis(200),
    };
    let dir = tempfile::tempdir().expect("tempdir");
    let limits_of_spool = spool::Limits {
        disk_bytes: 1 << 40,
        max_age: Duration::from_secs(1000),
        when_full: spool::WhenFull::Block,
        memory_bytes: 1 << 30,
        segment_bytes: spool::Limits::SEGMENT_BYTES,
        epoch_batches: spool::Limits::EPOCH_BATCHES,
    };
    let opened = spool::open(dir.path(), &identity, limits_of_spool).expect("spool");
    let counters = Arc::<Counters>::default();
    let (handover, sealing, keeping) = seal::handover(seal::Parts {
        marked: false,
        spool: Arc::clone(&opened.spool),
        counters: Arc::clone(&counters),
        batch_bytes: batch.bytes,
        next_within: Duration::from_secs(10),
        give_up: Box::new(|| false),
        gaps: std::sync::mpsc::sync_channel(1).1,
    });
    let stage = Stage::new(Parts {
        clock: Clock::from_offset(0),
        enricher: Enricher::new(
            Table::new(&identity.boot_id, limits),
            Containers::of_host(&[]),
            Users::of_host(),
        ),
        filter: Filter::new(&[], &[]).expect("filter"),
        batch: OpenBatch::new(batch, handover),
        counters,
        host: identity.host(),
    });
    Bench {
        stage,
        opened,
        sealing: std::thread::spawn(|| {
            sealing.run();
            cpu_time()
        }),
        keeping: std::thread::spawn(|| keeping.run()),
        _dir: dir,
    }
}

/// CPU time of an event, on the reader's thread and on the sealing one:
/// `cargo test -p audit-agent -p audit-cli -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement"]
fn cost_of_an_event() {
    for kind in [
        kind::OPEN,
        kind::EXEC,
        kind::CONNECT,
        kind::UNLINK,
        kind::EXIT,
    ] {
        // Each process makes so many events, one after the other.
        for run in [1, 100] {
            let mut bench = bench();
            let record = sample::record(kind);
            let containers = &mut bench.stage.parts.enricher.containers;
            containers.learn(record.header.cgroup_id, b"/");
            let mut round = Round::default();
            for n in 0..10_000_u32 {
                let mut record = record.clone();
                record.header.pid = 1000 + n / run;
                record.header.start_time_ns = u64::from(n / run);
                record.header.time_ns += u64::from(n);
                round.push(u64::from(n), &record.bytes());
            }
            let before = cpu_time();
            for _ in 0..20 {
                bench.stage.round(&round, Instant::now());
            }
            let read = (cpu_time() - before).as_nanos() / 200_000;
            bench.stage.parts.batch.close();
            drop(bench.stage);
            let sealing = bench.sealing.join().expect("sealing");
            let sealed = sealing.as_nanos() / 200_000;
            println!(
                "kind {kind}, {run} of a process: {read} ns an event, and {sealed} to seal it"
            );
            assert!(read + sealed < 30_000, "kind {kind}: {read} + {sealed} ns");
        }
    }
}

/// The last event of these records, without its number.
fn last(records: &[Vec<u8>]) -> Event {
    let mut bench = bench();
    let cgroup = sample::header(kind::OPEN).cgroup_id;
    // A thread whose cgroup is not known yet is never told from memory.
    bench.stage.parts.enricher.containers.learn(cgroup, b"/");
    for bytes in records {
        bench.stage.record(bytes, Instant::now());
    }
    let events = bench.finish();
    let bytes = events.last().expect("an event");
    let mut event = Event::decode(bytes.as_slice()).expect("an event");
    assert_eq!(event.encode_to_vec(), *bytes, "as anyone else encodes it");
    (event.id, event.sequence) = Default::default();
    event
}

#[test]
fn a_reused_event_keeps_nothing_of_the_one_before() {
    let of = |kind: u16, pid: u32| {
        let mut sample = sample::record(kind);
        sample.header.pid = pid;
        sample.bytes()
    };
    let kinds: Vec<u16> = kind::ALL.iter().map(|row| row.number).collect();
    for after in &kinds {
        let alone = last(&[of(*after, 77)]);
        for before in &kinds {
            assert_eq!(
                last(&[of(*before, 78), of(*after, 77)]),
                alone,
                "{before} then {after}"
            );
        }
    }
}

#[test]
fn a_thread_that_is_met_again_is_told_as_if_it_was_new() {
    let open = sample::record(kind::OPEN);
    let in_jail = open.clone().section(section::PATH, b"out\0jail\0srv\0");
    let mut in_jail = in_jail;
    in_jail.sections[0].2 = 4;
    let mut renamed = open.clone();
    renamed.header.comm = *b"renamed\0\0\0\0\0\0\0\0\0";
    let exec = sample::record(kind::EXEC);
    let mut fork = sample::record(kind::FORK);
    fork.header.pid = open.header.parent_pid;
    fork.header.tid = open.header.parent_pid;
    fork.header.start_time_ns = open.header.parent_start_time_ns;
    fork.header.comm = *b"parent\0\0\0\0\0\0\0\0\0\0";
    let mut setuid = sample::call(kind::CREDENTIALS, "setuid");
    setuid.header.credentials.uid = 0;
    let mut as_root = open.clone();
    as_root.header.credentials.uid = 0;
    let told = |samples: &[&sample::Sample]| {
        let records: Vec<_> = samples.iter().map(|sample| sample.bytes()).collect();
        last(&records)
    };
    for kind in kind::ALL {
        let other = sample::record(kind.number);
        for (changed, by) in [
            (&open, &exec),
            (&in_jail, &open),
            (&open, &in_jail),
            (&renamed, &open),
            (&open, &fork),
            (&as_root, &setuid),
            (&open, &other),
            (&other, &open),
        ] {
            // The table knows as much in both; only in the second is the thread's event in use.
            let far = |tid: u32| {
                let mut open = open.clone();
                open.header.tid = tid;
                open
            };
            let fresh = told(&[&far(1), &far(2), by, &far(3), changed]);
            let again = told(&[&open, &open, by, &open, changed]);
            assert_eq!(again, fresh, "{} with {changed:?} by {by:?}", kind.name);
        }
    }
}

/// Records that become no event of their own: pieces of argv, and names of cgroups.
fn is_silent(bytes: &[u8]) -> bool {
    decode::parse(bytes).is_ok_and(|record| match record.header.kind {
        kind::EXEC_ARGS => record.payload::<ExecArgs>().is_some(),
        kind::CGROUP => record.payload::<Cgroup>().is_some(),
        _ => false,
    })
}

fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        prop::sample::select(kind::ALL).prop_map(|row| row.number),
        Just(kind::EXEC_ARGS),
        Just(kind::CGROUP),
        any::<u16>(),
    ];
    let change = (any::<prop::sample::Index>(), any::<u8>());
    let changes = prop::collection::vec(change, 0..12);
    let changed =
        (number, changes, any::<prop::sample::Index>()).prop_map(|(number, changes, end)| {
            let mut sample = sample::record(kind::EXIT);
            if kind::from_number(number).is_some() {
                sample = sample::record(number);
            }
            sample.header.kind = number;
            let mut bytes = sample.bytes();
            let whole = changes.len() < 6;
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let end = end.index(bytes.len() + 1);
            bytes.truncate(if whole { bytes.len() } else { end });
            bytes
        });
    prop_oneof![8 => changed, 1 => any::<Vec<u8>>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_record_is_an_event_a_part_of_one_or_counted(
        records in prop::collection::vec(hostile(), 1..80),
    ) {
        let mut stage = bench().stage;
        let mut round = Round::default();
        for (at, record) in (0..).zip(&records) {
            round.push(at, record);
        }
        let now = Instant::now();
        stage.round(&round, now);
        stage.drain(now);
        let silent = records.iter().filter(|record| is_silent(record)).count() as u64;
        let counters = &stage.parts.counters;
        let told = counters::get(&counters.sealed)
            + counters::get(&counters.filtered)
            + counters::get(&counters.merged_exits)
            + counters::get(&counters.other_cgroups);
        let told_otherwise = told - counters::get(&counters.dns_messages);
        let records_of_dns = counters::get(&counters.dns_records);
        prop_assert_eq!(told_otherwise + records_of_dns + silent, records.len() as u64);
        prop_assert_eq!(counters::get(&counters.records), records.len() as u64);
        prop_assert!(counters::get(&counters.lost) == counters::get(&counters.undecodable));
    }
}

/// The events of these records, by what was asked.
fn asked(stage: &mut Stage, records: &[sample::Sample]) -> Vec<String> {
    let mut asked = Vec::new();
    for record in records {
        let before = counters::get(&stage.parts.counters.sealed);
        let header = record.header;
        stage.record(&record.bytes(), Instant::now());
        let events = counters::get(&stage.parts.counters.sealed) - before;
        let actor = stage.actors.take(&header);
        let dns = actor.event.dns.clone().unwrap_or_default();
        stage.actors.keep(&header, actor);
        asked.push(format!("{events} {}", dns.query_name));
    }
    asked
}

#[test]
fn a_stream_of_dns_becomes_an_event_for_each_message() {
    let message = crate::dns::sample_answer("a.example", [192, 0, 2, 7].into());
    let framed = [&(message.len() as u16).to_be_bytes(), &message[..]].concat();
    let piece = |sequence: u32, bytes: &[u8]| {
        let mut sample = sample::record(kind::DNS).section(section::DNS, bytes);
        let mut dns = sample.payload_as::<audit_common::record::Dns>();
        dns.socket.protocol = 6;
        dns.sequence = sequence;
        dns.wire_bytes = bytes.len() as u64;
        sample.payload = zerocopy::IntoBytes::as_bytes(&dns).to_vec();
        sample
    };
    let (begin, end) = framed.split_at(9);
    let size = framed.len() as u32;
    let pieces = [
        piece(100, begin),
        piece(109, end),
        piece(100 + size, &[&framed[..], &framed[..], begin].concat()),
        sample::record(kind::DNS).section(section::DNS, b"not a message of DNS"),
    ];
    let mut stage = bench().stage;
    let found = asked(&mut stage, &pieces);
    assert_eq!(found, ["0 ", "1 a.example", "2 a.example", "0 "]);
    let counters = &stage.parts.counters;
    assert_eq!(counters::get(&counters.dns_messages), 3);
    assert_eq!(counters::get(&counters.undecodable), 0);
    assert_eq!(stage.parts.enricher.names().counters().malformed, 1);

    stage.parts.filter = Filter::new(&[], &["dns".to_owned()]).expect("filter");
    let found = asked(&mut stage, &[sample::record(kind::DNS)]);
    assert_eq!(found, ["0 "]);
    let counters = &stage.parts.counters;
    assert_eq!(counters::get(&counters.filtered), 1);
}
