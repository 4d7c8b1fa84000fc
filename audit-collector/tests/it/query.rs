//! What SQL may do, what it answers, and what is said when it is wrong.

use std::time::Duration;

use tonic::Code;

use crate::support::{Agent, Collector, config, deliver, number, query, table};

async fn refused(collector: &Collector, sql: &str) -> tonic::Status {
    query(&collector.channel, sql).await.expect_err(sql)
}

#[tokio::test]
async fn errors_name_the_thing_and_the_nearest() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    for (sql, words) in [
        (
            "select proces_exe from events",
            "did you mean `process_exe`?",
        ),
        ("select * from event", "did you mean `events`?"),
        ("selec 1", "selec"),
        ("", "empty statement"),
        ("create table x (a int)", "only statements that read"),
        ("insert into events values (1)", "only statements that read"),
        ("drop table events", "only statements that read"),
        (
            "copy (select 1) to '/tmp/hostaudit-must-not-exist.csv'",
            "only statements that read",
        ),
        (
            "set datafusion.execution.batch_size = 1",
            "only statements that read",
        ),
        (
            "create external table p stored as parquet location '/etc'",
            "only statements that read",
        ),
    ] {
        let error = refused(&collector, sql).await;
        assert_eq!(error.code(), Code::InvalidArgument, "{sql}: {error}");
        assert!(error.message().contains(words), "{sql}: {error}");
    }
    assert!(!std::path::Path::new("/tmp/hostaudit-must-not-exist.csv").exists());
    assert_eq!(
        number(&collector.channel, "select count(*) from events").await,
        0
    );
    collector.stop().await;
}

#[tokio::test]
async fn limits_are_kept_and_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.query.max_rows = 10;
    settings.query.timeout_s = 1;
    let collector = Collector::start(settings).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(2, 20);
    deliver(&collector.channel, &agent, &batches).await;
    let request = |sql: &str, limit| audit_proto::v1::QueryRequest {
        sql: sql.into(),
        limit,
    };
    for (limit, limited) in [(0, true), (5, true), (1000, true)] {
        let answer = collector
            .client()
            .query(request("select id from events", limit))
            .await;
        let mut stream = answer.expect("query").into_inner();
        let mut last = None;
        while let Some(piece) = stream.message().await.expect("piece") {
            last = Some(piece);
        }
        assert_eq!(last.expect("pieces").limited, limited);
    }
    let rows = query(&collector.channel, "select id from events")
        .await
        .expect("rows");
    assert_eq!(
        rows.iter()
            .map(arrow::array::RecordBatch::num_rows)
            .sum::<usize>(),
        10
    );
    let slow = "select count(*) from events a, events b, events c, events d, events e, events f \
                where a.id || b.id || c.id || d.id || e.id || f.id like '%x%y%z%'";
    let error = refused(&collector, slow).await;
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    collector.stop().await;
}

#[tokio::test]
async fn filters_prune_and_files_and_fresh_rows_are_one() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.table.compact_rows = 500;
    let collector = Collector::start(settings).await;
    let mut agent = Agent::new("run1");
    for _ in 0..4 {
        let batches = agent.batches(6, 100);
        deliver(&collector.channel, &agent, &batches).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let batches = agent.batches(1, 100);
    deliver(&collector.channel, &agent, &batches).await;
    let status = crate::support::status(&collector.channel).await;
    assert!(
        status.table_files > 1 && status.uncompacted_events > 0,
        "{status:?}"
    );
    let channel = &collector.channel;
    assert_eq!(number(channel, "select count(*) from events").await, 2500);
    assert_eq!(
        number(channel, "select sum(sequence) from events").await,
        2500 * 2501 / 2
    );
    for (condition, rows) in [
        ("process_exec_id = 'x-77'", 1),
        ("sequence between 600 and 1300", 701),
        ("time >= timestamp '2026-11-18T11:06:41Z'", 1501),
        (
            "time < timestamp '2026-11-18T11:06:41Z' and kind = 'exec'",
            999,
        ),
        ("position > 1048576 and position <= 1048586", 10),
        ("file_path is not null", 0),
        ("array_has(process_argv, '/usr/bin/true')", 2500),
    ] {
        let sql = format!("select count(*) from events where {condition}");
        assert_eq!(number(channel, &sql).await, rows, "{condition}");
    }
    let described = table(channel, "describe events").await;
    assert!(
        described.contains("process_argv") && described.contains("position"),
        "{described}"
    );
    assert!(table(channel, "show tables").await.contains("alerts"));
    collector.stop().await;
}
