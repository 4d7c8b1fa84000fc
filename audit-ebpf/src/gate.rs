//! Is it this set of programs that records, or another? While an agent replaces the programs of a
//! former one, both sets are attached; the gate, a map that they share, names the one that records.
//!
//! Both sets run for each event, one after the other, on the same CPU. Were each to read the gate for
//! itself, an event around the switch could be recorded twice, or by none. So while the switch is
//! going on, whichever comes first leaves what it has read for the other.
//!
//! Invariant: programs of one place never interrupt each other on a CPU.

use aya_ebpf::{
    helpers::generated::bpf_get_current_pid_tgid,
    macros::map,
    maps::{Array, PerCpuArray},
};

use crate::settings::setting;

// These two never change their layout: sets of different versions share them.
/// `audit_common::config::gate`.
#[map]
static GATE: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static DECIDED: PerCpuArray<Decision> = PerCpuArray::with_max_entries(16, 0);

/// What a program has read at the gate, for its twin of the other set.
#[repr(C)]
struct Decision {
    /// Of this thread's event,
    thread: u32,
    /// told apart by this from others of the place
    detail: u32,
    /// which set has met it; 0 when both have.
    by: u32,
    active: u32,
}

/// Where programs are attached.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Place {
    Call,
    Exec,
    Fork,
    Exit,
    Signal,
    Socket,
    Cgroup,
    Container,
    LastClose,
    Copy,
    UringSubmit,
    UringComplete,
    UringOverflow,
}

/// May this program record? Asked once by a program, before it does anything. A set that nobody will
/// replace has no number, and its programs do not ask: the verifier removes the question.
#[inline(always)]
pub fn is_open(place: Place, detail: u32) -> bool {
    let own = setting!(generation);
    if own == 0 {
        return true;
    }
    let Some(gate) = GATE.get_ptr(0) else {
        return false;
    };
    // SAFETY: a map value; written whole.
    let gate = unsafe { gate.read_volatile() };
    let active = gate as u32;
    if gate >> 32 == 0 {
        return active == own;
    }
    gate_decide(place as u32, detail, active) != 0
}

/// A global function, as [`crate::path::climb_steps`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn gate_decide(place: u32, detail: u32, active: u32) -> u32 {
    let own = setting!(generation);
    let Some(decision) = DECIDED.get_ptr_mut(place) else {
        return 0;
    };
    // SAFETY: no arguments; a per-CPU map value that only programs of this place use.
    let (thread, decision) = unsafe { (bpf_get_current_pid_tgid() as u32, &mut *decision) };
    let met = decision.by != 0 && decision.by != own;
    if met && decision.thread == thread && decision.detail == detail {
        decision.by = 0;
        return (decision.active == own).into();
    }
    *decision = Decision {
        thread,
        detail,
        by: own,
        active,
    };
    (active == own).into()
}
