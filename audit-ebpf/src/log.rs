//! What do the programs say while they are being worked on? Feature `log` only: without it this
//! file is an empty function, and nothing of aya-log is in the object.

/// A record went to its ring, or found no room in it.
#[cfg(feature = "log")]
#[inline(never)]
pub fn sent(kind: u16, bytes: u64, result: i64) {
    if result == 0 {
        aya_log_ebpf::debug!((), "record of kind {}, {} bytes", kind, bytes);
    } else {
        aya_log_ebpf::warn!((), "no room for a record of kind {}, {} bytes", kind, bytes);
    }
}

#[cfg(not(feature = "log"))]
#[inline(always)]
pub fn sent(_: u16, _: u64, _: i64) {}
