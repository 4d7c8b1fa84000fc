//! On real files.

use std::{fs, os::unix::fs::FileExt as _};

use proptest::prelude::*;

use super::*;

const OPTIONS: Options = Options {
    segment_bytes: header::BYTES as u64 + 1024,
    max_record_bytes: 500,
};

fn record(index: u64) -> Vec<u8> {
    format!("record {index} {}", "x".repeat(index as usize % 90)).into_bytes()
}

fn all(log: &Log, from: u64) -> Vec<(u64, Vec<u8>)> {
    log.read_from(from)
        .expect("reader")
        .collect::<Result<_, _>>()
        .expect("reads")
}

/// A log with records 1 to `last`, `group` of them a sync.
fn filled(dir: &Path, last: u64, group: u64) -> Log {
    let (mut log, _) = Log::open(dir, OPTIONS).expect("opens");
    for index in 1..=last {
        assert_eq!(log.append(&record(index)).expect("append"), index);
        if index % group == 0 || index == last {
            assert_eq!(log.sync().expect("sync"), index);
        }
    }
    log
}

#[test]
fn records_survive_reopening_and_whole_segments_are_dropped() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(filled(dir.path(), 100, 3));
    let (mut log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
    assert_eq!((recovery.records, recovery.truncated_bytes), (100, 0));
    assert_eq!(all(&log, 1).len(), 100);
    assert_eq!(all(&log, 77)[0], (77, record(77)));
    log.drop_before(50).expect("drops");
    let first = log.first_index();
    assert!(first > 1 && first <= 50, "{first}");
    assert_eq!(log.append(&record(101)).expect("append"), 101);
    log.sync().expect("sync");
    assert_eq!(all(&log, 0).first().map(|r| r.0), Some(first));
    assert_eq!(all(&log, 101), [(101, record(101))]);
    assert!(matches!(
        log.append(&[0; 501]),
        Err(WalError::Size(501, 500))
    ));
    assert!(matches!(log.append(&[]), Err(WalError::Size(0, 500))));
    let report = check(dir.path(), 500).expect("checks");
    assert_eq!((report.first_index, report.last_index), (first, 101));
    assert_eq!(report.records, 102 - first);
    assert_eq!((report.damaged.as_slice(), report.tail_bytes), (&[][..], 0));
}

#[test]
fn a_segment_is_allocated_when_it_is_made_and_gives_back_its_rest() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = filled(dir.path(), 40, 1);
    let [first, .., last] = &segment::list(&System, dir.path()).expect("list")[..] else {
        panic!("one segment");
    };
    let size = |first: &u64| {
        let path = dir.path().join(format!("{first:016x}.seg"));
        fs::metadata(path).expect("metadata").len()
    };
    assert_eq!(size(last), OPTIONS.segment_bytes);
    assert!(size(first) <= OPTIONS.segment_bytes);
    assert!(log.bytes() < 4 * OPTIONS.segment_bytes);
}

#[test]
fn a_second_writer_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = filled(dir.path(), 1, 1);
    let error = Log::open(dir.path(), OPTIONS).expect_err("refused");
    assert!(matches!(error, WalError::Locked(_)), "{error}");
    drop(log);
    Log::open(dir.path(), OPTIONS).expect("free again");
}

#[test]
fn any_cut_of_the_end_loses_only_what_was_cut() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(filled(dir.path(), 5, 5));
    let path = dir.path().join(format!("{:016x}.seg", 1));
    let whole = fs::read(&path).expect("read");
    let ends: Vec<usize> = (1..=5)
        .scan(header::BYTES, |end, index| {
            *end += frame::size(record(index).len());
            Some(*end)
        })
        .collect();
    for length in ends[3]..ends[4] {
        fs::write(&path, &whole[..length]).expect("write");
        let (mut log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
        assert_eq!(recovery.damaged, []);
        assert_eq!(
            all(&log, 1).len(),
            4 + usize::from(length >= ends[3] + frame::HEAD + record(5).len())
        );
        let next = log.append(b"again").expect("append");
        log.sync().expect("sync");
        assert_eq!(all(&log, next), [(next, b"again".to_vec())]);
    }
}

#[test]
fn damage_is_reported_and_everything_behind_it_is_served() {
    for hurt in [1u64, 7, 30, 59] {
        let dir = tempfile::tempdir().expect("tempdir");
        drop(filled(dir.path(), 60, 1));
        let firsts = segment::list(&System, dir.path()).expect("list");
        let first = firsts
            .iter()
            .rfind(|first| **first <= hurt)
            .expect("segment");
        let offset = header::BYTES as u64
            + (*first..hurt)
                .map(|i| frame::size(record(i).len()) as u64)
                .sum::<u64>();
        let path = dir.path().join(format!("{first:016x}.seg"));
        let file = fs::File::options().write(true).open(&path).expect("open");
        file.write_all_at(b"\xff\xff", offset + 30).expect("write");
        let before = fs::read(&path).expect("read");
        let report = check(dir.path(), 500).expect("checks");
        assert_eq!(
            fs::read(&path).expect("read"),
            before,
            "check changes nothing"
        );
        let (log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
        let damage = Damage {
            path,
            offset,
            first_index: hurt,
            last_index: hurt,
        };
        assert_eq!(recovery.damaged, std::slice::from_ref(&damage));
        assert_eq!(report.damaged, [damage]);
        let found: Vec<u64> = all(&log, 1).into_iter().map(|r| r.0).collect();
        let rest: Vec<u64> = (1..=60).filter(|index| *index != hurt).collect();
        assert_eq!(found, rest);
        assert_eq!(all(&log, hurt).len() as u64, 60 - hurt);
    }
}

#[test]
fn intact_records_that_were_synced_with_a_damaged_one_are_served() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(filled(dir.path(), 9, 3));
    let path = dir.path().join(format!("{:016x}.seg", 1));
    let file = fs::File::options().write(true).open(&path).expect("open");
    file.write_all_at(b"\xff\xff", header::BYTES as u64 + 30)
        .expect("write");
    let (log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
    let damaged: Vec<(u64, u64)> = recovery
        .damaged
        .iter()
        .map(|damage| (damage.first_index, damage.last_index))
        .collect();
    assert_eq!(damaged, [(1, 1)]);
    let found: Vec<u64> = all(&log, 1).into_iter().map(|r| r.0).collect();
    assert_eq!(found, Vec::from_iter(2..=9));
}

/// The header of a log's first segment.
fn salt(dir: &Path) -> frame::Salt {
    let bytes = fs::read(dir.join(format!("{:016x}.seg", 1))).expect("read");
    header::read(&bytes).expect("a header")
}

fn stamped(index: u64, durable: u64, record: &[u8], salt: frame::Salt) -> Vec<u8> {
    let mut bytes = Vec::new();
    let frame = frame::Frame {
        index,
        durable,
        record,
    };
    frame::write(frame, &mut bytes);
    frame::stamp(&mut bytes, salt);
    bytes
}

/// A record that holds a frame is damaged so that the log looks for the next frame inside it.
/// Returns what it serves of the three records.
fn served_with_planted(salt: impl Fn(&Path) -> frame::Salt) -> Vec<(u64, Vec<u8>)> {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut log = filled(dir.path(), 1, 1);
    let mut record = vec![0; frame::size(1) - frame::HEAD];
    // As if a later record had been written behind it, one frame further.
    record.extend(stamped(3, 2, b"planted", salt(dir.path())));
    log.append(&record).expect("append");
    log.sync().expect("sync");
    log.append(b"third").expect("append");
    log.sync().expect("sync");
    drop(log);
    let path = dir.path().join(format!("{:016x}.seg", 1));
    let file = fs::File::options().write(true).open(&path).expect("open");
    let second = header::BYTES + frame::size(self::record(1).len());
    file.write_all_at(b"\xff", second as u64).expect("write");
    let (log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
    let [damage] = &recovery.damaged[..] else {
        panic!("{recovery:?}");
    };
    assert_eq!((damage.first_index, damage.last_index), (2, 2));
    all(&log, 1)
}

#[test]
fn a_frame_inside_a_record_is_never_taken_for_one() {
    let whole = [(1, record(1)), (3, b"third".to_vec())];
    let salts: [frame::Salt; 3] = [0, u64::MAX, 0x6c61_7773_6c61_7773];
    for guessed in salts {
        assert_eq!(served_with_planted(|_| guessed), whole);
    }
    // Half of the salt is not enough either.
    assert_eq!(served_with_planted(|dir| salt(dir) ^ 1), whole);
    assert_eq!(served_with_planted(|dir| salt(dir) ^ 1 << 63), whole);
    // It is in the right place: one who knew the salt would get his record in.
    assert_eq!(served_with_planted(salt)[1], (3, b"planted".to_vec()));
}

#[test]
fn each_segment_has_a_salt_of_its_own() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(filled(dir.path(), 60, 1));
    let firsts = segment::list(&System, dir.path()).expect("list");
    let salts: std::collections::BTreeSet<frame::Salt> = firsts
        .iter()
        .map(|first| {
            let bytes = fs::read(dir.path().join(format!("{first:016x}.seg"))).expect("read");
            header::read(&bytes).expect("a header")
        })
        .collect();
    assert_eq!((salts.len(), firsts.len() > 2), (firsts.len(), true));
}

#[test]
fn a_segment_serves_everything_with_either_copy_of_its_header() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(filled(dir.path(), 5, 1));
    let path = dir.path().join(format!("{:016x}.seg", 1));
    let whole = fs::read(&path).expect("read");
    for block in [0..4096, 4096..header::BYTES] {
        let mut hurt = whole.clone();
        hurt[block].fill(0xee);
        fs::write(&path, hurt).expect("write");
        let (log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
        assert_eq!((recovery.records, recovery.damaged.len()), (5, 0));
        assert_eq!(all(&log, 1).len(), 5);
    }
}

#[test]
fn a_segment_without_a_header_is_damage_where_records_were() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(filled(dir.path(), 60, 1));
    let firsts = segment::list(&System, dir.path()).expect("list");
    let path = |first: u64| dir.path().join(format!("{first:016x}.seg"));
    let (middle, last) = (firsts[1], firsts[firsts.len() - 1]);
    for first in [middle, last] {
        let file = fs::File::options().write(true).open(path(first));
        let zeros = [0; header::BYTES];
        file.expect("open").write_all_at(&zeros, 0).expect("write");
    }
    let report = check(dir.path(), 500).expect("checks");
    let (mut log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
    assert_eq!(report.damaged, recovery.damaged);
    let told: Vec<(u64, u64)> = recovery
        .damaged
        .iter()
        .map(|damage| (damage.first_index, damage.last_index))
        .collect();
    // How many the last one held cannot be known, but not none.
    assert_eq!(told, [(middle, firsts[2] - 1), (last, last)]);
    let served = all(&log, 1).len() as u64;
    assert_eq!(served, last - 1 - (firsts[2] - middle));
    let next = log.append(b"next").expect("append");
    log.sync().expect("sync");
    assert_eq!(next, last + 1);
    drop(log);
    let (log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
    assert_eq!(recovery.damaged.len(), 2);
    assert_eq!(all(&log, next), [(next, b"next".to_vec())]);
}

/// What a crash leaves between a segment's making and its header.
#[test]
fn a_segment_without_a_header_and_records_is_begun_anew() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(filled(dir.path(), 5, 1));
    let path = dir.path().join(format!("{:016x}.seg", 6));
    for content in [&[][..], &[0; 100], &[0; header::BYTES + 50]] {
        fs::write(&path, content).expect("write");
        let (log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
        assert_eq!((recovery.records, recovery.damaged.len()), (5, 0));
        assert_eq!(log.next_index(), 6);
    }
    let (mut log, _) = Log::open(dir.path(), OPTIONS).expect("opens");
    assert_eq!(log.append(b"sixth").expect("append"), 6);
    log.sync().expect("sync");
    drop(log);
    let (log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
    assert_eq!((recovery.records, recovery.damaged.len()), (6, 0));
    assert_eq!(all(&log, 6), [(6, b"sixth".to_vec())]);
}

/// A torn write may leave anything; each number in it could be the length of a record.
#[test]
fn a_long_tail_of_random_bytes_is_not_checksummed_again_and_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let options = Options {
        segment_bytes: 1 << 20,
        max_record_bytes: 16 << 20,
    };
    let (mut log, _) = Log::open(dir.path(), options.clone()).expect("opens");
    log.append(b"first").expect("append");
    log.sync().expect("sync");
    drop(log);
    let path = dir.path().join(format!("{:016x}.seg", 1));
    let mut bytes = fs::read(&path).expect("read");
    bytes.truncate(header::BYTES + frame::size(5));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    const TAIL: usize = 64 << 20;
    bytes.extend(words.take(TAIL / 8).flatten());
    fs::write(&path, bytes).expect("write");
    let summed = || frame::SUMMED_BYTES.with(std::cell::Cell::get);
    let before = summed();
    let report = check(dir.path(), options.max_record_bytes).expect("checks");
    assert_eq!((report.records, report.tail_bytes), (1, TAIL as u64));
    let summed = summed() - before;
    assert!(summed < TAIL as u64, "{summed} bytes for a tail of {TAIL}");
}

#[test]
fn files_of_other_names_are_not_segments() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(filled(dir.path(), 5, 1));
    for name in [
        "0000000000000000.seg",
        "ffffffffffffffff.seg",
        "7.seg",
        "x.seg",
        "0000000000000003.cut",
    ] {
        fs::write(dir.path().join(name), "nothing of ours").expect("write");
    }
    let (log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
    assert_eq!(
        (recovery.records, recovery.damaged.as_slice()),
        (5, &[][..])
    );
    assert_eq!(all(&log, 1).len(), 5);
}

/// A small ext4, unmounted at the end.
struct Ext4 {
    dir: tempfile::TempDir,
}

impl Ext4 {
    fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("tempdir");
        let image = dir.path().join("image");
        let file = fs::File::create(&image).expect("image");
        file.set_len(bytes).expect("length");
        let disk = Self { dir };
        fs::create_dir(disk.path()).expect("dir");
        let made = ran(std::process::Command::new("mkfs.ext4")
            .arg("-q")
            .arg(&image));
        let mut mount = std::process::Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(disk.path());
        (made && ran(&mut mount)).then_some(disk)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        ran(std::process::Command::new("umount")
            .arg("-q")
            .arg(self.path()));
    }
}

fn ran(command: &mut std::process::Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}

/// On ext4 a failed allocation keeps what it got: then nothing else could be written either.
#[test]
fn a_segment_that_finds_no_room_leaves_the_room_there_is() {
    let Some(disk) = Ext4::mount(24 << 20) else {
        eprintln!("SKIPPED: no ext4 image can be mounted here (needs root and loop devices)");
        return;
    };
    let dir = disk.path().join("log");
    let small = Options {
        segment_bytes: 64 << 10,
        max_record_bytes: 40 << 10,
    };
    let large = Options {
        segment_bytes: 64 << 20,
        ..small.clone()
    };
    let others = |name: &str| {
        fs::write(disk.path().join(name), vec![1u8; 1 << 20]).expect("there is room for others");
    };
    let (mut log, _) = Log::open(&dir, large.clone()).expect("opens");
    log.append(b"refused").expect("append");
    let refused = log.sync();
    assert!(matches!(refused, Err(WalError::DiskFull(_))), "{refused:?}");
    others("when a segment is made");
    drop(log);

    let (mut log, _) = Log::open(&dir, small).expect("opens");
    log.append(b"first").expect("append");
    log.sync().expect("there is room for a small segment");
    drop(log);
    let path = dir.join(format!("{:016x}.seg", 1));
    let bytes = |path: &Path| fs::metadata(path).expect("metadata").len();
    assert_eq!(bytes(&path), 64 << 10);
    let (mut log, _) = Log::open(&dir, large).expect("opens on a disk that is too small for more");
    assert_eq!(bytes(&path), 64 << 10, "as long as it was");
    others("when a segment is taken up");
    log.append(b"second").expect("append");
    log.sync().expect("it goes on in what is there");
    log.append(&vec![3; 40 << 10]).expect("append");
    log.append(&vec![4; 40 << 10]).expect("append");
    let refused = log.sync();
    assert!(matches!(refused, Err(WalError::DiskFull(_))), "{refused:?}");
    others("when another segment is made");
    let records: Vec<Vec<u8>> = all(&log, 1).into_iter().map(|r| r.1).collect();
    assert_eq!(records, [b"first".to_vec(), b"second".to_vec()]);
}

#[test]
fn a_lost_segment_is_damage() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(filled(dir.path(), 60, 1));
    let firsts = segment::list(&System, dir.path()).expect("list");
    fs::remove_file(dir.path().join(format!("{:016x}.seg", firsts[1]))).expect("removes");
    let (log, recovery) = Log::open(dir.path(), OPTIONS).expect("opens");
    let [damage] = &recovery.damaged[..] else {
        panic!("{recovery:?}");
    };
    assert_eq!(
        (damage.first_index, damage.last_index),
        (firsts[1], firsts[2] - 1)
    );
    assert_eq!(all(&log, 1).len() as u64, 60 - (firsts[2] - firsts[1]));
}

proptest! {
    /// Any bytes: never a panic, never a record whose checksum is wrong, and the log works on.
    #[test]
    fn any_file_opens(bytes in proptest::collection::vec(any::<u8>(), 0..600), keep in 0usize..header::BYTES + 400) {
        let dir = tempfile::tempdir().expect("tempdir");
        drop(filled(dir.path(), 9, 2));
        let path = dir.path().join(format!("{:016x}.seg", 1));
        let mut content = fs::read(&path).expect("read");
        content.truncate(keep);
        content.extend_from_slice(&bytes);
        fs::write(&path, content).expect("write");
        let (mut log, _) = Log::open(dir.path(), OPTIONS).expect("opens");
        for (index, found) in all(&log, 0) {
            prop_assert_eq!(found, record(index));
        }
        let next = log.append(b"next").expect("append");
        log.sync().expect("sync");
        prop_assert_eq!(all(&log, next), [(next, b"next".to_vec())]);
    }

    #[test]
    fn frames_are_read_as_written(index: u64, durable: u64, salt: u64, record in proptest::collection::vec(any::<u8>(), 1..300)) {
        let frame = frame::Frame { index, durable, record: &record };
        let mut bytes = Vec::new();
        frame::write(frame, &mut bytes);
        frame::stamp(&mut bytes, salt);
        prop_assert_eq!(bytes.len(), frame::size(record.len()));
        prop_assert_eq!(frame::read(&bytes, salt, 300), Some(frame));
        prop_assert_eq!(frame::read(&bytes, salt ^ 1, 300), None);
        prop_assert_eq!(frame::read(&bytes, salt ^ 1 << 40, 300), None);
        for at in 0..frame::HEAD + record.len() {
            bytes[at] ^= 1;
            prop_assert_eq!(frame::read(&bytes, salt, 300), None);
            bytes[at] ^= 1;
        }
    }
}
