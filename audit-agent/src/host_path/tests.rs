use super::*;
use crate::sample;
use audit_common::record::{Record, section};
use zerocopy::IntoBytes as _;

const NAMESPACE: u32 = 77;

/// The agent of this host, and a namespace whose root is the host's /usr.
fn paths() -> HostPaths {
    let mut paths = HostPaths::of_host();
    let host = paths.host.as_mut().expect("/proc");
    let begun_ns = now_ns();
    let place = host.place(b"/usr").expect("/usr");
    let text = format!(
        "20 1 {}:{} {} / rw - x x rw\n21 20 0:4095 / /tmp rw - tmpfs x rw\n",
        place.device >> 20,
        place.device & 0xf_ffff,
        String::from_utf8(place.path).expect("utf-8")
    );
    let table = Table {
        mounts: Mounts::read(text.as_bytes(), TABLE_BYTES).expect("a table"),
        begun_ns,
        ended_ns: now_ns(),
        checked_ns: now_ns(),
    };
    (paths.now_ns, paths.settled_ns) = (table.ended_ns, table.ended_ns);
    paths.keep(NAMESPACE, table);
    paths
}

fn header(kind: u16) -> Header {
    let mut header = sample::header(kind);
    header.time_ns = now_ns();
    header.mount_namespace = NAMESPACE;
    // No process has these (the kernel's limit is 2^22).
    (header.pid, header.tid, header.parent_pid) = (5_000_000, 5_000_001, 5_000_002);
    header
}

fn file(path: &str) -> File {
    File {
        path: path.to_owned(),
        path_source: "kernel".to_owned(),
        ..File::default()
    }
}

/// What the host calls `file` of that namespace.
fn host_path(paths: &mut HostPaths, header: &Header, root: &str, file: File) -> String {
    let mut event = Event {
        file: Some(file),
        ..Event::default()
    };
    let process = event.process.get_or_insert_default();
    process.mount_namespace = Some(header.mount_namespace.into());
    root.clone_into(&mut process.root);
    if paths.concerns(&event) {
        paths.complete(header, root, &mut event);
    }
    event.file.expect("file").host_path
}

#[test]
fn a_namespaces_file_is_found_by_the_hosts_mounts() {
    let (mut paths, header) = (paths(), header(kind::OPEN));
    let mut of = |root: &str, path: &str| host_path(&mut paths, &header, root, file(path));
    assert_eq!(of("", "/bin/x"), "/usr/bin/x");
    assert_eq!(of("", "/"), "/usr");
    assert_eq!(of("/jail", "/x"), "/usr/jail/x");
    assert_eq!(of("/jail", "/"), "/usr/jail");
    assert_eq!(of("", "/a\\xff\\\\b"), "/usr/a\\xff\\\\b");
    assert_eq!(of("", "/tmp/x"), "", "mounted only there");
    for path in ["x", "", "pipe:[1]", "(unreachable)/x"] {
        assert_eq!(of("", path), "", "no path");
    }
    let counters = paths.counters();
    assert_eq!((counters.found, counters.absent), (5, 1));
}

#[test]
fn what_is_not_certain_is_not_told() {
    let (mut paths, header) = (paths(), header(kind::OPEN));
    let mut of = |change: &dyn Fn(&mut File)| {
        let mut file = file("/x");
        change(&mut file);
        host_path(&mut paths, &header, "", file)
    };
    assert_eq!(of(&|_| {}), "/usr/x");
    assert_eq!(of(&|file| file.path_source = "lexical".to_owned()), "");
    assert_eq!(of(&|file| file.path_truncated_bytes = Some(1)), "");
    assert_eq!(of(&|file| file.memfd = Some(true)), "");
    assert_eq!(
        of(&|file| file.device = Some(4095)),
        "",
        "of another file system"
    );
    let looked_up = |file: &mut File| {
        file.device = Some(4095);
        file.path_source = "lookup".to_owned();
    };
    assert_eq!(
        of(&looked_up),
        "/usr/x",
        "by stat, which has its own devices"
    );
}

#[test]
fn a_process_of_the_host_has_a_host_path_only_below_another_root() {
    let mut paths = paths();
    let mut header = header(kind::OPEN);
    header.mount_namespace = paths.host.as_ref().expect("host").namespace();
    assert_eq!(host_path(&mut paths, &header, "", file("/x")), "");
    assert_eq!(
        host_path(&mut paths, &header, "/jail", file("/x")),
        "/jail/x"
    );
    assert_eq!(host_path(&mut paths, &header, "/jail", file("/")), "/jail");
    let counters = paths.counters();
    assert_eq!((counters.found, counters.absent), (2, 0));
}

/// A round with one record of this kind at that time.
fn round(mut sample: sample::Sample, time_ns: u64) -> Round {
    sample.header.time_ns = time_ns;
    sample.header.mount_namespace = NAMESPACE;
    let mut round = Round::default();
    round.push(time_ns, &sample.bytes());
    round
}

#[test]
fn a_change_of_mounts_parts_the_events_before_it_from_those_after() {
    let mut paths = paths();
    let mut of = header(kind::OPEN);
    let before = of.time_ns;
    let change = before + 1000;
    paths.look_ahead(&round(sample::record(kind::MOUNT), change));
    assert_eq!(host_path(&mut paths, &of, "", file("/x")), "/usr/x");
    of.time_ns = change;
    assert_eq!(
        host_path(&mut paths, &of, "", file("/x")),
        "",
        "from then on"
    );
    // And in later rounds; no process is there by which the table could be read again.
    paths.look_ahead(&Round::default());
    of.time_ns = now_ns();
    assert_eq!(host_path(&mut paths, &of, "", file("/x")), "");
}

#[test]
fn a_table_of_after_a_change_does_not_tell_of_before() {
    let mut paths = paths();
    let mut of = header(kind::OPEN);
    let change = paths.namespaces[&NAMESPACE]
        .table
        .as_ref()
        .expect("table")
        .begun_ns;
    paths.look_ahead(&round(sample::record(kind::MOUNT), change));
    of.time_ns = change - 1;
    assert!(paths.table(&of, NAMESPACE).is_none());
    of.time_ns = change;
    assert!(paths.table(&of, NAMESPACE).is_some());
}

#[test]
fn a_table_whose_reading_is_not_settled_needs_a_look() {
    let (mut paths, header) = (paths(), header(kind::OPEN));
    let settled = std::mem::take(&mut paths.settled_ns);
    // Nobody is there to look.
    assert_eq!(host_path(&mut paths, &header, "", file("/x")), "");
    paths.settled_ns = settled;
    assert_eq!(host_path(&mut paths, &header, "", file("/x")), "/usr/x");
}

#[test]
fn a_table_that_is_read_again_and_says_the_same_stays() {
    let mut paths = paths();
    let again = |paths: &HostPaths, point: &str| Table {
        mounts: Mounts::read(format!("20 1 0:1 / {point} rw\n").as_bytes(), TABLE_BYTES)
            .expect("a table"),
        begun_ns: paths.now_ns + 1,
        ended_ns: paths.now_ns + 2,
        checked_ns: paths.now_ns + 2,
    };
    let table = |paths: &HostPaths| {
        let table = paths.namespaces[&NAMESPACE].table.as_ref().expect("table");
        (table.ended_ns, table.checked_ns)
    };
    let first = again(&paths, "/");
    let ended = first.ended_ns;
    paths.keep(NAMESPACE, first);
    paths.now_ns += 10;
    let same = again(&paths, "/");
    paths.keep(NAMESPACE, same);
    assert_eq!(table(&paths), (ended, ended + 10));
    let other = again(&paths, "/a");
    paths.keep(NAMESPACE, other);
    assert_eq!(table(&paths), (ended + 10, ended + 10));
    let bytes = paths.namespaces[&NAMESPACE]
        .table
        .as_ref()
        .map(|table| table.mounts.bytes());
    assert_eq!(Some(paths.bytes), bytes);
}

#[test]
fn changes_are_mounts_that_succeeded_and_namespaces_that_began() {
    let host = 5;
    let of = |sample: &sample::Sample| {
        let change = change(&sample.bytes(), host);
        change.map(|change| change.namespace)
    };
    let mut mount = sample::record(kind::MOUNT);
    mount.header.mount_namespace = host;
    assert_eq!(of(&mount), Some(host));
    let mut call = mount.payload_as::<Call>();
    call.result = -1;
    mount.payload = call.as_bytes().to_vec();
    assert_eq!(of(&mount), None);
    let mut unshare = sample::call(kind::NAMESPACE, "unshare");
    unshare.header.mount_namespace = 6;
    assert_eq!(of(&unshare), Some(6));
    unshare.header.mount_namespace = host;
    assert_eq!(of(&unshare), None);
    let mut joined = sample::call(kind::NAMESPACE, "setns");
    joined.header.mount_namespace = 6;
    assert_eq!(of(&joined), None);
    let mut fork = sample::record(kind::FORK);
    let mut child = fork.payload_as::<Fork>();
    child.mount_namespace = 7;
    fork.payload = child.as_bytes().to_vec();
    assert_eq!(of(&fork), Some(7));
    fork.header.mount_namespace = 7;
    assert_eq!(of(&fork), None);
    assert_eq!(of(&sample::record(kind::OPEN)), None);
    assert_eq!(change(b"short", host), None);
}

#[test]
fn attempts_are_few() {
    let mut tried = Tried::default();
    assert!(tried.again(1, 7) && !tried.again(1, 7) && tried.again(2, 7));
    let more = (8..100).filter(|tid| tried.again(2, *tid)).count();
    assert_eq!(more as u32, TRIES - 1);
}

#[test]
fn tables_have_a_bound() {
    let mut paths = paths();
    let many: String = (0..4000)
        .map(|id| format!("{id} 0 0:1 / /{id} rw - x x rw\n"))
        .collect();
    for namespace in 100..110 {
        let table = Table {
            mounts: Mounts::read(many.as_bytes(), TABLE_BYTES).expect("a table"),
            begun_ns: 1,
            ended_ns: 2,
            checked_ns: 2,
        };
        paths.keep(namespace, table);
        let tables = paths.namespaces.values();
        let bytes: usize = tables
            .filter_map(|known| Some(known.table.as_ref()?.mounts.bytes()))
            .sum();
        assert_eq!(bytes, paths.bytes);
        assert!(bytes <= TABLES_BYTES);
    }
}

#[test]
fn the_root_is_that_of_a_walk_or_a_lookup_or_as_it_is() {
    let sample = sample::record(kind::OPEN);
    let bytes = sample.bytes();
    let record = Record::parse(&bytes).expect("well formed");
    let mut event = sample.event();
    event.process.as_mut().expect("process").root = "/jail".to_owned();
    let at_top = || true;
    let walked = root(&record, Some(b"/other"), at_top, &event);
    assert_eq!(walked.as_deref(), Some("/jail"));
    let mut absolute = sample::record(kind::UNLINK).section(section::GIVEN, b"/x");
    absolute.sections.retain(|of| of.0 == section::GIVEN);
    absolute.header.pid = std::process::id();
    let bytes = absolute.bytes();
    let record = Record::parse(&bytes).expect("well formed");
    let looked_up = root(&record, Some(b"/other"), at_top, &event);
    assert_eq!(looked_up.as_deref(), Some("/other"));
    let own = std::fs::read_link("/proc/self/root").expect("/proc");
    let here = root(&record, None, || false, &event);
    assert_eq!(here.is_some(), own == std::path::Path::new("/"));
    absolute.header.pid = 5_000_000;
    let bytes = absolute.bytes();
    let gone = Record::parse(&bytes).expect("well formed");
    assert_eq!(root(&gone, None, || true, &event).as_deref(), Some(""));
    assert_eq!(root(&gone, None, || false, &event), None);
}
