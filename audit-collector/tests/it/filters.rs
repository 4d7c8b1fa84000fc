//! Typed filters and field masks: the same of fresh rows and of files.

use audit_proto::{
    filter::parse,
    v1::{Condition, Endpoint, Event, EventFilter, Kind, Socket, TailEvent, TailRequest},
};
use tonic::Code;

use crate::support::{Agent, Collector, config, deliver, eventually, status, tail};

fn all() -> TailRequest {
    TailRequest {
        since_time: Some(0),
        until_now: true,
        ..TailRequest::default()
    }
}

fn filters(texts: &[&str]) -> Vec<EventFilter> {
    texts.iter().map(|text| parse(text).expect(text)).collect()
}

fn samples(agent: &mut Agent) -> Vec<Event> {
    let mut events = agent.events(6);
    let change = |event: &mut Event, exe: &str, argv: &[&str]| {
        let process = event.process.as_mut().expect("a process");
        process.exe = exe.into();
        process.argv = argv.iter().map(|&a| a.to_owned()).collect();
    };
    change(&mut events[0], "/usr/bin/node", &["node", "a.js"]);
    change(&mut events[1], "/usr/bin/nod", &["nod"]);
    change(&mut events[2], "/usr/bin/é%_x", &["rm", "--recursive", "/"]);
    events[3].kind = Kind::Connect.into();
    events[3].socket = Some(Socket {
        peer: Some(Endpoint {
            address: "10.1.2.3".into(),
            port: Some(443),
            ..Endpoint::default()
        }),
        ..Socket::default()
    });
    events[4].kind = Kind::Connect.into();
    events[4].socket = Some(Socket {
        peer: Some(Endpoint {
            address: "fe80::1".into(),
            port: Some(22),
            ..Endpoint::default()
        }),
        ..Socket::default()
    });
    events[5].process = None;
    events
}

async fn sequences(collector: &Collector, request: TailRequest) -> Vec<i64> {
    let responses = tail(&collector.channel, request).await;
    let events = responses.into_iter().flat_map(|r| r.events);
    events
        .filter_map(|e: TailEvent| e.event?.sequence)
        .collect()
}

/// Allow, deny and the sequences of the samples that pass.
const CASES: [(&[&str], &[&str], &[i64]); 24] = [
    (&[], &[], &[1, 2, 3, 4, 5, 6]),
    (&["kind=exec"], &[], &[1, 2, 3, 6]),
    (&["kind=exec|connect"], &["kind=connect"], &[1, 2, 3, 6]),
    (&["process_exe=/usr/bin/node"], &[], &[1]),
    (&["process_exe^=/usr/bin/nod"], &[], &[1, 2]),
    (&["process_exe^=/usr/bin/é%"], &[], &[3]),
    (&["process_exe^=/usr/bin/_"], &[], &[]),
    (&["process_exe$=node|nod"], &[], &[1, 2]),
    (&["process_exe*=in/n"], &[], &[1, 2]),
    (&["process_exe~=nod(e)?$"], &[], &[1, 2]),
    (&["process_argv=rm"], &[], &[3]),
    (&["process_argv^=--rec"], &[], &[3]),
    (&["process_argv$=.js", "process_argv=nod"], &[], &[1, 2]),
    (&["process_argv~=^-{1\\,2}r"], &[], &[3]),
    (&["process_argv=node|nod,process_exe$=node"], &[], &[1]),
    (&["socket_peer_address<<=10.0.0.0/8"], &[], &[4]),
    (
        &["socket_peer_address<<=10.0.0.0/8|fe80::/10"],
        &[],
        &[4, 5],
    ),
    (&["socket_peer_port>=22,socket_peer_port<=100"], &[], &[5]),
    (&["socket_peer_port=443|22"], &[], &[4, 5]),
    (&["!process_exe"], &[], &[6]),
    (&["socket_peer_port"], &[], &[4, 5]),
    // What an event does not have denies nothing.
    (&[], &["process_exe=/usr/bin/node"], &[2, 3, 4, 5, 6]),
    (
        &[],
        &["socket_peer_port<=1000", "process_argv=rm"],
        &[1, 2, 6],
    ),
    (&[], &["kind=exec,process_exe^=/usr"], &[4, 5, 6]),
];

async fn check_cases(collector: &Collector) {
    for (allow, deny, expected) in CASES {
        let request = TailRequest {
            allow: filters(allow),
            deny: filters(deny),
            ..all()
        };
        let found = sequences(collector, request).await;
        assert_eq!(found, expected, "allow {allow:?} deny {deny:?}");
    }
    // Typed, and together with SQL.
    let request = TailRequest {
        allow: vec![EventFilter {
            kinds: vec![Kind::Connect.into(), Kind::Open.into()],
            conditions: vec![Condition {
                column: "socket_peer_port".into(),
                at_least: Some(1),
                ..Condition::default()
            }],
        }],
        r#where: "socket_peer_port < 100".into(),
        ..all()
    };
    assert_eq!(sequences(collector, request).await, [5]);
}

async fn check_fields(collector: &Collector, samples: &[Event]) {
    let fields = ["socket_peer", "process_exe", "sequence"];
    let request = TailRequest {
        fields: fields.map(str::to_owned).to_vec(),
        ..all()
    };
    let responses = tail(&collector.channel, request).await;
    let masked: Vec<TailEvent> = responses.into_iter().flat_map(|r| r.events).collect();
    assert_eq!(masked.len(), samples.len());
    for (found, sample) in masked.iter().zip(samples) {
        assert!(found.masked, "says that it is");
        let expected = Event {
            id: sample.id.clone(),
            time: sample.time,
            boot_time_ns: sample.boot_time_ns,
            kind: sample.kind,
            sequence: sample.sequence,
            process: sample.process.as_ref().map(|p| audit_proto::v1::Process {
                exe: p.exe.clone(),
                ..Default::default()
            }),
            socket: sample.socket.clone(),
            ..Event::default()
        };
        assert_eq!(found.event.as_ref(), Some(&expected));
    }
    let whole = tail(&collector.channel, all()).await;
    let whole: Vec<TailEvent> = whole.into_iter().flat_map(|r| r.events).collect();
    assert!(whole.iter().all(|found| !found.masked));
    assert!(
        whole
            .iter()
            .map(|found| found.event.as_ref().expect("event"))
            .eq(samples)
    );
}

#[tokio::test]
async fn filters_and_fields_say_the_same_of_fresh_rows_and_of_files() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.table.compact_after_s = 3600;
    let collector = Collector::start(settings.clone()).await;
    let mut agent = Agent::new("run1");
    let samples = samples(&mut agent);
    let batch = agent.seal(&samples);
    deliver(&collector.channel, &agent, &[batch]).await;
    check_cases(&collector).await;
    check_fields(&collector, &samples).await;
    collector.stop().await;

    settings.table.compact_rows = 1;
    let collector = Collector::start(settings).await;
    eventually("compaction", || async {
        status(&collector.channel).await.uncompacted_events == 0
    })
    .await;
    check_cases(&collector).await;
    check_fields(&collector, &samples).await;
    collector.stop().await;
}

#[tokio::test]
async fn a_wrong_filter_is_refused_and_says_what_is_known() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let refusals = [
        (
            TailRequest {
                allow: filters(&["proces_exe=x"]),
                ..all()
            },
            "did you mean `process_exe`?",
        ),
        (
            TailRequest {
                deny: filters(&["kind=exce"]),
                ..all()
            },
            "did you mean `exec`?",
        ),
        (
            TailRequest {
                fields: vec!["procss".into()],
                ..all()
            },
            "did you mean `process`?",
        ),
        (
            TailRequest {
                last_events: -1,
                ..TailRequest::default()
            },
            "last_events",
        ),
        (
            TailRequest {
                lagged_events: -1,
                ..all()
            },
            "lagged_events",
        ),
        (
            TailRequest {
                r#where: "kind = exec".into(),
                ..all()
            },
            "'exec'",
        ),
    ];
    for (request, words) in refusals {
        let error = collector.client().tail(request).await.expect_err(words);
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(words), "{words}: {error}");
    }
    collector.stop().await;
}

#[tokio::test]
async fn the_last_events_are_the_last_that_pass() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.table.compact_rows = 1000;
    let collector = Collector::start(settings).await;
    let mut agent = Agent::new("run1");
    let mut batches = Vec::new();
    for _ in 0..30 {
        let mut events = agent.events(100);
        events[50].kind = Kind::Fork.into();
        batches.push(agent.seal(&events));
    }
    deliver(&collector.channel, &agent, &batches).await;
    let last = |last_events, allow: &[&str], since_time| TailRequest {
        last_events,
        allow: filters(allow),
        since_time,
        until_now: true,
        ..TailRequest::default()
    };
    let begin = 1_795_000_000_000_000;
    for (request, expected) in [
        (last(3, &[], None), vec![2998, 2999, 3000]),
        (last(2, &["kind=fork"], None), vec![2851, 2951]),
        (
            last(5000, &["kind=fork,sequence<=200"], None),
            vec![51, 151],
        ),
        (last(1000, &[], Some(begin + 2999 * 1000)), vec![2999, 3000]),
    ] {
        assert_eq!(sequences(&collector, request).await, expected);
    }
    assert_eq!(
        sequences(&collector, last(5000, &[], None)).await.len(),
        3000
    );
    collector.stop().await;
}
