//! What does `docs/events.md` say of each kind? It is written from the tables that the agent runs
//! with (kinds, calls, hooks, columns) and from what decoding and enrichment make of sample records.
//!
//! Invariant: the page in the tree is the page that this tree would write; `cargo xtask events`
//! writes it, and the test below fails when it is stale. That no recorded event has a column that
//! the page does not list for its kind is asked of the live kernel by the ground truth test.

mod events;
mod limits;
mod page;

use std::path::Path;

/// Set to anything, the test writes the page.
const WRITE: &str = "HOSTAUDIT_WRITE_EVENTS";

#[test]
fn the_page_about_events_is_what_the_tables_say() {
    let Some(page) = page::page() else {
        eprintln!(
            "SKIPPED: in a chroot, or with other mounts than process 1, the columns are not all known"
        );
        return;
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/events.md");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &page).expect("written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        !page.contains("DESCRIBE "),
        "audit-common/src/kind.rs: a kind's meaning is not written yet"
    );
    let stale = page
        .lines()
        .zip(found.lines())
        .find(|(new, old)| new != old);
    assert!(
        page == found,
        "docs/events.md is stale; write it: cargo xtask events\nfirst difference: {stale:?}"
    );
}
