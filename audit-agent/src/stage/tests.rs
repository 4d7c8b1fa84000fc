use proptest::prelude::*;

use super::*;
use crate::{
    container::Containers,
    identity::Identity,
    process::{Limits, Table},
    sample,
    seal::Limits as BatchLimits,
    users::Users,
};

fn stage() -> Stage {
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
    Stage::new(Parts {
        clock: Clock::from_offset(0),
        enricher: Enricher::new(
            Table::new(&identity.boot_id, limits),
            Containers::of_host(),
            Users::of_host(),
        ),
        filter: Filter::new(&[], &[]).expect("filter"),
        seal: Seal::new(&identity, batch),
        queue: Arc::new(Queue::new(1 << 30)),
        counters: Arc::default(),
        host: identity.host(),
        give_up: Box::new(|| false),
    })
}

/// CPU time of an event from record to sealed batch: `cargo test -p audit-agent -- --ignored cost`.
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
        let mut stage = stage();
        let record = sample::record(kind);
        let mut round = Round::default();
        for n in 0..10_000_u32 {
            let mut record = record.clone();
            record.header.pid = 1000 + n % 500;
            record.header.start_time_ns = u64::from(n);
            record.header.time_ns += u64::from(n);
            round.push(u64::from(n), &record.bytes());
        }
        let now = Instant::now();
        for _ in 0..20 {
            stage.round(&round, now);
        }
        let each = now.elapsed().as_nanos() / 200_000;
        println!("kind {kind}: {each} ns an event");
        assert!(each < 30_000, "kind {kind}: {each} ns");
    }
}

#[test]
fn a_reused_event_keeps_nothing_of_the_one_before() {
    let of = |kind: u16, pid: u32| {
        let mut sample = sample::record(kind);
        sample.header.pid = pid;
        sample.bytes()
    };
    let run = |records: &[Vec<u8>]| {
        let mut stage = stage();
        let mut last = Event::default();
        for bytes in records {
            let now = Instant::now();
            stage.record(bytes, now);
            last = stage.event.clone();
        }
        (last.id, last.sequence) = Default::default();
        last
    };
    let kinds: Vec<u16> = kind::ALL.iter().map(|row| row.number).collect();
    for after in &kinds {
        let alone = run(&[of(*after, 77)]);
        for before in &kinds {
            assert_eq!(
                run(&[of(*before, 78), of(*after, 77)]),
                alone,
                "{before} then {after}"
            );
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
        let mut stage = stage();
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
            + counters::get(&counters.merged_exits);
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
        stage.record(&record.bytes(), Instant::now());
        let events = counters::get(&stage.parts.counters.sealed) - before;
        let dns = stage.event.dns.clone().unwrap_or_default();
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
    let mut stage = stage();
    let found = asked(&mut stage, &pieces);
    assert_eq!(found, ["0 ", "1 a.example", "2 a.example", "0 "]);
    let counters = &stage.parts.counters;
    assert_eq!(counters::get(&counters.dns_messages), 3);
    assert_eq!(counters::get(&counters.undecodable), 0);
    assert_eq!(stage.parts.enricher.names().counters().malformed, 1);

    stage.parts.filter = Filter::new(&[], &[])
        .and_then(|filter| filter.without(&["dns".to_owned()]))
        .expect("filter");
    let found = asked(&mut stage, &[sample::record(kind::DNS)]);
    assert_eq!(found, ["0 "]);
    let counters = &stage.parts.counters;
    assert_eq!(counters::get(&counters.filtered), 1);
}
