//! What does the kernel say of a loaded program? How often it was skipped, and how much the verifier
//! had to check. Reads `struct bpf_prog_info` (include/uapi/linux/bpf.h), which aya shows in part.

use std::{io, os::fd::AsRawFd as _};

use aya::programs::ProgramFd;

/// Of one program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Info {
    /// Runs that the kernel left out because the program was running on that CPU already (Linux
    /// 5.12): in an interrupt, or in a task that was preempted inside it.
    pub skipped: u64,
    /// Instructions that the verifier went through (Linux 5.16).
    pub verified_instructions: u32,
}

const OBJ_GET_INFO_BY_FD: i32 = 15;
const INFO_BYTES: usize = 232;
const SKIPPED_AT: usize = 208;
const VERIFIED_AT: usize = 216;

/// A field that the kernel is too old for stays zero.
#[expect(unsafe_code, reason = "a system call")]
pub fn of(program: &ProgramFd) -> io::Result<Info> {
    use std::os::fd::AsFd as _;
    let mut info = [0_u8; INFO_BYTES];
    let mut attributes = [0_u8; 16];
    attributes[..4].copy_from_slice(&program.as_fd().as_raw_fd().to_le_bytes());
    attributes[4..8].copy_from_slice(&(INFO_BYTES as u32).to_le_bytes());
    attributes[8..].copy_from_slice(&(info.as_mut_ptr() as u64).to_le_bytes());
    // SAFETY: the attributes name a buffer of ours and its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            OBJ_GET_INFO_BY_FD,
            attributes.as_mut_ptr(),
            attributes.len(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut skipped = [0; 8];
    skipped.copy_from_slice(&info[SKIPPED_AT..SKIPPED_AT + 8]);
    let mut verified = [0; 4];
    verified.copy_from_slice(&info[VERIFIED_AT..VERIFIED_AT + 4]);
    Ok(Info {
        skipped: u64::from_le_bytes(skipped),
        verified_instructions: u32::from_le_bytes(verified),
    })
}
