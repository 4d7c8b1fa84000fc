//! Was the bench asked to stop? Ctrl-C and SIGTERM only set a flag, so that guards (auditd's rules,
//! running daemons) are undone by an ordinary return.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: i32) {
    ASKED.store(true, Ordering::Relaxed);
}

pub fn catch() {
    let handler = note as extern "C" fn(i32);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        #[expect(unsafe_code, reason = "no signal handling in std")]
        // SAFETY: the handler only stores to an atomic.
        unsafe {
            libc::signal(signal, handler as libc::sighandler_t);
        }
    }
}

/// An error once the bench was asked to stop.
pub fn check() -> Result<()> {
    ensure!(!ASKED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
