//! Exactly once, in order, and what is said about batches that cannot be stored.

use audit_proto::v1::{DeliverRequest, Event, deliver_request, ingest_client::IngestClient};
use tonic::Code;

use crate::support::{
    Agent, Collector, Session, config, deliver, eventually, number, status, table,
};

#[tokio::test]
async fn delivered_events_are_queried_back_with_exact_values() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("run1");
    let mut events = agent.events(3);
    events[1].process = None;
    let batch = agent.seal(&events);
    deliver(&collector.channel, &agent, &[batch]).await;
    let rows = table(
        &collector.channel,
        "select id, kind, time, process_pid, process_loginuid, process_argv, process_uid, position \
         from events order by position",
    )
    .await;
    let expected = "\
+------------------+------+-----------------------------+-------------+------------------+-------------------------------+-------------+----------+
| id               | kind | time                        | process_pid | process_loginuid | process_argv                  | process_uid | position |
+------------------+------+-----------------------------+-------------+------------------+-------------------------------+-------------+----------+
| run1-process-0-1 | exec | 2026-11-18T11:06:40.001Z    | 1           | -1               | [/usr/bin/true, , a\\xff b]    |             | 1048576  |
| run1-process-0-2 | exec | 2026-11-18T11:06:40.002Z    |             |                  |                               |             | 1048577  |
| run1-process-0-3 | exec | 2026-11-18T11:06:40.003Z    | 3           | -1               | [/usr/bin/true, , a\\xff b]    |             | 1048578  |
+------------------+------+-----------------------------+-------------+------------------+-------------------------------+-------------+----------+";
    let squeeze = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|l| l.starts_with('|'))
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    };
    assert_eq!(squeeze(&rows), squeeze(expected), "{rows}");
    let status = status(&collector.channel).await;
    assert_eq!((status.stored_events, status.stored_batches), (3, 1));
    assert_eq!(status.agents[0].host_name, "testhost");
    collector.stop().await;
}

#[tokio::test]
async fn a_duplicate_is_acknowledged_and_stored_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(3, 5);
    deliver(&collector.channel, &agent, &batches).await;
    let mut again = Session::open(&collector.channel, &agent.hello).await;
    assert_eq!(again.welcome, 3);
    again.send(&batches[1]).await;
    assert_eq!(again.ack().await.expect("acknowledged"), 3);
    assert_eq!(
        number(&collector.channel, "select count(*) from events").await,
        15
    );
    let status = status(&collector.channel).await;
    assert_eq!((status.duplicate_batches, status.rejected_batches), (1, 0));
    collector.stop().await;
}

#[tokio::test]
async fn a_bad_batch_is_named_counted_and_costs_nothing_else() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(3, 5);
    deliver(&collector.channel, &agent, &batches[..1]).await;

    let mut wrong_events = batches[1].clone();
    wrong_events.events = batches[2].events.clone();
    let mut wrong_payload = batches[1].clone();
    wrong_payload.events = vec![1, 2, 3].into();
    let mut wrong_signature = batches[1].clone();
    wrong_signature.signature = batches[2].signature.clone();
    let mut wrong_header = batches[1].clone();
    wrong_header.header = vec![0xff; 9].into();
    for (bad, words, named) in [
        (wrong_events, "its events", "2"),
        (wrong_payload, "batch 2", "2"),
        (wrong_signature, "signature", "2"),
        (wrong_header, "not an encoded BatchHeader", "0"),
    ] {
        let mut session = Session::open(&collector.channel, &agent.hello).await;
        session.send(&bad).await;
        let error = session.ack().await.expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(words), "{error}");
        let refused = error.metadata().get(audit_proto::REFUSED_BATCH);
        assert_eq!(refused.expect("a number"), named);
    }
    let mut session = Session::open(&collector.channel, &agent.hello).await;
    session.send(&batches[2]).await;
    let error = session.ack().await.expect_err("a gap is refused");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(
        error.message().contains("batches 2 to 2 are missing"),
        "{error}"
    );

    deliver(&collector.channel, &agent, &batches[1..]).await;
    assert_eq!(
        number(&collector.channel, "select count(*) from events").await,
        15
    );
    assert_eq!(status(&collector.channel).await.rejected_batches, 4);
    collector.stop().await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_told_and_counted() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(1, 5);
    let mut large = batches[0].clone();
    large.events = vec![0x5a; audit_proto::MAX_MESSAGE_BYTES + 1].into();
    let requests = [
        deliver_request::Message::Hello(agent.hello.clone()),
        deliver_request::Message::Batch(large),
    ]
    .map(|message| DeliverRequest {
        message: Some(message),
    });
    let answers = IngestClient::new(collector.channel.clone())
        .deliver(tokio_stream::iter(requests))
        .await;
    let mut answers = answers.expect("accepted").into_inner();
    answers.message().await.expect("answer").expect("welcome");
    let error = answers.message().await.expect_err("refused");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("too large"), "{error}");
    assert_eq!(status(&collector.channel).await.rejected_batches, 1);

    deliver(&collector.channel, &agent, &batches).await;
    assert_eq!(
        number(&collector.channel, "select count(*) from events").await,
        5
    );
    collector.stop().await;
}

#[tokio::test]
async fn the_newest_session_of_a_stream_wins() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(4, 2);
    let mut old = Session::open(&collector.channel, &agent.hello).await;
    old.send(&batches[0]).await;
    old.acked(1).await;
    let mut new = Session::open(&collector.channel, &agent.hello).await;
    assert_eq!(new.welcome, 1);
    assert_eq!(old.ack().await.expect_err("ended").code(), Code::Aborted);
    new.send(&batches[1]).await;
    new.acked(2).await;
    assert_eq!(
        number(&collector.channel, "select count(*) from events").await,
        4
    );
    collector.stop().await;
}

#[tokio::test]
async fn many_agents_at_once_lose_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let channel = collector.channel.clone();
            tokio::spawn(async move {
                let mut agent = Agent::new(&format!("run{n}"));
                let batches = agent.batches(20, 50);
                deliver(&channel, &agent, &batches).await;
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("delivers");
    }
    let counts = "select count(*) from (select distinct id from events)";
    assert_eq!(number(&collector.channel, counts).await, 8000);
    assert_eq!(
        number(&collector.channel, "select count(*) from events").await,
        8000
    );
    assert_eq!(
        number(
            &collector.channel,
            "select count(distinct position) from events"
        )
        .await,
        8000
    );
    collector.stop().await;
}

#[tokio::test]
async fn an_empty_batch_is_a_batch() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("run1");
    let none: [Event; 0] = [];
    let batches = [agent.seal(&none), agent.seal(&none)];
    deliver(&collector.channel, &agent, &batches).await;
    assert_eq!(status(&collector.channel).await.stored_batches, 2);
    assert_eq!(
        number(&collector.channel, "select count(*) from events").await,
        0
    );
    collector.stop().await;
}

/// What an agent says of itself may be anything, and the sums of it are kept.
#[tokio::test]
async fn losses_that_no_number_can_hold_end_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("run1");
    for count in [i64::MAX, 1] {
        let mut event = agent.event("/usr/bin/true");
        event.kind = audit_proto::v1::Kind::Lost.into();
        event.lost = Some(audit_proto::v1::Lost {
            count: Some(count),
            ..audit_proto::v1::Lost::default()
        });
        let batch = agent.seal(&[event]);
        deliver(&collector.channel, &agent, &[batch]).await;
    }
    let status = status(&collector.channel).await;
    assert_eq!(status.agents[0].lost, i64::MAX);
    collector.stop().await;
}

/// 2.4 GB of events in 40 messages of a few kilobytes: an array of Arrow ends at 2 GiB.
#[tokio::test]
async fn events_that_are_small_only_for_what_they_share_are_compacted() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.table.compact_rows = 10_000;
    let collector = Collector::start(settings).await;
    let mut agent = Agent::new("run1");
    let mut event = agent.event("/usr/bin/true");
    event.process.as_mut().expect("a process").argv = vec!["x".repeat(250_000)];
    let events = vec![event; 250];
    for _ in 0..40 {
        let batch = agent.seal(&events);
        deliver(&collector.channel, &agent, &[batch]).await;
    }
    eventually("all is compacted", async || {
        let status = status(&collector.channel).await;
        assert_eq!(status.problems, [""; 0]);
        status.uncompacted_events == 0
    })
    .await;
    let all = "select count(process_argv) from events";
    assert_eq!(number(&collector.channel, all).await, 10_000);
    collector.stop().await;
}
