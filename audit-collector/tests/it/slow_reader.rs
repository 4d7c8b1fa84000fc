//! A reader that stops reading: what it costs, what it is told, and that it misses nothing.

use std::time::Duration;

use audit_proto::{
    Message as _,
    v1::{Lagged, TailRequest, TailResponse, collector_client::CollectorClient},
};
use tonic::Streaming;

use crate::support::{Agent, Collector, config, deliver, status};

/// Some ten times what the collector keeps in memory here, so that most of it is read from files.
const EVENTS: usize = 500_000;
const BATCH: usize = 2_000;

/// What one reader was sent.
#[derive(Default)]
struct Seen {
    last: i64,
    out_of_order: usize,
    lagged: Vec<Lagged>,
    /// Bytes of responses made before everything was stored: what waited here or on the way.
    stale_bytes: usize,
    cursor: String,
}

impl Seen {
    fn take(&mut self, response: &TailResponse) {
        for entry in &response.events {
            let event = entry.event.as_ref().expect("event");
            let sequence = event.sequence.expect("a sequence");
            self.out_of_order += usize::from(sequence != self.last + 1);
            self.last = sequence;
        }
        self.lagged.extend(response.lagged);
        self.cursor.clone_from(&response.cursor);
    }

    async fn read_told(&mut self, stream: &mut Streaming<TailResponse>, times: usize) {
        while self.lagged.len() < times {
            let next = tokio::time::timeout(Duration::from_secs(20), stream.message());
            let response = next.await.expect("told in time").expect("tail");
            self.take(&response.expect("more"));
        }
    }

    async fn read_to(&mut self, stream: &mut Streaming<TailResponse>, last: i64) {
        while self.last < last {
            let response = stream.message().await.expect("tail").expect("more");
            self.take(&response);
            // As of its making, not everything was stored.
            if self.last + response.behind < last {
                self.stale_bytes += response.encoded_len();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_reading_costs_little_and_misses_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.table.compact_rows = 50_000;
    settings.table.fresh_max_bytes = 32 << 20;
    let collector = Collector::start(settings).await;
    let mut agent = Agent::new("run1");
    let request = TailRequest {
        lagged_events: 5_000,
        ..TailRequest::default()
    };
    // Not compressed, so that what is on the way can be measured by what arrives.
    let mut client = CollectorClient::new(collector.channel.clone());
    let tail = client.tail(request.clone()).await;
    let mut stream = tail.expect("tail").into_inner();
    let first = agent.batches(1, 10);
    deliver(&collector.channel, &agent, &first).await;
    let mut stopped = Seen::default();
    stopped.read_to(&mut stream, 10).await;
    let cursor = stopped.cursor.clone();
    assert_eq!((stopped.lagged.len(), stopped.stale_bytes), (0, 0));

    for _ in 0..EVENTS / BATCH / 50 {
        let batches = agent.batches(50, BATCH);
        deliver(&collector.channel, &agent, &batches).await;
    }
    let all = 10 + EVENTS as i64;
    let now = status(&collector.channel).await;
    assert_eq!(now.stored_events, all);
    // Most of it has left memory, in more than one piece.
    assert!(now.table_files > 1, "{now:?}");
    assert!(now.uncompacted_events < all / 2, "{now:?}");

    // The same stream goes on.
    stopped.read_to(&mut stream, all).await;
    assert_eq!((stopped.last, stopped.out_of_order), (all, 0));
    assert!(
        stopped.stale_bytes < 8 << 20,
        "{} bytes waited for the reader",
        stopped.stale_bytes
    );
    let more = agent.batches(1, 10);
    deliver(&collector.channel, &agent, &more).await;
    stopped.read_to(&mut stream, all + 10).await;
    // These may have come before it was at the present; then that is told after them.
    stopped.read_told(&mut stream, 2).await;
    let [fell, caught_up] = stopped.lagged[..] else {
        panic!("told twice: {:?}", stopped.lagged);
    };
    assert!(!fell.over && fell.events > 5_000, "{fell:?}");
    assert!(caught_up.over && caught_up.since_time == fell.since_time);
    drop(stream);

    // And one that comes again with its cursor.
    let resumed = TailRequest {
        cursor,
        until_now: true,
        ..request
    };
    let tail = collector.client().tail(resumed).await;
    let mut stream = tail.expect("tail").into_inner();
    let mut again = Seen {
        last: 10,
        ..Seen::default()
    };
    again.read_to(&mut stream, all + 10).await;
    assert_eq!((again.last, again.out_of_order), (all + 10, 0));
    assert!(stream.message().await.expect("tail").is_none(), "the end");
    assert!(again.lagged.is_empty(), "it asked for the past");
    collector.stop().await;
}
