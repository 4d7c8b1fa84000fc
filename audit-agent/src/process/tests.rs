use super::*;
use crate::sample;
use audit_common::kind;
use zerocopy::FromZeros as _;

const LIMITS: Limits = Limits {
    entries: 100,
    bytes: 1 << 20,
};
const BOOT: &str = "01234567-89ab-cdef-0123-456789abcdef";

fn header(pid: u32, start_time_ns: u64) -> Header {
    let mut header = sample::record(kind::EXIT).header;
    header.pid = pid;
    header.start_time_ns = start_time_ns;
    header.parent_pid = 1;
    header.parent_start_time_ns = 5;
    header
}

fn exec(table: &mut Table, header: &Header, exe: &str) {
    let process = Process {
        exe: exe.to_owned(),
        ..Process::default()
    };
    table.exec(header, &process, exe.as_bytes(), exe.len() as u64);
}

fn exe_of(table: &Table, header: &Header) -> String {
    let mut event = Event::default();
    table.describe(header, true, &mut event);
    event.process.expect("process").exe
}

#[test]
fn a_child_runs_what_its_parent_ran_until_it_execs() {
    let mut table = Table::new(BOOT, LIMITS);
    let (parent, child) = (header(10, 100), header(11, 200));
    exec(&mut table, &parent, "/bin/sh");
    table.fork(&parent, Key::of(&child), &Fork::new_zeroed());
    assert_eq!(exe_of(&table, &child), "/bin/sh");
    exec(&mut table, &child, "/bin/ls");
    assert_eq!(exe_of(&table, &child), "/bin/ls");
    assert_eq!(exe_of(&table, &parent), "/bin/sh");
    // The fork's record comes late: the exec knows better.
    table.fork(&parent, Key::of(&child), &Fork::new_zeroed());
    assert_eq!(exe_of(&table, &child), "/bin/ls");
}

#[test]
fn a_reused_pid_is_another_process() {
    let mut table = Table::new(BOOT, LIMITS);
    exec(&mut table, &header(10, 100), "/bin/old");
    let reused = header(10, 101);
    table.meet(&reused);
    assert_eq!(exe_of(&table, &reused), "");
    let mut event = Event::default();
    table.describe(&reused, true, &mut event);
    assert_eq!(
        event.process.expect("process").exec_id,
        "0123456789ab-10-65"
    );
}

#[test]
fn an_exited_parent_is_still_named_and_a_second_exit_is_known() {
    let mut table = Table::new(BOOT, LIMITS);
    let parent = header(1, 5);
    exec(&mut table, &parent, "/sbin/init");
    assert_eq!(table.exit(&parent), Ended::First);
    assert_eq!(table.exit(&parent), Ended::Again);
    let child = header(10, 100);
    table.meet(&child);
    let mut event = Event::default();
    assert_eq!(table.describe_parent(&child, &mut event), Some(1000));
    let named = event.parent.expect("parent");
    assert_eq!(
        (named.exe.as_str(), named.name.as_str()),
        ("/sbin/init", "sample")
    );
    let mut late = header(77, 1);
    late.time_ns += EXITED_KEPT_NS + 1;
    table.exit(&late);
    assert_eq!(exe_of(&table, &parent), "");
    assert_eq!(table.evicted(), 0);
}

#[test]
fn room_is_made_from_the_exited_then_from_the_oldest() {
    let mut table = Table::new(
        BOOT,
        Limits {
            entries: 3,
            ..LIMITS
        },
    );
    let of = |pid| header(pid, pid.into());
    for pid in [10, 11, 12] {
        exec(&mut table, &of(pid), "/bin/x");
    }
    table.exit(&of(11));
    exec(&mut table, &of(13), "/bin/x");
    assert_eq!(exe_of(&table, &of(11)), "");
    assert_eq!(exe_of(&table, &of(10)), "/bin/x");
    exec(&mut table, &of(14), "/bin/x");
    assert_eq!(exe_of(&table, &of(10)), "");
    assert_eq!((table.len(), table.evicted()), (3, 2));
}

#[test]
fn bytes_are_bounded_and_given_back() {
    let mut table = Table::new(
        BOOT,
        Limits {
            entries: 10_000,
            bytes: 64 << 10,
        },
    );
    for pid in 10..2000 {
        exec(&mut table, &header(pid, pid.into()), &"x".repeat(3000));
        assert!(table.bytes < (64 << 10) + 10_000, "{}", table.bytes);
    }
    let keys: Vec<Key> = table.entries.keys().copied().collect();
    for key in keys {
        assert!(table.remove(key));
    }
    assert_eq!(table.bytes, 0);
}

#[test]
fn the_key_queue_does_not_grow_with_churn() {
    let mut table = Table::new(
        BOOT,
        Limits {
            entries: 50,
            ..LIMITS
        },
    );
    for pid in 10..20_000_u32 {
        let header = header(pid, pid.into());
        table.meet(&header);
        table.exit(&header);
    }
    assert!(table.order.len() <= 2 * 50 + 1025, "{}", table.order.len());
    assert!(table.exited.len() <= 50);
}

fn seed(pid: u32, exe: &str) -> Seed {
    Seed {
        pid,
        start_ticks: 100,
        comm: *b"seeded\0\0\0\0\0\0\0\0\0\0",
        uid: Some(33),
        exe: exe.to_owned(),
        argv: b"prog\0-d\0".to_vec(),
        at_top: true,
    }
}

#[test]
fn seeds_take_a_share_of_the_table_and_give_it_back() {
    let mut table = Table::new(BOOT, LIMITS);
    let many = 20_000;
    table.seed((1..=many).map(|pid| seed(pid, "/bin/x")));
    assert!(table.bytes <= LIMITS.bytes / SEEDS_SHARE);
    assert_eq!(table.seeds.len() as u64 + table.evicted(), u64::from(many));
    for pid in 1..=many {
        table.meet(&header(pid, 1));
    }
    assert!(table.seeds.is_empty());
    assert!(table.len() <= LIMITS.entries);
    let keys: Vec<Key> = table.entries.keys().copied().collect();
    for key in keys {
        table.remove(key);
    }
    assert_eq!(table.bytes, 0);
}

#[test]
fn the_first_of_two_exits_counts_whichever_thread_it_was() {
    // Two threads that end at once may both see that no other is alive: two records of one process.
    let mut table = Table::new(BOOT, LIMITS);
    let mut first = header(10, 100);
    exec(&mut table, &first, "/bin/threads");
    first.tid = 12;
    let mut second = first;
    (second.tid, second.cpu, second.sequence) = (11, first.cpu + 1, 1);
    second.time_ns += 500;
    assert_eq!(table.exit(&first), Ended::First);
    assert_eq!(table.exit(&second), Ended::Again);
    // The next process with this pid ends for itself.
    let mut reused = header(10, 900);
    reused.time_ns = second.time_ns + 1;
    assert_eq!(table.exit(&reused), Ended::First);
}

#[test]
fn seeds_are_adopted_by_their_process_only() {
    let mut table = Table::new(BOOT, LIMITS);
    table.seed([
        seed(1, "/sbin/init"),
        seed(20, "/bin/a"),
        seed(21, "/bin/b"),
    ]);
    let start = 1_000_000_000 / rustix::param::clock_ticks_per_second() * 100 + 7;
    let mut own = header(20, start);
    own.parent_start_time_ns = start;
    table.meet(&own);
    assert_eq!(exe_of(&table, &own), "/bin/a");
    let mut event = Event::default();
    assert_eq!(table.describe_parent(&own, &mut event), Some(33));
    let parent = event.parent.expect("parent");
    assert_eq!(
        (parent.exe.as_str(), parent.name.as_str()),
        ("/sbin/init", "seeded")
    );
    assert_eq!(parent.argv, ["prog", "-d"]);
    let reused = header(21, start * 3);
    table.meet(&reused);
    assert_eq!(exe_of(&table, &reused), "");
}

#[test]
fn long_arguments_are_cut_and_counted() {
    let argv = [b"a".repeat(5000).as_slice(), b"\0"].concat();
    let program = Program::new(Default::default(), &argv, 5001, true);
    assert_eq!(program.argv[0].len(), KEPT_ARGV_BYTES);
    assert_eq!(
        program.argv_truncated_bytes,
        Some(5001 - KEPT_ARGV_BYTES as i64)
    );
}
