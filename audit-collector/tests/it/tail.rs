//! Live and from the past, with a filter, resumed by cursor: each event once.

use audit_proto::v1::{TailRequest, TailResponse};
use tonic::{Code, Streaming};

use crate::support::{Agent, Collector, config, deliver, tail};

fn ids(responses: &[TailResponse]) -> Vec<String> {
    let events = responses.iter().flat_map(|r| &r.events);
    events
        .map(|e| e.event.as_ref().expect("event").id.clone())
        .collect()
}

async fn take(stream: &mut Streaming<TailResponse>, count: usize) -> Vec<TailResponse> {
    let (mut responses, mut events) = (Vec::new(), 0);
    while events < count {
        let response = stream.message().await.expect("tail").expect("more");
        events += response.events.len();
        responses.push(response);
    }
    responses
}

#[tokio::test]
async fn a_cursor_resumes_without_gap_or_repeat_across_compaction_and_restart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.table.compact_rows = 700;
    let collector = Collector::start(settings.clone()).await;
    let mut agent = Agent::new("run1");
    let first = agent.batches(20, 100);
    deliver(&collector.channel, &agent, &first).await;
    let walk = TailRequest {
        since_time: Some(0),
        ..TailRequest::default()
    };
    let mut stream = collector
        .client()
        .tail(walk)
        .await
        .expect("tail")
        .into_inner();
    let past = take(&mut stream, 2000).await;
    assert_eq!(past.last().expect("responses").behind, 0);
    let more = agent.batches(3, 10);
    deliver(&collector.channel, &agent, &more).await;
    let live = take(&mut stream, 30).await;
    drop(stream);
    let mut seen = ids(&past);
    seen.extend(ids(&live));
    let all: Vec<String> = (1..=2030).map(|n| format!("run1-process-0-{n}")).collect();
    assert_eq!(seen, all);
    // From the middle of a batch.
    let middle = &past
        .iter()
        .flat_map(|r| &r.events)
        .nth(1234)
        .expect("event")
        .cursor;
    let resume = TailRequest {
        cursor: middle.clone(),
        until_now: true,
        ..TailRequest::default()
    };
    assert_eq!(
        ids(&tail(&collector.channel, resume.clone()).await),
        all[1235..]
    );
    collector.stop().await;
    let collector = Collector::start(settings).await;
    assert_eq!(ids(&tail(&collector.channel, resume).await), all[1235..]);
    collector.stop().await;
}

#[tokio::test]
async fn predicates_select_and_wrong_ones_are_explained() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(3, 100);
    deliver(&collector.channel, &agent, &batches).await;
    let with = |predicate: &str| TailRequest {
        since_time: Some(0),
        r#where: predicate.into(),
        until_now: true,
        ..TailRequest::default()
    };
    let found = tail(
        &collector.channel,
        with("sequence % 100 = 7 and kind = 'exec'"),
    )
    .await;
    assert_eq!(
        ids(&found),
        [
            "run1-process-0-7",
            "run1-process-0-107",
            "run1-process-0-207"
        ]
    );
    let none = tail(&collector.channel, with("kind = 'open'")).await;
    assert!(ids(&none).is_empty());
    // Where it would go on, so that this is not searched again.
    let cursor = &none.last().expect("a response").cursor;
    assert!(cursor.parse::<i64>().expect("a number") > 3 << 20);
    for (predicate, words) in [
        ("proces_pid = 1", "did you mean `process_pid`?"),
        ("process_pid", "instead of true or false"),
        ("process_pid =", ""),
    ] {
        let error = collector
            .client()
            .tail(with(predicate))
            .await
            .expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{predicate}: {error}");
        assert!(error.message().contains(words), "{predicate}: {error}");
    }
    let bad = TailRequest {
        cursor: "abc".into(),
        ..TailRequest::default()
    };
    let error = collector.client().tail(bad).await.expect_err("refused");
    assert!(error.message().contains("not a cursor"), "{error}");
    let now = TailRequest {
        until_now: true,
        ..TailRequest::default()
    };
    assert!(
        tail(&collector.channel, now).await.is_empty(),
        "from now to now there is nothing"
    );
    collector.stop().await;
}

#[tokio::test]
async fn since_time_leaves_out_what_is_older() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(2, 50);
    deliver(&collector.channel, &agent, &batches).await;
    let since = 1_795_000_000_000_000 + 90 * 1000;
    let request = TailRequest {
        since_time: Some(since),
        until_now: true,
        ..TailRequest::default()
    };
    let found = ids(&tail(&collector.channel, request).await);
    assert_eq!(found.len(), 11);
    assert_eq!(found[0], "run1-process-0-90");
    collector.stop().await;
}
