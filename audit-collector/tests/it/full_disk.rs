//! A full disk: agents keep what is refused, readers go on, and room is enough to go on.

use std::{path::Path, process::Command};

use audit_proto::v1::Batch;

use crate::support::{Agent, Collector, Session, config, number, status};

/// A small file system of its own, unmounted at the end.
pub struct SmallDisk(pub tempfile::TempDir);

impl SmallDisk {
    pub fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("tempdir");
        mount(&["-t", "tmpfs", "-o", size, "tmpfs"], dir.path()).then_some(Self(dir))
    }

    pub fn resize(&self, size: &str) {
        let option = format!("remount,{size}");
        assert!(mount(&["-o", &option], self.0.path()), "{option}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn mount(arguments: &[&str], at: &Path) -> bool {
    let status = Command::new("mount").args(arguments).arg(at).status();
    status.is_ok_and(|status| status.success())
}

/// Batches of some 250 KiB that do not compress.
fn large_batches(agent: &mut Agent, count: u64) -> Vec<Batch> {
    let mut state = 1u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut batches = Vec::new();
    for _ in 0..count {
        let mut event = agent.event("/usr/bin/true");
        let text: String = (0..32 << 10)
            .map(|_| format!("{:016x}", random()))
            .collect();
        if let Some(process) = &mut event.process {
            process.argv.push(text);
        }
        batches.push(agent.seal(&[event]));
    }
    batches
}

/// Sends until one is refused: what was acknowledged, and the refusal.
async fn until_refused(collector: &Collector, agent: &Agent, batches: &[Batch]) -> (i64, String) {
    let mut session = Session::open(&collector.channel, &agent.hello).await;
    let mut acked = session.welcome;
    for batch in batches {
        session.send(batch).await;
        match session.ack().await {
            Ok(batch) => acked = batch,
            Err(status) => return (acked, status.message().to_owned()),
        }
    }
    panic!("the disk did not fill up");
}

#[tokio::test]
async fn a_full_disk_refuses_by_name_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount("size=10m") else {
        eprintln!("SKIPPED: cannot mount a tmpfs here (needs root)");
        return;
    };
    let sockets = tempfile::tempdir().expect("tempdir");
    let mut config = config(disk.0.path());
    config.listen.unix = sockets.path().join("collector.sock");
    config.ingest.wal_segment_bytes = 1 << 20;
    let collector = Collector::start(config).await;
    let mut agent = Agent::new("run1");
    let batches = large_batches(&mut agent, 60);

    let (acked, refusal) = until_refused(&collector, &agent, &batches).await;
    assert!((5..60).contains(&acked), "{acked} acknowledged");
    let data = collector.dir.display().to_string();
    for word in ["full", "free", data.as_str()] {
        assert!(refusal.contains(word), "{word}: {refusal}");
    }
    // Readers do not notice, and an operator is told.
    let stored = number(&collector.channel, "select count(*) from events").await;
    assert_eq!(stored, acked);
    let problems = format!("{:?}", status(&collector.channel).await.problems);
    assert!(problems.contains("full"), "{problems}");

    disk.resize("size=64m");
    let mut session = Session::open(&collector.channel, &agent.hello).await;
    assert_eq!(session.welcome, acked, "what was refused is not stored");
    for batch in &batches[acked as usize..] {
        session.send(batch).await;
        session.ack().await.expect("there is room");
    }
    let sql = "select count(distinct sequence) from events";
    assert_eq!(number(&collector.channel, sql).await, 60);
    let sql = "select count(*) from events";
    assert_eq!(number(&collector.channel, sql).await, 60);
    let problems = status(&collector.channel).await.problems;
    assert!(problems.is_empty(), "{problems:?}");
    collector.stop().await;
}
