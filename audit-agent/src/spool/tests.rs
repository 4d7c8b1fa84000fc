use audit_ledger::{Gap, Past, Report, Tampering, Verdict, Verifier};
use audit_proto::v1::ClassCount;

use super::*;
use crate::identity::Identity;

fn identity(run: &str) -> Identity {
    Identity {
        host_id: "0123456789abcdef0123456789abcdef".to_owned(),
        host_name: "test".to_owned(),
        boot_id: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
        run: run.to_owned(),
    }
}

const LIMITS: Limits = Limits {
    disk_bytes: 64 << 20,
    max_age: Duration::from_secs(1000),
    when_full: WhenFull::DropOldest,
    memory_bytes: 1 << 20,
    segment_bytes: Limits::SEGMENT_BYTES,
    epoch_batches: Limits::EPOCH_BATCHES,
};

fn open_with(dir: &tempfile::TempDir, limits: Limits) -> Opened {
    open(dir.path(), &identity("r"), limits).expect("opens")
}

fn opened(dir: &tempfile::TempDir) -> Opened {
    open_with(dir, LIMITS)
}

/// A batch of one event of so many bytes that do not compress.
fn sealed(spool: &Spool, bytes: usize) -> Batch {
    let mut noise = vec![0; bytes];
    for part in noise.chunks_mut(256) {
        crate::identity::random(part).expect("random");
    }
    let summary = Summary {
        sealed_time: 1,
        classes: vec![ClassCount {
            class: 3,
            events: 1,
        }],
        ..Summary::default()
    };
    spool.seal(&Frames::from_iter([noise]), summary)
}

/// Seals and keeps `count` batches.
fn fill(spool: &Spool, count: usize, bytes: usize) {
    for _ in 0..count {
        assert_eq!(spool.keep(&[sealed(spool, bytes)], None, &|| false), 0);
    }
}

/// All that waits, as a collector would get it; nothing is acknowledged.
fn waiting(spool: &Arc<Spool>) -> Vec<Batch> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("runtime");
    spool.close();
    let (mut batches, mut number) = (Vec::new(), 0);
    while let Some(next) = runtime.block_on(spool.after(number)) {
        number = next.number;
        batches.push(next.batch);
    }
    batches
}

fn numbers(batches: &[Batch]) -> Vec<i64> {
    let header = |batch| audit_ledger::header(batch).expect("header");
    batches.iter().map(|b| header(b).fields.batch).collect()
}

fn verify(batches: &[Batch]) -> Report {
    let mut verifier = Verifier::new();
    batches.iter().for_each(|batch| verifier.batch(batch));
    verifier.finish(2)
}

#[test]
fn a_history_goes_on_across_runs_with_a_new_key_each() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut agents = Vec::new();
    for _ in 0..4 {
        let opened = opened(&dir);
        agents.push(opened.spool.agent_id().to_owned());
        fill(&opened.spool, 3, 100);
    }
    agents.dedup();
    assert_eq!(agents.len(), 1);
    let batches = waiting(&opened(&dir).spool);
    assert_eq!(numbers(&batches), (1..=12).collect::<Vec<_>>());
    let report = verify(&batches);
    assert_eq!(report.verdict(), Verdict::Complete, "{report:?}");
    let last = audit_ledger::header(&batches[11]).expect("header");
    assert_eq!(last.fields.epoch, 4);
}

#[test]
fn what_is_acknowledged_leaves_the_disk_and_the_last_batch_stays() {
    let dir = tempfile::tempdir().expect("tempdir");
    let one = opened(&dir);
    for _ in 0..12 {
        fill(&one.spool, 4, 1 << 20);
        one.spool.acknowledge(one.spool.last());
    }
    assert!(
        one.spool.depth().bytes < 32 << 20,
        "{:?}",
        one.spool.depth()
    );
    assert_eq!(
        (one.spool.depth().batches, one.spool.depth().events),
        (0, 0)
    );
    drop(one);
    let two = opened(&dir);
    assert!(two.former.is_empty() && two.losses.is_empty());
    fill(&two.spool, 1, 10);
    let batches = waiting(&two.spool);
    assert_eq!(numbers(&batches).last(), Some(&49));
}

#[test]
fn a_full_spool_drops_the_oldest_events_and_says_which() {
    let dir = tempfile::tempdir().expect("tempdir");
    let one = opened(&dir);
    fill(&one.spool, 100, 1 << 20);
    assert!(one.spool.depth().bytes <= LIMITS.disk_bytes);
    let told = one.spool.take_dropped();
    let batches = waiting(&one.spool);
    assert_eq!(
        numbers(&batches),
        (1..=100).collect::<Vec<_>>(),
        "each header stays"
    );
    let dropped = batches.iter().filter(|batch| batch.dropped.is_some());
    let dropped = dropped.count() as i64;
    assert!((20..60).contains(&dropped), "{dropped}");
    assert_eq!(told, Dropped::from([(3, dropped)]));
    let report = verify(&batches);
    assert_eq!(report.verdict(), Verdict::Incomplete, "{report:?}");
    let loss = &report.histories[0].losses[0];
    assert_eq!((loss.count, loss.class), (Some(dropped), 3));
    drop(one);
    // And after a restart, and more of it.
    let two = opened(&dir);
    fill(&two.spool, 50, 1 << 20);
    let batches = waiting(&two.spool);
    assert_eq!(numbers(&batches), (1..=150).collect::<Vec<_>>());
    let report = verify(&batches);
    assert_eq!(report.verdict(), Verdict::Incomplete, "{report:?}");
}

#[test]
fn a_full_spool_that_may_not_drop_waits_and_takes_up_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let limits = Limits {
        when_full: WhenFull::Block,
        memory_bytes: 4 << 20,
        ..LIMITS
    };
    let spool = open_with(&dir, limits).spool;
    let filling = {
        let spool = Arc::clone(&spool);
        std::thread::spawn(move || fill(&spool, 90, 1 << 20))
    };
    // Until it waits: on a busy machine filling takes its time.
    let mut held = -1;
    while held != spool.last() {
        held = spool.last();
        std::thread::sleep(Duration::from_millis(2500));
    }
    assert!(!filling.is_finished(), "it waits");
    assert!((50..80).contains(&held), "{held}");
    spool.acknowledge(held);
    filling.join().expect("all are taken");
    assert!(spool.take_dropped().is_empty());
    assert_eq!(
        numbers(&waiting(&spool)),
        (held + 1..=90).collect::<Vec<_>>()
    );
}

#[test]
fn headers_of_dropped_batches_do_not_outgrow_the_spool() {
    let dir = tempfile::tempdir().expect("tempdir");
    let limits = Limits {
        disk_bytes: 512 << 10,
        segment_bytes: 64 << 10,
        memory_bytes: 64 << 10,
        ..LIMITS
    };
    let spool = open_with(&dir, limits).spool;
    let mut kept = 0;
    let (error, next) = loop {
        let batch = sealed(&spool, 2000);
        match spool.try_keep(std::slice::from_ref(&batch), None) {
            Ok(()) => kept += 1,
            Err(Unkept { is_taken: true, .. }) => kept += 1,
            Err(Unkept { error, .. }) => break (error, batch),
        }
        assert!(kept < 10_000, "headers take no room");
    };
    assert!(error.to_string().contains("headers"), "{error}");
    let bytes = spool.depth().bytes;
    assert!(bytes <= limits.disk_bytes + limits.segment_bytes, "{bytes}");
    let batches = waiting(&spool);
    assert_eq!(numbers(&batches), (1..=kept).collect::<Vec<_>>());
    assert_eq!(verify(&batches).verdict(), Verdict::Incomplete);
    spool.acknowledge(kept);
    assert!(spool.try_keep(&[next], None).is_ok(), "it takes up again");
}

#[test]
fn events_that_are_too_old_are_dropped() {
    let dir = tempfile::tempdir().expect("tempdir");
    let limits = Limits {
        max_age: Duration::from_millis(300),
        ..LIMITS
    };
    let spool = open_with(&dir, limits).spool;
    fill(&spool, 20, 1 << 20);
    std::thread::sleep(Duration::from_millis(400));
    fill(&spool, 1, 10);
    assert!(!spool.take_dropped().is_empty());
    let batches = waiting(&spool);
    assert_eq!(numbers(&batches), (1..=21).collect::<Vec<_>>());
    assert!(batches[0].dropped.is_some() && batches[20].dropped.is_none());
}

#[test]
fn a_batch_that_is_refused_keeps_its_header_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let spool = opened(&dir).spool;
    fill(&spool, 3, 100);
    assert_eq!(spool.refuse(2, "of another version"), 1);
    let batches = waiting(&spool);
    let dropped = batches[1].dropped.as_ref().expect("dropped");
    assert_eq!(dropped.reason, "of another version");
    let report = verify(&batches);
    assert_eq!(report.verdict(), Verdict::Incomplete, "{report:?}");
}

#[test]
fn a_collector_that_lost_what_it_acknowledged_gets_what_is_left() {
    let dir = tempfile::tempdir().expect("tempdir");
    let spool = opened(&dir).spool;
    fill(&spool, 40, 1 << 20);
    spool.acknowledge(39);
    fill(&spool, 1, 1 << 20);
    let first = spool.first();
    assert!(first > 10, "{first}");
    assert_eq!(spool.rewind(5), Some((6, first - 1)));
    assert_eq!(numbers(&waiting(&spool)), (first..=41).collect::<Vec<_>>());
}

/// Every file of the log, to be cut or damaged.
fn segments(dir: &tempfile::TempDir, spool: &Spool) -> Vec<PathBuf> {
    let log = dir.path().join("spool").join(spool.agent_id()).join("log");
    let files = std::fs::read_dir(log).expect("log");
    let mut paths: Vec<PathBuf> = files
        .map(|file| file.expect("file").path())
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .collect();
    paths.sort();
    paths
}

#[test]
fn a_log_that_lost_its_end_begins_a_new_history_that_names_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let one = opened(&dir);
    let former = one.spool.agent_id().to_owned();
    fill(&one.spool, 5, 1000);
    let before = std::fs::read(&segments(&dir, &one.spool)[0]).expect("log");
    drop(one);
    // Two more runs, and then the disk is as it was before them.
    for _ in 0..2 {
        fill(&opened(&dir).spool, 1, 1000);
    }
    let path = dir.path().join("spool").join(&former).join("log");
    std::fs::remove_dir_all(&path).expect("remove");
    std::fs::create_dir(&path).expect("create");
    std::fs::write(path.join(format!("{:016x}.seg", 1)), before).expect("write");

    let two = opened(&dir);
    assert_ne!(two.spool.agent_id(), former);
    assert_eq!(two.losses.len(), 1, "{:?}", two.losses);
    assert_eq!(
        numbers(&waiting(&two.former[0])),
        [1, 2, 3, 4, 5],
        "still delivered"
    );
    fill(&two.spool, 1, 10);
    let header = audit_ledger::header(&waiting(&two.spool)[0]).expect("header");
    assert_eq!(header.fields.former_agent_id, former);
    assert_eq!(header.fields.former_batch, 5);
    two.former[0].remove();
    drop(two);
    let three = opened(&dir);
    assert!(three.former.is_empty() && three.losses.is_empty());
}

#[test]
fn a_history_that_diverged_is_sealed_anew_without_losing_an_event() {
    let dir = tempfile::tempdir().expect("tempdir");
    let one = opened(&dir);
    fill(&one.spool, 5, 1000);
    let of_one = waiting(&one.spool);
    one.spool.give_up_history().expect("marked");
    drop(one);
    let two = opened(&dir);
    assert!(two.former.is_empty());
    let of_two = waiting(&two.spool);
    assert_eq!(verify(&of_two).verdict(), Verdict::Complete);
    let events = |batches: &[Batch]| -> Vec<Vec<u8>> {
        let open = |batch: &Batch| {
            let header = audit_ledger::header(batch).expect("header");
            audit_ledger::open(batch, &header.fields).expect("whole")
        };
        batches
            .iter()
            .flat_map(|batch| open(batch).events().map(<[u8]>::to_vec).collect::<Vec<_>>())
            .collect()
    };
    assert_eq!(events(&of_one), events(&of_two));
}

#[test]
fn of_a_history_that_diverged_only_what_the_collector_lacks_is_sealed_anew() {
    let dir = tempfile::tempdir().expect("tempdir");
    let one = opened(&dir);
    fill(&one.spool, 5, 1000);
    let of_one = waiting(&one.spool);
    one.spool.acknowledge(3);
    one.spool.give_up_history().expect("marked");
    drop(one);
    let two = opened(&dir);
    let of_two = waiting(&two.spool);
    assert_eq!(of_two.len(), 2);
    assert_eq!(
        verify(&of_two).verdict(),
        Verdict::Incomplete,
        "the former, up to where it is shared, is not here"
    );
    let both = [&of_one[..3], &of_two[..]].concat();
    let report = verify(&both);
    assert_eq!(report.verdict(), Verdict::Complete, "{report:?}");
}

/// Of a group that a crash cut off before its mark.
#[test]
fn batches_without_the_mark_that_was_written_with_them_do_not_count() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mark = |number| Mark {
        number,
        state: State::default(),
        kept: Arc::default(),
    };
    let one = opened(&dir);
    let seal = |spool: &Spool| spool.seal(&Frames::from_iter([b"event"]), Summary::default());
    let first = seal(&one.spool);
    assert_eq!(one.spool.keep(&[first], Some(&mark(1)), &|| false), 0);
    let agent_id = one.spool.agent_id().to_owned();
    drop(one);
    let path = dir.path().join("spool").join(&agent_id).join("log");
    // As `append` writes a group, up to its mark.
    let options = audit_wal::Options {
        segment_bytes: Limits::SEGMENT_BYTES,
        max_record_bytes: logs::max_record_bytes(),
    };
    let cut = opened(&dir);
    let second = seal(&cut.spool);
    drop(cut);
    let (mut log, _) = audit_wal::Log::open(&path, options).expect("opens");
    log.append_all(&[&record::part(&second)]).expect("written");
    drop(log);
    for run in 0..3 {
        let again = opened(&dir);
        assert_eq!(again.spool.agent_id(), agent_id);
        assert_eq!(again.spool.last(), 1 + run);
        let next = seal(&again.spool);
        let number = u64::try_from(run + 2).expect("small");
        assert_eq!(again.spool.keep(&[next], Some(&mark(number)), &|| false), 0);
    }
    let batches = waiting(&opened(&dir).spool);
    assert_eq!(numbers(&batches), [1, 2, 3, 4]);
    assert_eq!(verify(&batches).verdict(), Verdict::Complete);
}

#[test]
fn a_copied_state_directory_begins_a_history_of_its_own() {
    let dir = tempfile::tempdir().expect("tempdir");
    let one = opened(&dir);
    fill(&one.spool, 2, 10);
    let agent_id = one.spool.agent_id().to_owned();
    drop(one);
    let other = Identity {
        host_id: "fedcba9876543210fedcba9876543210".to_owned(),
        ..identity("s")
    };
    let two = open(dir.path(), &other, LIMITS).expect("opens");
    assert_ne!(two.spool.agent_id(), agent_id);
    assert!(
        two.former.is_empty(),
        "those of the other host are its own to deliver"
    );
    assert_eq!(two.losses.len(), 2, "{:?}", two.losses);
}

#[test]
fn damage_in_the_middle_costs_what_is_damaged_and_is_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    let one = opened(&dir);
    fill(&one.spool, 30, 1 << 20);
    let path = segments(&dir, &one.spool)[1].clone();
    drop(one);
    let mut bytes = std::fs::read(&path).expect("segment");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("write");
    let two = opened(&dir);
    assert_eq!(two.losses.len(), 1, "{:?}", two.losses);
    assert_eq!(two.holes.len(), 1, "{:?}", two.holes);
    let (first, last) = two.holes[0];
    assert_eq!(first, last);
    let spool = &two.spool;
    assert_eq!(spool.begin_at(), 1);
    spool.acknowledge(first - 1);
    assert_eq!(spool.begin_at(), last + 1, "a session begins behind it");
    let batches = waiting(spool);
    assert_eq!(numbers(&batches), (last + 1..=30).collect::<Vec<_>>());
    // The collector accepts that, and the verifier says what is missing.
    let header = |at: usize| audit_ledger::header(&batches[at]).expect("header");
    let past = Past::begin(&batches[0], &header(0)).expect("begins");
    past.follow(&batches[1], &header(1), Gap::Refused)
        .expect("follows");
    let report = verify(&batches);
    assert_eq!(
        report.histories[0].findings[0].tampering,
        Tampering::Deleted
    );
}

#[test]
fn while_the_disk_fails_batches_wait_in_memory_and_are_written_later() {
    let dir = tempfile::tempdir().expect("tempdir");
    let limits = Limits {
        memory_bytes: 32 << 20,
        ..LIMITS
    };
    let spool = open_with(&dir, limits).spool;
    fill(&spool, 2, 100);
    // The next segment cannot be made: a directory has its name.
    let log = dir.path().join("spool").join(spool.agent_id()).join("log");
    let blocked: Vec<PathBuf> = (3..40)
        .map(|index| log.join(format!("{index:016x}.seg")))
        .collect();
    for path in &blocked {
        std::fs::create_dir(path).expect("create");
    }
    // The segment in use is full after some.
    fill(&spool, 16, 600 << 10);
    for path in &blocked {
        let _ = std::fs::remove_dir(path);
    }
    fill(&spool, 1, 100);
    drop(spool);
    let again = opened(&dir);
    assert_eq!(
        numbers(&waiting(&again.spool)),
        (1..=19).collect::<Vec<_>>()
    );
}

#[test]
fn a_second_agent_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let _one = opened(&dir);
    let Err(error) = open(dir.path(), &identity("s"), LIMITS) else {
        panic!("two agents with one spool");
    };
    assert!(error.to_string().contains("another agent"), "{error}");
}

#[test]
fn marks_outlive_what_is_removed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = State {
        boot_id: "b".to_owned(),
        ..State::default()
    };
    {
        let spool = opened(&dir).spool;
        let mark = Mark {
            number: 1,
            state: state.clone(),
            kept: Arc::default(),
        };
        assert_eq!(spool.keep(&[], Some(&mark), &|| false), 0);
        // So much that the segment of the mark is dropped.
        fill(&spool, 100, 1 << 20);
        assert!(!spool.take_dropped().is_empty());
    }
    assert_eq!(opened(&dir).state, Some(state));
}
