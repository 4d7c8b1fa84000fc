//! Rules to alerts to receivers: each alert once, also across restarts and failing receivers.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::Path,
    sync::mpsc,
};

use audit_collector::{Config, config::Webhook};
use audit_proto::v1::{Alert, AlertsRequest};
use tokio_stream::StreamExt as _;

use crate::support::{Agent, Collector, config, deliver, eventually, number, status, table};

const RULE: &str = "title: Evil program
id: 11111111-2222-3333-4444-555555555555
status: test
description: for the test
author: hostaudit
logsource: {category: process_creation, product: linux}
detection:
  selection: {Image|endswith: /evil}
  condition: selection
level: high
tags: [attack.execution]
";

fn with_rule(dir: &Path) -> Config {
    let rules = dir.join("rules");
    std::fs::create_dir_all(&rules).expect("mkdir");
    std::fs::write(rules.join("evil.yml"), RULE).expect("write");
    let mut config = config(dir);
    config.detect.rules_dirs = vec![rules];
    config
}

async fn alerts(collector: &Collector) -> Vec<Alert> {
    let stream = collector
        .client()
        .alerts(AlertsRequest::default())
        .await
        .expect("alerts");
    let answers: Vec<_> = stream.into_inner().collect().await;
    answers
        .into_iter()
        .map(|a| a.expect("alert").alert.expect("alert"))
        .collect()
}

#[tokio::test]
async fn an_alert_is_raised_once_across_restart_and_has_its_ancestry() {
    let dir = tempfile::tempdir().expect("tempdir");
    let settings = with_rule(dir.path());
    let collector = Collector::start(settings.clone()).await;
    assert_eq!(status(&collector.channel).await.rules_loaded, 1);
    let mut agent = Agent::new("run1");
    let mut events = agent.events(5);
    let mut evil = agent.event("/tmp/evil");
    evil.parent = Some(audit_proto::v1::Parent {
        exec_id: "x-2".into(),
        ..audit_proto::v1::Parent::default()
    });
    events.push(evil.clone());
    let batches = [agent.seal(&events)];
    deliver(&collector.channel, &agent, &batches).await;
    eventually("an alert", || async {
        status(&collector.channel).await.alerts == 1
    })
    .await;
    let raised = alerts(&collector).await;
    assert_eq!(raised.len(), 1);
    assert_eq!(raised[0].number, 1);
    assert_eq!(raised[0].event.as_ref(), Some(&evil));
    let rule = raised[0].rule.as_ref().expect("rule");
    assert_eq!(
        (rule.title.as_str(), rule.level.as_str()),
        ("Evil program", "high")
    );
    let chain: Vec<&str> = raised[0]
        .ancestry
        .iter()
        .map(|a| a.exec_id.as_str())
        .collect();
    assert_eq!(chain, ["x-6", "x-2"]);
    let row = table(
        &collector.channel,
        "select rule_title, process_exe, event_id from alerts",
    )
    .await;
    assert!(
        row.contains("| Evil program | /tmp/evil   | run1-process-0-6 |"),
        "{row}"
    );
    let joined = "select count(*) from alerts a join events e on a.position = e.position";
    assert_eq!(number(&collector.channel, joined).await, 1);
    collector.stop().await;

    // As if the cursor had not reached the disk: everything is evaluated again.
    std::fs::write(dir.path().join("data/cursors/detect"), "0").expect("write");
    let collector = Collector::start(settings).await;
    let more = [sealed(&mut agent, 1)];
    deliver(&collector.channel, &agent, &more).await;
    eventually("the second alert", || async {
        status(&collector.channel).await.alerts >= 2
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(alerts(&collector).await.len(), 2);
    collector.stop().await;
}

/// What was evaluated before cannot be again, because it is in no memory and in no log; what comes is.
#[tokio::test]
async fn detection_whose_cursor_is_lost_goes_on_with_what_comes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = with_rule(dir.path());
    settings.table.compact_rows = 500;
    let collector = Collector::start(settings.clone()).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(5, 100);
    deliver(&collector.channel, &agent, &batches).await;
    eventually("all is compacted", async || {
        status(&collector.channel).await.uncompacted_events == 0
    })
    .await;
    collector.stop().await;
    std::fs::remove_file(settings.data_dir.join("cursors/detect")).expect("a cursor");
    std::fs::remove_dir_all(settings.data_dir.join("alerts")).expect("alerts");

    let collector = Collector::start(settings).await;
    let evil = agent.event("/tmp/evil");
    let batch = agent.seal(&[evil]);
    deliver(&collector.channel, &agent, &[batch]).await;
    eventually("it is found", async || alerts(&collector).await.len() == 1).await;
    let stops = tokio::time::timeout(std::time::Duration::from_secs(5), collector.stop());
    stops.await.expect("it stops");
}

/// As after a restored backup: numbers of records are given again, to events that no rule has seen.
#[tokio::test]
async fn detection_whose_log_became_shorter_misses_nothing_that_comes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let settings = with_rule(dir.path());
    let collector = Collector::start(settings.clone()).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(2, 10);
    deliver(&collector.channel, &agent, &batches).await;
    collector.stop().await;
    std::fs::write(settings.data_dir.join("cursors/detect"), "1000").expect("write");

    let collector = Collector::start(settings).await;
    let batch = sealed(&mut agent, 1);
    deliver(&collector.channel, &agent, &[batch]).await;
    eventually("it is found", async || alerts(&collector).await.len() == 1).await;
    collector.stop().await;
}

/// Anybody may start programs with megabytes of arguments, one from another.
#[tokio::test]
async fn an_alert_of_a_huge_event_is_raised_and_holds_nothing_up() {
    let dir = tempfile::tempdir().expect("tempdir");
    let collector = Collector::start(with_rule(dir.path())).await;
    let mut agent = Agent::new("run1");
    let mut parent = String::new();
    for exe in ["/bin/a", "/bin/b", "/tmp/evil"] {
        let mut event = agent.event(exe);
        event.parent = Some(audit_proto::v1::Parent {
            exec_id: parent,
            ..audit_proto::v1::Parent::default()
        });
        let process = event.process.as_mut().expect("a process");
        process.argv = vec!["\\xff".repeat(2 << 20)];
        parent = process.exec_id.clone();
        let batch = agent.seal(&[event]);
        deliver(&collector.channel, &agent, &[batch]).await;
    }
    let batch = sealed(&mut agent, 1);
    deliver(&collector.channel, &agent, &[batch]).await;
    eventually("both are found", async || {
        alerts(&collector).await.len() == 2
    })
    .await;

    let raised = alerts(&collector).await;
    assert!(raised[0].event_is_cut && !raised[1].event_is_cut);
    assert_eq!(raised[0].ancestry.len(), 3);
    let event = raised[0].event.as_ref().expect("its event");
    let process = event.process.as_ref().expect("a process");
    assert_eq!(process.exe, "/tmp/evil");
    assert_eq!(process.argv, ["\\xff".repeat(1024)]);
    let whole = "select cast(max(length(e.process_argv[1])) as bigint) from events e join alerts a \
                 on a.position = e.position";
    assert_eq!(number(&collector.channel, whole).await, 8 << 20);
    collector.stop().await;
}

fn sealed(agent: &mut Agent, count: usize) -> audit_proto::v1::Batch {
    let events: Vec<_> = (0..count).map(|_| agent.event("/opt/evil")).collect();
    agent.seal(&events)
}

/// A real HTTP server that fails the first requests.
fn receiver(failures: usize) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}/hook", listener.local_addr().expect("address"));
    let (sender, bodies) = mpsc::channel();
    std::thread::spawn(move || {
        for (at, stream) in listener.incoming().enumerate() {
            let mut stream = BufReader::new(stream.expect("accept"));
            let mut length = 0;
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).expect("header");
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("length");
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).expect("body");
            let status = if at < failures {
                "503 Busy"
            } else {
                "204 Taken"
            };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream
                .get_mut()
                .write_all(answer.as_bytes())
                .expect("answer");
            if at >= failures && sender.send(String::from_utf8(body).expect("text")).is_err() {
                return;
            }
        }
    });
    (url, bodies)
}

#[tokio::test]
async fn a_failing_webhook_is_retried_and_the_file_has_a_line_each() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (url, bodies) = receiver(2);
    let mut settings = with_rule(dir.path());
    settings.sinks.file = dir.path().join("alerts.jsonl");
    settings.sinks.webhooks = vec![Webhook {
        name: "test".into(),
        url: url.clone(),
        ..Webhook::default()
    }];
    let collector = Collector::start(settings).await;
    let mut agent = Agent::new("run1");
    let batches = [sealed(&mut agent, 2)];
    deliver(&collector.channel, &agent, &batches).await;
    eventually("a problem that names the receiver", || async {
        let problems = status(&collector.channel).await.problems;
        problems
            .iter()
            .any(|p| p.contains("sink test") && p.contains("503") && p.contains(&url))
    })
    .await;
    let received = tokio::task::spawn_blocking(move || {
        let wait = std::time::Duration::from_secs(20);
        [
            bodies.recv_timeout(wait).expect("first"),
            bodies.recv_timeout(wait).expect("second"),
        ]
    })
    .await
    .expect("join");
    for (at, body) in received.iter().enumerate() {
        let alert: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(alert["number"], at as i64 + 1);
        assert_eq!(alert["event"]["process_exe"], "/opt/evil");
        assert_eq!(alert["rule"]["author"], "hostaudit");
    }
    eventually("the problem is over", || async {
        status(&collector.channel).await.problems.is_empty()
    })
    .await;
    let lines = std::fs::read_to_string(dir.path().join("alerts.jsonl")).expect("file");
    assert_eq!(lines.lines().count(), 2);
    assert_eq!(lines.lines().next(), Some(received[0].as_str()));
    collector.stop().await;
}
