//! Sequence streams and rings. Each (cpu, class) counts its records from 1, before the ring
//! reservation, so a gap names exactly how many records of which class are missing.
//!
//! Numbers equal `Class` in the public proto.

pub const PROCESS: u8 = 1;
pub const NETWORK: u8 = 2;
pub const FILE: u8 = 3;
/// Socket state changes. They run in interrupts, which may hit the middle of a network program on
/// the same CPU, so they count for themselves; they share the network ring.
pub const FLOW: u8 = 4;

/// All classes that the kernel counts.
pub const ALL: [u8; 4] = [PROCESS, NETWORK, FILE, FLOW];

/// The class's name, as in the public proto.
pub const fn name(class: u8) -> Option<&'static str> {
    Some(match class {
        PROCESS => "process",
        NETWORK => "network",
        FILE => "file",
        FLOW => "flow",
        _ => return None,
    })
}
