//! DNS answers stay within the memory that `audit_agent::dns` promises, measured at the allocator,
//! and answers seen before cost no allocation.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::IpAddr,
};

use audit_agent::dns::{MEMORY_BYTES, Names, Way, stream::Piece};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    // Signed: a thread also frees what another allocated.
    static BYTES: Cell<isize> = const { Cell::new(0) };
    static MOST_BYTES: Cell<isize> = const { Cell::new(0) };
}

/// What an allocator takes for a piece; glibc and musl add a word and round to 16.
fn taken(bytes: usize) -> isize {
    (bytes + 8).next_multiple_of(16).max(32) as isize
}

#[expect(unsafe_code, reason = "only an allocator sees allocations")]
// SAFETY: every call is handed to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        BYTES.set(BYTES.get() + taken(layout.size()));
        MOST_BYTES.set(MOST_BYTES.get().max(BYTES.get()));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get() - taken(layout.size()));
        // SAFETY: `at` came from `alloc` above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A response to `name` (of at most four labels of `label` bytes) with addresses from `first` on.
fn response(number: u32, label: u8, labels: usize, first: u32, addresses: u16) -> Vec<u8> {
    let mut bytes = vec![0, 7, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes[6..8].copy_from_slice(&addresses.to_be_bytes());
    let digits = format!("{number:08x}");
    bytes.push(digits.len() as u8);
    bytes.extend_from_slice(digits.as_bytes());
    for _ in 0..labels {
        bytes.push(label);
        // Told as \001, so the presentation takes four times as much.
        bytes.resize(bytes.len() + usize::from(label), 1);
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    for address in 0..u32::from(addresses) {
        bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        bytes.extend_from_slice(&(first + address).to_be_bytes());
    }
    bytes
}

#[test]
fn floods_stay_within_the_promised_memory() {
    let before = BYTES.get();
    let mut names = Names::default();
    let mut messages = 0_u64;
    let mut most_bytes = 0;
    let mut take = |namespace: u32, bytes: &[u8]| {
        MOST_BYTES.set(BYTES.get());
        let now_ns = messages * 1_000_000_000;
        names
            .datagram(namespace, Way::Received, bytes, now_ns)
            .expect("message");
        let half = [&4000_u16.to_be_bytes()[..], bytes, &[0; 1500]].concat();
        let piece = Piece::whole(None, &half);
        names.piece((namespace, Way::Received), messages, &piece, now_ns, |_| {});
        most_bytes = most_bytes.max(MOST_BYTES.get() - before);
        messages += 1;
    };
    // Short names and many, one namespace and thousands, then the longest names.
    for round in 0..3000_u32 {
        take(
            1 + round % 2,
            &response(round, 1, 0, (1 << 25) + round * 64, 64),
        );
    }
    for round in 0..6000_u32 {
        take(
            round % 1200,
            &response(round, 20, 1, (1 << 26) + round * 16, 16),
        );
    }
    for round in 0..3000_u32 {
        take(round % 7, &response(round, 59, 4, (1 << 27) + round * 8, 8));
    }
    let counters = names.counters();
    let most_bytes = usize::try_from(most_bytes).expect("more than before");
    println!("{most_bytes} bytes at most, {MEMORY_BYTES} promised; {counters:?}");
    assert!(counters.cache.evicted > 200_000 && counters.cache.refused > 0);
    assert!(counters.stream.evicted > 10_000);
    assert!(most_bytes <= MEMORY_BYTES, "{most_bytes}");
    assert!(
        most_bytes > MEMORY_BYTES / 2,
        "{most_bytes} is less than a flood needs"
    );
}

#[test]
fn known_answers_cost_no_allocation() {
    let mut names = Names::default();
    let bytes = response(1, 20, 2, 0x0a00_0001, 8);
    let round = |names: &mut Names| {
        let message = names
            .datagram(1, Way::Received, &bytes, 0)
            .expect("message");
        assert_eq!(message.answers().count(), 8);
        assert!(names.name_of(1, IpAddr::from([10, 0, 0, 8]), 0).is_some());
    };
    round(&mut names);
    let before = ALLOCATIONS.get();
    (0..100).for_each(|_| round(&mut names));
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
