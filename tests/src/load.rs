//! What does a host do while its agent is killed, and was all of it told? Programs and files, counted by
//! who made them, against what is in the store.

use std::{
    fs::File,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::Stack;

/// Of each kind, so that a test says something; a busy machine takes its time to make them.
const ENOUGH: i64 = 100;
const PATIENCE: Duration = Duration::from_secs(60);

/// Numbered programs, some 100 a second, and numbered files, some thousands, until it is finished.
pub struct Load {
    directory: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    counts: [Arc<AtomicI64>; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start() -> Result<Self> {
        let mut load = Self::new()?;
        let marker = load.marker();
        load.act(0, Duration::from_millis(8), move |number| {
            let status = Command::new("/bin/true")
                .args([&marker, &number.to_string()])
                .status();
            assert!(status.is_ok_and(|status| status.success()));
        });
        load.files(None);
        Ok(load)
    }

    /// The files alone, by a user whom nothing else on this host runs as.
    pub fn of_user(uid: u32) -> Result<Self> {
        let mut load = Self::new()?;
        std::os::unix::fs::chown(load.directory.path(), Some(uid), None)?;
        load.files(Some(uid));
        Ok(load)
    }

    fn new() -> Result<Self> {
        Ok(Self {
            directory: tempfile::Builder::new()
                .prefix("hostaudit-load-")
                .tempdir()?,
            stop: Arc::default(),
            counts: [Arc::default(), Arc::default()],
            threads: Vec::new(),
        })
    }

    fn files(&mut self, uid: Option<u32>) {
        let files = self.directory.path().to_owned();
        let mut uid = uid;
        self.act(1, Duration::from_micros(300), move |number| {
            if let Some(uid) = uid.take() {
                become_user(uid);
            }
            let path = files.join(format!("f{number}"));
            assert!(File::create(&path).is_ok() && std::fs::remove_file(&path).is_ok());
        });
    }

    fn act(&mut self, kind: usize, pause: Duration, mut action: impl FnMut(i64) + Send + 'static) {
        let (stop, count) = (Arc::clone(&self.stop), Arc::clone(&self.counts[kind]));
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Acquire) {
                let next = count.load(Ordering::Relaxed) + 1;
                action(next);
                count.store(next, Ordering::Release);
                std::thread::sleep(pause);
            }
        }));
    }

    /// Files made and removed.
    pub fn made(&self) -> i64 {
        self.counts[1].load(Ordering::Acquire)
    }

    /// Of the events of those files, how many are in the store.
    pub fn stored(&self, stack: &mut Stack) -> Result<i64> {
        stack.number(&format!(
            "select count(*) from events where file_path like '{}/f%'",
            self.marker()
        ))
    }

    fn marker(&self) -> String {
        self.directory.path().display().to_string()
    }

    pub fn finish(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok(), "an action failed");
        }
    }

    /// Made, stored, and different of those, of programs and of files made and removed.
    pub fn found(&self, stack: &mut Stack) -> Result<Vec<(&'static str, i64, i64, i64)>> {
        let marker = self.marker();
        let [programs, files] = self
            .counts
            .each_ref()
            .map(|count| count.load(Ordering::Acquire));
        let of_file = format!("file_path like '{marker}/f%'");
        let asked = [
            (
                "exec",
                programs,
                format!("process_argv[2] = '{marker}'"),
                "process_argv[3]",
            ),
            ("open", files, of_file.clone(), "file_path"),
            ("close_write", files, of_file.clone(), "file_path"),
            ("unlink", files, of_file, "file_path"),
        ];
        let mut found = Vec::new();
        for (kind, made, condition, name) in asked {
            let from = format!("from events where kind = '{kind}' and {condition}");
            let stored = stack.number(&format!("select count(*) {from}"))?;
            let different = stack.number(&format!("select count(distinct {name}) {from}"))?;
            found.push((kind, made, stored, different));
        }
        Ok(found)
    }

    /// Nothing missing, nothing twice, nothing lost; of enough to say something.
    pub fn check_whole(&mut self, stack: &mut Stack) -> Result<()> {
        let began = Instant::now();
        let is_little = |count: &Arc<AtomicI64>| count.load(Ordering::Acquire) <= ENOUGH;
        while self.counts.iter().any(is_little) && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.finish();
        stack.barrier()?;
        for (kind, made, stored, different) in self.found(stack)? {
            ensure!(made > ENOUGH, "only {made} of {kind}; the test says little");
            ensure!(
                (stored, different) == (made, made),
                "{kind}: {made} made; {stored} stored, {different} different\n{}",
                stack.agent_log()
            );
        }
        // Of the lanes that it uses: others on this host may flood the third.
        let lost = stack.query(
            "select * from events where kind = 'lost' and lost_class in ('process', 'file')",
        )?;
        ensure!(lost.is_empty(), "lost: {lost:?}");
        let twice = stack.number("select count(*) - count(distinct id) from events")?;
        ensure!(twice == 0, "{twice} ids twice");
        // Two sets of programs do not mix up what one call was given.
        let raced = stack.number("select count(*) from events where kind = 'argument_race'")?;
        ensure!(raced == 0, "{raced} arguments are told as changed");
        Ok(())
    }
}

/// The calling thread alone: libc's call would change all. Its open files are its own from here on: a
/// child that another thread begins would have them too, and might close one last, as another user.
fn become_user(uid: u32) {
    #[expect(unsafe_code, reason = "no calls of one thread in std")]
    // SAFETY: take numbers.
    let results = unsafe {
        [
            i64::from(libc::unshare(libc::CLONE_FILES)),
            libc::syscall(libc::SYS_setresuid, uid, uid, uid),
        ]
    };
    assert_eq!(results, [0, 0], "unshare, setresuid");
}
