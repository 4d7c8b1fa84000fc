//! What goes in sealed comes out sealed, and what is wrong with it has its name.

use audit_ledger::{Former, Frames, Key, Past, Report, Sealer, Tampering, Verdict, Verifier};
use audit_proto::v1::{Batch, ExportEnd, ExportRequest, ledger_client::LedgerClient};
use tonic::{Code, transport::Channel};

use crate::support::{
    Agent, Collector, Session, config, deliver, eventually, header, number, parquet_files, status,
};

async fn export(channel: &Channel, request: ExportRequest) -> (Vec<Batch>, ExportEnd) {
    let mut client = LedgerClient::new(channel.clone())
        .max_decoding_message_size(audit_proto::MAX_MESSAGE_BYTES);
    let mut answers = client.export(request).await.expect("accepted").into_inner();
    let (mut batches, mut end) = (Vec::new(), None);
    while let Some(answer) = answers.message().await.expect("answer") {
        batches.extend(answer.batches);
        end = answer.end;
    }
    (batches, end.expect("an end"))
}

fn verify(batches: &[Batch], end: &ExportEnd) -> Report {
    let mut verifier = Verifier::new();
    batches.iter().for_each(|batch| verifier.batch(batch));
    end.forks.iter().for_each(|fork| verifier.fork(fork));
    let told = end.unreadable.iter();
    told.for_each(|what| verifier.unreadable(what.clone()));
    // The tests' agents live in another time, and promise nothing.
    verifier.finish(end.time)
}

/// Of two agents, of which one evolves its key, mixed; more than a day long.
fn mixed() -> (Vec<Agent>, Vec<(usize, Batch)>) {
    let mut agents = vec![Agent::new("one"), Agent::new("two")];
    let mut batches = Vec::new();
    for at in 0..24_usize {
        let agent = &mut agents[at % 2];
        let mut events = agent.events(at % 7);
        for event in &mut events {
            event.time += at as i64 * 6 * 3_600_000_000;
        }
        batches.push((at % 2, agent.seal(&events)));
        if at % 6 == 0 {
            agent.sealer.evolve();
        }
    }
    (agents, batches)
}

async fn deliver_mixed(channel: &Channel, agents: &[Agent], batches: &[(usize, Batch)]) {
    for (of, batch) in batches {
        deliver(channel, &agents[*of], std::slice::from_ref(batch)).await;
    }
}

fn of(batches: &[Batch], agent: &Agent) -> Vec<Batch> {
    let of_agent = |batch: &&Batch| header(batch).agent_id == agent.hello.agent_id;
    batches.iter().filter(of_agent).cloned().collect()
}

/// zstd may compress otherwise on another day: what counts is what is signed, and the events.
fn assert_same(found: &[Batch], sealed: &[Batch]) {
    assert_eq!(found.len(), sealed.len());
    for (found, sealed) in found.iter().zip(sealed) {
        assert_eq!(found.header, sealed.header);
        assert_eq!(found.signature, sealed.signature);
        assert_eq!(found.dropped, sealed.dropped);
        let fields = header(found);
        let open = |batch| audit_ledger::open(batch, &fields).expect("whole");
        let (found, sealed) = (open(found), open(sealed));
        assert!(found.events().eq(sealed.events()));
    }
}

#[tokio::test]
async fn what_was_sealed_is_exported_whole_from_files_and_log_and_after_a_restart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.table.compact_after_s = 1;
    let (agents, batches) = mixed();
    let collector = Collector::start(settings.clone()).await;
    deliver_mixed(&collector.channel, &agents, &batches[..18]).await;
    let data = settings.data_dir.clone();
    eventually("compacted", || async {
        status(&collector.channel).await.uncompacted_events == 0
    })
    .await;
    assert!(parquet_files(&data).len() > 1, "more than one day");
    collector.stop().await;

    settings.table.compact_after_s = 600;
    let collector = Collector::start(settings).await;
    deliver_mixed(&collector.channel, &agents, &batches[18..]).await;
    let (found, end) = export(&collector.channel, ExportRequest::default()).await;
    for (number, agent) in agents.iter().enumerate() {
        let sealed = batches.iter().filter(|(of, _)| *of == number);
        let sealed: Vec<Batch> = sealed.map(|(_, batch)| batch.clone()).collect();
        assert_same(&of(&found, agent), &sealed);
    }
    let report = verify(&found, &end);
    assert_eq!(report.verdict(), Verdict::Complete, "{report:?}");
    let stored = number(&collector.channel, "select count(*) from events").await;
    assert_eq!(report.events(), stored);
    collector.stop().await;
}

#[tokio::test]
async fn a_part_is_asked_for_by_time_and_host_and_is_unbroken() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("one");
    let batches = agent.batches(9, 1);
    deliver(&collector.channel, &agent, &batches).await;
    let request = ExportRequest {
        from_time: Some(header(&batches[2]).sealed_time),
        to_time: Some(header(&batches[6]).sealed_time),
        host: "testhost".to_owned(),
    };
    let (found, end) = export(&collector.channel, request.clone()).await;
    assert_same(&found, &batches[2..6]);
    assert!(end.unreadable.is_empty(), "{end:?}");
    let nobody = ExportRequest {
        host: "nobody".to_owned(),
        ..request
    };
    assert!(export(&collector.channel, nobody).await.0.is_empty());
    collector.stop().await;
}

#[tokio::test]
async fn a_second_history_is_refused_and_kept_as_evidence() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("one");
    let batches = agent.batches(3, 2);
    deliver(&collector.channel, &agent, &batches).await;

    // A copy of the agent's state as it was after batch 2.
    let copied = |batch: &Batch| {
        let past = Past::of(&audit_ledger::header(batch).expect("header"));
        let mut copy = Agent::new("one");
        let key = Key::new(1, *copy.sealer.key().seed());
        let origin = audit_ledger::Origin {
            host_id: "host-1".to_owned(),
            ..audit_ledger::Origin::default()
        };
        copy.sealer = Sealer::resume(key, origin, past);
        copy
    };
    let mut copy = copied(&batches[1]);
    let others = copy.batches(2, 5);
    // The number of a stored one, and one that names it as its predecessor.
    for other in &others {
        let mut session = Session::open(&collector.channel, &copy.hello).await;
        assert_eq!(session.welcome, 3);
        session.send(other).await;
        let error = session.ack().await.expect_err("refused");
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("two histories"), "{error}");
    }
    let told = status(&collector.channel).await;
    assert!(
        told.problems.iter().any(|p| p.contains("two histories")),
        "{told:?}"
    );
    assert_eq!(told.stored_batches, 3);

    let (found, end) = export(&collector.channel, ExportRequest::default()).await;
    assert_eq!(end.forks.len(), 2);
    let report = verify(&found, &end);
    let findings = &report.histories[0].findings;
    assert!(findings.iter().all(|f| f.tampering == Tampering::Forked));
    assert_eq!(report.verdict(), Verdict::Tampered);

    // The true one goes on.
    let more = agent.batches(1, 1);
    deliver(&collector.channel, &agent, &more).await;
    collector.stop().await;
}

#[tokio::test]
async fn a_collector_that_lost_what_it_had_acknowledged_takes_what_is_left_and_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("one");
    let batches = agent.batches(9, 2);
    deliver(&collector.channel, &agent, &batches[..2]).await;
    // To another data directory, from which this one is not known.
    agent.hello.first_batch = 6;
    let mut session = Session::open(&collector.channel, &agent.hello).await;
    assert_eq!(session.welcome, 2);
    session.send(&batches[4]).await;
    let error = session
        .ack()
        .await
        .expect_err("it says that it has 6, not 5");
    assert_eq!(error.code(), Code::FailedPrecondition);
    deliver(&collector.channel, &agent, &batches[5..]).await;

    let told = status(&collector.channel).await;
    assert!(
        told.problems.iter().any(|p| p.contains("batches 3 to 5")),
        "{told:?}"
    );
    let (found, end) = export(&collector.channel, ExportRequest::default()).await;
    let report = verify(&found, &end);
    assert_eq!(
        report.histories[0].findings[0].tampering,
        Tampering::Deleted
    );
    collector.stop().await;
}

#[tokio::test]
async fn an_agent_that_had_another_collector_before_begins_where_it_says() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(config(dir.path())).await;
    let mut agent = Agent::new("one");
    let batches = agent.batches(9, 2);
    agent.hello.first_batch = 6;
    deliver(&collector.channel, &agent, &batches[5..]).await;
    assert_eq!(
        number(&collector.channel, "select count(*) from events").await,
        8
    );
    collector.stop().await;
}

#[tokio::test]
async fn dropped_events_leave_their_header_through_log_and_table() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.table.compact_after_s = 1;
    let collector = Collector::start(settings).await;
    let mut agent = Agent::new("one");
    let mut batches = agent.batches(4, 3);
    batches[1] = agent.sealer.drop_events(&batches[1], "the spool was full");
    deliver(&collector.channel, &agent, &batches).await;
    for _ in 0..2 {
        let (found, end) = export(&collector.channel, ExportRequest::default()).await;
        assert_same(&found, &batches);
        let report = verify(&found, &end);
        assert_eq!(report.verdict(), Verdict::Incomplete, "{report:?}");
        assert_eq!(report.events(), 9);
        eventually("compacted", || async {
            status(&collector.channel).await.uncompacted_events == 0
        })
        .await;
    }
    collector.stop().await;
}

#[tokio::test]
async fn changed_table_files_are_found() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.table.compact_after_s = 1;
    let data = settings.data_dir.clone();
    let collector = Collector::start(settings).await;
    let mut agent = Agent::new("one");
    let batches = agent.batches(4, 3);
    deliver(&collector.channel, &agent, &batches[..2]).await;
    eventually("compacted", || async { parquet_files(&data).len() == 1 }).await;
    deliver(&collector.channel, &agent, &batches[2..]).await;
    eventually("compacted", || async { parquet_files(&data).len() == 2 }).await;
    // One file with the rows of the other: sound Parquet, and not what was sealed.
    let files = parquet_files(&data);
    std::fs::copy(&files[1], &files[0]).expect("copy");
    let (found, end) = export(&collector.channel, ExportRequest::default()).await;
    let report = verify(&found, &end);
    let found: Vec<(Tampering, i64)> = report.histories[0]
        .findings
        .iter()
        .map(|finding| (finding.tampering, finding.batch))
        .collect();
    let changed = Tampering::EventsChanged;
    assert_eq!(found, [(changed, 1), (changed, 2)]);

    std::fs::remove_file(files[0].with_extension("headers")).expect("remove");
    let (found, end) = export(&collector.channel, ExportRequest::default()).await;
    assert_eq!(end.unreadable.len(), 1, "{end:?}");
    let report = verify(&found, &end);
    assert_eq!(report.verdict(), Verdict::Tampered);
    assert_eq!(
        report.histories[0].findings[0].tampering,
        Tampering::Deleted
    );
    collector.stop().await;
}

#[test]
fn a_new_history_names_the_one_that_it_takes_the_place_of() {
    let former = Former {
        agent_id: "0".repeat(32),
        batch: 7,
    };
    let mut agent = Agent::new("new");
    agent.sealer = Sealer::begin(
        Key::new(1, [1; 32]),
        audit_ledger::Origin::default(),
        Some(former.clone()),
    );
    let batch = agent
        .sealer
        .seal(&Frames::default(), audit_ledger::Summary::default());
    let fields = header(&batch);
    assert_eq!(
        (fields.former_agent_id, fields.former_batch),
        (former.agent_id, 7)
    );
}
