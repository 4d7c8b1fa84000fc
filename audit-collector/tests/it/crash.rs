//! Kill at any moment: nothing acknowledged is lost, nothing is stored twice. Compaction keeps what
//! was there, proven by roots.

use std::{fs, path::Path, process::Command};

use audit_proto::{Message as _, v1::TailRequest};

use crate::support::{
    Agent, Collector, Session, config, connect, deliver, eventually, number, parquet_files, spawn,
    status, table, tail,
};

const EXACT: &str = "select count(*) n, count(distinct id) ids, count(distinct position) positions, \
                     min(sequence) first, max(sequence) last from events";

#[tokio::test]
async fn kill_9_loses_and_repeats_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = dir.path().join("collector.sock");
    let mut agent = Agent::new("run1");
    let batches = agent.batches(200, 40);
    let mut sent = 0;
    // Compaction at almost every batch, so that kills hit each of its steps.
    let options = ["table.compact_rows=300"];
    for round in 0..5 {
        let mut child = spawn(dir.path(), &options);
        let channel = connect(&socket).await;
        let mut session = Session::open(&channel, &agent.hello).await;
        assert!(
            session.welcome >= sent,
            "acknowledged {sent}, but stored {}",
            session.welcome
        );
        for batch in &batches[session.welcome as usize..(round + 1) * 40] {
            session.send(batch).await;
        }
        let target = round as i64 * 40 + 7 + round as i64 * 5;
        while sent < target {
            sent = session.ack().await.expect("ack");
        }
        child.kill();
    }
    let mut child = spawn(dir.path(), &options);
    let channel = connect(&socket).await;
    let mut session = Session::open(&channel, &agent.hello).await;
    assert!(session.welcome >= sent);
    for batch in &batches[session.welcome as usize..] {
        session.send(batch).await;
    }
    if session.welcome < 200 {
        session.acked(200).await;
    }
    let found = table(&channel, EXACT).await;
    assert!(
        found.contains("| 8000 | 8000 | 8000      | 1     | 8000 |"),
        "{found}"
    );
    child.kill();
}

#[tokio::test]
async fn compaction_changes_no_answer_and_survives_restart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.table.compact_after_s = 3600;
    let collector = Collector::start(settings.clone()).await;
    let mut agent = Agent::new("run1");
    let mut batches = agent.batches(30, 100);
    // Bytes that columns cannot give back: an unknown field, as of a newer agent.
    let odd = agent.events(3);
    let mut encoded: Vec<Vec<u8>> = odd
        .iter()
        .map(audit_proto::Message::encode_to_vec)
        .collect();
    encoded[1].extend_from_slice(&[0xfa, 0x3f, 0x01, 0x07]);
    batches.push(agent.seal_bytes(&encoded, &odd));
    deliver(&collector.channel, &agent, &batches).await;
    let question = "select * from events order by position";
    let before = table(&collector.channel, question).await;
    let walk = TailRequest {
        since_time: Some(0),
        until_now: true,
        ..TailRequest::default()
    };
    let tailed_before: Vec<_> = tail(&collector.channel, walk.clone())
        .await
        .into_iter()
        .flat_map(|r| r.events)
        .collect();
    collector.stop().await;

    settings.table.compact_rows = 1;
    let collector = Collector::start(settings.clone()).await;
    eventually("compaction", || async {
        status(&collector.channel).await.uncompacted_events == 0
    })
    .await;
    let now = status(&collector.channel).await;
    assert!(now.table_files >= 1 && now.problems.is_empty(), "{now:?}");
    assert_eq!(table(&collector.channel, question).await, before);
    let tailed: Vec<_> = tail(&collector.channel, walk.clone())
        .await
        .into_iter()
        .flat_map(|r| r.events)
        .collect();
    assert_eq!(tailed.len(), tailed_before.len());
    assert_eq!(tailed, tailed_before);
    collector.stop().await;

    let collector = Collector::start(settings).await;
    assert_eq!(table(&collector.channel, question).await, before);
    let session = Session::open(&collector.channel, &agent.hello).await;
    assert_eq!(
        session.welcome, 31,
        "the cursor of the stream outlives its WAL records"
    );
    drop(session);
    collector.stop().await;
}

#[tokio::test]
async fn orphans_of_an_unfinished_compaction_are_deleted() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.table.compact_rows = 1;
    let collector = Collector::start(settings.clone()).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(2, 10);
    deliver(&collector.channel, &agent, &batches).await;
    eventually("compaction", || async {
        status(&collector.channel).await.uncompacted_events == 0
    })
    .await;
    let data = collector.dir.clone();
    collector.stop().await;
    // As if it had died between the rename and the manifest.
    let known = parquet_files(&data);
    let orphan = known[0].with_file_name("00000000000000ff-00000000000000ff.parquet");
    fs::copy(&known[0], &orphan).expect("copy");
    fs::write(orphan.with_extension("new"), b"half").expect("write");
    let collector = Collector::start(settings).await;
    assert_eq!(
        number(&collector.channel, "select count(*) from events").await,
        20
    );
    assert_eq!(parquet_files(&data).len(), known.len());
    assert!(!orphan.with_extension("new").exists());
    collector.stop().await;
}

#[tokio::test]
async fn a_corrupt_wal_tail_is_reported_and_the_rest_served() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(5, 10);
    deliver(&collector.channel, &agent, &batches).await;
    let data = collector.dir.clone();
    collector.stop().await;
    damage_last_record(&data.join("wal"), &batches[4].encode_to_vec());
    let collector = Collector::start(config(dir.path())).await;
    assert_eq!(
        number(&collector.channel, "select count(*) from events").await,
        40
    );
    let session = Session::open(&collector.channel, &agent.hello).await;
    assert_eq!(
        session.welcome, 4,
        "the agent is asked for the lost batch again"
    );
    drop(session);
    deliver(&collector.channel, &agent, &batches[4..]).await;
    assert_eq!(
        number(&collector.channel, "select count(*) from events").await,
        50
    );
    collector.stop().await;
}

/// Flips a byte in the middle of the given record, wherever the log keeps it.
fn damage_last_record(wal: &Path, record: &[u8]) {
    use std::os::unix::fs::FileExt as _;
    for file in fs::read_dir(wal).expect("wal") {
        let path = file.expect("file").path();
        let bytes = fs::read(&path).expect("read");
        if let Some(at) = bytes.windows(record.len()).position(|w| w == record) {
            let file = fs::File::options().write(true).open(&path).expect("open");
            let middle = at + record.len() / 2;
            file.write_all_at(&[bytes[middle] ^ 0x55], middle as u64)
                .expect("write");
            return;
        }
    }
    panic!("the record is in no file of {}", wal.display());
}

#[tokio::test]
async fn sigterm_drains_and_exits_0_and_two_cannot_share_a_directory() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut child = spawn(dir.path(), &[]);
    let channel = connect(&dir.path().join("collector.sock")).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(3, 10);
    deliver(&channel, &agent, &batches).await;

    let mut second = config(dir.path());
    second.listen.unix = dir.path().join("other.sock");
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let error = audit_collector::start(second, stopped)
        .await
        .err()
        .expect("refused")
        .to_string();
    assert!(error.contains("in use by another collector"), "{error}");

    let pid = child.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .expect("kill")
            .success()
    );
    let code = tokio::task::spawn_blocking(move || child.0.wait())
        .await
        .expect("join");
    assert_eq!(code.expect("exit").code(), Some(0));
    assert!(
        !dir.path().join("collector.sock").exists(),
        "the socket is removed"
    );
}
