//! Table files that are gone, cut or damaged: the collector starts, names them, and serves the rest.

use std::{fs, path::PathBuf};

use audit_collector::Config;
use audit_proto::v1::{QueryRequest, TailRequest, TailResponse};
use tonic::Code;

use crate::support::{
    Agent, Collector, config, deliver, eventually, number, parquet_files, query, status, tail,
};

const FILES: usize = 3;
/// Of one file.
const EVENTS: i64 = 1000;

fn settings(dir: &std::path::Path) -> Config {
    let mut settings = config(dir);
    settings.table.compact_rows = EVENTS as usize;
    settings
}

/// A stopped collector's table of `FILES` files, in order of their events.
async fn files(settings: &Config, agent: &mut Agent) -> Vec<PathBuf> {
    let collector = Collector::start(settings.clone()).await;
    for file in 1..=FILES {
        // One batch, so that no compaction begins halfway.
        let batches = agent.batches(1, EVENTS as usize);
        deliver(&collector.channel, agent, &batches).await;
        eventually("compaction", || async {
            let status = status(&collector.channel).await;
            (status.table_files, status.uncompacted_events) == (file as i64, 0)
        })
        .await;
    }
    collector.stop().await;
    let files = parquet_files(&settings.data_dir);
    assert_eq!(files.len(), FILES);
    files
}

async fn missing_of(collector: &Collector, sql: &str) -> i64 {
    let request = QueryRequest {
        sql: sql.into(),
        limit: 0,
    };
    let answer = collector.client().query(request).await;
    let mut stream = answer.expect("query").into_inner();
    let mut missing = 0;
    while let Some(piece) = stream.message().await.expect("answer") {
        missing += piece.missing_events;
    }
    missing
}

fn walk() -> TailRequest {
    TailRequest {
        since_time: Some(0),
        until_now: true,
        ..TailRequest::default()
    }
}

fn counted(responses: &[TailResponse]) -> (i64, i64, i64) {
    let events = responses.iter().map(|r| r.events.len() as i64).sum();
    let missing = responses.iter().map(|r| r.missing_events).sum();
    (events, missing, responses.last().map_or(-1, |r| r.behind))
}

const COUNT: &str = "select count(*) from events";
/// Only events of the last file.
const LATE: &str = "select count(*) from events where time > to_timestamp_micros(1795000002500000)";
const EARLY: &str =
    "select count(*) from events where time < to_timestamp_micros(1795000000500000)";

#[tokio::test]
async fn missing_and_cut_files_are_named_counted_and_welcome_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let settings = settings(dir.path());
    let mut agent = Agent::new("run1");
    let files = files(&settings, &mut agent).await;
    let whole: Vec<Vec<u8>> = files[..2]
        .iter()
        .map(|f| fs::read(f).expect("read"))
        .collect();
    fs::remove_file(&files[0]).expect("removes");
    fs::write(&files[1], &whole[1][..whole[1].len() / 2]).expect("cuts");

    let collector = Collector::start(settings.clone()).await;
    let now = status(&collector.channel).await;
    let [problem] = &now.problems[..] else {
        panic!("{now:?}");
    };
    for said in [
        files[0].to_str().expect("text"),
        files[1].to_str().expect("text"),
        "2000 events are missing",
        &format!("{} bytes instead of {}", whole[1].len() / 2, whole[1].len()),
        "backup",
    ] {
        assert!(problem.contains(said), "{said:?} is not in {problem}");
    }
    assert_eq!((now.stored_events, now.missing_events), (3000, 2000));
    assert_eq!(number(&collector.channel, COUNT).await, 1000);
    assert_eq!(missing_of(&collector, COUNT).await, 2000);
    assert_eq!(missing_of(&collector, EARLY).await, 1000);
    assert_eq!(number(&collector.channel, LATE).await, 500);
    assert_eq!(missing_of(&collector, LATE).await, 0);
    let walked = tail(&collector.channel, walk()).await;
    assert_eq!(counted(&walked), (1000, 2000, 0));

    // It goes on, and its next compaction does not forget them.
    let batches = agent.batches(1, EVENTS as usize);
    deliver(&collector.channel, &agent, &batches).await;
    eventually("compaction", || async {
        status(&collector.channel).await.uncompacted_events == 0
    })
    .await;
    assert_eq!(number(&collector.channel, COUNT).await, 2000);
    let live = TailRequest {
        cursor: walked[1].events[999].cursor.clone(),
        until_now: true,
        ..TailRequest::default()
    };
    assert_eq!(
        counted(&tail(&collector.channel, live).await),
        (1000, 0, 0),
        "a reader that is past them hears nothing of them"
    );
    collector.stop().await;

    for (file, content) in files.iter().zip(&whole) {
        fs::write(file, content).expect("put back");
    }
    let collector = Collector::start(settings).await;
    let now = status(&collector.channel).await;
    assert_eq!((now.missing_events, now.problems.len()), (0, 0), "{now:?}");
    assert_eq!(number(&collector.channel, COUNT).await, 4000);
    let walked = tail(&collector.channel, walk()).await;
    assert_eq!(counted(&walked), (4000, 0, 0));
    collector.stop().await;
}

#[tokio::test]
async fn a_damaged_file_is_named_by_what_reads_it_and_by_nothing_else() {
    let dir = tempfile::tempdir().expect("tempdir");
    let settings = settings(dir.path());
    let files = files(&settings, &mut Agent::new("run1")).await;
    let whole = fs::read(&files[0]).expect("read");
    let end = whole.len();
    let question = "select * from events";
    // The second are values of the first column.
    for hurt in [4..end / 2, 100..300, end - 300..end - 8, 0..end] {
        let mut content = whole.clone();
        content[hurt.clone()].fill(0xee);
        fs::write(&files[0], content).expect("write");
        let collector = Collector::start(settings.clone()).await;
        let refused = query(&collector.channel, question).await;
        let refused = refused.expect_err(&format!("{hurt:?} of {end} are damaged"));
        assert_eq!(refused.code(), Code::DataLoss, "{refused}");
        let name = files[0].to_str().expect("text");
        assert!(refused.message().starts_with(name), "{refused}");
        let stream = collector.client().tail(walk()).await;
        let refused = match stream {
            Err(refused) => refused,
            Ok(stream) => {
                use tokio_stream::StreamExt as _;
                let walked: Result<Vec<_>, _> = stream.into_inner().collect().await;
                walked.expect_err("damaged")
            }
        };
        assert_eq!(refused.code(), Code::DataLoss, "{refused}");
        assert!(refused.message().starts_with(name), "{refused}");
        assert_eq!(number(&collector.channel, LATE).await, 500);
        collector.stop().await;
    }
}

/// A decoder may do anything with damaged bytes, panic too: the question is answered or refused.
#[tokio::test]
async fn whatever_is_damaged_a_question_has_an_answer_or_an_error() {
    let dir = tempfile::tempdir().expect("tempdir");
    let settings = settings(dir.path());
    let files = files(&settings, &mut Agent::new("run1")).await;
    let whole = fs::read(&files[0]).expect("read");
    let collector = Collector::start(settings).await;
    let mut refusals = 0;
    for round in 0..100 {
        let at = whole.len() * round / 100;
        let mut content = whole.clone();
        for byte in content.iter_mut().skip(at).take(1 + round % 8) {
            *byte ^= 0x50 ^ (round as u8 & 15);
        }
        fs::write(&files[0], content).expect("write");
        match query(&collector.channel, "select * from events").await {
            Ok(batches) => {
                let rows: usize = batches
                    .iter()
                    .map(arrow::array::RecordBatch::num_rows)
                    .sum();
                assert_eq!(rows, 3000, "damaged at {at}");
            }
            Err(refused) => {
                refusals += 1;
                assert_eq!(refused.code(), Code::DataLoss, "at {at}: {refused}");
                let name = files[0].to_str().expect("text");
                assert!(refused.message().starts_with(name), "at {at}: {refused}");
            }
        }
    }
    assert!(refusals > 20, "{refusals}");
    fs::write(&files[0], whole).expect("write");
    assert_eq!(number(&collector.channel, COUNT).await, 3000);
    collector.stop().await;
}
