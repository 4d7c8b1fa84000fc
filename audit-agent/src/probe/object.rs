//! The kernel object as this kernel takes it: what the programs leave open until they are loaded.
//!
//! From Linux 6.19 on, tasks can be preempted inside programs at tracepoints. The programs ask for it
//! to be off while they run, by calls of functions (kfuncs) that are found by their numbers in the
//! kernel's type information; aya cannot do that yet. On other kernels the calls are taken out.

use audit_common::config::{PREEMPTION_OFF, PREEMPTION_ON};

use super::btf::Types;

/// BPF_JMP | BPF_CALL
const CALL: u8 = 0x85;
/// BPF_PSEUDO_KFUNC_CALL, in the upper half of the registers' byte.
const FUNCTION: u8 = 2 << 4;
/// `r0 = 0`: BPF_ALU64 | BPF_MOV | BPF_K
const NOTHING: [u8; 8] = [0xb7, 0, 0, 0, 0, 0, 0, 0];

/// Are programs at tracepoints preempted here? `release` is that of uname.
pub fn is_preemptible(release: &str) -> bool {
    version(release) >= (6, 19)
}

/// The first two numbers of a release.
pub fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0_u32));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// `object` with its placeholders replaced.
pub fn prepare(object: &[u8], types: &Types, preemptible: bool) -> Vec<u8> {
    let mut object = object.to_vec();
    let functions = [
        (PREEMPTION_OFF, "bpf_preempt_disable"),
        (PREEMPTION_ON, "bpf_preempt_enable"),
    ];
    for (placeholder, function) in functions {
        let id = types.function(function).filter(|_| preemptible);
        replace(&mut object, placeholder, id);
    }
    object
}

fn replace(object: &mut [u8], placeholder: i32, function: Option<u32>) {
    let mut call = [CALL, 0, 0, 0, 0, 0, 0, 0];
    call[4..].copy_from_slice(&placeholder.to_le_bytes());
    let with = function.map_or(NOTHING, |id| {
        let mut with = [CALL, FUNCTION, 0, 0, 0, 0, 0, 0];
        with[4..].copy_from_slice(&id.to_le_bytes());
        with
    });
    // Sections of instructions, and instructions in them, begin at multiples of eight.
    for instruction in object.chunks_exact_mut(8) {
        if instruction == call {
            instruction.copy_from_slice(&with);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_become_functions_or_nothing() {
        let mut call = [CALL, 0, 0, 0, 0, 0, 0, 0];
        call[4..].copy_from_slice(&PREEMPTION_ON.to_le_bytes());
        let other = [CALL, 0, 0, 0, 5, 0, 0, 0];
        let object = [other, call].concat();
        let mut nothing = object.clone();
        replace(&mut nothing, PREEMPTION_ON, None);
        assert_eq!(nothing, [other, NOTHING].concat());
        let mut function = object;
        replace(&mut function, PREEMPTION_ON, Some(0x1234));
        assert_eq!(function[8..], [CALL, 0x20, 0, 0, 0x34, 0x12, 0, 0]);
    }

    #[test]
    fn our_object_has_them() {
        for placeholder in [PREEMPTION_OFF, PREEMPTION_ON] {
            let mut object = super::super::kernel::OBJECT.to_vec();
            replace(&mut object, placeholder, None);
            assert_ne!(object, super::super::kernel::OBJECT, "{placeholder:#x}");
        }
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert!(!is_preemptible("6.9.12-amd64"));
        assert!(!is_preemptible("5.10.0-46-cloud-amd64"));
        assert!(is_preemptible("6.19"));
        assert!(is_preemptible("7.2.12+deb13-cloud-amd64"));
        assert!(!is_preemptible("odd"));
    }
}
