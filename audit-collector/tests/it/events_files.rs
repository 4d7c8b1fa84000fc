//! Files of events: each line once, whatever happens to the collector or to the disk.

use std::path::{Path, PathBuf};

use audit_collector::config::EventsFile;

use crate::{
    full_disk::SmallDisk,
    support::{Agent, Collector, Session, config, connect, deliver, eventually, spawn, status},
};

/// Rotated files in order of their names, which is that of their events, then the current one.
fn files(path: &Path) -> Vec<PathBuf> {
    let dir = path.parent().expect("a directory");
    let entries = std::fs::read_dir(dir).expect("dir");
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("entry").path()).collect();
    files.retain(|file| file.to_string_lossy().starts_with(&*path.to_string_lossy()));
    files.sort();
    files.rotate_left(usize::from(path.exists()));
    files
}

/// Of all files; one that was rotated between its listing and its reading has another name by now.
fn text(path: &Path) -> String {
    loop {
        let texts: std::io::Result<String> =
            files(path).iter().map(std::fs::read_to_string).collect();
        match texts {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            texts => return texts.expect("text"),
        }
    }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = text(path);
    // A line that is being written has no end yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

fn sequences(path: &Path) -> Vec<i64> {
    let lines = lines(path);
    lines
        .iter()
        .map(|line| line["sequence"].as_i64().expect("a sequence"))
        .collect()
}

#[tokio::test]
async fn kill_9_leaves_no_line_missing_or_double() {
    const ROUNDS: usize = 6;
    const BATCHES: usize = 40;
    let dir = tempfile::tempdir().expect("tempdir");
    let out = dir.path().join("out");
    std::fs::create_dir(&out).expect("mkdir");
    let path = out.join("events.jsonl");
    let sink = format!(
        "sinks.events_files=[{{name: out, path: {}, max_bytes: 65536, max_files: 0}}]",
        path.display()
    );
    let options = ["table.compact_rows=2000", &sink];
    let socket = dir.path().join("collector.sock");
    let mut agent = Agent::new("run1");
    let batches = agent.batches(ROUNDS * BATCHES, 40);
    for round in 1..=ROUNDS {
        let mut child = spawn(dir.path(), &options);
        let channel = connect(&socket).await;
        let mut session = Session::open(&channel, &agent.hello).await;
        for batch in &batches[session.welcome as usize..round * BATCHES] {
            session.send(batch).await;
        }
        let target = ((round - 1) * BATCHES + 5 * round) as i64;
        while session.ack().await.expect("ack") < target {}
        // Somewhere in the middle of what the file is given.
        tokio::time::sleep(std::time::Duration::from_millis(17 * round as u64)).await;
        child.kill();
    }
    let mut child = spawn(dir.path(), &options);
    let channel = connect(&socket).await;
    let session = Session::open(&channel, &agent.hello).await;
    for batch in &batches[session.welcome as usize..] {
        session.send(batch).await;
    }
    let all: Vec<i64> = (1..=(ROUNDS * BATCHES * 40) as i64).collect();
    let last = all.len();
    eventually("the last line", || async { sequences(&path).len() >= last }).await;
    assert!(sequences(&path) == all, "not each event once and in order");
    assert!(files(&path).len() > 10, "{:?}", files(&path));
    drop(session);
    child.kill();
}

#[tokio::test]
async fn a_full_disk_is_waited_for_and_told() {
    let Some(disk) = SmallDisk::mount("size=1m") else {
        eprintln!("SKIPPED: cannot mount a tmpfs here (needs root)");
        return;
    };
    let dir = tempfile::tempdir().expect("tempdir");
    let path = disk.0.path().join("events.jsonl");
    let mut settings = config(dir.path());
    settings.sinks.events_files = vec![EventsFile {
        name: "small".into(),
        path: path.clone(),
        ..EventsFile::default()
    }];
    let collector = Collector::start(settings).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(20, 500);
    deliver(&collector.channel, &agent, &batches).await;
    eventually("a problem that names the file", || async {
        let problems = status(&collector.channel).await.problems;
        problems.iter().any(|p| {
            p.contains("events file small") && p.contains("events.jsonl") && p.contains("waits")
        })
    })
    .await;
    let written = sequences(&path).len();
    assert!((1..10_000).contains(&written), "{written} lines");
    disk.resize("size=64m");
    eventually("the last line", || async {
        sequences(&path).len() >= 10_000
    })
    .await;
    assert!(sequences(&path) == (1..=10_000).collect::<Vec<_>>());
    eventually("no problem", || async {
        status(&collector.channel).await.problems.is_empty()
    })
    .await;
    collector.stop().await;
}

#[tokio::test]
async fn filters_and_fields_hold_and_an_orderly_stop_repeats_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("true.jsonl");
    let mut settings = config(dir.path());
    settings.sinks.events_files = vec![EventsFile {
        name: "true".into(),
        path: path.clone(),
        allow: vec!["kind=exec,process_exe$=/true".into()],
        deny: vec!["process_pid>=30".into()],
        fields: vec!["process_argv".into(), "sequence".into()],
        ..EventsFile::default()
    }];
    let mut agent = Agent::new("run1");
    let mut expected = Vec::new();
    for start in 0..3 {
        let collector = Collector::start(settings.clone()).await;
        let events: Vec<_> = (0..20)
            .map(|n| {
                agent.event(if n % 2 == 0 {
                    "/bin/true"
                } else {
                    "/bin/false"
                })
            })
            .collect();
        let wanted = events.iter().filter_map(|e| {
            let process = e.process.as_ref()?;
            (process.exe == "/bin/true" && process.pid < Some(30)).then_some(e.sequence?)
        });
        expected.extend(wanted);
        let batch = agent.seal(&events);
        deliver(&collector.channel, &agent, &[batch]).await;
        eventually("the lines", || async {
            sequences(&path).len() >= expected.len()
        })
        .await;
        collector.stop().await;
        assert_eq!(sequences(&path), expected, "after start {start}");
    }
    let lines = lines(&path);
    let keys: Vec<&String> = lines[0].as_object().expect("an object").keys().collect();
    assert_eq!(
        keys,
        [
            "boot_time_ns",
            "cursor",
            "id",
            "kind",
            "masked",
            "process_argv",
            "sequence",
            "time"
        ]
    );
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&path).expect("file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "events are not for everyone");
}
